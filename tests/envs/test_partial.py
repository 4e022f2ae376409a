"""Wrappers that hide and hand over: against the simulator's own positions and velocities, on every task that they know."""

from typing import Any, Literal

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import SyncVectorEnv
from numpy.typing import NDArray

from sacref import envs
from sacref.envs.partial import DictObservation, HideVelocities, PrivilegedState

# v4 is announced as out of date, and its models hold what MuJoCo has since renamed.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

SKIPPED = {
    "HalfCheetah": 1,
    "Hopper": 1,
    "Walker2d": 1,
    "Ant": 2,
    "Swimmer": 2,
    "Humanoid": 2,
    "HumanoidStandup": 2,
    "InvertedPendulum": 0,
}
"""Task -> the positions that it does not observe."""

ALL_TASKS = [f"{name}-{version}" for name in [*SKIPPED, "InvertedDoublePendulum", "Reacher"] for version in ("v4", "v5")] + ["Pusher-v5"]


def wrapped(task: str, *wrappers: Any, **kwargs: Any) -> gymnasium.Env[Any, Any]:
    if task not in ("Pendulum-v1", "MountainCarContinuous-v0"):
        pytest.importorskip("mujoco")
    made = envs.make(task, 1, wrappers=wrappers, env_kwargs=kwargs)
    assert isinstance(made, SyncVectorEnv)
    env: gymnasium.Env[Any, Any] = made.envs[0]
    return env


def after_some_steps(env: gymnasium.Env[Any, Any]) -> tuple[Any, Any, NDArray[Any], NDArray[Any]]:
    """Observation, info, and the simulator's positions and velocities, after a few random steps."""
    env.reset(seed=0)
    env.action_space.seed(0)
    for _ in range(3):
        observation, _, _, _, info = env.step(env.action_space.sample())
    data = getattr(env.unwrapped, "data", None)
    qpos, qvel = (np.zeros(0), np.zeros(0)) if data is None else (data.qpos.copy(), data.qvel.copy())
    return observation, info, qpos, qvel


@pytest.mark.parametrize("version", ["v4", "v5"])
@pytest.mark.parametrize("task", SKIPPED)
def test_the_parts_are_the_simulators_positions_and_velocities(task: str, version: str) -> None:
    env = wrapped(f"{task}-{version}", DictObservation)
    observation, _, qpos, qvel = after_some_steps(env)
    bound = 10.0 if task in ("Hopper", "Walker2d") else np.inf
    np.testing.assert_array_equal(observation["positions"], qpos[SKIPPED[task] :])
    np.testing.assert_array_equal(observation["velocities"], np.clip(qvel, -bound, bound))
    assert ("others" in observation) == (task.startswith("Humanoid") or f"{task}-{version}" == "Ant-v5")


@pytest.mark.parametrize("task", ["HalfCheetah-v5", "HalfCheetah-v4", "Ant-v5", "Ant-v4", "Swimmer-v5", "Humanoid-v5"])
def test_positions_that_are_observed_on_request_stay(task: str) -> None:
    observation, _, qpos, _ = after_some_steps(wrapped(task, HideVelocities, exclude_current_positions_from_observation=False))
    np.testing.assert_array_equal(observation, qpos)


def test_forces_can_be_left_out_of_the_ant() -> None:
    observation, _, qpos, qvel = after_some_steps(wrapped("Ant-v5", DictObservation, include_cfrc_ext_in_observation=False))
    assert list(observation) == ["positions", "velocities"]
    np.testing.assert_array_equal(np.concatenate(list(observation.values())), np.concatenate([qpos[2:], qvel]))


@pytest.mark.parametrize("version", ["v4", "v5"])
def test_the_double_pendulum(version: Literal["v4", "v5"]) -> None:
    observation, _, qpos, qvel = after_some_steps(wrapped(f"InvertedDoublePendulum-{version}", DictObservation))
    np.testing.assert_array_equal(observation["positions"], [qpos[0], *np.sin(qpos[1:]), *np.cos(qpos[1:])])
    np.testing.assert_array_equal(observation["velocities"], np.clip(qvel, -10, 10))
    assert observation["others"].shape == ({"v4": 3, "v5": 1}[version],)


@pytest.mark.parametrize(("version", "offset"), [("v4", 3), ("v5", 2)])
def test_the_reacher_keeps_where_its_target_is(version: str, offset: int) -> None:
    env = wrapped(f"Reacher-{version}", DictObservation)
    observation, _, qpos, qvel = after_some_steps(env)
    task: Any = env.unwrapped
    way = (task.get_body_com("fingertip") - task.get_body_com("target"))[:offset]
    np.testing.assert_array_equal(observation["positions"], [*np.cos(qpos[:2]), *np.sin(qpos[:2]), *qpos[2:], *way])
    np.testing.assert_array_equal(observation["velocities"], qvel[:2])


def test_the_pusher_keeps_where_its_object_is() -> None:
    env = wrapped("Pusher-v5", DictObservation)
    observation, _, qpos, qvel = after_some_steps(env)
    task: Any = env.unwrapped
    places = np.concatenate([task.get_body_com(name) for name in ("tips_arm", "object", "goal")])
    np.testing.assert_array_equal(observation["positions"], [*qpos[:7], *places])
    np.testing.assert_array_equal(observation["velocities"], qvel[:7])


def test_the_pendulum_shows_its_angle_alone() -> None:
    env = wrapped("Pendulum-v1", HideVelocities)
    observation, _, _, _ = after_some_steps(env)
    task: Any = env.unwrapped
    theta, velocity = task.state
    np.testing.assert_allclose(observation, [np.cos(theta), np.sin(theta)], rtol=1e-6)
    assert env.observation_space == gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)
    assert abs(velocity) > 0.01


def test_the_mountain_car_shows_its_place_alone() -> None:
    env = wrapped("MountainCarContinuous-v0", HideVelocities)
    observation, _, _, _ = after_some_steps(env)
    task: Any = env.unwrapped
    assert observation.tolist() == [task.state[0]]
    assert env.observation_space == gymnasium.spaces.Box(np.float32(-1.2), np.float32(0.6), (1,), np.float32)


@pytest.mark.parametrize("task", [*ALL_TASKS, "Pendulum-v1", "MountainCarContinuous-v0"])
def test_observations_lie_in_their_space_and_every_entry_is_in_one_part(task: str) -> None:
    env, hidden, plain = wrapped(task, DictObservation), wrapped(task, HideVelocities), wrapped(task)
    observation, whole = after_some_steps(env)[0], after_some_steps(plain)[0]
    positions = after_some_steps(hidden)[0]
    assert observation in env.observation_space
    assert positions in hidden.observation_space
    np.testing.assert_array_equal(positions, observation["positions"])
    assert isinstance(env.observation_space, gymnasium.spaces.Dict)
    assert list(env.observation_space.spaces) == [name for name in ("positions", "velocities", "others") if name in observation]
    assert sorted(np.concatenate(list(observation.values())).tolist()) == sorted(whole.tolist())


@pytest.mark.parametrize("task", ["HalfCheetah-v5", "Pendulum-v1"])
def test_critics_get_the_whole_observation_at_every_reset_and_step(task: str) -> None:
    env, plain = wrapped(task, PrivilegedState, HideVelocities), wrapped(task)
    (_, info), (whole, _) = env.reset(seed=0), plain.reset(seed=0)
    env.action_space.seed(0)
    states = []
    for _ in range(4):
        np.testing.assert_array_equal(info["state"], whole)
        states.append((info["state"], whole.copy()))
        action = env.action_space.sample()
        observation, _, _, _, info = env.step(action)
        whole = plain.step(action)[0]
        assert observation.shape[0] < whole.shape[0]
    assert env.get_wrapper_attr("state_space") == plain.observation_space
    # Copies: no later step has changed them.
    assert all(np.array_equal(state, then) for state, then in states)


def test_the_state_is_a_copy_of_what_the_environment_writes_into() -> None:
    class Reused(gymnasium.Env[NDArray[np.float32], int]):
        observation_space: gymnasium.Space[Any] = gymnasium.spaces.Box(-9, 9, (1,))
        action_space: gymnasium.Space[Any] = gymnasium.spaces.Discrete(2)
        array = np.zeros(1, np.float32)

        def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[NDArray[np.float32], dict[str, Any]]:
            return self.array, {"kept": 1}

        def step(self, action: int) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
            self.array += 1
            return self.array, 0.0, False, False, {}

    env = PrivilegedState(Reused())
    info = env.reset()[1]
    env.step(0)
    assert (info["state"].tolist(), info["kept"]) == ([0.0], 1)


def test_the_state_of_a_dict_observation_is_a_dict() -> None:
    env = wrapped("Pendulum-v1", DictObservation, PrivilegedState)
    observation, info = env.reset(seed=3)
    assert {name: part.tolist() for name, part in info["state"].items()} == {name: part.tolist() for name, part in observation.items()}


@pytest.mark.parametrize("wrapper", [HideVelocities, DictObservation])
def test_an_unknown_task_is_refused_by_name(wrapper: Any) -> None:
    with pytest.raises(
        ValueError, match=rf"{wrapper.__name__}: what gymnasium\.\S+cartpole:CartPoleEnv observes is not known.*half_cheetah"
    ):
        wrapper(gymnasium.make("CartPole-v1"))


def test_a_task_that_only_has_the_name_of_a_known_one_is_refused() -> None:
    class PendulumEnv(gymnasium.Env[Any, Any]):
        observation_space = gymnasium.spaces.Box(-1, 1, (3,))
        action_space = gymnasium.spaces.Box(-1, 1, (1,))

    PendulumEnv.__module__ = "somewhere.pendulum"
    with pytest.raises(ValueError, match=r"what somewhere\.pendulum:PendulumEnv observes is not known"):
        HideVelocities(PendulumEnv())


def test_observations_that_a_wrapper_has_changed_are_refused() -> None:
    with pytest.raises(ValueError, match=r"HideVelocities: observation_space is .*expected a Box of 3 numbers.*put the wrapper inside"):
        HideVelocities(gymnasium.wrappers.TimeAwareObservation(gymnasium.make("Pendulum-v1")))
    with pytest.raises(ValueError, match="expected a Box of 3 numbers"):
        HideVelocities(DictObservation(gymnasium.make("Pendulum-v1")))


def test_a_state_without_velocities_is_refused() -> None:
    inner = gymnasium.wrappers.ClipAction(HideVelocities(gymnasium.make("Pendulum-v1")))
    with pytest.raises(ValueError, match=r"name it first, wrappers=\[PrivilegedState, HideVelocities\]"):
        PrivilegedState(inner)


def test_a_second_state_is_refused() -> None:
    with pytest.raises(ValueError, match="has a state_space already, expected none: leave the wrapper out"):
        PrivilegedState(HideVelocities(PrivilegedState(gymnasium.make("Pendulum-v1"))))


@pytest.mark.parametrize("wrapper", [HideVelocities, DictObservation, PrivilegedState])
def test_gymnasium_can_make_the_wrapped_environment_again(wrapper: Any) -> None:
    env = wrapper(gymnasium.make("Pendulum-v1"))
    assert env.spec is not None
    assert gymnasium.make(env.spec).observation_space == env.observation_space
