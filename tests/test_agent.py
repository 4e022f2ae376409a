"""The promises of the life cycle, on both backends: what any trainer that makes these calls may rely on."""

import inspect
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
import pytest
from numpy.typing import NDArray

from sacref.agent import protocol
from sacref.agent.episodes import UNREAD
from sacref.agent.execution import pack
from sacref.agent.metrics import TAGS, unmeasured
from sacref.algorithm.data import METRICS
from sacref.config import ConfigError, ExperimentConfig, SACConfig
from tests.backends import (
    BACKENDS,
    Backend,
    Spaces,
    assert_same_arrays,
    box,
    draw_batch,
    draw_row,
    fill,
    forward,
    installed_backends,
    jax_in_full,
    load_backend,
)

backend = pytest.fixture(params=BACKENDS)(load_backend)

ROW = "observations, states, actions, rewards, next_observations, next_states, terminated, truncated, infos, timestep, timesteps"
CONTRACT = {
    "__init__": "*, models, memory=, observation_space, state_space=, action_space, device=, cfg=",
    "init": "*, trainer_cfg=",
    "act": "observations, states, *, timestep, timesteps",
    "predict": "observations, states=, *, carry=, episode_start=, rewards=, deterministic=",
    "record_transition": f"*, {ROW}",
    "pre_interaction": "*, timestep, timesteps",
    "post_interaction": "*, timestep, timesteps",
    "update": "*, timestep, timesteps",
    "enable_training_mode": "enabled=, *, apply_to_models=",
    "enable_models_training_mode": "enabled=",
    "track_data": "tag, value",
    "write_tracking_data": "*, timestep, timesteps",
    "write_checkpoint": "*, timestep, timesteps",
    "save": "path, *, replay=, keep_memory=, live=",
    "load": "path",
}


def parameters_of(function: Any) -> list[inspect.Parameter]:
    return [p for p in inspect.signature(function).parameters.values() if p.name != "self"]


def written(function: Any) -> str:
    """The parameters as in the contract; a default is an `=`."""
    parts: list[str] = []
    for parameter in parameters_of(function):
        assert parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        if parameter.kind is parameter.KEYWORD_ONLY and "*" not in parts:
            parts.append("*")
        parts.append(parameter.name + ("" if parameter.default is parameter.empty else "="))
    return ", ".join(parts)


def metrics_lines(agent: Any) -> list[dict[str, Any]]:
    """What the run's metrics.jsonl holds."""
    path = agent.experiment_dir / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def tracking(tmp_path: Path, write: int | str = 1, checkpoints: int | str = 0) -> ExperimentConfig:
    return ExperimentConfig(directory=str(tmp_path), experiment_name="run", write_interval=write, checkpoint_interval=checkpoints)  # type: ignore[arg-type]


def live(agent: Any, steps: int, timesteps: int = 1000, start: int = 0, **given: Any) -> None:
    """The calls of a training loop on random rows."""
    generator = np.random.default_rng(start)
    for timestep in range(start, start + steps):
        when = {"timestep": timestep, "timesteps": timesteps}
        agent.pre_interaction(**when)
        row = draw_row(agent, generator, **when, **given)
        agent.act(row["observations"], None, **when)
        agent.record_transition(**row)
        agent.post_interaction(**when)


# Names and signatures.


@pytest.mark.parametrize("method", CONTRACT)
def test_signatures_are_the_contract(backend: Backend, method: str) -> None:
    assert written(getattr(backend.package.SAC, method)) == CONTRACT[method]


def test_the_other_names_have_the_contracts_signatures(backend: Backend) -> None:
    package = backend.package
    assert written(package.ReplayMemory) == "capacity, num_envs, device="
    assert written(package.default_models) == (
        "*, observation_space, state_space=, action_space, hidden=, seed=, dtype=, num_critics=, layer_norm=, dropout=, recurrent=, "
        "recurrent_size=, feed_previous=, network=, critic_hidden="
    )
    assert package.SAC_CFG is package.SACConfig is SACConfig
    assert written(package.SAC_RNN) == written(package.SAC)


def test_signatures_are_the_same_on_both_backends() -> None:
    torch, jax = (backend.package for backend in installed_backends())

    def public(cls: type) -> dict[str, list[tuple[str, Any, Any]]]:
        names = [name for name in dir(cls) if not name.startswith("_") or name == "__init__"]
        methods = {name: getattr(cls, name) for name in names if callable(getattr(cls, name))}
        return {name: [(p.name, p.kind, p.default) for p in parameters_of(method)] for name, method in methods.items()}

    assert public(torch.SAC) == public(jax.SAC)
    assert public(torch.SAC_RNN) == public(jax.SAC_RNN)
    torch_memory, jax_memory = public(torch.ReplayMemory), public(jax.ReplayMemory)
    # What draws the positions is a generator there and a key here.
    assert [p[0] for p in torch_memory.pop("sample")] == ["batch_size", "generator"]
    assert [p[0] for p in jax_memory.pop("sample")] == ["batch_size", "key"]
    assert torch_memory == jax_memory
    assert torch.__all__ == jax.__all__


def test_an_agent_is_what_the_trainers_of_the_package_ask_for(backend: Backend) -> None:
    agent = backend.agent()
    assert isinstance(agent, protocol.Agent)
    assert type(agent).__mro__[1].__name__ == "Agent"
    assert agent.alpha == pytest.approx(0.2)
    assert agent.recent_returns == ()


def test_a_dict_of_fields_is_a_configuration_and_is_checked_again(backend: Backend) -> None:
    spaces = Spaces()
    models = backend.package.default_models(observation_space=spaces.observation, action_space=spaces.action, hidden=(4,))
    common = {"models": models, "observation_space": spaces.observation, "action_space": spaces.action}
    assert backend.package.SAC(**common, cfg={"batch_size": 7}).cfg.batch_size == 7
    assert backend.package.SAC(**common).cfg == SACConfig()
    with pytest.raises(ConfigError, match=r"batch_sice.*batch_size"):
        backend.package.SAC(**common, cfg={"batch_sice": 7})
    stale = SACConfig()
    arguments: Any = stale.learning_rate_scheduler_kwargs
    arguments["gamma"] = 0.9
    with pytest.raises(ConfigError, match="learning_rate_scheduler_kwargs"):
        backend.package.SAC(**common, cfg=stale)


# Acting.

BOXES = {
    "symmetric": box(-2.0, 2.0, (2,)),
    "asymmetric": box([-1.0, 0.5], [3.0, 0.75]),
    "matrix": box(np.arange(6.0).reshape(2, 3) - 3.0, np.arange(6.0).reshape(2, 3) ** 2 + 1.0),
}


def by_hand(agent: Any, observations: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Mean, log_std and the deterministic action in the Box's units, from the arrays."""
    outputs = forward(agent.arrays(), "policy", observations.reshape(len(observations), -1).astype(np.float64))
    mean, log_std = np.split(outputs, 2, axis=1)
    low, high = (np.asarray(bound, np.float64).reshape(-1) for bound in (agent.action_space.low, agent.action_space.high))
    greedy = low + (np.tanh(mean) + 1) / 2 * (high - low)
    return mean, np.clip(log_std, -20, 2), greedy.reshape(len(observations), *agent.action_space.shape)


@pytest.mark.parametrize("space", BOXES.values(), ids=BOXES)
def test_actions_are_in_the_box_and_in_its_units(backend: Backend, space: gymnasium.spaces.Box) -> None:
    envs = 512
    agent = backend.agent(Spaces(action=space), random_timesteps=1, capacity=None)
    observations = np.random.default_rng(0).normal(size=(envs, 3))
    mean, log_std, greedy = by_hand(agent, observations)
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)

    actions, extras = agent.act(observations, None, timestep=0, timesteps=9)
    assert isinstance(actions, backend.array_type)
    assert isinstance(extras["mean_actions"], backend.array_type)
    uniform = (agent.to_numpy(actions) - low) / (high - low)
    assert uniform.shape == (envs, *space.shape)
    assert -1e-6 <= uniform.min() < 0.02 < 0.98 < uniform.max() <= 1 + 1e-6
    np.testing.assert_allclose(uniform.mean(0), 0.5, atol=5 / math.sqrt(12 * envs))
    np.testing.assert_allclose(uniform.std(0), math.sqrt(1 / 12), rtol=0.1)
    np.testing.assert_allclose(agent.to_numpy(extras["mean_actions"]), greedy, atol=1e-5)

    actions, extras = agent.act(observations, None, timestep=1, timesteps=9)
    sampled = (agent.to_numpy(actions).astype(np.float64) - low) / (high - low)
    assert sampled.shape == (envs, *space.shape)
    noise = (np.arctanh(np.clip(2 * sampled.reshape(envs, -1) - 1, -1 + 1e-7, 1 - 1e-7)) - mean) / np.exp(log_std)
    np.testing.assert_allclose(noise.mean(0), 0, atol=5 / math.sqrt(envs))
    np.testing.assert_allclose(noise.std(0), 1, rtol=0.2)
    np.testing.assert_allclose(agent.to_numpy(extras["mean_actions"]), greedy, atol=1e-5)
    assert np.all((agent.to_numpy(actions) >= space.low) & (agent.to_numpy(actions) <= space.high))

    agent.enable_training_mode(False)
    actions, extras = agent.act(observations, None, timestep=0, timesteps=9)
    np.testing.assert_allclose(agent.to_numpy(actions), greedy, atol=1e-5)
    np.testing.assert_array_equal(agent.to_numpy(actions), agent.to_numpy(extras["mean_actions"]))


def test_saturated_actions_are_in_a_box_of_more_digits_than_the_agents(backend: Backend) -> None:
    space = gymnasium.spaces.Box(np.array([-0.1, 0.3]), np.array([0.1, 0.7]), dtype=np.float64)
    agent = backend.agent(Spaces(action=space), capacity=8)
    arrays = agent.arrays()
    arrays["policy.head.bias"][:2] = 30.0, -30.0
    agent.set_arrays(arrays)
    actions, _ = agent.act(np.zeros((1, 3)), None, timestep=0, timesteps=9)
    found = agent.to_numpy(actions)
    assert found.dtype == np.float32
    assert space.contains(found[0].astype(np.float64)), found
    np.testing.assert_allclose(found[0], [0.1, 0.3], rtol=2e-7)
    for taken in (found, actions):
        agent.record_transition(**draw_row(agent, np.random.default_rng(0), actions=taken))
        agent.init()
    assert agent.memory.arrays()["actions"].tolist() == [[1.0, -1.0]] * 2


@pytest.mark.parametrize(("own", "agents"), [("float16", "float32"), (">f4", "float32"), ("float64", "float32"), ("float32", "float64")])
def test_the_box_contains_what_act_returns_whatever_its_floats(backend: Backend, own: str, agents: str) -> None:
    space = box([-0.1, 0.3], [0.1, 0.7], dtype=np.dtype(own))
    agent = backend.agent(Spaces(action=space), capacity=8, dtype=agents, random_timesteps=1)
    for timestep in range(2):
        actions, extras = agent.act(np.ones((1, 3)), None, timestep=timestep, timesteps=9)
        for found in (actions, extras["mean_actions"]):
            assert space.contains(agent.to_numpy(found)[0]), found
        for taken in (agent.to_numpy(actions), actions):
            agent.record_transition(**draw_row(agent, np.random.default_rng(0), actions=taken))
            agent.init()
    stored, low, high = agent.memory.arrays()["actions"], space.low.astype(np.float64), space.high.astype(np.float64)
    assert stored.dtype == np.dtype(agents)
    np.testing.assert_allclose(stored[2], 2 * (agent.to_numpy(actions)[0].astype(np.float64) - low) / (high - low) - 1, atol=1e-6)
    np.testing.assert_allclose(stored[2], stored[3], atol=1e-6)


def test_actions_of_a_box_nearly_as_wide_as_float32_are_stored_as_they_were_chosen(backend: Backend) -> None:
    agent = backend.agent(Spaces(action=box(-1e38, 1e38, (2,))))
    actions = np.array([[-7.5e37, 9e37]], np.float32)
    for taken in (actions, backend.array(actions)):
        agent.record_transition(**draw_row(agent, np.random.default_rng(0), actions=taken))
        agent.init()
    np.testing.assert_allclose(agent.memory.arrays()["actions"], [[-0.75, 0.9]] * 2, rtol=1e-6)


def test_a_box_is_judged_in_the_agents_floats(backend: Backend) -> None:
    space = box([0.0, 1e8], [1.0, 1e8 + 1], dtype=np.float64)
    message = r"action_space is Box.*from low \[100000000.0\] to high \[100000001.0\] in dimensions \[1\] float32 has \[0\] steps, expected"
    with pytest.raises(ValueError, match=message):
        backend.agent(Spaces(action=space))
    agent = backend.agent(Spaces(action=space), dtype="float64")
    agent.record_transition(**draw_row(agent, np.random.default_rng(0), actions=np.array([[0.25, 1e8 + 0.75]])))
    np.testing.assert_allclose(agent.memory.arrays()["actions"], [[-0.5, 0.5]], atol=1e-7)


@pytest.mark.parametrize("space", BOXES.values(), ids=BOXES)
def test_stored_actions_are_in_minus_one_to_one(backend: Backend, space: gymnasium.spaces.Box) -> None:
    agent = backend.agent(Spaces(action=space))
    generator = np.random.default_rng(0)
    width = space.high - space.low
    quarter = np.linspace(0, 1, width.size, dtype=np.float32).reshape(space.shape)
    for actions in (space.low, space.high, space.low + width / 2, space.low + quarter * width, space.high + 1.0):
        agent.record_transition(**draw_row(agent, generator, actions=actions[None]))
    agent.init()
    agent.record_transition(**draw_row(agent, generator, actions=backend.array((space.low + width / 2)[None])))
    stored = agent.memory.arrays()["actions"]
    size = width.size
    wanted: list[Any] = [[-1.0] * size, [1.0] * size, [0.0] * size, (2 * quarter - 1).reshape(-1), [1.0] * size, [0.0] * size]
    np.testing.assert_allclose(stored, wanted, atol=1e-5)


def test_actions_of_integers_are_not_scaled_as_integers(backend: Backend) -> None:
    agent = backend.agent(Spaces(action=box(-0.4, 0.8, (2,))))
    agent.record_transition(**draw_row(agent, np.random.default_rng(0), actions=np.zeros((1, 2), int)))
    agent.init()
    agent.record_transition(**draw_row(agent, np.random.default_rng(0), actions=backend.array(np.zeros((1, 2), int))))
    np.testing.assert_allclose(agent.memory.arrays()["actions"], -1 / 3, rtol=1e-6)


def test_numpy_and_device_arrays_are_the_same_to_the_agent(backend: Backend) -> None:
    agents = [backend.agent(num_envs=2) for _ in range(2)]
    converts: list[Callable[[Any], Any]] = [np.asarray, backend.array]
    for convert, agent in zip(converts, agents, strict=True):
        generator = np.random.default_rng(3)
        for timestep in range(5):
            row = draw_row(agent, generator, timestep=timestep)
            row = {name: convert(value) if isinstance(value, np.ndarray) else value for name, value in row.items()}
            row["actions"], extras = agent.act(row["observations"], None, timestep=timestep, timesteps=9)
            assert isinstance(row["actions"], backend.array_type)
            assert isinstance(extras["mean_actions"], backend.array_type)
            if convert is np.asarray:
                row["actions"] = agent.to_numpy(row["actions"])
            agent.record_transition(**row)
            agent.post_interaction(timestep=timestep, timesteps=9)
    a, b = (agent.memory.arrays() for agent in agents)
    assert len(a["rewards"]) == 10
    for name in a:
        np.testing.assert_allclose(a[name], b[name], rtol=1e-6, atol=1e-6)
    a, b = (agent.arrays() for agent in agents)
    for name in a:
        np.testing.assert_allclose(a[name], b[name], rtol=1e-3, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("kinds", ["hddhdd", "hhhddh", "dhhdhd"])
def test_rows_may_come_as_numpy_arrays_now_and_as_device_arrays_then(backend: Backend, kinds: str) -> None:
    """Episodes and their ends are followed across: memory and returns are those of rows of one kind."""
    stored, returns = [], []
    for kinds_of_rows in ("hhhhhh", kinds):
        agent, successors = backend.agent(num_envs=2), np.zeros((2, 3))
        agent.write_interval = 1000
        for number, kind in enumerate(kinds_of_rows):
            # The first environment's episode ends with row 2, so that row 3 is its reset; the second's with row 5.
            row = draw_row(agent, np.random.default_rng(number), rewards=np.full((2, 1), 2.0**number, np.float32), observations=successors)
            row["terminated"], successors = np.array([[number == 2], [number == 5]]), row["next_observations"]
            arrays = ("observations", "actions", "rewards", "next_observations", "terminated", "truncated")
            agent.record_transition(**(row | {name: backend.array(row[name]) for name in arrays if kind == "d"}))
        stored.append(agent.memory.arrays())
        agent.metrics.statistics[True].summary(agent.to_numpy)
        returns.append(agent.recent_returns)
    assert stored[1]["size"].tolist() == [5, 6]
    assert returns == [(1.0 + 2.0 + 4.0, 63.0)] * 2
    for name in stored[0]:
        np.testing.assert_allclose(stored[1][name], stored[0][name], rtol=1e-6, err_msg=name)


def test_flat_rewards_are_taken_like_columns(backend: Backend) -> None:
    agent = backend.agent(num_envs=2)
    row = draw_row(
        agent, np.random.default_rng(0), rewards=np.array([1.5, 2.5]), terminated=np.array([True, False]), truncated=[False, False]
    )
    agent.record_transition(**row)
    stored = agent.memory.arrays()
    assert stored["rewards"].tolist() == [1.5, 2.5]
    assert stored["terminated"].tolist() == [True, False]


def test_a_rewards_shaper_shapes_what_is_stored_and_not_what_is_counted(backend: Backend) -> None:
    calls: list[tuple[tuple[int, ...], int, int]] = []

    def halve(rewards: Any, timestep: int, timesteps: int) -> Any:
        calls.append((tuple(rewards.shape), timestep, timesteps))
        return rewards / 2

    agent = backend.agent(num_envs=2, rewards_shaper=halve, experiment=ExperimentConfig(write_interval=100, checkpoint_interval=0))
    for convert in (np.asarray, backend.array):
        row = draw_row(agent, np.random.default_rng(0), timestep=4, rewards=convert(np.array([[4.0], [6.0]])))
        row["truncated"] = np.ones((2, 1), bool)
        agent.record_transition(**row)
        agent.init()
    assert calls == [((2, 1), 4, 1000)] * 2
    assert agent.memory.arrays()["rewards"].tolist() == [2.0, 3.0, 2.0, 3.0]
    agent.write_tracking_data(timestep=1, timesteps=1000)
    assert agent.recent_returns == (4.0, 6.0, 4.0, 6.0)
    agent.close()


# Evaluation.


def test_trap_13_evaluation_is_deterministic_also_at_timestep_0(backend: Backend) -> None:
    agent = backend.agent(num_envs=8, random_timesteps=1000, training=False)
    observations = np.random.default_rng(0).normal(size=(8, 3))
    greedy = by_hand(agent, observations)[2]
    streams = agent.learner.stream_states()
    for timestep in (0, 1, 999):
        actions, extras = agent.act(observations, None, timestep=timestep, timesteps=1000)
        np.testing.assert_allclose(agent.to_numpy(actions), greedy, atol=1e-5)
        np.testing.assert_array_equal(agent.to_numpy(actions), agent.to_numpy(extras["mean_actions"]))
    assert_same_arrays(agent.learner.stream_states(), streams)


def test_agents_are_made_in_evaluation_mode_and_switched(backend: Backend) -> None:
    agent = backend.agent(training=False)
    modes = [agent.training]
    agent.enable_training_mode()
    modes.append(agent.training)
    agent.enable_training_mode(enabled=False, apply_to_models=True)
    modes.append(agent.training)
    assert modes == [False, True, False]


def test_evaluation_changes_the_statistics_alone(backend: Backend, tmp_path: Path) -> None:
    agent = backend.agent(num_envs=2, experiment=tracking(tmp_path, write=100))
    live(agent, 3)
    agent.enable_training_mode(False)
    before = agent.arrays(), agent.memory.arrays(), agent.learner.stream_states(), agent.gradient_step_count
    generator = np.random.default_rng(1)
    for timestep in range(4):
        row = draw_row(agent, generator, timestep=timestep, rewards=np.array([[1.0], [2.0]]), terminated=np.full((2, 1), timestep == 3))
        agent.act(row["observations"], None, timestep=timestep, timesteps=4)
        agent.record_transition(**row)
        agent.post_interaction(timestep=timestep, timesteps=4)
    for then, now in zip(before[:3], (agent.arrays(), agent.memory.arrays(), agent.learner.stream_states()), strict=True):
        assert_same_arrays(then, now)
    assert agent.gradient_step_count == before[3] == 3
    returns = agent.recent_returns
    agent.write_tracking_data(timestep=7, timesteps=100)
    (line,) = metrics_lines(agent)
    assert line["Evaluation / Reward / Total reward (min)"] == 4.0
    assert line["Evaluation / Reward / Total reward (max)"] == 8.0
    assert line["Evaluation / Episode / Total timesteps (mean)"] == 4.0
    assert agent.recent_returns == returns
    agent.close()


def test_an_agent_without_memory_acts_and_evaluates_only(backend: Backend) -> None:
    agent = backend.agent(capacity=None, training=False)
    row = draw_row(agent, np.random.default_rng(0))
    agent.act(row["observations"], None, timestep=0, timesteps=1)
    agent.record_transition(**row)
    agent.post_interaction(timestep=0, timesteps=1)
    agent.enable_training_mode()
    with pytest.raises(ValueError, match=r"no memory to store in.*ReplayMemory"):
        agent.record_transition(**row)
    with pytest.raises(ValueError, match=r"no memory to learn from.*ReplayMemory"):
        agent.update(timestep=0, timesteps=1)


def test_a_policy_alone_is_enough_to_act(backend: Backend) -> None:
    spaces = Spaces()
    models = backend.package.default_models(observation_space=spaces.observation, action_space=spaces.action, hidden=(8,))
    agent = backend.agent(capacity=None, training=False, models={"policy": models["policy"]})
    observations = np.ones((1, 3))
    np.testing.assert_allclose(
        agent.to_numpy(agent.act(observations, None, timestep=0, timesteps=1)[0]), by_hand(agent, observations)[2], atol=1e-6
    )


# When it learns.


def test_the_base_class_tracks_and_checkpoints_without_learning(backend: Backend, tmp_path: Path) -> None:
    agent = backend.agent(experiment=tracking(tmp_path, write=2, checkpoints=4))
    fill(agent, 4)
    before = agent.arrays()
    for timestep in range(4):
        agent.track_data("Info / x", timestep)
        super(type(agent), agent).post_interaction(timestep=timestep, timesteps=4)
    assert_same_arrays(agent.arrays(), before)
    assert [line["timestep"] for line in metrics_lines(agent)] == [2, 4]
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["agent_4"]
    agent.post_interaction(timestep=4, timesteps=4)
    assert agent.gradient_step_count == 1
    agent.close()


def test_trap_14_timesteps_count_vector_steps(backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = backend.agent(
        num_envs=3,
        capacity=99,
        random_timesteps=2,
        learning_starts=3,
        gradient_steps=2,
        experiment=tracking(tmp_path, write=5, checkpoints=5),
    )
    ways: list[str] = []
    choose = agent.acting.choose

    def spy(way: str, *inputs: Any) -> Any:
        ways.append(way)
        return choose(way, *inputs)

    monkeypatch.setattr(agent.acting, "choose", spy)
    counts = []
    for timestep in range(5):
        live(agent, 1, start=timestep)
        counts.append(agent.gradient_step_count)
    assert ways == ["random", "random", "sampled", "sampled", "sampled"]
    assert counts == [0, 0, 0, 2, 4]
    assert len(agent.memory) == 15
    (line,) = metrics_lines(agent)
    assert (line["timestep"], line["environment_steps"]) == (5, 15)
    assert (tmp_path / "run" / "checkpoints" / "agent_5" / "checkpoint.json").is_file()
    agent.close()


def test_post_interaction_does_not_learn_outside_of_training(backend: Backend) -> None:
    agent = backend.agent()
    fill(agent, 4)
    agent.enable_training_mode(False)
    agent.post_interaction(timestep=5, timesteps=9)
    assert agent.gradient_step_count == 0
    agent.update(timestep=5, timesteps=9)
    assert agent.gradient_step_count == 1


def test_gradient_steps_of_0_collect_without_learning(backend: Backend) -> None:
    agent = backend.agent(gradient_steps=0)
    live(agent, 3)
    assert (agent.gradient_step_count, len(agent.memory)) == (0, 3)


def test_learning_from_an_empty_memory_is_refused(backend: Backend) -> None:
    agent = backend.agent()
    with pytest.raises(ValueError, match="memory is empty: record transitions in training mode first"):
        agent.post_interaction(timestep=0, timesteps=1)


def test_models_take_the_training_mode_when_asked(backend: Backend) -> None:
    agent = backend.agent()
    fill(agent, 4)
    agent.keep_gradients()
    agent.enable_training_mode(False, apply_to_models=True)
    agent.enable_training_mode(True, apply_to_models=True)
    agent.update(timestep=0, timesteps=1)
    assert np.abs(agent.gradients()["policy.head.bias"]).max() > 0


# Tracking.

SEED_TAGS = {
    "Loss / Critic loss",
    "Loss / Policy loss",
    "Loss / Entropy loss",
    "Coefficient / Entropy coefficient",
    *(f"Q-network / Q{i} ({kind})" for i in (1, 2) for kind in ("max", "min", "mean")),
    *(f"Target / Target ({kind})" for kind in ("max", "min", "mean")),
    *(f"Reward / Total reward ({kind})" for kind in ("max", "min", "mean")),
    *(f"Reward / Instantaneous reward ({kind})" for kind in ("max", "min", "mean")),
    *(f"Episode / Total timesteps ({kind})" for kind in ("max", "min", "mean")),
}


def test_all_curves_are_written_under_their_tags(backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = backend.agent(experiment=tracking(tmp_path, write=3))
    metrics: list[NDArray[Any]] = []
    keep = agent.metrics.track_updates

    def spy(measured: Any) -> None:
        metrics.extend(agent.to_numpy(packed).astype(np.float64) for packed in measured)
        keep(measured)

    monkeypatch.setattr(agent.metrics, "track_updates", spy)
    live(agent, 3, rewards=np.array([[2.0]]), truncated=np.ones((1, 1), bool))
    (line,) = metrics_lines(agent)
    assert set(line) >= SEED_TAGS
    assert set(line) - SEED_TAGS == {"timestep", "environment_steps", "wall_time", "Policy / Entropy", "Stats / Algorithm update time (ms)"}
    reduce: dict[str, Callable[[Any], Any]] = {"(max)": np.max, "(min)": np.min}
    rows = np.concatenate(metrics)
    assert rows.shape == (3, len(agent.metrics.tags))
    for tag, column in zip(agent.metrics.tags, rows.T, strict=True):
        assert line[tag] == pytest.approx(reduce.get(tag[-5:], np.mean)(column), rel=1e-6), tag
    assert line["Reward / Total reward (mean)"] == line["Reward / Instantaneous reward (min)"] == 2.0
    assert line["Episode / Total timesteps (max)"] == 1.0
    assert agent.recent_returns == (2.0, 2.0, 2.0)
    agent.close()


def test_packed_metrics_stand_in_the_order_of_their_tags(backend: Backend) -> None:
    agent = backend.agent()
    metrics = agent.update_on(*draw_batch(agent, 8))
    assert set(metrics) == set(METRICS) - unmeasured(agent.cfg)
    assert set(TAGS) == set(METRICS)
    packed = agent.to_numpy(pack({name: backend.array(value) for name, value in metrics.items()}))
    columns = dict(zip(agent.metrics.tags, packed, strict=True))
    for name in metrics:
        tag, values = TAGS[name], np.atleast_1d(metrics[name])
        assert values.shape == (2 if "{critic}" in tag else 1,)
        for i, value in enumerate(values):
            assert columns[tag.format(critic=i + 1)] == value, tag


def test_tracked_data_is_reduced_by_its_tag_and_forgotten(backend: Backend, tmp_path: Path) -> None:
    agent = backend.agent(experiment=tracking(tmp_path))
    for value in (1.0, 5.0, 3.0):
        for tag in ("a", "b (max)", "c (min)", "d (mean)"):
            agent.track_data(tag, value)
    agent.write_tracking_data(timestep=7, timesteps=9)
    agent.track_data("a", 8)
    agent.write_tracking_data(timestep=8, timesteps=9)
    agent.write_tracking_data(timestep=9, timesteps=9)
    agent.close()
    lines = [{tag: value for tag, value in line.items() if tag != "wall_time"} for line in metrics_lines(agent)]
    assert lines == [
        {"timestep": 7, "environment_steps": 7, "a": 3.0, "b (max)": 5.0, "c (min)": 1.0, "d (mean)": 3.0},
        {"timestep": 8, "environment_steps": 8, "a": 8.0},
    ]


def test_data_tracked_before_init_is_kept(backend: Backend, tmp_path: Path) -> None:
    spaces = Spaces()
    agent = backend.package.SAC(
        models=backend.package.default_models(observation_space=spaces.observation, action_space=spaces.action, hidden=(4,)),
        observation_space=spaces.observation,
        action_space=spaces.action,
        cfg=SACConfig(experiment=tracking(tmp_path, write="auto")),
    )
    agent.track_data("early", 4.0)
    agent.init(trainer_cfg={"timesteps": 100})
    super(type(agent), agent).post_interaction(timestep=0, timesteps=100)
    assert metrics_lines(agent)[0]["early"] == 4.0
    agent.close()


@pytest.mark.parametrize(
    ("interval", "trainer_cfg", "wanted"),
    [
        ("auto", {"timesteps": 600}, [6, 12]),
        ("auto", SimpleNamespace(timesteps=600), [6, 12]),
        ("auto", None, [4, 8, 12]),
        (5, {"timesteps": 600}, [5, 10]),
        (0, {"timesteps": 600}, []),
        (-1, None, []),
    ],
)
def test_the_write_interval(backend: Backend, tmp_path: Path, interval: int | str, trainer_cfg: Any, wanted: list[int]) -> None:
    agent = backend.agent(experiment=tracking(tmp_path, write=interval), capacity=None, training=False)
    agent.init(trainer_cfg=trainer_cfg)
    for timestep in range(13):
        agent.track_data("x", 1.0)
        agent.post_interaction(timestep=timestep, timesteps=400)
    assert [line["timestep"] for line in metrics_lines(agent)] == wanted
    assert (tmp_path / "run").exists() == bool(wanted)
    agent.close()


def test_an_interval_that_is_auto_is_that_of_each_run(backend: Backend, tmp_path: Path) -> None:
    agent = backend.agent(experiment=tracking(tmp_path, write="auto", checkpoints="auto"))
    for timesteps, intervals in ((600, (6, 60)), (20_000, (200, 2000))):
        agent.init(trainer_cfg={"timesteps": timesteps})
        assert (agent.write_interval, agent.checkpoint_interval) == intervals
    agent.write_interval, agent.checkpoint_interval = 7, 0  # by hand
    agent.init(trainer_cfg={"timesteps": 100})
    assert (agent.write_interval, agent.checkpoint_interval) == (7, 0)


@pytest.mark.parametrize(("interval", "wanted"), [("auto", [4, 8, 12]), (5, [5, 10]), (0, []), (-3, [])])
def test_the_checkpoint_interval(backend: Backend, tmp_path: Path, interval: int | str, wanted: list[int]) -> None:
    agent = backend.agent(experiment=tracking(tmp_path, write=0, checkpoints=interval), learning_starts=100)
    agent.init(trainer_cfg={"timesteps": 40})
    live(agent, 13, timesteps=40)
    folder = tmp_path / "run" / "checkpoints"
    found = {path.name: (path / "memory.safetensors").exists() for path in folder.iterdir()} if folder.exists() else {}
    # Only the newest keeps the memory, which is most of a checkpoint's size.
    assert found == {f"agent_{timestep}": timestep == wanted[-1] for timestep in wanted}


@pytest.mark.parametrize("device", [False, True], ids=["host", "device"])
def test_trap_25_nothing_grows_where_tracking_is_off(backend: Backend, device: bool) -> None:
    agent = backend.agent(experiment=ExperimentConfig(write_interval=0, checkpoint_interval=0))
    generator = np.random.default_rng(0)
    for timestep in range(3):
        agent.track_data("x", 1.0)
        row = draw_row(agent, generator, truncated=np.ones((1, 1), bool))
        if device:
            row = {name: backend.array(value) if isinstance(value, np.ndarray) else value for name, value in row.items()}
        agent.record_transition(**row)
        agent.post_interaction(timestep=timestep, timesteps=10)
    assert agent.gradient_step_count == 3
    assert agent.metrics.tracked == {}
    assert agent.metrics.packed == []
    assert [statistics._rows for statistics in agent.metrics.statistics.values()] == [[], []]


def test_returns_are_known_where_tracking_is_off(backend: Backend) -> None:
    agent = backend.agent(num_envs=2, learning_starts=100)
    live(agent, 3, rewards=np.array([[2.0], [3.0]]), terminated=np.zeros((2, 1), bool))
    live(agent, 1, start=3, rewards=np.array([[1.0], [1.0]]), terminated=np.array([[True], [False]]))
    assert agent.recent_returns == (7.0,)


@pytest.mark.parametrize("on_device", [False, True], ids=["host", "device"])
def test_returns_of_rows_of_either_kind_are_known_in_order_where_tracking_is_off(backend: Backend, on_device: bool) -> None:
    returns = []
    for mixed in (False, True):
        agent, generator = backend.agent(num_envs=2, learning_starts=10**6), np.random.default_rng(0)
        for number in range(150):
            rewards, ended = np.array([[1.0], [number / 2]]), np.array([[number % 2 == 0], [number % 3 == 0]])
            row = draw_row(agent, generator, rewards=rewards, terminated=ended)
            if mixed and on_device != (number == 140):
                row = {name: backend.array(value) if isinstance(value, np.ndarray) else value for name, value in row.items()}
            agent.record_transition(**row)
            assert len(agent.metrics.statistics[True]._unread) <= UNREAD
        returns.append(agent.recent_returns)
    assert len(returns[0]) == 100
    assert returns[0] == returns[1]


@pytest.mark.parametrize("on_device", [False, True], ids=["host", "device"])
@pytest.mark.parametrize("capacity", [None, 32], ids=["acts only", "has learned"])
def test_nothing_grows_with_evaluations_that_nobody_writes(backend: Backend, tmp_path: Path, capacity: int | None, on_device: bool) -> None:
    agent = backend.agent(capacity=capacity, training=False, experiment=tracking(tmp_path, write=100))
    generator, sizes = np.random.default_rng(0), []
    for _ in range(3):
        agent.enable_training_mode(False)
        for timestep in range(5):
            row = draw_row(agent, generator, timestep=timestep, truncated=np.full((1, 1), timestep == 4))
            if on_device:
                row = {name: backend.array(value) if isinstance(value, np.ndarray) else value for name, value in row.items()}
            agent.act(row["observations"], None, timestep=timestep, timesteps=5)
            agent.record_transition(**row)
        agent.enable_training_mode(False)
        state = agent.live_state()
        rows = [0 if statistics["rows"] is None else len(statistics["rows"][0]) for statistics in state["statistics"]]
        sizes.append([len(state["tracked"]), state["metrics"], *rows])
    assert sizes == [[0, None, 0, 0]] * 3


def test_an_evaluation_within_training_is_written_with_it(backend: Backend, tmp_path: Path) -> None:
    agent = backend.agent(experiment=tracking(tmp_path, write=100))
    for reward in (1.0, 5.0):
        agent.enable_training_mode(False)
        ended = np.ones((1, 1), bool)
        agent.record_transition(**draw_row(agent, np.random.default_rng(0), rewards=np.array([[reward]]), terminated=ended))
        agent.enable_training_mode(True)
    agent.write_tracking_data(timestep=1, timesteps=9)
    (line,) = metrics_lines(agent)
    assert [line[f"Evaluation / Reward / Total reward ({kind})"] for kind in ("min", "max")] == [1.0, 5.0]
    agent.close()


def test_an_evaluation_before_training_does_not_settle_its_intervals(backend: Backend) -> None:
    agent = backend.agent(training=False, experiment=ExperimentConfig())
    agent.record_transition(**draw_row(agent, np.random.default_rng(0), timesteps=100_000))
    agent.init(trainer_cfg={"timesteps": 600})
    assert (agent.write_interval, agent.checkpoint_interval) == (6, 60)


# What is refused.


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["observations", "next_observations", "rewards", "actions"])
def test_host_rows_that_are_not_finite_are_refused_with_their_environment(backend: Backend, name: str, value: float) -> None:
    agent = backend.agent(num_envs=3)
    fill(agent, 2)
    before = agent.memory.arrays(), agent.learner.stream_states(), agent.recent_returns
    row = draw_row(agent, np.random.default_rng(0))
    row[name] = np.array(row[name])
    row[name][1, 0] = value
    with pytest.raises(
        ValueError, match=rf"{name} of environment 1 are not finite \(NaN or infinity\): nothing of this step was stored\. \w+"
    ):
        agent.record_transition(**row)
    assert_same_arrays(agent.memory.arrays(), before[0])
    assert_same_arrays(agent.learner.stream_states(), before[1])
    assert agent.recent_returns == before[2]


@pytest.mark.parametrize(
    ("name", "values", "error", "message"),
    [
        ("observations", [[None, 0.0, 0.0]], TypeError, "observations have dtype object, expected float64"),
        ("next_observations", [["nan", "0", "0"]], TypeError, "next_observations have dtype <U3, expected float64"),
        ("actions", [[1j, 0.0]], TypeError, "actions have dtype complex128, expected numbers"),
        ("rewards", [[None]], TypeError, "rewards have dtype object, expected numbers"),
        ("terminated", [[np.nan]], ValueError, r"terminated are \[nan\], expected True or False"),
        ("truncated", [["False"]], ValueError, r"truncated are \['False'\], expected True or False"),
    ],
)
def test_host_rows_that_are_no_numbers_are_refused(backend: Backend, name: str, values: Any, error: type[Exception], message: str) -> None:
    agent = backend.agent()
    with pytest.raises(error, match=message):
        agent.record_transition(**draw_row(agent, np.random.default_rng(0), **{name: values}))
    assert len(agent.memory) == 0


def test_observations_that_are_not_finite_are_refused_before_acting(backend: Backend) -> None:
    agent = backend.agent(num_envs=3)
    observations = np.zeros((3, 3))
    observations[2, 1] = np.nan
    with pytest.raises(ValueError, match="observations of environment 2 are not finite"):
        agent.act(observations, None, timestep=0, timesteps=1)


def test_a_shaper_that_makes_nan_is_refused(backend: Backend) -> None:
    agent = backend.agent(rewards_shaper=lambda rewards, timestep, timesteps: rewards * np.nan)
    with pytest.raises(ValueError, match="shaped rewards of environment 0 are not finite"):
        agent.record_transition(**draw_row(agent, np.random.default_rng(0)))
    assert len(agent.memory) == 0


@pytest.mark.parametrize("name", ["observations", "next_observations", "rewards", "actions"])
def test_device_rows_that_are_not_finite_are_left_out_and_reported_at_the_write_interval(
    backend: Backend, tmp_path: Path, name: str
) -> None:
    agent = backend.agent(num_envs=3, learning_starts=100, experiment=tracking(tmp_path, write=4))
    generator = np.random.default_rng(0)
    kept: list[list[float]] = [[], [], []]
    for timestep in range(3):
        row = draw_row(agent, generator, timestep=timestep, terminated=np.zeros((3, 1), bool))
        row[name] = np.array(row[name])
        if timestep < 2:
            row[name][1 + timestep, 0] = (np.nan, np.inf)[timestep]
        for environment, reward in enumerate(row["rewards"][:, 0].tolist()):
            if timestep == 2 or environment != 1 + timestep:
                kept[environment].append(reward)
        agent.record_transition(**{key: backend.array(value) if isinstance(value, np.ndarray) else value for key, value in row.items()})
        agent.post_interaction(timestep=timestep, timesteps=100)
    stored = agent.memory.arrays()
    np.testing.assert_array_equal(stored["size"], [3, 2, 2])
    for environment, rewards in enumerate(kept):
        np.testing.assert_array_equal(stored["rewards"][environment::3][: len(rewards)], np.array(rewards, np.float32))
    assert all(np.isfinite(array).all() for array in stored.values())
    agent.track_data("x", 1.0)
    with pytest.raises(ValueError, match=r"transitions of environment 1, 2 were not finite .* they were not stored\. Find out"):
        agent.post_interaction(timestep=3, timesteps=100)
    assert [line["x"] for line in metrics_lines(agent)] == [1.0]
    agent.write_tracking_data(timestep=8, timesteps=100)
    agent.close()


def test_device_rows_that_are_not_finite_are_reported_at_the_end_where_nothing_is_written(backend: Backend) -> None:
    agent = backend.agent(learning_starts=100)
    row = draw_row(agent, np.random.default_rng(0), rewards=backend.array(np.array([[np.nan]])))
    agent.record_transition(**row)
    agent.post_interaction(timestep=0, timesteps=2)
    with pytest.raises(ValueError, match="transitions of environment 0 were not finite"):
        agent.post_interaction(timestep=1, timesteps=2)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"observations": np.zeros((2, 4))}, r"observations have shape \(2, 4\), expected \(envs, \*\(3,\)\).*check the environment"),
        ({"observations": np.zeros(3)}, r"observations have shape \(3,\), expected .*add the leading environment axis"),
        ({"next_observations": np.zeros((2, 4))}, r"next_observations have shape \(2, 4\), expected"),
        ({"next_observations": np.zeros((3, 3))}, r"next_observations have 3 rows, expected 2"),
        ({"actions": np.zeros((2, 3))}, r"actions have shape \(2, 3\), expected \(2, 2\): pass what `act` returned"),
        ({"rewards": np.zeros((2, 2))}, r"rewards have shape \(2, 2\), expected \(2, 1\)"),
        ({"rewards": np.zeros((1, 2))}, r"rewards have shape \(1, 2\), expected \(2, 1\)"),
        ({"terminated": np.zeros((3, 1), bool)}, r"terminated have shape \(3, 1\), expected \(2, 1\)"),
        ({"truncated": np.zeros((), bool)}, r"truncated have shape \(\), expected \(2, 1\)"),
        ({"states": np.zeros((2, 1))}, r"states were given, .*pass states=None"),
        ({"next_states": np.zeros((2, 1))}, r"states were given, .*next_states=None"),
    ],
)
@pytest.mark.parametrize("device", [False, True], ids=["host", "device"])
def test_rows_of_wrong_shapes_are_refused(backend: Backend, given: dict[str, Any], message: str, device: bool) -> None:
    agent = backend.agent(num_envs=2)
    row = {**draw_row(agent, np.random.default_rng(0)), **given}
    if device:
        row = {name: backend.array(value) if isinstance(value, np.ndarray) else value for name, value in row.items()}
    with pytest.raises(ValueError, match=message):
        agent.record_transition(**row)
    assert len(agent.memory) == 0


def test_another_number_of_environments_than_the_memorys_is_refused(backend: Backend) -> None:
    agent = backend.agent(num_envs=2)
    row = draw_row(backend.agent(num_envs=3), np.random.default_rng(0))
    with pytest.raises(ValueError, match=r"3 environments came, the memory was made for 2: make it with ReplayMemory\(num_envs=3\)"):
        agent.record_transition(**row)


# Numbers of every dtype, and how they are stored.
LARGEST: dict[str, tuple[Any, str]] = {
    "bool": (True, "bool"),
    "uint8": (2**8 - 1, "uint8"),
    "int16": (-(2**15), "int16"),
    "uint16": (2**16 - 1, "int32"),
    "uint32": (2**32 - 1, "int64"),
    "int64": (2**40 + 1, "int64"),
    "uint64": (2**63 - 1, "int64"),
    "float16": (65504.0, "float16"),
    ">f4": (0.5, "float32"),
    ">i8": (-(2**62) - 1, "int64"),
}


def of_all_dtypes() -> tuple[gymnasium.spaces.Dict, dict[str, NDArray[Any]]]:
    """A Dict space, and one row of it."""
    rows = {name.replace(">", "swapped "): np.full((1, 2), value, name) for name, (value, _) in LARGEST.items()}
    return gymnasium.spaces.Dict({key: box(row[0], row[0], dtype=row.dtype) for key, row in rows.items()}), rows


def test_observations_of_every_dtype_are_stored_exactly_and_in_one_dtype_on_both_backends(backend: Backend) -> None:
    space, row = of_all_dtypes()
    agent = backend.agent(Spaces(observation=space), capacity=4)
    agent.record_transition(**draw_row(agent, np.random.default_rng(0), observations=row, next_observations=row))
    agent.act(row, None, timestep=0, timesteps=1)
    arrays = agent.memory.arrays()
    for (key, given), (_, stored) in zip(row.items(), LARGEST.values(), strict=True):
        for name in (f"observations.{key}", f"next_observations.{key}"):
            assert arrays[name].dtype == np.dtype(stored), name
            assert arrays[name].tolist() == given.tolist(), name


def test_device_integers_that_the_box_may_not_hold_are_refused_by_their_dtype(backend: Backend) -> None:
    agent = backend.agent(Spaces(observation=box(0, 255, (3,), np.uint8)), capacity=4)
    wide = backend.array(np.full((1, 3), 300))
    with pytest.raises(TypeError, match=r"next_observations have dtype .*int64, expected uint8 as the space says"):
        agent.record_transition(**draw_row(agent, np.random.default_rng(0), next_observations=wide))
    # Beside an array of the device, values of the host are looked at as ever.
    row = draw_row(agent, np.random.default_rng(0), next_observations=np.full((1, 3), 300), rewards=backend.array(np.zeros((1, 1))))
    with pytest.raises(ValueError, match="next_observations hold numbers beyond uint8"):
        agent.record_transition(**row)
    assert len(agent.memory) == 0


def test_acting_on_wrong_inputs_is_refused(backend: Backend) -> None:
    agent = backend.agent()
    with pytest.raises(ValueError, match=r"observations have shape \(1, 4\), expected \(envs, \*\(3,\)\)"):
        agent.act(np.zeros((1, 4)), None, timestep=0, timesteps=1)
    with pytest.raises(ValueError, match=r"have shape \(3,\).*add the leading environment axis"):
        agent.act(backend.array(np.zeros(3)), None, timestep=0, timesteps=1)
    with pytest.raises(ValueError, match="states were given, but this agent has no state_space"):
        agent.act(np.zeros((1, 3)), np.zeros((1, 3)), timestep=0, timesteps=1)


@pytest.mark.parametrize(
    ("spaces", "error", "message"),
    [
        (Spaces(action=gymnasium.spaces.Discrete(3)), TypeError, r"action_space is Discrete\(3\).*continuous actions"),
        (Spaces(action=box(-np.inf, np.inf, (2,))), ValueError, "action_space .*needs finite bounds.*RescaleAction"),
        (
            Spaces(observation=gymnasium.spaces.Discrete(3)),
            TypeError,
            r"observation_space is Discrete\(3\), expected a gymnasium.spaces.Box",
        ),
        (
            Spaces(observation=gymnasium.spaces.Dict(a=gymnasium.spaces.Discrete(2))),
            TypeError,
            r"observation_space\['a'\] is Discrete\(2\).*FlattenObservation",
        ),
    ],
)
def test_spaces_that_do_not_fit_are_refused(backend: Backend, spaces: Spaces, error: type[Exception], message: str) -> None:
    models = backend.package.default_models(observation_space=Spaces().observation, action_space=Spaces().action, hidden=(4,))
    with pytest.raises(error, match=message):
        backend.package.SAC(models=models, observation_space=spaces.observation, action_space=spaces.action)
    with pytest.raises(error, match=message):
        backend.package.default_models(observation_space=spaces.observation, action_space=spaces.action)


def test_a_state_space_that_no_critic_reads_is_refused(backend: Backend) -> None:
    spaces = {"observation_space": box(-1, 1, (2,)), "action_space": box(-1, 1, (2,))}
    states = box(-1, 1, (5,))
    blind = backend.package.default_models(**spaces, hidden=(4,))
    with pytest.raises(ValueError, match=r"the values of \['critic_1', 'critic_2'\] do not depend on inputs\['states'\]: build critics"):
        backend.package.SAC(models=blind, **spaces, state_space=states)
    reading = backend.package.default_models(**spaces, state_space=states, hidden=(4,))
    backend.package.SAC(models=reading, **spaces, state_space=states)
    # Heads of zeros give one number for all rows, which tells nothing.
    for name in ("critic_1", "critic_2"):
        reading[name] = with_head_of_zeros(backend, reading[name])
    backend.package.SAC(models=reading, **spaces, state_space=states)


def with_head_of_zeros(backend: Backend, model: Any) -> Any:
    weights = backend.module("weights")
    parameters = weights.parameters_of(model, backend.module("device").device_of("cpu"))
    return weights.with_parameters(model, {name: array * (0 if name.startswith("head") else 1) for name, array in parameters.items()})


def test_a_batch_larger_than_the_memory_is_refused(backend: Backend) -> None:
    with pytest.raises(ValueError, match="batch_size is 33, the memory's capacity 32: lower batch_size or make the memory larger"):
        backend.agent(batch_size=33)


@jax_in_full
def test_fewer_transitions_than_a_batch_are_no_error(backend: Backend) -> None:
    agent = backend.agent(batch_size=32)
    live(agent, 1)
    assert agent.gradient_step_count == 1


@pytest.mark.parametrize("device", ["cuda:9", "tpu", "cpu:x", "graphics card"])
def test_an_unknown_device_is_refused(backend: Backend, device: str) -> None:
    with pytest.raises(ValueError, match=rf"device is '{re.escape(device)}', which \w+ does not find here: expected one of .*cpu"):
        backend.agent(device=device)
    with pytest.raises(ValueError, match="does not find here"):
        backend.package.ReplayMemory(10, 1, device=device)


def test_devices_by_name(backend: Backend) -> None:
    agent = backend.agent(device="cpu")
    assert (
        agent.device
        == backend.agent(device=agent.device).device
        == backend.module("device").device_of("cpu:0" if backend.name == "jax" else "cpu")
    )
    assert backend.agent().device == backend.module("device").device_of(None)
    assert agent.memory.device == agent.device


# The Box's scale.


def test_trap_06_the_scale_of_the_box_is_in_no_log_prob(backend: Backend) -> None:
    scales = [box(-1.0, 1.0, (2,)), box(-0.4, 0.4, (2,)), box([-1.0, 0.5], [3.0, 0.75])]
    agents = [backend.agent(Spaces(action=space)) for space in scales]
    results = [agent.update_on(*draw_batch(agent, 4)) for agent in agents]
    for agent, result in zip(agents[1:], results[1:], strict=True):
        assert_same_arrays(result, results[0])
        assert_same_arrays(agent.arrays(), agents[0].arrays())


@pytest.mark.parametrize(
    ("space", "target_entropy", "wanted"), [("symmetric", None, -2.0), ("matrix", None, -6.0), ("symmetric", -0.5, -0.5)]
)
def test_trap_06_the_target_entropy_is_minus_the_number_of_action_dimensions(
    backend: Backend, space: str, target_entropy: float | None, wanted: float
) -> None:
    agent = backend.agent(Spaces(action=BOXES[space]), target_entropy=target_entropy)
    metrics = agent.update_on(*draw_batch(agent, 4))
    # -log_alpha (log pi + target), and the entropy is the mean of -log pi.
    assert metrics["entropy_loss"] == pytest.approx(math.log(0.2) * (metrics["entropy"] - wanted), rel=1e-5)


def test_a_row_after_a_refused_one_does_not_continue_the_row_before(backend: Backend) -> None:
    """Whoever catches the error and goes on has lost a step: n-step returns and sequences must not run over the gap."""
    agent = backend.agent(n_step=2)
    generator = np.random.default_rng(0)
    calm = {"terminated": np.zeros((1, 1), bool)}
    agent.record_transition(**draw_row(agent, generator, **calm))
    with pytest.raises(ValueError, match="not finite"):
        agent.record_transition(**draw_row(agent, generator, **calm, rewards=np.array([[np.nan]])))
    for _ in range(2):
        agent.record_transition(**draw_row(agent, generator, **calm))
    np.testing.assert_array_equal(agent.memory.arrays()["first"], [True, True, False])
