import numpy as np
import pytest
from scipy.stats import binom

from perf_tests.common.intervals import estimate_speedup, median_interval, paired_ratios


def test_the_ratio_is_above_one_where_the_subject_is_faster() -> None:
    assert paired_ratios([2.0, 3.0], [1.0, 2.0]) == pytest.approx([2.0, 1.5])


def test_drift_that_both_see_cancels() -> None:
    drift = np.linspace(1, 5, 40)
    estimate = estimate_speedup(list(2 * drift), list(drift))
    assert estimate == pytest.approx((2.0, 2.0, 2.0))


def test_the_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    random = np.random.default_rng(3)
    held = 0
    for _ in range(100):
        ratios = 1.5 * np.exp(0.03 * random.standard_normal(30))
        estimate = estimate_speedup(list(ratios), [1.0] * 30)
        assert estimate.low <= estimate.median <= estimate.high
        held += estimate.low <= 1.5 <= estimate.high
    assert held >= 85


def test_the_same_rounds_give_the_same_interval() -> None:
    rounds = [1.0, 1.1, 0.9, 1.05, 1.2]
    assert estimate_speedup(rounds, [1.0] * 5) == estimate_speedup(rounds, [1.0] * 5)


def test_a_single_pair_has_no_interval() -> None:
    assert estimate_speedup([3.0], [2.0]) == (1.5, None, None)


def test_unpaired_rounds_are_refused() -> None:
    with pytest.raises(ValueError, match="cannot pair"):
        paired_ratios([1.0], [1.0, 2.0])


@pytest.mark.parametrize("count", [6, 7, 20, 100, 5000])
def test_the_interval_of_a_median_is_between_the_binomials_quantiles(count: int) -> None:
    rank = int(binom.ppf(0.025, count, 0.5))
    assert median_interval(range(count, 0, -1)) == (rank, count - rank + 1)


def test_few_rounds_give_no_interval_of_a_median() -> None:
    assert median_interval([1.0] * 5) is None
    assert median_interval([]) is None
