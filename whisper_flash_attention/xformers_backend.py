"""xFormers' memory-efficient attention, where it can be had.

xFormers has no CPU kernel, and a wheel built for another CUDA imports but refuses every call. Both are found out
once, by a call with a few numbers, and said in one warning.
"""

import functools
import importlib
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

INSTALL_HINT = (
    "install the tested pair with `pip install -c constraints/cuda.txt torch xformers` "
    "(xFormers' wheel for CUDA 12 also needs `nvidia-cuda-runtime-cu12` on the library path)"
)
MODULES = ("xformers.ops", "mslk.attention.fmha")
"""Where the kernels live: xFormers, and the package that its attention is moving to."""


@functools.cache
def load(device_type: str) -> Any | None:
    """Import the module with `memory_efficient_attention`, or warn once why it cannot serve and return None.

    Args:
        device_type: `"cuda"`; anything else has no kernel and needs no warning.
    """
    if device_type != "cuda":
        return None
    reasons = []
    for name in MODULES:
        try:
            module = importlib.import_module(name)
            probe = torch.zeros(1, 8, 1, 64, dtype=torch.float16, device=device_type)
            module.memory_efficient_attention(probe, probe, probe)
        except Exception as error:  # a broken wheel raises anything from ImportError to OSError and RuntimeError
            reasons.append(f"{name}: {str(error).strip().splitlines()[0] if str(error).strip() else repr(error)}")
        else:
            return module
    warnings.warn(
        f"xFormers' attention cannot be used ({'; '.join(reasons)}); PyTorch's fused kernels serve instead. "
        f"To use it, {INSTALL_HINT}.",
        RuntimeWarning,
        stacklevel=2,
    )
    return None


def attention(
    query: Tensor, key: Tensor, value: Tensor, *, causal: bool, dropout: float, scale: float
) -> tuple[Tensor, str] | None:
    """Attention by xFormers, or None where it has no kernel for the call.

    Args:
        query: `(batch, heads, queries, head_dim)`.
        key: `(batch, heads, keys, head_dim)`.
        value: `(batch, heads, keys, head_dim)`.
        causal: Query i of the last ones sees the keys up to its own; the mask is aligned bottom-right, since a
            top-left one would let a cached step see the first key alone.
        dropout: Probability of dropping a weight.
        scale: Factor of the scores.

    Returns:
        `(batch, heads, queries, head_dim)` and the name of the kernel.
    """
    ops = load(query.device.type)
    if ops is None:
        return None
    bias = causal_bias(ops, query.shape[2], key.shape[2]) if causal else None
    attend: Callable[..., Tensor] = ops.memory_efficient_attention
    try:
        out = attend(
            query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), attn_bias=bias, p=dropout, scale=scale
        )
    except NotImplementedError:  # xFormers' word for "no kernel takes these inputs", a head size for one
        return None
    return out.transpose(1, 2), "xformers"


def causal_bias(ops: Any, queries: int, keys: int) -> Any | None:
    """Choose the mask object of a causal call: none for one query, bottom-right where the cache is longer."""
    if queries == 1:
        return None
    biases = importlib.import_module(f"{ops.__name__.removesuffix('.ops')}.ops.fmha.attn_bias") if (
        ops.__name__.startswith("xformers")
    ) else importlib.import_module("mslk.attention.fmha.attn_bias")
    if queries == keys:
        return biases.LowerTriangularMask()
    return biases.LowerTriangularFromBottomRightMask()
