"""Sums of weighted rows of a table: a vector times a matrix at the speed of the memory, on a CPU.

An `EmbeddingBag` with weights reads each row of its table once, scales it and adds it up, in float32 whatever the
dtype of the table. That is a vector-matrix product, and FBGEMM's kernel for it reads bfloat16 at up to 1.7 times the
speed at which oneDNN multiplies one row by it.

Figures are from a 2-core AMD EPYC (Zen 4), torch 2.13, microseconds per call with nothing in the caches, and GB/s
where the machine reads 28:

| call | oneDNN, rows | oneDNN, columns | here |
|---|---|---|---|
| (51864, 384) bfloat16, the vocabulary's projection | 2730 (15) | 2567 (16) | 1570 (25) |
| (51864, 512) bfloat16 | 3414 (16) | 3334 (16) | 1951 (27) |
| (51864, 768) bfloat16 | 5735 (14) | 5638 (14) | 3578 (22) |
| (51865, 1024) bfloat16 | 6684 (16) | 8424 (13) | 5871 (18) |
| (51864, 384) float32 | 3955 (20) | 3589 (22) | 3144 (25) |
| (51865, 512) float32 | 4859 (22) | 6126 (17) | 4706 (23) |
| (51864, 768) float32 | 5694 (28) | 8351 (19) | 6267 (25) |

| weights times values, 1500 frames, heads of 64 | `bmm` | here |
|---|---|---|
| bfloat16, 6 heads, batch 1 / 4 / 16 | 79 / 238 / 882 | 50 / 178 / 661 |
| float32, 8 heads, batch 1 | 147 | 113 |
| float32, 6 heads, batch 1 / 4 / 16 | 106 / 400 / 1572 | 87 / 335 / 1232 |
"""

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from . import kernels

MOST_BAGS = 64
"""Into how many sums a product is cut at most: each core takes some, and each repeats the vector."""


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
    return kernels.onednn_serves(x) and _has_fbgemm()


@functools.cache
def _has_fbgemm() -> bool:
    # Asked for per layer and token, and torch makes the list anew each time.
    return "fbgemm" in torch.backends.quantized.supported_engines


def consecutive(sums: int, rows: int) -> Bags:
    """Sum each `rows` of a table `(sums · rows, features)` that follow one another."""
    return Bags(torch.arange(sums * rows, dtype=torch.int32), torch.arange(0, sums * rows, rows, dtype=torch.int32))


def across(rows: int, columns: int) -> Bags | None:
    """Cut the columns of a matrix `(rows, columns)`, contiguous, into as many sums as divide them evenly.

    Its table is the same memory, `(rows · sums, columns / sums)`.

    Returns:
        The bags; None where no number of sums up to `MOST_BAGS` divides `columns`.
    """
    sums = next((count for count in range(MOST_BAGS, 1, -1) if columns % count == 0), None)
    if sums is None:
        return None
    indices = torch.arange(rows * sums, dtype=torch.int32).view(rows, sums).t().reshape(-1)
    return Bags(indices, torch.arange(0, rows * sums, rows, dtype=torch.int32))


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


def product(x: Tensor, matrix: Tensor, bags: Bags) -> Tensor:
    """Multiply one row by a matrix.

    Args:
        x: `(1, rows)`.
        matrix: `(rows, columns)`, contiguous.
        bags: What `across` gives for it.

    Returns:
        `(1, columns)`.
    """
    sums = bags.offsets.shape[0]
    weights = x.expand(sums, -1).reshape(-1)
    return sum_rows(matrix.view(matrix.shape[0] * sums, -1), bags, weights).view(1, -1)
