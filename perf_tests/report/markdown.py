"""The tables as Markdown: those of 2023 first, then what they did not have."""

from collections.abc import Collection, Sequence

from perf_tests.common.text import escape_markdown
from perf_tests.matrix.cases import PAPER_ROWS, SETTINGS
from perf_tests.runs.fingerprint import describe_machine
from perf_tests.runs.views import CaseView, RunView

from .gathering import Machine
from .numbers import (
    seldom_recorded,
    show_count,
    show_gigabytes,
    show_nominal,
    show_parity,
    show_ratio,
    show_significant,
    show_speedup,
)
from .rows import (
    ATEN_OPS,
    FLOPS,
    MEMORY,
    PAPER_SETTINGS,
    Row,
    implementations_of,
    is_generate,
    rows_of,
    settings_of,
    with_missing,
)

PAPER_COLUMNS = (
    "Checkpoint",
    "Dec layers",
    "Memory Orig / GB",
    "Memory Flash / GB",
    "Time Orig / s",
    "Time Flash / s",
)
DETAIL_COLUMNS = (
    "Checkpoint",
    "Dec layers",
    "Implementation",
    "Speed-up [95 %]",
    "Memory / original's",
    "Tokens / s",
    "Real-time factor",
    "Parity",
)
# Of what was counted and not timed.
COUNTED_COLUMNS = (
    "Checkpoint",
    "Dec layers",
    "Implementation",
    "ATen ops",
    "ATen ops / original's",
    "FLOPs",
    "FLOPs / original's",
    "Memory / original's",
)
UNPAIRED = "≈"


def to_markdown(machines: Sequence[Machine], *, level: int = 2) -> str:
    """The shown run of each machine; ``level`` is that of the machines' headings."""
    return "\n".join("\n".join(_machine(machine, level)) for machine in machines)


def _machine(machine: Machine, level: int) -> list[str]:
    run = machine.shown
    lines = [f"{'#' * level} {escape_markdown(describe_machine(run.machine_info))}", ""]
    lines += [f"{escape_markdown(run.describe())}{_conditions(run)}", ""]
    rows = rows_of(run)
    for setting in settings_of(rows):
        of_setting = [row for row in with_missing(rows) if row.setting == setting]
        lines += [f"{'#' * (level + 1)} {escape_markdown(setting)}{_setting(setting)}", ""]
        lines += [*paper_table(of_setting), ""]
        for details in (_details, _counts):
            if more := details([row for row in rows if row.setting == setting]):
                lines += [*more, ""]
    lines += _absent(rows)
    lines += _not_measured(run.cases)
    lines += _others([case for case in run.cases if case.measured and not is_generate(case)])
    return lines


def _conditions(run: RunView) -> str:
    """``; cpu, float32, random weights, synthetic audio``, where all cases agree."""
    words = []
    for key, form in (("device", "{}"), ("dtype", "{}"), ("weights", "{} weights"), ("audio", "{} audio")):
        values = {case.info.get(key) for case in run.cases if is_generate(case) and case.measured}
        if len(values) == 1 and isinstance(value := values.pop(), str):
            words.append(form.format(escape_markdown(value)))
    return f"; {', '.join(words)}" if words else ""


def _setting(setting: str) -> str:
    if setting not in SETTINGS:
        return ""
    batch_size, new_tokens, rounds = SETTINGS[setting]
    return f": batch size {batch_size}, {new_tokens} generated tokens, {rounds} batches"


def paper_table(rows: Sequence[Row]) -> list[str]:
    """A table in the form of 2023's; a cell that was not measured says so."""
    lines: list[Sequence[str]] = []
    checkpoint = None
    for row in rows:
        sides = ("original", "flash")
        memory = [_memory(row.case(name)) or _missing(row, name, time=False) for name in sides]
        times = [show_nominal(row.nominal_seconds(name)) or _missing(row, name, time=True) for name in sides]
        if checkpoint not in (None, row.checkpoint):
            lines.append([""] * len(PAPER_COLUMNS))
        lines.append(
            [
                "" if row.checkpoint == checkpoint else escape_markdown(row.checkpoint),
                str(row.decoder_layers),
                *memory,
                *times,
            ]
        )
        checkpoint = row.checkpoint
    return table(PAPER_COLUMNS, lines)


def _missing(row: Row, implementation: str, *, time: bool) -> str:
    return escape_markdown(row.why_missing(implementation, time=time))


def _memory(case: CaseView | None) -> str:
    return "" if case is None else show_gigabytes(case.value(MEMORY))


def _details(rows: Sequence[Row]) -> list[str]:
    lines: list[Sequence[str]] = []
    for row in rows:
        for implementation in implementations_of([row]):
            case = row.case(implementation)
            if case is None or case.counted:
                continue
            speedup = show_speedup(case.speedup)
            if not speedup and implementation != "original":
                unpaired = show_ratio(row.unpaired_speedup(implementation))
                speedup = f"{UNPAIRED} {unpaired}" if unpaired else ""
            lines.append(
                [
                    escape_markdown(row.checkpoint),
                    str(row.decoder_layers),
                    escape_markdown(implementation),
                    speedup,
                    show_ratio(row.relative(implementation, MEMORY)),
                    show_significant(case.value("tokens_per_second")),
                    show_significant(case.value("real_time_factor")),
                    show_parity(case.parity),
                ]
            )
    if not lines:
        return []
    note = f"{UNPAIRED}: medians of rounds minutes apart, so the machine's drift is in it; the others are paired."
    return [
        *table(DETAIL_COLUMNS, lines, left=(0, 2, 7)),
        *(["", note] if any(UNPAIRED in line[3] for line in lines) else []),
    ]


def _counts(rows: Sequence[Row]) -> list[str]:
    """The exact figures of the cases that were counted and not timed."""
    lines = []
    for row in rows:
        for implementation in implementations_of([row]):
            case = row.case(implementation)
            if case is not None and case.counted:
                lines.append(
                    [
                        escape_markdown(row.checkpoint),
                        str(row.decoder_layers),
                        escape_markdown(implementation),
                        show_count(case.value(ATEN_OPS)),
                        show_ratio(row.relative(implementation, ATEN_OPS)),
                        show_count(case.value(FLOPS)),
                        show_ratio(row.relative(implementation, FLOPS)),
                        show_ratio(row.relative(implementation, MEMORY)),
                    ]
                )
    return table(COUNTED_COLUMNS, lines, left=(0, 2)) if lines else []


def _absent(rows: Sequence[Row]) -> list[str]:
    """A table of 2023 of which nothing was selected."""
    absent = [setting for setting in PAPER_SETTINGS if setting not in settings_of(rows)]
    if not rows or not absent:
        return []
    return [
        *(
            f"`{setting}`{_setting(setting)}: not one of its {len(PAPER_ROWS)} cells was measured."
            for setting in absent
        ),
        "",
    ]


def _not_measured(cases: Sequence[CaseView]) -> list[str]:
    lines = [
        f"- {escape_markdown(case.outcome)}: {escape_markdown(case.id)}: {escape_markdown(case.reason or 'no reason')}"
        for case in cases
        if case.outcome != "passed"
    ]
    return [*lines, ""] if lines else []


def _others(cases: Sequence[CaseView]) -> list[str]:
    """What is no cell of the tables: component cases, and benchmarks of other suites."""
    if not cases:
        return []
    from perf_tests.common.units import format_seconds

    more = seldom_recorded(cases)
    columns = (
        "Case",
        "Rounds",
        "Median round",
        "Memory / GB",
        "ATen ops",
        *(heading.capitalize() for heading, _, _ in more),
    )
    lines = [
        [
            escape_markdown(case.id),
            str(case.rounds or ""),
            format_seconds(case.median_seconds) if case.median_seconds else "",
            show_gigabytes(case.value(MEMORY)),
            "" if case.value("aten_op_count") is None else f"{case.value('aten_op_count'):,.0f}",
            *(show(case.value(key)) for _, key, show in more),
        ]
        for case in cases
    ]
    return [*table(columns, lines), ""]


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, left: Collection[int] = (0,)) -> list[str]:
    """A Markdown table of Markdown texts, of even widths; the columns ``left`` are text, the others numbers."""
    cells = [[*columns], *([*row] for row in rows)]
    widths = [max(3, *(len(row[index]) for row in cells)) for index in range(len(columns))]
    lines = [_line(row, widths, left) for row in cells]
    rule = ["-" * width if index in left else "-" * (width - 1) + ":" for index, width in enumerate(widths)]
    return [lines[0], f"| {' | '.join(rule)} |", *lines[1:]]


def _line(row: Sequence[str], widths: Sequence[int], left: Collection[int]) -> str:
    padded = [
        cell.ljust(width) if index in left else cell.rjust(width)
        for index, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]
    return f"| {' | '.join(padded)} |"
