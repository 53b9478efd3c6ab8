"""From command-line options to a plan: which cases, on what, with what; or one line on what is wrong."""

import math
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from perf_tests.common.errors import BadInputError

from . import cases, components

DTYPES = ("float32", "float16", "bfloat16")
WEIGHTS = ("random", "pretrained")
DEFAULT_DATASET = "hf-internal-testing/librispeech_asr_dummy"
SYNTHETIC = "synthetic"
# The speed-up's 95 % interval, to either side.
DEFAULT_PRECISION_PERCENT = 1.5
SOUND_FILES = frozenset({".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff"})
TABLE_FILES = frozenset({".parquet", ".arrow"})


class Options(NamedTuple):
    """The options as typed; ``None`` and empty tuples where the user said nothing."""

    preset: str | None = None
    device: str | None = None
    dtype: str | None = None
    rounds: str | None = None
    precision: str | None = None
    case_budget: str | None = None
    control_after: bool = False
    dataset: str | None = None
    weights: str = "random"
    checkpoints: tuple[str, ...] = ()
    decoder_layers: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    implementations: tuple[str, ...] = ()
    components: bool = False
    accuracy: bool = False
    profile: str | None = None
    counters_only: bool = False


class Probes(NamedTuple):
    """Questions about the machine whose answers may cost an import of torch, asked only when needed."""

    nvidia_driver: Callable[[], bool]
    cuda_devices: Callable[[], int]
    cpu_computes: Callable[[str], bool]


class Aim(NamedTuple):
    """What the number of rounds of a flash case is chosen for.

    ``least`` rounds are taken in any case; more until they are ``enough`` and the speed-up's 95 % interval is within
    ``± precision`` (relative), or ``budget_seconds`` are spent on timing.
    """

    least: int
    precision: float
    budget_seconds: float
    enough: int = 1


class Plan(NamedTuple):
    """What this session measures.

    ``rounds`` has the settings whose number of rounds is fixed; ``dataset`` is ``None`` for the default one, if it is
    at hand.
    """

    preset: str
    preset_reason: str
    device: str
    dtype: str
    weights: str
    dataset: str | None
    rounds: Mapping[str, int]
    precision: float
    case_budget: float
    control_after: bool
    counters_only: bool
    cases: tuple[cases.Case, ...]
    profile: Path | None = None

    @property
    def on_cuda(self) -> bool:
        """Whether the cases run on an NVIDIA GPU."""
        return self.device.startswith("cuda")

    def rounds_of(self, setting: str) -> int:
        """How many rounds a case of ``setting`` is timed for, at least."""
        if setting in self.rounds:
            return self.rounds[setting]
        if setting in components.WORKS:
            return components.rounds_of(self.preset, setting)
        return cases.PRESETS[self.preset].rounds.get(setting, cases.SETTINGS[setting].rounds)

    def aim_of(self, setting: str) -> Aim | None:
        """What the number of rounds of a flash case is chosen for; ``None`` where it was fixed."""
        if setting in self.rounds:
            return None
        least = self.rounds_of(setting)
        if setting in components.WORKS:
            return Aim(least, self.precision, self.case_budget)
        preset = cases.PRESETS[self.preset]
        return Aim(max(least, preset.least_pairs), self.precision, self.case_budget, preset.enough_pairs)

    def counts_hollow(self, setting: str) -> bool:
        """Whether rounds of ``setting`` are counted without arithmetic: ``generate``'s on a CPU, where that is long."""
        return not self.on_cuda and setting in cases.SETTINGS

    def uses_yardstick(self, setting: str) -> bool:
        """Whether the yardstick is read beside flash rounds of ``setting``, and models move: ``generate``'s on a CPU.

        A component does a part of its work only, and a GPU has a memory of its own.
        """
        return not self.on_cuda and setting in cases.SETTINGS

    def computes(self, setting: str) -> bool:
        """Whether rounds of ``setting`` are computed: not where they are only counted and take a CPU minutes."""
        if not self.counters_only or self.on_cuda:
            return True
        return cases.SETTINGS[setting].batch_size * cases.SETTINGS[setting].new_tokens <= cases.SHORT_ROUND_TOKENS


def make_plan(options: Options, probes: Probes) -> Plan:
    """Check every option, also those of cases that end up deselected, and choose what was left open.

    Raises:
        BadInputError: with one line for the user.
    """
    matrix = _choose_matrix(options)
    weights = "pretrained" if matrix is components.ACCURACY else options.weights
    precision, case_budget = _read_aim(options)
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
        full_depth_only=weights == "pretrained",
    )
    if matrix is not cases.GENERATE and not selection.implementations:
        selection = selection._replace(implementations=components.default_implementations(device, dtype))
    try:
        chosen = cases.select(preset, selection, matrix)
    except cases.SelectionError as error:
        raise BadInputError(str(error)) from None
    rounds = _read_rounds(options.rounds, list(dict.fromkeys(case.setting for case in chosen)))
    if not on_cuda and dtype != "float32" and not probes.cpu_computes(dtype):
        raise BadInputError(f"--perf-dtype: this CPU (or its torch) cannot compute in {dtype}; use float32")
    profile = None if options.profile is None else _profile_folder(options.profile)
    return Plan(
        preset=preset,
        preset_reason=reason,
        device=device,
        dtype=dtype,
        weights=weights,
        dataset=options.dataset,
        rounds=rounds,
        precision=precision,
        case_budget=matrix.presets[preset].case_budget_seconds if case_budget is None else case_budget,
        control_after=options.control_after,
        counters_only=options.counters_only,
        cases=chosen,
        profile=profile,
    )


def _choose_matrix(options: Options) -> cases.Matrix:
    if options.components and options.accuracy:
        raise BadInputError("--perf-components and --perf-accuracy: one at a time; they are runs of their own")
    if options.counters_only and (options.components or options.accuracy):
        asked = components.COMPONENTS.option if options.components else components.ACCURACY.option
        raise BadInputError(f"{asked}: --perf-counters-only counts generate's cases; leave one of the two out")
    if options.components:
        return components.COMPONENTS
    return components.ACCURACY if options.accuracy else cases.GENERATE


def _profile_folder(asked: str) -> Path:
    folder = Path(asked).expanduser()
    if not asked.strip() or (folder.exists() and not folder.is_dir()):
        raise BadInputError(f"--perf-profile {asked}: not a folder; give one for the traces, it is made if missing")
    return folder


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


def _read_aim(options: Options) -> tuple[float, float | None]:
    """The precision, relative, and the time budget of a case in seconds where one was given."""
    typed = {"--perf-precision": options.precision, "--perf-case-budget": options.case_budget}
    given = [option for option, text in typed.items() if text is not None]
    if options.counters_only:
        given += ["--perf-rounds"] if options.rounds is not None else []
        given += ["--perf-control-after"] if options.control_after else []
        given += ["--perf-profile"] if options.profile is not None else []
        if given:
            raise BadInputError(f"{given[0]}: --perf-counters-only times nothing; leave one of the two out")
    if options.rounds is not None and given:
        raise BadInputError(f"{given[0]}: --perf-rounds fixes the number of rounds; give one or the other")
    precision = DEFAULT_PRECISION_PERCENT
    if options.precision is not None:
        precision = _positive_number(options.precision.removesuffix("%"), "--perf-precision", "a percentage above 0")
    budget = options.case_budget
    seconds = None if budget is None else _positive_number(budget, "--perf-case-budget", "seconds, above 0")
    return precision / 100, seconds


def _read_rounds(typed: str | None, settings: Sequence[str]) -> dict[str, int]:
    """The number of rounds that was fixed: one for all ``settings``, or ``single=10,batched=2``."""
    option, least = "--perf-rounds", "at least 1 round"
    if typed is None:
        return {}
    if "=" not in typed:
        return dict.fromkeys(settings, _positive(typed, option, least))
    rounds: dict[str, int] = {}
    for part in typed.split(","):
        setting, equals, number = part.partition("=")
        if not equals:
            raise BadInputError(f"{option}: {part!r} names no setting; give single=10,batched=2, or one number for all")
        if setting not in settings:
            raise BadInputError(f"{option}: no case of {setting!r} is selected; there are {', '.join(settings)}")
        if setting in rounds:
            raise BadInputError(f"{option}: {setting} is given twice")
        rounds[setting] = _positive(number, f"{option} {setting}", least)
    return rounds


def _positive_number(text: str, option: str, what: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < math.inf:
        raise BadInputError(f"{option}: {text!r} is not {what}")
    return number


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
    files = "/proc/driver/nvidia/version", "/dev/nvidiactl"  # a sandbox may show one of them alone
    return any(Path(file).exists() for file in files) or shutil.which("nvidia-smi") is not None


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
