"""Statistics of paired rounds: the speed-up of flash over its control, with an interval. Imports no torch."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

CONFIDENCE = 0.95
RESAMPLES = 2000
SEED = 0


class Estimate(NamedTuple):
    """A median with its interval; without one (``None``) where a single pair gives none."""

    median: float
    low: float | None
    high: float | None


def paired_ratios(control_seconds: Sequence[float], seconds: Sequence[float]) -> "npt.NDArray[np.float64]":
    """Control over subject, pair by pair: above 1 where the subject is faster."""
    import numpy as np

    if len(control_seconds) != len(seconds):
        raise ValueError(f"{len(control_seconds)} control rounds cannot pair with {len(seconds)} rounds")
    return np.asarray(control_seconds, dtype=np.float64) / np.asarray(seconds, dtype=np.float64)


def estimate_speedup(control_seconds: Sequence[float], seconds: Sequence[float]) -> Estimate:
    """Median of the paired ratios and its 95 % interval, a percentile bootstrap with a fixed seed.

    The pair is the unit: both of its rounds saw the same state of the machine.
    """
    import numpy as np
    from scipy.stats import bootstrap

    ratios = paired_ratios(control_seconds, seconds)
    median = float(np.median(ratios))
    if len(ratios) < 2:
        return Estimate(median, None, None)
    interval = bootstrap(
        (ratios,),
        np.median,
        confidence_level=CONFIDENCE,
        n_resamples=RESAMPLES,
        method="percentile",
        rng=np.random.default_rng(SEED),
    ).confidence_interval
    return Estimate(median, float(interval.low), float(interval.high))


def estimate_pooled_speedup(processes: Sequence[tuple[Sequence[float], Sequence[float]]]) -> Estimate:
    """Speed-up over at least two processes of one case, each given as its control's and its own seconds.

    The process is the unit: what is particular to one (where its memory lies, say) moves all of its pairs. Of each
    counts the median of the logarithms of its ratios; the result is their mean with Student's 95 % interval.
    """
    import numpy as np

    medians = [float(np.median(np.log(paired_ratios(*pairs)))) for pairs in processes]
    mean, half_width = student_interval(medians)
    return Estimate(math.exp(mean), math.exp(mean - half_width), math.exp(mean + half_width))


def student_interval(values: Sequence[float]) -> tuple[float, float]:
    """The mean of at least two values and half the width of Student's 95 % interval around it."""
    import numpy as np
    from scipy.stats import t

    error = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return float(np.mean(values)), error * float(t.ppf((1 + CONFIDENCE) / 2, len(values) - 1))


def median_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """The distribution-free 95 % interval of a median: the narrowest pair of order statistics that covers it.

    The number of values below the true median is binomial with p = 1/2 (David and Nagaraja, "Order Statistics", 7.1).
    Fewer than six values have no such interval.
    """
    ordered = sorted(values)
    count = len(ordered)

    def probability(below: int) -> float:  # by logarithms, or thousands of rounds would overflow
        choices = math.lgamma(count + 1) - math.lgamma(below + 1) - math.lgamma(count - below + 1)
        return math.exp(choices - count * math.log(2))

    rank, tail = 0, probability(0)
    while rank < count and 2 * tail <= 1 - CONFIDENCE:
        rank += 1
        tail += probability(rank)
    return (ordered[rank - 1], ordered[count - rank]) if rank else None
