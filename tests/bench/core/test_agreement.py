"""Agreement with published runs against numbers worked out by hand."""

import pytest
import scipy.stats

from bench.core import statistics
from bench.core.agreement import Summary, agreement, equivalence, smallest_difference, welch_interval


def test_the_interval_is_welchs() -> None:
    # As of the samples themselves: 9, 10, 11 beside 1, 5, 9.
    known = scipy.stats.ttest_ind([9.0, 10.0, 11.0], [1.0, 5.0, 9.0], equal_var=False).confidence_interval(0.95)
    assert welch_interval(Summary(10.0, 1.0, 3), Summary(5.0, 4.0, 3)) == pytest.approx((known.low, known.high))
    assert welch_interval(Summary(2.0, 0.0, 3), Summary(1.0, 0.0, 3)) == (1.0, 1.0)


@pytest.mark.parametrize("second", [[1.0, 5.0, 9.0], [5.0, 5.0], [2.0, 2.0, 2.0, 3.0]])
@pytest.mark.parametrize("first", [[9.0, 10.0, 11.0], [8.0, 8.0, 8.0]])
def test_samples_and_their_summaries_have_one_interval(first: list[float], second: list[float]) -> None:
    summaries = [Summary(statistics.mean(values), statistics.std(values) or 0.0, len(values)) for values in (first, second)]
    assert statistics.difference_interval(first, second) == pytest.approx(welch_interval(*summaries))


def test_the_smallest_difference_of_ten_seeds_beside_ten() -> None:
    # Any table of power: two samples of ten, two-sided 5%, 80% power: an effect of 1.325 standard deviations.
    assert smallest_difference(Summary(0.0, 930.0, 10), Summary(0.0, 930.0, 10)) == pytest.approx(1.325 * 930, rel=1e-3)
    # Two samples of three: 3.07.
    assert smallest_difference(Summary(0.0, 1.0, 3), Summary(5.0, 1.0, 3)) == pytest.approx(3.07, abs=0.01)
    assert smallest_difference(Summary(0.0, 0.0, 3), Summary(5.0, 0.0, 3)) == 0.0


@pytest.mark.parametrize(
    ("published", "verdict"),
    [
        (Summary(1_000.0, 50.0, 10), "agrees"),
        (Summary(2_000.0, 50.0, 10), "below"),
        (Summary(500.0, 50.0, 10), "above"),
        # As far away as the first, with an interval of a few hundred on each side.
        (Summary(1_000.0, 400.0, 10), "cannot tell"),
    ],
)
def test_the_verdict(published: Summary, verdict: str) -> None:
    found = agreement([980.0, 1_000.0, 1_050.0], published)
    assert found.verdict == verdict
    assert found.difference == pytest.approx(1_010.0 - published.mean)
    assert found.interval is not None
    assert (found.interval.low <= 0 <= found.interval.high) is (verdict in ("agrees", "cannot tell"))


def test_one_seed_cannot_tell() -> None:
    assert agreement([7.0], Summary(1_000.0, 1.0, 10)) == (-993.0, None, None, "cannot tell")
    assert agreement([7.0, 9.0], Summary(1_000.0, 0.0, 1)) == (-992.0, None, None, "cannot tell")


def test_backends_are_equivalent_where_both_one_sided_tests_say_so() -> None:
    found = equivalence([([95.0, 100.0, 105.0], [97.0, 102.0, 107.0])])
    assert found is not None
    # Both deviations are 5: standard error 5 sqrt(2 / 3) = 4.082, 4 degrees of freedom, t(0.95) = 2.132. The margin is 20% of 101.
    assert found.difference == pytest.approx(-2.0)
    assert found.margin == pytest.approx(20.2)
    assert found.interval == pytest.approx((-2.0 - 8.703, -2.0 + 8.703), abs=1e-3)
    # The nearer edge is 18.2 away: t = 4.458 with 4 degrees of freedom.
    assert found.p_value == pytest.approx(scipy.stats.t.sf(18.2 / 4.0825, 4), rel=1e-3)
    assert found.equivalent
    # The difference is the same, the spread is not: 90% reaches beyond the margin.
    wide = equivalence([([60.0, 100.0, 140.0], [62.0, 102.0, 142.0])])
    assert wide is not None
    assert not wide.equivalent
    assert wide.interval.low < -wide.margin
    apart = equivalence([([70.0, 71.0, 72.0], [100.0, 101.0, 102.0])])
    assert apart is not None
    assert not apart.equivalent
    assert equivalence([([1.0], [1.0, 2.0])]) is None
    assert equivalence([([1.0, 2.0], [1.0, 2.0]), ([1.0], [1.0, 2.0])]) is None


HIGH, LOW = [97.0, 112.0, 107.0], [95.0, 101.0, 105.0, 99.0]


@pytest.mark.parametrize(("first", "second"), [(LOW, HIGH), (HIGH, LOW)])
def test_two_samples_are_tested_as_scipy_does(first: list[float], second: list[float]) -> None:
    found = equivalence([(first, second)])
    assert found is not None
    apart = scipy.stats.ttest_ind(first, second, equal_var=False)
    ends = apart.confidence_interval(0.9)
    assert found.interval == pytest.approx((ends.low, ends.high))
    tests = [
        scipy.stats.ttest_ind([value + sign * found.margin for value in first], second, equal_var=False, alternative=side).pvalue
        for sign, side in ((1, "greater"), (-1, "less"))
    ]
    assert found.p_value == pytest.approx(max(tests))


def test_strata_add_their_errors_and_not_the_distance_between_them() -> None:
    pairs = [([95.0, 100.0, 105.0], [97.0, 102.0, 107.0]), ([195.0, 200.0, 205.0], [193.0, 198.0, 203.0])]
    found = equivalence(pairs)
    assert found is not None
    # Differences -2 and +2, each with half of the runs; four variances of 25 over 3 runs, a quarter of each; 8 degrees of freedom.
    half = scipy.stats.t.ppf(0.95, 8) * (25 / 3) ** 0.5
    assert found.difference == pytest.approx(0.0)
    assert found.interval == pytest.approx((-half, half))
    assert found.margin == pytest.approx(30.0)
    # A stratum of twice as many runs counts twice.
    uneven = equivalence([([1.0, 3.0], [1.0, 3.0]), ([3.0, 5.0, 4.0, 4.0], [2.0, 4.0, 3.0, 3.0])])
    assert uneven is not None
    assert uneven.difference == pytest.approx(2 / 3)


def test_runs_without_spread_are_equivalent_or_not() -> None:
    for apart, p_value in ((0.1, 0.0), (0.3, 1.0)):
        found = equivalence([([1.0, 1.0], [1.0 + apart, 1.0 + apart])])
        assert found is not None
        assert found.p_value == p_value
