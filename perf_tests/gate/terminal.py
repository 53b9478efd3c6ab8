"""A comparison in the terminal: what is wrong and why first, then every case's figures, then the notes."""

import os
import shutil
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TextIO

from perf_tests.common.errors import COULD_NOT_JUDGE
from perf_tests.common.text import clean, percent
from perf_tests.runs.records import FRACTION
from perf_tests.runs.statistics import Change

from .comparison import Comparison
from .explain import Explanation
from .judging import UNCORRECTED, show_change
from .thresholds import TIME
from .verdicts import CaseResult, Verdict

if TYPE_CHECKING:
    from rich.console import Console

LEAST_WIDTH = 132
# What one figure more takes.
COLUMN_WIDTH = 16
STYLES = {
    Verdict.IMPROVED: "green",
    Verdict.PASS: "green",
    Verdict.NEW: "cyan",
    Verdict.AMBIGUOUS: "yellow",
    Verdict.REGRESSED: "bold red",
    Verdict.MISSING: "bold red",
    Verdict.FAILED: "bold red",
}
OF_LIMIT = "of limit"
COLUMNS = ("time [95 %]", "uncorrected", "peak memory", "ATen ops", "FLOPs")


def print_comparison(
    comparison: Comparison,
    file: TextIO | None = None,
    *,
    colour: bool | None = None,
) -> None:
    """Print to ``file`` (standard output), in colour where that is a terminal or ``colour`` says so.

    Cases that have an explanation get it where they did not simply pass, or where operators' counts changed.
    """
    from rich.console import Console

    file = file or sys.stdout
    least = LEAST_WIDTH + COLUMN_WIDTH * (len(shown_columns(comparison)) - len(COLUMNS))
    console = Console(
        file=file,
        width=max(least, shutil.get_terminal_size().columns),
        force_terminal=colour,
        no_color=colour is False or "NO_COLOR" in os.environ,
        highlight=False,
        markup=False,
        emoji=False,
        soft_wrap=False,
    )
    style = "yellow" if comparison.exit_code == COULD_NOT_JUDGE else STYLES[comparison.verdict]
    console.print(comparison.summary(), style=style)
    console.print(f"BASE  {comparison.base}\nHEAD  {comparison.head}")
    for case in comparison.by_badness():
        explanation = comparison.explanations.get(case.id)
        if case.verdict is not Verdict.PASS or (explanation is not None and explanation.counts):
            _print_case(console, case, explanation)
    console.print()
    console.print(_table(comparison))
    for case_id, finding in comparison.accepted():
        console.print(f"accepted: {clean(case_id)}: {clean(finding.reason)}", style="cyan")
    for note in comparison.notes:
        console.print(f"note: {note}")


def _print_case(console: "Console", case: CaseResult, explanation: Explanation | None) -> None:
    from rich.padding import Padding
    from rich.text import Text

    head = Text(f"{case.verdict:<10}", STYLES[case.verdict])
    console.print(head.append(clean(case.id), "bold"))
    for reason in (*case.reasons, *(explanation.lines() if explanation else ())):
        console.print(Padding(Text(reason), (0, 0, 0, 10), expand=False))


def _table(comparison: Comparison) -> Any:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("verdict", no_wrap=True)
    table.add_column("case", overflow="fold")
    columns = shown_columns(comparison)
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    for case in comparison.by_badness():
        verdict = Text(str(case.verdict), STYLES[case.verdict])
        table.add_row(verdict, Text(clean(case.id, 80)), *map(Text, cells(case, columns)))
    return table


def shown_columns(comparison: Comparison) -> tuple[str, ...]:
    """The figures that there are: how near to the machine's limit for components alone."""
    return (*COLUMNS, OF_LIMIT) if any(case.finding(FRACTION) for case in comparison.cases) else COLUMNS


def cells(case: CaseResult, columns: Sequence[str]) -> list[str]:
    """The figures of a case under ``columns``; nothing where there is none."""
    time = case.finding(TIME)
    texts = [""]
    if time is not None and time.change is not None:
        texts = [show_change(Change(time.change, time.low, time.high))]
    for metric in (UNCORRECTED, "peak_memory_allocated_bytes", "aten_op_count", "flop_count"):
        finding = case.finding(metric)
        texts.append("" if finding is None or finding.change is None else percent(finding.change))
    if OF_LIMIT in columns:
        fraction = case.finding(FRACTION)
        ends = (fraction.base, fraction.head) if fraction else ()
        texts.append(" → ".join(f"{end:.2f}" for end in ends if end is not None))
    return texts
