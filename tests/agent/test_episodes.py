"""Returns and lengths of episodes, from rows whose sums are plain, on NumPy, torch and JAX arrays."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from sacref.agent.episodes import EpisodeStatistics
from tests.backends import BACKENDS, Backend


@pytest.fixture(params=["numpy", *BACKENDS])
def convert(request: pytest.FixtureRequest) -> Callable[[Any], Any]:
    if request.param == "numpy":
        return np.asarray
    pytest.importorskip(request.param, reason=f"{request.param} is not installed")
    return Backend(request.param).array


def feed(
    statistics: EpisodeStatistics, convert: Callable[[Any], Any], rows: list[tuple[list[float], list[bool], list[bool]]], **options: Any
) -> None:
    for rewards, ended, keep in rows:
        statistics.add(rewards=convert(np.array(rewards)), ended=convert(np.array(ended)), keep=convert(np.array(keep)), **options)


NO, YES = [False, False], [True, True]


def test_returns_and_lengths_of_each_environment(convert: Callable[[Any], Any]) -> None:
    statistics = EpisodeStatistics()
    feed(statistics, convert, [([1, 10], NO, YES), ([2, 20], [True, False], YES), ([4, 40], [True, True], YES), ([8, 80], NO, YES)])
    summary = statistics.summary(np.asarray)
    assert summary.returns.tolist() == [3, 4, 70]
    assert summary.lengths.tolist() == [2, 1, 3]
    assert summary.rewards.tolist() == [1, 10, 2, 20, 4, 40, 8, 80]
    assert [array.dtype.name for array in summary] == ["float64", "int64", "float64"]
    assert list(statistics.recent_returns) == [3, 4, 70]


def test_rows_that_are_not_kept_count_nowhere(convert: Callable[[Any], Any]) -> None:
    statistics = EpisodeStatistics()
    feed(statistics, convert, [([1, 10], NO, YES), ([np.nan, 20], [True, False], [False, True]), ([4, 40], YES, YES)])
    summary = statistics.summary(np.asarray)
    assert summary.returns.tolist() == [5, 70]
    assert summary.lengths.tolist() == [2, 3]
    assert summary.rewards.tolist() == [1, 10, 20, 4, 40]


def test_episodes_run_on_over_summaries(convert: Callable[[Any], Any]) -> None:
    statistics = EpisodeStatistics()
    feed(statistics, convert, [([1, 10], NO, YES)])
    assert statistics.summary(np.asarray).returns.tolist() == []
    assert [array.size for array in statistics.summary(np.asarray)] == [0, 0, 0]
    feed(statistics, convert, [([2, 20], YES, YES)])
    assert statistics.summary(np.asarray).returns.tolist() == [3, 30]


def test_forgotten_episodes_do_not_go_on(convert: Callable[[Any], Any]) -> None:
    statistics = EpisodeStatistics()
    feed(statistics, convert, [([1, 10], NO, YES)])
    statistics.forget_running()
    feed(statistics, convert, [([2, 20], YES, YES)])
    summary = statistics.summary(np.asarray)
    assert (summary.returns.tolist(), summary.lengths.tolist()) == ([2, 20], [1, 1])


def test_evaluations_in_other_numbers_of_environments_are_counted_together(convert: Callable[[Any], Any]) -> None:
    statistics, restored = EpisodeStatistics(), EpisodeStatistics()
    feed(statistics, convert, [([1, 10], [True, False], YES), ([2, 20], YES, [True, False])])
    statistics.forget_running()
    feed(statistics, convert, [([3, 30, 300], [True] * 3, [True] * 3)])
    restored.set_state(statistics.state(np.asarray))
    for each in (restored, statistics):
        summary = each.summary(np.asarray)
        assert summary.returns.tolist() == [1, 2, 3, 30, 300]
        assert summary.lengths.tolist() == [1] * 5
        assert summary.rewards.tolist() == [1, 10, 2, 3, 30, 300]


def test_recent_returns_are_the_last_hundred(convert: Callable[[Any], Any]) -> None:
    statistics = EpisodeStatistics()
    feed(statistics, convert, [([float(i), i + 0.5], YES, YES) for i in range(60)])
    statistics.summary(np.asarray)
    assert list(statistics.recent_returns) == [value for i in range(10, 60) for value in (i, i + 0.5)]


def test_without_a_summary_nothing_is_kept_and_running_episodes_go_on(convert: Callable[[Any], Any]) -> None:
    statistics = EpisodeStatistics()
    feed(statistics, convert, [([1, 10], NO, YES)], for_summary=False)
    feed(statistics, convert, [([2, 20], YES, YES)])
    summary = statistics.summary(np.asarray)
    assert (summary.returns.tolist(), summary.rewards.tolist()) == ([3, 30], [2, 20])


def test_numpy_returns_are_known_at_once_and_in_double_precision() -> None:
    statistics = EpisodeStatistics()
    big, small = np.float32(2.0**24), np.float32(1.0)
    for reward in (big, small, small):
        statistics.add(rewards=np.array([reward]), ended=np.array([False]), keep=np.array([True]), for_summary=False)
    statistics.add(rewards=np.array([small]), ended=np.array([True]), keep=np.array([True]), for_summary=False)
    assert list(statistics.recent_returns) == [2.0**24 + 3]


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_environments_may_write_into_one_buffer(library: str) -> None:
    pytest.importorskip(library)
    statistics = EpisodeStatistics()
    buffer = (np.asarray if library == "numpy" else Backend(library).array)(np.zeros(1))
    flags = [(np.asarray if library == "numpy" else Backend(library).array)(np.array([value])) for value in (False, True)]
    for reward in (1.0, 2.0, 4.0):
        buffer[0] = reward
        statistics.add(rewards=buffer, ended=flags[0], keep=flags[1])
    assert statistics.summary(np.asarray).rewards.tolist() == [1, 2, 4]


def test_kinds_of_arrays_may_change_between_runs() -> None:
    pytest.importorskip("torch")
    statistics = EpisodeStatistics()
    feed(statistics, np.asarray, [([1, 2], YES, YES)])
    statistics.forget_running()
    feed(statistics, Backend("torch").array, [([3, 4], YES, YES)])
    assert statistics.summary(np.asarray).returns.tolist() == [1, 2, 3, 4]
    assert list(statistics.recent_returns) == [1, 2, 3, 4]
