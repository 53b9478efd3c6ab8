"""Exact counters: they repeat to the last digit on any machine of the kind."""

from collections.abc import Sequence
from typing import Any

import altair as alt

from perf_tests.report import charts
from perf_tests.report.content import Chart, Section, Table, number_cell, text_cell
from perf_tests.report.numbers import show_count, show_ratio
from perf_tests.report.rows import Row
from perf_tests.report.subject import Subject
from perf_tests.runs.records import COUNTERS

NAMES = dict(zip(COUNTERS, ("ATen ops", "FLOPs", "kernel launches", "host syncs"), strict=True))
COLOURS = ("var(--flash)", "var(--original)", "var(--eager)", "var(--other)")
SHAPES = ("diamond", "circle", "square", "triangle-up")


def build(subject: Subject) -> Section | None:
    """The counters that any case of the run recorded."""
    cases = [case for row in subject.rows for name in subject.implementations if (case := row.case(name))]
    keys = [key for key in COUNTERS if any(case.value(key) is not None for case in cases)]
    if not keys:
        return None
    text = "Counted in a pass of their own over one round; there is no noise in them."
    drawn = [chart for chart in [_chart(subject.rows, keys)] if chart is not None]
    return Section("counters", "Exact counters", text, charts=drawn, tables=[_table(subject, keys)])


def _table(subject: Subject, keys: Sequence[str]) -> Table:
    columns = ["cell", "implementation"]
    for key in keys:
        columns += [NAMES[key], f"{NAMES[key]} / original's"]
    rows = []
    for row in subject.rows:
        for implementation in subject.implementations:
            case = row.case(implementation)
            if case is None:
                continue
            cells = [text_cell(row.label), text_cell(implementation)]
            for key in keys:
                ratio = row.relative(implementation, key)
                cells += [
                    number_cell(show_count(case.value(key)), case.value(key)),
                    number_cell(show_ratio(ratio), ratio),
                ]
            rows.append(cells)
    return Table("Exact counters of one round", columns, rows, frozenset(range(2, len(columns))))


def _chart(rows: Sequence[Row], keys: Sequence[str]) -> Chart | None:
    data: list[dict[str, Any]] = []
    for row in rows:
        for key in keys:
            ratio, flash = row.relative("flash", key), row.case("flash")
            if ratio is not None and flash is not None:
                counted = {"flash": flash.value(key), "original": row.cases["original"].value(key)}
                data.append({"label": row.label, "counter": NAMES[key], "ratio": ratio, **counted})
    if not data:
        return None
    present = [NAMES[key] for key in keys]
    colour = alt.Scale(domain=present, range=[*COLOURS[: len(present)]])
    shape = alt.Scale(domain=present, range=[*SHAPES[: len(present)]])
    return charts.dots(
        data,
        alt.X("ratio:Q", title="flash / original", scale=alt.Scale(zero=False, padding=12)),
        alt.Color("counter:N", scale=colour, legend=alt.Legend(title=None)),
        alt.Shape("counter:N", scale=shape),
        [
            ("label:N", "cell"),
            ("counter:N", "counter"),
            ("ratio:Q", "flash / original", ".4~g"),
            ("flash:Q", "flash", ",.0f"),
            ("original:Q", "original", ",.0f"),
        ],
        at=1,
        title="Exact counters, flash / original",
        description="Exact counters of flash relative to the original, by cell; left of 1 is less.",
    )
