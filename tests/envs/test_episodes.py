"""Every autoreset mode must give the same transitions, on every array library."""

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from numpy.typing import NDArray

from sacref.envs.episodes import EpisodeBoundaries
from tests.envs.counting import CountingEnv

LIBRARIES: dict[str, Callable[[Any], Any]] = {"numpy": np.asarray, "torch": torch.as_tensor, "jax": jnp.asarray}
MODES = [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP, AutoresetMode.DISABLED]
LENGTHS: list[list[tuple[int, ...]]] = [[(3,)], [(1,)], [(2, 1, 4), (3,), (1,)], [(5, 1, 1, 2), (1, 1, 3), (4, 2)]]

Stored = list[tuple[list[float], float, list[float], bool]]


@pytest.fixture(params=list(LIBRARIES))
def convert(request: pytest.FixtureRequest) -> Callable[[Any], Any]:
    return LIBRARIES[request.param]


def expected(lengths: tuple[int, ...], truncates: bool, count: int) -> Stored:
    """The first `count` transitions of a `CountingEnv`, written down from its definition."""
    rows: Stored = []
    for episode in range(count):
        length = lengths[episode % len(lengths)]
        for step in range(length):
            rows.append(([episode, step], 100.0 * episode + step + 1, [episode, step + 1], step + 1 == length and not truncates))
    return rows[:count]


def store(stored: list[Stored], row: dict[str, Any], next_observations: Any, keep: Any) -> None:
    for index in np.flatnonzero(np.asarray(keep)):
        stored[index].append(
            (
                np.asarray(row["observations"])[index].tolist(),
                float(row["rewards"][index]),
                np.asarray(next_observations)[index].tolist(),
                bool(row["terminated"][index]),
            )
        )


def drive(
    mode: AutoresetMode, lengths: list[tuple[int, ...]], truncates: bool, steps: int, convert: Callable[[Any], Any], copy: bool
) -> list[Stored]:
    """What a loop stores that knows nothing of episodes' ends but, under DISABLED, to reset."""
    envs = SyncVectorEnv([partial(CountingEnv, own, truncates) for own in lengths], copy=copy, autoreset_mode=mode)
    boundaries: EpisodeBoundaries[Any] = EpisodeBoundaries()
    stored: list[Stored] = [[] for _ in lengths]
    observations, _ = envs.reset(seed=0)
    for _ in range(steps):
        before = observations.copy()
        observations, rewards, terminated, truncated, infos = envs.step(np.zeros((len(lengths), 1), np.float32))
        row = {"observations": before, "rewards": rewards, "terminated": terminated.copy()}
        next_observations, keep = boundaries.resolve(
            observations=convert(before),
            # Not copied where the environments reuse their buffer: what is remembered must be the object's own.
            next_observations=convert(observations),
            terminated=convert(terminated),
            truncated=convert(truncated),
            infos=infos,
        )
        assert type(next_observations) is type(keep) is type(convert(before))
        store(stored, row, next_observations, keep)
        ended = terminated | truncated
        if mode == AutoresetMode.DISABLED and ended.any():
            observations, _ = envs.reset(options={"reset_mask": ended})
    envs.close()
    return stored


@pytest.mark.parametrize("truncates", [False, True], ids=["terminates", "truncates"])
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
def test_trap_10_every_autoreset_mode_stores_the_same_transitions(
    mode: AutoresetMode, lengths: list[tuple[int, ...]], truncates: bool, convert: Callable[[Any], Any]
) -> None:
    steps = 13
    for own, rows in zip(lengths, drive(mode, lengths, truncates, steps, convert, copy=True), strict=True):
        assert rows == expected(own, truncates, len(rows))
        if mode != AutoresetMode.NEXT_STEP:
            assert len(rows) == steps
        else:
            # Each finished episode took one row more, for the reset after it.
            resets = itertools.accumulate(own[episode % len(own)] + 1 for episode in range(steps))
            assert len(rows) == steps - sum(reset <= steps for reset in resets)


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
def test_environments_that_write_into_one_buffer_give_the_same_transitions(mode: AutoresetMode) -> None:
    lengths = LENGTHS[2]
    assert drive(mode, lengths, False, 13, np.asarray, copy=False) == drive(mode, lengths, False, 13, np.asarray, copy=True)


@pytest.mark.parametrize("truncates", [False, True], ids=["terminates", "truncates"])
def test_trap_11_a_truncated_transition_is_stored_unterminated_with_its_true_successor(truncates: bool) -> None:
    for mode in MODES:
        (rows,) = drive(mode, [(2,)], truncates, 2, np.asarray, copy=True)
        assert rows[1] == ([0.0, 1.0], 2.0, [0.0, 2.0], not truncates)


def test_trap_10_a_trainer_of_one_environment_that_resets_by_itself_loses_no_row(convert: Callable[[Any], Any]) -> None:
    env: gymnasium.Env[NDArray[np.float64], NDArray[np.float32]] = CountingEnv((2, 1, 3))
    boundaries: EpisodeBoundaries[Any] = EpisodeBoundaries()
    stored: list[Stored] = [[]]
    observation, _ = env.reset(seed=0)
    for _ in range(9):
        following, reward, terminated, truncated, infos = env.step(np.zeros(1, np.float32))
        row = {"observations": observation[None], "rewards": np.array([reward]), "terminated": np.array([terminated])}
        next_observations, keep = boundaries.resolve(
            observations=convert(observation[None]),
            next_observations=convert(following[None]),
            terminated=convert(np.array([terminated])),
            truncated=convert(np.array([truncated])),
            infos=infos,
        )
        store(stored, row, next_observations, keep)
        observation = env.reset()[0] if terminated or truncated else following
    assert stored[0] == expected((2, 1, 3), False, 9)


class Rows:
    """Feeds rows of two environments with observations of one number."""

    def __init__(self, convert: Callable[[Any], Any]) -> None:
        self.convert = convert
        self.boundaries: EpisodeBoundaries[Any] = EpisodeBoundaries()

    def __call__(
        self, observations: list[float], following: list[float], ended: list[bool], infos: Any = None
    ) -> tuple[list[float], list[bool]]:
        successors, keep = self.boundaries.resolve(
            observations=self.convert(np.array(observations)[:, None]),
            next_observations=self.convert(np.array(following)[:, None]),
            terminated=self.convert(np.array(ended)),
            truncated=self.convert(np.zeros(2, bool)),
            infos={} if infos is None else infos,
        )
        return np.asarray(successors)[:, 0].tolist(), np.asarray(keep).tolist()


@pytest.fixture
def rows(convert: Callable[[Any], Any]) -> Rows:
    return Rows(convert)


def test_a_reset_row_is_dropped_for_its_own_environment_alone(rows: Rows) -> None:
    assert rows([0, 0], [1, 1], [True, False]) == ([1, 1], [True, True])
    assert rows([1, 1], [5, 2], [False, False]) == ([5, 2], [False, True])
    assert rows([5, 2], [6, 3], [False, False]) == ([6, 3], [True, True])


def test_a_row_that_ends_an_episode_is_no_reset(rows: Rows) -> None:
    """A task of one step whose observations never change: each row is a transition."""
    for _ in range(3):
        assert rows([1, 1], [1, 1], [True, True])[1] == [True, True]
    assert rows([1, 1], [1, 2], [False, False])[1] == [False, False]
    assert rows([1, 2], [1, 3], [False, False])[1] == [True, True]


def test_reset_forgets_the_ended_episode(rows: Rows) -> None:
    rows([0, 0], [1, 1], [True, True])
    rows.boundaries.reset()
    assert rows([1, 1], [2, 2], [False, False])[1] == [True, True]


@pytest.mark.parametrize("form", ["objects", "objects without mask", "list", "dense", "dense with mask", "device", "device with mask"])
def test_trap_10_final_observations_replace_next_observations(rows: Rows, convert: Callable[[Any], Any], form: str) -> None:
    dense, mask = np.array([[9.0], [7.0]]), np.array([True, False])
    objects = np.array([None, None], object)
    objects[0] = dense[0]
    forms: dict[str, dict[str, Any]] = {
        "objects": {"final_obs": objects, "_final_obs": mask},
        "objects without mask": {"final_obs": objects},
        "list": {"final_obs": [dense[0], None]},
        "dense": {"final_obs": dense},
        "dense with mask": {"final_obs": dense, "_final_obs": mask},
        "device": {"final_obs": convert(dense)},
        "device with mask": {"final_obs": convert(dense), "_final_obs": convert(mask)},
    }
    assert rows([0, 0], [3, 1], [True, False], forms[form]) == ([9, 1], [True, True])
    # The next episode starts at 3, or at 9 by chance: reset already, so nothing is to be dropped.
    assert rows([9, 1], [4, 2], [False, False])[1] == [True, True]


def test_an_end_without_final_observation_beside_one_with_it_drops_its_reset_row(rows: Rows) -> None:
    objects = np.array([None, None], object)
    objects[0] = np.array([9.0])
    assert rows([0, 0], [3, 1], [True, True], {"final_obs": objects}) == ([9, 1], [True, True])
    assert rows([9, 1], [4, 2], [False, False])[1] == [True, False]


def test_a_final_observation_of_another_shape_is_refused_with_its_environment(rows: Rows) -> None:
    objects = np.array([None, None], object)
    objects[1] = np.zeros(2)
    with pytest.raises(ValueError, match=r"environment 1 has shape \(2,\), expected \(1,\)"):
        rows([0, 0], [1, 1], [False, True], {"final_obs": objects})
    with pytest.raises(ValueError, match=r"final_obs'\] has shape \(2, 3\), expected \(2, 1\)"):
        rows([0, 0], [1, 1], [False, True], {"final_obs": np.zeros((2, 3))})
    with pytest.raises(ValueError, match="has 1 entries, expected 2"):
        rows([0, 0], [1, 1], [False, True], {"final_obs": [None]})


def test_observations_of_several_axes_and_of_none_are_compared_whole(convert: Callable[[Any], Any]) -> None:
    for shape in [(), (2, 3)]:
        boundaries: EpisodeBoundaries[Any] = EpisodeBoundaries()
        first, last = np.zeros((2, *shape)), np.ones((2, *shape))
        almost = last.copy()
        almost[1] = 0.0 if shape == () else [[1, 1, 1], [1, 1, 0]]
        for observations, following, ended, wanted in [(first, last, True, [True, True]), (almost, first, False, [False, True])]:
            _, keep = boundaries.resolve(
                observations=convert(observations),
                next_observations=convert(following),
                terminated=convert(np.full(2, ended)),
                truncated=convert(np.zeros(2, bool)),
                infos={},
            )
            assert np.asarray(keep).tolist() == wanted


def resolve_twice(first: Any, second: Any, ended: Any, infos: Any) -> Any:
    boundaries: EpisodeBoundaries[Any] = EpisodeBoundaries()
    boundaries.resolve(observations=first, next_observations=second, terminated=ended, truncated=ended, infos=infos)
    return boundaries.resolve(observations=second, next_observations=first, terminated=ended, truncated=ended, infos=infos)


def test_no_value_is_read_from_the_device() -> None:
    """A tracer and a meta tensor have no values: reading one to the host is an error."""
    objects = np.array([np.zeros(3), None], object)
    rows, flags = jnp.zeros((2, 3), jnp.float32), jnp.zeros(2, bool)
    traced = jax.eval_shape(lambda a, b, e: resolve_twice(a, b, e, {"final_obs": objects}), rows, rows, flags)
    assert [(leaf.shape, leaf.dtype) for leaf in traced] == [((2, 3), jnp.float32), ((2,), bool)]

    meta = torch.zeros(2, 3, device="meta")
    ended = torch.zeros(2, dtype=torch.bool, device="meta")
    for infos in ({}, {"final_obs": meta}, {"final_obs": meta, "_final_obs": ended}, {"final_obs": objects}):
        successors, keep = resolve_twice(meta, meta, ended, infos)
        assert (successors.device.type, keep.device.type) == ("meta", "meta")
