"""A case's result in a terminal: one line as it ends, and the table at the end. Imports no torch."""

import io
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from perf_tests.common.text import clean, count_of
from perf_tests.common.units import format_bytes, format_flops, format_seconds
from perf_tests.matrix.cases import SETTINGS
from perf_tests.matrix.components import ACCURACY, WORKS, setting_of
from perf_tests.runs.device_state import HEADINGS, Cores, describe_state, is_calm, was_shared, was_throttled
from perf_tests.runs.journal import Entry
from perf_tests.runs.records import WALL_CLOCK, timer_of

if TYPE_CHECKING:
    from rich.table import Table

LEAST_WIDTH = 148


def describe_result(entry: Entry) -> str:
    """One line: time per round, speed-up, peak memory; or why there is none."""
    if entry.benchmark is None:
        return f"{entry.outcome.upper()}: {entry.reason}" if entry.reason else entry.outcome
    info = entry.benchmark["extra_info"]
    if "stats" not in entry.benchmark:
        counts = f"{info['aten_op_count']:,} ops, {format_flops(info['flop_count'])}"
        peak = info["peak_memory_allocated_bytes"]
        return counts if peak is None else f"{counts}, {format_bytes(peak)}"
    parts = [format_seconds(entry.benchmark["stats"]["median"]) + " per round"]
    if info["speedup"]:
        parts.append(format_speedup(info["speedup"]))
    parts.append(format_bytes(info["peak_memory_allocated_bytes"]))
    return ", ".join(parts)


def render_table(entries: Sequence[Entry], cores: Cores, *, colour: bool) -> str:
    """The table of a session's cases, cell by cell, as text for the terminal; ``cores`` are this machine's."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("case", no_wrap=True)
    for name in ("rounds", "time, s", "per round", "speed-up [95 %]", "peak memory", rate_column(entries)):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("tokens", no_wrap=True)
    table.add_column("error / allowed", justify="right", no_wrap=True)
    states = _state_table(entries, cores)
    notes = [*_notes(entries), *_timing_notes(entries, cores)]
    return _render(table, entries, lambda entry: _row(entry, cores), states, notes, colour=colour)


def render_counted_table(entries: Sequence[Entry], *, colour: bool) -> str:
    """The table of a session in which nothing was timed."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("case", no_wrap=True)
    for name in ("ATen ops", "FLOP", "peak memory", "model memory"):
        table.add_column(name, justify="right", no_wrap=True)
    return _render(table, entries, _counted_row, None, _notes(entries), colour=colour)


def _render(
    table: "Table",
    entries: Sequence[Entry],
    make_row: Callable[[Entry], Iterable[str]],
    states: "Table | None",
    notes: Iterable[str],
    *,
    colour: bool,
) -> str:
    """Fill ``table`` with a row per case, cell by cell, and return it as text with what follows it."""
    from rich.console import Console

    cell = None
    for entry in entries:
        group = entry.benchmark["group"] if entry.benchmark else cell
        if cell is not None and group != cell:
            table.add_section()
        cell = group
        table.add_row(*make_row(entry))
    width = max(LEAST_WIDTH, shutil.get_terminal_size().columns)
    console = Console(file=io.StringIO(), width=width, force_terminal=colour, no_color=not colour)
    console.print(table, markup=False)
    if states is not None:
        console.print(states, markup=False)
    for note in notes:
        console.print(note, markup=False, highlight=False)
    output: Any = console.file
    text: str = output.getvalue()
    return text


def _state_table(entries: Sequence[Entry], cores: Cores) -> "Table | None":
    """The machine's state beside the rounds: of each case on a GPU, and on a CPU of those under load."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    described = [(name, describe_state(benchmark["extra_info"]["device_state"])) for name, benchmark in _timed(entries)]
    rows = [(name, summaries) for name, summaries in described if not is_calm(summaries, cores)]
    headings = [heading for heading in HEADINGS if any(heading in summaries for _, summaries in rows)]
    if not headings:
        return None
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("meanwhile (least / median / most)", no_wrap=True)
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for name, summaries in rows:
        table.add_row(name, *(summaries[heading].text if heading in summaries else "" for heading in headings))
    return table


def format_speedup(speedup: dict[str, float | None]) -> str:
    """The median, with its interval where there is one: ``1.52x [1.50, 1.55]``."""
    text = f"{speedup['median']:.2f}x"
    return text if speedup["low"] is None else f"{text} [{speedup['low']:.2f}, {speedup['high']:.2f}]"


def _row(entry: Entry, cores: Cores) -> Iterable[str]:
    name = _name(entry)
    if entry.benchmark is None:
        return [name, entry.outcome]
    info, stats = entry.benchmark["extra_info"], entry.benchmark["stats"]
    parity = info["parity"]
    nominal = setting_of(entry.benchmark["params"]["setting"]).rounds
    flag = " !" if was_shared(info["device_state"], cores) or was_throttled(info["device_state"]) else ""
    return [
        name,
        str(stats["rounds"]),
        f"{stats['median'] * nominal:#.4g}{flag}",
        format_seconds(stats["median"]),
        format_speedup(info["speedup"]) if info["speedup"] else "",
        format_bytes(info["peak_memory_allocated_bytes"]),
        _rate(info),
        show_tokens(parity),
        f"{parity['max_abs_error']:.0e} / {parity['bound']:.0e}",
    ]


def rate_column(entries: Sequence[Entry]) -> str:
    """What the column of rates holds: for components how near they come to the machine's limits."""
    settings = {entry.benchmark["params"]["setting"] for entry in entries if entry.benchmark}
    if settings & {*ACCURACY.settings}:
        return "words wrong"
    return "of limit" if settings & {*WORKS} else "tokens/s"


def _rate(info: dict[str, Any]) -> str:
    if info["fraction_of_limit"] is not None:
        return f"{info['fraction_of_limit']:.2f}"
    if info["word_error_rate"] is not None:
        return f"{100 * info['word_error_rate']:.1f} %"
    return "" if info["tokens_per_second"] is None else f"{info['tokens_per_second']:.1f}"


def show_tokens(parity: Mapping[str, Any]) -> str:
    """``equal``, or ``differ from 17 in 2 rows``; nothing where that is not known."""
    equal, place, rows = (parity.get(key) for key in ("tokens_equal", "first_difference", "rows_different"))
    if not isinstance(equal, bool):
        return ""
    if equal:
        return "equal"
    where = f" from {place}" if isinstance(place, int) else ""
    return f"differ{where}" + (f" in {count_of(rows, 'row')}" if isinstance(rows, int) else "")


def _counted_row(entry: Entry) -> Iterable[str]:
    name = _name(entry)
    if entry.benchmark is None:
        return [name, entry.outcome]
    info = entry.benchmark["extra_info"]
    peak = info["peak_memory_allocated_bytes"]
    return [
        name,
        f"{info['aten_op_count']:,}",
        format_flops(info["flop_count"]),
        "" if peak is None else format_bytes(peak),
        format_bytes(info["model_memory_bytes"]),
    ]


def _notes(entries: Sequence[Entry]) -> Iterable[str]:
    for entry in entries:
        if entry.outcome != "passed":
            yield f"{entry.outcome}: {entry.id}: {entry.reason}"


def _timing_notes(entries: Sequence[Entry], cores: Cores) -> Iterable[str]:
    timed = [benchmark for _, benchmark in _timed(entries)]
    settings = {benchmark["params"]["setting"] for benchmark in timed}
    if settings:
        named = (name for name in (*SETTINGS, *WORKS) if name in settings)
        counts = ", ".join(f"{name} {setting_of(name).rounds}" for name in named)
        yield f"time: median round times the setting's rounds ({counts}); peak memory includes the weights"
    for timer in sorted({timer_of(benchmark) for benchmark in timed} - {WALL_CLOCK}):
        yield f"timed by {clean(timer)} (--benchmark-timer), not in wall time: runs of the same clock alone compare"
    states = [benchmark["extra_info"]["device_state"] for benchmark in timed]
    if any(was_shared(state, cores) for state in states):
        yield "! others used cores that the rounds need, or the GPU, meanwhile: trust ratios, not times"
    if any(map(was_throttled, states)):
        yield "! the GPU's clocks were throttled meanwhile: trust ratios, not times"
    if any(state["gpu"] is not None and not state["gpu"]["at_seconds"] for state in states):
        yield "the GPU's clocks are not known: nvidia-ml-py is not installed, or NVML does not answer"


def _timed(entries: Iterable[Entry]) -> list[tuple[str, dict[str, Any]]]:
    """The benchmarks that were timed, with the names of their cases."""
    return [(_name(entry), entry.benchmark) for entry in entries if entry.benchmark and "stats" in entry.benchmark]


def _name(entry: Entry) -> str:
    return entry.id.partition("[")[2].removesuffix("]") or entry.id
