"""Agreement with published runs against numbers worked out by hand."""

import pytest
import scipy.stats

from bench.agreement import Summary, agreement, smallest_difference, welch_interval


def test_the_interval_is_welchs() -> None:
    # As of the samples themselves: 9, 10, 11 beside 1, 5, 9.
    known = scipy.stats.ttest_ind([9.0, 10.0, 11.0], [1.0, 5.0, 9.0], equal_var=False).confidence_interval(0.95)
    assert welch_interval(Summary(10.0, 1.0, 3), Summary(5.0, 4.0, 3)) == pytest.approx((known.low, known.high))
    assert welch_interval(Summary(2.0, 0.0, 3), Summary(1.0, 0.0, 3)) == (1.0, 1.0)


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
