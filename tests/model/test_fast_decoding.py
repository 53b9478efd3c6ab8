"""The decoding loop itself: that it serves, and its switches."""

from typing import Any

import pytest
import torch
from transformers import MaxTimeCriteria, StoppingCriteriaList

from .compare import OperationCounter, assert_half_tokens_agree, assert_same
from .tiny import START, Pair, make_pair, mel_features

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


def test_criteria_that_the_loop_does_not_know(pair: Pair) -> None:
    criteria = StoppingCriteriaList([MaxTimeCriteria(0.0)])
    outputs = [model.generate(mel_features(2), stopping_criteria=criteria, max_new_tokens=9) for model in pair]
    assert_same(outputs[1], outputs[0])
