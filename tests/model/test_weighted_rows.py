"""Sums of weighted rows against the plain product."""

from typing import Any

import pytest
import torch

from whisper_flash_attention import weighted_rows

from .compare import assert_close, assert_half_close, assert_half_tokens_agree, assert_same
from .tiny import START, make_pair, mel_features

DTYPES = [torch.float32, torch.bfloat16]


@torch.no_grad()
def served() -> bool:
    return weighted_rows.serves(torch.ones(1))


def assert_product(actual: torch.Tensor, x: torch.Tensor, matrix: torch.Tensor) -> None:
    reference = x.float() @ matrix.float()
    if actual.dtype == torch.float32:
        assert_close(actual, reference)
    else:
        assert_half_close(actual, x @ matrix, reference)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@torch.no_grad()
def test_consecutive_rows(dtype: torch.dtype) -> None:
    values, weights = torch.randn(6, 50, 16).to(dtype), torch.softmax(torch.randn(6, 1, 50), -1).to(dtype)
    actual = weighted_rows.sum_rows(values.flatten(0, 1), weighted_rows.consecutive(6, 50), weights.view(-1))
    assert_product(actual.view(6, 1, 16), weights, values)


@torch.no_grad()
def test_gradients_and_autocast_are_left_to_pytorch() -> None:
    x = torch.randn(1, 8)
    assert weighted_rows.serves(x) == ("fbgemm" in torch.backends.quantized.supported_engines)
    with torch.enable_grad():
        assert not weighted_rows.serves(x)
    with torch.autocast("cpu"):
        assert not weighted_rows.serves(x)


def watch(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The tables of the sums that are made from here on."""
    tables: list[tuple[int, ...]] = []
    sum_rows = weighted_rows.sum_rows

    def call(table: torch.Tensor, *args: Any) -> torch.Tensor:
        tables.append(tuple(table.shape))
        return sum_rows(table, *args)

    monkeypatch.setattr(weighted_rows, "sum_rows", call)
    return tables


@pytest.mark.skipif(not served(), reason="oneDNN or FBGEMM is missing here")
@pytest.mark.parametrize("batch", [1, 3])
def test_decoding_takes_them(batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One per layer and token, for the cross-attention's context; the tokens are the original's."""
    pair = make_pair()
    pair.flash.cross_attention = "stored"
    tables = watch(monkeypatch)
    actual = pair.flash.generate(mel_features(batch), max_new_tokens=5, min_new_tokens=5)
    assert_same(actual, pair.original.generate(mel_features(batch), max_new_tokens=5, min_new_tokens=5))
    assert len(tables) >= 4 * pair.flash.config.decoder_layers


@pytest.mark.skipif(not served() or not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="no fast bfloat16 here")
def test_scores_and_context_in_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens as half precision allows."""
    pair, reference, features = make_pair(torch.bfloat16), make_pair().original, mel_features(1, dtype=torch.bfloat16)
    tables = watch(monkeypatch)
    options = {"max_new_tokens": 4, "min_new_tokens": 4}
    flash = pair.flash.generate(features, **options)
    # The prompt has two tokens, and is no single query.
    assert len(tables) == 3 * 2 * pair.flash.config.decoder_layers
    assert_half_tokens_agree(
        flash, pair.original.generate(features, **options), pair.original, reference, features, [START]
    )


@pytest.mark.parametrize(("new_tokens", "cross"), [(30, "encoder states"), (31, "stored keys")])
def test_short_requests_do_not_store_keys_and_values(new_tokens: int, cross: str) -> None:
    """In float32 on a CPU with oneDNN, where projecting them takes longer than they would save."""
    pair = make_pair()
    options = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens}  # behind two of the prompt
    outputs = [model.generate(mel_features(1), **options) for model in pair]
    assert_same(outputs[1], outputs[0])
    if served():
        assert pair.flash.attention_backend["cross"] == f"matmul over {cross}"
