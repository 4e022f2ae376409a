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

from sacref.algorithm.tree import leaves, map_leaves
from sacref.envs.episodes import NO_RESET_ROWS, EpisodeBoundaries
from tests.envs.counting import CountingEnv

LIBRARIES: dict[str, Callable[[Any], Any]] = {"numpy": np.asarray, "torch": torch.as_tensor, "jax": jnp.asarray}
MODES = [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP, AutoresetMode.DISABLED]
LENGTHS: list[list[tuple[int, ...]]] = [[(3,)], [(1,)], [(2, 1, 4), (3,), (1,)], [(5, 1, 1, 2), (1, 1, 3), (4, 2)]]

Stored = list[tuple[list[float], float, list[float], bool, bool]]
"""Observation, reward, next observation, terminated, and whether it begins an episode."""


@pytest.fixture(params=list(LIBRARIES))
def convert(request: pytest.FixtureRequest) -> Callable[[Any], Any]:
    return LIBRARIES[request.param]


def expected(lengths: tuple[int, ...], truncates: bool, count: int) -> Stored:
    """The first `count` transitions of a `CountingEnv`, written down from its definition."""
    rows: Stored = []
    for episode in range(count):
        length = lengths[episode % len(lengths)]
        for step in range(length):
            terminated = step + 1 == length and not truncates
            rows.append(([episode, step], 100.0 * episode + step + 1, [episode, step + 1], terminated, step == 0))
    return rows[:count]


def flat(tree: Any) -> NDArray[Any]:
    """`(envs, numbers)`: observations, of a Dict space its arrays side by side, on the host."""
    return np.concatenate([np.asarray(leaf).reshape(len(leaf), -1) for leaf in leaves(tree)], axis=1)


def store(stored: list[Stored], row: dict[str, Any], next_observations: Any, keep: Any, first: Any) -> None:
    """Take down the rows that are kept; `first` is what `starts` was before the row."""
    for index in np.flatnonzero(np.asarray(keep)):
        stored[index].append(
            (
                flat(row["observations"])[index].tolist(),
                float(row["rewards"][index]),
                flat(next_observations)[index].tolist(),
                bool(row["terminated"][index]),
                first is None or bool(first[index]),
            )
        )


def nested(env: gymnasium.Env[Any, Any]) -> gymnasium.Env[Any, Any]:
    """The environment with its observation as a Dict of several shapes and dtypes, keys not in the order of the alphabet."""
    inner = gymnasium.spaces.Dict(step=gymnasium.spaces.Box(0, 255, (), np.uint8), again=gymnasium.spaces.Box(-99, 99, (1, 2), np.float32))
    space = gymnasium.spaces.Dict(inner=inner, episode=gymnasium.spaces.Box(-9, 99, (1,), np.float64))

    def observe(observation: NDArray[Any]) -> dict[str, Any]:
        episode, step = observation
        return {
            "inner": {"step": np.array(step, np.uint8), "again": np.array([[episode, -step]], np.float32)},
            "episode": observation[:1].copy(),
        }

    return gymnasium.wrappers.TransformObservation(env, observe, space)


def drive(
    mode: AutoresetMode,
    lengths: list[tuple[int, ...]],
    truncates: bool,
    steps: int,
    convert: Callable[[Any], Any],
    copy: bool,
    wrap: Callable[[gymnasium.Env[Any, Any]], gymnasium.Env[Any, Any]] = lambda env: env,
) -> list[Stored]:
    """What a loop stores that knows nothing of episodes' ends but, under DISABLED, to reset."""

    def make(own: tuple[int, ...]) -> gymnasium.Env[Any, Any]:
        return wrap(CountingEnv(own, truncates))

    envs = SyncVectorEnv([partial(make, own) for own in lengths], copy=copy, autoreset_mode=mode)
    boundaries: EpisodeBoundaries[Any] = EpisodeBoundaries()
    stored: list[Stored] = [[] for _ in lengths]
    observations, _ = envs.reset(seed=0)
    for _ in range(steps):
        before = map_leaves(np.copy, observations)
        observations, rewards, terminated, truncated, infos = envs.step(np.zeros((len(lengths), 1), np.float32))
        row = {"observations": before, "rewards": rewards, "terminated": terminated.copy()}
        first = boundaries.starts
        next_observations, keep = boundaries.resolve(
            observations=map_leaves(convert, before),
            # Not copied where the environments reuse their buffer: what is remembered must be the object's own.
            next_observations=map_leaves(convert, observations),
            terminated=convert(terminated),
            truncated=convert(truncated),
            infos=infos,
        )
        for leaf, given in zip([*leaves(next_observations), keep], [*leaves(observations), terminated], strict=True):
            assert type(leaf) is type(convert(given)) and leaf.dtype == convert(given).dtype
        store(stored, row, next_observations, keep, first)
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


@pytest.mark.parametrize("truncates", [False, True], ids=["terminates", "truncates"])
@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
def test_trap_10_dict_observations_give_the_same_transitions(mode: AutoresetMode, truncates: bool, convert: Callable[[Any], Any]) -> None:
    """Gymnasium's `final_obs` is an object array of dicts then."""
    lengths = LENGTHS[2]
    plain = drive(mode, lengths, truncates, 9, convert, copy=True)

    def as_nested(observation: list[float]) -> list[float]:
        episode, step = observation
        return [step, episode, -step, episode]

    wanted = [[(as_nested(o), reward, as_nested(after), *flags) for o, reward, after, *flags in rows] for rows in plain]
    assert drive(mode, lengths, truncates, 9, convert, copy=False, wrap=nested) == wanted


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
def test_environments_that_write_into_one_buffer_give_the_same_transitions(mode: AutoresetMode) -> None:
    lengths = LENGTHS[2]
    assert drive(mode, lengths, False, 13, np.asarray, copy=False) == drive(mode, lengths, False, 13, np.asarray, copy=True)


@pytest.mark.parametrize("truncates", [False, True], ids=["terminates", "truncates"])
def test_trap_11_a_truncated_transition_is_stored_unterminated_with_its_true_successor(truncates: bool) -> None:
    for mode in MODES:
        (rows,) = drive(mode, [(2,)], truncates, 2, np.asarray, copy=True)
        assert rows[1] == ([0.0, 1.0], 2.0, [0.0, 2.0], not truncates, False)


def test_trap_10_a_trainer_of_one_environment_that_resets_by_itself_loses_no_row(convert: Callable[[Any], Any]) -> None:
    env: gymnasium.Env[NDArray[np.float64], NDArray[np.float32]] = CountingEnv((2, 1, 3))
    boundaries: EpisodeBoundaries[Any] = EpisodeBoundaries()
    stored: list[Stored] = [[]]
    observation, _ = env.reset(seed=0)
    for _ in range(9):
        following, reward, terminated, truncated, infos = env.step(np.zeros(1, np.float32))
        row = {"observations": observation[None], "rewards": np.array([reward]), "terminated": np.array([terminated])}
        first = boundaries.starts
        next_observations, keep = boundaries.resolve(
            observations=convert(observation[None]),
            next_observations=convert(following[None]),
            terminated=convert(np.array([terminated])),
            truncated=convert(np.array([truncated])),
            infos=infos,
        )
        store(stored, row, next_observations, keep, first)
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


def test_a_first_observation_like_the_last_one_is_no_reset_where_infos_say_that_there_are_none(rows: Rows) -> None:
    """A task with a blank observation has such rows under DISABLED and SAME_STEP."""
    for _ in range(2):
        assert rows([0, 0], [0, 0], [True, False], {NO_RESET_ROWS: True}) == ([0, 0], [True, True])
        assert rows([0, 0], [0, 0], [False, False], {NO_RESET_ROWS: True}) == ([0, 0], [True, True])


def test_a_reset_row_is_found_where_one_of_both_was_rounded() -> None:
    numbers = np.random.default_rng(0).normal(size=(3, 1, 4))
    for acted_on, returned in ((np.float32, np.float64), (np.float64, np.float32), (np.float64, np.float64)):
        boundaries: EpisodeBoundaries[Any] = EpisodeBoundaries()
        kept = []
        for number, ended in ((0, True), (1, False)):
            _, keep = boundaries.resolve(
                observations=numbers[number].astype(acted_on),
                next_observations=numbers[number + 1].astype(returned),
                terminated=np.array([ended]),
                truncated=np.array([False]),
                infos={},
            )
            kept.append(keep.tolist())
        assert kept == [[True], [False]]


@pytest.mark.parametrize("mask", [None, [True, True]])
def test_final_observations_count_where_an_episode_has_ended(rows: Rows, mask: Any) -> None:
    """Environments may hand over one for each, whose mask is all true, or none."""
    infos = {"final_obs": rows.convert(np.array([[7], [8]]))} | ({} if mask is None else {"_final_obs": rows.convert(np.array(mask))})
    assert rows([0, 0], [1, 1], [True, False], infos) == ([7, 1], [True, True])


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


@pytest.mark.parametrize(
    "form", ["objects", "objects without mask", "list", "list with mask", "dense", "dense with mask", "device", "device with mask"]
)
def test_trap_10_final_observations_replace_next_observations(rows: Rows, convert: Callable[[Any], Any], form: str) -> None:
    dense, mask = np.array([[9.0], [7.0]]), np.array([True, False])
    objects = np.array([None, None], object)
    objects[0] = dense[0]
    forms: dict[str, dict[str, Any]] = {
        "objects": {"final_obs": objects, "_final_obs": mask},
        "objects without mask": {"final_obs": objects},
        "list": {"final_obs": [dense[0], None]},
        "list with mask": {"final_obs": list(dense), "_final_obs": mask},
        "dense": {"final_obs": dense},
        "dense with mask": {"final_obs": dense, "_final_obs": mask},
        "device": {"final_obs": convert(dense)},
        "device with mask": {"final_obs": convert(dense), "_final_obs": convert(mask)},
    }
    assert rows([0, 0], [3, 1], [True, False], forms[form]) == ([9, 1], [True, True])
    # The next episode starts at 3, or at 9 by chance: reset already, so nothing is to be dropped.
    assert rows([9, 1], [4, 2], [False, False])[1] == [True, True]


@pytest.mark.parametrize("form", ["objects", "dense", "dense with mask", "device"])
def test_trap_10_final_observations_of_a_dict_space(convert: Callable[[Any], Any], form: str) -> None:
    dense = {"a": np.array([9, 7], np.uint8), "b": {"c": np.array([[9.5, 8.5], [7.5, 6.5]])}}
    objects = np.array([{"a": 9, "b": {"c": np.array([9.5, 8.5])}}, None], object)
    forms: dict[str, dict[str, Any]] = {
        "objects": {"final_obs": objects, "_final_obs": np.array([True, False])},
        "dense": {"final_obs": dense},
        "dense with mask": {"final_obs": dense, "_final_obs": np.array([True, False])},
        "device": {"final_obs": map_leaves(convert, dense)},
    }
    ended = [True, form == "dense with mask"]
    boundaries: EpisodeBoundaries[Any] = EpisodeBoundaries()

    def row(observations: Any, following: Any, ended: list[bool], infos: Any) -> tuple[Any, list[bool]]:
        successors, keep = boundaries.resolve(
            observations=map_leaves(convert, observations),
            next_observations=map_leaves(convert, following),
            terminated=convert(np.zeros(2, bool)),
            truncated=convert(np.array(ended)),
            infos=infos,
        )
        return successors, np.asarray(keep).tolist()

    following = {"a": np.array([1, 2], np.uint8), "b": {"c": np.array([[1.5, 2.5], [3.5, 4.5]])}}
    successors, keep = row(dense, following, ended, forms[form])
    assert list(successors) == ["a", "b"]
    assert (np.asarray(successors["a"]).tolist(), keep) == ([9, 2], [True, True])
    assert np.asarray(successors["b"]["c"]).tolist() == [[9.5, 8.5], [3.5, 4.5]]
    assert np.asarray(boundaries.starts).tolist() == ended
    # Environment 0 was reset already; environment 1 was not where it ended without a final observation.
    assert row(following, dense, [False, False], {})[1] == [True, not ended[1]]
    assert np.asarray(boundaries.starts).tolist() == [False, ended[1]]


def test_rows_of_a_dict_space_are_a_reset_only_if_all_keys_say_so(convert: Callable[[Any], Any]) -> None:
    for key in ("a", "b"):
        boundaries: EpisodeBoundaries[Any] = EpisodeBoundaries()
        last = {"a": convert(np.zeros((2, 1))), "b": convert(np.zeros(2))}
        other = {**last, key: convert(np.array([[0.0], [1.0]]) if key == "a" else np.array([0.0, 1.0]))}
        for observations, ended, wanted in [(last, True, [True, True]), (other, False, [False, True])]:
            flags = convert(np.full(2, ended))
            _, keep = boundaries.resolve(
                observations=observations, next_observations=last, terminated=flags, truncated=convert(np.zeros(2, bool)), infos={}
            )
            assert np.asarray(keep).tolist() == wanted


@pytest.mark.parametrize(
    ("final", "message"),
    [
        ({"a": np.zeros(2)}, r"final_obs'\] has the keys \['a'\], expected a dict with 'b' .*give it every key"),
        (np.zeros(2), r"final_obs'\] is a ndarray, expected a dict with 'a'"),
        ([{"a": 0.0}, None], r"final_obs'\] of environment 0 has the keys \['a'\], expected a dict with 'b'"),
        ([None, np.zeros(2)], r"final_obs'\] of environment 1 is a ndarray, expected a dict with 'a'"),
        ([{"a": 0.0, "b": np.zeros(3)}, None], r"final_obs'\]\['b'\] of environment 0 has shape \(3,\), expected \(2,\)"),
        ({"a": np.zeros(2), "b": np.zeros(2)}, r"final_obs'\]\['b'\] has shape \(2,\), expected \(2, 2\)"),
        ({"a": {"c": np.zeros(2)}, "b": np.zeros((2, 2))}, r"final_obs'\]\['a'\] is a dict, expected an array of shape \(2,\)"),
    ],
)
def test_a_final_observation_of_other_keys_is_refused(final: Any, message: str) -> None:
    observations = {"a": np.zeros(2), "b": np.zeros((2, 2))}
    with pytest.raises(ValueError, match=message):
        resolve_twice(observations, observations, np.ones(2, bool), {"final_obs": final})


def test_where_the_next_row_begins(rows: Rows) -> None:
    def starts() -> Any:
        return np.asarray(rows.boundaries.starts).tolist()

    assert rows.boundaries.starts is None
    rows([0, 0], [1, 1], [False, True])
    assert starts() == [False, True]
    assert rows([1, 1], [2, 0], [False, False])[1] == [True, False]
    assert starts() == [False, True]  # after a row that is no transition
    rows([2, 0], [3, 1], [False, False])
    assert starts() == [False, False]
    rows.boundaries.reset()
    assert rows.boundaries.starts is None


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


@pytest.mark.parametrize("final", [np.array([[300], [0]]), np.array([np.array([0.5]), None], object)], ids=["too large", "a fraction"])
def test_final_observations_that_observations_cannot_hold_are_refused_by_name(final: Any) -> None:
    ended, observations = np.array([True, False]), np.zeros((2, 1), np.uint8)
    row = {"observations": observations, "next_observations": observations, "terminated": ended, "truncated": ~ended & False}
    with pytest.raises(ValueError, match=r"infos\['final_obs'\] hold numbers that uint8, in which observations are stored, has not"):
        EpisodeBoundaries[Any]().resolve(**row, infos={"final_obs": final})
    running = np.where(np.array([[True], [False]]), np.array([[7.0], [np.nan]]), np.array([[0.0], [np.nan]]))
    found, _ = EpisodeBoundaries[Any]().resolve(**row, infos={"final_obs": running})
    assert isinstance(found, np.ndarray) and found.tolist() == [[7], [0]]
