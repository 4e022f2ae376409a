"""The statistics over several tasks against numbers worked out by hand, and against rliable's where it was at hand."""

import numpy as np
import pytest

from bench.core import bootstrap, statistics


def test_the_iqm_is_of_all_runs_of_all_tasks() -> None:
    # 0 to 7: a quarter, two of them, is cut off at each end.
    assert bootstrap.iqm([[0.0, 7.0, 1.0, 6.0], [2.0, 3.0, 4.0, 5.0]]).value == 3.5


def test_runs_are_resampled_within_their_task() -> None:
    # Each task's runs are alike: nothing is left to chance. Resampled over tasks, the interval would have a width.
    found = bootstrap.iqm([[0.0] * 6, [8.0] * 6])
    assert found == (4.0, (4.0, 4.0))
    assert bootstrap.iqm([[0.0], [8.0]]) == (4.0, None)


def test_one_task_is_one_stratum() -> None:
    values = [float(value) for value in range(100)]
    found, known = bootstrap.iqm([values]).interval, statistics.bootstrap_interval(values)
    assert found is not None
    assert known is not None
    assert found == pytest.approx(known, rel=0.02)
    assert bootstrap.iqm([values]) == bootstrap.iqm([values])


def test_the_probability_of_improvement_counts_ties_half() -> None:
    # Of the nine pairs, 3 beats 1, 2; 2 beats 1 and ties 2; 2 likewise: 2 + 1.5 + 1.5, less the one that 5 wins of each.
    assert bootstrap.probability_of_improvement([[3.0, 2.0, 2.0]], [[1.0, 2.0, 5.0]]).value == pytest.approx(5 / 9)
    # Averaged over tasks, not over pairs.
    both = bootstrap.probability_of_improvement([[3.0, 2.0, 4.0, 3.0, 2.0], [0.0] * 5], [[1.0] * 3, [1.0] * 3])
    assert both == (0.5, None)
    both = bootstrap.probability_of_improvement([[3.0, 2.0, 4.0, 3.0, 2.0], [0.0] * 5], [[1.0] * 5, [1.0] * 5])
    assert both.value == 0.5
    assert both.interval == (0.5, 0.5)
    assert bootstrap.probability_of_improvement([[1.0]], [[0.0, 2.0]]) == (0.5, None)


def test_the_interval_of_the_probability_of_improvement() -> None:
    # Four of five runs win. In a resample at most one wins with probability 0.007, two with 0.051, all with 0.33: the ends are 2/5 and 1.
    found = bootstrap.probability_of_improvement([[0.0, 10.0, 10.0, 10.0, 10.0]], [[5.0] * 5])
    assert found == (0.8, (0.4, 1.0))


def test_too_few_runs_of_a_task_have_no_interval() -> None:
    few, many = [0.0, 10.0, 10.0, 10.0], [5.0] * 5
    assert bootstrap.probability_of_improvement([few], [many]) == (0.75, None)
    assert bootstrap.probability_of_improvement([many], [few]) == (0.25, None)
    assert bootstrap.iqm([[1.0, 3.0], [1.0, 3.0]]) == (2.0, None)
    # However many there are in all.
    assert bootstrap.iqm([[1.0, 3.0, 2.0, 2.0]] * 10) == (2.0, None)
    assert bootstrap.iqm([[1.0, 3.0, 2.0, 2.0, 2.0]] * 10).interval is not None


def test_a_profile_is_the_share_of_runs_above_each_threshold() -> None:
    thresholds = [-1.0, 0.0, 1.5, 2.0]
    profile = bootstrap.performance_profile([[0.0, 1.0, 0.0, 1.0, 1.0, 1.0], [2.0] * 6], thresholds)
    assert profile.shares == [1.0, 5 / 6, 0.5, 0.0]
    # At 0: of the first task's six resampled runs at most one is 1 with probability 0.018, at most two with 0.1, all with 0.088: the ends
    # are two and six. The second task adds its half.
    assert (profile.low[1], profile.high[1]) == (4 / 6, 1.0)
    assert (profile.low[2], profile.high[2]) == (0.5, 0.5)
    few = bootstrap.performance_profile([[0.0, 1.0], [2.0, 2.0]], thresholds)
    assert few == (thresholds, [1.0, 0.75, 0.5, 0.0], [], [])


@pytest.mark.parametrize("tasks", [[], [[]], [[1.0], [1.0, 2.0]]])
def test_tasks_with_different_numbers_of_runs_are_refused(tasks: list[list[float]]) -> None:
    with pytest.raises(ValueError, match="the same number of runs"):
        bootstrap.iqm(tasks)


def test_different_tasks_are_refused() -> None:
    with pytest.raises(ValueError, match="2 tasks, the second 1"):
        bootstrap.probability_of_improvement([[1.0], [1.0]], [[1.0]])


def test_the_intervals_are_those_of_rliable() -> None:
    # rliable 1.2.0 (with pandas 2), 5,000 resamples of the same scores: what it gave.
    generator = np.random.default_rng(7)
    first, second = (generator.normal(mean, 0.3, (3, 5)).tolist() for mean in (1.0, 0.8))
    iqm, better = bootstrap.iqm(first), bootstrap.probability_of_improvement(first, second)
    assert iqm.interval is not None
    assert better.interval is not None
    assert (iqm.value, *iqm.interval) == pytest.approx((0.95315972, 0.84918011, 1.04336585), abs=3e-3)
    assert (better.value, *better.interval) == pytest.approx((0.82666667, 0.64, 0.96), abs=1e-6)
    profile = bootstrap.performance_profile(first, [0.7, 1.0])
    assert profile.shares == pytest.approx([1.0, 0.46666667])
    assert (profile.low[1], profile.high[1]) == pytest.approx((0.2, 0.73333333))
