"""Privileged states through Gymnasium's vector environments: every row the right one, under every autoreset mode, or a clear error."""

from typing import Any, Literal

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from sacref import envs
from sacref.envs.partial import HideVelocities, PrivilegedState
from sacref.envs.states import final_states, state_space_of, states_of
from tests.conftest import Backend
from tests.envs.counting import CountingEnv

STATE = Box(-np.inf, np.inf, (3,), np.float64)
NESTED = Dict(body=Dict(place=Box(-np.inf, np.inf, (2,), np.float32)), lamp=Box(0, 255, (), np.uint8))


class StatefulEnv(CountingEnv):
    """Counts in its state as well: `(episode, step, number of the copy)`.

    Args:
        form: "array", "list", "dict" (as `NESTED`), "method" (by `state()`), or "nothing".
        space: its `state_space`; None for none at all.
        on_reset, on_step: whether the state is handed over there.
    """

    copies = 0

    def __init__(
        self,
        lengths: tuple[int, ...] = (2,),
        form: str = "array",
        space: Any = STATE,
        on_reset: bool = True,
        on_step: bool = True,
    ) -> None:
        super().__init__(lengths)
        self.form, self.on_reset, self.on_step = form, on_reset, on_step
        if space is not None:
            self.state_space = space
        if form == "method":
            self.state = self._state
        self.number = StatefulEnv.copies
        StatefulEnv.copies += 1

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[NDArray[np.float64], dict[str, Any]]:
        observation, _ = super().reset(seed=seed, options=options)
        return observation, self._info(self.on_reset)

    def step(self, action: NDArray[np.float32]) -> tuple[NDArray[np.float64], float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, _ = super().step(action)
        return observation, reward, terminated, truncated, self._info(self.on_step)

    def _info(self, hands_over: bool) -> dict[str, Any]:
        if not hands_over or self.form in ("method", "nothing"):
            return {"other": 1.0}
        return {"other": 1.0, "state": self._state()}

    def _state(self) -> Any:
        row = [self.episode, self.step_number, self.number]
        if self.form == "list":
            return [float(number) for number in row]
        if self.form == "dict":
            return {"body": {"place": np.array(row[:2], np.float32)}, "lamp": np.uint8(self.number)}
        return np.array(row, np.float64)


def made(num_envs: int = 2, mode: AutoresetMode = AutoresetMode.NEXT_STEP, wrappers: Any = (), **kwargs: Any) -> Any:
    StatefulEnv.copies = 0
    return envs.make(StatefulEnv, num_envs, autoreset_mode=mode, env_kwargs=kwargs, wrappers=wrappers)


def act(vector: Any) -> tuple[NDArray[np.float64], Any]:
    """Observations and infos of a step."""
    observations, *_, infos = vector.step(np.zeros((vector.num_envs, 1), np.float32))
    return observations, infos


def numbered(observations: NDArray[np.float64]) -> list[list[float]]:
    """The states that belong to these observations: with the number of the copy."""
    return [[*row, number] for number, row in enumerate(observations.tolist())]


def rows(tree: Any) -> Any:
    return {key: rows(branch) for key, branch in tree.items()} if isinstance(tree, dict) else tree.tolist()


# --- The space.


def test_the_space_is_found_through_wrappers() -> None:
    wrappers = [lambda env: gymnasium.wrappers.TimeLimit(env, 5), gymnasium.wrappers.ClipAction]
    assert state_space_of(made(wrappers=wrappers)) == STATE
    assert state_space_of(gymnasium.wrappers.vector.ClipAction(made())) == STATE


@pytest.mark.parametrize("space", [None, "attribute that is None"])
@pytest.mark.parametrize("form", ["nothing", "array", "list", "dict", "method"])
def test_without_a_space_there_is_no_state_whatever_the_infos_hold(space: Any, form: str) -> None:
    vector = made(form=form, space=None)
    if space is not None:
        vector.set_attr("state_space", [None, None])
    assert state_space_of(vector) is None
    assert states_of(vector, vector.reset()[1], None) is None


def test_spaces_that_differ_or_are_none_are_refused() -> None:
    vector = made()
    vector.set_attr("state_space", [STATE, Box(-1, 1, (3,))])
    with pytest.raises(ValueError, match="state_space differs between the environments"):
        state_space_of(vector)
    with pytest.raises(TypeError, match=r"state_space is a tuple, expected a gymnasium\.Space"):
        state_space_of(made(space=(3,)))


# --- The rows.


@pytest.mark.parametrize("mode", AutoresetMode)
@pytest.mark.parametrize("form", ["array", "list", "method"])
@pytest.mark.parametrize("lengths", [(2,), (2, 3)])
def test_each_observation_has_its_state_under_every_mode(mode: AutoresetMode, form: str, lengths: tuple[int, ...]) -> None:
    vector = made(mode=mode, form=form, lengths=lengths)
    # Out of step with each other: one of the two is an episode ahead.
    vector.envs[1].reset()
    observations, infos = vector.reset(seed=0)
    space = state_space_of(vector)
    states: Any = states_of(vector, infos, space)
    assert states.dtype == np.float64
    ends = 0
    for _ in range(9):
        assert states.tolist() == numbered(observations)
        observations, _, terminated, _, infos = vector.step(np.zeros((2, 1), np.float32))
        states = states_of(vector, infos, space)
        ends += int(terminated.sum())
        if mode == AutoresetMode.DISABLED and terminated.any():
            assert states.tolist() == numbered(observations)
            observations, infos = vector.reset(options={"reset_mask": terminated})
            before = states.copy()
            states = states_of(vector, infos, space, previous=states, reset_mask=terminated)
            assert (before != states).any(axis=1).tolist() == terminated.tolist()
    assert ends >= 4


def test_a_nested_dict_of_several_dtypes() -> None:
    vector = made(form="dict", space=NESTED)
    observations, infos = vector.reset()
    for _ in range(4):
        states = states_of(vector, infos, NESTED)
        assert states is not None
        assert rows(states) == {"body": {"place": observations.tolist()}, "lamp": [0, 1]}
        assert (states["body"]["place"].dtype, states["lamp"].dtype) == (np.float32, np.uint8)
        observations, infos = act(vector)


def test_environments_in_processes_of_their_own() -> None:
    vector = envs.make("Pendulum-v1", 2, vectorization="async", wrappers=[PrivilegedState, HideVelocities], seed=0)
    plain = envs.make("Pendulum-v1", 2, vectorization="async", seed=0)
    try:
        space = state_space_of(vector)
        assert space == plain.single_observation_space
        assert state_space_of(plain) is None
        _, infos = vector.reset(seed=1)
        whole, _ = plain.reset(seed=1)
        np.testing.assert_array_equal(states_of(vector, infos, space), whole)
        _, infos = act(vector)
        np.testing.assert_array_equal(states_of(vector, infos, space), act(plain)[0])
    finally:
        vector.close()
        plain.close()


def test_the_state_has_the_dtype_of_its_space() -> None:
    vector = made(space=Box(-np.inf, np.inf, (3,), np.float32))
    states = states_of(vector, vector.reset()[1], state_space_of(vector))
    assert states is not None and states.dtype == np.float32


class Mixed(CountingEnv):
    """Hands over integers at a reset and fractions at a step; its copies' episodes end at different steps.

    Args:
        dtype: of the state at a reset; None for lists of Python's numbers.
    """

    state_space = Box(-np.inf, np.inf, (2,), np.float64)
    copies = 0

    def __init__(self, dtype: Any) -> None:
        super().__init__((2,) if Mixed.copies % 2 == 0 else (9,))
        self.dtype = dtype
        Mixed.copies += 1

    def reset(self, **arguments: Any) -> Any:
        state: Any = [0, 1]
        return super().reset(**arguments)[0], {"state": state if self.dtype is None else np.array(state, self.dtype)}

    def step(self, action: Any) -> Any:
        state: Any = [self.step_number + 0.5, 300.0]
        *others, _ = super().step(action)
        return *others, {"state": state if self.dtype is None else np.array(state)}


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP], ids=lambda mode: mode.name)
@pytest.mark.parametrize("dtype", [None, np.int64, np.int8, np.float16], ids=["list", "int64", "int8", "float16"])
def test_copies_whose_states_have_other_dtypes_keep_their_numbers(dtype: Any, mode: AutoresetMode) -> None:
    Mixed.copies = 0
    vector = envs.make(Mixed, 2, autoreset_mode=mode, env_kwargs={"dtype": dtype})
    vector.reset(seed=0)
    seen, last = [], []
    for _ in range(3):
        _, infos = act(vector)
        states: Any = states_of(vector, infos, Mixed.state_space)
        final: Any = final_states(infos, states)
        seen.append(states.tolist())
        last.append(final.tolist())
    steps = [[[0.5 + step, 300.0]] * 2 for step in range(3)]
    if mode == AutoresetMode.NEXT_STEP:
        assert seen == last == [*steps[:2], [[0.0, 1.0], steps[2][1]]]
    else:  # the first copy's episode ends at the second step and begins anew in it
        assert seen == [steps[0], [[0.0, 1.0], steps[1][1]], [[0.5, 300.0], steps[2][1]]]
        assert last == [steps[0], steps[1], [[0.5, 300.0], steps[2][1]]]


@pytest.mark.parametrize("form", ["list", "array"])
def test_the_last_states_of_copies_have_dtypes_of_their_own(form: str) -> None:
    class Last(CountingEnv):
        state_space = Box(-np.inf, np.inf, (2,), np.float64)

        def __init__(self) -> None:
            super().__init__((1,))
            self.number = StatefulEnv.copies
            StatefulEnv.copies += 1

        def reset(self, **arguments: Any) -> Any:
            return super().reset(**arguments)[0], {"state": [0.25, 0.25]}

        def step(self, action: Any) -> Any:
            state: Any = [0.5, 0.75] if self.number else [0, 1]
            *others, _ = super().step(action)
            return *others, {"state": state if form == "list" else np.array(state)}

    StatefulEnv.copies = 0
    vector = envs.make(Last, 2, autoreset_mode=AutoresetMode.SAME_STEP)
    vector.reset(seed=0)
    _, infos = act(vector)
    final: Any = final_states(infos, states_of(vector, infos, Last.state_space))
    assert final.tolist() == [[0.0, 1.0], [0.5, 0.75]]


# --- The last states of episodes.


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_an_episode_that_is_reset_within_the_step_keeps_its_last_state(vectorization: Literal["sync", "async"]) -> None:
    vector = envs.make(StatefulEnv, 2, vectorization=vectorization, autoreset_mode=AutoresetMode.SAME_STEP, env_kwargs={"lengths": (2, 3)})
    try:
        first: Any = states_of(vector, vector.reset()[1], STATE)
        number = first[:, 2].tolist()
        seen = []
        for _ in range(5):
            _, infos = act(vector)
            next_states: Any = states_of(vector, infos, STATE)
            before = next_states.copy()
            final: Any = final_states(infos, next_states)
            seen.append((before[0].tolist()[:2], final.tolist()))
            np.testing.assert_array_equal(next_states, before)
        episodes = [([0, 1], [0, 1]), ([1, 0], [0, 2]), ([1, 1], [1, 1]), ([1, 2], [1, 2]), ([2, 0], [1, 3])]
        assert seen == [(after, [[*last, copy] for copy in number]) for after, last in episodes]
    finally:
        vector.close()


def test_only_the_environments_that_ended_are_replaced() -> None:
    vector = made(mode=AutoresetMode.SAME_STEP, lengths=(2, 3, 4))
    vector.envs[1].reset()
    vector.reset()
    results = []
    for _ in range(3):
        _, infos = act(vector)
        final: Any = final_states(infos, states_of(vector, infos, STATE))
        results.append(final.tolist())
    assert results == [[[0, 1, 0], [1, 1, 1]], [[0, 2, 0], [1, 2, 1]], [[1, 1, 0], [1, 3, 1]]]


def test_the_last_state_may_be_a_dict() -> None:
    vector = made(mode=AutoresetMode.SAME_STEP, form="dict", space=NESTED)
    vector.reset()
    act(vector)
    _, infos = act(vector)
    next_states = states_of(vector, infos, NESTED)
    assert rows(next_states)["body"] == {"place": [[1, 0], [1, 0]]}
    final = final_states(infos, next_states)
    assert rows(final) == {"body": {"place": [[0, 2], [0, 2]]}, "lamp": [0, 1]}
    assert final is not None and final["lamp"].dtype == np.uint8


def test_arrays_of_any_library_keep_library_and_dtype(xp: Backend) -> None:
    infos = {
        "final_info": {"state": np.array([[1.0, 2.0], [9.0, 9.0], [5.0, 6.0]]), "_state": np.array([True, False, True])},
        "_final_info": np.array([True, False, True]),
    }
    next_states = xp.asarray([[10.0, 20.0], [30.0, 40.0], [50.0, 60.0]])
    assert xp.numpy(final_states(infos, next_states)).tolist() == [[1.0, 2.0], [30.0, 40.0], [5.0, 6.0]]


@pytest.mark.parametrize("masked", [True, False])
def test_last_infos_of_all_count_where_an_episode_has_ended(xp: Backend, masked: bool) -> None:
    """Environments may hand over one for each, whose mask is all true, or none."""
    infos: dict[str, Any] = {"final_info": {"state": xp.asarray([[1.0, 2.0], [9.0, 9.0], [5.0, 6.0]])}}
    infos |= {"_final_info": xp.asarray([1, 1, 1]) != 0} if masked else {}
    next_states, ended = xp.asarray([[10.0, 20.0], [30.0, 40.0], [50.0, 60.0]]), xp.asarray([0, 1, 0]) != 0
    assert xp.numpy(final_states(infos, next_states, ended)).tolist() == [[10.0, 20.0], [9.0, 9.0], [50.0, 60.0]]


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.DISABLED])
def test_other_modes_replace_nothing(mode: AutoresetMode) -> None:
    vector = made(mode=mode)
    vector.reset()
    for _ in range(2):
        _, infos = act(vector)
        next_states = states_of(vector, infos, STATE)
        assert final_states(infos, next_states) is next_states


def test_without_states_there_are_no_final_ones() -> None:
    vector = made(mode=AutoresetMode.SAME_STEP, form="nothing", space=None)
    vector.reset()
    act(vector)
    _, infos = act(vector)
    assert "final_info" in infos
    assert final_states(infos, None) is None


# --- What is missing or does not fit.


def test_a_space_without_a_state_is_refused() -> None:
    vector = made(form="nothing")
    with pytest.raises(
        ValueError, match=r'environments \[0, 1\] have a state_space, Box.*handed over no state: put it into info\["state"\]'
    ):
        states_of(vector, vector.reset()[1], STATE)


@pytest.mark.parametrize("mode", AutoresetMode)
def test_a_step_or_reset_that_hands_over_no_state_is_refused(mode: AutoresetMode) -> None:
    vector = made(mode=mode, on_step=False)
    vector.reset()
    with pytest.raises(ValueError, match="handed over no state"):
        states_of(vector, act(vector)[1], STATE)
    vector = made(mode=mode, on_reset=False)
    with pytest.raises(ValueError, match="handed over no state"):
        states_of(vector, vector.reset()[1], STATE)


def test_one_environment_without_a_state_is_named() -> None:
    vector = made(num_envs=3)
    vector.envs[1].on_step = False
    vector.reset()
    with pytest.raises(ValueError, match=r"environments \[1\] have a state_space"):
        states_of(vector, act(vector)[1], STATE)


def test_an_environment_that_leaves_out_a_key_is_named() -> None:
    vector = made(form="dict", space=NESTED)
    _, infos = vector.reset()
    infos["state"]["_lamp"][1] = False
    with pytest.raises(ValueError, match=r"environments \[1\] have a state_space"):
        states_of(vector, infos, NESTED)


def test_a_reset_of_some_must_hand_over_their_states() -> None:
    vector = made(mode=AutoresetMode.DISABLED, on_reset=False, lengths=(9,))
    vector.reset()
    states = states_of(vector, act(vector)[1], STATE)
    mask = np.array([False, True])
    _, infos = vector.reset(options={"reset_mask": mask})
    with pytest.raises(ValueError, match=r"environments \[1\] have a state_space"):
        states_of(vector, infos, STATE, previous=states, reset_mask=mask)


def test_a_last_state_that_was_not_handed_over_is_refused() -> None:
    vector = made(mode=AutoresetMode.SAME_STEP, form="method")
    vector.reset()
    act(vector)
    _, infos = act(vector)
    with pytest.raises(ValueError, match=r"environments \[0, 1\] were reset within the step .*holds no state.*NEXT_STEP"):
        final_states(infos, states_of(vector, infos, STATE))
    without_info = {key: value for key, value in infos.items() if "final_info" not in key}
    with pytest.raises(ValueError, match=r"environments \[0, 1\] were reset within the step"):
        final_states(without_info, np.zeros((2, 3)))


@pytest.mark.parametrize(
    ("form", "space", "error", "message"),
    [
        ("array", Box(-1, 1, (4,)), ValueError, r"info\['state'\] has shape \(3,\), expected \(4,\) as state_space says"),
        ("list", Box(-1, 1, (4,)), ValueError, r"info\['state'\] has shape \(3,\), expected \(4,\)"),
        ("method", Box(-1, 1, (4,)), ValueError, r"state\(\) has shape \(3,\), expected \(4,\)"),
        ("array", Box(0, 9, (3,), np.int64), TypeError, r"info\['state'\] has dtype float64, expected int64 as state_space says"),
        ("array", NESTED, TypeError, r"info\['state'\] is a ndarray, expected a dict with the keys \['body', 'lamp'\]"),
        ("dict", STATE, TypeError, r"info\['state'\] is a dict, expected an array of shape \(3,\)"),
        ("dict", Dict(lamp=NESTED["lamp"], fan=STATE), ValueError, r"lacks the keys \['fan'\] and has the unknown keys \['body'\]"),
        ("dict", Dict(body=NESTED["body"]), ValueError, r"lacks the keys \[\] and has the unknown keys \['lamp'\], expected \['body'\]"),
    ],
)
def test_a_state_that_does_not_fit_its_space_is_refused(form: str, space: Any, error: type[Exception], message: str) -> None:
    vector = made(form=form, space=space)
    with pytest.raises(error, match=message):
        states_of(vector, vector.reset()[1], space)


def test_states_that_their_space_cannot_hold_are_refused_by_name() -> None:
    space, environments = Box(0, 9, (2,), np.int16), envs.make(CountingEnv, 1)
    with pytest.raises(ValueError, match=r"info\['state'\] hold numbers beyond int16, which the space says"):
        states_of(environments, {"state": np.full((1, 2), 2**15)}, space)
    taken = states_of(environments, {"state": np.full((1, 2), 2**15 - 1)}, space)
    assert isinstance(taken, np.ndarray) and taken.dtype == np.int16 and taken.tolist() == [[2**15 - 1] * 2]
