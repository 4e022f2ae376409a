"""What environments do against Gymnasium's interface is said in our words, and what they write into is theirs."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

import sacref.envs
from sacref import training
from sacref.envs.episodes import EpisodeBoundaries
from sacref.envs.states import state_space_of
from sacref.training.evaluation import evaluate
from tests.envs.counting import CountingEnv
from tests.fake_agent import FakeAgent

MODES = [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP, AutoresetMode.DISABLED]


class Odd(CountingEnv):
    """Returns what `step` and `reset` make of what a counting environment returns."""

    def __init__(self, step: Callable[..., Any] | None = None, reset: Callable[..., Any] | None = None) -> None:
        super().__init__()
        self._step, self._reset = step, reset

    def reset(self, **arguments: Any) -> Any:
        returned = super().reset(**arguments)
        return returned if self._reset is None else self._reset(*returned)

    def step(self, action: Any) -> Any:
        returned = super().step(action)
        return returned if self._step is None else self._step(*returned)


def old_step(observation: Any, reward: Any, terminated: Any, truncated: Any, info: Any) -> Any:
    return observation, reward, terminated, info


def replaced(place: int, value: Any) -> Callable[..., Any]:
    return lambda *returned: (*returned[:place], value, *returned[place + 1 :])


def nothing(*returned: Any) -> None: ...


STEPS = {
    "four values": (old_step, r"Odd\.step returned 4 values, expected 5: return observation, reward, terminated, .* as Gymnasium 0\.26"),
    "nothing": (nothing, r"Odd\.step returned a NoneType, expected 5: return observation"),
    "no info": (replaced(4, None), r"Odd\.step returned an info that is None, expected a dict: .*\{\} for no info"),
    "a column": (
        replaced(0, np.zeros((2, 1))),
        r"returned an observation of shape \(2, 1\), expected \(2,\) as its observation_space says",
    ),
    "text": (replaced(0, np.array(["a", "b"])), r"returned an observation of dtype <U1, expected float64 as its observation_space says"),
    "None": (replaced(0, None), r"Odd\.step returned an observation of shape \(\), expected \(2,\)"),
    "reward of (1,)": (replaced(1, np.ones(1)), r"Odd\.step returned a reward that is an array of shape \(1,\), expected a number: float"),
    "too large an integer": (replaced(1, 10**400), r"Odd\.step returned a reward that is 1000.*, expected a number: float"),
    "no reward": (replaced(1, None), r"Odd\.step returned a reward that is None, expected a number"),
    "terminated of (1,)": (replaced(2, np.ones(1, bool)), r"a terminated that is an array of shape \(1,\), expected True or False: bool"),
    "truncated": (replaced(3, "no"), r"Odd\.step returned a truncated that is 'no', expected True or False"),
}
RESETS = {
    "observation alone": (lambda observation, info: observation, r"Odd\.reset returned a ndarray, expected 2: return observation, info"),
    "no info": (replaced(1, None), r"Odd\.reset returned an info that is None, expected a dict"),
    "a column": (replaced(0, np.zeros((2, 1))), r"Odd\.reset returned an observation of shape \(2, 1\), expected \(2,\)"),
}


@pytest.mark.parametrize(("step", "message"), STEPS.values(), ids=STEPS)
def test_what_a_step_returns_against_the_interface_is_named(step: Any, message: str) -> None:
    envs = sacref.envs.make(partial(Odd, step), 2)
    envs.reset(seed=0)
    with pytest.raises((TypeError, ValueError), match=message):
        envs.step(np.zeros((2, 1), np.float32))


@pytest.mark.parametrize(("reset", "message"), RESETS.values(), ids=RESETS)
def test_what_a_reset_returns_against_the_interface_is_named(reset: Any, message: str) -> None:
    envs = sacref.envs.make(partial(Odd, None, reset), 2)
    with pytest.raises((TypeError, ValueError), match=message):
        envs.reset(seed=0)


def test_a_reset_without_seed_is_refused_when_the_environment_is_made() -> None:
    unseeded = type("Unseeded", (CountingEnv,), {"reset": lambda self: CountingEnv.reset(self)})
    with pytest.raises(TypeError, match=r"Unseeded\.reset takes \(\), expected the keywords seed and options: define it as reset"):
        sacref.envs.make(unseeded, 1)


def test_what_a_wrapper_returns_is_checked_too() -> None:
    def tall(env: Any) -> Any:
        return gymnasium.wrappers.TransformObservation(env, lambda observation: observation[:, None], env.observation_space)

    envs = sacref.envs.make(CountingEnv, 1, wrappers=[tall])
    with pytest.raises(ValueError, match=r"TransformObservation\.reset returned an observation of shape \(2, 1\), expected \(2,\)"):
        envs.reset()


def test_what_a_function_puts_around_its_task_is_checked_too() -> None:
    class Silent(gymnasium.Wrapper[Any, Any, Any, Any]):
        def step(self, action: Any) -> Any:
            return replaced(2, None)(*super().step(action))

    envs = sacref.envs.make(lambda: Silent(CountingEnv()), 1)
    envs.reset(seed=0)
    with pytest.raises(ValueError, match=r"Silent\.step returned a terminated that is None, expected True or False"):
        envs.step(np.zeros((1, 1), np.float32))


def test_an_environment_that_is_registered_is_checked_inside_of_its_wrappers() -> None:
    gymnasium.register("sacref/Odd-v0", partial(Odd, old_step), max_episode_steps=5, disable_env_checker=True)
    try:
        envs = sacref.envs.make("sacref/Odd-v0", 1)
        envs.reset(seed=0)
        with pytest.raises(ValueError, match=r"Odd\.step returned 4 values, expected 5"):
            envs.step(np.zeros((1, 1), np.float32))
    finally:
        del gymnasium.registry["sacref/Odd-v0"]


def test_a_dict_without_a_key_is_named() -> None:
    class Halves(Odd):
        def __init__(self) -> None:
            super().__init__(reset=lambda observation, info: ({"a": observation}, info))
            vars(self)["observation_space"] = gymnasium.spaces.Dict(a=self.observation_space, b=self.observation_space)

    with pytest.raises(ValueError, match=r"Halves\.reset returned an observation with the keys \['a'\], expected the keys \['a', 'b'\]"):
        sacref.envs.make(Halves, 1).reset()


def test_a_vector_environment_of_four_values_is_named() -> None:
    class Old(SyncVectorEnv[Any, Any]):
        def step(self, actions: Any) -> Any:
            return old_step(*super().step(actions))

    with pytest.raises(ValueError, match=r"Old\.step returned 4 values, expected 5"):
        training.run(FakeAgent(), Old([CountingEnv]), timesteps=1)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("final", [np.full(2, 777.0), None, "mine"], ids=["array", "None", "text"])
def test_a_final_observation_in_the_infos_of_an_environment_is_its_own(mode: AutoresetMode, final: Any) -> None:
    def run(step: Any) -> list[tuple[list[Any], list[Any]]]:
        agent, boundaries = FakeAgent(), EpisodeBoundaries[Any]()
        envs = sacref.envs.make(partial(Odd, step), 2, autoreset_mode=mode)
        training.run(agent, envs, timesteps=7)
        names = ("observations", "next_observations", "terminated", "truncated", "infos")
        rows = [{name: np.ravel(row[name]) if name[0] == "t" else row[name] for name in names} for row in agent.rows]
        return [tuple(part.tolist() for part in boundaries.resolve(**row)) for row in rows]

    assert run(replaced(4, {"final_obs": final, "final_info": 3})) == run(None)


class Integers(Odd):
    """Returns an integer of 64 bits as its observation, and has a space of another dtype."""

    def __init__(self, dtype: Any, value: int) -> None:
        super().__init__(replaced(0, np.array([value])), replaced(0, np.array([0])))
        vars(self)["observation_space"] = gymnasium.spaces.Box(0, 100, (1,), dtype)


@pytest.mark.parametrize(("dtype", "value"), [(np.int8, 300), (np.int32, 3_000_000_000)])
def test_integers_beyond_the_dtype_of_the_space_are_refused(dtype: Any, value: int) -> None:
    envs = sacref.envs.make(partial(Integers, dtype, value), 2)
    envs.reset(seed=0)
    with pytest.raises(ValueError) as raised:
        envs.step(np.zeros((2, 1), np.float32))
    assert str(raised.value) == (
        f"Integers.step returned an observation whose entries hold numbers beyond {np.dtype(dtype)}, which the space says: give the space "
        f"the dtype that the environment returns"
    )


def test_integers_within_the_dtype_of_the_space_are_taken_in_any_other() -> None:
    envs = sacref.envs.make(partial(Integers, np.int8, 127), 2)
    envs.reset(seed=0)
    observations = envs.step(np.zeros((2, 1), np.float32))[0]
    assert observations.dtype == np.int8 and observations.tolist() == [[127], [127]]


# Whose arrays they are.


class Writing(CountingEnv):
    """Writes into all that it is given, and every observation into one array."""

    def __init__(self) -> None:
        super().__init__((2,))
        self.held = np.zeros(2)
        self.state_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float64)

    def reset(self, **arguments: Any) -> Any:
        return self._returned(super().reset(**arguments)[0])

    def step(self, action: Any) -> Any:
        np.clip(action, -0.5, 0.5, out=action)
        action *= 0.1
        observation, *others, _ = super().step(action)
        observation, info = self._returned(observation)
        return observation, *others, info

    def _returned(self, observation: Any) -> Any:
        self.held[:] = observation
        return self.held, {"state": [self.held, self.held]}


@pytest.mark.parametrize("loop", ["training", "evaluation"])
def test_the_chosen_action_is_recorded_where_the_environment_writes_into_it(loop: str) -> None:
    agent, envs = FakeAgent(scale=0.125), sacref.envs.make(Writing, 2)
    agent.updates = 7
    if loop == "training":
        training.run(agent, envs, timesteps=3)
        assert [row["actions"].tolist() for row in agent.rows] == [[[0.875]] * 2, [[1.0]] * 2, [[1.125]] * 2]
    else:
        evaluate(agent, envs, episodes=2)
        assert [row["actions"].tolist() for row in agent.rows] == [[[-0.875]] * 2] * 2


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_the_last_observation_of_an_episode_outlives_the_reset_that_writes_over_it(vectorization: Literal["sync", "async"]) -> None:
    envs = sacref.envs.make(Writing, 2, vectorization=vectorization, autoreset_mode=AutoresetMode.SAME_STEP)
    try:
        envs.reset(seed=0)
        for _ in range(2):
            observations, *_, infos = envs.step(np.zeros((2, 1), np.float32))
        assert observations.tolist() == [[1.0, 0.0]] * 2
        assert [row.tolist() for row in infos["final_obs"]] == [[0.0, 2.0]] * 2
        assert np.array(infos["final_info"]["state"].tolist()).tolist() == [[[0.0, 2.0]] * 2] * 2
    finally:
        envs.close()


def test_a_reset_may_write_into_the_mask_that_it_is_given() -> None:
    class Clearing(SyncVectorEnv[Any, Any]):
        def reset(self, *, seed: Any = None, options: Any = None) -> Any:
            mask = None if options is None else options["reset_mask"]
            returned = super().reset(seed=seed, options=options)
            if mask is not None:
                mask[:] = False
            return returned

    class Stated(CountingEnv):
        def state(self) -> Any:
            return self._observe()

    agent = FakeAgent()
    envs = Clearing([partial(Stated, (2,))] * 2, autoreset_mode=AutoresetMode.DISABLED)
    training.run(agent, envs, timesteps=3, state_space=envs.single_observation_space)
    assert [row["states"].tolist() for row in agent.rows] == [row["observations"].tolist() for row in agent.rows]
    assert agent.rows[-1]["states"].tolist() == [[1.0, 0.0]] * 2


# Infos of the environment's own.


class Telling(CountingEnv):
    """Puts whatever into `info["state"]`; it has no state_space."""

    count = 0

    def __init__(self, kind: str) -> None:
        super().__init__((2,))
        self.kind, self.number = kind, Telling.count
        Telling.count += 1

    def reset(self, **arguments: Any) -> Any:
        return super().reset(**arguments)[0], self._info()

    def step(self, action: Any) -> Any:
        *others, _ = super().step(action)
        return *others, {} if self.kind == "at resets" else self._info()

    def _info(self) -> Any:
        # Each differs between the copies and from step to step.
        kinds: dict[str, Callable[[], Any]] = {
            "an int": lambda: self.step_number,
            "at resets": lambda: np.ones(3),
            "of varying length": lambda: np.ones(self.step_number + self.number),
            "a dict or not": lambda: {"x": 1.0} if self.number else 2,
            "a number or not": lambda: "idle" if self.number else 2.0,
            "huge": lambda: 2**80 if self.number else 1,
        }
        return {"state": kinds[self.kind]()}


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
@pytest.mark.parametrize("kind", ["an int", "at resets", "of varying length", "a dict or not", "a number or not", "huge"])
def test_a_state_without_a_space_is_the_environments_own(kind: str, mode: AutoresetMode) -> None:
    Telling.count = 0
    envs = sacref.envs.make(partial(Telling, kind), 2, autoreset_mode=mode)
    assert state_space_of(envs) is None
    agent = FakeAgent()
    training.run(agent, envs, timesteps=5, state_space=None)
    assert len(agent.rows) == 5
    assert all(row["states"] is None for row in agent.rows)


def test_infos_that_fit_into_no_array_are_an_entry_for_each_copy() -> None:
    Telling.count = 0
    envs = sacref.envs.make(partial(Telling, "of varying length"), 3)
    _, infos = envs.reset()
    assert [entry.tolist() for entry in infos["state"]] == [[], [1.0], [1.0, 1.0]]
    assert infos["_state"].tolist() == [True, True, True]
    Telling.count = 0
    _, infos = sacref.envs.make(partial(Telling, "a dict or not"), 3).reset()
    assert infos["state"].tolist() == [2, {"x": 1.0}, {"x": 1.0}]
