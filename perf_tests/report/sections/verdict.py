"""The gate's verdict over two runs. It stands above the machines, so it is no section of one of them."""

from collections.abc import Mapping
from typing import Any

import altair as alt

from perf_tests.common.errors import COULD_NOT_JUDGE
from perf_tests.gate.comparison import Comparison
from perf_tests.gate.terminal import cells, shown_columns
from perf_tests.gate.thresholds import TIME
from perf_tests.gate.verdicts import FAILING, Verdict
from perf_tests.report import charts
from perf_tests.report.content import Cell, Chart, Section, Table, columns_of, text_cell

COLOURS: dict[str, str] = {
    Verdict.IMPROVED: "var(--good)",
    Verdict.PASS: "var(--muted)",
    Verdict.AMBIGUOUS: "var(--eager)",
}


def build(comparison: Comparison, labels: Mapping[str, str]) -> Section:
    """What is worse first, then all cases; ``labels`` are short names of cases, for the chart."""
    told = [case for case in comparison.by_badness() if case.verdict is not Verdict.PASS]
    tables = []
    if told:
        rows = [[_verdict_cell(case.verdict), text_cell(case.id), text_cell("; ".join(case.reasons))] for case in told]
        tables.append(Table("What stands out", ("verdict", "case", "why"), rows))
    columns = shown_columns(comparison)
    rows = [
        [_verdict_cell(case.verdict), text_cell(case.id), *map(text_cell, cells(case, columns))]
        for case in comparison.by_badness()
    ]
    numeric = frozenset(range(2, 2 + len(columns)))
    tables.append(Table("All cases, change from BASE to HEAD", ("verdict", "case", *columns), rows, numeric))
    chart = _chart(comparison, labels)
    return Section(
        "verdict",
        comparison.summary(),
        f"BASE: {comparison.base}\nHEAD: {comparison.head}",
        charts=[chart] if chart else [],
        tables=tables,
        notes=[
            *(f"accepted: {case_id}: {found.reason}" for case_id, found in comparison.accepted()),
            *comparison.notes,
        ],
        mark="note" if comparison.exit_code == COULD_NOT_JUDGE else _mark(comparison.verdict),
    )


def refused(reason: str) -> Section:
    """Two runs that the gate would not compare."""
    return Section("verdict", "Not compared", reason, mark="note")


def _mark(verdict: Verdict) -> str:
    return "bad" if verdict in FAILING else "note" if verdict is Verdict.AMBIGUOUS else "good"


def _verdict_cell(verdict: Verdict) -> Cell:
    return Cell(str(verdict), verdict.badness, mark=_mark(verdict))


def _chart(comparison: Comparison, labels: Mapping[str, str]) -> Chart | None:
    data: list[dict[str, Any]] = []
    for case in comparison.cases:
        time = case.finding(TIME)
        if time is not None and time.change is not None:
            low, high = (time.change if end is None else end for end in (time.low, time.high))
            figures = {"change": time.change, "low": low, "high": high}
            data.append(
                {"label": labels.get(case.id, case.id), "verdict": str(time.verdict or "not judged"), **figures}
            )
    if not data:
        return None
    present = list(dict.fromkeys(one["verdict"] for one in data))
    scale = alt.Scale(domain=present, range=[COLOURS.get(name, "var(--bad)") for name in present])
    colour = alt.Color("verdict:N", scale=scale, legend=alt.Legend(title=None))
    title = "change of the control-corrected time"
    axis = alt.Axis(format="+%")
    tips = [
        charts.tip("label:N", "case"),
        charts.tip("verdict:N", "of time"),
        charts.tip("change:Q", "change", "+.1%"),
        charts.tip("low:Q", "95 % from", "+.1%"),
        charts.tip("high:Q", "to", "+.1%"),
    ]
    base = charts.chart().encode(y=charts.cell_axis(), color=colour, tooltip=tips)
    bars = base.mark_rule(strokeWidth=3).encode(x=alt.X("low:Q", title=title, axis=axis), x2="high:Q")
    points = base.mark_point(filled=True, size=90, opacity=1).encode(
        x=alt.X("change:Q", title=title, axis=axis),
        shape=alt.Shape("verdict:N", scale=alt.Scale(domain=present), legend=alt.Legend(title=None)),
    )
    spec = charts.finish(
        charts.rule_at(0),
        bars,
        points,
        height=charts.height_of(data, 26),
        description="Change of the control-corrected time from BASE to HEAD, by case, with 95 % intervals.",
    )
    caption = "Right of 0 is slower. The bars are 95 % intervals."
    return Chart("Change of time from BASE to HEAD", spec, columns_of(data), caption, wide=True)
