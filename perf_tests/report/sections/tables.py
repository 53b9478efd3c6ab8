"""The two tables of 2023, and what they did not have, setting by setting."""

from collections.abc import Sequence

from perf_tests.matrix.cases import SETTINGS
from perf_tests.report.content import Cell, Section, Table, number_cell, text_cell
from perf_tests.report.numbers import show_gigabytes, show_nominal, show_ratio, show_significant, show_speedup
from perf_tests.report.rows import MEMORY, Row, settings_of, with_missing
from perf_tests.report.subject import Subject

COLUMNS = (
    "checkpoint",
    "decoder layers",
    "memory original, GB",
    "memory flash, GB",
    "time original, s",
    "time flash, s",
    "speed-up [95 %]",
    "memory ratio",
    "tokens/s flash",
    "real-time factor flash",
    "flash's tokens",
)


def build(subject: Subject) -> Section | None:
    """A table for each setting."""
    rows = with_missing(subject.rows)
    made = [_table(setting, [row for row in rows if row.setting == setting]) for setting in settings_of(rows)]
    text = "Time is the median round times the setting's number of batches; memory is the peak, weights included."
    return Section("tables", "The tables", text, tables=made) if made else None


def _table(setting: str, rows: Sequence[Row]) -> Table:
    title = setting
    if setting in SETTINGS:
        batch_size, new_tokens, rounds = SETTINGS[setting]
        title = f"{setting}: batch size {batch_size}, {new_tokens} new tokens, {rounds} batches"
    return Table(title, COLUMNS, [_row(row) for row in rows], frozenset(range(1, 10)))


def _row(row: Row) -> list[Cell]:
    flash = row.case("flash")
    speedup, memory = row.speedup, row.relative("flash", MEMORY)
    cells = [text_cell(row.checkpoint), number_cell(str(row.decoder_layers), row.decoder_layers)]
    for name in ("original", "flash"):
        case = row.case(name)
        value = case.value(MEMORY) if case else None
        cells.append(_or_missing(row, name, show_gigabytes(value), value, time=False))
    for name in ("original", "flash"):
        seconds = row.nominal_seconds(name)
        cells.append(_or_missing(row, name, show_nominal(seconds), seconds, time=True))
    cells.append(_judged(show_speedup(speedup), speedup.median if speedup else None, better_above=True))
    cells.append(_judged(show_ratio(memory), memory, better_above=False))
    for key in ("tokens_per_second", "real_time_factor"):
        figure = flash.value(key) if flash else None
        cells.append(number_cell(show_significant(figure), figure))
    equal = flash.parity.get("tokens_equal") if flash else None
    tokens = {True: ("equal", "good"), False: ("differ", "note")}.get(equal, ("", ""))  # type: ignore[arg-type]
    return [*cells, Cell(tokens[0], tokens[0], mark=tokens[1])]


def _or_missing(row: Row, implementation: str, text: str, value: float | None, *, time: bool) -> Cell:
    return (
        number_cell(text, value) if text else number_cell(row.why_missing(implementation, time=time), None, "missing")
    )


def _judged(text: str, value: float | None, *, better_above: bool) -> Cell:
    if value is None or value == 1:
        return number_cell(text, value)
    return number_cell(text, value, "good" if (value > 1) is better_above else "bad")
