"""The change of the corrected time and its interval."""

import math
from statistics import stdev

import numpy as np
import pytest
from scipy.stats import bootstrap, t

from perf_tests.common.intervals import RESAMPLES, SEED
from perf_tests.gate.judging import time_verdict
from perf_tests.gate.patterns import matches
from perf_tests.gate.verdicts import Verdict
from perf_tests.runs.statistics import (
    CONTROL_WEIGHT,
    Change,
    Rounds,
    Yardstick,
    corrected_change,
    separable,
    uncorrected_change,
)


def rounds(seed: int, *, flash: float = 0.2, count: int = 20, spread: float = 0.02, drift: float = 1.0) -> Rounds:
    rng = np.random.default_rng(seed)
    slow = drift * (1 + 0.1 * rng.random(count))
    control, subject = (seconds * slow * np.exp(rng.normal(0, spread, count)) for seconds in (0.4, flash))
    return Rounds(control.tolist(), subject.tolist())


def test_the_change_is_that_of_flash_with_the_drift_taken_out() -> None:
    change = corrected_change(rounds(1, spread=0.0), rounds(2, spread=0.0, flash=0.21, drift=1.4))
    assert change.change == pytest.approx(0.05)
    assert change.low == pytest.approx(0.05)
    assert change.high == pytest.approx(0.05)


def with_yardstick(
    seed: int, *, flash: float = 0.2, memory: float = 1.0, drift: float = 1.0, version: int = 1, parts: int = 1
) -> Rounds:
    """Rounds on a machine whose memory is slower by `memory`: so is the yardstick, flash by less, no control."""
    run = rounds(seed, flash=flash * memory ** (1 - CONTROL_WEIGHT), spread=0.005, drift=drift)
    rng = np.random.default_rng(seed + 500)

    def beside(seconds: float) -> list[float]:
        return [seconds * slow / 0.4 * math.exp(rng.normal(0, 0.005)) for slow in run.control_seconds]

    yardstick = Yardstick(version, {"encoder": beside(0.1 * memory), "decoding": beside(0.12 * memory)})
    return run._replace(yardstick=yardstick, process_rounds=[len(run.seconds) // parts] * parts if parts > 1 else ())


@pytest.mark.parametrize("parts", [1, 4])
def test_a_memory_that_drifts_apart_from_the_clocks_is_no_change(parts: int) -> None:
    base, head = with_yardstick(1, parts=parts), with_yardstick(2, memory=1.2, parts=parts)
    assert corrected_change(base, head).change == pytest.approx(0, abs=0.006)
    alone = corrected_change(base._replace(yardstick=None), head._replace(yardstick=None))
    assert alone.change == pytest.approx(1.2 ** (1 - CONTROL_WEIGHT) - 1, abs=0.006)


def test_with_the_yardstick_too_what_slows_everything_cancels() -> None:
    assert corrected_change(with_yardstick(1), with_yardstick(2, drift=1.4)).change == pytest.approx(0, abs=0.006)


@pytest.mark.parametrize("parts", [1, 4])
def test_with_the_yardstick_a_change_has_its_true_size(parts: int) -> None:
    base, head = with_yardstick(1, parts=parts), with_yardstick(2, flash=0.21, memory=0.8, drift=0.9, parts=parts)
    change = corrected_change(base, head)
    assert change.change == pytest.approx(0.05, abs=0.006)
    assert change.low is not None
    assert change.low > 0.03


def test_a_yardstick_of_one_side_or_another_version_does_not_count() -> None:
    base, head = with_yardstick(1), with_yardstick(2, memory=1.2)
    alone = corrected_change(base._replace(yardstick=None), head._replace(yardstick=None))
    for one, other in (
        (base._replace(yardstick=None), head),
        (base, head._replace(yardstick=None)),
        (base, with_yardstick(2, memory=1.2, version=2)),
    ):
        assert corrected_change(one, other) == alone


@pytest.mark.parametrize(("base_count", "head_count"), [(6, 7), (20, 20), (101, 30), (2500, 3000)])
def test_the_interval_is_scipys(base_count: int, head_count: int) -> None:
    base, head = rounds(1, count=base_count), rounds(2, count=head_count, flash=0.21)

    def difference(one: np.ndarray, other: np.ndarray, axis: int = -1) -> np.ndarray:
        return np.median(one, axis=axis) - np.median(other, axis=axis)

    expected = bootstrap(
        (np.sort(base.logarithms()), np.sort(head.logarithms())),
        difference,
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=min(RESAMPLES, 4_000_000 // max(base_count, head_count)),
        method="percentile",
        rng=np.random.default_rng(SEED),
    ).confidence_interval
    found = corrected_change(base, head)
    assert (found.low, found.high) == pytest.approx((np.expm1(expected.low), np.expm1(expected.high)))


def test_there_and_back_is_nothing() -> None:
    one, other = rounds(1), rounds(2, flash=0.3)
    there, back = corrected_change(one, other), corrected_change(other, one)
    assert (1 + there.change) * (1 + back.change) == pytest.approx(1)


def test_the_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    hits = 0
    for seed in range(120):
        change = corrected_change(rounds(seed), rounds(seed + 1000))
        assert change.low is not None
        assert change.high is not None
        hits += change.low <= 0 <= change.high
    assert hits >= 0.9 * 120


@pytest.mark.parametrize("count", [4, 5])
def test_few_pairs_do_not_claim_what_they_cannot_know(count: int) -> None:
    misses = 0
    for seed in range(100):
        change = corrected_change(rounds(seed, count=count), rounds(seed + 1000, count=count))
        assert change.low is not None
        assert change.high is not None
        misses += not change.low <= 0 <= change.high
    assert misses <= 5


@pytest.mark.parametrize(("base", "head", "enough"), [(1, 1, False), (3, 3, False), (4, 4, True), (3, 5, True)])
def test_how_many_pairs_can_show_a_difference(base: int, head: int, enough: bool) -> None:
    assert separable(base, head) == enough
    assert (corrected_change(rounds(1, count=base), rounds(2, count=head)).low is not None) == enough


def test_very_many_rounds_fit_in_memory() -> None:
    change = corrected_change(rounds(1, count=5_000), rounds(2, count=5_000))
    assert change.low is not None
    assert abs(change.change) < 0.005


def test_uncorrected_change_is_of_the_medians() -> None:
    assert uncorrected_change([1.0, 2.0, 9.0], [2.2, 2.0, 90.0]) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        (Change(0.05, 0.04, 0.06), Verdict.REGRESSED),
        (Change(0.05, -0.01, 0.11), Verdict.AMBIGUOUS),  # the interval holds zero
        (Change(0.02, 0.01, 0.029), Verdict.PASS),  # real, and too small to matter
        (Change(0.02, 0.01, 0.05), Verdict.AMBIGUOUS),  # a regression is not excluded
        (Change(0.0, -0.01, 0.03), Verdict.PASS),
        (Change(-0.05, -0.06, -0.04), Verdict.IMPROVED),
        (Change(-0.05, -0.11, 0.01), Verdict.PASS),  # no regression, whatever else
        (Change(-0.02, -0.03, -0.01), Verdict.PASS),
        (Change(0.5, None, None), Verdict.AMBIGUOUS),
        (Change(math.nan, math.nan, math.nan), Verdict.AMBIGUOUS),
    ],
)
def test_verdicts_of_a_change(change: Change, verdict: Verdict) -> None:
    assert time_verdict(change, 0.03) is verdict


@pytest.mark.parametrize(
    ("pattern", "matched"),
    [
        ("test_generate[tiny.en-4-single-flash]", True),
        ("tiny.en-4-single-flash", True),
        ("tiny.en-*-flash", True),
        ("test_generate[*]", True),
        ("*", True),
        ("tiny.en-?-single-flash", True),
        ("tinyxen-*", False),
        ("tiny.en", False),
        ("[t]iny.en-*", False),
        ("", False),
    ],
)
def test_patterns(pattern: str, matched: bool) -> None:
    assert matches(pattern, "test_generate[tiny.en-4-single-flash]") == matched


def processes(logarithms: list[float], control: list[float] | None = None, rounds: int = 5) -> Rounds:
    """Processes in which flash, and the control, take so long in all rounds, as logarithms of seconds."""
    kinds = (control or [0.0] * len(logarithms), logarithms)
    beside, flash = ([math.exp(value) for value in kind for _ in range(rounds)] for kind in kinds)
    return Rounds(beside, flash, [rounds] * len(logarithms))


def test_of_several_processes_the_process_is_the_unit() -> None:
    base, head = processes([0.45, 0.47, 0.46, 0.44]), processes([0.50, 0.52, 0.51, 0.49])
    change = corrected_change(base, head)
    assert change.change == pytest.approx(math.expm1(0.05))
    assert change.low < 0.03 < change.high  # so much do the processes of a side differ


def test_more_rounds_of_the_same_processes_tell_no_more() -> None:
    sides = [0.43, 0.49, 0.48, 0.42], [0.50, 0.52, 0.51, 0.49]
    few, many = (corrected_change(*(processes(side, rounds=rounds) for side in sides)) for rounds in (5, 50))
    assert many == pytest.approx(few)


def test_the_interval_of_few_processes_is_welchs() -> None:
    base, head = [0.43, 0.49], [0.50, 0.52, 0.51]
    change = corrected_change(processes(base), processes(head))
    variances = [stdev(side) ** 2 / len(side) for side in (base, head)]
    freedom = sum(variances) ** 2 / (variances[0] ** 2 + variances[1] ** 2 / 2)
    half = math.sqrt(sum(variances)) * float(t.ppf(0.975, freedom))
    assert change == pytest.approx([math.expm1(value) for value in (0.05, 0.05 - half, 0.05 + half)])


# What four and five processes' controls took, measured in turn, as logarithms; and what is flash's own.
MACHINE = [0.30, 0.42, 0.35, 0.38], [0.33, 0.44, 0.29, 0.40, 0.36]
OWN = [0.001, -0.002, 0.003, -0.001], [0.002, 0.001, -0.003, 0.002, -0.001]


def follows(slope: float, *, grown: float = 0.0, slowed: float = 0.0) -> list[Rounds]:
    """Both sides, where flash follows its control by so much; HEAD's is slower, or its machine is."""
    return [
        processes([slope * a + o + more for a, o in zip(at, own, strict=True)], [a + shift for a in at])
        for at, own, shift, more in zip(MACHINE, OWN, (0.0, slowed), (0.0, grown + slope * slowed), strict=True)
    ]


def test_by_how_much_flash_follows_its_control_is_measured() -> None:
    """Ordinary least squares with a column for the side say the same."""
    base, head = follows(0.6, grown=0.05)
    change = corrected_change(base, head)
    beside, flash = (np.log([*one[::5], *other[::5]]) for one, other in ((base[0], head[0]), (base[1], head[1])))
    design = np.column_stack([np.ones(9), [0.0] * 4 + [1.0] * 5, beside])
    (_, grown, slope), (squares,), *_ = np.linalg.lstsq(design, flash, rcond=None)
    half = math.sqrt(squares / 6 * np.linalg.inv(design.T @ design)[1, 1]) * float(t.ppf(0.975, 6))
    assert slope == pytest.approx(0.6, abs=0.03)
    assert grown == pytest.approx(0.05, abs=0.003)
    assert change == pytest.approx([math.expm1(value) for value in (grown, grown - half, grown + half)])
    assert change.high - change.low < 0.01  # of the control's 10 % nothing is left


@pytest.mark.parametrize(("slope", "taken"), [(-0.5, 0.0), (1.5, 1.0)])
def test_flash_follows_its_control_by_nothing_to_all_of_it(slope: float, taken: float) -> None:
    base, head = follows(slope)
    apart, grown = (np.mean(np.log(head[kind])) - np.mean(np.log(base[kind])) for kind in (0, 1))
    assert corrected_change(base, head).change == pytest.approx(math.expm1(grown - taken * apart))


@pytest.mark.parametrize("control", [None, [0.2] * 4])
def test_a_control_that_never_varies_takes_no_slope(control: list[float] | None) -> None:
    base, head = processes([0.45, 0.47, 0.46, 0.44], control), processes([0.50, 0.52, 0.51, 0.49])
    expected = 0.05 + (control[0] if control else 0.0)
    assert corrected_change(base, head).change == pytest.approx(math.expm1(expected))


def test_sides_that_were_not_measured_in_turn_take_no_slope() -> None:
    """Their machines differ by more than chance: what slows all alike cancels, as it does between pairs."""
    base, head = follows(0.6, slowed=0.4)
    apart, grown = (np.mean(np.log(head[kind])) - np.mean(np.log(base[kind])) for kind in (0, 1))
    assert corrected_change(base, head).change == pytest.approx(math.expm1(grown - apart))


def in_turn(rng: np.random.Generator, count: int, flash: float = 0.2) -> Rounds:
    """Processes beside neighbours that slow the control by more than flash, and any round for a moment."""
    machine = rng.normal(0, 0.06, count)
    kinds = ((0.4, machine), (flash, 0.6 * machine))
    rounds = [
        seconds * np.exp(np.repeat(slow, 8) + rng.normal(0, 0.02, 8 * count)) * (1 + rng.exponential(0.08, 8 * count))
        for seconds, slow in kinds
    ]
    return Rounds(rounds[0].tolist(), rounds[1].tolist(), [8] * count)


@pytest.mark.parametrize("count", [2, 3, 6])
def test_the_interval_between_processes_holds_the_truth_as_often_as_it_says(count: int) -> None:
    rng = np.random.default_rng(0)
    changes = [corrected_change(in_turn(rng, count), in_turn(rng, count, flash=0.21)) for _ in range(300)]
    hits = sum(change.low <= 0.05 <= change.high for change in changes)
    assert hits >= 0.92 * 300


def test_processes_that_all_say_the_same_leave_no_interval() -> None:
    change = corrected_change(processes([0.45, 0.45]), processes([0.50, 0.50]))
    assert change == pytest.approx((math.expm1(0.05),) * 3)


def test_unlike_numbers_of_processes_are_compared() -> None:
    change = corrected_change(processes([0.45, 0.47, 0.46, 0.44]), processes([0.50, 0.52, 0.51]))
    assert change.low < change.change < change.high
    assert change.change == pytest.approx(math.expm1(0.51 - 0.455))


def test_a_round_more_or_less_does_not_move_a_process() -> None:
    rng = np.random.default_rng(0)
    odd, even = (
        Rounds([1.0] * rounds * 2000, rng.lognormal(0, 0.1, rounds * 2000).tolist(), [rounds] * 2000)
        for rounds in (7, 8)
    )
    assert corrected_change(odd, even).change == pytest.approx(0, abs=0.003)


def test_what_slows_some_rounds_does_not_move_their_process() -> None:
    base, head = processes([0.45, 0.47], rounds=9), processes([0.50, 0.52], rounds=9)
    disturbed = head._replace(
        seconds=[9.0] * 4 + head.seconds[4:], control_seconds=head.control_seconds[:5] + [9.0] * 4 + [1.0] * 9
    )
    assert corrected_change(base, disturbed) == pytest.approx(corrected_change(base, head))
