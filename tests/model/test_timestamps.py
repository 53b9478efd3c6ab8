"""The rules about timestamps, prepared for a batch, against Transformers' processor, which goes row by row."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LogitsProcessorList, WhisperTimeStampLogitsProcessor

from whisper_flash_attention import cpu_library
from whisper_flash_attention.logits import ScoreProcessor
from whisper_flash_attention.timestamps import TimestampRules

from .compare import OperationCounter, assert_same
from .cuda_stand_in import cpu_as_cuda
from .tiny import FIRST_TIMESTAMP, Pair, make_pair, mel_features

TEXT, NO_TIMESTAMPS, STAMPS = 9, 11, 8
VOCABULARY = NO_TIMESTAMPS + 1 + STAMPS
CPU = torch.device("cpu")


def processor(begin: int, **settings: Any) -> WhisperTimeStampLogitsProcessor:
    values = {"no_timestamps_token_id": NO_TIMESTAMPS, "eos_token_id": TEXT, "max_initial_timestamp_index": 3}
    return WhisperTimeStampLogitsProcessor(SimpleNamespace(**values | settings), begin_index=begin)


@st.composite
def cases(draw: st.DrawFn) -> tuple[WhisperTimeStampLogitsProcessor, torch.Tensor, torch.Tensor]:
    """A processor, tokens that need not follow any rule, and scores of which some are already forbidden."""
    rows, prompt, new = draw(st.integers(1, 4)), draw(st.integers(0, 4)), draw(st.integers(0, 6))
    # Of the prompt's length, unless somebody made the processor by hand.
    begin = max(0, prompt + draw(st.sampled_from([0, 0, 0, -1, 1])))
    # Mostly around the first timestamp, where the rules are.
    token = st.one_of(st.integers(0, VOCABULARY - 1), st.integers(NO_TIMESTAMPS, VOCABULARY - 1))
    row = st.lists(token, min_size=prompt + new, max_size=prompt + new)
    ids = torch.tensor(draw(st.lists(row, min_size=rows, max_size=rows)), dtype=torch.long).view(rows, prompt + new)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    scores = 3 * torch.randn(rows, VOCABULARY, generator=generator)
    scores[:, NO_TIMESTAMPS + 1 :] += draw(st.sampled_from([-6.0, -2.0, 0.0, 2.0]))
    forbidden = torch.rand(rows, VOCABULARY, generator=generator) < draw(st.sampled_from([0.0, 0.3, 0.9, 1.0]))
    scores = scores.masked_fill(forbidden, -torch.inf)
    settings = {
        "max_initial_timestamp_index": draw(st.sampled_from([None, 0, 3, 50])),
        "_detect_timestamp_from_logprob": draw(st.booleans()),
        "eos_token_id": draw(st.sampled_from([TEXT, 4, NO_TIMESTAMPS + 3])),
    }
    return processor(begin, **settings), ids, scores


@settings(max_examples=400, deadline=None)
@given(cases())
def test_same_as_row_by_row(case: tuple[WhisperTimeStampLogitsProcessor, torch.Tensor, torch.Tensor]) -> None:
    """To the last bit."""
    original, ids, scores = case
    prepared = ScoreProcessor(LogitsProcessorList([original]), VOCABULARY, CPU)
    assert prepared.timestamps is not None
    room = torch.cat([ids, ids.new_full((len(ids), 3), VOCABULARY - 1)], dim=1)
    expected = original(ids, scores)
    assert torch.equal(prepared(room, ids.shape[1], scores), expected)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.integers(0, VOCABULARY - 1), min_size=7, max_size=7), min_size=1, max_size=4))
def test_state_goes_from_token_to_token(rows: list[list[int]]) -> None:
    """As a captured step keeps it, which does not look back."""
    rules = TimestampRules(processor(0), VOCABULARY, CPU)
    tokens = torch.tensor(rows)
    state = rules.state_of(tokens[:, :1])
    for length in range(2, 8):
        state = rules.following(state, tokens[:, length - 1])
        assert_same(tuple(state), tuple(rules.state_of(tokens[:, :length])))


@pytest.mark.parametrize("eos", [[TEXT], None], ids=["several ends", "no end"])
def test_unusual_settings_are_left_to_the_original(eos: Any) -> None:
    original = processor(2, eos_token_id=eos, bos_token_id=None)
    assert TimestampRules.from_processor(original, VOCABULARY, CPU) is None


def test_subclass_is_left_alone() -> None:
    class Other(WhisperTimeStampLogitsProcessor):
        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            return -scores

    other = Other(SimpleNamespace(no_timestamps_token_id=NO_TIMESTAMPS, eos_token_id=TEXT), begin_index=2)
    scores = torch.randn(2, VOCABULARY)
    prepared = ScoreProcessor(LogitsProcessorList([other]), VOCABULARY, CPU)
    assert torch.equal(prepared(torch.zeros(2, 5, dtype=torch.long), 4, scores), -scores)


FORCED = {"return_timestamps": True, "max_new_tokens": 40, "min_new_tokens": 40, "force_unique_generate_call": True}


def test_fewer_operations(pair: Pair) -> None:
    counts = []
    for model in pair:
        model.generate(mel_features(1), **FORCED)
        with OperationCounter() as counter:
            model.generate(mel_features(1), **FORCED)
        counts.append(counter.count)
    # 0.61 by the plain step, which the compiled one makes a single operator.
    assert counts[1] <= (0.3 if cpu_library.why_not() is None else 0.65) * counts[0]


@pytest.mark.parametrize("batch", [1, 4])
def test_captured_step(batch: int, pair: Pair) -> None:
    """One session for calls with prompts of different lengths, and another for a call without timestamps."""
    with cpu_as_cuda() as device:
        for seed, options in enumerate([FORCED, FORCED, FORCED | {"return_timestamps": False}]):
            features = mel_features(batch, seed=seed)
            tokens = pair.flash.generate(features, **options)
            assert_same(tokens, pair.original.generate(features, **options))
            assert seed == 2 or (tokens >= FIRST_TIMESTAMP).any()
    assert len(device.graphs) == 2


def test_half_precision(half: torch.dtype) -> None:
    """Scores are float32 before the rules compare their sums, and what the rules forbid at first is the same."""
    options = {"return_timestamps": True, "max_new_tokens": 2, "return_dict_in_generate": True, "output_scores": True}
    pair = make_pair(half)
    for model in pair:
        model.generation_config.update(suppress_tokens=None, begin_suppress_tokens=None)
    original, flash = (
        model.generate(mel_features(3, dtype=half), force_unique_generate_call=True, **options).scores for model in pair
    )
    assert flash[0].dtype == torch.float32
    assert torch.equal(flash[0].isinf(), original[0].isinf())
