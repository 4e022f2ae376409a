"""The options of the algorithm as an agent carries them out: what is drawn, delayed, scaled, scheduled and tracked."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sacref.config import ConfigError, ExperimentConfig, SACConfig
from tests.agent.test_execution import counted_jax_compilations
from tests.backends import (
    BACKENDS,
    Backend,
    Spaces,
    assert_same_arrays,
    draw_batch,
    draw_row,
    fill,
    load_backend,
    metrics_of,
    without_shape_checks,
)

backend = pytest.fixture(params=BACKENDS)(load_backend)

STILL: dict[str, Any] = {"learning_rate": 0.0, "polyak": 0.0, "initial_entropy_value": 1e-9, "dtype": "float64", "execution": "plain"}
"""Nothing learns, and the entropy counts for nothing."""


def constant_critics(agent: Any, *values: float) -> None:
    """Let each critic, and its target, have one value everywhere."""
    arrays = agent.arrays()
    for number, value in enumerate(values, 1):
        for name in (f"critic_{number}", f"target_critic_{number}"):
            arrays[f"{name}.head.kernel"] = np.zeros_like(arrays[f"{name}.head.kernel"])
            arrays[f"{name}.head.bias"] = np.full_like(arrays[f"{name}.head.bias"], value)
    agent.set_arrays(arrays)


def updates(agent: Any, number: int) -> None:
    with without_shape_checks():
        for _ in range(number):
            agent.update(timestep=0, timesteps=1)


def test_targets_of_n_steps_are_discounted_by_the_steps_that_there_are(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = backend.agent(**STILL, n_step=3, discount_factor=0.5, batch_size=256, capacity=256)
    constant_critics(agent, 1000.0, 1000.0)
    seen, generator = metrics_of(agent, monkeypatch), np.random.default_rng(0)
    for reward in (1.0, 2.0, 4.0, 8.0):
        row = draw_row(agent, generator, rewards=np.array([[reward]]), terminated=np.zeros((1, 1), bool))
        agent.record_transition(**row)
    updates(agent, 1)
    targets = [1 + 1 + 1 + 125, 2 + 2 + 2 + 125, 4 + 4 + 250, 8 + 500]  # the last two rows have two successors, and one
    assert seen[0]["target_min"] == pytest.approx(targets[0], rel=1e-9)
    assert seen[0]["target_max"] == pytest.approx(targets[3], rel=1e-9)
    assert seen[0]["target_mean"] == pytest.approx(np.mean(targets), rel=0.2)
    batch, noise = draw_batch(agent, 4)
    discounts = np.array([0.5, 0.25, 0.125, 0.5])
    metrics = agent.update_on(batch._replace(discounts=discounts), noise)
    wanted = batch.rewards + discounts * ~batch.terminated * 1000.0
    np.testing.assert_allclose(metrics["target_mean"], wanted.mean(), rtol=1e-9)


def test_the_target_is_the_minimum_of_a_subset_that_is_drawn_anew(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = backend.agent(**STILL, num_critics=4, target_subset=2, discount_factor=1.0)
    constant_critics(agent, 1.0, 2.0, 3.0, 4.0)
    seen = metrics_of(agent, monkeypatch)
    agent.record_transition(**draw_row(agent, np.random.default_rng(0), rewards=np.zeros((1, 1)), terminated=np.zeros((1, 1), bool)))
    updates(agent, 40)
    targets = np.round([metrics["target_mean"] for metrics in seen], 6)
    found, counts = np.unique(targets, return_counts=True)
    # Of the six pairs of critics, three have the minimum 1, two 2, and one 3.
    np.testing.assert_array_equal(found, [1.0, 2.0, 3.0])
    assert np.all(np.abs(counts - [20, 40 / 3, 20 / 3]) < 12)
    batch, noise = draw_batch(agent, 4)
    metrics = agent.update_on(batch, noise._replace(target_critics=np.array([3, 2])))
    np.testing.assert_allclose(metrics["target_mean"], (batch.rewards + 3.0 * ~batch.terminated).mean(), rtol=1e-6)


def test_a_subset_of_more_critics_than_there_are_is_refused(backend: Backend) -> None:
    with pytest.raises(ConfigError, match="target_subset is 3 and there are 2 critics, expected at most as many"):
        backend.agent(target_subset=3)


@pytest.mark.parametrize("field, value", [("sequence_length", 8), ("burn_in", 2), ("stored_carry", False)])
def test_what_sac_rnn_alone_reads_is_refused_by_sac(backend: Backend, field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"{field} is {value}, which SAC_RNN alone reads, and this is SAC: leave it at"):
        backend.agent(**{field: value})


@pytest.mark.parametrize("kind, value", [("min", 1.0), ("mean", 2.0)])
def test_what_the_policy_maximises(backend: Backend, kind: str, value: float) -> None:
    agent = backend.agent(**STILL, num_critics=3, policy_value=kind)
    constant_critics(agent, 1.0, 2.0, 3.0)
    assert agent.update_on(*draw_batch(agent, 4))["policy_loss"] == pytest.approx(-value, abs=1e-6)


def test_the_policy_and_the_temperature_step_at_every_third_gradient_step(backend: Backend) -> None:
    agent = backend.agent(policy_delay=3, execution="plain")
    fill(agent, 4)
    before, changed = agent.arrays(), []
    names = ("policy.head.kernel", "log_alpha", "policy_optimizer.count", "critic_1.head.kernel", "target_critic_1.head.kernel")
    for _ in range(6):
        updates(agent, 1)
        now = agent.arrays()
        changed.append("".join(str(int(not np.array_equal(now[name], before[name]))) for name in names))
        before = now
    assert changed == ["00011", "00011", "11111"] * 2


@pytest.mark.parametrize("of_the_device", [False, True], ids=["numpy", "device"])
def test_rewards_are_scaled_before_they_are_shaped_and_stored(backend: Backend, of_the_device: bool) -> None:
    experiment = ExperimentConfig(write_interval=100, checkpoint_interval=0)
    agent = backend.agent(
        num_envs=2, reward_scale=0.5, rewards_shaper=lambda rewards, timestep, timesteps: rewards + 1, experiment=experiment
    )
    row = draw_row(agent, np.random.default_rng(0), rewards=np.array([[4], [6]]), terminated=np.ones((2, 1), bool))
    if of_the_device:
        row = {name: backend.array(value) if isinstance(value, np.ndarray) else value for name, value in row.items()}
    agent.record_transition(**row)
    assert agent.memory.arrays()["rewards"].tolist() == [3.0, 4.0]
    agent.write_tracking_data(timestep=1, timesteps=1000)
    assert agent.recent_returns == (4.0, 6.0)  # as the environments gave them
    agent.close()


def test_dropout_is_drawn_anew_for_each_update_each_pass_and_each_critic(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    module, execution = backend.module("agent"), backend.module("execution")
    learner = execution.learner

    def spy(update: Any, drawing: Any, **rest: Any) -> Any:
        drawn.append(drawing)
        return learner(update, drawing, **rest)

    monkeypatch.setattr(module, "learner", spy)
    agent = backend.agent(**STILL, hidden=(8, 5), networks={"dropout": 0.5})
    fill(agent, 4)
    streams, arrays = agent.learner.streams, []
    for _ in range(2):
        _, noise, streams = execution.draw(agent.memory.state, agent.normalisers.moments, streams, drawn[-1])
        for draws in noise.dropout:
            assert set(draws) == {"critic_1", "critic_2"}
            assert [array.shape for array in draws["critic_2"]] == [(4, 8), (4, 5)]
            arrays += [agent.to_numpy(array) for name in draws for array in draws[name]]
    values = np.concatenate([array.reshape(-1) for array in arrays])
    assert len(np.unique(values)) == values.size == 2 * 3 * 2 * 4 * 13
    assert values.min() >= 0.0 and values.max() < 1.0
    assert values.mean() == pytest.approx(0.5, abs=0.05)


def values_of_updates(agent: Any, monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, float]]:
    """The first critic's value and the target of the one row in the memory, in three updates that learn nothing."""
    with monkeypatch.context() as patched:
        seen = metrics_of(agent, patched)
        updates(agent, 3)
    return [(float(metrics["q_mean"][0]), float(metrics["target_mean"])) for metrics in seen]


@pytest.mark.parametrize("execution", ["plain", "auto"])
def test_dropout_is_for_training_alone(backend: Backend, execution: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever mode the first gradient step is taken in."""
    still = {**STILL, "initial_entropy_value": 1e-30, "execution": execution}
    agent = backend.agent(**still, networks={"dropout": 0.5}, hidden=(32,), batch_size=1)
    agent.record_transition(**draw_row(agent, np.random.default_rng(0), terminated=np.zeros((1, 1), bool)))
    for training, values in ((False, 1), (True, 3), (False, 1)):
        agent.enable_models_training_mode(training)
        assert len({value for value, _ in values_of_updates(agent, monkeypatch)}) == values


def test_settings_that_change_afterwards_are_those_of_the_next_agent(backend: Backend) -> None:
    cfg, agents = SACConfig(batch_size=2, experiment=ExperimentConfig(write_interval=0)), []
    for scale in (1.0, 0.5):
        cfg.reward_scale = scale
        memory, spaces = backend.package.ReplayMemory(4, 1), Spaces()
        given = {"observation_space": spaces.observation, "action_space": spaces.action}
        models = backend.package.default_models(**given, hidden=(4,))
        agents.append(backend.package.SAC(models=models, memory=memory, cfg=cfg, device="cpu", **given))
    cfg.reward_scale = cfg.experiment.write_interval = 9
    for agent in agents:
        agent.enable_training_mode(True)
        agent.record_transition(**draw_row(agent, np.random.default_rng(0), rewards=np.array([[8.0]])))
    assert [agent.memory.arrays()["rewards"].item() for agent in agents] == [8.0, 4.0]
    assert agents[0].cfg.experiment.write_interval == 0


def test_a_mode_of_the_models_that_they_had_before_is_not_compiled_again() -> None:
    pytest.importorskip("jax")
    agent = Backend("jax").agent(networks={"dropout": 0.5}, hidden=(8,), batch_size=4, device="cpu")
    fill(agent, 4)

    def in_each_mode() -> None:
        for training in (True, False, True):
            agent.enable_training_mode(training, apply_to_models=True)
            agent.act(np.zeros((1, 3), np.float32), None, timestep=10, timesteps=20)
            updates(agent, 1)

    in_each_mode()
    with counted_jax_compilations() as events:
        in_each_mode()
    assert events == []
    agent.keep_gradients()  # This makes another update, which both modes take.
    in_each_mode()
    assert set(agent.gradients()) > {"log_alpha"}


def test_gradient_norms_and_learning_rates_are_tracked_under_their_tags(backend: Backend, tmp_path: Path) -> None:
    agent = backend.agent(
        learning_rate=(1e-3, 2e-3, 4e-3),
        learning_rate_scheduler=("linear", None, "exponential"),
        learning_rate_scheduler_kwargs=({"steps": 4}, {}, {"decay": 0.5}),
        grad_norm_clip=1e-3,
        execution="plain",
        experiment=ExperimentConfig(directory=str(tmp_path), experiment_name="run", write_interval=1, checkpoint_interval=0),
    )
    agent.keep_gradients()
    fill(agent, 4)
    for timestep in (1, 2):
        updates(agent, 1)
        agent.write_tracking_data(timestep=timestep, timesteps=10)
    agent.close()
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    np.testing.assert_allclose([line["Learning / Policy learning rate"] for line in lines], [1e-3, 0.75e-3], rtol=1e-6)
    np.testing.assert_allclose([line["Learning / Entropy learning rate"] for line in lines], [4e-3, 2e-3], rtol=1e-6)
    assert "Learning / Critic learning rate" not in lines[0]
    gradients = agent.gradients()
    for part, tag in {"policy": "Policy norm", "critic_": "Critics norm"}.items():
        norm = np.sqrt(sum(np.square(array).sum() for name, array in gradients.items() if name.startswith(part)))
        assert norm > 1e-2
        assert lines[1][f"Gradient / {tag} before clipping"] == pytest.approx(norm, rel=1e-5)


def test_untracked_runs_have_neither(backend: Backend, tmp_path: Path) -> None:
    agent = backend.agent(
        execution="plain",
        experiment=ExperimentConfig(directory=str(tmp_path), experiment_name="run", write_interval=1, checkpoint_interval=0),
    )
    fill(agent, 4)
    updates(agent, 1)
    agent.write_tracking_data(timestep=1, timesteps=10)
    agent.close()
    (line,) = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert not [tag for tag in line if tag.startswith(("Gradient", "Learning"))]
    assert "Loss / Critic loss" in line


# What is PyTorch's, or JAX's, alone.


@pytest.mark.parametrize("execution", ["plain", "traced"])
def test_a_scheduler_of_torchs_steps_once_a_gradient_step_and_is_resumed(execution: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    options: dict[str, Any] = {
        "learning_rate_scheduler": torch.optim.lr_scheduler.ExponentialLR,
        "learning_rate_scheduler_kwargs": {"gamma": 0.5},
        "execution": execution,
        "gradient_steps": 2,
        "device": "cpu",
    }
    agent, other = (Backend("torch").agent(seed=seed, **options) for seed in (0, 1))

    def rates(each: Any) -> list[float]:
        arrays = each.arrays()
        return [float(arrays[f"{part}_optimizer.learning_rate"] / 1e-3) for part in ("policy", "critic", "temperature")]

    for each in (agent, other):
        fill(each, 4)
    updates(agent, 1)
    assert rates(agent) == pytest.approx([0.5] * 3)
    agent.update_on(*draw_batch(agent, 4))
    assert rates(agent) == pytest.approx([0.25] * 3)
    updates(agent, 1)
    assert rates(agent) == pytest.approx([0.0625] * 3)
    agent.save(tmp_path / "saved")
    updates(other, 5)
    other.load(tmp_path / "saved")
    assert rates(other) == pytest.approx([0.0625] * 3)
    for each in (agent, other):
        updates(each, 1)
        assert rates(each) == pytest.approx([2.0**-6] * 3)
    assert_same_arrays(agent.arrays(), other.arrays())


def random_agent(name: str, **options: Any) -> Any:
    """An agent whose critics have random layers of their own, and one row in the memory."""
    backend = Backend(name)
    if name == "torch":
        from tests.torch import random_user_models as own
        from tests.torch.user_models import user_models
    else:
        from tests.jax import random_user_models as own  # type: ignore[no-redef]  # the same names on both backends.
        from tests.jax.user_models import user_models  # type: ignore[assignment]
    models = user_models(3, 2, critic=own.RandomValue)
    agent = backend.agent(models=models, batch_size=1, device="cpu", **options)
    agent.record_transition(**draw_row(agent, np.random.default_rng(0), terminated=np.zeros((1, 1), bool)))
    return agent


@pytest.mark.parametrize("name, execution", [("torch", "plain"), ("torch", "traced"), ("jax", "scan")])
def test_random_layers_of_a_users_own_draw_anew_in_each_update(name: str, execution: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(name)
    agent = random_agent(name, learning_rate=0.0, polyak=0.0, initial_entropy_value=1e-30, execution=execution)
    found = values_of_updates(agent, monkeypatch)
    assert len({value for value, _ in found}) == len({target for _, target in found}) == 3
    agent.enable_models_training_mode(False)
    assert len({value for value, _ in values_of_updates(agent, monkeypatch)}) == 1


def test_random_state_of_a_users_own_is_saved(backend: Backend, tmp_path: Path) -> None:
    agent, other = (random_agent(backend.name, execution="plain", seed=seed) for seed in (0, 1))
    start = agent.learner.stream_states()
    updates(agent, 2)
    updates(other, 5)
    if backend.name == "torch":
        own = {"critic_1.body.3.generator", "critic_2.body.3.generator"}
        assert set(start) == {"noise", "sampling", "exploration"} | own
        assert all(not np.array_equal(agent.learner.stream_states()[name], start[name]) for name in own)
    agent.save(tmp_path / "saved")
    other.load(tmp_path / "saved")
    assert_same_arrays(other.learner.stream_states(), agent.learner.stream_states())
    for each in (agent, other):
        updates(each, 2)
    assert_same_arrays(other.arrays(), agent.arrays())


def test_a_recurrent_critic_of_a_users_own_may_have_random_layers() -> None:
    pytest.importorskip("jax")
    from flax import nnx

    from tests.jax import random_user_models, recurrent_user_models

    rngs = nnx.Rngs(0)
    models: dict[str, Any] = {"policy": recurrent_user_models.Actor(3, 2, rngs)}
    # One critic with a carry, and one without.
    models |= {"critic_1": random_user_models.RandomRecurrentValue(3, 2, rngs), "critic_2": random_user_models.RandomValue(3, 2, rngs)}
    agent = Backend("jax").agent(models=models, algorithm="SAC_RNN", sequence_length=2, execution="plain")
    start = agent.arrays()
    fill(agent, 6)
    updates(agent, 2)
    changed = {name.split(".")[0] for name, array in agent.arrays().items() if not np.array_equal(array, start[name])}
    assert {"policy", "critic_1", "critic_2"} <= changed


def test_a_policy_with_random_layers_of_flax_is_refused() -> None:
    pytest.importorskip("jax")
    from flax import nnx

    from tests.jax.random_user_models import RandomActor
    from tests.jax.user_models import user_models

    with pytest.raises(ValueError, match=r"model 'policy' has random layers \(nnx.RngState\), expected them in critics alone"):
        Backend("jax").agent(models={**user_models(3, 2), "policy": RandomActor(3, 2, nnx.Rngs(0))})
