"""A rough forecast of how long a session takes, for its header. Imports no torch."""

from typing import NamedTuple

from .cases import CHECKPOINTS, ENCODER_POSITIONS, SETTINGS, Case
from .components import WORKS, function_of
from .floors import floor_of, phases_of
from .plan import Plan


class Speed(NamedTuple):
    """What a CPU does in a second: operations of products of many rows, and bytes of memory.

    ``row_bytes`` and ``rows_bytes`` are those of a weight that is multiplied by one row, and by four. ``call_seconds``
    is what a call takes that computes next to nothing.
    """

    flops: float
    bytes: float
    row_bytes: float
    rows_bytes: float
    call_seconds: float


# A 2-core AMD Zen 5.
TYPICAL_CPU = Speed(flops=150e9, bytes=40e9, row_bytes=14e9, rows_bytes=6e9, call_seconds=2.5e-6)
# An H200: what matters there is how fast its host launches kernels. Fitted to 11 cells of `single` in float16, whose
# rounds they tell within a quarter; what each row of a batch adds, to one cell of `batched`.
GPU_FLOPS, GPU_BYTES_PER_SECOND = 150e12, 2e12
GPU_TOKEN_SECONDS, GPU_LAYER_SECONDS, GPU_ENCODER_LAYER_SECONDS, GPU_ROW_SECONDS = 1.25e-3, 0.71e-3, 5.9e-3, 0.12e-3
# The other implementations' rounds, as parts of the original's.
FLASH_SHARE = {"cpu": 0.57, "cuda": 0.2}
EAGER_SHARE = {"cpu": 1.2, "cuda": 1.2}
YARDSTICK_SHARE = 0.5
# What moving on in memory takes per pair, in times that one model takes to be built.
MOVING_BUILDS = 0.7
# How many times its floor a component takes, and what a call takes at least.
ABOVE_FLOOR, CALL_SECONDS = 2.5, 1e-3
BUILD_PARAMETERS_PER_SECOND = 100e6
# Of one case, beside the rounds that are timed: for memory, parity, counters and as warm-up.
UNTIMED_ROUNDS = {"cpu": 2.5, "cuda": 4.0}
UNTIMED_SECONDS = 1.0
COMPONENT_UNTIMED_ROUNDS = 9
# That the speed-up of a flash case takes to be known precisely enough.
TYPICAL_PAIRS = 36
# What a token takes per layer beside the weights, in calls that compute next to nothing, and what it takes in both
# passes that only dispatch, before the memory is measured and for the counters. Two cores of an AMD EPYC (Zen 1).
CALLS_PER_LAYER = 420
HOLLOW_CALLS_PER_LAYER = 2500
# Where nothing is timed, on a GPU: for the memory two rounds, for the counters three.
COUNTED_ROUNDS_GPU = 5


def forecast(plan: Plan, speed: Speed) -> dict[str, float]:
    """Seconds for each case of ``plan``, by its item's name, on a CPU of this ``speed`` or on a GPU."""
    return {f"{function_of(case)}[{case.id}]": _case_seconds(case, plan, speed) for case in plan.cases}


def round_seconds(case: Case, on_cuda: bool, speed: Speed) -> float:
    """Seconds for one round: the encoder by its operations, each token by the decoder's bytes and layers."""
    if case.setting in WORKS:
        return _component_seconds(case, on_cuda, speed)
    dims, setting = CHECKPOINTS[case.checkpoint], SETTINGS[case.setting]
    width, positions, tokens = dims.d_model, ENCODER_POSITIONS, setting.new_tokens
    per_encoder_layer = 2 * positions * (4 * width**2 + 2 * width * dims.ffn) + 4 * positions**2 * width
    encoder = setting.batch_size * dims.encoder_layers * per_encoder_layer
    if on_cuda:
        token = GPU_TOKEN_SECONDS + case.decoder_layers * GPU_LAYER_SECONDS + setting.batch_size * GPU_ROW_SECONDS
        original = encoder / GPU_FLOPS + dims.encoder_layers * GPU_ENCODER_LAYER_SECONDS + tokens * token
    else:
        weights = case.decoder_layers * (8 * width**2 + 2 * width * dims.ffn) + dims.vocab_size * width
        read = 4 * weights / (speed.row_bytes if setting.batch_size == 1 else speed.rows_bytes)
        token = max(read, 2 * setting.batch_size * weights / speed.flops)
        calls = CALLS_PER_LAYER * (2 + case.decoder_layers)
        original = encoder / speed.flops + tokens * (token + calls * speed.call_seconds)
    shares = {"flash": FLASH_SHARE, "eager": EAGER_SHARE}.get(case.implementation)
    return original * (shares["cuda" if on_cuda else "cpu"] if shares else 1.0)


def _component_seconds(case: Case, on_cuda: bool, speed: Speed) -> float:
    """A component's round by its floor; a transcription's by one encoder and a hundred steps per clip."""
    work = WORKS[case.setting]
    moved, flops = (GPU_BYTES_PER_SECOND, GPU_FLOPS) if on_cuda else (speed.bytes, speed.flops)
    if work.test == "test_accuracy":
        parts = (
            (case.cell._replace(setting=name), times) for name, times in (("encoder_batch_1", 1), ("cache_64", 100))
        )
        floors = (times * floor_of(phases_of(cell, 4, batch_size=1), moved, flops).seconds for cell, times in parts)
        return ABOVE_FLOOR * work.batch_size * sum(floors)
    floor = floor_of(phases_of(case.cell, 4, batch_size=work.batch_size), moved, flops)
    return ABOVE_FLOOR * floor.seconds + CALL_SECONDS


def _case_seconds(case: Case, plan: Plan, speed: Speed) -> float:
    dims, kind = CHECKPOINTS[case.checkpoint], "cuda" if plan.on_cuda else "cpu"
    control = round_seconds(case._replace(implementation="original"), plan.on_cuda, speed)
    own = round_seconds(case, plan.on_cuda, speed)
    parameters = (
        12 * (dims.encoder_layers + 1.4 * case.decoder_layers) * dims.d_model**2 + dims.vocab_size * dims.d_model
    )
    build = parameters / BUILD_PARAMETERS_PER_SECOND
    hollow = 0.0
    if plan.counts_hollow(case.setting):
        calls = HOLLOW_CALLS_PER_LAYER * (2 + case.decoder_layers) * SETTINGS[case.setting].new_tokens
        hollow = calls * speed.call_seconds * (0.4 if case.implementation == "flash" else 1.0)
    if plan.counters_only:
        rounds = COUNTED_ROUNDS_GPU if plan.on_cuda else int(plan.computes(case.setting))
        return hollow + rounds * own + (build if rounds else 0.0)
    timed, untimed = plan.rounds_of(case.setting) * own, UNTIMED_ROUNDS[kind] * own
    if case.setting in WORKS:
        untimed = COMPONENT_UNTIMED_ROUNDS * own
    if case.implementation == "flash":
        beside = control
        if plan.uses_yardstick(case.setting):
            beside += control * YARDSTICK_SHARE + MOVING_BUILDS * build
        pairs, aim = plan.rounds_of(case.setting) + 1.0, plan.aim_of(case.setting)
        if aim is not None:
            pairs = max(aim.least + 1, min(TYPICAL_PAIRS, aim.budget_seconds / (own + beside)))
        timed = pairs * (own + beside)
    return UNTIMED_SECONDS + build + hollow + untimed + timed
