"""Half precision on a CPU that has no instructions for it: many rows are computed in float32."""

import pytest
import torch
import torch.nn.functional as F

from whisper_flash_attention import cpu_library, kernels

from .compare import assert_half_close, assert_half_tokens_agree
from .tiny import START, make_pair, mel_features

DTYPES = [torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def no_hardware(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor that multiplies float32 alone, and parts so small that the tests' tensors have several."""
    monkeypatch.setattr(kernels, "_native_half_dtypes", frozenset)
    monkeypatch.setattr(kernels, "_onednn_dtypes", lambda: frozenset({torch.float32}))
    monkeypatch.setattr(kernels, "UPCAST_NUMBERS", 1000)
    monkeypatch.setattr(kernels, "QUERY_CHUNK", 20)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("biased", [True, False])
@torch.no_grad()
def test_a_product(biased: bool, dtype: torch.dtype) -> None:
    """It is rounded once, at its end."""
    x, weight = torch.randn(2, 47, 24).to(dtype), torch.randn(40, 24).to(dtype)
    bias, residual = torch.randn(40).to(dtype) if biased else None, torch.randn(2, 47, 40).to(dtype)
    assert kernels.linear_for(x) is kernels.upcast_linear
    wide = F.linear(x.float(), weight.float(), None if bias is None else bias.float())
    for actual, expected in (
        (kernels.linear(x, weight, bias), wide),
        (kernels.linear(x, weight, bias, gelu=True), F.gelu(wide)),
        (kernels.linear(x, weight, bias, residual=residual), wide + residual.float()),
    ):
        torch.testing.assert_close(actual, expected.to(dtype), rtol=torch.finfo(dtype).eps, atol=1e-5)


@torch.no_grad()
def test_a_few_rows_upcast_no_weight() -> None:
    x = torch.randn(kernels.UPCAST_ROWS - 1, 24, dtype=torch.bfloat16)
    assert kernels.linear_for(x) is kernels.torch_linear


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("frames", [3, 49, 50, 120])
@pytest.mark.parametrize("batched", [True, False])
@torch.no_grad()
def test_a_convolution(batched: bool, frames: int, stride: int, dtype: torch.dtype) -> None:
    """Its parts join without a seam, whatever is left for the last."""
    x, weight = torch.randn(2, 8, frames).to(dtype), torch.randn(40, 8, 3).to(dtype)
    x, bias = x if batched else x[0], torch.randn(40).to(dtype)
    expected = F.conv1d(x.float(), weight.float(), bias.float(), stride, padding=1).to(dtype)
    actual = kernels.upcast_convolution(x, weight, bias, stride, 1)
    torch.testing.assert_close(actual, expected, rtol=torch.finfo(dtype).eps, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@torch.no_grad()
def test_the_encoder_errs_no_more_than_the_original(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    pair, features = make_pair(dtype), mel_features(3)
    reference = make_pair().original.model.encoder(features)[0]
    convolutions = []
    convolve = kernels.upcast_convolution
    monkeypatch.setattr(kernels, "upcast_convolution", lambda *args: convolutions.append(args) or convolve(*args))
    flash, original = (model.model.encoder(features.to(dtype))[0] for model in (pair.flash, pair.original))
    assert len(convolutions) == 2
    assert_half_close(flash, original, reference)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@torch.no_grad()
def test_features_of_another_dtype_than_the_model_raise(dtype: torch.dtype) -> None:
    for model in make_pair():
        with pytest.raises(RuntimeError):
            model.model.encoder(mel_features(1, dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_generate(dtype: torch.dtype) -> None:
    pair, features = make_pair(dtype), mel_features(2, dtype=dtype)
    flash, original = (model.generate(features, max_new_tokens=6, min_new_tokens=6) for model in pair)
    assert_half_tokens_agree(flash, original, pair.original, make_pair().original, features, [START])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_long_prompt(dtype: torch.dtype) -> None:
    """It goes through the compiled step however long it is, where that serves."""
    pair, features = make_pair(dtype), mel_features(2)
    prompt = torch.randint(0, 200, (2, 45), generator=torch.Generator().manual_seed(0))
    prompt[:, 0] = START
    options = {"decoder_input_ids": prompt, "max_new_tokens": 1, "return_dict_in_generate": True, "output_logits": True}
    flash, original = (model.generate(features.to(dtype), **options).logits[0] for model in pair)
    reference = make_pair().original.generate(features, **options).logits[0]
    assert_half_close(flash, original, reference)
    if cpu_library.why_not() is None:
        assert pair.flash.attention_backend["step"].startswith("compiled")


def test_gradients_flow_as_ever() -> None:
    pair = make_pair(torch.bfloat16).train()
    labels = torch.randint(0, 200, (1, 5), generator=torch.Generator().manual_seed(0))
    losses = [model(mel_features(1, dtype=torch.bfloat16), labels=labels).loss for model in pair]
    for loss in losses:
        loss.backward()
    assert torch.equal(*losses)
    gradients = [model.model.encoder.conv1.weight.grad for model in pair]
    torch.testing.assert_close(*gradients)
