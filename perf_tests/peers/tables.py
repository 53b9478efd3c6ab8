"""The tables that people read. Imports no torch."""

from collections.abc import Sequence
from statistics import median
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from perf_tests.common.intervals import Estimate
from perf_tests.common.units import format_seconds
from perf_tests.machine.cores import available
from perf_tests.runs.device_state import FOREIGN_SHARE

if TYPE_CHECKING:
    from .contest import Entry
    from .rows import Result


def print_rows(results: "Sequence[Result]", console: Console) -> None:
    """The rows, and why one is left out."""
    table = _table("this model against the original", "row", "dtype")
    for name in ("original", "flash", "flash / original [95 %]"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("tokens", no_wrap=True)
    for result in results:
        if result.ratio is None or result.original is None or result.flash is None:
            continue
        flag = " !" if _was_shared(result) else ""
        values = [format_seconds(result.original), format_seconds(result.flash) + flag, format_ratio(result.ratio)]
        table.add_row(result.row.name, result.row.dtype, *values, describe_tokens(result.first_difference))
    console.print(table)
    left_out: dict[str, list[str]] = {}
    for result in results:
        if result.ratio is None and result.reason:
            left_out.setdefault(result.reason, []).append(f"{result.row.name} ({result.row.dtype})")
    for reason, names in left_out.items():
        console.print(f"- {'; '.join(dict.fromkeys(names))}: {reason}", highlight=False, markup=False)
    if any(map(_was_shared, results)):
        console.print("! others used cores that the rounds need meanwhile: trust ratios, not times", highlight=False)


def _was_shared(result: "Result") -> bool:
    """Whether others took cores from a row, which uses all of them."""
    return (result.foreign_cpu_cores or 0) > FOREIGN_SHARE * available()


def print_contest(entries: "Sequence[Entry]", weights: str, console: Console) -> None:
    """The engines, beside the original in each precision."""
    for checkpoint, control in dict.fromkeys((entry.checkpoint, entry.control) for entry in entries):
        title = f"{checkpoint}, {weights} weights, batch 1, beside the original in {control}"
        table = _table(title, "engine", "computes in")
        for name in ("median", "ratio to original [95 %]"):
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column("tokens")
        for entry in entries:
            if (entry.checkpoint, entry.control) != (checkpoint, control):
                continue
            start = [entry.engine.name, entry.engine.dtype]
            if entry.ratio is None:
                table.add_row(*start, "", "", entry.reason)
                continue
            own = entry.engine.name == "original"
            ratio = "1" if own else format_ratio(entry.ratio)
            tokens = "" if own else describe_tokens(entry.first_difference)
            table.add_row(*start, format_seconds(median(entry.seconds)), ratio, tokens)
        console.print(table)


def print_transcripts(entries: "Sequence[Entry]", console: Console) -> None:
    """What the original heard, and for each other engine whether it heard the same."""
    for original in entries:
        if original.engine.name != "original" or original.transcripts is None:
            continue
        heard = original.transcripts
        console.print(f"{original.checkpoint}, original {original.control}, first clip: {heard[0]}", markup=False)
        for entry in entries:
            if (entry.checkpoint, entry.control) != (original.checkpoint, original.control) or entry is original:
                continue
            if entry.transcripts is None:
                continue
            unlike = [text for text, expected in zip(entry.transcripts, heard, strict=True) if text != expected]
            same = f"the same text in {len(heard) - len(unlike)} of {len(heard)} clips"
            end = f"; first other one: {unlike[0]}" if unlike else ""
            console.print(f"  {entry.engine.name} {entry.engine.dtype}: {same}{end}", markup=False)


def format_ratio(ratio: Estimate) -> str:
    """The median, with its interval where there is one: ``0.52 [0.51, 0.53]``."""
    if ratio.low is None or ratio.high is None:
        return f"{ratio.median:.3f}"
    return f"{ratio.median:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]"


def describe_tokens(first_difference: int | None) -> str:
    """Whether they are the original's; places count from 0."""
    return "equal" if first_difference is None else f"differ from {first_difference}"


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for column in columns:
        table.add_column(column, no_wrap=True)
    return table
