"""The decoding loop itself: that it serves, its switches, and the step that a GPU captures."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from transformers import MaxTimeCriteria, StoppingCriteriaList

from whisper_flash_attention.captured_decoding import GreedySession
from whisper_flash_attention.choosing import TokenChooser
from whisper_flash_attention.kv_cache import CacheShape
from whisper_flash_attention.weights import DecoderWeights

from .compare import OperationCounter, assert_half_tokens_agree, assert_same
from .tiny import EOS, START, Pair, make_pair, mel_features

TOKENS = 40
# One call, one window: without the last, a timestamp among the random tokens starts another window.
FORCED = {"min_new_tokens": TOKENS, "max_new_tokens": TOKENS, "force_unique_generate_call": True}


def operations(model: Any, **options: Any) -> int:
    with OperationCounter() as counter:
        model.generate(mel_features(1), **FORCED | options)
    return counter.count


def test_half_the_operations(pair: Pair) -> None:
    pair.flash.generate(mel_features(1), **FORCED)
    assert operations(pair.flash) <= 0.5 * operations(pair.original)


def test_switch_per_call(pair: Pair) -> None:
    pair.flash.generate(mel_features(1), **FORCED)
    fast, slow = operations(pair.flash), operations(pair.flash, fast_decoding=False)
    assert fast < 0.7 * slow
    assert_same(
        pair.flash.generate(mel_features(2), **FORCED, fast_decoding=False),
        pair.flash.generate(mel_features(2), **FORCED),
    )


def test_switch_per_model(pair: Pair) -> None:
    pair.flash.generate(mel_features(1), **FORCED)
    fast = operations(pair.flash)
    pair.flash.fast_decoding = False
    assert fast < 0.7 * operations(pair.flash)
    assert operations(pair.flash, fast_decoding=True) == fast


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("prompt", [None, [START, 5, 9, 14]], ids=["no prompt", "prompt"])
def test_shared_cross_attention(batch: int, prompt: list[int] | None, pair: Pair) -> None:
    """Attending to the encoder states is the same function as attending to keys and values made from them."""
    options: dict[str, Any] = {} if prompt is None else {"decoder_input_ids": torch.tensor([prompt] * batch)}
    pair.flash.cross_attention = "shared"
    features = mel_features(batch)
    assert_same(
        pair.flash.generate(features, **FORCED, **options), pair.original.generate(features, **FORCED, **options)
    )
    assert "states" in pair.flash.attention_backend["cross"]


def test_shared_cross_attention_in_half_precision(half: torch.dtype) -> None:
    pair, reference = make_pair(half), make_pair().original
    pair.flash.cross_attention = "shared"
    features = mel_features(3, dtype=half)
    flash, original = (model.generate(features, **FORCED) for model in (pair.flash, pair.original))
    assert_half_tokens_agree(flash, original, pair.original, reference, features, [START])


def test_shared_cross_attention_in_every_window(multilingual_pair: Pair) -> None:
    """With language detection, several windows and a second temperature, which come back to known states."""
    multilingual_pair.flash.cross_attention = "shared"
    options = {"temperature": (0.0, 0.0), "compression_ratio_threshold": 0.1, "return_timestamps": True}
    features = mel_features(2, 250)
    mask = torch.ones(2, 250, dtype=torch.long)
    outputs = [model.generate(features, attention_mask=mask, **options) for model in multilingual_pair]
    assert_same(outputs[1], outputs[0])


def test_unknown_cross_attention(pair: Pair) -> None:
    pair.flash.cross_attention = "both"  # type: ignore[assignment]
    with pytest.raises(ValueError, match='"auto", "stored" or "shared", not \'both\''):
        pair.flash.generate(mel_features(1), max_new_tokens=2)


@contextmanager
def uncaptured_sessions(model: Any, sessions: list[GreedySession]) -> Iterator[None]:
    """Decode as on a GPU, with masked spans and the flags on the device, but without capturing the step."""

    @contextmanager
    def lend(
        weights: DecoderWeights, shape: CacheShape, chooser: TokenChooser, *, captures: bool, **kind: bool
    ) -> Iterator[GreedySession | None]:
        if not captures:
            yield None
            return
        ends = (chooser.stopping.eos, chooser.pad, chooser.processor.timestamps)
        fits = sessions and sessions[-1].places == weights.places() and sessions[-1].serves(shape, *ends, **kind)
        if not fits:
            sessions.append(GreedySession(weights, shape, *ends, **kind, captures=False))
        yield sessions[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "greedy_session", lend)
        yield


@pytest.mark.parametrize("cross_attention", ["stored", "shared"])
@pytest.mark.parametrize("batch", [1, 3])
def test_captured_step(batch: int, cross_attention: Any, pair: Pair) -> None:
    """The same session serves call after call, each with other audio."""
    pair.flash.cross_attention = cross_attention
    sessions: list[GreedySession] = []
    for seed in range(3):
        features = mel_features(batch, seed=seed)
        with uncaptured_sessions(pair.flash, sessions):
            captured = pair.flash.generate(features, **FORCED)
        assert_same(captured, pair.original.generate(features, **FORCED))
    assert len(sessions) == 1


@pytest.mark.parametrize("seed", range(4))
def test_captured_step_stops_where_the_last_sequence_ends(seed: int, pair: Pair) -> None:
    """Also between two looks at the flags, and each sequence is padded from its own end on."""
    for model in pair:
        model.generation_config.suppress_tokens = None
    features = mel_features(4, seed=seed)
    options = {"max_new_tokens": TOKENS, "force_unique_generate_call": True}
    plain = pair.original.generate(features, **options)
    # Whatever the model says often becomes the end, so that sequences end at different steps.
    frequent = int(plain[plain != EOS].mode().values)
    for model in pair:
        model.generation_config.eos_token_id = [EOS, frequent]
    expected = pair.original.generate(features, **options)
    with uncaptured_sessions(pair.flash, []):
        assert_same(pair.flash.generate(features, **options), expected)


def test_session_is_left_when_weights_move(pair: Pair) -> None:
    sessions: list[GreedySession] = []
    with uncaptured_sessions(pair.flash, sessions):
        pair.flash.generate(mel_features(1), **FORCED)
        pair.flash.double().float()
        pair.flash.generate(mel_features(1), **FORCED)
    assert len(sessions) == 2


def test_a_session_forgets_the_call_before(pair: Pair) -> None:
    """Its forbidden tokens, and the NaNs of a broken recording."""
    features = mel_features(1)
    expected = pair.original.generate(features, suppress_tokens=None, begin_suppress_tokens=None, max_new_tokens=9)
    sessions: list[GreedySession] = []
    with uncaptured_sessions(pair.flash, sessions):
        every = list(range(200))
        pair.flash.generate(features * torch.nan, suppress_tokens=every, begin_suppress_tokens=None, max_new_tokens=9)
        outputs = pair.flash.generate(features, suppress_tokens=None, begin_suppress_tokens=None, max_new_tokens=9)
    assert len(sessions) == 1
    assert_same(outputs, expected)


def test_a_session_made_in_inference_mode_serves_outside(pair: Pair) -> None:
    sessions: list[GreedySession] = []
    with uncaptured_sessions(pair.flash, sessions):
        with torch.inference_mode():
            pair.flash.generate(mel_features(1), **FORCED)
        outputs = pair.flash.generate(mel_features(1), **FORCED)
    assert len(sessions) == 1
    assert_same(outputs, pair.original.generate(mel_features(1), **FORCED))


def test_a_step_that_cannot_be_captured_runs_as_it_is(monkeypatch: pytest.MonkeyPatch, pair: Pair) -> None:
    def fail(self: GreedySession, span: int) -> None:
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nCompile with TORCH_USE_…")

    expected = pair.original.generate(mel_features(2), **FORCED)
    sessions: list[GreedySession] = []
    monkeypatch.setattr(GreedySession, "_capture", fail)
    with uncaptured_sessions(pair.flash, sessions):
        pair.flash.generate(mel_features(2), **FORCED)
        sessions[0].captures = True
        with pytest.warns(RuntimeWarning, match="without a CUDA graph: CUDA error: operation not permitted when"):
            assert_same(pair.flash.generate(mel_features(2), **FORCED), expected)
        assert_same(pair.flash.generate(mel_features(2), **FORCED), expected)
    assert len(sessions) == 1
    assert pair.flash.attention_backend["step"].startswith("eager")


def test_criteria_that_the_loop_does_not_know(pair: Pair) -> None:
    criteria = StoppingCriteriaList([MaxTimeCriteria(0.0)])
    outputs = [model.generate(mel_features(2), stopping_criteria=criteria, max_new_tokens=9) for model in pair]
    assert_same(outputs[1], outputs[0])
