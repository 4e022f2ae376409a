"""When updates come, and how many gradient steps they take: chunks, the ratio of updates to data, and actions chosen ahead."""

from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from sacref.agent.update_schedule import Progress, UpdateSchedule
from sacref.config import ConfigError, SACConfig
from sacref.storage import checkpoint
from sacref.storage.checkpoint import CheckpointError
from tests.backends import BACKENDS, Backend, Spaces, draw_row, jax_in_full, load_backend

backend = pytest.fixture(params=BACKENDS)(load_backend)


def counts(agent: Any, timesteps: int, start: int = 0, total: int = 1000) -> list[int]:
    """Gradient steps taken after each timestep."""
    generator = np.random.default_rng(start)
    found = []
    for timestep in range(start, start + timesteps):
        agent.record_transition(**draw_row(agent, generator, timestep=timestep, timesteps=total))
        agent.post_interaction(timestep=timestep, timesteps=total)
        found.append(agent.gradient_step_count)
    return found


def test_a_chunk_learns_at_its_end(backend: Backend) -> None:
    agent = backend.agent(chunk=3, gradient_steps=2, learning_starts=2)
    before = agent.arrays()["policy.head.kernel"]
    assert counts(agent, 4) == [0, 0, 0, 0]
    assert np.array_equal(agent.arrays()["policy.head.kernel"], before)
    assert counts(agent, 5, start=4) == [6, 6, 6, 12, 12]
    assert not np.array_equal(agent.arrays()["policy.head.kernel"], before)
    assert len(agent.memory) == 9


def test_the_last_timestep_learns_what_is_due(backend: Backend) -> None:
    assert counts(backend.agent(chunk=4), 6, total=6) == [0, 0, 0, 4, 4, 6]


@jax_in_full
def test_update_to_data_counts_environment_steps(backend: Backend) -> None:
    assert counts(backend.agent(num_envs=2, update_to_data=0.75), 4) == [1, 3, 4, 6]
    assert counts(backend.agent(num_envs=2, update_to_data=1.0), 2) == [2, 4]
    assert counts(backend.agent(update_to_data=0.1), 30)[8:11] == [0, 1, 1]
    assert counts(backend.agent(num_envs=2, gradient_steps=3), 2) == [3, 6]


def test_a_tenth_adds_up_without_rounding(backend: Backend) -> None:
    assert counts(backend.agent(update_to_data=0.1), 100)[-1] == 10


def test_what_is_due_is_taken_beside_whole_steps_and_a_fraction_stays_due() -> None:
    schedule = UpdateSchedule(SACConfig(), num_envs=1)
    schedule.progress = Progress(Fraction(3, 2))
    assert [schedule.after_timestep(last=False) for _ in range(3)] == [2, 1, 1]
    assert schedule.progress == Progress(Fraction(1, 2))


def test_what_is_due_is_saved(backend: Backend, tmp_path: Any) -> None:
    agent = backend.agent(chunk=4, update_to_data=0.75)
    assert counts(agent, 6) == [0, 0, 0, 3, 3, 3]
    agent.save(tmp_path / "a")
    loaded = backend.agent(chunk=4, update_to_data=0.75)
    loaded.load(tmp_path / "a")
    assert counts(loaded, 2, start=6) == counts(agent, 2, start=6) == [3, 6]
    np.testing.assert_array_equal(loaded.arrays()["policy.head.kernel"], agent.arrays()["policy.head.kernel"])


def test_an_update_of_the_callers_takes_gradient_steps_and_leaves_what_is_due(backend: Backend) -> None:
    agent = backend.agent(gradient_steps=2, chunk=3)
    assert counts(agent, 2) == [0, 0]
    agent.update(timestep=0, timesteps=1)
    assert agent.gradient_step_count == 2
    assert counts(agent, 1, start=2) == [8]


def saved_with(agent: Any, path: Any, pace: dict[str, Any]) -> Any:
    """A checkpoint of the agent whose metadata say `pace`."""
    agent.save(path)
    groups, metadata = checkpoint.read(path)
    checkpoint.write(path, groups, metadata | pace)
    return path


@pytest.mark.parametrize(
    "pace",
    [
        {"gradient_steps_due": [-5, 1]},
        {"gradient_steps_due": [1, 0]},
        {"gradient_steps_due": [1, 10**7]},
        {"gradient_steps_due": [1.5, 1]},
        {"gradient_steps_due": [1, 2, 3]},
        {"gradient_steps_due": "1e999999999"},
        {"gradient_steps_due": 5},
        {"timesteps_to_learn_from": -1},
        {"timesteps_to_learn_from": True},
    ],
)
def test_a_checkpoint_whose_due_steps_are_no_numbers_is_refused(backend: Backend, pace: dict[str, Any], tmp_path: Any) -> None:
    agent = backend.agent(chunk=4)
    counts(agent, 5)
    with pytest.raises(CheckpointError, match=r"gradient steps .* are due"):
        agent.load(saved_with(agent, tmp_path / "a", pace))


@pytest.mark.parametrize("pace", [{"gradient_steps_due": [10**12, 1]}, {"timesteps_to_learn_from": 4}, {"timesteps_to_learn_from": 10**9}])
def test_due_steps_that_no_chunk_of_the_agent_leaves_are_forgotten(backend: Backend, pace: dict[str, Any], tmp_path: Any) -> None:
    agent = backend.agent(chunk=4)
    counts(agent, 5)
    agent.load(saved_with(agent, tmp_path / "a", pace))
    assert counts(agent, 4, start=5) == [4, 4, 4, 8]


def test_an_agent_that_only_acts_loads_a_checkpoint_from_within_a_chunk(backend: Backend, tmp_path: Any) -> None:
    agent = backend.agent(chunk=4, num_envs=3, update_to_data=1.0)
    counts(agent, 3)
    agent.save(tmp_path / "a")
    actor = backend.agent(chunk=4, capacity=None)
    actor.load(tmp_path / "a")
    np.testing.assert_array_equal(actor.arrays()["policy.head.kernel"], agent.arrays()["policy.head.kernel"])


def test_a_memory_that_was_refused_can_be_given_again(backend: Backend) -> None:
    memory = backend.package.ReplayMemory(8, 2)
    spaces = Spaces()
    given: dict[str, Any] = {"models": backend.agent().models, "memory": memory, "observation_space": spaces.observation}
    with pytest.raises(ValueError, match="lower chunk"):
        backend.package.SAC(**given, action_space=spaces.action, cfg={"chunk": 5, "batch_size": 4})
    agent = backend.package.SAC(**given, action_space=spaces.action, cfg={"chunk": 4, "batch_size": 4})
    assert agent.memory is memory


def test_other_weights_forget_the_action_that_was_chosen_ahead(backend: Backend) -> None:
    agent = backend.agent(overlap=True, learning_rate=0.1)
    weights = agent.arrays()
    row = draw_row(agent, np.random.default_rng(0))
    agent.record_transition(**row)
    agent.post_interaction(timestep=0, timesteps=1000)
    doubled = {name: 2 * array if name.startswith("policy.") else array for name, array in weights.items()}
    agent.set_arrays(doubled)
    _, extra = agent.act(row["next_observations"], None, timestep=1, timesteps=1000)
    fresh = backend.agent()
    fresh.set_arrays(doubled)
    _, wanted = fresh.act(row["next_observations"], None, timestep=1, timesteps=1000)
    np.testing.assert_array_equal(agent.to_numpy(extra["mean_actions"]), fresh.to_numpy(wanted["mean_actions"]))


def test_acting_on_another_dtype_of_observations(backend: Backend) -> None:
    """What was recorded for float observations is not used for integers."""
    agent = backend.agent()
    clock = {"timestep": 0, "timesteps": 1}
    means = [agent.act(observations, None, **clock)[1]["mean_actions"] for observations in (np.ones((1, 3)), [[1, 1, 1]])]
    np.testing.assert_array_equal(*(agent.to_numpy(mean) for mean in means))


def test_settings_that_exclude_each_other_are_refused(backend: Backend) -> None:
    cfg = SACConfig(update_to_data=2.0, gradient_steps=2)
    with pytest.raises(ConfigError, match=r"update_to_data is 2.0 and gradient_steps 2, expected one of them"):
        cfg.validate()
    with pytest.raises(ConfigError, match="expected one of them"):
        backend.agent(update_to_data=2.0, gradient_steps=2)
    with pytest.raises(ValueError, match=r"40 rows are stored together .* capacity is 32: lower chunk"):
        backend.agent(chunk=20, num_envs=2)


def test_overlap_acts_with_the_parameters_before_the_update(backend: Backend) -> None:
    """The strict agent is asked for the same action before it learns, and after."""
    agents = {overlap: backend.agent(overlap=overlap, learning_rate=0.1) for overlap in (True, False)}
    row = draw_row(agents[True], np.random.default_rng(0))
    clock = {"timestep": 1, "timesteps": 1000}
    for agent in agents.values():
        agent.act(row["observations"], None, timestep=0, timesteps=1000)
        agent.record_transition(**row)
    before, _ = agents[False].act(row["next_observations"], None, **clock)
    for agent in agents.values():
        agent.post_interaction(timestep=0, timesteps=1000)
    chosen, extra = agents[True].act(row["next_observations"].copy(), None, **clock)
    np.testing.assert_array_equal(agents[True].to_numpy(chosen), agents[False].to_numpy(before))
    # The action is used once; the next call sees the new parameters.
    _, fresh = agents[True].act(row["next_observations"], None, **clock)
    assert not np.allclose(agents[True].to_numpy(fresh["mean_actions"]), agents[True].to_numpy(extra["mean_actions"]), atol=1e-4)
    assert agents[True].gradient_step_count == agents[False].gradient_step_count == 1


def test_overlap_does_not_answer_for_other_observations_or_in_evaluation(backend: Backend) -> None:
    agent, twin = backend.agent(overlap=True, learning_rate=0.1), backend.agent(learning_rate=0.1)
    row = draw_row(agent, np.random.default_rng(0))
    for each in (agent, twin):
        each.record_transition(**row)
        each.post_interaction(timestep=0, timesteps=1000)
    clock = {"timestep": 1, "timesteps": 1000}
    agent.enable_training_mode(False)
    twin.enable_training_mode(False)
    greedy = [each.to_numpy(each.act(row["next_observations"], None, **clock)[0]) for each in (agent, twin)]
    np.testing.assert_array_equal(*greedy)
    agent.enable_training_mode(True)
    other = row["next_observations"] + 1.0
    means = [each.to_numpy(each.act(other, None, **clock)[1]["mean_actions"]) for each in (agent, twin)]
    np.testing.assert_array_equal(*means)


def test_rows_of_the_caller_may_change_after_they_were_recorded(backend: Backend) -> None:
    agent = backend.agent(chunk=4)
    row = draw_row(agent, np.random.default_rng(0))
    wanted = {name: row[name].copy() for name in ("observations", "next_observations")}
    agent.record_transition(**row)
    for name in wanted:
        row[name][:] = 77.0
    assert len(agent.memory) == 1
    for name, array in wanted.items():
        np.testing.assert_array_equal(agent.memory.arrays()[name], array.astype(np.float32))
