"""A rough forecast of how long a session takes, for its header. Imports no torch."""

from .cases import CHECKPOINTS, ENCODER_POSITIONS, SETTINGS, Case
from .floors import floor_of, phases_of
from .plan import Plan
from .works import WORKS

# What a machine does, order of magnitude only. CPU: a 2-core AMD Zen 5, scaled by the number of cores.
CPU_FLOPS_PER_CORE = 75e9
CPU_BYTES_PER_SECOND = 14e9
CPU_LAYER_SECONDS = 0.75e-3
GPU_FLOPS = 150e12
GPU_LAYER_SECONDS = 0.25e-3
GPU_BYTES_PER_SECOND = 2e12
# How many times its floor a component takes, and what a call takes at least.
ABOVE_FLOOR, CALL_SECONDS = 2.5, 1e-3
BUILD_PARAMETERS_PER_SECOND = 50e6
# Of one case: warm-ups, memory, parity, counters; these also run the profiler and the reference. Fewer where warm-up
# and counters do without arithmetic.
UNTIMED_ROUNDS, UNTIMED_ROUNDS_HOLLOW = 9, 4
# That the speed-up of a flash case takes to be known precisely enough.
TYPICAL_PAIRS = 40
# Where nothing is timed. On a GPU: for the memory two rounds, for the counters three. On a CPU: a round for the memory,
# where rounds are short, and dispatch alone for the counters.
COUNTED_ROUNDS_GPU = 5
HOLLOW_LAYER_SECONDS = 2.5e-3


def estimate_seconds(plan: Plan, cores: int) -> float:
    """Seconds for all cases of ``plan`` on ``cores`` CPU cores or on a GPU."""
    return sum(_case_seconds(case, plan, cores) for case in plan.cases)


def round_seconds(case: Case, on_cuda: bool, cores: int) -> float:
    """Seconds for one round: the encoder by its operations, each token by the decoder's bytes and layers."""
    if case.setting in WORKS:
        return _component_seconds(case, on_cuda, cores)
    dims, setting = CHECKPOINTS[case.checkpoint], SETTINGS[case.setting]
    width, positions = dims.d_model, ENCODER_POSITIONS
    per_encoder_layer = 2 * positions * (4 * width**2 + 2 * width * dims.ffn) + 4 * positions**2 * width
    encoder = setting.batch_size * dims.encoder_layers * per_encoder_layer
    decoder_weights = case.decoder_layers * (8 * width**2 + 2 * width * dims.ffn) + dims.vocab_size * width
    if on_cuda:
        return encoder / GPU_FLOPS + setting.new_tokens * (1 + case.decoder_layers) * GPU_LAYER_SECONDS
    flops = CPU_FLOPS_PER_CORE * cores
    token = max(4 * decoder_weights / CPU_BYTES_PER_SECOND, 2 * setting.batch_size * decoder_weights / flops)
    return encoder / flops + setting.new_tokens * (token + (2 + case.decoder_layers) * CPU_LAYER_SECONDS)


def _component_seconds(case: Case, on_cuda: bool, cores: int) -> float:
    """A component's round by its floor; a transcription's by one encoder and a hundred steps per clip."""
    work = WORKS[case.setting]
    moved, flops = (GPU_BYTES_PER_SECOND, GPU_FLOPS) if on_cuda else (CPU_BYTES_PER_SECOND, CPU_FLOPS_PER_CORE * cores)
    if work.test == "test_accuracy":
        parts = (
            (case.cell._replace(setting=name), times) for name, times in (("encoder_batch_1", 1), ("cache_64", 100))
        )
        floors = (times * floor_of(phases_of(cell, 4, batch_size=1), moved, flops).seconds for cell, times in parts)
        return ABOVE_FLOOR * work.batch_size * sum(floors)
    floor = floor_of(phases_of(case.cell, 4, batch_size=work.batch_size), moved, flops)
    return ABOVE_FLOOR * floor.seconds + CALL_SECONDS


def _case_seconds(case: Case, plan: Plan, cores: int) -> float:
    dims = CHECKPOINTS[case.checkpoint]
    per_round = round_seconds(case, plan.on_cuda, cores)
    parameters = 12 * (dims.encoder_layers + 1.4 * case.decoder_layers) * dims.d_model**2
    build = parameters / BUILD_PARAMETERS_PER_SECOND
    if plan.counters_only:
        return _counting_seconds(case, plan, build, per_round)
    timed = plan.rounds_of(case.setting) * per_round
    if case.implementation == "flash":
        timed *= 2
        aim = plan.aim_of(case.setting)
        if aim is not None:
            pairs = max(aim.least, min(TYPICAL_PAIRS, aim.budget_seconds / (2 * per_round)))
            timed = pairs * 2 * per_round
    untimed = UNTIMED_ROUNDS_HOLLOW if plan.counts_hollow(case.setting) else UNTIMED_ROUNDS
    return timed + untimed * per_round + build


def _counting_seconds(case: Case, plan: Plan, build: float, per_round: float) -> float:
    if plan.on_cuda:
        return build + COUNTED_ROUNDS_GPU * per_round
    dispatch = SETTINGS[case.setting].new_tokens * (2 + case.decoder_layers) * HOLLOW_LAYER_SECONDS
    return dispatch + (build + per_round if plan.computes(case.setting) else 0.0)
