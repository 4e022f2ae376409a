"""Statistics over seeds."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.stats

LEVEL = 0.95
RESAMPLES = 10_000
FEWEST_RESAMPLED = 5
"""Values resampled among themselves below which a percentile bootstrap is not given: of three, 77% of the intervals hold the truth."""


class Interval(NamedTuple):
    """Ends of an interval of confidence."""

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
    return interval_around(mean(values), float(scipy.stats.sem(values)), len(values) - 1)


def difference_interval(first: Sequence[float], second: Sequence[float]) -> Interval | None:
    """Return the 95% interval of the first mean less the second, by Welch's t; None for fewer than two values of one."""
    if min(len(first), len(second)) < 2:
        return None
    variances = [(float(np.var(values, ddof=1)) / len(values), len(values) - 1) for values in (first, second)]
    return interval_around(mean(first) - mean(second), *satterthwaite(variances))


def interval_around(estimate: float, error: float, freedom: float, level: float = LEVEL) -> Interval:
    """Return Student's interval of an estimate, from its standard error and degrees of freedom: without an error, the estimate twice."""
    half = float(scipy.stats.t.ppf(0.5 + level / 2, freedom)) * error
    return Interval(estimate - half, estimate + half)


def satterthwaite(variances: Sequence[tuple[float, int]]) -> tuple[float, float]:
    """Return the root of a sum of estimated variances, and its degrees of freedom, from each variance and its own."""
    total = sum(variance for variance, _ in variances)
    if total == 0.0:
        return 0.0, 1.0
    return math.sqrt(total), total**2 / sum(variance**2 / freedom for variance, freedom in variances)


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
