"""Preprocessors in an agent: which rows they are shown, once each, and that acting, learning and a loaded agent use the same moments."""

from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from numpy.typing import NDArray

from sacref import training
from sacref.preprocessing import RunningStandardScaler
from sacref.training.evaluation import evaluate
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
    load_backend,
    metrics_of,
    without_shape_checks,
)

backend = pytest.fixture(params=BACKENDS)(load_backend)

MODES = [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP, AutoresetMode.DISABLED]
READINGS = Dict(level=Box(-1000, 1000, (), np.int32), reading=Box(-np.inf, np.inf, (2,), np.float64))
STATE = Box(-np.inf, np.inf, (3,), np.float64)
SPACES = Spaces(READINGS, box(-1.0, 1.0, (1,)), STATE)
IN_FLOAT64 = Spaces(action=box(-2.0, 2.0, (2,), np.float64))
"""Actions have the dtype of their Box, and here as many digits as the agent."""
SCALED: dict[str, Any] = {"observation_preprocessor": RunningStandardScaler}


class Sensor(gymnasium.Env[Any, Any]):
    """Random readings, large beside their spread, whatever the action; it writes down what it produces.

    Args:
        produced: what is written to. lengths: of the episodes in turn. truncates: whether their end is a truncation.
    """

    def __init__(
        self, produced: list[tuple[int, NDArray[Any], NDArray[Any]]], seed: int, lengths: tuple[int, ...], truncates: bool
    ) -> None:
        self.observation_space, self.action_space, self.state_space = READINGS, SPACES.action, STATE
        self.produced, self.lengths, self.truncates = produced, lengths, truncates
        self.generator = np.random.default_rng(seed)
        self.episode, self.steps = -1, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.episode, self.steps = self.episode + 1, 0
        return self._observe()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        ended = self.steps == self.lengths[self.episode % len(self.lengths)]
        observation, info = self._observe()
        return observation, 1.0, ended and not self.truncates, ended and self.truncates, info

    def _observe(self) -> tuple[Any, dict[str, Any]]:
        level, reading, state = (
            self.generator.integers(-1000, 1000),
            self.generator.normal(1e3, 5.0, 2),
            self.generator.normal(-7.0, 3.0, 3),
        )
        self.produced.append((int(level), reading, state))
        return {"level": np.int32(level), "reading": reading}, {"state": state}


def sensors(mode: AutoresetMode, produced: list[Any]) -> Any:
    episodes: list[tuple[tuple[int, ...], bool]] = [((3, 1, 9), False), ((2, 5, 9), True)]
    made = [partial(Sensor, produced, seed, *each) for seed, each in enumerate(episodes)]
    return SyncVectorEnv(made, autoreset_mode=mode)


def moments(arrays: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    return {name.removeprefix("preprocessor."): array for name, array in arrays.items() if name.startswith("preprocessor.")}


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
def test_trap_12_each_observation_that_was_produced_is_counted_once(mode: AutoresetMode) -> None:
    """Also with updates on replayed batches in between, and on both backends alike; an evaluation leaves no trace."""
    found = []
    for backend in installed_backends():
        agent = backend.agent(SPACES, num_envs=2, learning_starts=4, execution="plain", state_preprocessor=RunningStandardScaler, **SCALED)
        produced: list[tuple[int, NDArray[Any], NDArray[Any]]] = []
        with without_shape_checks():
            training.run(agent, sensors(mode, produced), timesteps=12, state_space=STATE)
            assert agent.gradient_step_count == 8
            columns = [np.stack(column).astype(np.float64) for column in zip(*produced, strict=True)]
            own = moments(agent.arrays())
            for name, rows in zip(("observations.level", "observations.reading", "states"), columns, strict=True):
                # A row for each step, and the beginnings of six episodes; under NEXT_STEP a step each for those after the first.
                assert own[f"{name}.count"] == len(rows) == (26 if mode == AutoresetMode.NEXT_STEP else 30)
                np.testing.assert_allclose(own[f"{name}.mean"], rows.mean(0), rtol=1e-12)
                np.testing.assert_allclose(own[f"{name}.variance"], rows.var(0), rtol=1e-10)
            evaluate(agent, sensors(mode, []), episodes=2, state_space=STATE)
            agent.update(timestep=0, timesteps=1)
        assert_same_arrays(moments(agent.arrays()), own)
        found.append(own)
    assert_same_arrays(found[0], found[-1])


def standardised(rows: list[NDArray[Any]], values: NDArray[Any]) -> NDArray[Any]:
    """By hand: what the models see of values, once the rows were shown."""
    seen = np.concatenate(rows) if rows else np.array([[-1.0], [1.0]])  # mean 0 and variance 1 before the first row
    scaled: NDArray[Any] = np.clip((values - seen.mean(0)) / np.sqrt(seen.var(0) + 1e-8), -5, 5)
    return scaled


def test_act_and_update_use_the_moments_of_all_rows_so_far(backend: Backend, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Acting at timestep t: of the rows up to t-1, whose successor is what is acted on. The update that follows: of row t as well."""
    options: dict[str, Any] = {
        "spaces": IN_FLOAT64,
        "dtype": "float64",
        "capacity": 1,
        "batch_size": 1,
        "learning_rate": 0.0,
        "initial_entropy_value": 1e-30,
        **SCALED,
    }
    agent, other = backend.agent(**options), backend.agent(seed=1, **options)
    seen = metrics_of(agent, monkeypatch)
    generator = np.random.default_rng(0)
    rows: list[NDArray[Any]] = []
    observations = 3.0 + generator.normal(size=(1, 3))
    for timestep in range(6):
        clock = {"timestep": timestep, "timesteps": 10}
        # The third row ends an episode; the fourth begins one.
        begins, ends = timestep in (0, 3), timestep == 2
        observations = 3.0 + generator.normal(size=(1, 3)) if begins else observations
        mean = forward(agent.arrays(), "policy", standardised(rows, observations))[:, :2]
        if timestep == 4:
            agent.save(tmp_path / "saved")
            other.load(tmp_path / "saved")
            loaded = other.act(observations, None, **clock)
        actions, extras = agent.act(observations, None, **clock)
        np.testing.assert_allclose(agent.to_numpy(extras["mean_actions"]), 2 * np.tanh(mean), rtol=1e-9)
        if timestep == 4:
            # On JAX the one chose it in the call of its gradient steps, which rounds by itself, the other in a call of its own.
            np.testing.assert_allclose(
                other.to_numpy(loaded[0]), agent.to_numpy(actions), rtol=1e-14 if backend.name == "jax" else 0, atol=0
            )
        following = 3.0 + generator.normal(size=(1, 3))
        row = draw_row(agent, generator, **clock, observations=observations, actions=agent.to_numpy(actions), next_observations=following)
        agent.record_transition(**{**row, "terminated": np.array([[ends]])})
        rows += [observations, following] if begins else [following]
        agent.post_interaction(**clock)
        inputs = np.concatenate([standardised(rows, observations), agent.to_numpy(actions) / 2], axis=1)
        values = [forward(agent.arrays(), critic, inputs).item() for critic in ("critic_1", "critic_2")]
        np.testing.assert_allclose(seen[-1]["q_mean"], values, rtol=1e-9)
        observations = following
    assert len(seen) == 6
    batch, noise = draw_batch(agent, 4)
    metrics = agent.update_on(batch, noise)
    inputs = np.concatenate([standardised(rows, batch.observations), batch.actions], axis=1)
    np.testing.assert_allclose(metrics["q_mean"][0], forward(agent.arrays(), "critic_1", inputs).mean(), rtol=1e-9)
    mean, log_std = np.split(forward(agent.arrays(), "policy", standardised(rows, batch.next_observations)), 2, axis=1)
    following = np.tanh(mean + np.exp(np.clip(log_std, -20, 2)) * noise.next_actions)
    inputs = np.concatenate([standardised(rows, batch.next_observations), following], axis=1)
    next_q = np.min([forward(agent.arrays(), critic, inputs)[:, 0] for critic in ("critic_1", "critic_2")], axis=0)
    np.testing.assert_allclose(metrics["target_mean"], (batch.rewards + 0.99 * ~batch.terminated * next_q).mean(), rtol=1e-9)


def test_saved_loaded_and_evaluated_actions_are_bit_equal(backend: Backend, tmp_path: Path) -> None:
    agent, other = (backend.agent(num_envs=2, seed=seed, **SCALED) for seed in (0, 1))
    fill(agent, 9)
    agent.update(timestep=0, timesteps=1)
    agent.save(tmp_path / "saved")
    actor = backend.agent(capacity=None, training=False, **SCALED)
    for loaded in (other, actor):
        loaded.load(tmp_path / "saved")
        loaded.enable_training_mode(False)
        assert_same_arrays(loaded.arrays(), agent.arrays())
    agent.enable_training_mode(False)
    observations = np.random.default_rng(5).normal(size=(16, 3))
    actions = [each.to_numpy(each.act(observations, None, timestep=0, timesteps=1)[0]) for each in (agent, other, actor)]
    np.testing.assert_array_equal(actions[0], actions[1])
    np.testing.assert_array_equal(actions[0], actions[2])
    before = agent.arrays()
    # Recorded in evaluation, rows are shown to nobody.
    agent.record_transition(**draw_row(agent, np.random.default_rng(6)))
    assert_same_arrays(agent.arrays(), before)


def test_rows_that_are_not_stored_are_not_shown(backend: Backend) -> None:
    """On the device a row with NaN is left out without an error at first."""
    agent = backend.agent(num_envs=2, **SCALED)
    row = draw_row(agent, np.random.default_rng(0))
    row["rewards"][0] = np.nan
    agent.record_transition(**{name: backend.array(value) if isinstance(value, np.ndarray) else value for name, value in row.items()})
    own = moments(agent.arrays())
    assert own["observations.count"] == 2
    wanted = np.stack([row["observations"][1], row["next_observations"][1]])
    np.testing.assert_allclose(own["observations.mean"], wanted.mean(0), rtol=1e-6)


class Offset:
    """A preprocessor of a user's own: takes away the last row that it saw, and what `by` says."""

    def __init__(self, space: Any, *, by: float) -> None:
        self.by, self.last = by, np.zeros(space.shape)

    def update(self, rows: Any) -> None:
        self.last = np.asarray(rows, np.float64)[-1]

    def arrays(self) -> dict[str, NDArray[Any]]:
        return {"last": self.last}

    def set_arrays(self, arrays: Any) -> None:
        self.last = np.array(arrays["last"])

    def transform(self, arrays: Any, values: Any) -> Any:
        return values - arrays["last"][None, :] - self.by


def test_no_row_is_no_update(backend: Backend) -> None:
    """Where the only environment's row is not stored; as after an episode under Gymnasium's default, autoreset in the next step."""
    agent = backend.agent(observation_preprocessor=Offset, observation_preprocessor_kwargs={"by": 0.5})
    row = draw_row(agent, np.random.default_rng(0))
    agent.record_transition(**row)
    unsound = {**row, "rewards": row["rewards"] * np.nan}
    agent.record_transition(**{name: backend.array(value) if isinstance(value, np.ndarray) else value for name, value in unsound.items()})
    np.testing.assert_array_equal(agent.arrays()["preprocessor.observations.last"], row["next_observations"][0])


def test_a_preprocessor_of_a_users_own(backend: Backend, tmp_path: Path) -> None:
    options: dict[str, Any] = {"observation_preprocessor": Offset, "observation_preprocessor_kwargs": {"by": 0.5}}
    options |= {"spaces": IN_FLOAT64, "dtype": "float64"}
    agent, other = (backend.agent(seed=seed, **options) for seed in (0, 1))
    fill(agent, 5)
    agent.update(timestep=0, timesteps=1)
    last = agent.memory.arrays()["next_observations"][4]
    np.testing.assert_array_equal(agent.arrays()["preprocessor.observations.last"], last)
    agent.save(tmp_path / "saved")
    other.load(tmp_path / "saved")
    observations = np.random.default_rng(3).normal(size=(4, 3))
    mean = forward(agent.arrays(), "policy", observations - last - 0.5)[:, :2]
    for each in (agent, other):
        each.enable_training_mode(False)
        np.testing.assert_allclose(each.to_numpy(each.act(observations, None, timestep=0, timesteps=1)[0]), 2 * np.tanh(mean), rtol=1e-9)


def test_a_state_preprocessor_without_states_is_refused(backend: Backend) -> None:
    with pytest.raises(ValueError, match="state_preprocessor is set and there is no state_space"):
        backend.agent(state_preprocessor=RunningStandardScaler)
