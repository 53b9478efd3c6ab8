"""xFormers where there is none: a stand-in with its interface, and every way in which loading it fails."""

import importlib
import warnings
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from whisper_flash_attention import xformers_backend

from .compare import assert_close, assert_same
from .tiny import Pair, decoder_tokens, mel_features


class LowerTriangularMask:
    """Aligned top-left, as xFormers' is."""

    def mask(self, queries: int, keys: int) -> torch.Tensor:
        return torch.ones(queries, keys, dtype=torch.bool).tril()


class LowerTriangularFromBottomRightMask:
    def mask(self, queries: int, keys: int) -> torch.Tensor:
        return torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)


@pytest.fixture
def ops(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Serve every call by a stand-in; returns the list of the biases that it was called with."""
    seen: list[str] = []

    def memory_efficient_attention(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_bias: Any = None,
        p: float = 0.0,
        scale: float | None = None,
    ) -> torch.Tensor:
        if query.shape[-1] % 8:
            raise NotImplementedError("No operator found for `memory_efficient_attention_forward`")
        seen.append(type(attn_bias).__name__)
        mask = None if attn_bias is None else attn_bias.mask(query.shape[1], key.shape[1])
        by_head = (tensor.transpose(1, 2) for tensor in (query, key, value))
        return F.scaled_dot_product_attention(*by_head, attn_mask=mask, dropout_p=p, scale=scale).transpose(1, 2)

    attention, biases = ModuleType("attention"), ModuleType("biases")
    attention.memory_efficient_attention = memory_efficient_attention  # type: ignore[attr-defined]
    biases.LowerTriangularMask = LowerTriangularMask  # type: ignore[attr-defined]
    biases.LowerTriangularFromBottomRightMask = LowerTriangularFromBottomRightMask  # type: ignore[attr-defined]
    monkeypatch.setattr(xformers_backend, "load", lambda device_type: xformers_backend.Ops(attention, biases))
    return seen


def test_forward(ops: list[str], pair: Pair) -> None:
    tokens = decoder_tokens(2, 7)
    assert_same(
        pair.flash(mel_features(2), decoder_input_ids=tokens).logits,
        pair.original(mel_features(2), decoder_input_ids=tokens).logits,
    )
    assert set(ops) == {"NoneType", "LowerTriangularMask"}
    assert pair.flash.attention_backend["encoder"] == "xformers"


def test_backward(ops: list[str], pair: Pair) -> None:
    labels = decoder_tokens(2, 7)
    for model in pair:
        model(mel_features(2), labels=labels).loss.backward()
    gradients = [dict(model.named_parameters()) for model in pair]
    for name, parameter in gradients[0].items():
        if parameter.grad is not None:
            assert_close(gradients[1][name].grad, parameter.grad)


@pytest.mark.parametrize("chunks", [[1, 1, 1, 1], [3, 1], [1, 3], [2, 2]], ids=str)
def test_cached_chunks(chunks: list[int], ops: list[str], pair: Pair) -> None:
    """One query behind a cache gets no mask; Transformers brings a mask of its own for several."""
    tokens = decoder_tokens(2, sum(chunks))
    states = pair.original.get_encoder()(mel_features(2))
    whole = pair.original(encoder_outputs=states, decoder_input_ids=tokens).logits
    parts, cache = [], None
    for part in tokens.split(chunks, dim=1):
        output = pair.flash(encoder_outputs=states, decoder_input_ids=part, past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        parts.append(output.logits)
    assert_same(torch.cat(parts, dim=1), whole)


def test_padding_mask(ops: list[str], pair: Pair) -> None:
    tokens = decoder_tokens(2, 6)
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
    calls = [model(mel_features(2), decoder_input_ids=tokens, decoder_attention_mask=mask).logits for model in pair]
    assert_same(calls[1][mask.bool()], calls[0][mask.bool()])


def test_mask_objects(ops: list[str]) -> None:
    loaded = xformers_backend.load("cuda")
    assert loaded is not None
    assert xformers_backend.causal_bias(loaded, 1, 9) is None
    assert isinstance(xformers_backend.causal_bias(loaded, 9, 9), LowerTriangularMask)
    assert isinstance(xformers_backend.causal_bias(loaded, 4, 9), LowerTriangularFromBottomRightMask)


def test_head_size_without_kernel(ops: list[str]) -> None:
    """Falls back, and says so once."""
    query, key, value = torch.randn(3, 1, 2, 5, 20)
    xformers_backend.say_no_kernel.cache_clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        answers = [xformers_backend.attend(query, key, value, causal=True, dropout=0.0, scale=1.0) for _ in range(3)]
    assert answers == [None] * 3
    assert ["heads of 20 features in torch.float32" in str(warning.message) for warning in caught] == [True]
    assert not ops


@pytest.mark.parametrize(
    "error",
    [
        ImportError("No module named 'xformers'"),
        OSError("libcudart.so.12: cannot open shared object file"),
        RuntimeError(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_broken_installation_is_said_once(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> ModuleType:
        raise error

    monkeypatch.setattr(importlib, "import_module", broken)
    xformers_backend.load.cache_clear()
    try:
        with pytest.warns(RuntimeWarning, match="constraints/cuda.txt") as caught:
            assert xformers_backend.load("cuda") is None
        assert len(caught) == 1
        assert (str(error) or type(error).__name__) in str(caught[0].message)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert xformers_backend.load("cuda") is None
    finally:
        xformers_backend.load.cache_clear()
