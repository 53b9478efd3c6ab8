"""Fixed work that is timed around each flash round of ``generate`` on a CPU, so that two runs can be compared.

The control alone does not take all of the machine's drift out of a comparison. A shared machine's memory bandwidth and
its clocks drift apart, and flash, whose decoding reads weights at nearly all of the bandwidth, follows the memory more
than the original does. So both are measured too, by work that no code under test can change: float32 whatever the
case's dtype, PyTorch's public operators, buffers of its own. ``regression/statistics.py`` has the formula.

Measured on a shared 2-core AMD EPYC over 16 processes of unchanged code (tiny.en ``single``, about 30 pairs each): the
median logarithm of control over flash varied by 2.0 % from process to process, the one of the geometric mean of
control, products and rows over flash by 1.6 %; of flash slowed by 5 %, two runs showed it in 40 % of comparisons rather
than in 17 %.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

# Another one for any other work: readings compare with those of the same version alone.
VERSION = 1
# On those two cores products take about 24 ms, rows 20 ms.
PRODUCTS, PRODUCT_SIZE = 2, 1024
# 100 MB, more than any cache holds; summed up as decoding reads the vocabulary's weights, row by row.
ROWS, ROW_COUNT, ROW_LENGTH = 5, 384, 65536


class Reading(NamedTuple):
    """The seconds of both parts: bound by arithmetic, and by the memory."""

    products: float
    rows: float


class Yardstick:
    """The work and its buffers, 113 MB while it is alive."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)

        def noise(*shape: int) -> torch.Tensor:
            return torch.rand(shape, generator=generator, dtype=torch.float32)

        self._factors = noise(PRODUCT_SIZE, PRODUCT_SIZE), noise(PRODUCT_SIZE, PRODUCT_SIZE)
        self._columns, self._vector = noise(ROW_COUNT, ROW_LENGTH).t(), noise(ROW_COUNT)
        # What is written to is kept: no allocator's state is in the times.
        self._product, self._sum = noise(PRODUCT_SIZE, PRODUCT_SIZE), noise(ROW_LENGTH)

    @torch.no_grad()
    def measure(self) -> Reading:
        """Do the work once."""
        start = time.perf_counter()
        for _ in range(PRODUCTS):
            torch.matmul(*self._factors, out=self._product)
        middle = time.perf_counter()
        for _ in range(ROWS):
            torch.mv(self._columns, self._vector, out=self._sum)
        return Reading(middle - start, time.perf_counter() - middle)


Measure = Callable[[], Reading]


def make_record(readings: Sequence[tuple[Reading, Reading]]) -> dict[str, Any]:
    """The record for the key ``yardstick``: of each round the mean of the readings right before and right after it."""
    means = [[sum(part) / 2 for part in zip(*around, strict=True)] for around in readings]
    parts = zip(*means, strict=True)
    return {"version": VERSION, "rounds_seconds": dict(zip(Reading._fields, map(list, parts), strict=True))}
