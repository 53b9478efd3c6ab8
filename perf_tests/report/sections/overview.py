"""At a glance: how much faster, with how much memory, cell by cell."""

from collections import Counter
from collections.abc import Sequence
from statistics import median

import altair as alt

from perf_tests.report import charts
from perf_tests.report.content import Chart, Fact, Section, columns_of
from perf_tests.report.numbers import show_ratio
from perf_tests.report.rows import MEMORY, Row
from perf_tests.report.subject import Subject


def build(subject: Subject) -> Section:
    """Headline figures, and a dot per cell for speed-up and memory."""
    rows = subject.rows
    drawn = [chart for chart in (_speedups(rows), _memory(rows)) if chart is not None]
    return Section("overview", "At a glance", facts=_facts(subject), charts=drawn, notes=_not_passed(subject))


def _facts(subject: Subject) -> list[Fact]:
    facts = []
    speedups = [row.speedup for row in subject.rows if row.speedup]
    if speedups:
        middle = median(speedup.median for speedup in speedups)
        faster = sum((speedup.low or speedup.median) > 1 for speedup in speedups)
        facts.append(Fact(f"{middle:.2f}x", "median speed-up of flash", "good" if middle > 1 else "bad"))
        mark = "good" if faster == len(speedups) else "bad"
        facts.append(Fact(f"{faster} of {len(speedups)}", "cells faster than the original", mark))
    ratios = [ratio for row in subject.rows if (ratio := row.relative("flash", MEMORY)) is not None]
    if ratios:
        span = " to ".join(dict.fromkeys([show_ratio(min(ratios)), show_ratio(max(ratios))]))
        facts.append(Fact(span, "peak memory, flash / original", "good" if max(ratios) <= 1 else "bad"))
    checks = [case.parity["tokens_equal"] for case in subject.run.cases if "tokens_equal" in case.parity]
    if checks:
        equal = sum(value is True for value in checks)
        facts.append(Fact(f"{equal} of {len(checks)}", "cases with the original's tokens", _all(equal, len(checks))))
    outcomes = Counter(case.outcome for case in subject.run.cases)
    if not subject.run.plain:
        passed = outcomes["passed"]
        facts.append(Fact(f"{passed} of {outcomes.total()}", "cases passed", _all(passed, outcomes.total())))
    return facts


def _all(count: int, total: int) -> str:
    return "good" if count == total else "bad"


def _not_passed(subject: Subject) -> list[str]:
    return [
        f"{case.outcome}: {case.id}: {case.reason or 'no reason given'}"
        for case in subject.run.cases
        if case.outcome != "passed"
    ]


def _speedups(rows: Sequence[Row]) -> Chart | None:
    data = []
    for row in rows:
        speedup = row.speedup
        if speedup is None:
            continue
        low, high = speedup.low or speedup.median, speedup.high or speedup.median
        state = "better" if low > 1 else "worse" if high < 1 else "no difference shown"
        shown = f"{speedup.median:.2f}x"
        data.append({"label": row.label, "median": speedup.median, "low": low, "high": high, "state": state})
        data[-1] |= {"shown": shown}
    return _dots(
        data,
        title="Speed-up of flash",
        axis="speed-up, control / flash",
        description="Speed-up of flash over the original by cell, with 95 % intervals; right of 1 is faster.",
        caption="Right of 1 is faster. Medians of paired rounds; the bars are 95 % intervals.",
        interval=True,
    )


def _memory(rows: Sequence[Row]) -> Chart | None:
    data = []
    for row in rows:
        ratio = row.relative("flash", MEMORY)
        if ratio is not None:
            state = "better" if ratio < 1 else "worse" if ratio > 1 else "no difference shown"
            data.append({"label": row.label, "median": ratio, "state": state, "shown": f"{ratio:.2f}"})
    return _dots(
        data,
        title="Peak memory of flash / original",
        axis="peak memory, flash / original",
        description="Peak memory of flash relative to the original by cell; left of 1 is less.",
        caption="Left of 1 is less. Exact, weights included.",
        interval=False,
    )


def _dots(
    data: Sequence[dict[str, object]], *, title: str, axis: str, description: str, caption: str, interval: bool
) -> Chart | None:
    if not data:
        return None
    states = [str(row["state"]) for row in data]
    value = "speed-up" if interval else "ratio"
    tips = [charts.tip("label:N", "cell"), charts.tip("median:Q", value, ".3f")]
    if interval:
        tips += [charts.tip("low:Q", "95 % from", ".3f"), charts.tip("high:Q", "to", ".3f")]
    x = alt.X("median:Q", title=axis, scale=alt.Scale(zero=False, nice=True, padding=12))
    base = charts.chart().encode(y=charts.cell_axis(), tooltip=tips)
    points = base.mark_point(filled=True, size=90, opacity=1).encode(
        x=x, color=charts.state_colour(states), shape=charts.state_shape(states)
    )
    texts = base.mark_text(align="center", dy=-9, fontSize=10, color="var(--muted)").encode(x=x, text="shown:N")
    layers = [charts.rule_at(1), points, texts]
    if interval:
        bars = base.mark_rule(strokeWidth=2).encode(
            x=alt.X("low:Q", title=axis), x2="high:Q", color=charts.state_colour(states)
        )
        layers.insert(1, bars)
    spec = charts.finish(*layers, height=charts.height_of(data, 28), description=description)
    return Chart(title, spec, columns_of(data), caption)
