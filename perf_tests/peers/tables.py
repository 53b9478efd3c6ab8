"""The tables that people read. Imports no torch."""

import os
from collections.abc import Callable, Sequence
from statistics import median
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from perf_tests.device_state import FOREIGN_SHARE
from perf_tests.intervals import Estimate
from perf_tests.table import format_bytes, format_seconds

if TYPE_CHECKING:
    from .contest import Entry
    from .rows import Result

FORMATS: dict[str, Callable[[float], str]] = {
    "time": format_seconds,
    "memory": lambda count: format_bytes(round(count)),
    "operators": lambda count: f"{count:g}",
}
LABELS = {"time": "time", "memory": "peak memory", "operators": "operators per token"}


def print_rows(results: "Sequence[Result]", console: Console) -> None:
    """The rows, each with its bar, and a line on how many are met."""
    table = _table("this model against the original", "", "row", "dtype")
    for name in ("original", "flash", "flash / original [95 %]", "bar"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("met", no_wrap=True)
    table.add_column("tokens", no_wrap=True)
    metric = None
    for result in results:
        row = result.row
        if metric is not None and row.metric != metric:
            table.add_section()
        first = row.metric != metric
        metric = row.metric
        start = [LABELS[metric] if first else "", row.work.name, row.dtype]
        if result.ratio is None or result.original is None or result.flash is None:
            table.add_row(*start, "", "", "", f"{row.bar:.2f}", "-", "")
            continue
        form = FORMATS[metric]
        flag = " !" if _was_shared(result) else ""
        met = "[green]yes[/]" if result.met else "[red]NO[/]"
        values = [form(result.original), form(result.flash) + flag, format_ratio(result.ratio), f"{row.bar:.2f}"]
        table.add_row(*start, *values, met, describe_tokens(result.first_difference))
    console.print(table)
    left_out: dict[str, list[str]] = {}
    for result in results:
        if result.ratio is None and result.reason:
            left_out.setdefault(result.reason, []).append(f"{result.row.work.name} ({result.row.dtype})")
    for reason, names in left_out.items():
        console.print(f"- {'; '.join(dict.fromkeys(names))}: {reason}", highlight=False, markup=False)
    measured = [result for result in results if result.ratio is not None]
    console.print(f"{sum(bool(result.met) for result in measured)} of {len(measured)} bars met", highlight=False)
    if any(map(_was_shared, results)):
        console.print("! others used cores that the rounds need meanwhile: trust ratios, not times", highlight=False)


def _was_shared(result: "Result") -> bool:
    """Whether others took cores from a row, which uses all of them."""
    return (result.foreign_cpu_cores or 0) > FOREIGN_SHARE * (os.cpu_count() or 1)


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
