"""What "the same as the original" means: for numbers, in half precision, for whatever generate returns."""

import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Cache, EncoderDecoderCache

# Absolute and relative, for values that went through some layers in float32 by another order of summation.
FLOAT32_TOLERANCE = 2e-4
EXACT = 0.0


def assert_close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float = FLOAT32_TOLERANCE) -> None:
    """Compare shape, dtype and values; infinities and NaNs have to be in the same places."""
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance, equal_nan=True)


def assert_half_close(flash: torch.Tensor, original: torch.Tensor, reference: torch.Tensor) -> None:
    """In half precision: at most twice the original's own error against float32, and a small floor.

    The floor is two roundings of the largest value, for where the original happens to be exact.
    """
    assert flash.dtype == original.dtype
    assert flash.shape == original.shape == reference.shape
    floor = 2 * torch.finfo(flash.dtype).eps * reference.abs().max().item()
    flash_error = (flash.float() - reference).abs().max().item()
    original_error = (original.float() - reference).abs().max().item()
    assert flash_error <= 2 * original_error + floor, (
        f"error {flash_error:.3g} against float32, the original's is {original_error:.3g} (floor {floor:.3g})"
    )


def assert_same(actual: Any, expected: Any, tolerance: float = FLOAT32_TOLERANCE, path: str = "output") -> None:
    """Compare nested outputs: tensors, tuples, dictionaries, model outputs, caches. Integers are exact."""
    if isinstance(expected, torch.Tensor):
        assert isinstance(actual, torch.Tensor), f"{path}: {type(actual).__name__} for a tensor"
        try:
            assert_close(actual, expected, tolerance if expected.is_floating_point() else EXACT)
        except AssertionError as error:
            raise AssertionError(f"{path}: {error}\n{actual}\n{expected}") from None
    elif isinstance(expected, Cache):
        assert_same(cache_tensors(actual), cache_tensors(expected), tolerance, path)
    elif isinstance(expected, Mapping):
        assert type(actual) is type(expected), f"{path}: {type(actual).__name__}, not {type(expected).__name__}"
        assert list(actual) == list(expected), f"{path}: keys {list(actual)}, not {list(expected)}"
        for key in expected:
            assert_same(actual[key], expected[key], tolerance, f"{path}.{key}")
    elif isinstance(expected, (tuple, list)):
        assert type(actual) is type(expected), f"{path}: {type(actual).__name__}, not {type(expected).__name__}"
        assert len(actual) == len(expected), f"{path}: {len(actual)} items, not {len(expected)}"
        for index, (one, other) in enumerate(zip(actual, expected, strict=True)):
            assert_same(one, other, tolerance, f"{path}[{index}]")
    elif isinstance(expected, float):
        assert abs(actual - expected) <= tolerance * (1 + abs(expected)), f"{path}: {actual}, not {expected}"
    else:
        assert actual == expected, f"{path}: {actual!r}, not {expected!r}"


def cache_tensors(cache: Cache) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Keys and values of each layer, self-attention's before cross-attention's."""
    if isinstance(cache, EncoderDecoderCache):
        return cache_tensors(cache.self_attention_cache) + cache_tensors(cache.cross_attention_cache)
    return [(layer.keys, layer.values) for layer in cache.layers]


def tensors(value: Any) -> Iterator[torch.Tensor]:
    """Every tensor of a nested output."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from tensors(list(value.values()))
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors(item)


class OperationCounter(TorchDispatchMode):
    """Counts ATen operations: an exact measure of whether a call took the fast way."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def assert_half_tokens_agree(
    flash: torch.Tensor,
    original: torch.Tensor,
    half_model: torch.nn.Module,
    reference_model: torch.nn.Module,
    features: torch.Tensor,
    prompt: list[int],
) -> None:
    """Greedy tokens in half precision: equal up to a near-tie, if they differ at all.

    `flash` and `original` are what generate returned; where a row first differs, flash's candidate may fall behind the
    original's, in the logits of the float32 `reference_model`, by no more than two errors that `assert_half_close`
    allows. It may be any better: then the original was wrong.
    """
    for row in range(original.shape[0]):
        length = min(flash.shape[1], original.shape[1])
        different = (flash[row, :length] != original[row, :length]).nonzero()
        if len(different) == 0:
            continue
        step = int(different[0])
        prefix = torch.cat([torch.tensor(prompt, device=original.device), original[row, :step]])[None]
        one = features[row : row + 1]
        reference = reference_model(one.float(), decoder_input_ids=prefix).logits[0, -1]
        half = half_model(one, decoder_input_ids=prefix).logits[0, -1]
        error = (half.float() - reference).abs().max().item()
        floor = 2 * torch.finfo(half.dtype).eps * reference.abs().max().item()
        behind = (reference[original[row, step]] - reference[flash[row, step]]).item()
        assert behind <= 4 * error + 2 * floor, f"row {row}, step {step}: no near-tie, {behind:.3g} behind"


@contextmanager
def full_precision() -> Iterator[None]:
    """Float32 means float32 in the block, where a GPU may be allowed to round products and convolutions to TF32.

    By hand: pytest would take these switches, which `torch.backends` computes, for attributes to delete.
    """
    switches = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [switch.allow_tf32 for switch in switches]
    try:
        for switch in switches:
            switch.allow_tf32 = False
        yield
    finally:
        for switch, allowed in zip(switches, before, strict=True):
            switch.allow_tf32 = allowed


@contextmanager
def encoder_calls(model: torch.nn.Module) -> Iterator[list[int]]:
    """Yield a list that gets the batch size of each run of the encoder, watched without a hook on it.

    A hook, or a forward of the instance's own, would itself be a reason to leave the fast path.
    """
    encoder_class = type(model.get_encoder())
    forward = encoder_class.forward
    calls: list[int] = []

    @functools.wraps(forward)
    def counting_forward(self: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        calls.append(next(tensors([list(args), kwargs])).shape[0])
        return forward(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoder_class, "forward", counting_forward)
        yield calls
