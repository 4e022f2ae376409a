"""The statistics of the report against numbers worked out by hand."""

import pytest
import scipy.stats

from bench.core import statistics
from bench.core.statistics import Interval


def test_mean_and_sample_standard_deviation() -> None:
    # Deviations -1, 0, 1: the sum of squares is 2, over n - 1 = 2.
    assert statistics.mean([1.0, 2.0, 3.0]) == 2.0
    assert statistics.std([1.0, 2.0, 3.0]) == 1.0


def test_t_interval_of_three_values() -> None:
    # t(0.975, 2) = 4.302653 (any table of Student's t); standard error 1 / sqrt(3) = 0.577350; half width 2.484138.
    interval = statistics.t_interval([1.0, 2.0, 3.0])
    assert interval is not None
    assert interval == pytest.approx((2.0 - 2.484138, 2.0 + 2.484138), abs=1e-5)


def test_t_interval_of_two_values() -> None:
    # t(0.975, 1) = 12.706205; standard error of 0 and 2 is 1.
    assert statistics.t_interval([0.0, 2.0]) == pytest.approx((1.0 - 12.706205, 1.0 + 12.706205), abs=1e-5)


def test_interquartile_mean_drops_a_quarter_at_each_end() -> None:
    assert statistics.iqm([-1000.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 9000.0]) == 3.5
    assert statistics.iqm([1.0, 2.0, 6.0]) == 3.0  # a quarter of three is none


def test_bootstrap_interval_of_five_values() -> None:
    # Without the lowest and the highest, a resample that holds k tens has the mean 0 for k up to 1, then 10/3, 20/3 and 10; k is binomial:
    # up to 1 with probability 0.737, up to 2 with 0.942, up to 3 with 0.993.
    assert statistics.bootstrap_interval([0.0, 0.0, 10.0, 0.0, 0.0]) == pytest.approx((0.0, 20 / 3))
    assert statistics.bootstrap_interval([0.0, 0.0, 10.0, 0.0]) is None


def test_bootstrap_interval_of_many_values_is_that_of_the_normal_law() -> None:
    # Values 0 to 99: the standard error of a trimmed mean is sqrt(winsorised sum of squares) / (n (1 - 2 cut)).
    values = [float(value) for value in range(100)]
    winsorised = [min(max(value, 25.0), 74.0) for value in values]
    error = (sum((value - 49.5) ** 2 for value in winsorised)) ** 0.5 / (100 * 0.5)
    interval = statistics.bootstrap_interval(values)
    assert interval is not None
    assert interval == pytest.approx((49.5 - 1.96 * error, 49.5 + 1.96 * error), rel=0.03)
    assert interval == statistics.bootstrap_interval(values)


def test_one_value_has_no_spread() -> None:
    assert statistics.std([1.0]) is None
    assert statistics.t_interval([1.0]) is None
    assert statistics.bootstrap_interval([1.0]) is None


@pytest.mark.parametrize(
    ("first", "second", "share"),
    [((0, 2), (1, 3), True), ((1, 3), (0, 2), True), ((0, 1), (1, 2), True), ((0, 1), (1.5, 2), False), ((1.5, 2), (0, 1), False)],
)
def test_overlap(first: tuple[float, float], second: tuple[float, float], share: bool) -> None:
    assert statistics.overlap(Interval(*first), Interval(*second)) is share


def test_the_difference_of_means_has_welchs_interval() -> None:
    # Variances 1 and 16 over three values: standard error sqrt(17 / 3); degrees of freedom (17 / 3)^2 / ((1 / 3)^2 + (16 / 3)^2) * 2.
    first, second = [9.0, 10.0, 11.0], [1.0, 5.0, 9.0]
    found = statistics.difference_interval(first, second)
    assert found is not None
    error, freedom = (17 / 3) ** 0.5, 2 * (17 / 3) ** 2 / ((1 / 3) ** 2 + (16 / 3) ** 2)
    half = scipy.stats.t.ppf(0.975, freedom) * error
    assert found.low == pytest.approx(5.0 - half)
    assert found.high == pytest.approx(5.0 + half)
    assert statistics.difference_interval([1.0], second) is None
    assert statistics.difference_interval([3.0, 3.0], [1.0, 1.0]) == (2.0, 2.0)
    # One side without a spread: Student's interval of the other, shifted.
    ends = statistics.t_interval(second)
    assert ends is not None
    assert statistics.difference_interval(second, [1.0, 1.0]) == pytest.approx((ends.low - 1.0, ends.high - 1.0))


def test_an_interval_of_another_level_is_narrower() -> None:
    # t(0.95, 4) = 2.131847, t(0.975, 4) = 2.776445 (any table of Student's t).
    assert statistics.interval_around(1.0, 2.0, 4, 0.9) == pytest.approx((1.0 - 4.263694, 1.0 + 4.263694), abs=1e-5)
    assert statistics.interval_around(1.0, 2.0, 4) == pytest.approx((1.0 - 5.55289, 1.0 + 5.55289), abs=1e-5)
    assert statistics.interval_around(1.0, 0.0, 1.0) == (1.0, 1.0)
