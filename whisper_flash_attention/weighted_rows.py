"""Sums of weighted rows of a table: cross-attention of one query at the speed of the memory, on a CPU.

An `EmbeddingBag` with weights reads each row of its table once, scales it and adds it up, in float32 whatever the
dtype of the table. That is a vector-matrix product, and FBGEMM's kernel for it reads bfloat16 at up to 1.7 times the
speed at which oneDNN multiplies one row by it.

Figures are from a 2-core AMD EPYC (Zen 4), torch 2.13, microseconds per call with nothing in the caches:

| weights times values, 1500 frames, heads of 64 | `bmm` | here |
|---|---|---|
| bfloat16, 6 heads, batch 1 / 4 / 16 | 79 / 238 / 882 | 50 / 178 / 661 |
| float32, 8 heads, batch 1 | 147 | 113 |
| float32, 6 heads, batch 1 / 4 / 16 | 106 / 400 / 1572 | 87 / 335 / 1232 |

| in bfloat16 | `baddbmm` | here |
|---|---|---|
| one query, scores to context, d 384 / 512 | 240 / 203 | 128 / 171 |

In float32 the scores gain nothing, and stay with `baddbmm`.
"""

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from . import kernels


class Bags(NamedTuple):
    """Which rows of a table make each sum.

    Attributes:
        indices: `(sums · rows,)` int32, the rows of the first sum, then of the second, and so on.
        offsets: `(sums,)` int32, where each begins.
    """

    indices: Tensor
    offsets: Tensor


def serves(x: Tensor) -> bool:
    """Whether sums weighted by `x` are computed here: where oneDNN serves too, and FBGEMM was built in."""
    return kernels.onednn_serves(x) and has_fbgemm()


@functools.cache
def has_fbgemm() -> bool:
    """Whether PyTorch was built with FBGEMM."""
    # Asked for per layer and token, and torch makes the list anew each time.
    return "fbgemm" in torch.backends.quantized.supported_engines


def consecutive(sums: int, rows: int) -> Bags:
    """Sum each `rows` of a table `(sums · rows, features)` that follow one another."""
    return Bags(torch.arange(sums * rows, dtype=torch.int32), torch.arange(0, sums * rows, rows, dtype=torch.int32))


def sum_rows(table: Tensor, bags: Bags, weights: Tensor) -> Tensor:
    """Add up weighted rows.

    Args:
        table: `(rows, features)`, contiguous.
        bags: The rows of each sum.
        weights: One per index of `bags`, in the dtype of `table`.

    Returns:
        `(sums, features)`.
    """
    # `embedding_bag` itself prepares a backward pass wherever the table belongs to a parameter, without gradients too.
    return torch._embedding_bag_forward_only(table, bags.indices, bags.offsets, per_sample_weights=weights)[0]
