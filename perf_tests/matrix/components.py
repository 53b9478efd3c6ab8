"""The components' matrix as data: what is done with which part of the model, and in which preset. Imports no torch.

A work takes the place of a setting: the third part of a case's id, and ``params.setting`` in the JSON.
"""

from importlib import metadata
from importlib.util import find_spec
from typing import NamedTuple

from .cases import GENERATE, IMPLEMENTATIONS, LATER_ROWS, SETTINGS, Case, Cell, Matrix, Preset, Setting

LONG_FORM_SECONDS = 600
# Transformers' names, each with what has to be installed (both run on a GPU, in half precision): the module, and the
# distribution that it must come from, since FlashAttention 4 brings a `flash_attn` too.
FLASH_PACKAGES = {
    "flash_attention_2": ("flash_attn", "flash-attn"),
    "flash_attention_3": ("flash_attn_interface", "flash-attn-3"),
}
COMPONENT_IMPLEMENTATIONS = (*IMPLEMENTATIONS, *FLASH_PACKAGES)


class Work(NamedTuple):
    """What one round of a component does.

    ``test`` is the test function that does it, ``part`` which of its parts. ``new_tokens`` counts the tokens that
    a round makes for each of ``batch_size`` audios (of labels, where it trains); ``cache_length`` the decoder
    positions that are cached before it; ``seconds`` the audio that it takes in, 0 where it takes none.
    """

    test: str
    batch_size: int
    rounds: int
    new_tokens: int = 0
    part: str = ""
    cache_length: int = 0
    seconds: int = 0


ATTENTION_PARTS = ("encoder_self", "decoder_self", "cross")
CACHE_LENGTHS = (1, 64, 256, 447)


def _works(batch_size: int) -> dict[str, Work]:
    batch = f"batch_{batch_size}"
    steps = {length: f"cache_{length}" if batch_size == 1 else f"cache_{length}_{batch}" for length in CACHE_LENGTHS}
    return {
        f"encoder_{batch}": Work("test_encoder", batch_size, 20, seconds=30),
        f"prefill_{batch}": Work("test_prefill", batch_size, 50, new_tokens=1),
        **{
            name: Work("test_decode_step", batch_size, 100, new_tokens=1, cache_length=length)
            for length, name in steps.items()
        },
        **{f"{part}_{batch}": Work("test_attention", batch_size, 50, part=part) for part in ATTENTION_PARTS},
    }


_SINGLE, _BATCHED = _works(1), _works(32)
_WHOLE = {
    "training_batch_1": Work("test_training_step", 1, 10, new_tokens=64, seconds=30),
    "load": Work("test_load", 1, 10, new_tokens=1, seconds=30),
}
_TRAINED = {"training_batch_8": Work("test_training_step", 8, 10, new_tokens=64, seconds=30)}
_LONG = {"long_form": Work("test_long_form", 1, 5, new_tokens=25, seconds=LONG_FORM_SECONDS)}
_ACCURACY = {"transcribe": Work("test_accuracy", 32, 3, seconds=30)}
WORKS: dict[str, Work] = {**_SINGLE, **_BATCHED, **_WHOLE, **_TRAINED, **_LONG, **_ACCURACY}

# The whole depth alone: what a component does per layer, it does in each.
PAPER_ROWS = (("tiny.en", 4), ("base.en", 6), ("small.en", 12), ("medium.en", 24))
QUICK_ROWS = PAPER_ROWS[:1]
QUICK_ROUNDS = {
    "test_encoder": 5,
    "test_prefill": 10,
    "test_decode_step": 20,
    "test_attention": 10,
    "test_training_step": 3,
    "test_load": 4,
    "test_accuracy": 2,
}


def _cells(rows: tuple[tuple[str, int], ...], *tables: dict[str, Work]) -> tuple[Cell, ...]:
    return tuple(Cell(*row, work) for row in rows for table in tables for work in table)


_FULL_ROWS = (*PAPER_ROWS, *LATER_ROWS)
COMPONENTS = Matrix(
    file="test_components",
    option="--perf-components",
    presets={
        "quick": Preset(
            _cells(QUICK_ROWS, _SINGLE, _WHOLE), {w: QUICK_ROUNDS[WORKS[w].test] for w in _SINGLE | _WHOLE}, 8
        ),
        "paper": Preset(_cells(PAPER_ROWS, _SINGLE, _BATCHED, _WHOLE, _TRAINED), {}, 30),
        "full": Preset(_cells(_FULL_ROWS, _SINGLE, _BATCHED, _WHOLE, _TRAINED, _LONG), {}, 30),
    },
    settings=tuple(work for work in WORKS if work not in _ACCURACY),
    implementations=COMPONENT_IMPLEMENTATIONS,
)
ACCURACY = Matrix(
    file="test_accuracy",
    option="--perf-accuracy",
    presets={
        "quick": Preset(_cells(QUICK_ROWS, _ACCURACY), {"transcribe": QUICK_ROUNDS["test_accuracy"]}, 10),
        "paper": Preset(_cells(PAPER_ROWS, _ACCURACY), {}, 30),
        "full": Preset(_cells(_FULL_ROWS, _ACCURACY), {}, 30),
    },
    settings=tuple(_ACCURACY),
    implementations=COMPONENT_IMPLEMENTATIONS,
)


def setting_of(name: str) -> Setting | Work:
    """The setting or the work of that name."""
    return WORKS[name] if name in WORKS else SETTINGS[name]


def chooses_plain_text(setting: str, weights: str) -> bool:
    """Whether rounds of ``setting`` may choose text alone: ``generate``'s, with weights that would choose anything."""
    return setting in SETTINGS and weights != "pretrained"


def function_of(case: Case) -> str:
    """The test function that runs ``case``."""
    return WORKS[case.setting].test if case.setting in WORKS else "test_generate"


def matrix_of(case: Case) -> Matrix:
    """The group that ``case`` belongs to."""
    return next(matrix for matrix in (COMPONENTS, ACCURACY, GENERATE) if case.setting in matrix.settings)


def rounds_of(preset: str, name: str) -> int:
    """How many rounds a preset times a work for."""
    matrix = ACCURACY if name in ACCURACY.settings else COMPONENTS
    return matrix.presets[preset].rounds.get(name, WORKS[name].rounds)


def default_implementations(device: str, dtype: str) -> tuple[str, ...]:
    """The implementations that this session can run: the matrix's own, and the installed ones of Transformers."""
    return tuple(name for name in COMPONENT_IMPLEMENTATIONS if why_unavailable(name, device, dtype) is None)


def why_unavailable(implementation: str, device: str, dtype: str) -> str | None:
    """Why an implementation cannot run here, in one line; ``None`` if it can."""
    if implementation not in FLASH_PACKAGES:
        return None
    module, distribution = FLASH_PACKAGES[implementation]
    if find_spec(module) is None or not _is_installed(distribution):
        return f"{implementation} needs the package {distribution}, which is not installed"
    if not device.startswith("cuda"):
        return f"{implementation} has no kernel for a {device.upper()}"
    if dtype == "float32":
        return f"{implementation} has no kernel for float32"
    return None


def _is_installed(distribution: str) -> bool:
    try:
        metadata.distribution(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True
