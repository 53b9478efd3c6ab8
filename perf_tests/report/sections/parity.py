"""Parity: that the numbers are right, and how much of the allowed error was used."""

from collections.abc import Sequence
from typing import Any

import altair as alt

from perf_tests.report import charts
from perf_tests.report.content import Cell, Chart, Section, Table, number_cell, text_cell
from perf_tests.report.numbers import show_significant
from perf_tests.report.rows import Row
from perf_tests.report.subject import Subject
from perf_tests.runs.views import CaseView, number
from perf_tests.session.table import show_tokens

COLUMNS = (
    "cell",
    "implementation",
    "tokens",
    "largest error, logits",
    "allowed",
    "error / allowed",
    "original's own error",
    "largest logit",
    "token regret, logits",
    "allowed regret",
    "reference",
)
FIGURES = ("original_max_abs_error", "reference_max_abs", "token_regret", "token_regret_bound")


def build(subject: Subject) -> Section | None:
    """Every case of the tables with a recorded check."""
    checked = [
        (row, case)
        for row in subject.rows
        for name in subject.implementations
        if (case := row.case(name)) and case.parity
    ]
    if not checked:
        return None
    text = "The largest error of a teacher-forced logit against the reference; past 1 of the allowed, a case fails."
    table = Table("Parity", COLUMNS, [_row(*one) for one in checked], frozenset(range(3, 10)))
    drawn = [chart for chart in [_chart(checked, subject.implementations)] if chart is not None]
    return Section("parity", "Parity", text, charts=drawn, tables=[table])


def _figures(case: CaseView) -> tuple[float | None, float | None, float | None]:
    error, bound = number(case.parity.get("max_abs_error")), number(case.parity.get("bound"))
    return error, bound, error / bound if error is not None and bound else None


def _row(row: Row, case: CaseView) -> list[Cell]:
    values = _figures(case)
    more = [number(case.parity.get(key)) for key in FIGURES]
    tokens = show_tokens(case.parity) or "not recorded"
    mark = {"equal": "good", "not recorded": ""}.get(tokens, "note")
    return [
        text_cell(row.label),
        text_cell(case.implementation),
        Cell(tokens, tokens, mark=mark),
        *(number_cell(show_significant(value), value) for value in (*values, *more)),
        text_cell(case.parity.get("reference") or ""),
    ]


def _chart(checked: Sequence[tuple[Row, CaseView]], present: Sequence[str]) -> Chart | None:
    data: list[dict[str, Any]] = []
    for row, case in checked:
        error, bound, used = _figures(case)
        if used:  # a logarithm has no place for an error of 0: those are the reference itself
            common = {"label": row.label, "implementation": case.implementation}
            data.append({**common, "used": used, "error": error, "bound": bound})
    if not data:
        return None
    drawn = [name for name in present if any(one["implementation"] == name for one in data)]
    return charts.dots(
        data,
        alt.X("used:Q", title="error / allowed (logarithmic)", scale=alt.Scale(type="log", padding=12)),
        charts.implementation_colour(drawn),
        charts.implementation_shape(drawn),
        [
            ("label:N", "cell"),
            ("implementation:N", "implementation"),
            ("used:Q", "error / allowed", ".3~g"),
            ("error:Q", "largest error, logits", ".2~e"),
            ("bound:Q", "allowed, logits", ".2~e"),
        ],
        at=1,
        title="Largest error / allowed error",
        description="Largest error of the logits over the allowed error, by cell and implementation; left of 1 passes.",
        caption="Left of 1 passes. Errors of 0 are not drawn.",
    )
