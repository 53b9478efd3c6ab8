"""Each kernel against the plain formula."""

import itertools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from whisper_flash_attention import kernels

from .compare import assert_close, assert_half_close

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def numbers(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape).to(dtype)


@pytest.mark.parametrize(("rows", "biased"), list(itertools.product([(1,), (5,), (2, 7)], [False, True])), ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@torch.no_grad()
def test_linear(rows: tuple[int, ...], biased: bool, dtype: torch.dtype) -> None:
    x, weight = numbers(*rows, 24, dtype=dtype), numbers(40, 24, dtype=dtype)
    bias = numbers(40, dtype=dtype) if biased else None
    residual = numbers(*rows, 40, dtype=dtype)
    reference = F.linear(x.float(), weight.float(), None if bias is None else bias.float())
    own = F.linear(x, weight, bias)
    for actual, original, expected in (
        (kernels.linear(x, weight, bias), own, reference),
        (kernels.linear(x, weight, bias, gelu=True), F.gelu(own), F.gelu(reference)),
        (kernels.linear(x, weight, bias, residual=residual), residual + own, residual.float() + reference),
    ):
        if dtype == torch.float32:
            assert_close(actual, expected)
        else:
            assert_half_close(actual, original, expected)


@pytest.mark.parametrize("rides", [True, False])
@torch.no_grad()
def test_gelu_is_the_exact_one(rides: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_gelu_rides", lambda: rides)
    x = torch.linspace(-3, 3, 101)[:, None]
    identity = torch.ones(1, 1)
    exact = 0.5 * x * (1 + torch.erf(x / 2**0.5))
    assert_close(kernels.linear(x, identity, gelu=True), exact, 1e-6)
    assert (F.gelu(x, approximate="tanh") - exact).abs().max() > 1e-5


@pytest.mark.parametrize(
    "product", [kernels.onednn_linear, kernels.upcast_linear], ids=lambda product: product.__name__
)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@torch.no_grad()
def test_mixed_dtypes_are_left_to_pytorch(dtype: torch.dtype, product: Callable[..., torch.Tensor]) -> None:
    """It refuses most, and promotes a residual."""
    x = numbers(40, 24, dtype=dtype)
    for of_weight, of_bias, of_residual in itertools.product(DTYPES, [*DTYPES, None], [*DTYPES, None]):
        if {of_weight, of_bias, of_residual} <= {dtype, None}:
            continue
        weight = numbers(32, 24, dtype=of_weight)
        bias = None if of_bias is None else numbers(32, dtype=of_bias)
        residual = None if of_residual is None else numbers(40, 32, dtype=of_residual)
        try:
            expected = kernels.torch_linear(x, weight, bias, residual=residual)
        except RuntimeError:
            with pytest.raises(RuntimeError, match="same dtype"):
                product(x, weight, bias, residual=residual)
        else:
            torch.testing.assert_close(product(x, weight, bias, residual=residual), expected, rtol=0, atol=0)


def test_linear_keeps_gradients() -> None:
    x = numbers(3, 24).requires_grad_()
    weight = numbers(40, 24).requires_grad_()
    kernels.linear(x, weight, gelu=True).sum().backward()
    assert x.grad is not None
    assert weight.grad is not None


@torch.no_grad()
def test_autocast_is_left_to_pytorch() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert kernels.linear(numbers(3, 24), numbers(40, 24)).dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("queries", [1, kernels.QUERY_CHUNK, kernels.QUERY_CHUNK + 7])
@torch.no_grad()
def test_chunked_attention(queries: int, dtype: torch.dtype) -> None:
    query, key, value = (numbers(2, n, 3, 16, dtype=dtype).transpose(1, 2) for n in (queries, 90, 90))
    reference = F.scaled_dot_product_attention(query.float(), key.float(), value.float(), scale=0.3)
    actual = kernels.chunked_attention(query, key, value, 0.3)
    if dtype == torch.float32:
        assert_close(actual, reference)
        return
    scores = torch.softmax(query @ key.transpose(2, 3) * 0.3, -1)
    assert_half_close(actual, scores @ value, reference)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("batch", "keys"), [(1, 9), (4, 200)])
@pytest.mark.parametrize("queries", [1, 3])
@torch.no_grad()
def test_attend(queries: int, batch: int, keys: int, dtype: torch.dtype) -> None:
    """On either side of where the choice of kernel changes, with a mask and without, from strided buffers."""
    query = numbers(batch, queries, 3, 16, dtype=dtype).transpose(1, 2)
    key, value = numbers(2, batch, 3, keys + 5, 16, dtype=dtype)[:, :, :, :keys]
    blocked = torch.zeros(queries, keys, dtype=dtype)
    blocked[:, keys // 2] = torch.finfo(dtype).min
    for mask in (None, blocked):
        float_mask = None if mask is None else mask.float()
        reference = F.scaled_dot_product_attention(
            query.float(), key.float(), value.float(), attn_mask=float_mask, scale=0.3
        )
        actual = kernels.attend(query, key, value, 0.3, mask)
        if dtype == torch.float32:
            assert_close(actual, reference)
            continue
        scores = query @ key.transpose(2, 3) * 0.3
        original = torch.softmax(scores if mask is None else scores + mask, -1) @ value
        assert_half_close(actual, original, reference)
