"""xFormers' memory-efficient attention, where it can be had.

xFormers has no CPU kernel, and a wheel built for another CUDA imports but refuses every call. Both are found out
once, by a call with a few numbers, and said in one warning.
"""

import functools
import importlib
import warnings
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

INSTALL_HINT = (
    "install the tested pair with `pip install -c constraints/cuda.txt torch xformers` "
    "(xFormers' wheel for CUDA 12 also needs `nvidia-cuda-runtime-cu12` on the library path)"
)


class Ops(NamedTuple):
    """Where the attention lives.

    Attributes:
        attention: Module with `memory_efficient_attention`.
        biases: Module with the mask objects.
    """

    attention: ModuleType
    biases: ModuleType


LOCATIONS = (
    ("xformers.ops", "xformers.ops.fmha.attn_bias"),
    ("mslk.attention.fmha", "mslk.attention.fmha.attn_bias"),
)
"""xFormers, and the package that its attention is moving to: module of the attention, module of the masks."""


@functools.cache
def load(device_type: str) -> Ops | None:
    """Import the attention and try it, or warn once why it cannot serve and return None.

    Args:
        device_type: `"cuda"`; anything else has no kernel and needs no warning.
    """
    if device_type != "cuda":
        return None
    reasons = []
    for name, biases in LOCATIONS:
        try:
            ops = Ops(importlib.import_module(name), importlib.import_module(biases))
            probe = torch.zeros(1, 8, 1, 64, dtype=torch.float16, device=device_type)
            ops.attention.memory_efficient_attention(probe, probe, probe)
        except Exception as error:  # a broken wheel raises anything from ImportError to OSError and RuntimeError
            reasons.append(f"{name}: {(str(error).strip() or repr(error)).splitlines()[0]}")
        else:
            return ops
    warnings.warn(
        f"xFormers' attention cannot be used ({'; '.join(reasons)}); PyTorch's fused kernels serve instead. "
        f"To use it, {INSTALL_HINT}.",
        RuntimeWarning,
        stacklevel=2,
    )
    return None


def attend(query: Tensor, key: Tensor, value: Tensor, *, causal: bool, dropout: float, scale: float) -> Tensor | None:
    """Attention by xFormers, or None where it has no kernel for the call.

    Args:
        query: `(batch, heads, queries, head_dim)`.
        key: `(batch, heads, keys, head_dim)`.
        value: `(batch, heads, keys, head_dim)`.
        causal: Whether query i of the last ones sees only the keys up to its own.
        dropout: Probability of dropping a weight.
        scale: Factor of the scores.

    Returns:
        `(batch, heads, queries, head_dim)`.
    """
    ops = load(query.device.type)
    if ops is None:
        return None
    # xFormers has the heads behind the positions.
    by_position = (tensor.transpose(1, 2) for tensor in (query, key, value))
    bias = causal_bias(ops, query.shape[2], key.shape[2]) if causal else None
    try:
        out: Tensor = ops.attention.memory_efficient_attention(*by_position, attn_bias=bias, p=dropout, scale=scale)
    except NotImplementedError:  # its word for "no kernel takes these inputs"
        say_no_kernel(query.shape[-1], query.dtype)
        return None
    return out.transpose(1, 2)


@functools.cache
def say_no_kernel(head_dim: int, dtype: torch.dtype) -> None:
    """Warn, once for each kind of call, that xFormers cannot serve it."""
    warnings.warn(
        f"xFormers has no attention kernel for heads of {head_dim} features in {dtype}; "
        "PyTorch's fused kernels serve such calls.",
        RuntimeWarning,
        stacklevel=2,
    )


def causal_bias(ops: Ops, queries: int, keys: int) -> Any | None:
    """Choose the mask object of a causal call.

    None for one query, which sees every key. Bottom-right where the cache is longer than the queries: the plain
    triangular mask is aligned top-left, and would let a query behind a cache see the first key alone.
    """
    if queries == 1:
        return None
    if queries == keys:
        return ops.biases.LowerTriangularMask()
    return ops.biases.LowerTriangularFromBottomRightMask()
