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

| in bfloat16 | oneDNN, `baddbmm` | here |
|---|---|---|
| the six projections of a layer, d 384 / 512 | 468 / 783 | 327 / 538 |
| cross-attention of one query, scores to context, d 384 / 512 | 240 / 203 | 128 / 171 |

In float32 the six projections gain 15 % at d 384 and nothing at d 512, for two to three more operators each: they stay
with oneDNN, and so do the scores, which gain nothing.
"""

import functools
from typing import NamedTuple, Self

import torch
from torch import Tensor

from . import kernels

VOCABULARY_SUMS, LAYER_SUMS = 64, 4
"""Into how many sums the columns of a matrix are cut at most: each core takes some, and each repeats the row."""


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


def prefers_row_product(weight: Tensor) -> bool:
    """Whether one row is multiplied here by a layer's weight `(out, in)`: in bfloat16 on a CPU."""
    return (
        weight.device.type == "cpu" and weight.dtype == torch.bfloat16 and kernels.has_onednn(weight) and has_fbgemm()
    )


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


@functools.lru_cache(maxsize=16)  # the same for every layer
def _bags_across(rows: int, sums: int) -> Bags:
    """The bags of a matrix of so many rows, each cut into so many parts."""
    indices = torch.arange(rows * sums, dtype=torch.int32).view(rows, sums).t().reshape(-1)
    return Bags(indices, torch.arange(0, rows * sums, rows, dtype=torch.int32))


class RowProduct(NamedTuple):
    """A matrix `(rows, columns)` that one row is multiplied by, its columns cut into sums that cores share.

    Attributes:
        table: `(rows · sums, columns / sums)`, the memory of the matrix.
        bags: Which rows of the table make each sum.
        one: `(1, 1)`, what the row is continued by where the matrix ends with a bias; else None.
    """

    table: Tensor
    bags: Bags
    one: Tensor | None

    @classmethod
    def of(cls, matrix: Tensor, most: int, *, with_bias: bool = False) -> Self | None:
        """Prepare the product with a matrix, or None where no number of sums divides its columns.

        Args:
            matrix: `(rows, columns)`, contiguous.
            most: Into how many sums its columns are cut at most; each repeats the row.
            with_bias: Whether its last row is a bias.
        """
        rows, columns = matrix.shape
        sums = next((count for count in range(most, 1, -1) if columns % count == 0), None)
        if sums is None:
            return None
        one = matrix.new_ones(1, 1) if with_bias else None
        return cls(matrix.view(rows * sums, -1), _bags_across(rows, sums), one)

    def __call__(self, x: Tensor) -> Tensor:
        """Multiply a row `(1, rows)`, or `(1, rows - 1)` before a bias, to `(1, columns)`."""
        sums = self.bags.offsets.shape[0]
        weights = x.expand(sums, -1).reshape(-1) if self.one is None else torch.cat([x, self.one] * sums, 1).view(-1)
        return sum_rows(self.table, self.bags, weights).view(1, -1)
