"""A trainer that knows only the calls of the life cycle, and stands for all the trainers that others have written."""

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from numpy.typing import NDArray

from tests.backends import BACKENDS, Backend, Spaces, forward, load_backend, without_shape_checks
from tests.envs.counting import CountingEnv

backend = pytest.fixture(params=BACKENDS)(load_backend)

MODES = [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP, AutoresetMode.DISABLED]


class OneEnvironment:
    """An environment that is reset by the trainer, with the leading axis that trainers expect."""

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        self.env, self.num_envs = env, 1

    def reset(self) -> tuple[NDArray[Any], dict[str, Any]]:
        observations, infos = self.env.reset(seed=0)
        return observations[None], infos

    def step(self, actions: NDArray[Any]) -> tuple[Any, ...]:
        observations, reward, terminated, truncated, infos = self.env.step(actions[0])
        return observations[None], np.array([reward]), np.array([terminated]), np.array([truncated]), infos


def train(agent: Any, envs: Any, timesteps: int, convert: Callable[[Any], Any], resets: str = "") -> NDArray[Any]:
    """Drive an agent as a trainer does that has no other knowledge of it.

    Args:
        convert: what is done to the environments' arrays before the agent sees them.
        resets: "all" for a trainer that resets after an episode's end, "some" for one that resets the environments which ended.

    Returns:
        All actions that the environments received, `(timesteps, envs, action)`.
    """
    taken = []
    agent.enable_training_mode(True)
    agent.init(trainer_cfg={"timesteps": timesteps})
    observations, _ = envs.reset()
    for timestep in range(timesteps):
        when = {"timestep": timestep, "timesteps": timesteps}
        agent.pre_interaction(**when)
        actions, _ = agent.act(convert(observations), None, **when)
        agent.track_data("Stats / Inference time (ms)", 1.0)
        taken.append(np.asarray(actions))
        following, rewards, terminated, truncated, infos = envs.step(np.asarray(actions))
        agent.record_transition(
            observations=convert(observations),
            states=None,
            actions=actions,
            rewards=convert(rewards[:, None]),
            next_observations=convert(following),
            next_states=None,
            terminated=convert(terminated[:, None]),
            truncated=convert(truncated[:, None]),
            infos=infos,
            **when,
        )
        agent.post_interaction(**when)
        ended = terminated | truncated
        observations = following
        if resets and ended.any():
            observations, _ = envs.reset(options={"reset_mask": ended}) if resets == "some" else envs.reset()
    return np.stack(taken)


def ground_truth(
    lengths: list[tuple[int, ...]], truncates: bool, timesteps: int, rests: bool, actions: NDArray[Any]
) -> list[dict[str, NDArray[Any]]]:
    """What a memory must hold of each environment after `timesteps` of `CountingEnv`s, from their definition alone.

    Args:
        rests: whether an environment takes one timestep between two episodes (NEXT_STEP).
    """
    rows: list[list[tuple[Any, ...]]] = [[] for _ in lengths]
    episodes, steps, resting = ([0] * len(lengths) for _ in range(3))
    for timestep, env in itertools.product(range(timesteps), range(len(lengths))):
        if resting[env]:
            resting[env] = 0
            continue
        episode, step = episodes[env], steps[env]
        ended = step + 1 == lengths[env][episode % len(lengths[env])]
        reward = 100.0 * episode + step + 1
        rows[env].append(([episode, step], actions[timestep, env], reward, [episode, step + 1], ended and not truncates, step == 0))
        episodes[env], steps[env], resting[env] = (episode + 1, 0, int(rests)) if ended else (episode, step + 1, 0)
    names = ("observations", "actions", "rewards", "next_observations", "terminated", "first")
    return [{name: np.array(column) for name, column in zip(names, zip(*own, strict=True), strict=True)} for own in rows]


def assert_stored(agent: Any, truth: list[dict[str, NDArray[Any]]]) -> None:
    stored, envs = agent.memory.arrays(), len(truth)
    assert stored["size"].tolist() == stored["head"].tolist() == [len(own["rewards"]) for own in truth]
    for env, own in enumerate(truth):
        for name, wanted in own.items():
            got = stored[name][env::envs][: len(wanted)]  # a row of each environment in turn
            if name == "actions":
                np.testing.assert_allclose(got * 3.0, wanted, atol=1e-6)  # the Box is -3 to 3
            else:
                np.testing.assert_array_equal(got, wanted, err_msg=name)


def counting_agent(backend: Backend, num_envs: int) -> Any:
    env = CountingEnv(high=3.0)
    # Of two steps, so that it is stored where episodes begin.
    options: dict[str, Any] = {"capacity": 200, "learning_starts": 10**6, "random_timesteps": 5, "n_step": 2, "execution": "plain"}
    return backend.agent(Spaces(env.observation_space, env.action_space), num_envs=num_envs, **options)


@pytest.mark.parametrize("arrays", ["host", "device"])
@pytest.mark.parametrize("truncates", [False, True], ids=["terminates", "truncates"])
@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
def test_trap_10_every_autoreset_mode_fills_the_memory_with_the_truth(
    backend: Backend, mode: AutoresetMode, truncates: bool, arrays: str
) -> None:
    lengths = [(2, 1, 4), (3,), (1,)]
    envs = SyncVectorEnv([partial(CountingEnv, own, truncates, 3.0) for own in lengths], autoreset_mode=mode)
    agent = counting_agent(backend, 3)
    resets = "some" if mode == AutoresetMode.DISABLED else ""
    actions = train(agent, envs, 17, np.asarray if arrays == "host" else backend.array, resets)
    assert_stored(agent, ground_truth(lengths, truncates, 17, mode == AutoresetMode.NEXT_STEP, actions))
    envs.close()


@pytest.mark.parametrize("arrays", ["host", "device"])
@pytest.mark.parametrize("kind", ["plain", "vector"])
def test_trap_10_a_trainer_that_resets_by_itself_fills_the_memory_with_the_truth(backend: Backend, kind: str, arrays: str) -> None:
    lengths = (2, 1, 4)
    envs: Any = (
        OneEnvironment(CountingEnv(lengths, high=3.0)) if kind == "plain" else SyncVectorEnv([lambda: CountingEnv(lengths, high=3.0)])
    )
    agent = counting_agent(backend, 1)
    actions = train(agent, envs, 12, np.asarray if arrays == "host" else backend.array, resets="all")
    assert_stored(agent, ground_truth([lengths], False, 12, False, actions))


def test_trap_10_a_second_training_starts_from_fresh_environments(backend: Backend) -> None:
    """The first run ends at an episode's end; the first row of the second is not its reset row."""
    agent = counting_agent(backend, 1)
    train(agent, SyncVectorEnv([lambda: CountingEnv((2,), high=3.0)]), 2, np.asarray)
    # The second run's environments begin where the first one's ended.
    second = CountingEnv((9,), high=3.0)
    second.reset = lambda **_: (np.array([0.0, 2.0]), {})  # type: ignore[method-assign]
    train(agent, OneEnvironment(second), 1, np.asarray)
    assert agent.memory.arrays()["observations"].tolist() == [[0, 0], [0, 1], [0, 2]]


class Constant(gymnasium.Env[NDArray[np.float32], NDArray[np.float32]]):
    """One observation for ever, reward 1 a step, an episode's end after `length` steps."""

    def __init__(self, length: int, truncates: bool) -> None:
        self.observation_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.length, self.truncates, self.count = length, truncates, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[NDArray[np.float32], dict[str, Any]]:
        super().reset(seed=seed)
        self.count = 0
        return np.full(1, 0.5, np.float32), {}

    def step(self, action: NDArray[np.float32]) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        self.count += 1
        ended = self.count == self.length
        return np.full(1, 0.5, np.float32), 1.0, ended and not self.truncates, ended and self.truncates, {}


@pytest.mark.parametrize(
    ("mode", "length", "truncates", "value"),
    [
        (AutoresetMode.NEXT_STEP, 3, True, 5.0),
        (AutoresetMode.SAME_STEP, 1, True, 5.0),
        (AutoresetMode.NEXT_STEP, 1, False, 1.0),
    ],
    ids=["truncates after 3", "truncates at once", "terminates at once"],
)
def test_trap_11_a_task_that_only_ever_truncates_learns_the_value_of_never_ending(
    backend: Backend, mode: AutoresetMode, length: int, truncates: bool, value: float
) -> None:
    """r / (1 - gamma) = 1 / (1 - 0.8) = 5; where every step terminates, the value is the reward."""
    envs = SyncVectorEnv([lambda: Constant(length, truncates)] * 2, autoreset_mode=mode)
    agent = backend.agent(
        Spaces(envs.single_observation_space, envs.single_action_space),
        num_envs=2,
        capacity=64,
        hidden=(16,),
        batch_size=16,
        discount_factor=0.8,
        polyak=0.2,
        learning_rate=1e-2,
        learn_entropy=False,
        initial_entropy_value=1e-6,
        random_timesteps=250,  # actions everywhere, so that the critics are right everywhere
    )
    with without_shape_checks():
        train(agent, envs, 250, np.asarray)
    arrays = agent.arrays()
    inputs = np.array([[0.5, action] for action in np.linspace(-0.9, 0.9, 7)])
    values = np.stack([forward(arrays, f"critic_{i}", inputs)[:, 0] for i in (1, 2)])
    np.testing.assert_allclose(values, value, rtol=0.05)
    envs.close()
