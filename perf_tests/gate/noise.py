"""A case's noise on a machine, from runs of unchanged code: what its calibration holds.

Every two of the runs are compared as ``compare`` would, in either order. ``noise`` is what 98 of 100 of these changes
stay below, so that unchanged code is slower by more in one comparison of a hundred. A slowdown moves all of a pair's
figures, as logarithms, by the same amount; so for each two runs the smallest one that would have been found is known
without slowing anything, and ``smallest_visible_change`` is what 95 of 100 of them stay below.

The noise is smaller where all of the runs have the yardstick; ``yardstick`` says so, since it holds for no comparison
without one.
"""

import math
from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

from perf_tests.runs.statistics import Rounds, are_alike, corrected_change

from .thresholds import DEFAULTS, TIME

NOISE_SHARE = 0.98
POWER = 0.95
# With fewer, the pairs of runs are too few for percentiles: 6 runs make 30.
LEAST_RUNS = 6


class CaseNoise(NamedTuple):
    """A case's noise, relative, from ``runs`` runs, and the smallest slowdown that is found with 95 % power.

    ``yardstick`` says whether the runs were compared by it too, or by the control alone.
    """

    runs: int
    noise: float
    smallest_visible_change: float
    yardstick: bool


class _Compared(NamedTuple):
    """The change of one run to another, and its interval's lower end, as logarithms."""

    change: float
    low: float


def measure_noise(runs: Sequence[Rounds]) -> CaseNoise:
    """The noise of a case that was measured with a control in each of ``runs``, by the default thresholds.

    Raises:
        ValueError: the runs are fewer than ``LEAST_RUNS``, or their rounds too few for an interval.
    """
    import numpy as np

    if len(runs) < LEAST_RUNS:
        raise ValueError(f"{len(runs)} runs; at least {LEAST_RUNS} are needed")
    yardstick = are_alike(run.yardstick for run in runs)
    if not yardstick:
        runs = [run._replace(yardstick=None) for run in runs]
    compared = [both for one, other in combinations(runs, 2) for both in _compare(one, other)]
    noise = math.expm1(float(np.quantile([abs(each.change) for each in compared], NOISE_SHARE)))
    allowed = math.log1p(max(noise, DEFAULTS[TIME]))
    visible = [max(allowed - each.change, -each.low) for each in compared]
    return CaseNoise(len(runs), noise, math.expm1(float(np.quantile(visible, POWER))), yardstick)


def _compare(one: Rounds, other: Rounds) -> tuple[_Compared, _Compared]:
    """Both orders of two runs: turned round, a change and its interval change their sign."""
    change = corrected_change(one, other)
    if change.low is None or change.high is None:
        raise ValueError(f"{len(one.seconds)} and {len(other.seconds)} pairs are too few for an interval")
    middle, low, high = (math.log1p(value) for value in (change.change, change.low, change.high))
    return _Compared(middle, low), _Compared(-middle, -high)
