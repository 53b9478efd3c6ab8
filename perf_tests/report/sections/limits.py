"""How near the components come to what the machine can do: a floor of bytes and operations over the measured round."""

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

from perf_tests.report import charts
from perf_tests.report.content import Cell, Chart, Section, Table, number_cell, text_cell
from perf_tests.report.numbers import show_count, show_ratio, show_seconds
from perf_tests.report.subject import Subject
from perf_tests.runs.document import mapping
from perf_tests.runs.views import CaseView, number

FRACTION, FLOOR = "fraction_of_limit", "floor_seconds"
COLUMNS = ("case", "implementation", "median round", "floor", "fraction of the limit", "bytes", "FLOPs")


def build(subject: Subject) -> Section | None:
    """The cases that recorded a floor, and the limits that it comes from."""
    cases = [case for case in subject.run.cases if case.measured and case.value(FRACTION) is not None]
    if not cases:
        return None
    text = (
        "The floor is the larger of two times, summed over the phases of a round that follow each other: the bytes that"
        " a phase must move over the machine's bandwidth, and its operations over the machine's matrix throughput. 1 is"
        " the limit; what fits into the processor's cache may come above it."
    )
    tables = [_table(cases), _machine_table(mapping(subject.run.machine_info.get("limits")))]
    return Section("limits", "Against the machine's limits", text, charts=[_chart(cases)], tables=tables)


def _work(case: CaseView) -> str:
    """A case without its implementation: ``decode_step base.en 6 cache_64``."""
    return f"{case.test.removeprefix('test_')} {case.checkpoint} {case.decoder_layers} {case.setting}"


def _table(cases: Sequence[CaseView]) -> Table:
    return Table(
        "Components and their floors", COLUMNS, [_row(case) for case in cases], frozenset(range(2, len(COLUMNS)))
    )


def _row(case: CaseView) -> list[Cell]:
    seconds, floor, fraction = case.median_seconds, case.value(FLOOR), case.value(FRACTION)
    moved, operations = case.value("limit_bytes"), case.value("limit_flops")
    return [
        text_cell(_work(case)),
        text_cell(case.implementation),
        number_cell(show_seconds(seconds), seconds),
        number_cell(show_seconds(floor), floor),
        number_cell(show_ratio(fraction), fraction),
        number_cell(show_count(moved), moved),
        number_cell(show_count(operations), operations),
    ]


def _machine_table(limits: Mapping[str, Any]) -> Table:
    """The limits as they were measured in this run."""
    rows = []
    bandwidth = number(limits.get("memory_bytes_per_second"))
    if bandwidth is not None:
        rows.append([text_cell("memory, GB/s"), _giga(bandwidth), text_cell(limits.get("memory_way"))])
    ways = mapping(limits.get("flops_ways"))
    for dtype, value in mapping(limits.get("flops_per_second")).items():
        throughput = number(value)
        if throughput is not None:
            way = text_cell(ways.get(dtype, ""))
            rows.append([text_cell(f"matrix products in {dtype}, GFLOP/s"), _giga(throughput), way])
    return Table("The machine's limits, measured in this run", ("what", "at most", "reached by"), rows, frozenset({1}))


def _giga(value: float) -> Cell:
    return number_cell(f"{value / 1e9:.1f}", value)


def _chart(cases: Sequence[CaseView]) -> Chart:
    data = [
        {
            "label": _work(case),
            "implementation": case.implementation,
            "fraction": case.value(FRACTION),
            "seconds": case.median_seconds,
            "floor": case.value(FLOOR),
        }
        for case in cases
    ]
    present = list(dict.fromkeys(str(case.implementation) for case in cases))
    return charts.dots(
        data,
        alt.X("fraction:Q", title="floor / median round", scale=alt.Scale(domainMin=0)),
        charts.implementation_colour(present),
        charts.implementation_shape(present),
        [
            ("label:N", "case"),
            ("implementation:N", "implementation"),
            ("fraction:Q", "fraction of the limit", ".3~g"),
            ("seconds:Q", "median round, s", ".4~g"),
            ("floor:Q", "floor, s", ".4~g"),
        ],
        at=1,
        title="Fraction of the machine's limit",
        description="Fraction of the machine's limit that each component reaches; 1 is the limit.",
        caption="Right is nearer to the limit.",
    )
