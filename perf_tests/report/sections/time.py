"""Time per round of each implementation: medians with their intervals, the raw rounds behind them."""

from collections.abc import Sequence
from typing import Any

import altair as alt

from perf_tests.common.intervals import median_interval
from perf_tests.report import charts
from perf_tests.report.content import Chart, Section, Table, columns_of, number_cell, text_cell
from perf_tests.report.numbers import show_ratio, show_seconds, show_significant
from perf_tests.report.rows import Row
from perf_tests.report.subject import Subject
from perf_tests.runs.views import CaseView

# Of a case with more, evenly spaced ones are drawn.
MOST_ROUNDS = 100
COLUMNS = (
    "cell",
    "implementation",
    "rounds",
    "median round",
    "95 % from",
    "to",
    "fastest",
    "slowest",
    "original / this, unpaired",
    "tokens/s",
    "real-time factor",
)


def build(subject: Subject) -> Section | None:
    """Every timed case of the tables."""
    timed = [
        (row, case)
        for row in subject.rows
        for name in subject.implementations
        if (case := row.case(name)) and case.median_seconds
    ]
    if not timed:
        return None
    text = (
        "A round is one call of generate on one batch. The machine drifts over minutes, and implementations are"
        " measured minutes apart: compare them by the paired speed-up, and these times with care."
    )
    table = Table("Time per round", COLUMNS, [_row(*one) for one in timed], frozenset(range(2, 11)))
    return Section("time", "Time", text, charts=[_chart(timed, subject.implementations)], tables=[table])


def thin(values: Sequence[float], most: int) -> list[float]:
    """At most ``most`` of the values, evenly spaced."""
    step = max(1, -(-len(values) // most))
    return [*values[::step]]


def _row(row: Row, case: CaseView) -> list[Any]:
    interval = median_interval(case.seconds)
    low, high = interval or (None, None)
    fastest, slowest = (min(case.seconds), max(case.seconds)) if case.seconds else (None, None)
    times = (case.median_seconds, low, high, fastest, slowest)
    unpaired = row.unpaired_speedup(str(case.implementation))
    return [
        text_cell(row.label),
        text_cell(case.implementation),
        number_cell(str(case.rounds or ""), case.rounds),
        *(number_cell(show_seconds(seconds), seconds) for seconds in times),
        number_cell(show_ratio(unpaired), unpaired),
        *(
            number_cell(show_significant(case.value(key)), case.value(key))
            for key in ("tokens_per_second", "real_time_factor")
        ),
    ]


def _chart(timed: Sequence[tuple[Row, CaseView]], present: Sequence[str]) -> Chart:
    data: list[dict[str, Any]] = []
    for row, case in timed:
        common = {"label": row.label, "implementation": case.implementation}
        interval = median_interval(case.seconds)
        low, high = interval or (case.median_seconds, case.median_seconds)
        data += [{**common, "round": seconds} for seconds in thin(case.seconds, MOST_ROUNDS)]
        data.append({**common, "median": case.median_seconds, "low": low, "high": high})
    tips = [charts.tip("label:N", "cell"), charts.tip("implementation:N", "implementation")]
    base = charts.chart().encode(y=charts.cell_axis(), yOffset=charts.by_implementation())
    scale = alt.Scale(type="log", nice=False, padding=10)
    title = "time per round, s (logarithmic)"
    colour, shape = charts.implementation_colour(present), charts.implementation_shape(present)
    rounds = (
        base.transform_filter("isValid(datum.round)")
        .mark_tick(opacity=0.35, thickness=1.5, size=9)
        .encode(
            x=alt.X("round:Q", title=title, scale=scale), color=colour, tooltip=[*tips, _seconds("round:Q", "round")]
        )
    )
    medians = base.transform_filter("isValid(datum.median)")
    all_tips = [*tips, _seconds("median:Q", "median"), _seconds("low:Q", "95 % from"), _seconds("high:Q", "to")]
    bars = medians.mark_rule(strokeWidth=3, opacity=0.8).encode(
        x=alt.X("low:Q", title=title, scale=scale), x2="high:Q", color=colour, tooltip=all_tips
    )
    points = medians.mark_point(filled=True, size=80, opacity=1, stroke="var(--surface)", strokeWidth=1).encode(
        x=alt.X("median:Q", title=title, scale=scale), color=colour, shape=shape, tooltip=all_tips
    )
    spec = charts.finish(
        rounds,
        bars,
        points,
        height=charts.height_of(data, 14 * max(2, len(present)) + 10),
        description="Time per round by cell and implementation: raw rounds, medians and their 95 % intervals.",
    )
    caption = "Ticks are rounds, the symbol is their median, the bar its 95 % interval."
    return Chart("Time per round", spec, columns_of(data), caption, wide=True)


def _seconds(field: str, title: str) -> Any:
    return charts.tip(field, f"{title}, s", ".4~g")
