"""How many rounds a case needs, from a few pilot pairs: pedantic must be told before it starts.

The speed-up is a median of paired ratios. The median of ``n`` values of a normal distribution with standard deviation
``σ`` has a standard error of ``sqrt(π / 2) · σ / sqrt(n)`` (Kendall and Stuart, The Advanced Theory of Statistics,
vol. 1, ch. 10), so that its 95 % interval is within ``± d`` from ``n = (1.96 · sqrt(π / 2) · σ / d)²`` on, with ratios
and ``d`` as logarithms. From few pairs ``σ`` is known badly: the upper end of its one-sided 80 % confidence interval is
taken, so that four cases of five need no more than what is chosen.
"""

import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

from perf_tests.common.intervals import CONFIDENCE, paired_ratios
from perf_tests.matrix.plan import Aim

from .moving import PAIRS_PER_PLACE, stay
from .time import seconds_of
from .yardstick import Measure

PILOT_PAIRS = 8
# Of a case's time budget, about so much goes to the pilot at most: it leaves no rounds behind.
PILOT_SHARE = 0.1
SPREAD_CONFIDENCE = 0.8


class Pilot(NamedTuple):
    """The pilot's pairs, in seconds, what the yardstick takes beside each, and each move of the models.

    The first pair warms up: it tells what a pair takes, and nothing of the spread.
    """

    control_seconds: list[float]
    seconds: list[float]
    yardstick_seconds: list[float]
    moving_seconds: list[float]

    @property
    def spent(self) -> float:
        """All of it, in seconds."""
        return math.fsum(itertools.chain(*self))

    @property
    def pair_seconds(self) -> float:
        """What one pair takes, with all that is beside it and its part of a move."""
        moving = math.fsum(self.moving_seconds)
        part = moving / len(self.moving_seconds) / PAIRS_PER_PLACE if self.moving_seconds else 0.0
        return (self.spent - moving) / len(self.seconds) + part


def choose_rounds(
    run: Callable[[], None],
    control: Callable[[], None],
    aim: Aim,
    yardstick: Measure | None = None,
    move: Callable[[], None] = stay,
) -> int:
    """Run a pilot and choose the number of rounds; the pilot ends early where the budget allows no choice.

    ``move`` is called before the first of the pairs of each place. The budget is of wall time, and so is the pilot,
    whatever clock the rounds are timed by.
    """
    pilot = Pilot([], [], [], [])
    while len(pilot.seconds) <= PILOT_PAIRS:
        if len(pilot.seconds) % PAIRS_PER_PLACE == 0:
            pilot.moving_seconds.append(seconds_of(move))
        pilot.control_seconds.append(seconds_of(control))
        if yardstick is not None:
            pilot.yardstick_seconds.append(seconds_of(yardstick))
        pilot.seconds.append(seconds_of(run))
        if pilot.pair_seconds * aim.least >= aim.budget_seconds:
            return aim.least
        if pilot.spent >= PILOT_SHARE * aim.budget_seconds:
            break
    return rounds_for(pilot, aim)


def rounds_for(pilot: Pilot, aim: Aim) -> int:
    """The number of rounds that ``pilot`` tells: what ``aim`` needs and can afford."""
    affordable = int((aim.budget_seconds - pilot.spent) / pilot.pair_seconds)
    return int(max(aim.least, min(affordable, max(aim.enough, _needed(pilot, aim.precision)))))


def _needed(pilot: Pilot, precision: float) -> float:
    import numpy as np
    from scipy.stats import chi2, norm

    logarithms = np.log(paired_ratios(pilot.control_seconds, pilot.seconds))[1:]
    freedom = len(logarithms) - 1
    if freedom < 1:
        return math.inf
    spread = float(logarithms.std(ddof=1)) * math.sqrt(freedom / float(chi2.ppf(1 - SPREAD_CONFIDENCE, freedom)))
    quantile = float(norm.ppf((1 + CONFIDENCE) / 2))
    return math.ceil((quantile * math.sqrt(math.pi / 2) * spread / math.log1p(precision)) ** 2)
