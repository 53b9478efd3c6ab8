"""The change of the corrected time and its interval."""

import math
from statistics import stdev

import numpy as np
import pytest

from perf_tests.regression.judging import time_verdict
from perf_tests.regression.patterns import matches
from perf_tests.regression.statistics import Change, Rounds, corrected_change, separable, uncorrected_change
from perf_tests.regression.verdicts import Verdict


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
    assert change.low == pytest.approx(change.high)  # every pair of processes says the same


def test_more_rounds_of_the_same_processes_tell_no_more() -> None:
    medians = [0.50, 0.52, 0.51, 0.49], [0.43, 0.49, 0.48, 0.42]
    few, many = (corrected_change(*(processes(values, pairs) for values in medians)) for pairs in (5, 50))
    assert many == pytest.approx(few)


def test_processes_that_vary_widen_the_interval() -> None:
    base = processes([0.50, 0.52, 0.51, 0.49])
    change = corrected_change(base, processes([0.43, 0.49, 0.48, 0.42]))
    differences = [0.07, 0.03, 0.03, 0.07]
    half = stdev(differences) / 2 * 3.182446  # Student's quantile of 97.5 % for 3 degrees of freedom
    assert change.low == pytest.approx(math.expm1(0.05 - half))
    assert change.high == pytest.approx(math.expm1(0.05 + half))


def test_unlike_numbers_of_processes_are_compared_unpaired() -> None:
    change = corrected_change(processes([0.50, 0.52, 0.51]), processes([0.45, 0.47, 0.46, 0.44]))
    assert change.low < change.change < change.high
    assert change.change == pytest.approx(math.expm1(0.51 - 0.455))
