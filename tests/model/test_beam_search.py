"""Beams: the original's sequences and scores, in less work; and the cache that Transformers' own loops get."""

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.generation.streamers import BaseStreamer

from .compare import OperationCounter, assert_half_tokens_agree, assert_same, encoder_calls, tensors
from .tiny import EOS, START, Pair, make_pair, mel_features

TOKENS = 24
BEAMS = 5
# One call, one window: without the last, a timestamp among the random tokens starts another window.
FORCED = {
    "num_beams": BEAMS,
    "min_new_tokens": TOKENS,
    "max_new_tokens": TOKENS,
    "force_unique_generate_call": True,
}
RECORDED = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}


class ByteCounter(TorchDispatchMode):
    """Counts the bytes that operations write into new memory: an exact measure of what is copied."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        given = {tensor.untyped_storage().data_ptr() for tensor in tensors([list(args), kwargs or {}])}
        for tensor in tensors(output):
            if tensor.untyped_storage().data_ptr() not in given:
                self.count += tensor.nbytes
        return output


def written_bytes(model: Any, **options: Any) -> int:
    with ByteCounter() as counter:
        model.generate(mel_features(2), **FORCED | options)
    return counter.count


def operations(model: Any, **options: Any) -> int:
    with OperationCounter() as counter:
        model.generate(mel_features(1), **FORCED | options)
    return counter.count


def test_fewer_operations(pair: Pair) -> None:
    pair.flash.generate(mel_features(1), **FORCED)
    assert operations(pair.flash) <= 0.6 * operations(pair.original)
    assert operations(pair.flash, fast_decoding=False) > 0.7 * operations(pair.original)


def test_cross_keys_are_not_copied(pair: Pair) -> None:
    """They are the larger part of what the original copies at every step."""
    pair.flash.generate(mel_features(1), **FORCED)
    assert written_bytes(pair.flash) <= 0.45 * written_bytes(pair.original)


def frequent_tokens(pair: Pair, features: torch.Tensor, count: int) -> list[int]:
    """What the model says most often: as ends of sequence, beams end at many steps."""
    tokens = pair.original.generate(features, max_new_tokens=24)
    values, counts = tokens[tokens < EOS].unique(return_counts=True)
    return values[counts.argsort(descending=True)[:count]].tolist()


@pytest.mark.parametrize("length_penalty", [1.0, 0.0, -0.7, 2.5])
@pytest.mark.parametrize("early_stopping", [False, True, "never"])
def test_ends(early_stopping: Any, length_penalty: float, pair: Pair) -> None:
    """Beams that end at different steps, by several ends of sequence; everything that is returned."""
    features = mel_features(3, seed=1)
    options = {
        "num_beams": 3,
        "max_new_tokens": 20,
        "eos_token_id": [EOS, *frequent_tokens(pair, features, 2)],
        "early_stopping": early_stopping,
        "length_penalty": length_penalty,
    }
    original, flash = (model.generate(features, **options, **RECORDED) for model in pair)
    assert_same(flash, original)


@pytest.mark.parametrize("allowed", [1, 2, 3])
def test_fewer_tokens_than_beams(allowed: int, pair: Pair) -> None:
    """What must not be said fills the beams then, as in the original."""
    options = {"num_beams": 4, "max_new_tokens": 6}

    def words(row: int, ids: torch.Tensor) -> list[int]:
        return [5 + row, 90, EOS][-allowed:] if ids.shape[-1] > 3 else [5, 6, 7][:allowed]

    for recorded in ({}, RECORDED):
        outputs = [
            model.generate(mel_features(2), prefix_allowed_tokens_fn=words, **options, **recorded) for model in pair
        ]
        assert_same(outputs[1], outputs[0])


@pytest.mark.parametrize("padding", [0, 17, None])
def test_padding(padding: int | None, pair: Pair) -> None:
    """Behind the end of a sequence; 0 is as good as none to the original, which takes the end then."""
    features = mel_features(4, seed=1)
    options = {
        "num_beams": 3,
        "max_new_tokens": 30,
        "pad_token_id": padding,
        "eos_token_id": frequent_tokens(pair, features, 2),
    }
    assert_same(*(model.generate(features, **options) for model in reversed(pair)))


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("prompt", [None, [START, 5, 9, 14]], ids=["no prompt", "prompt"])
def test_shared_cross_attention(prompt: list[int] | None, batch: int, pair: Pair) -> None:
    options: dict[str, Any] = {} if prompt is None else {"decoder_input_ids": torch.tensor([prompt] * batch)}
    pair.flash.cross_attention = "shared"
    features = mel_features(batch)
    assert_same(*(model.generate(features, **FORCED, **options) for model in reversed(pair)))
    assert "states" in pair.flash.attention_backend["cross"]


def test_half_precision(half: torch.dtype) -> None:
    """One beam is greedy search, where near-ties can be told; with more, the scores have to be as close."""
    pair, reference = make_pair(half), make_pair().original
    features = mel_features(4, dtype=half)
    options = {"num_beams": 3, "max_new_tokens": 1, **RECORDED}
    flash, original = (model.generate(features, **options) for model in pair)
    expected = reference.generate(features.float(), **options)
    error = (flash.logits[0] - expected.logits[0]).abs().max()
    own_error = (original.logits[0] - expected.logits[0]).abs().max()
    assert error <= 2 * own_error + 2 * torch.finfo(half).eps * expected.logits[0].abs().max()
    long = {"num_beams": 1, "max_new_tokens": 20}
    tokens = [model.generate(features, **long) for model in pair]
    assert_half_tokens_agree(tokens[1], tokens[0], pair.original, reference, features, [START])


def test_encoder_sees_an_audio_once(pair: Pair) -> None:
    """Not once per beam, and one at a time, whose activations do not set the peak of a batch."""
    with encoder_calls(pair.flash) as calls:
        pair.flash.generate(mel_features(3), **FORCED)
    assert calls == [1, 1, 1]


def test_second_temperature(pair: Pair) -> None:
    """Beams at first, sampling without beams when that is not good enough; the audio is encoded once."""
    options = {
        "num_beams": 3,
        "max_new_tokens": 12,
        "temperature": (0.0, 0.6),
        "logprob_threshold": 1e9,  # never reached: every temperature is tried
        "compression_ratio_threshold": 1.0,
    }
    outputs = []
    for model in pair:
        torch.manual_seed(4)
        outputs.append(model.generate(mel_features(2), **options))
    assert_same(outputs[1], outputs[0])
    with encoder_calls(pair.flash) as calls:
        pair.flash.generate(mel_features(2), **options)
    assert sum(calls) == 2


class Listener(BaseStreamer):
    def __init__(self) -> None:
        self.heard: list[torch.Tensor] = []

    def put(self, value: torch.Tensor) -> None:
        self.heard.append(value.clone())

    def end(self) -> None:
        pass


def test_transformers_loops_write_in_place() -> None:
    """What goes to them, as beams behind a hook do, gets a cache that neither grows by copies nor is sorted whole."""
    pair = make_pair()
    for model in pair:
        model.model.decoder.layers[0].fc1.register_forward_hook(lambda module, args, output: 1.5 * output)
    assert_same(*(model.generate(mel_features(2), **FORCED) for model in reversed(pair)))
    assert written_bytes(pair.flash) <= 0.5 * written_bytes(pair.original)


def test_streamed(pair: Pair) -> None:
    heard, written = [], []
    for model in pair:
        streamer = Listener()
        model.generate(mel_features(1), **FORCED | {"num_beams": 1}, streamer=streamer)
        heard.append(streamer.heard)
        written.append(written_bytes(model, num_beams=1, streamer=Listener()) if model is pair.flash else 0)
    assert len(heard[0]) > TOKENS
    assert_same(heard[1], heard[0])
