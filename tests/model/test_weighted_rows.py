"""Sums of weighted rows against the plain product."""

import pytest
import torch

from whisper_flash_attention import weighted_rows

from .compare import assert_close, assert_half_close, assert_same
from .tiny import make_pair, mel_features

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
@pytest.mark.parametrize("columns", [264, 130, 64, 2], ids="{} columns".format)
@torch.no_grad()
def test_product(columns: int, dtype: torch.dtype) -> None:
    x, matrix = torch.randn(1, 48).to(dtype), torch.randn(48, columns).to(dtype)
    bags = weighted_rows.across(48, columns)
    assert bags is not None
    assert_product(weighted_rows.product(x, matrix, bags), x, matrix)


@pytest.mark.parametrize("columns", [263, 1])
def test_columns_that_do_not_divide_have_no_bags(columns: int) -> None:
    assert weighted_rows.across(48, columns) is None


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


def watch(monkeypatch: pytest.MonkeyPatch, name: str) -> list[tuple[object, ...]]:
    """The arguments of each call of a function, which does what it did."""
    calls: list[tuple[object, ...]] = []
    function = getattr(weighted_rows, name)

    def call(*args: object) -> torch.Tensor:
        calls.append(args)
        return function(*args)

    monkeypatch.setattr(weighted_rows, name, call)
    return calls


@pytest.mark.skipif(not served(), reason="oneDNN or FBGEMM is missing here")
@pytest.mark.parametrize("batch", [1, 3])
def test_decoding_takes_them(batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The vocabulary for one row, the cross-attention's context for any batch; the tokens are the original's."""
    pair = make_pair()
    products = watch(monkeypatch, "product")
    sums = watch(monkeypatch, "sum_rows")
    actual = pair.flash.generate(mel_features(batch), max_new_tokens=5, min_new_tokens=5)
    assert_same(actual, pair.original.generate(mel_features(batch), max_new_tokens=5, min_new_tokens=5))
    assert len(products) == (5 if batch == 1 else 0)
    assert len(sums) - len(products) >= 4 * pair.flash.config.decoder_layers
