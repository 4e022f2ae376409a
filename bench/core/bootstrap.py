"""Statistics over several tasks and seeds: Agarwal et al. 2021 (arXiv:2108.13264).

The authors' library, rliable 1.2.0, is untyped and needs arch below 8, which fails to import beside pandas 3; the few lines that the report
needs are here, on NumPy. Intervals are 95% and of percentiles. A task is a stratum: its runs are resampled among
themselves. Every function is seeded, so that the report repeats itself.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import scipy.stats
from jaxtyping import Float
from numpy.typing import NDArray

from bench.core.statistics import FEWEST_RESAMPLED, LEVEL, RESAMPLES, Interval

Scores = Float[np.ndarray, "tasks runs"]
Resampled = Float[np.ndarray, "resamples tasks runs"]


class Estimate(NamedTuple):
    """A number and its 95% interval."""

    value: float
    interval: Interval | None
    """None where a task has fewer runs than `FEWEST_RESAMPLED`."""

    def __str__(self) -> str:
        """Format the number and the ends, where there are any, with two decimals."""
        ends = "" if self.interval is None else f" [{self.interval.low:.2f}, {self.interval.high:.2f}]"
        return f"{self.value:.2f}{ends}"


class Profile(NamedTuple):
    """A performance profile: the share of runs whose score is above each threshold."""

    thresholds: list[float]
    shares: list[float]
    low: list[float]
    """Lower ends of the 95% intervals; empty where a task has fewer runs than `FEWEST_RESAMPLED`."""
    high: list[float]
    """Upper ends."""


def scores(tasks: Sequence[Sequence[float]]) -> NDArray[np.float64]:
    """Arrange scores by task and run.

    Args:
        tasks: the score of each run, by task.

    Returns:
        As an array (tasks, runs).

    Raises:
        ValueError: if there is no task, or the tasks have different numbers of runs: one of them would count for more.
    """
    counts = [len(task) for task in tasks]
    if not counts or min(counts) < 1 or len(set(counts)) > 1:
        raise ValueError(f"tasks have {counts} runs, expected one task or more, each with the same number of runs: leave out the others")
    return np.asarray(tasks, dtype=np.float64)


def iqm(tasks: Sequence[Sequence[float]]) -> Estimate:
    """Return the interquartile mean over all runs of all tasks, with its stratified-bootstrap interval (section 4.3).

    Args:
        tasks: the normalised score of each run, by task.
    """
    return _estimate(lambda drawn: scipy.stats.trim_mean(drawn.reshape(len(drawn), -1), 0.25, axis=1), scores(tasks))


def probability_of_improvement(first: Sequence[Sequence[float]], second: Sequence[Sequence[float]]) -> Estimate:
    """Estimate the probability that a run of the first scores above one of the second on a random task; ties count half (section 4.3).

    Mann and Whitney's U over the number of pairs, averaged over the tasks. The runs of both are resampled.

    Args:
        first: the score of each run, by task.
        second: as `first`, of the same tasks; the number of runs may differ.

    Raises:
        ValueError: for different numbers of tasks.
    """
    one, other = scores(first), scores(second)
    if len(one) != len(other):
        raise ValueError(f"the first has {len(one)} tasks, the second {len(other)}, expected the same tasks of both")
    return _estimate(_won, one, other)


def performance_profile(tasks: Sequence[Sequence[float]], thresholds: Sequence[float]) -> Profile:
    """Return the share of runs above each threshold, averaged over the tasks, with pointwise intervals (section 4.2, score distributions).

    Args:
        tasks: the normalised score of each run, by task.
        thresholds: scores.
    """
    known = scores(tasks)
    ends = []
    if known.shape[1] >= FEWEST_RESAMPLED:
        drawn = _resample(known, np.random.default_rng(0))
        ends = [_percentiles(np.mean(drawn > threshold, axis=(1, 2))) for threshold in thresholds]
    return Profile(
        thresholds=[float(threshold) for threshold in thresholds],
        shares=[float(np.mean(known > threshold)) for threshold in thresholds],
        low=[end.low for end in ends],
        high=[end.high for end in ends],
    )


def _won(first: Resampled, second: Resampled) -> Float[np.ndarray, " resamples"]:
    """Return the share of pairs that the first wins."""
    apart = first[:, :, :, None] - second[:, :, None, :]
    return np.asarray(((apart > 0) + 0.5 * (apart == 0)).mean(axis=(1, 2, 3)))


def _estimate(statistic: Callable[..., NDArray[np.float64]], *known: Scores) -> Estimate:
    """Return a statistic of one or two samples, and its interval; `statistic` takes a leading axis of resamples."""
    value = float(statistic(*(each[None] for each in known))[0])
    if any(each.shape[1] < FEWEST_RESAMPLED for each in known):
        return Estimate(value, None)
    generator = np.random.default_rng(0)
    return Estimate(value, _percentiles(statistic(*(_resample(each, generator) for each in known))))


def _resample(known: Scores, generator: np.random.Generator) -> Resampled:
    """Draw runs with replacement within each task."""
    chosen = generator.integers(known.shape[1], size=(RESAMPLES, *known.shape))
    return np.asarray(np.take_along_axis(known[None], chosen, axis=2))


def _percentiles(values: Float[np.ndarray, " resamples"]) -> Interval:
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(low), float(high))
