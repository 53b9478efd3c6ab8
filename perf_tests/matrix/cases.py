"""The matrix as data: checkpoints, settings, implementations, presets, and the selection of cases.

Nothing here imports torch: collection, comparison and reports read this table and must start at once.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

IMPLEMENTATIONS = ("original", "eager", "flash")
MAX_TARGET_POSITIONS = 448
MEL_FRAMES = 3000
ENCODER_POSITIONS = 1500
WINDOW_SECONDS = 30.0


class Checkpoint(NamedTuple):
    """A published checkpoint's Hub id and dimensions (``config.json``); encoder and decoder share widths."""

    hub_id: str
    d_model: int
    heads: int
    ffn: int
    encoder_layers: int
    decoder_layers: int
    vocab_size: int
    mel_bins: int


class Setting(NamedTuple):
    """A batch size, the number of tokens that each entry must generate, and the nominal number of rounds."""

    batch_size: int
    new_tokens: int
    rounds: int


class Cell(NamedTuple):
    """What is done, whoever does it: a checkpoint with so many decoder layers, in a setting."""

    checkpoint: str
    decoder_layers: int
    setting: str

    @property
    def id(self) -> str:
        """The benchmark group, e.g. ``tiny.en-4-single``. For people: names hold ``-``, so never parse it."""
        return f"{self.checkpoint}-{self.decoder_layers}-{self.setting}"


class Case(NamedTuple):
    """A cell done by one implementation: one pytest item. The fields are the item's parameters."""

    checkpoint: str
    decoder_layers: int
    setting: str
    implementation: str

    @property
    def cell(self) -> Cell:
        """The cell that this case belongs to."""
        return Cell(self.checkpoint, self.decoder_layers, self.setting)

    @property
    def id(self) -> str:
        """The id inside the brackets of the test's name, e.g. ``tiny.en-4-single-flash``."""
        return f"{self.cell.id}-{self.implementation}"


class Preset(NamedTuple):
    """The cells of a preset, the least rounds per setting where they are not the nominal number, and a budget.

    ``case_budget_seconds`` is what timing a flash case may take while its speed-up is not known precisely enough, or
    its rounds, each beside a control round, are fewer than ``enough_pairs``; ``least_pairs`` are taken in any case.
    """

    cells: tuple[Cell, ...]
    rounds: Mapping[str, int]
    case_budget_seconds: float
    least_pairs: int = 1
    enough_pairs: int = 1


class Matrix(NamedTuple):
    """One group of cases: what each preset has of it, the names it knows, and the option that asks for it.

    ``file`` is the file, without its ending, that has the tests.
    """

    file: str
    option: str
    presets: Mapping[str, Preset]
    settings: tuple[str, ...]
    implementations: tuple[str, ...]


class SelectionError(ValueError):
    """A selection that names something unknown or leaves no case; the message is one line for the user."""


CHECKPOINTS: dict[str, Checkpoint] = {
    "tiny.en": Checkpoint("openai/whisper-tiny.en", 384, 6, 1536, 4, 4, 51864, 80),
    "base.en": Checkpoint("openai/whisper-base.en", 512, 8, 2048, 6, 6, 51864, 80),
    "small.en": Checkpoint("openai/whisper-small.en", 768, 12, 3072, 12, 12, 51864, 80),
    "medium.en": Checkpoint("openai/whisper-medium.en", 1024, 16, 4096, 24, 24, 51864, 80),
    "large-v3": Checkpoint("openai/whisper-large-v3", 1280, 20, 5120, 32, 32, 51866, 128),
    "large-v3-turbo": Checkpoint("openai/whisper-large-v3-turbo", 1280, 20, 5120, 32, 4, 51866, 128),
    "distil-large-v3": Checkpoint("distil-whisper/distil-large-v3", 1280, 20, 5120, 32, 2, 51866, 128),
}

SETTINGS: dict[str, Setting] = {
    "single": Setting(batch_size=1, new_tokens=25, rounds=100),
    "batched": Setting(batch_size=32, new_tokens=256, rounds=10),
    "batched_small": Setting(batch_size=4, new_tokens=64, rounds=10),
}

# New tokens of the whole batch, up to which a round takes a CPU seconds and not minutes: 25 in `single` and 256 in
# `batched_small`, but 8192 in `batched`.
SHORT_ROUND_TOKENS = 256

PAPER_ROWS = (
    ("tiny.en", 4),
    ("tiny.en", 2),
    ("base.en", 6),
    ("base.en", 4),
    ("base.en", 2),
    ("small.en", 12),
    ("small.en", 6),
    ("small.en", 4),
    ("small.en", 2),
    ("medium.en", 24),
    ("medium.en", 6),
    ("medium.en", 4),
    ("medium.en", 2),
)
LATER_ROWS = (("large-v3", 32), ("large-v3-turbo", 4), ("distil-large-v3", 2))


def _cells(rows: Sequence[tuple[str, int]], settings: Sequence[str]) -> tuple[Cell, ...]:
    return tuple(Cell(*row, setting) for setting in settings for row in rows)


PRESETS: dict[str, Preset] = {
    "quick": Preset(
        cells=(
            Cell("tiny.en", 4, "single"),
            Cell("tiny.en", 2, "single"),
            Cell("base.en", 6, "single"),
            Cell("tiny.en", 4, "batched_small"),
        ),
        rounds={"single": 4, "batched_small": 3},
        case_budget_seconds=50,
        least_pairs=6,
        # Two runs differ by less of their medians' own error than by what is particular to each (tests/gate_power.py).
        enough_pairs=30,
    ),
    "paper": Preset(cells=_cells(PAPER_ROWS, ("single", "batched")), rounds={}, case_budget_seconds=120),
    "full": Preset(cells=_cells((*PAPER_ROWS, *LATER_ROWS), ("single", "batched")), rounds={}, case_budget_seconds=120),
}

GENERATE = Matrix("test_generate", "", PRESETS, tuple(SETTINGS), IMPLEMENTATIONS)


class Selection(NamedTuple):
    """Which cases of a preset to run; an empty tuple takes all."""

    checkpoints: tuple[str, ...] = ()
    decoder_layers: tuple[int, ...] = ()
    settings: tuple[str, ...] = ()
    implementations: tuple[str, ...] = ()
    full_depth_only: bool = False


NARROWING = {
    "checkpoints": "--perf-checkpoint",
    "decoder_layers": "--perf-decoder-layers",
    "settings": "--perf-setting",
}


def select(preset: str, selection: Selection, matrix: Matrix = GENERATE) -> tuple[Case, ...]:
    """Return the cases of ``preset`` that ``selection`` keeps, in the table's order, cell by cell.

    Raises:
        SelectionError: a name is unknown, a checkpoint has no so many decoder layers, or nothing is left.
    """
    _check_names("--perf-preset", [preset], matrix.presets)
    _check_names("--perf-checkpoint", selection.checkpoints, CHECKPOINTS)
    _check_names("--perf-setting", selection.settings, matrix.settings)
    _check_names("--perf-implementation", selection.implementations, matrix.implementations)
    _check_depths(selection)
    cells = [cell for cell in matrix.presets[preset].cells if _keeps(selection, cell)]
    for field, option in NARROWING.items():
        for value in getattr(selection, field):
            only: dict[str, Any] = {field: (value,)}
            narrow = selection._replace(**only)
            if not any(_keeps(narrow, cell) for cell in cells):
                raise SelectionError(_no_cell(preset, narrow, f"{option} {value}", matrix))
    if not cells:
        raise SelectionError(_no_cell(preset, selection, "--perf-weights pretrained", matrix))
    implementations = selection.implementations or matrix.implementations
    return tuple(Case(*cell, name) for cell in cells for name in matrix.implementations if name in implementations)


def _keeps(selection: Selection, cell: Cell) -> bool:
    full_depth = CHECKPOINTS[cell.checkpoint].decoder_layers
    return (
        cell.checkpoint in (selection.checkpoints or CHECKPOINTS)
        and cell.decoder_layers in (selection.decoder_layers or (cell.decoder_layers,))
        and cell.setting in (selection.settings or (cell.setting,))
        and (cell.decoder_layers == full_depth or not selection.full_depth_only)
    )


def _check_names(option: str, names: Sequence[str], known: Mapping[str, object] | Sequence[str]) -> None:
    for name in names:
        if name not in known:
            raise SelectionError(f"{option}: {name!r} is unknown; choose from {', '.join(known)}")


def _check_depths(selection: Selection) -> None:
    for layers in selection.decoder_layers:
        if layers < 1:
            raise SelectionError(f"--perf-decoder-layers: {layers} is too few; a decoder has at least 1 layer")
        names = selection.checkpoints or tuple(CHECKPOINTS)
        deepest = max(names, key=lambda name: CHECKPOINTS[name].decoder_layers)
        most = CHECKPOINTS[deepest].decoder_layers
        if layers > most:
            raise SelectionError(
                f"--perf-decoder-layers: {layers} is too many; {deepest} has {most}, choose from 1 to {most}"
            )


def _no_cell(preset: str, selection: Selection, culprit: str, matrix: Matrix) -> str:
    others = [name for name, other in matrix.presets.items() if any(_keeps(selection, cell) for cell in other.cells)]
    advice = f"presets that have one: {', '.join(others)}" if others else "no preset has one: ask for less at once"
    return f"{culprit}: no cell of preset {preset!r} matches the selection; {advice}"
