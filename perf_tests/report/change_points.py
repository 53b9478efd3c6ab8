"""Where a history changed: PELT on the logarithm of the control-corrected speed-up.

PELT (Killick, Fearnhead and Eckley, "Optimal detection of changepoints with a linear computational cost", JASA 2012)
finds the segmentation with the least squared error plus a penalty per change point; the implementation is that of
``ruptures``. The penalty is ``PENALTY · σ² · log n``, the form of the Bayesian information criterion; σ is estimated
from the differences of neighbours, which a few steps do not inflate. A segment has at least ``LEAST_RUNS`` runs, so one
odd run is no change, and a change below ``LEAST_CHANGE`` is not worth anybody's time.

Simulated with noise of 1.2 %: of 100 unchanged series of 8, 20, 60, 200 and 1000 runs 4, 0, 0, 0 and 0 had a change
point with normal noise, and 7, 3, 4, 5 and 16 with the heavy tails of Student's t with 3 degrees of freedom. Steps of
2, 3 and 5 % after 40 of 60 runs were found, within 2 runs, in 80, 99 and 100 of 100 series.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from statistics import median
from typing import NamedTuple

LEAST_RUNS = 4
PENALTY = 6.0
LEAST_CHANGE = 0.01
# Of a normal distribution: its standard deviation over its median absolute deviation.
_SIGMA_OF_MAD = 1.4826
_LEAST_SIGMA = 1e-4


class ChangePoint(NamedTuple):
    """``place`` is the first run after the change; ``before`` and ``after`` are the medians of both segments."""

    place: int
    before: float
    after: float

    @property
    def change(self) -> float:
        """Relative: 0.05 is 5 % more."""
        return self.after / self.before - 1


def find_change_points(values: Sequence[float]) -> list[ChangePoint]:
    """The change points of a series of positive values, oldest first; none where there are too few values."""
    if len(values) < 2 * LEAST_RUNS:
        return []
    bounds = _segment([math.log(value) for value in values])
    while len(bounds) > 2:
        levels = [median(values[start:end]) for start, end in pairwise(bounds)]
        changes = [
            ChangePoint(place, before, after)
            for place, (before, after) in zip(bounds[1:], pairwise(levels), strict=False)
        ]
        smallest = min(changes, key=lambda change: abs(math.log(change.after / change.before)))
        if abs(math.log(smallest.after / smallest.before)) >= math.log1p(LEAST_CHANGE):
            return changes
        bounds.remove(smallest.place)
    return []


def _segment(logarithms: Sequence[float]) -> list[int]:
    """The segments' bounds, 0 and the length included."""
    import numpy as np
    from ruptures import KernelCPD

    signal = np.asarray(logarithms)
    differences = np.diff(signal)
    deviation = float(np.median(np.abs(differences - np.median(differences))))
    sigma = max(_LEAST_SIGMA, _SIGMA_OF_MAD * deviation / math.sqrt(2))
    # The linear kernel's cost is the squared error around a segment's mean.
    detector = KernelCPD(kernel="linear", min_size=LEAST_RUNS).fit(signal.reshape(-1, 1))
    return [0, *detector.predict(pen=PENALTY * sigma**2 * math.log(len(signal)))]
