"""From command-line options to a plan: which cases, on what, with what; or one line on what is wrong."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from . import cases

DTYPES = ("float32", "float16", "bfloat16")
WEIGHTS = ("random", "pretrained")
DEFAULT_DATASET = "hf-internal-testing/librispeech_asr_dummy"
SYNTHETIC = "synthetic"
SOUND_FILES = frozenset({".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff"})
TABLE_FILES = frozenset({".parquet", ".arrow"})


class BadInputError(ValueError):
    """The user asked for something that cannot be done; the message is one line that says what to do."""


class Options(NamedTuple):
    """The options as typed; ``None`` and empty tuples where the user said nothing."""

    preset: str | None = None
    device: str | None = None
    dtype: str | None = None
    rounds: str | None = None
    dataset: str | None = None
    weights: str = "random"
    checkpoints: tuple[str, ...] = ()
    decoder_layers: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    implementations: tuple[str, ...] = ()


class Probes(NamedTuple):
    """Questions about the machine whose answers may cost an import of torch, asked only when needed."""

    nvidia_driver: Callable[[], bool]
    cuda_devices: Callable[[], int]
    cpu_computes: Callable[[str], bool]


class Plan(NamedTuple):
    """What this session measures; ``dataset`` is ``None`` for the default one, if it is at hand."""

    preset: str
    preset_reason: str
    device: str
    dtype: str
    weights: str
    dataset: str | None
    rounds: int | None
    cases: tuple[cases.Case, ...]

    @property
    def on_cuda(self) -> bool:
        """Whether the cases run on an NVIDIA GPU."""
        return self.device.startswith("cuda")

    def rounds_of(self, setting: str) -> int:
        """How many rounds a case of ``setting`` is timed for."""
        if self.rounds is not None:
            return self.rounds
        return cases.PRESETS[self.preset].rounds.get(setting, cases.SETTINGS[setting].rounds)


def make_plan(options: Options, probes: Probes) -> Plan:
    """Check every option, also those of cases that end up deselected, and choose what was left open.

    Raises:
        BadInputError: with one line for the user.
    """
    rounds = None if options.rounds is None else _positive(options.rounds, "--perf-rounds", "at least 1 round")
    if options.weights not in WEIGHTS:
        raise BadInputError(f"--perf-weights: {options.weights!r} is unknown; choose from {', '.join(WEIGHTS)}")
    if options.dtype is not None and options.dtype not in DTYPES:
        raise BadInputError(f"--perf-dtype: {options.dtype!r} is unknown; choose from {', '.join(DTYPES)}")
    check_dataset(options.dataset)
    device, device_reason = choose_device(options.device, probes)
    on_cuda = device.startswith("cuda")
    preset = options.preset or ("paper" if on_cuda else "quick")
    reason = "asked for" if options.preset else f"the default on a {device_reason}"
    dtype = options.dtype or ("float16" if on_cuda else "float32")
    selection = cases.Selection(
        checkpoints=options.checkpoints,
        decoder_layers=tuple(_integer(text, "--perf-decoder-layers") for text in options.decoder_layers),
        settings=options.settings,
        implementations=options.implementations,
        full_depth_only=options.weights == "pretrained",
    )
    try:
        chosen = cases.select(preset, selection)
    except cases.SelectionError as error:
        raise BadInputError(str(error)) from None
    if not on_cuda and dtype != "float32" and not probes.cpu_computes(dtype):
        raise BadInputError(f"--perf-dtype: this CPU (or its torch) cannot compute in {dtype}; use float32")
    return Plan(preset, reason, device, dtype, options.weights, options.dataset, rounds, chosen)


def choose_device(asked: str | None, probes: Probes) -> tuple[str, str]:
    """Return the device and what it is called in the reason for the preset."""
    if asked is None:
        if not probes.nvidia_driver():
            return "cpu", "CPU"
        return ("cuda", "GPU") if probes.cuda_devices() else ("cpu", "CPU: torch sees no GPU")
    kind, _, index = asked.partition(":")
    if kind == "cpu" and not index:
        return "cpu", "CPU"
    if kind != "cuda" or (":" in asked and not index.isdecimal()):
        raise BadInputError(f"--perf-device: {asked!r} is unknown; choose cpu, cuda or cuda:N")
    if not probes.nvidia_driver():
        raise BadInputError(f"--perf-device {asked}: no NVIDIA GPU here; use --perf-device cpu")
    count = probes.cuda_devices()
    if not count:
        raise BadInputError(f"--perf-device {asked}: torch sees no GPU; install a CUDA build or use --perf-device cpu")
    if index and int(index) >= count:
        raise BadInputError(f"--perf-device {asked}: this machine has {count} GPU(s), counted from 0")
    return asked, "GPU"


def check_dataset(asked: str | None) -> None:
    """Refuse a folder that is missing or holds no audio; a Hub name (``owner/name``) is looked up later."""
    if asked is None or asked == SYNTHETIC:
        return
    folder = Path(asked).expanduser()
    if not asked.strip():
        raise BadInputError("--perf-dataset: empty; give a folder, a data set's name on the Hub, or 'synthetic'")
    if folder.is_dir():
        if not files_in(folder, SOUND_FILES | TABLE_FILES):
            raise BadInputError(f"--perf-dataset {asked}: the folder holds no audio and no Parquet file")
    elif folder.exists():
        raise BadInputError(f"--perf-dataset {asked}: not a folder; give the folder that holds the audio")
    elif asked.startswith((".", "/", "~", os.sep)) or asked.count("/") != 1 or asked.endswith("/"):
        raise BadInputError(f"--perf-dataset {asked}: there is no such folder")


def files_in(folder: Path, suffixes: frozenset[str]) -> list[Path]:
    """The files below ``folder`` that have one of ``suffixes``, in order."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in suffixes and path.is_file())


def _integer(text: str, option: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise BadInputError(f"{option}: {text!r} is not a whole number") from None


def _positive(text: str, option: str, least: str) -> int:
    number = _integer(text, option)
    if number < 1:
        raise BadInputError(f"{option}: {number} is too few; give {least}")
    return number


def nvidia_driver_present() -> bool:
    """Whether an NVIDIA driver is at work, found without an import."""
    return Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None


def count_cuda_devices() -> int:
    """How many GPUs torch can use. Imports torch."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def cpu_computes(dtype: str) -> bool:
    """Try the operators that a Whisper needs, in ``dtype`` on the CPU. Imports torch."""
    import torch
    from torch.nn import functional

    kind = getattr(torch, dtype)
    try:
        x = torch.ones(1, 8, 8, dtype=kind)
        functional.conv1d(x, torch.ones(8, 8, 3, dtype=kind))
        functional.linear(x, torch.ones(8, 8, dtype=kind))
        functional.gelu(functional.layer_norm(x, (8,)))
        functional.scaled_dot_product_attention(x[None], x[None], x[None])
        torch.softmax(x @ x, -1)
    except (RuntimeError, NotImplementedError):
        return False
    return True
