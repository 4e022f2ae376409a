"""Statistics over seeds."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.stats

LEVEL = 0.95
RESAMPLES = 10_000
FEWEST_RESAMPLED = 5
"""Values in all below which a percentile bootstrap is not given: of three, 95% of its intervals hold the truth in 77% of cases."""


class Interval(NamedTuple):
    """A 95% interval."""

    low: float
    high: float


def mean(values: Sequence[float]) -> float:
    """Return the arithmetic mean."""
    return float(np.mean(values))


def std(values: Sequence[float]) -> float | None:
    """Return the sample standard deviation (n - 1); None for fewer than two values."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def iqm(values: Sequence[float]) -> float:
    """Return the interquartile mean: the mean without a quarter (rounded down) of the values at each end.

    Agarwal et al. 2021 (arXiv:2108.13264), section 4.3.
    """
    return float(scipy.stats.trim_mean(values, 0.25))


def t_interval(values: Sequence[float]) -> Interval | None:
    """Return the 95% interval of the mean by Student's t over seeds; None for fewer than two values."""
    if len(values) < 2:
        return None
    half = scipy.stats.t.ppf(0.5 + LEVEL / 2, len(values) - 1) * scipy.stats.sem(values)
    return Interval(float(np.mean(values) - half), float(np.mean(values) + half))


def difference_interval(first: Sequence[float], second: Sequence[float]) -> Interval | None:
    """Return the 95% interval of the first mean less the second, by Welch's t; None for fewer than two values of one."""
    if min(len(first), len(second)) < 2:
        return None
    apart = mean(first) - mean(second)
    if np.ptp(first) == np.ptp(second) == 0.0:
        return Interval(apart, apart)
    ends = scipy.stats.ttest_ind(first, second, equal_var=False).confidence_interval(LEVEL)
    return Interval(float(ends.low), float(ends.high))


def bootstrap_interval(values: Sequence[float]) -> Interval | None:
    """Return the 95% percentile-bootstrap interval of the IQM over seeds; None for fewer than `FEWEST_RESAMPLED` values.

    Agarwal et al. 2021 (arXiv:2108.13264), section 4.2; one task is one stratum. It is seeded: the report repeats itself.
    """
    if len(values) < FEWEST_RESAMPLED:
        return None
    draws = np.random.default_rng(0).choice(np.asarray(values), size=(RESAMPLES, len(values)))
    low, high = np.quantile(scipy.stats.trim_mean(draws, 0.25, axis=1), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(low), float(high))


def overlap(first: Interval, second: Interval) -> bool:
    """Return True if the two intervals share a value."""
    return first.low <= second.high and second.low <= first.high
