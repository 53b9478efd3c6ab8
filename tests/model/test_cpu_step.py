"""The compiled step against the plain one in float64: any shape, padding, beams, special numbers."""

import gc
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from whisper_flash_attention import cpu_library
from whisper_flash_attention.cpu_step import MOST_ROWS
from whisper_flash_attention.decoder import Decoder, PaddedPrompt

from .step_cases import (
    DTYPES,
    VOCABULARY,
    Case,
    Plan,
    Read,
    assert_near,
    assert_right,
    assert_same_bits,
    at_odd_address,
    cross_of,
    levels,
    make_case,
    mapped,
    read,
)

pytestmark = pytest.mark.skipif(cpu_library.why_not() is not None, reason=str(cpu_library.why_not()))
# About the pieces that cross-attention goes through, and about vectors.
FRAMES = [1, 3, 15, 16, 17, 511, 512, 513, 1024, 1025, 1500]


@pytest.fixture(autouse=True)
def inference() -> Iterator[None]:
    with torch.no_grad():
        yield


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    head_dim = draw(st.one_of(st.sampled_from([16, 24, 32, 64, 80, 128]), st.integers(16, 128)))
    fewest = math.ceil(64 / head_dim)
    heads = draw(st.integers(fewest, max(fewest, 400 // head_dim)))
    fresh = draw(st.sampled_from([1, 1, 2, 3, 8, 9, 33]))
    sequences = draw(st.integers(1, 33 // fresh))
    beams = draw(st.sampled_from([n for n in range(1, sequences + 1) if sequences % n == 0]))
    # So many numbers in a cache, at most, that an example takes some hundredths of a second.
    most_frames = 400_000 // (heads * head_dim * (sequences // beams))
    longest = 400_000 // (heads * head_dim * sequences)
    frames = draw(st.one_of(st.sampled_from(FRAMES), st.integers(1, 1500)))
    return Plan(
        heads=heads,
        head_dim=head_dim,
        feed_forward=draw(st.integers(1, 700)),
        frames=min(frames, most_frames),
        sequences=sequences,
        beams=beams,
        fresh=fresh,
        start=min(draw(st.one_of(st.integers(0, 40), st.integers(0, 447))), 448 - fresh, longest),
        room=draw(st.integers(0, 3)),
        layers=draw(st.integers(1, 2)),
        dtype=draw(st.sampled_from(DTYPES)),
        missing=draw(st.sampled_from([0.0, 0.5, 1.0])),
        threads=draw(st.integers(1, 4)),
    )


@settings(max_examples=200, derandomize=True, deadline=None, database=None)
@example(Plan(heads=20, head_dim=64, feed_forward=520, frames=1500, start=447, room=0))
@example(Plan(heads=20, head_dim=64, feed_forward=520, frames=1500, sequences=5, beams=5, dtype=torch.bfloat16))
@example(Plan(heads=10, head_dim=128, feed_forward=33, frames=513, fresh=33, dtype=torch.float16))
@given(plans())
def test_any_shape(plan: Plan) -> None:
    assert_right(make_case(plan), plan.tokens(), plan.start, threads=plan.threads)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_weights_at_any_address(dtype: torch.dtype) -> None:
    """As a file that is mapped into the memory has them."""
    plan = Plan(head_dim=20, dtype=dtype, sequences=3, fresh=3)
    case = make_case(plan)
    odd = Case(mapped(case.weights, at_odd_address), case.cache)
    assert odd.weights.vocabulary.weight.data_ptr() % 2
    for level in levels():
        assert_same_bits(read(odd, plan.tokens(), 0, level=level), read(case, plan.tokens(), 0, level=level))


# ---- Prompts, padding, beams ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("beams", [1, 2])
def test_padding_is_not_seen(beams: int, dtype: torch.dtype) -> None:
    plan = Plan(sequences=6, beams=beams, fresh=5, room=3, dtype=dtype)
    case, tokens, audios = make_case(plan), plan.tokens()[::beams], 6 // beams
    begin = torch.tensor([0, 2, 4, 1, 0, 3])[:audios, None]
    # Padding sees itself; where it stands is anybody's choice.
    first, places = torch.minimum(begin, torch.arange(5)), (torch.arange(5) - begin).clamp(min=0)
    where: dict[str, Any] = {"stride": beams, "first": first, "places": places}
    seen = assert_right(case, tokens, 0, **where)
    tokens = tokens.masked_fill(torch.arange(5) < begin, 7)
    assert torch.equal(read(case, tokens, 0, **where).logits, seen.logits)

    case.cache.self_buffer.copy_(seen.buffer)
    every = torch.arange(6) // beams
    assert_right(case, plan.tokens()[:, :1], 5, first=begin[every], places=(5 - begin)[every])


@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
def test_beams_change_places_between_steps(padded: bool) -> None:
    """Through the decoder of a call: the prompt is read once for an audio, and beams go on from any of its beams."""
    plan = Plan(sequences=6, beams=3, fresh=4, room=8, layers=2)
    case, generator = make_case(plan), torch.Generator().manual_seed(0)
    begin, positions = torch.tensor([0, 0, 0, 2, 2, 2])[:, None], torch.arange(4)
    prompt = PaddedPrompt(positions >= begin, (positions - begin).clamp(min=0)) if padded else None
    compiled, plain = (Decoder(*each, None, prompt) for each in (case, case.to(torch.float64)))
    assert compiled.compiled is not None
    assert plain.compiled is None
    ids = plan.tokens().view(2, 3, 4)[:, :1].expand(2, 3, 4).reshape(6, 4)
    assert_near(compiled.read_prompt(ids), plain.read_prompt(ids))
    for length in range(5, 4 + plan.room):
        rows = torch.randint(3, (2, 3), generator=generator).add(torch.tensor([[0], [3]])).flatten()
        tokens = torch.randint(VOCABULARY, (6,), generator=generator)
        for decoder in (compiled, plain):
            decoder.cache.reorder(rows, length - 1)
        assert_near(compiled.step(tokens, length), plain.step(tokens, length))


@pytest.mark.parametrize("sequences", [1, 3])
def test_a_prompt_is_its_tokens_one_by_one(sequences: int) -> None:
    plan = Plan(sequences=sequences, fresh=10, layers=2)
    case, tokens = make_case(plan), plan.tokens()
    whole = read(case, tokens, 0)
    for position in range(10):
        last = read(case, tokens[:, position : position + 1], position)
        case.cache.self_buffer.copy_(last.buffer)
    assert_near(last.logits, whole.logits)
    assert_near(last.buffer, whole.buffer)


def test_a_prompt_of_more_rows_than_it_takes_is_read_plainly() -> None:
    plan = Plan(fresh=MOST_ROWS + 1)
    case = make_case(plan)
    compiled, plain = (Decoder(*each, None) for each in (case, case.to(torch.float64)))
    assert compiled.compiled is not None
    assert_near(compiled.read_prompt(plan.tokens()), plain.read_prompt(plan.tokens()))
    assert_near(compiled.step(torch.tensor([5]), MOST_ROWS + 2), plain.step(torch.tensor([5]), MOST_ROWS + 2))


def test_the_last_position_is_written() -> None:
    plan = Plan(sequences=2, fresh=3, start=5, room=0)
    assert_right(make_case(plan), plan.tokens(), 5)
    assert_right(make_case(plan), plan.tokens()[:, :1], 7)


TWO = torch.tensor([[3, 4], [5, 6]])
REFUSED: dict[str, dict[str, Any]] = {
    "one position more than there is": {"start": 8},
    "a position before the first": {"start": -1},
    "a position that no machine has": {"start": 2**63 - 1, "places": torch.tensor([[0, 1], [0, 1]])},
    "a token that is not in the vocabulary": {"tokens": torch.tensor([[3, 4], [5, VOCABULARY]])},
    "a token below the first": {"tokens": torch.tensor([[3, 4], [5, -1]])},
    "a place behind the last": {"places": torch.tensor([[0, 1], [0, 10]])},
    "a place before the first": {"places": torch.tensor([[0, 1], [0, -1]])},
    "a first position before the first": {"first": torch.tensor([[0, 0], [0, -1]])},
    "a first position behind its own": {"first": torch.tensor([[0, 0], [0, 8]])},
    "a slot behind the last": {"stride": 2},
    "a slot before the first": {"stride": -1},
    "fewer sequences than slots": {"tokens": TWO[:1]},
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_out_of_range_writes_nothing(case: str) -> None:
    plan = Plan(sequences=2, fresh=2, start=7, room=0)  # nine positions
    arguments = {"tokens": TWO, "start": 6} | REFUSED[case]
    decoder = make_case(plan)
    step, before = decoder.bind(), decoder.cache.self_buffer.clone()
    with pytest.raises(IndexError):
        step(arguments.pop("tokens"), arguments.pop("start"), **arguments)
    assert torch.equal(decoder.cache.self_buffer, before)
    assert step(TWO, 6).isfinite().all()


def test_sequences_that_the_audios_do_not_share_are_refused() -> None:
    """Two audios of three beams each: a sequence for all slots, or one for each audio, but not three."""
    decoder = make_case(Plan(sequences=6, beams=3))
    with pytest.raises(IndexError, match="a slot is not in the cache"):
        decoder.bind()(torch.tensor([[1], [2], [3]]), 0, stride=2)
    for sequences, stride in ((6, 1), (2, 3)):
        assert decoder.bind()(torch.ones(sequences, 1, dtype=torch.long), 0, stride=stride).isfinite().all()


@pytest.mark.parametrize(
    "arguments",
    [
        {"tokens": TWO.int()},
        {"tokens": TWO.double()},
        {"tokens": TWO[0]},
        {"tokens": TWO[None]},
        {"tokens": TWO[:, :0]},
        {"tokens": TWO[:0]},
        {"places": TWO.int()},
        {"places": TWO[:, :1]},
        {"first": TWO.bool()},
        {"first": TWO[:1]},
    ],
    ids=lambda arguments: " ".join(f"{name} {str(x.dtype)[6:]} {[*x.shape]}" for name, x in arguments.items()),
)
def test_what_is_of_the_wrong_kind_writes_nothing(arguments: dict[str, Tensor]) -> None:
    decoder = make_case(Plan(sequences=2, fresh=2))
    step, before = decoder.bind(), decoder.cache.self_buffer.clone()
    with pytest.raises(ValueError, match="int64 of one shape"):
        step(**{"tokens": TWO, "start": 0} | arguments)
    assert torch.equal(decoder.cache.self_buffer, before)


# ---- What is held ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_parameters_that_are_replaced_are_read_to_the_end(dtype: torch.dtype) -> None:
    plan = Plan(dtype=dtype)
    case, tokens = make_case(plan), plan.tokens()
    expected, step = read(case, tokens, 0), case.bind()
    sizes, addresses = {held.nbytes for held in step._held}, {held.data_ptr() for held in step._held}

    def replace(tensor: Tensor) -> Tensor:
        tensor.data = torch.full((1,), torch.nan)
        return tensor

    mapped(case.weights, replace)
    gc.collect()
    # Whatever had been freed would be among what is given out next.
    given = [torch.full((size,), 255, dtype=torch.uint8) for size in sizes for _ in range(50)]
    assert not addresses & {tensor.data_ptr() for tensor in given}
    assert_same_bits(Read(step(tokens, 0), case.cache.self_buffer), expected)


def test_one_tensor_in_several_places() -> None:
    """The vocabulary's projection is the token embedding, and both layers are one."""
    case = make_case(Plan(layers=2, sequences=2))
    layer = case.weights.layers[0]
    layer = layer._replace(self_out=layer.cross_out, cross_norm=layer.self_norm)
    weights = case.weights._replace(
        layers=(layer, layer), vocabulary=case.weights.vocabulary._replace(weight=case.weights.token_embedding)
    )
    assert_right(Case(weights, case.cache), Plan(sequences=2).tokens(), 0)


# ---- Special numbers ------------------------------------------------------------------------------------------------

SPECIAL = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
PLACES: dict[str, Callable[[Case], Tensor]] = {
    "token": lambda case: case.weights.token_embedding[9, 3:4],
    "key": lambda case: case.cache.self_keys[0, 1, 2, 1, 5:6],
    "value": lambda case: case.cache.self_values[0, 1, 2, 1, 5:6],
    "cross key": lambda case: cross_of(case).keys_t[0, 1, 2, 5, 30:31],
    "cross value": lambda case: cross_of(case).values[0, 1, 2, 30, 5:6],
}


@pytest.mark.parametrize("number", SPECIAL)
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_is_no_number_stays_with_its_sequence(dtype: torch.dtype, place: str, number: str) -> None:
    """The second of three alone meets it, and either all of its logits are lost, as in the plain step, or none."""
    plan = Plan(sequences=3, start=3, dtype=dtype)
    clean, case, tokens = make_case(plan), make_case(plan), torch.tensor([[8], [9], [10]])
    PLACES[place](case).fill_(SPECIAL[number])
    assert_right(case, tokens, 3)
    for level in levels():
        logits, undisturbed = (read(each, tokens, 3, level=level).logits for each in (case, clean))
        assert torch.equal(logits[::2], undisturbed[::2])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_is_no_number_in_one_output_stays_there(dtype: torch.dtype) -> None:
    plan = Plan(sequences=2, dtype=dtype, missing=1.0)
    clean, case, tokens = make_case(plan), make_case(plan), plan.tokens()
    for row, number in zip((0, 17, 208), SPECIAL.values(), strict=True):
        case.weights.vocabulary.weight[row, 5] = number
    case.weights.vocabulary.weight[100] *= 6e4  # more than the largest number of half precision
    assert_right(case, tokens, 0)
    kept = torch.ones(VOCABULARY, dtype=torch.bool)
    kept[[0, 17, 100, 208]] = False
    for level in levels():
        logits, undisturbed = (read(each, tokens, 0, level=level).logits for each in (case, clean))
        assert torch.equal(logits[:, kept], undisturbed[:, kept])


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize(
    "hidden", [slice(512), slice(512, 1024), slice(1024, 1100), slice(1, 1100), slice(1099)], ids=str
)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_frames_with_scores_of_minus_infinity_are_left_out(dtype: torch.dtype, hidden: slice, beams: int) -> None:
    plan = Plan(frames=1100, sequences=beams, beams=beams, dtype=dtype)
    case = with_constant_query(make_case(plan))
    cross_of(case).keys_t[:, :, :, 0, hidden] = -math.inf
    assert assert_right(case, plan.tokens(), 0).logits.isfinite().all()


def with_constant_query(case: Case) -> Case:
    """All queries of cross-attention are ones, so that keys alone decide which score is infinite."""
    (layer,) = case.weights.layers
    layer.cross_q.weight.zero_()
    assert layer.cross_q.bias is not None
    layer.cross_q.bias.fill_(1)
    return case


@pytest.mark.parametrize(("frames", "number"), [(slice(None), -math.inf), (slice(600, 601), math.inf)])
def test_scores_without_a_softmax_are_no_number(frames: slice, number: float) -> None:
    plan = Plan(frames=1100)
    case = with_constant_query(make_case(plan))
    cross_of(case).keys_t[:, :, :, 0, frames] = number
    assert assert_right(case, plan.tokens(), 0).logits.isnan().all()


def test_far_scores() -> None:
    """Their difference is more than any exponential has, and their sum less than float32's largest number."""
    plan = Plan(frames=1100)
    case = with_constant_query(make_case(plan))
    cross_of(case).keys_t[:, :, :, 0] = torch.linspace(-3e38, 3e38, 1100, dtype=torch.float64)
    assert_right(case, plan.tokens(), 0)


@pytest.mark.parametrize("size", [1e4, 1e7, 1e30])
def test_large_negative_activations_become_nothing(size: float) -> None:
    plan = Plan()
    case = make_case(plan)
    (layer,) = case.weights.layers
    assert layer.fc1.bias is not None
    layer.fc1.bias[::2] = -size
    assert_right(case, plan.tokens(), 0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_subnormal_numbers_count(dtype: torch.dtype) -> None:
    """Of weights, of the cache and of what is written there: each is made tiny, and what reads it huge."""
    plan = Plan(start=1, dtype=dtype)
    case = make_case(plan)
    (layer,) = case.weights.layers
    size, times = (1e-5, 1) if dtype == torch.float16 else (1e-39, 9)
    for tiny in (cross_of(case).values, case.cache.self_values[:, :, :, :1], layer.qkv[2].weight, layer.qkv[2].bias):
        tiny.mul_(size)
    assert 0 < case.cache.self_values[:, :, :, :1].abs().max() < torch.finfo(dtype).tiny
    for huge in (layer.cross_out, layer.self_out):
        for _ in range(times):
            huge.weight.mul_(1e4)
    assert_right(case, plan.tokens(), 1)


@pytest.mark.parametrize("flushes", [False, True])
def test_whether_subnormal_numbers_are_flushed_stays_as_it_was(flushes: bool) -> None:
    plan = Plan(dtype=torch.float16)
    case = make_case(plan)
    if not torch.set_flush_denormal(flushes):
        pytest.skip("this processor cannot")
    try:
        for level in levels():
            read(case, plan.tokens(), 0, level=level)
            assert (float("1e-310") / 2 == 0) is flushes
    finally:
        torch.set_flush_denormal(False)
