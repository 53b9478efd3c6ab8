"""How many rounds a case takes: from pilot pairs, an aim and a budget."""

import itertools
import math
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from perf_tests.common.intervals import estimate_speedup
from perf_tests.matrix.plan import Aim
from perf_tests.measure import rounds
from perf_tests.measure.moving import PAIRS_PER_PLACE
from perf_tests.measure.rounds import Pilot, choose_rounds, rounds_for
from perf_tests.measure.yardstick import Reading


def make_pilot(spread: float, pairs: int = 8, seconds: float = 0.1) -> Pilot:
    """A warm-up pair, and pairs whose logarithms' standard deviation is just `spread`."""
    shifts = [0, *((-1) ** index * spread * math.sqrt((pairs - 1) / pairs) for index in range(pairs))]
    return Pilot([2 * seconds * math.exp(shift) for shift in shifts], [seconds] * (pairs + 1), [], [])


def test_calm_pairs_need_no_more_than_the_least() -> None:
    assert rounds_for(make_pilot(0.001), Aim(10, 0.015, 1000)) == 10
    assert rounds_for(make_pilot(0.001), Aim(10, 0.015, 1000, enough=30)) == 30


def test_twice_the_spread_needs_four_times_the_rounds() -> None:
    aim = Aim(1, 0.015, 1e6)
    calm, wild = (rounds_for(make_pilot(spread), aim) for spread in (0.05, 0.1))
    assert wild == pytest.approx(4 * calm, rel=0.02)


def test_half_the_interval_needs_four_times_the_rounds() -> None:
    wide, narrow = (rounds_for(make_pilot(0.1), Aim(1, precision, 1e6)) for precision in (0.02, 0.01))
    assert narrow == pytest.approx(4 * wide, rel=0.05)


def test_the_budget_bounds_the_rounds_and_counts_the_pilot() -> None:
    pilot = make_pilot(0.3)
    budget = pilot.spent + 20.5 * pilot.pair_seconds
    assert rounds_for(pilot, Aim(10, 0.015, budget)) == 20
    assert rounds_for(pilot, Aim(100, 0.015, budget)) == 100  # the least is taken in any case
    assert rounds_for(pilot, Aim(10, 0.015, budget, enough=30)) == 20


@pytest.mark.parametrize("pairs", [1, 2])
def test_a_warm_up_and_one_pair_tell_nothing_of_the_spread(pairs: int) -> None:
    pilot = Pilot([0.2] * pairs, [0.1] * pairs, [], [])
    assert rounds_for(pilot, Aim(10, 0.015, pilot.spent + 99.5 * 0.3)) == 99


def test_the_warm_up_is_no_spread() -> None:
    cold = Pilot([5.0, *[0.2] * 8], [0.1] * 9, [], [])
    assert rounds_for(cold, Aim(10, 0.015, 1000)) == 10


def test_so_many_rounds_give_the_precision_that_was_asked_for() -> None:
    noise = random.Random(1)
    within = 0
    for _ in range(40):
        pairs = [(2 * noise.gauss(1, 0.03), noise.gauss(1, 0.03)) for _ in range(500)]
        pilot = Pilot([control for control, _ in pairs[:9]], [seconds for _, seconds in pairs[:9]], [], [])
        count = rounds_for(pilot, Aim(6, 0.015, 1e6))
        control, seconds = zip(*pairs[9 : 9 + count], strict=True)
        speedup = estimate_speedup(control, seconds)
        within += (speedup.high - speedup.low) / 2 / speedup.median < 1.2 * 0.015
    assert within >= 28  # by the spread's confidence of 80 %, less what the interval itself varies


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], None]], float]:
    """Calls take as long as they say."""

    def seconds_of(run: Callable[[], Any]) -> float:
        result = run() or 0
        return math.fsum(result) if isinstance(result, Reading) else float(result)

    monkeypatch.setattr(rounds, "seconds_of", seconds_of)
    return seconds_of


def calls(seconds: float) -> Callable[[], None]:
    count = iter(range(1_000_000))

    def run() -> float:
        next(count)
        return seconds

    run.count = count  # type: ignore[attr-defined]
    return run  # type: ignore[return-value]


def called(run: Callable[[], None]) -> int:
    counter: Iterator[int] = run.count  # type: ignore[attr-defined]
    return next(counter)


@pytest.mark.usefixtures("clock")
def test_where_the_least_rounds_spend_the_budget_there_is_no_pilot() -> None:
    run = calls(10)
    assert choose_rounds(run, calls(10), Aim(10, 0.015, 60)) == 10
    assert called(run) == 1


@pytest.mark.usefixtures("clock")
def test_the_pilot_is_cut_at_a_tenth_of_the_budget() -> None:
    run = calls(1)
    assert choose_rounds(run, calls(1), Aim(2, 0.015, 60)) == 2  # no spread at all
    assert called(run) == 3


@pytest.mark.usefixtures("clock")
def test_the_budget_holds_with_the_yardstick() -> None:
    control = itertools.cycle([0.01, 0.012])
    count = choose_rounds(calls(0.01), lambda: next(control), Aim(2, 1e-9, 10), lambda: Reading(0.03, 0.01))
    pair = 0.011 + 0.01 + 0.03 + 0.01
    assert count + 1 + rounds.PILOT_PAIRS == pytest.approx(10 / pair, abs=1)


@pytest.mark.usefixtures("clock")
def test_a_cheap_case_has_a_whole_pilot() -> None:
    run = calls(0.01)
    choose_rounds(run, calls(0.01), Aim(2, 0.015, 40))
    assert called(run) == 1 + rounds.PILOT_PAIRS


@pytest.mark.usefixtures("clock")
def test_the_budget_holds_with_models_that_move() -> None:
    control, move = itertools.cycle([0.01, 0.012]), calls(0.05)
    count = choose_rounds(calls(0.01), lambda: next(control), Aim(2, 1e-9, 10), move=move)
    assert called(move) == -(-(1 + rounds.PILOT_PAIRS) // PAIRS_PER_PLACE)
    assert count + 1 + rounds.PILOT_PAIRS == pytest.approx(10 / (0.011 + 0.01 + 0.05 / PAIRS_PER_PLACE), abs=2)


@pytest.mark.usefixtures("clock")
def test_a_pilot_of_one_pair_takes_its_move_for_that_of_a_whole_place() -> None:
    assert choose_rounds(calls(1), calls(1), Aim(2, 0.015, 20), move=calls(1)) == int(17 / (2 + 1 / PAIRS_PER_PLACE))
