"""The floors of components: recomputed by hand, and against what the original really does."""

import pytest

from perf_tests.matrix.cases import CHECKPOINTS, Cell
from perf_tests.matrix.floors import Phase, floor_of, phases_of, step_phase

TINY = CHECKPOINTS["tiny.en"]


def test_the_encoder_by_hand() -> None:
    """tiny.en, one audio, float32: 4 layers of width 384, 80 mel bins, 3000 frames, 1500 positions."""
    (phase,) = phases_of(Cell("tiny.en", 4, "encoder_batch_1"), 4, batch_size=1)
    convolutions = 2 * 3000 * 3 * 80 * 384 + 2 * 1500 * 3 * 384 * 384
    projections = 4 * 2 * 1500 * 384 * 384
    feed_forward = 2 * 2 * 1500 * 384 * 1536
    attention = 2 * 2 * 1500 * 1500 * 384
    assert phase.flops == convolutions + 4 * (projections + feed_forward + attention) == 36_937_728_000
    weights = 3 * 80 * 384 + 3 * 384 * 384 + 1500 * 384 + 4 * (4 * 384 * 384 + 2 * 384 * 1536)
    assert phase.bytes == 4 * (weights + 3000 * 80 + 1500 * 384) == 36_017_664


def test_a_decoding_step_by_hand() -> None:
    """base.en, one token behind 64, bfloat16: 6 layers of width 512, cross keys and values stored."""
    (phase,) = phases_of(Cell("base.en", 6, "cache_64"), 2, batch_size=1)
    per_layer = 3 * 512 * 512 + 512 * 512 + 2 * 512 * 512 + 2 * 512 * 2048
    cross_keys_and_values = 2 * 1500 * 512
    self_keys_and_values = 2 * 65 * 512
    numbers = 6 * (per_layer + cross_keys_and_values + self_keys_and_values) + 51864 * 512 + 51864
    assert phase.bytes == 2 * numbers == 116_483_376
    flops = 6 * (2 * per_layer + 2 * 2 * 1500 * 512 + 2 * 2 * 65 * 512) + 2 * 51864 * 512
    assert phase.flops == flops == 116_379_648


def test_attending_to_states_reads_half_and_computes_more() -> None:
    stored, shared = (step_phase(TINY, 4, 32, 64, 2, stores_cross=stores) for stores in (True, False))
    saved = 4 * (1500 * 384 * 32 - 2 * 384 * 384)
    assert stored.bytes - shared.bytes == 2 * saved
    assert shared.flops > stored.flops


def test_phases_follow_each_other() -> None:
    """One bound by memory, one by products: their times add up, and are not hidden behind each other."""
    floor = floor_of([Phase(100, 10), Phase(10, 400)], bytes_per_second=10, flops_per_second=100)
    assert floor == (10 + 4, 110, 410)


def test_long_form_is_twenty_windows() -> None:
    phases = phases_of(Cell("tiny.en", 4, "long_form"), 4, batch_size=1)
    (encoder,) = phases_of(Cell("tiny.en", 4, "encoder_batch_1"), 4, batch_size=1)
    assert phases[0] == Phase(20 * encoder.bytes, 20 * encoder.flops)


@pytest.mark.parametrize("part", ["encoder_self", "decoder_self", "cross"])
def test_attention_grows_with_the_batch_alone_where_weights_are_shared(part: str) -> None:
    cell = Cell("tiny.en", 4, f"{part}_batch_32")
    (one,), (many,) = (phases_of(cell, 2, batch_size=batch) for batch in (1, 32))
    assert many.flops == 32 * one.flops
    weights = 2 * 4 * 384 * 384
    assert many.bytes - weights == 32 * (one.bytes - weights)
