"""One update, on both backends, against numbers worked out by hand."""

import inspect
import math
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import sacref
from sacref.algorithm import update
from sacref.algorithm.tree import map_leaves
from tests.backends import (
    BACKENDS,
    Backend,
    Spaces,
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
ROOT = Path(sacref.__file__).parent


def test_the_gradient_step_is_written_once_and_both_backends_run_it() -> None:
    equations = ("actor_loss", "critic_loss", "kl_divergence", "polyak", "td_target", "temperature_loss")
    backends = [path for name in BACKENDS for path in (ROOT / name).rglob("*.py")]
    assert len(backends) > 20
    assert [(path.name, name) for path in backends for name in equations if f"{name}(" in path.read_text()] == []
    for backend in installed_backends():
        assert isinstance(backend.agent().learner.update, update.Update)


def test_a_newcomer_reads_at_most_350_lines() -> None:
    files = [ROOT / "spec" / "losses.py", ROOT / "spec" / "policy.py", ROOT / "algorithm" / "update.py"]
    assert sum(len(path.read_text().splitlines()) for path in files) <= 350


def squashed(outputs: NDArray[Any], noise: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Action and log-density from the change of variables as it stands in the paper; fine where tanh does not saturate."""
    mean, log_std = np.split(outputs, 2, axis=1)
    std = np.exp(np.clip(log_std, -20, 2))
    pre_tanh = mean + std * noise
    density = np.exp(-0.5 * noise**2) / (std * math.sqrt(2 * math.pi)) / (1 - np.tanh(pre_tanh) ** 2)
    return np.tanh(pre_tanh), np.log(density).sum(axis=1)


def test_metrics_are_the_numbers_of_the_paper(backend: Backend) -> None:
    agent = backend.agent(dtype="float64", discount_factor=0.9, initial_entropy_value=0.3, learning_rate=(1e-3, 5e-2, 1e-3))
    batch, noise = draw_batch(agent, 6)
    before = agent.arrays()
    # The target networks must be told from the critics.
    before |= {name: 1.3 * array for name, array in before.items() if name.startswith("target_")}
    agent.set_arrays(before)
    metrics = agent.update_on(batch, noise)
    after = agent.arrays()

    def q(arrays: dict[str, NDArray[Any]], prefix: str, observations: NDArray[Any], actions: NDArray[Any]) -> NDArray[Any]:
        return np.stack([forward(arrays, f"{prefix}critic_{i}", np.hstack([observations, actions]))[:, 0] for i in (1, 2)])

    next_actions, next_log_prob = squashed(forward(before, "policy", batch.next_observations), noise.next_actions)
    next_q = q(before, "target_", batch.next_observations, next_actions).min(axis=0)
    target = batch.rewards + 0.9 * ~batch.terminated * (next_q - 0.3 * next_log_prob)
    values = q(before, "", batch.observations, batch.actions)
    actions, log_prob = squashed(forward(before, "policy", batch.observations), noise.actions)
    # The actor sees the new critics.
    actor = 0.3 * log_prob - q(after, "", batch.observations, actions).min(axis=0)
    wanted = {
        "critic_loss": (0.5 * (values - target) ** 2).mean(axis=1).sum(),
        "policy_loss": actor.mean(),
        "entropy_loss": (-math.log(0.3) * (log_prob - 2)).mean(),
        "alpha": 0.3,
        "entropy": -log_prob.mean(),
        "q_max": values.max(axis=1),
        "q_min": values.min(axis=1),
        "q_mean": values.mean(axis=1),
        "target_max": target.max(),
        "target_min": target.min(),
        "target_mean": target.mean(),
    }
    assert set(metrics) == set(wanted)
    for name, value in wanted.items():
        assert metrics[name].shape == np.shape(value), name
        np.testing.assert_allclose(metrics[name], value, rtol=1e-10, err_msg=name)
    # The targets follow the new critics.
    for name, array in after.items():
        if name.startswith("target_"):
            online = after[name.removeprefix("target_")]
            np.testing.assert_allclose(array, 0.005 * online + 0.995 * before[name], rtol=1e-12, err_msg=name)
    # alpha's first step goes against the sign of its gradient, with the rate as its size.
    step = -1e-3 * np.sign((-(log_prob - 2)).mean())
    assert after["log_alpha"] - before["log_alpha"] == pytest.approx(step, rel=1e-6)


def linear_agent(backend: Backend, **cfg: Any) -> Any:
    """Critics without a hidden layer, whose gradient is a line of algebra; gamma 0, so that the target is the reward."""
    return backend.agent(dtype="float64", hidden=(), discount_factor=0.0, **cfg)


def critic_gradients(arrays: dict[str, NDArray[Any]], batch: Any) -> dict[str, dict[str, NDArray[Any]]]:
    """The gradients of 1/2 mean (x w + b - r)^2 for each critic."""
    inputs = np.hstack([batch.observations, batch.actions])
    gradients = {}
    for critic in ("critic_1", "critic_2"):
        error = forward(arrays, critic, inputs)[:, 0] - batch.rewards
        gradients[critic] = {"head.kernel": inputs.T @ error[:, None] / len(error), "head.bias": np.array([error.mean()])}
    return gradients


def test_trap_01_each_critic_steps_with_its_own_gradient(backend: Backend) -> None:
    agent = linear_agent(backend, learning_rate=1e-2)
    agent.keep_gradients()
    batch, noise = draw_batch(agent, 8)
    before = agent.arrays()
    agent.update_on(batch, noise)
    after, kept = agent.arrays(), agent.gradients()
    by_hand = critic_gradients(before, batch)
    assert not np.allclose(by_hand["critic_1"]["head.kernel"], by_hand["critic_2"]["head.kernel"], rtol=0.01)
    for critic, gradients in by_hand.items():
        for name, gradient in gradients.items():
            np.testing.assert_allclose(kept[f"{critic}.{name}"], gradient, rtol=1e-10)
            first = after[f"critic_optimizer.first_moment.{critic}.{name}"]
            second = after[f"critic_optimizer.second_moment.{critic}.{name}"]
            np.testing.assert_allclose(first, 0.1 * gradient, rtol=1e-10)
            np.testing.assert_allclose(second, 0.001 * gradient**2, rtol=1e-10)
            # Adam's first step: the rate times g / (|g| + eps).
            moved = after[f"{critic}.{name}"] - before[f"{critic}.{name}"]
            np.testing.assert_allclose(moved, -1e-2 * gradient / (np.abs(gradient) + 1e-8), rtol=1e-6)


def test_the_gradients_of_policy_and_temperature_are_those_of_their_losses(backend: Backend) -> None:
    """Central differences of the loss by hand, at critics that do not move."""
    agent = backend.agent(dtype="float64", hidden=(5,), learning_rate=(1e-3, 0.0, 1e-3))
    agent.keep_gradients()
    batch, noise = draw_batch(agent, 6)
    before = agent.arrays()
    agent.update_on(batch, noise)
    kept = agent.gradients()

    def loss(arrays: dict[str, NDArray[Any]]) -> float:
        actions, log_prob = squashed(forward(arrays, "policy", batch.observations), noise.actions)
        inputs = np.hstack([batch.observations, actions])
        q = np.stack([forward(arrays, f"critic_{i}", inputs)[:, 0] for i in (1, 2)])
        return float((0.2 * log_prob - q.min(axis=0)).mean())

    for name in [name for name in before if name.startswith("policy.")]:
        for index in np.ndindex(before[name].shape):
            ends = []
            for step in (1e-6, -1e-6):
                moved = {**before, name: before[name].copy()}
                moved[name][index] += step
                ends.append(loss(moved))
            assert kept[name][index] == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-4, abs=1e-8), (name, index)
    _, log_prob = squashed(forward(before, "policy", batch.observations), noise.actions)
    assert kept["log_alpha"] == pytest.approx(-(log_prob - 2).mean(), rel=1e-10)


def test_gradients_are_asked_for_before_the_step(backend: Backend) -> None:
    with pytest.raises(ValueError, match="they are not kept: call keep_gradients"):
        backend.agent().gradients()


@pytest.mark.parametrize("updates", [100, pytest.param(1000, marks=pytest.mark.full)])
def test_trap_02_the_critics_differ_after_init_and_after_updates(backend: Backend, updates: int) -> None:
    agent = backend.agent(hidden=(4,), learning_rate=3e-3)
    fill(agent, 16)
    inputs = np.random.default_rng(0).normal(size=(50, 5))

    def distance() -> float:
        arrays = agent.arrays()
        first, second = (forward(arrays, f"critic_{i}", inputs) for i in (1, 2))
        return float(np.abs(first - second).mean())

    assert distance() > 0.05
    with without_shape_checks():
        for _ in range(updates):
            agent.update(timestep=0, timesteps=1)
    assert agent.gradient_step_count == updates
    assert distance() > 0.01


def test_trap_03_consecutive_updates_draw_different_noise(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """One stored transition from an observation to itself, and nothing learns: two updates differ by their noise alone."""
    agent = backend.agent(capacity=1, polyak=0.0, learning_rate=0.0, num_critics=1)
    observations = np.ones((1, 3))
    same = {
        "observations": observations,
        "next_observations": observations,
        "rewards": np.zeros((1, 1)),
        "terminated": np.zeros((1, 1), bool),
    }
    agent.record_transition(**draw_row(agent, np.random.default_rng(0), **same))
    metrics = metrics_of(agent, monkeypatch)
    before = agent.arrays()
    for _ in range(4):
        agent.update(timestep=0, timesteps=1)
    after = agent.arrays()
    assert all(np.array_equal(before[name], after[name]) for name in before if "optimizer" not in name and name != "gradient_steps")
    assert len({float(row["entropy"]) for row in metrics}) == 4
    assert len({float(row["target_mean"]) for row in metrics}) == 4
    for row in metrics:
        # The next action and the judged one would have the same value if they shared their noise.
        assert abs(row["target_mean"] / 0.99 + row["policy_loss"]) > 1e-4


def test_trap_03_every_row_of_a_batch_has_noise_of_its_own(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = backend.agent(capacity=64, batch_size=64, polyak=0.0, learning_rate=0.0)
    observations = np.ones((1, 3))
    same = {
        "observations": observations,
        "next_observations": observations,
        "rewards": np.zeros((1, 1)),
        "terminated": np.zeros((1, 1), bool),
    }
    agent.record_transition(**draw_row(agent, np.random.default_rng(0), **same))
    metrics = metrics_of(agent, monkeypatch)
    agent.update(timestep=0, timesteps=1)
    (row,) = metrics
    assert row["target_max"] - row["target_min"] > 0.1


def clipped_norms(arrays: dict[str, NDArray[Any]]) -> dict[str, float]:
    """The global norms of the gradients that reached Adam in its first step, by group."""

    def norm(prefix: str) -> float:
        return 10 * math.sqrt(sum(float((array**2).sum()) for name, array in arrays.items() if name.startswith(prefix)))

    return {
        "policy": norm("policy_optimizer.first_moment"),
        "critic": norm("critic_optimizer.first_moment"),
        "critic_1": norm("critic_optimizer.first_moment.critic_1"),
        "temperature": norm("temperature_optimizer.first_moment"),
    }


def test_trap_07_gradients_are_clipped_by_global_norm_in_groups(backend: Backend) -> None:
    agents = {clip: linear_agent(backend, grad_norm_clip=clip) for clip in (0.0, -1.0, 0.01, 100.0)}
    for agent in agents.values():
        agent.keep_gradients()
        agent.update_on(*draw_batch(agent, 8))
    free, off, tight, loose = (agent.arrays() for agent in agents.values())
    norms = clipped_norms(free)
    assert all(norm > 0.02 for norm in norms.values())
    for arrays in (off, loose):
        for name, norm in clipped_norms(arrays).items():
            assert norm == pytest.approx(norms[name], rel=1e-9)
    clipped = clipped_norms(tight)
    assert clipped["policy"] == pytest.approx(0.01, rel=1e-9)
    # All critics together, and the temperature never.
    assert clipped["critic"] == pytest.approx(0.01, rel=1e-9)
    assert clipped["critic_1"] == pytest.approx(0.01 * norms["critic_1"] / norms["critic"], rel=1e-9)
    assert clipped["temperature"] == pytest.approx(norms["temperature"], rel=1e-9)
    # Scaled as a whole, not element by element; and what is kept is the gradient before.
    kept = agents[0.01].gradients()
    for name, gradient in kept.items():
        group = "policy" if name.startswith("policy") else "critic"
        if name != "log_alpha":
            moment = tight[f"{group}_optimizer.first_moment.{name.removeprefix('policy.')}"]
            np.testing.assert_allclose(moment, 0.1 * gradient * 0.01 / norms[group], rtol=1e-8)


def test_trap_08_each_group_steps_with_its_own_learning_rate(backend: Backend) -> None:
    rates = {"policy": 1e-3, "critic": 2e-3, "log_alpha": 4e-3}
    agent = linear_agent(backend, learning_rate=tuple(rates.values()))
    before = agent.arrays()
    agent.update_on(*draw_batch(agent, 8))
    after = agent.arrays()
    for group, rate in rates.items():
        steps = np.concatenate([np.abs(after[n] - before[n]).ravel() for n in before if n.startswith(group) and "optimizer" not in n])
        # Adam's first step has the size of the rate wherever the gradient is far above eps = 1e-8.
        np.testing.assert_allclose(np.median(steps), rate, rtol=1e-4, err_msg=group)


def test_trap_08_steps_do_not_shrink_or_grow_with_their_number(backend: Backend) -> None:
    """Gradients that hardly change: Adam's steps stay at the rate."""
    rate, steps = 1e-3, 20
    agent = linear_agent(backend, learning_rate=(0.0, rate, rate), target_entropy=1e4)
    batch, noise = draw_batch(agent, 8)
    batch = batch._replace(rewards=np.full(8, 1e4), observations=np.abs(batch.observations), actions=np.abs(batch.actions))
    before = agent.arrays()
    for _ in range(steps):
        agent.update_on(batch, noise)
    after = agent.arrays()
    assert abs(after["log_alpha"] - before["log_alpha"]) == pytest.approx(steps * rate, rel=1e-3)
    for critic in ("critic_1", "critic_2"):
        np.testing.assert_allclose(after[f"{critic}.head.kernel"] - before[f"{critic}.head.kernel"], steps * rate, rtol=1e-3)
    assert all(np.array_equal(before[name], after[name]) for name in before if name.startswith("policy."))


def test_alpha_of_an_update_is_the_one_before_its_step(backend: Backend) -> None:
    agent = backend.agent(learning_rate=(0.0, 0.0, 0.5))
    batch, noise = draw_batch(agent, 4)
    first, second = agent.update_on(batch, noise), agent.update_on(batch, noise)
    assert first["alpha"] == pytest.approx(0.2)
    assert second["alpha"] == pytest.approx(
        agent.to_numpy(first["alpha"]) * math.exp(0.5 * np.sign(math.log(second["alpha"] / 0.2))), rel=1e-5
    )
    assert agent.alpha != pytest.approx(float(second["alpha"]), rel=0.1)


def test_a_fixed_temperature_stays(backend: Backend) -> None:
    agent = backend.agent(learn_entropy=False, initial_entropy_value=0.7)
    for _ in range(2):
        metrics = agent.update_on(*draw_batch(agent, 4))
    assert metrics["alpha"] == pytest.approx(0.7)
    assert agent.alpha == pytest.approx(0.7)
    assert not any(name.startswith("temperature_optimizer") for name in agent.arrays())


@pytest.mark.parametrize("polyak", [0.0, 1.0])
def test_polyak_at_its_ends_keeps_or_copies(backend: Backend, polyak: float) -> None:
    agent = backend.agent(polyak=polyak)
    before = agent.arrays()
    agent.update_on(*draw_batch(agent, 4))
    after = agent.arrays()
    for name in [name for name in before if name.startswith("target_")]:
        np.testing.assert_array_equal(after[name], before[name] if polyak == 0 else after[name.removeprefix("target_")])
    assert not np.array_equal(after["critic_1.head.kernel"], before["critic_1.head.kernel"])


@pytest.mark.parametrize("num_critics", [1, 2, 3])
def test_any_number_of_critics(backend: Backend, num_critics: int) -> None:
    agent = backend.agent(num_critics=num_critics, dtype="float64", discount_factor=1.0, initial_entropy_value=1e-12)
    batch, noise = draw_batch(agent, 4)
    arrays = agent.arrays()
    metrics = agent.update_on(batch._replace(terminated=np.zeros(4, bool)), noise)
    assert metrics["q_mean"].shape == (num_critics,)
    next_actions, _ = squashed(forward(arrays, "policy", batch.next_observations), noise.next_actions)
    inputs = np.hstack([batch.next_observations, next_actions])
    least = np.stack([forward(arrays, f"critic_{i + 1}", inputs)[:, 0] for i in range(num_critics)]).min(axis=0)
    assert metrics["target_mean"] == pytest.approx((batch.rewards + least).mean(), rel=1e-8)


@pytest.mark.parametrize(
    ("field", "shape", "message"),
    [
        ("rewards", (4, 1), r"discount.*has shape \(4,\), expected \(4, 1\)|rewards|reward"),
        ("terminated", (4, 1), r"discount has shape \(4, 1\), expected \(4,\).*drop the last axis of discount"),
    ],
)
def test_trap_09_shapes_that_would_broadcast_are_refused(backend: Backend, field: str, shape: tuple[int, ...], message: str) -> None:
    agent = backend.agent()
    batch, noise = draw_batch(agent, 4)
    wrong = batch._replace(**{field: getattr(batch, field).reshape(shape)})
    with without_shape_checks(), pytest.raises(ValueError, match=message):
        agent.update_on(wrong, noise)


def test_trap_09_rank_promotion_raises_in_the_whole_update() -> None:
    jax = pytest.importorskip("jax")
    assert jax.config.jax_numpy_rank_promotion == "raise"
    backend = Backend("jax")
    agent = backend.agent(Spaces(action=box(-1.0, 1.0, (2, 3))), learn_entropy=True, grad_norm_clip=1.0)
    with pytest.raises(ValueError, match="rank_promotion"):
        backend.array(np.ones(3)) + backend.array(np.ones((2, 3)))
    # Traced here, under that setting: a promotion anywhere would have raised.
    assert math.isfinite(agent.update_on(*draw_batch(agent, 4))["critic_loss"])


def test_every_random_number_of_an_update_is_an_argument(backend: Backend) -> None:
    assert list(inspect.signature(update.Update.__call__).parameters) == ["self", "state", "batch", "noise"]
    agents = [backend.agent(), backend.agent()]
    fill(agents[0], 3)  # moves the first one's streams, if anything reads them
    agents[0].act(np.zeros((1, 3)), None, timestep=0, timesteps=1)
    streams = agents[0].learner.stream_states()
    results = [agent.update_on(*draw_batch(agent, 4)) for agent in agents]
    for name in results[0]:
        np.testing.assert_array_equal(results[0][name], results[1][name])
    for name, state in agents[0].learner.stream_states().items():
        np.testing.assert_array_equal(state, streams[name])


def test_an_update_is_frozen_and_equal_to_itself_alone(backend: Backend) -> None:
    """It is compiled with its settings and its networks, which no comparison tells apart."""
    made = backend.agent().learner.update
    with pytest.raises(FrozenInstanceError):
        made.polyak = 0.5
    assert replace(made) != made
    assert hash(made) == object.__hash__(made)


def test_what_comes_of_an_update_carries_no_gradient() -> None:
    """On torch, and not even where the parameters ask for one."""
    pytest.importorskip("torch")
    agent = Backend("torch").agent(dtype="float64")
    batch, noise = (given.map(agent.learner.backend.upload) for given in draw_batch(agent, 4))
    asking = map_leaves(lambda leaf: leaf.clone().requires_grad_(), tuple(agent.learner.state[:4]))
    state, metrics = agent.learner.update(type(agent.learner.state)(*asking, *agent.learner.state[4:]), batch, noise)
    asked: list[bool] = []
    # The parameters themselves are moved where they lie.
    map_leaves(lambda leaf: asked.append(leaf.requires_grad), (state.target_critics, metrics))
    assert len(asked) > len(metrics) > 10
    assert not any(asked)
