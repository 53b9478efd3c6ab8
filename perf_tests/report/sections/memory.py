"""Peak memory of each implementation, alone on the device."""

from collections.abc import Sequence
from typing import Any

import altair as alt

from perf_tests.common.units import MEGABYTE
from perf_tests.report import charts
from perf_tests.report.content import Chart, Section, Table, columns_of, number_cell, text_cell
from perf_tests.report.numbers import show_megabytes, show_ratio
from perf_tests.report.rows import MEMORY, Row
from perf_tests.report.subject import Subject
from perf_tests.runs.views import CaseView

WEIGHTS, ON_TOP = "weights", "on top"
COLUMNS = (
    "cell",
    "implementation",
    "peak, MB",
    "weights and buffers, MB",
    "on top, MB",
    "reserved, MB",
    "peak / original's",
)


def build(subject: Subject) -> Section | None:
    """Every cell of which a peak was recorded."""
    cases = [
        (row, case)
        for row in subject.rows
        for name in subject.implementations
        if (case := row.case(name)) and case.value(MEMORY) is not None
    ]
    if not cases:
        return None
    text = "The allocator's exact peak in one round of that implementation alone, weights included. MB are 10⁶ bytes."
    table = Table("Peak memory", COLUMNS, [_row(*one) for one in cases], frozenset(range(2, 7)))
    return Section("memory", "Memory", text, charts=[_chart(cases, subject.implementations)], tables=[table])


def _parts(case: CaseView) -> tuple[float, float | None]:
    peak, weights = case.value(MEMORY) or 0.0, case.value("model_memory_bytes")
    return peak, weights if weights is not None and weights <= peak else None


def _row(row: Row, case: CaseView) -> list[Any]:
    peak, weights = _parts(case)
    on_top = None if weights is None else peak - weights
    relative = row.relative(str(case.implementation), MEMORY)
    counts = (peak, weights, on_top, case.value("peak_memory_reserved_bytes"))
    return [
        text_cell(row.label),
        text_cell(case.implementation),
        *(number_cell(show_megabytes(count), count) for count in counts),
        number_cell(show_ratio(relative), relative),
    ]


def _chart(cases: Sequence[tuple[Row, CaseView]], present: Sequence[str]) -> Chart:
    data: list[dict[str, Any]] = []
    for row, case in cases:
        peak, weights = _parts(case)
        common = {"label": row.label, "implementation": case.implementation, "peak": peak / MEGABYTE}
        if weights is not None:
            data.append({**common, "part": WEIGHTS, "start": 0, "end": weights / MEGABYTE})
        data.append({**common, "part": ON_TOP, "start": (weights or 0) / MEGABYTE, "end": peak / MEGABYTE})
    for one in data:
        one["size"] = one["end"] - one["start"]
    opacity = alt.Scale(domain=[WEIGHTS, ON_TOP], range=[0.45, 1])
    bars = (
        charts.chart()
        .mark_bar(height={"band": 0.8})
        .encode(
            y=charts.cell_axis(),
            yOffset=charts.by_implementation(),
            x=alt.X("start:Q", title="peak memory, MB"),
            x2="end:Q",
            color=charts.implementation_colour(present),
            opacity=alt.Opacity("part:O", scale=opacity, legend=alt.Legend(title=None)),
            tooltip=[
                charts.tip("label:N", "cell"),
                charts.tip("implementation:N", "implementation"),
                charts.tip("part:N", "part"),
                charts.tip("size:Q", "of the part, MB", ",.1f"),
                charts.tip("peak:Q", "peak, MB", ",.1f"),
            ],
        )
    )
    spec = charts.finish(
        bars,
        height=charts.height_of(data, 12 * max(2, len(present)) + 8),
        description="Peak memory by cell and implementation, weights and what comes on top.",
    )
    return Chart("Peak memory", spec, columns_of(data), wide=True)
