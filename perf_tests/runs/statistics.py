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
lies, say, moves all of its rounds. Of each kind of its rounds counts the mean of the faster half: what others do for
less than a round makes rounds slower and none faster, and hits a control and the flash round beside it apart. By how
much flash follows what it is corrected by is not taken for granted then, but measured, as the slope that is common to
both sides (analysis of covariance; Cochran, Biometrics 13, 1957): where neighbours slow the yardstick by 8 %, flash
takes 5 or 6 % longer. Not paired by block: pairing would leave half of the degrees of freedom.

Nothing that scipy or numpy is needed for is imported before it is.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import accumulate, compress, pairwise
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

from perf_tests.common.intervals import CONFIDENCE, RESAMPLES, SEED

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

# The median of n values has a distribution-free 95 % interval from n = 6 on (binomial: 2 · 0.5⁶ < 0.05), and a
# bootstrap of fewer is narrower than it claims.
BOOTSTRAP_PAIRS = 6
# The control's, where there is a yardstick too. Over 30 runs of unchanged code r varied from run to run by 0.70 % with
# a weight of 0, 0.68 % with 1/4, 0.72 % with 1/3, 0.89 % with 1/2 and 1.82 % with 1.
CONTROL_WEIGHT = 1 / 4
# With fewer processes a side, the slope is not measured but 1, as it is for pairs.
SLOPE_PROCESSES = 3
# Sides whose control and yardstick differ by more than chance would have it, so many times of 100, were not measured in
# turn: then it is 1 too, since a slope from within a side, where errors make it less, would explain too little.
SLOPE_CONFIDENCE = 0.99
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
        beside, flash = self._kinds()
        return sum((weight * kind for weight, kind in beside), -flash)

    def of_processes(self) -> "npt.NDArray[np.float64]":
        """Logarithms of what each process took, ``(2, processes)``: what it is corrected by, and flash."""
        import numpy as np

        ends = np.cumsum(self.process_rounds)[:-1]

        def of_faster_halves(kind: "npt.NDArray[np.float64]") -> "npt.NDArray[np.float64]":
            return np.array([_mean_of_lower_half(part) for part in np.split(kind, ends)])

        beside, flash = self._kinds()
        return np.array([sum(weight * of_faster_halves(kind) for weight, kind in beside), of_faster_halves(flash)])

    def _kinds(self) -> "tuple[list[tuple[float, npt.NDArray[np.float64]]], npt.NDArray[np.float64]]":
        """Logarithms of the rounds: of each kind that flash's are corrected by, with its weight, and of flash's."""
        import numpy as np

        control, flash = np.log(self.control_seconds), np.log(self.seconds)
        if self.yardstick is None:
            return [(1.0, control)], flash
        whole = np.log(np.sum([*self.yardstick.seconds.values()], axis=0))
        return [(CONTROL_WEIGHT, control), (1 - CONTROL_WEIGHT, whole)], flash


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
        change, half_width = _between_processes(base.of_processes(), head.of_processes())
        return Change(_relative(change), _relative(change - half_width), _relative(change + half_width))
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


def _between_processes(base: "npt.NDArray[np.float64]", head: "npt.NDArray[np.float64]") -> tuple[float, float]:
    """By how much flash's logarithm grows between two ``of_processes``, and half the width of its 95 % interval."""
    import numpy as np
    from scipy.stats import t, ttest_ind

    counts = [side.shape[1] for side in (base, head)]
    apart, grown = (float(after - before) for before, after in zip(base.mean(axis=1), head.mean(axis=1), strict=True))
    beside, flash = np.concatenate([side - side.mean(axis=1, keepdims=True) for side in (base, head)], axis=1)
    scatter, freedom, share = float(beside @ beside), sum(counts) - 2, sum(1 / count for count in counts)
    farthest = float(t.ppf((1 + SLOPE_CONFIDENCE) / 2, freedom)) * math.sqrt(share * scatter / freedom)
    if min(counts) < SLOPE_PROCESSES or abs(apart) >= farthest:
        first, second = (side[1] - side[0] for side in (base, head))
        if not (np.ptp(first) or np.ptp(second)):
            return grown - apart, 0.0
        interval = ttest_ind(second, first, equal_var=False).confidence_interval(CONFIDENCE)  # Welch's
        return grown - apart, float(interval.high - interval.low) / 2
    # No more than what slows both alike, and no less than what slows one alone.
    slope = min(1.0, max(0.0, float(beside @ flash) / scatter))
    left = flash - slope * beside
    error = math.sqrt(float(left @ left) / (freedom - 1) * (share + apart**2 / scatter))
    return grown - slope * apart, float(t.ppf((1 + CONFIDENCE) / 2, freedom - 1)) * error


def _mean_of_lower_half(values: "npt.NDArray[np.float64]") -> float:
    """Of an odd number the middle one counts by half: a round more or less must not move it."""
    import numpy as np

    return float(np.average(np.sort(values), weights=np.clip(len(values) / 2 - np.arange(len(values)), 0, 1)))


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
