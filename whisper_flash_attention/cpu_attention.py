"""Compiled attention: the encoder's, of many queries over many keys, on a CPU.

Milliseconds of a layer's, 1500 frames and heads of 64, by PyTorch's fused kernel / by this, on two cores of an Ice Lake
Xeon, whose products reach 225 GFLOP/s in float32, and 130 held to AVX2:

| | 6 heads | 8 heads |
|---|---|---|
| AVX-512, float32 | 27 / 20 | 34 / 26 |
| AVX-512, bfloat16 | 29 / 21 | 35 / 25 |
| held to AVX2, float32 | 37 / 31 | 47 / 41 |
| held to AVX2, bfloat16 | 40 / 32 | 53 / 47 |

Where the processor has instructions for bfloat16, PyTorch's kernels use them and this serves float32 alone.
"""

import ctypes
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula, sdpa_flop_count

from . import cpu_library, kernels
from .cpu_library import DTYPES
from .plain import is_plain_inference

FEWEST_QUERIES = 128
"""From so many queries on this attention serves: fewer of one audio are too few units of work for several threads."""


class _View(ctypes.Structure):
    _fields_ = (("data", ctypes.c_void_p), *((name, ctypes.c_int64) for name in ("batch", "head", "row")))


class _Attention(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("dtype", "batch", "heads", "queries", "keys", "head_dim")),
        *((name, _View) for name in ("query", "key", "value")),
        ("out", ctypes.c_void_p),
        ("scale", ctypes.c_double),
        ("scratch", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("scratch_size", "threads", "level")),
    )


def attend(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor | None:
    """Exact attention without mask, where the compiled library serves it.

    Args:
        query: `(batch, heads, queries, head_dim)`, any strides but the last.
        key: `(batch, heads, keys, head_dim)`, so too.
        value: `(batch, heads, keys, head_dim)`, so too.
        scale: Factor of the scores.

    Returns:
        `(batch, heads, queries, head_dim)`, of which each query's heads lie side by side; None where it does not serve.
    """
    if query.shape[2] < FEWEST_QUERIES or not all(is_plain_inference(each) for each in (query, key, value)):
        return None
    is_wide = query.dtype == torch.float32 or kernels.upcasts(query)
    shape = (*query.shape[:2], key.shape[2], query.shape[3])
    if not is_wide or key.shape != shape or value.shape != shape or not key.numel():
        return None
    if not all(_is_readable(each, query.dtype) for each in (query, key, value)):
        return None
    # The portable level has not the registers for it.
    if cpu_library.library() is None or not cpu_library.level():
        return None
    return _operator(query, key, value, scale)  # type: ignore[no-any-return]


def _is_readable(tensor: Tensor, dtype: torch.dtype) -> bool:
    is_stored = tensor.layout is torch.strided and not tensor.is_neg()
    return is_stored and tensor.dtype == dtype and tensor.stride(-1) == 1 and tensor.data_ptr() != 0


def run(query: Tensor, key: Tensor, value: Tensor, scale: float, *, threads: int, level: int) -> Tensor:
    """What the operator does, by so many threads at a level of `cpu_library.LEVELS`."""
    library = cpu_library.library()
    assert library is not None
    batch, heads, queries, head_dim = query.shape
    out = query.new_empty(batch, queries, heads, head_dim)
    views = (_View(each.data_ptr(), *each.stride()[:3]) for each in (query, key, value))
    sizes = (batch, heads, queries, key.shape[2], head_dim)
    call = _Attention(DTYPES[query.dtype], *sizes, *views, out.data_ptr(), scale, threads=threads, level=level)
    scratch = torch.empty(library.wfa_attention_scratch_size(ctypes.byref(call)))
    call.scratch, call.scratch_size = scratch.data_ptr(), len(scratch)
    cpu_library.check(library.wfa_attend(ctypes.byref(call)), "The compiled attention")
    return out.transpose(1, 2)


def _run(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    return run(query, key, value, scale, threads=torch.get_num_threads(), level=cpu_library.level())


def _fake(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    batch, heads, queries, head_dim = query.shape
    return query.new_empty(batch, queries, heads, head_dim).transpose(1, 2)


def _flops(query: torch.Size, key: torch.Size, value: torch.Size, *args: Any, **kwargs: Any) -> int:
    return int(sdpa_flop_count(query, key, value))


_library = torch.library.Library(__package__, "FRAGMENT")
_library.define("attention(Tensor query, Tensor key, Tensor value, float scale) -> Tensor")
_library.impl("attention", _run, "CPU")
_library.impl("attention", _fake, "Meta")
_operator = getattr(torch.ops, __package__).attention.default
register_flop_formula(_operator.overloadpacket)(_flops)
