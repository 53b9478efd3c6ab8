"""Statistics of time: how much slower flash became between two runs, corrected by what ran beside it, with an interval.

In each run the unit is the pair: a control round and the flash round right after it saw the same state of the
machine. With ``r = log(control / flash)`` of a pair, the change of flash's corrected time from BASE to HEAD is
``exp(median(r_base) - median(r_head)) - 1``: positive where flash became slower. Logarithms, because a machine's
drift multiplies both rounds.

Not all of it: flash is bound by the memory more than the original is, and on a shared machine bandwidth and clocks
drift apart. Where both runs have the yardstick (``measure/yardstick.py``), a Whisper of fixed code before each flash
round, it stands beside the control: ``r = w · log(control) + (1 - w) · log(yardstick) - log(flash)``. The weights sum
up to 1, so what slows everything alike still cancels, and a slower flash moves ``r`` by just as much as without it.

Where several processes measured each run (``ab``), the unit is the process: what is particular to one, where its memory
lies, say, moves all of its pairs. Of each counts the 20 % trimmed mean of its pairs (Tukey and McLaughlin, 1963), which
varies less from few pairs than the median does, and the change is between the means over the processes, with Welch's
interval. Not paired by block: what two processes of a block share, the machine's drift, is corrected already, and
pairing would leave half of the degrees of freedom.

Nothing that scipy or numpy is needed for is imported before it is.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import accumulate, compress, pairwise
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

from perf_tests.common.intervals import CONFIDENCE, RESAMPLES, SEED, paired_ratios

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

# The median of n values has a distribution-free 95 % interval from n = 6 on (binomial: 2 · 0.5⁶ < 0.05), and a
# bootstrap of fewer is narrower than it claims.
BOOTSTRAP_PAIRS = 6
# The control's, where there is a yardstick too. Over 30 runs of unchanged code r varied from run to run by 0.70 % with
# a weight of 0, 0.68 % with 1/4, 0.72 % with 1/3, 0.89 % with 1/2 and 1.82 % with 1.
CONTROL_WEIGHT = 1 / 4
# Of a process's pairs, so many at either end do not count.
TRIMMED = 0.2
# Numbers in one array of a bootstrap: bounds the memory that a run of very many rounds takes.
_BATCH_NUMBERS = 4_000_000


class Change(NamedTuple):
    """A relative change of time and its 95 % interval; no interval (``None``) where the pairs are too few."""

    change: float
    low: float | None
    high: float | None


class Yardstick(NamedTuple):
    """The yardstick beside each round of a case in one run: the seconds of its parts, by name."""

    version: int
    seconds: Mapping[str, Sequence[float]]


class Rounds(NamedTuple):
    """The rounds of a case in one run, in seconds, each beside a round of its control and, if any, the yardstick.

    ``process_rounds`` says how many of them each process measured, in their order; empty where there was one process.
    """

    control_seconds: Sequence[float]
    seconds: Sequence[float]
    process_rounds: Sequence[int] = ()
    yardstick: Yardstick | None = None

    def only(self, kept: Sequence[bool]) -> "Rounds":
        """Those of the pairs that ``kept`` says; a process that has none of them is left out."""
        yardstick = self.yardstick
        if yardstick is not None:
            parts = {name: [*compress(part, kept)] for name, part in yardstick.seconds.items()}
            yardstick = yardstick._replace(seconds=parts)
        ends = [*accumulate(self.process_rounds, initial=0)]
        counts = (sum(kept[begin:end]) for begin, end in pairwise(ends))
        return Rounds(
            [*compress(self.control_seconds, kept)],
            [*compress(self.seconds, kept)],
            [count for count in counts if count],
            yardstick,
        )

    def logarithms(self) -> "npt.NDArray[np.float64]":
        """``r`` of each pair: by the control, and by the yardstick where there is one."""
        import numpy as np

        by_control = np.log(paired_ratios(self.control_seconds, self.seconds))
        if self.yardstick is None:
            return np.asarray(by_control)
        whole = np.sum([*self.yardstick.seconds.values()], axis=0)
        by_yardstick = np.log(paired_ratios(whole, self.seconds))
        return np.asarray(CONTROL_WEIGHT * by_control + (1 - CONTROL_WEIGHT) * by_yardstick)

    def process_means(self) -> "npt.NDArray[np.float64]":
        """The trimmed mean of each process's logarithms."""
        import numpy as np
        from scipy.stats import trim_mean

        parts = np.split(self.logarithms(), np.cumsum(self.process_rounds)[:-1])
        return np.asarray([trim_mean(part, TRIMMED) for part in parts])


def are_alike(yardsticks: Iterable[Yardstick | None]) -> bool:
    """Whether all runs have the yardstick, and the same work as such."""
    works = {None if each is None else (each.version, frozenset(each.seconds)) for each in yardsticks}
    return len(works) == 1 and None not in works


def corrected_change(base: Rounds, head: Rounds) -> Change:
    """Change of flash's time from ``base`` to ``head``, corrected by the control, and the yardstick if both have it."""
    import numpy as np

    if not are_alike((base.yardstick, head.yardstick)):
        base, head = base._replace(yardstick=None), head._replace(yardstick=None)
    if min(len(base.process_rounds), len(head.process_rounds)) > 1:
        mean, half_width = _between_processes(base.process_means(), head.process_means())
        return Change(_relative(mean), _relative(mean - half_width), _relative(mean + half_width))
    first, second = base.logarithms(), head.logarithms()
    change = _relative(float(np.median(first) - np.median(second)))
    if not separable(len(first), len(second)):
        return Change(change, None, None)
    low, high = _bootstrap(first, second)
    if min(len(first), len(second)) < BOOTSTRAP_PAIRS:
        # So few: only what no pair of the other run contradicts.
        low = min(low, float(first.min() - second.max()))
        high = max(high, float(first.max() - second.min()))
    return Change(change, _relative(low), _relative(high))


def uncorrected_change(base: Sequence[float], head: Sequence[float]) -> float:
    """Relative change of the median round; the machine's drift is in it."""
    return median(head) / median(base) - 1


def separable(base_pairs: int, head_pairs: int) -> bool:
    """Whether so many pairs can show any difference at the 95 % level.

    Were the runs alike, every order of their pairs would be equally likely, so that the two in which all pairs of one
    run come before all of the other's have a probability of ``2 / C(n + m, n)`` (Mann and Whitney, 1947).
    """
    return 2 / math.comb(base_pairs + head_pairs, head_pairs) <= 1 - CONFIDENCE


def _between_processes(first: "npt.NDArray[np.float64]", second: "npt.NDArray[np.float64]") -> tuple[float, float]:
    """The difference of the processes' means, and half the width of its 95 % interval."""
    import numpy as np
    from scipy.stats import ttest_ind

    difference = float(np.mean(first) - np.mean(second))
    if not (np.ptp(first) or np.ptp(second)):
        return difference, 0.0
    interval = ttest_ind(first, second, equal_var=False).confidence_interval(CONFIDENCE)
    return difference, float(interval.high - interval.low) / 2


def _bootstrap(first: "npt.NDArray[np.float64]", second: "npt.NDArray[np.float64]") -> tuple[float, float]:
    """Percentile interval of the difference of medians, runs resampled apart; a fixed seed, so it repeats.

    What ``scipy.stats.bootstrap`` returns for the sorted values. Hundreds of cases take a fraction of its time: with
    values in order the median of a resample is where the median of its indices is, and these are drawn once.
    """
    import numpy as np

    middles = _resampled_middles(len(first), len(second))
    one, other = (np.sort(values)[middle].mean(axis=0) for values, middle in zip((first, second), middles, strict=True))
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(one - other, (tail, 1 - tail))
    return float(low), float(high)


@lru_cache(maxsize=8)
def _resampled_middles(*counts: int) -> tuple["npt.NDArray[np.int64]", ...]:
    """For so many ordered values, a run each: which are the two middle ones of each resample, ``(2, RESAMPLES)``.

    Of an odd number both are the same one.
    """
    import numpy as np

    rng = np.random.default_rng(SEED)
    batch = max(1, min(RESAMPLES, _BATCH_NUMBERS // max(counts)))
    found: list[list[npt.NDArray[np.int64]]] = [[] for _ in counts]
    for begin in range(0, RESAMPLES, batch):
        for middles, count in zip(found, counts, strict=True):
            drawn = rng.integers(0, count, (min(batch, RESAMPLES - begin), count))
            middle = ((count - 1) // 2, count // 2)
            middles.append(np.partition(drawn, middle, axis=1)[:, middle].T)
    return tuple(np.concatenate(middles, axis=1) for middles in found)


def _relative(difference: float) -> float:
    """From a difference of logarithms to a relative change."""
    return math.expm1(difference)
