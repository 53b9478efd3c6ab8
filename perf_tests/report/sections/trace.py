"""The rounds of a case one after the other, each beside its control: drift of the machine made visible."""

from statistics import median
from typing import Any

import altair as alt

from perf_tests.report import charts
from perf_tests.report.content import Chart, Choice, Columns, Section, compact
from perf_tests.report.subject import Subject
from perf_tests.runs.views import CaseView

MOST_ROUNDS = 500


def build(subject: Subject) -> Section | None:
    """Every case of the run that has raw rounds; those with a control first."""
    traced = [case for case in subject.run.cases if case.measured and len(case.seconds) > 1]
    traced.sort(key=lambda case: not case.control_seconds)
    if not traced:
        return None
    text = (
        "Rounds in the order they were run. A control round of the original runs right before each round of flash:"
        " what moves both lines is the machine, what moves their ratio is not."
    )
    choices = {case.id: _columns(case) for case in traced}
    longest = max(len(case.seconds) for case in traced)
    notes = [f"Of each case the first {MOST_ROUNDS} rounds are drawn."] if longest > MOST_ROUNDS else []
    return Section(
        "trace", "Round by round", text, choice=Choice("case", choices), charts=[_times(), _ratios()], notes=notes
    )


def _columns(case: CaseView) -> Columns:
    own, control = case.seconds[:MOST_ROUNDS], case.control_seconds[:MOST_ROUNDS]
    empty: list[float | None] = [None] * len(own)
    ratios = [c / f for c, f in zip(control, own, strict=True)] if control else empty
    speedup = case.speedup
    middle, low, high = speedup or ((median(ratios) if control else None), None, None)  # type: ignore[type-var]
    columns: dict[str, Any] = {
        "round": range(1, len(own) + 1),
        "this": own,
        "control": control or empty,
        "ratio": ratios,
        "median": [middle] * len(own),
        "low": [low] * len(own),
        "high": [high] * len(own),
    }
    return compact({name: list(values) for name, values in columns.items()}, 4)


def _round_axis() -> Any:
    return alt.X("round:Q", title="round", axis=alt.Axis(tickMinStep=1, format="d"), scale=alt.Scale(nice=False))


def _times() -> Chart:
    names = ["this case", "control (original)"]
    scale = alt.Scale(domain=names, range=["var(--flash)", "var(--original)"])
    shapes = alt.Scale(domain=names, range=["diamond", "circle"])
    base = (
        charts.chart()
        .transform_fold(["this", "control"], as_=["key", "seconds"])
        .transform_filter("isValid(datum.seconds)")
        .transform_calculate(who=f"datum.key === 'this' ? '{names[0]}' : '{names[1]}'")
        .encode(
            x=_round_axis(),
            y=alt.Y("seconds:Q", title="time of the round, s", scale=alt.Scale(zero=False)),
            color=alt.Color("who:N", scale=scale, legend=alt.Legend(title=None)),
        )
    )
    tips = [charts.tip("who:N", "what"), charts.tip("round:Q", "round"), charts.tip("seconds:Q", "seconds", ".4~g")]
    points = base.mark_point(filled=True, size=40, opacity=1).encode(
        shape=alt.Shape("who:N", scale=shapes, legend=alt.Legend(title=None)), tooltip=tips
    )
    line = base.mark_line(strokeWidth=1.5)
    spec = charts.finish(line, points, height=220, description="Time of each round, with its control's.")
    return Chart("Time of each round, and of its control", spec, None)


def _ratios() -> Chart:
    base = charts.chart().transform_filter("isValid(datum.ratio)").encode(x=_round_axis())
    scale = alt.Scale(zero=False)
    title = "control / flash"
    band = base.mark_area(opacity=0.2, color="var(--flash)").encode(
        y=alt.Y("low:Q", title=title, scale=scale), y2="high:Q"
    )
    middle = base.mark_line(color="var(--flash)", strokeDash=[5, 3]).encode(
        y=alt.Y("median:Q", title=title, scale=scale)
    )
    tips = [
        charts.tip("round:Q", "round"),
        charts.tip("ratio:Q", "control / flash", ".3f"),
        charts.tip("median:Q", "median", ".3f"),
    ]
    y = alt.Y("ratio:Q", title=title, scale=scale)
    points = base.mark_point(filled=True, size=40, opacity=1, color="var(--flash)", shape="diamond").encode(
        y=y, tooltip=tips
    )
    line = base.mark_line(color="var(--flash)", strokeWidth=1, opacity=0.6).encode(y=y)
    spec = charts.finish(
        band,
        middle,
        line,
        points,
        height=220,
        description="Control over flash, round by round, with the median and its 95 % interval.",
    )
    caption = "Dashed: the median; the band is its 95 % interval."
    return Chart("Speed-up of each pair of rounds", spec, None, caption, needs="ratio")
