"""Tests of two sets of returns: agreement with published runs, known by mean, standard deviation and seeds; equivalence of two backends."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import scipy.optimize
import scipy.stats

from bench.core import statistics
from bench.core.statistics import LEVEL, Interval

POWER = 0.8
MARGIN = 0.2
"""Share of the published mean: an interval that holds 0 and reaches further than this tells nothing."""

Verdict = Literal["agrees", "below", "above", "cannot tell"]


class Summary(NamedTuple):
    """Summary statistics of some runs."""

    mean: float
    std: float
    """Sample standard deviation, over n - 1."""
    seeds: int


class Agreement(NamedTuple):
    """Comparison of our runs with published ones."""

    difference: float
    """Our mean less the published one."""
    interval: Interval | None
    """95%, Welch's; None for a single seed, of ours or of theirs."""
    smallest: float | None
    """The smallest true difference that so many seeds of such spread would have shown with 80% power; None as `interval`."""
    verdict: Verdict


def agreement(ours: Sequence[float], published: Summary) -> Agreement:
    """Compare our runs with published ones.

    Args:
        ours: return of each seed.
        published: returns of the same task, at the same step, in the same metric.

    Returns:
        The difference of the means; "below" or "above" if its interval is clear of 0; "agrees" if the interval holds 0 and stays within
        20% of the published mean; else "cannot tell".
    """
    apart = statistics.mean(ours) - published.mean
    std = statistics.std(ours)
    if std is None or published.seeds < 2:
        return Agreement(apart, None, None, "cannot tell")
    mine = Summary(statistics.mean(ours), std, len(ours))
    ends = welch_interval(mine, published)
    farthest = MARGIN * abs(published.mean)
    verdict: Verdict
    if ends.high < 0:
        verdict = "below"
    elif ends.low > 0:
        verdict = "above"
    else:
        verdict = "agrees" if -farthest <= ends.low and ends.high <= farthest else "cannot tell"
    return Agreement(apart, ends, smallest_difference(mine, published), verdict)


def welch_interval(first: Summary, second: Summary) -> Interval:
    """Return the 95% interval of the first mean less the second: Welch's t, the variances may differ. Both have two seeds or more."""
    error, freedom = _welch(first, second)
    return statistics.interval_around(first.mean - second.mean, error, freedom)


def smallest_difference(first: Summary, second: Summary) -> float:
    """Return the difference of the true means that Welch's test (two-sided, 5%) finds with 80% power, for the observed spreads.

    Solved with the noncentral t; both have two seeds or more.
    """
    error, freedom = _welch(first, second)
    if error == 0.0:
        return 0.0
    critical = float(scipy.stats.t.ppf(0.5 + LEVEL / 2, freedom))

    def lacks(noncentrality: float) -> float:
        # The test's other tail adds nothing at such a power.
        return float(scipy.stats.nct.sf(critical, freedom, noncentrality)) - POWER

    return error * float(scipy.optimize.brentq(lacks, 0.0, 3 * critical))


def _welch(first: Summary, second: Summary) -> tuple[float, float]:
    """Return the standard error of the difference, and Welch and Satterthwaite's degrees of freedom."""
    return statistics.satterthwaite([(each.std**2 / each.seeds, each.seeds - 1) for each in (first, second)])


class Equivalence(NamedTuple):
    """Result of a test of equivalence between two sets of runs."""

    difference: float
    """First mean less the second; of several strata, the mean of their differences, each counted by its runs."""
    interval: Interval
    """90%, Welch's: two one-sided tests at 5% each accept what keeps it within the margin."""
    margin: float
    p_value: float
    """The larger of the two one-sided tests'."""

    @property
    def equivalent(self) -> bool:
        """True if both one-sided tests reject a difference of the margin or more, at 5%."""
        return self.p_value < 1 - LEVEL


def equivalence(strata: Sequence[tuple[Sequence[float], Sequence[float]]]) -> Equivalence | None:
    """Test that two means differ by less than `MARGIN` of the mean of all runs, by two one-sided Welch tests.

    Schuirmann 1987, "A comparison of the two one-sided tests procedure and the power approach".

    Args:
        strata: runs of the first and of the second, by what else moves their returns: one spread is estimated within each.

    Returns:
        The result; None for fewer than two runs of one in a stratum.
    """
    if min(len(runs) for pair in strata for runs in pair) < 2:
        return None
    counts = [len(first) + len(second) for first, second in strata]
    weights = [count / sum(counts) for count in counts]
    apart = sum(
        weight * (statistics.mean(first) - statistics.mean(second)) for weight, (first, second) in zip(weights, strata, strict=True)
    )
    error, freedom = statistics.satterthwaite(
        [
            (weight**2 * float(np.var(runs, ddof=1)) / len(runs), len(runs) - 1)
            for weight, pair in zip(weights, strata, strict=True)
            for runs in pair
        ]
    )
    margin = MARGIN * abs(statistics.mean([value for pair in strata for runs in pair for value in runs]))
    nearer = margin - abs(apart)  # from the nearer of both edges: its one-sided test has the larger p
    p_value = float(scipy.stats.t.sf(nearer / error, freedom)) if error else float(nearer <= 0)
    # Each of the two tests leaves 5% on its own side.
    return Equivalence(apart, statistics.interval_around(apart, error, freedom, 2 * LEVEL - 1), margin, p_value)
