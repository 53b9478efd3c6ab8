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


def processes(medians: list[float], pairs: int = 5) -> Rounds:
    """Processes with these medians of log(control / flash)."""
    logarithms = [median for median in medians for _ in range(pairs)]
    return Rounds([math.exp(value) for value in logarithms], [1.0] * len(logarithms), [pairs] * len(medians))


def test_of_several_processes_the_process_is_the_unit() -> None:
    base, head = processes([0.50, 0.52, 0.51, 0.49]), processes([0.45, 0.47, 0.46, 0.44])
    change = corrected_change(base, head)
    assert change.change == pytest.approx(math.expm1(0.05))
    assert change.low < 0.03 < change.high  # so much do the processes of a side differ


def test_more_rounds_of_the_same_processes_tell_no_more() -> None:
    medians = [0.50, 0.52, 0.51, 0.49], [0.43, 0.49, 0.48, 0.42]
    few, many = (corrected_change(*(processes(values, pairs) for values in medians)) for pairs in (5, 50))
    assert many == pytest.approx(few)


def test_the_interval_between_processes_is_welchs() -> None:
    base, head = [0.50, 0.52, 0.51, 0.49], [0.43, 0.49, 0.48, 0.42]
    change = corrected_change(processes(base), processes(head))
    variances = [stdev(side) ** 2 / 4 for side in (base, head)]
    freedom = sum(variances) ** 2 / sum(variance**2 / 3 for variance in variances)
    half = math.sqrt(sum(variances)) * float(t.ppf(0.975, freedom))
    assert change.change == pytest.approx(math.expm1(0.05))
    assert change.low == pytest.approx(math.expm1(0.05 - half))
    assert change.high == pytest.approx(math.expm1(0.05 + half))


def test_processes_that_all_say_the_same_leave_no_interval() -> None:
    change = corrected_change(processes([0.50, 0.50]), processes([0.45, 0.45]))
    assert change == pytest.approx((math.expm1(0.05),) * 3)


def test_unlike_numbers_of_processes_are_compared() -> None:
    change = corrected_change(processes([0.50, 0.52, 0.51]), processes([0.45, 0.47, 0.46, 0.44]))
    assert change.low < change.change < change.high
    assert change.change == pytest.approx(math.expm1(0.51 - 0.455))


def test_one_wild_pair_does_not_move_its_process() -> None:
    base, head = processes([0.50, 0.52], pairs=9), processes([0.45, 0.47], pairs=9)
    disturbed = head._replace(seconds=[9.0, *head.seconds[1:]])
    assert corrected_change(base, disturbed) == pytest.approx(corrected_change(base, head))
