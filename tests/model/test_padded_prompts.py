"""Prompts of different lengths in one batch, as long-form audio that is conditioned on its past has them."""

from typing import Any

import pytest
import torch
from transformers.utils import ModelOutput

from .compare import OperationCounter, assert_half_close, assert_same
from .cuda_stand_in import cpu_as_cuda
from .tiny import EOS, NO_TIMESTAMPS, START, START_OF_PREVIOUS, Pair, make_pair, mel_features

PADDED = torch.tensor(
    [
        [EOS, EOS, EOS, EOS, EOS, START, NO_TIMESTAMPS],
        [START_OF_PREVIOUS, 5, 6, 9, 31, START, NO_TIMESTAMPS],
        [EOS, EOS, START_OF_PREVIOUS, 7, EOS, START, NO_TIMESTAMPS],  # one in the middle too
    ]
)
PROMPTS = {"decoder_input_ids": PADDED, "decoder_attention_mask": PADDED != EOS}
FORCED = {"min_new_tokens": 24, "max_new_tokens": 24, "force_unique_generate_call": True}

OPTIONS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "timestamps": {"return_timestamps": True},
    "beams": {"num_beams": 3},
    "beams returned": {"num_beams": 3, "return_dict_in_generate": True, "output_scores": True},
    "sampling": {"temperature": 0.8},
    "fallback": {"temperature": (0.0, 0.5), "compression_ratio_threshold": 1.2},
    "scores": {"return_dict_in_generate": True, "output_scores": True, "output_logits": True},
    "integers": {"decoder_attention_mask": (PADDED != EOS).long()},
    "nothing padded": {"decoder_attention_mask": torch.ones_like(PADDED)},
}


def without_padding(output: ModelOutput, beams: int) -> ModelOutput:
    """Zeros where padding is cached, which nobody looks at. Of beams, generate hands out the first rows."""
    padding = (PADDED == EOS)[torch.arange(len(PADDED)) // beams]
    for layer in output.past_key_values.self_attention_cache.layers:
        for part in (layer.keys, layer.values):
            part[:, :, : PADDED.shape[1]].masked_fill_(padding[:, None, :, None], 0.0)
    return output


@pytest.mark.parametrize("cross_attention", ["stored", "shared"])
@pytest.mark.parametrize("name", list(OPTIONS))
def test_options(name: str, cross_attention: Any, pair: Pair) -> None:
    pair.flash.cross_attention = cross_attention
    outputs = []
    for model in pair:
        torch.manual_seed(3)
        output = model.generate(mel_features(3), **PROMPTS | FORCED | OPTIONS[name])
        beams = OPTIONS[name].get("num_beams", 1)
        outputs.append(without_padding(output, beams) if isinstance(output, ModelOutput) else output)
    assert_same(outputs[1], outputs[0])


def test_padding_matters(pair: Pair) -> None:
    """Seen, it would change what is said."""
    hidden = pair.flash.generate(mel_features(3), **PROMPTS | FORCED)
    seen = pair.flash.generate(mel_features(3), decoder_input_ids=PADDED, **FORCED)
    assert not torch.equal(hidden, seen)


@pytest.mark.parametrize("beams", [1, 3])
def test_own_loop_serves(beams: int, pair: Pair) -> None:
    counts = []
    for model in pair:
        model.generate(mel_features(3), **PROMPTS | FORCED, num_beams=beams)
        with OperationCounter() as counter:
            model.generate(mel_features(3), **PROMPTS | FORCED, num_beams=beams)
        counts.append(counter.count)
    assert counts[1] <= 0.65 * counts[0]


@pytest.mark.parametrize("options", [{}, {"return_timestamps": True}], ids=str)
def test_captured_step(options: dict[str, Any], pair: Pair) -> None:
    """One session hides other padding in the next call; without any, another serves."""
    with cpu_as_cuda() as device:
        for prompts in (PADDED, PADDED.flip(0), PADDED[1:2].expand(3, -1)):
            inputs = {"decoder_input_ids": prompts, "decoder_attention_mask": prompts != EOS}
            tokens = pair.flash.generate(mel_features(3), **inputs, **FORCED, **options)
            assert_same(tokens, pair.original.generate(mel_features(3), **inputs, **FORCED, **options))
    assert len(device.graphs) == 2


def test_half_precision(half: torch.dtype) -> None:
    """Nothing overflows where scores meet the mask, and padding that sees nothing spoils nothing."""
    pair, reference = make_pair(half), make_pair().original
    recorded = {"return_dict_in_generate": True, "output_logits": True, "max_new_tokens": 1}
    features = mel_features(3, dtype=half)
    flash, original = (model.generate(features, **PROMPTS, **recorded).logits[0].to(half) for model in pair)
    expected = reference.generate(features.float(), **PROMPTS, **recorded).logits[0]
    assert_half_close(flash, original, expected)


@pytest.mark.parametrize("kind", ["ends in padding", "wider", "four dimensions"])
def test_other_masks_are_left_to_transformers(kind: str, pair: Pair) -> None:
    mask = PADDED != EOS
    if kind == "ends in padding":
        mask[1, -1] = False
    elif kind == "wider":
        mask = torch.cat([mask, mask[:, -1:]], dim=1)
    else:
        mask = (mask[:, None, None, :] & torch.ones(7, 7, dtype=torch.bool).tril()).expand(3, 1, 7, 7)
    results = []
    for model in pair:
        try:
            results.append(
                model.generate(mel_features(3), decoder_input_ids=PADDED, decoder_attention_mask=mask, max_new_tokens=6)
            )
        except Exception as error:  # whatever the original raises
            results.append((type(error), str(error)))
    assert_same(results[1], results[0])
