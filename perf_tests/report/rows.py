"""The cases of a run as people compare them: a row for each piece of work, its implementations side by side."""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

from perf_tests.common.intervals import Estimate
from perf_tests.matrix.cases import CHECKPOINTS, IMPLEMENTATIONS, PAPER_ROWS, PRESETS, SETTINGS, Case
from perf_tests.runs.views import CaseView, RunView

# The settings of the two tables of 2023.
PAPER_SETTINGS = ("single", "batched")
MISSING = "missing"
MEMORY, ATEN_OPS, FLOPS = "peak_memory_allocated_bytes", "aten_op_count", "flop_count"


GENERATE_TEST = "test_generate"


def is_generate(case: CaseView) -> bool:
    """Whether it is a case of the two tables: a cell done by one implementation."""
    cell = (case.checkpoint, case.decoder_layers, case.setting, case.implementation)
    return case.test == GENERATE_TEST and None not in cell


@cache
def known_parameters() -> Mapping[str, Mapping[str, Any]]:
    """The parameters of the matrix's cases by id, which is looked up and never parsed."""
    depths = {(cell.checkpoint, cell.decoder_layers) for preset in PRESETS.values() for cell in preset.cells}
    known = [
        Case(*depth, setting, implementation)
        for depth in depths
        for setting in SETTINGS
        for implementation in IMPLEMENTATIONS
    ]
    return {f"{GENERATE_TEST}[{case.id}]": case._asdict() for case in known}


class Row(NamedTuple):
    """A cell of the tables: a checkpoint with so many decoder layers, in a setting, by implementation."""

    checkpoint: str
    decoder_layers: int
    setting: str
    cases: Mapping[str, CaseView]

    @property
    def label(self) -> str:
        """For charts: ``tiny.en · 4 · single``."""
        return f"{self.checkpoint} · {self.decoder_layers} · {self.setting}"

    @property
    def speedup(self) -> Estimate | None:
        """Flash over the original, from pairs of rounds."""
        flash = self.case("flash")
        return flash.speedup if flash else None

    def case(self, implementation: str) -> CaseView | None:
        """A case that was measured."""
        case = self.cases.get(implementation)
        return case if case is not None and case.measured else None

    def why_missing(self, implementation: str, *, time: bool) -> str:
        """Why a figure, a time or another one, is not there; ``missing`` where the case was not selected."""
        case = self.cases.get(implementation)
        if case is None:
            return MISSING
        if not case.measured:
            return case.outcome if case.outcome != "passed" else MISSING
        return "not timed" if time and case.counted else "not recorded"

    def relative(self, implementation: str, key: str) -> float | None:
        """A recorded number of ``extra_info`` over the original's."""
        case, original = self.case(implementation), self.case("original")
        value, base = (one.value(key) if one else None for one in (case, original))
        return value / base if value is not None and base else None

    def unpaired_speedup(self, implementation: str) -> float | None:
        """The original's median round over the implementation's: rounds minutes apart, so the machine is in it."""
        case, original = self.case(implementation), self.case("original")
        if case is None or original is None or not case.median_seconds or not original.median_seconds:
            return None
        return original.median_seconds / case.median_seconds

    def nominal_seconds(self, implementation: str) -> float | None:
        """The time of the tables: median round times the setting's nominal number of rounds."""
        case = self.case(implementation)
        if case is None or case.median_seconds is None or self.setting not in SETTINGS:
            return None
        return case.median_seconds * SETTINGS[self.setting].rounds


def rows_of(run: RunView) -> list[Row]:
    """The cells that ``run`` selected, setting by setting, in the tables' order."""
    found: dict[tuple[str, int, str], dict[str, CaseView]] = {}
    for case in run.cases:
        if is_generate(case):
            key = (str(case.checkpoint), case.decoder_layers or 0, str(case.setting))
            found.setdefault(key, {})[str(case.implementation)] = case
    rows = [Row(*key, by_implementation) for key, by_implementation in found.items()]
    return sorted(rows, key=_place)


def with_missing(rows: Sequence[Row]) -> list[Row]:
    """``rows`` and, of each setting of the two tables that has any, the cells that the run did not select."""
    settings = {row.setting for row in rows}
    present = {row[:3] for row in rows}
    absent = [
        Row(*cell, setting, {})
        for setting in PAPER_SETTINGS
        if setting in settings
        for cell in PAPER_ROWS
        if (*cell, setting) not in present
    ]
    return sorted([*rows, *absent], key=_place)


def settings_of(rows: Sequence[Row]) -> list[str]:
    """The settings of ``rows``, in the table's order."""
    return list(dict.fromkeys(row.setting for row in rows))


def implementations_of(rows: Sequence[Row]) -> list[str]:
    """The implementations that were measured: the known ones in their order, then others."""
    present = {name for row in rows for name in row.cases if row.case(name)}
    return [name for name in IMPLEMENTATIONS if name in present] + sorted(present - {*IMPLEMENTATIONS})


def _place(row: Row) -> tuple[int, str, int, str, int]:
    settings, checkpoints = list(SETTINGS), list(CHECKPOINTS)
    setting = settings.index(row.setting) if row.setting in SETTINGS else len(settings)
    checkpoint = checkpoints.index(row.checkpoint) if row.checkpoint in CHECKPOINTS else len(checkpoints)
    return setting, row.setting, checkpoint, row.checkpoint, -row.decoder_layers
