"""The encoder over lent memory: that it computes what the modules do, and where it leaves a call to them."""

from typing import Any

import pytest
import torch
from torch import nn

from whisper_flash_attention import encoder_pass
from whisper_flash_attention.decode_step import project_by_head, project_cross
from whisper_flash_attention.kv_cache import CacheShape, CrossBuffer

from .compare import assert_close, assert_half_close
from .cuda_stand_in import cpu_as_cuda
from .tiny import SOURCE_POSITIONS, Pair, make_pair, mel_features

U = SOURCE_POSITIONS * 64
FFN = 2 * U


def memory(units: float, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.full((int(units * U),), torch.nan, dtype=dtype)


@torch.no_grad()
def run(pair: Pair, features: torch.Tensor, lent: torch.Tensor) -> torch.Tensor:
    encoder = pair.flash.model.encoder
    assert encoder_pass.serves(encoder, features, lent)
    return encoder_pass.run_encoder(encoder, features, lent)


@pytest.mark.parametrize("units", [0, 0.5, 1, 2.5, 4, 9], ids=str)
@pytest.mark.parametrize("positions", [1, 7, 49, 50, 375])
@torch.no_grad()
def test_float32(units: float, positions: int, pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever fits of it, and in however many parts the audio is convolved."""
    monkeypatch.setattr(encoder_pass, "CONVOLVED_POSITIONS", positions)
    features = mel_features(1)
    states = run(pair, features, lent := memory(units))
    assert_close(states, pair.original.model.encoder(features)[0])
    assert states.untyped_storage().data_ptr() != lent.untyped_storage().data_ptr()


@pytest.mark.parametrize(
    "overrides",
    [
        {"encoder_layers": 1, "decoder_layers": 1},
        {"d_model": 60, "encoder_attention_heads": 3, "decoder_attention_heads": 3, "encoder_ffn_dim": 90},
        {"d_model": 20, "encoder_attention_heads": 5, "decoder_attention_heads": 5, "encoder_layers": 5},
        {"max_source_positions": 1},
        {"num_mel_bins": 7, "max_source_positions": 3},
    ],
    ids=str,
)
@torch.no_grad()
def test_odd_dimensions(overrides: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder_pass, "CONVOLVED_POSITIONS", 2)
    pair = make_pair(**overrides)
    config = pair.flash.config
    features = torch.randn(2, config.num_mel_bins, 2 * config.max_source_positions)
    assert_close(run(pair, features, memory(5)), pair.original.model.encoder(features)[0])


@torch.no_grad()
def test_half_precision(half: torch.dtype) -> None:
    pair, features = make_pair(half), mel_features(2, dtype=half)
    expected = make_pair().original.model.encoder(features.float())[0]
    states = run(pair, features, memory(8, half))
    assert_half_close(states, pair.original.model.encoder(features)[0], expected)


@torch.no_grad()
def test_float16_is_clamped() -> None:
    """As Transformers does behind each layer: an infinity would be no number behind the layer norm."""
    pair, features = make_pair(torch.float16), mel_features(1, dtype=torch.float16)
    for model in pair:
        model.model.encoder.layers[-1].fc2.bias.fill_(torch.finfo(torch.float16).max)
    states = run(pair, features, memory(8, torch.float16))
    assert states.isfinite().all()
    assert_close(states, pair.original.model.encoder(features)[0])


def hook(model: nn.Module) -> None:
    model.model.encoder.layers[0].fc1.register_forward_hook(lambda *args: None)


def replace_convolution(model: nn.Module) -> None:
    model.model.encoder.conv2.padding = (2,)


def replace_activation(model: nn.Module) -> None:
    model.model.encoder.layers[1].activation_fn = nn.ReLU()


def replace_linear(model: nn.Module) -> None:
    class Noisy(nn.Linear):
        pass

    model.model.encoder.layers[1].fc2.__class__ = Noisy


def rescale(model: nn.Module) -> None:
    model.model.encoder.layers[1].self_attn.scaling *= 2


def replace_layer(model: nn.Module) -> None:
    class Other(type(model.model.encoder.layers[0])):  # type: ignore[misc]
        pass

    model.model.encoder.layers[1].__class__ = Other


def widen(model: nn.Module) -> None:
    model.model.encoder.layers[1].fc2.double()


def attend_eagerly(model: nn.Module) -> None:
    model.set_attn_implementation("eager")


@pytest.mark.parametrize(
    "change",
    [hook, replace_convolution, replace_activation, replace_linear, rescale, replace_layer, widen, attend_eagerly],
)
def test_what_is_more_than_its_weights_is_called(change: Any, pair: Pair) -> None:
    change(pair.flash)
    with torch.no_grad():
        assert not encoder_pass.serves(pair.flash.model.encoder, mel_features(1), memory(4))


def test_calls_that_are_left_to_the_modules(pair: Pair) -> None:
    encoder, features = pair.flash.model.encoder, mel_features(1)
    assert not encoder_pass.serves(encoder, features, memory(4))  # gradients
    with torch.no_grad():
        assert not encoder_pass.serves(encoder, features, memory(4, torch.float16))
        assert not encoder_pass.serves(encoder, features[..., :-2], memory(4))
        assert not encoder_pass.serves(pair.original.model.encoder, features, memory(4))
        assert encoder_pass.serves(encoder, features, memory(4))


@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_values_by_head(bias: bool, pair: Pair) -> None:
    if not bias:
        for layer in pair.flash.model.decoder.layers:
            layer.encoder_attn.v_proj.bias = None
    weights = pair.flash.decoder_weights()
    shape = CacheShape(layers=2, batch=1, heads=4, head_dim=16, capacity=1, frames=SOURCE_POSITIONS)
    buffer = CrossBuffer.empty(shape, torch.float32, torch.device("cpu"))
    states = torch.randn(1, SOURCE_POSITIONS, 64)
    project_cross(weights, buffer, states, 0)
    for layer, expected in zip(weights.layers, buffer.values, strict=True):
        project_by_head(values := torch.full_like(expected[0], torch.nan), states[0], layer.cross_heads)
        assert_close(values, expected[0])


@pytest.mark.parametrize("batch", [1, 2])
def test_generate(batch: int, pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """One audio is encoded where its keys and values will lie; of more, the first are there before the last."""
    lent: list[int] = []
    run_encoder = encoder_pass.run_encoder

    def watched(encoder: Any, features: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
        lent.append(memory.data_ptr())
        return run_encoder(encoder, features, memory)

    monkeypatch.setattr(encoder_pass, "run_encoder", watched)
    pair.flash.cross_attention = "stored"
    features = mel_features(batch)
    with cpu_as_cuda():
        for _ in range(2):
            tokens = pair.flash.generate(features, max_new_tokens=9)
        session = pair.flash._sessions._idle[-1]  # type: ignore[union-attr]
    assert torch.equal(tokens, pair.original.generate(features, max_new_tokens=9))
    assert lent == ([session.cache.cross_buffer.keys_t.data_ptr()] * 2 if batch == 1 else [])
    assert pair.flash.attention_backend["encoder"] is not None
