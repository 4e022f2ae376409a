"""The oracle against derivatives taken by other means, and against numbers worked out by hand."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from sacref.parity import data, oracle
from sacref.parity.oracle import Arrays, Settings
from sacref.spec.averaging import polyak
from sacref.spec.losses import actor_loss, critic_loss, td_target, temperature_loss
from sacref.spec.policy import bound_log_std, squash
from sacref.types import Batch, Noise

Array = np.ndarray[Any, Any]
NumpyBatch = Batch[Array]
NumpyNoise = Noise[Array]

OBSERVATION, ACTION, BATCH, HIDDEN = 3, 2, 8, (6, 5)
SETTINGS = Settings(target_entropy=-2.0)


def problem(critics: int = 2, seed: int = 0, alpha: float = 0.3) -> tuple[Arrays, NumpyBatch, NumpyNoise]:
    state = data.initial_state(observation=OBSERVATION, action=ACTION, hidden=HIDDEN, critics=critics, alpha=alpha, seed=seed)
    # Targets that differ from the critics, so that a mix-up of the two is seen.
    generator = np.random.default_rng(seed)
    state |= {name: value + 0.1 * generator.standard_normal(value.shape) for name, value in state.items() if name.startswith("target_")}
    replay = data.synthetic_replay(64, observation=OBSERVATION, action=ACTION, seed=seed)
    batch, noise = next(data.draws(replay, batch_size=BATCH, seed=seed))
    return state, batch._replace(terminated=np.arange(BATCH) % 3 == 0), noise


# A second forward pass, analytic in its parameters, so that they may be complex: f(x + ih).imag / h is the derivative without cancellation.


def network(state: Arrays, model: str, x: Array) -> Array:
    for i in range(len(HIDDEN)):
        x = x @ state[f"{model}.hidden.{i}.kernel"] + state[f"{model}.hidden.{i}.bias"]
        x = np.where(x.real > 0, x, 0)
    output: Array = x @ state[f"{model}.head.kernel"] + state[f"{model}.head.bias"]
    return output


def sample(state: Arrays, observations: Array, noise: Array) -> tuple[Array, Array]:
    output = network(state, "policy", observations)
    mean, raw = output[:, :ACTION], output[:, ACTION:]
    log_std = np.where(raw.real < -20, -20, np.where(raw.real > 2, 2, raw))
    u = mean + np.exp(log_std) * noise
    density = np.exp(-((u - mean) ** 2) / (2 * np.exp(2 * log_std))) / np.exp(log_std) / math.sqrt(2 * math.pi)
    return np.tanh(u), np.sum(np.log(density / (1 - np.tanh(u) ** 2)), axis=1)


def least(state: Arrays, prefix: str, critics: int, observations: Array, action: Array) -> Array:
    q = np.stack([network(state, f"{prefix}{i}", np.concatenate([observations, action], 1))[:, 0] for i in range(1, critics + 1)])
    smallest: Array = np.take_along_axis(q, q.real.argmin(axis=0)[None], axis=0)[0]
    return smallest


def critics_objective(state: Arrays, critics: int, batch: NumpyBatch, noise: NumpyNoise, target: Array) -> complex:
    inputs = np.concatenate([batch.observations, batch.actions], axis=1)
    return sum((0.5 * complex(np.mean((network(state, f"critic_{i}", inputs)[:, 0] - target) ** 2)) for i in range(1, critics + 1)), 0j)


def policy_objective(state: Arrays, critics: int, batch: NumpyBatch, noise: NumpyNoise) -> complex:
    action, log_prob = sample(state, batch.observations, noise.actions)
    return complex(np.mean(np.exp(state["log_alpha"]) * log_prob - least(state, "critic_", critics, batch.observations, action)))


def bellman_target(state: Arrays, critics: int, batch: NumpyBatch, noise: NumpyNoise, discount: float = 0.99) -> Array:
    action, log_prob = sample(state, batch.next_observations, noise.next_actions)
    value = least(state, "target_critic_", critics, batch.next_observations, action) - np.exp(state["log_alpha"]) * log_prob
    target: Array = batch.rewards + discount * (1 - batch.terminated) * value
    return target


def complex_step(objective: Callable[[Arrays], complex], state: Arrays, name: str) -> Array:
    derivative = np.zeros(state[name].shape)
    for index in np.ndindex(derivative.shape):
        moved = state[name].astype(complex)
        moved[index] += 1e-30j
        derivative[index] = objective({**state, name: moved}).imag / 1e-30
    return derivative


def central_difference(objective: Callable[[Arrays], float], state: Arrays, name: str, step: float = 1e-5) -> Array:
    derivative = np.zeros(state[name].shape)
    for index in np.ndindex(derivative.shape):
        ends = []
        for sign in (1, -1):
            moved = state[name].copy()
            moved[index] += sign * step
            ends.append(objective({**state, name: moved}))
        derivative[index] = (ends[0] - ends[1]) / (2 * step)
    return derivative


@pytest.mark.parametrize("critics", [1, 2, 3])
def test_critic_gradient_is_the_derivative_of_the_loss(critics: int) -> None:
    state, batch, noise = problem(critics)
    target = bellman_target(state, critics, batch, noise)
    metrics, gradients = oracle.critic_pass(state, batch, noise, SETTINGS)
    expected_names = {name for name in state if name.startswith("critic_") and "optimizer" not in name}
    assert set(gradients) == expected_names

    def objective(moved: Arrays) -> complex:
        return critics_objective(moved, critics, batch, noise, target)

    assert metrics["critic_loss"] == pytest.approx(objective(state), rel=1e-13)
    assert metrics["target_mean"] == pytest.approx(target.mean(), rel=1e-13)
    for name in expected_names:
        np.testing.assert_allclose(gradients[name], complex_step(objective, state, name), rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("critics", [1, 2, 3])
def test_policy_gradient_is_the_derivative_of_the_loss(critics: int) -> None:
    state, batch, noise = problem(critics)
    metrics, gradients, _ = oracle.policy_pass(state, batch, noise)
    assert set(gradients) == {name for name in state if name.startswith("policy.")}

    def objective(moved: Arrays) -> complex:
        return policy_objective(moved, critics, batch, noise)

    assert metrics["policy_loss"] == pytest.approx(objective(state), rel=1e-12)
    for name in gradients:
        np.testing.assert_allclose(gradients[name], complex_step(objective, state, name), rtol=1e-11, atol=1e-14)


def test_gradients_are_the_central_differences_of_the_oracles_own_losses() -> None:
    state, batch, noise = problem()
    _, by_policy, _ = oracle.policy_pass(state, batch, noise)
    for name in by_policy:
        numeric = central_difference(lambda moved: float(oracle.policy_pass(moved, batch, noise)[0]["policy_loss"]), state, name)
        np.testing.assert_allclose(by_policy[name], numeric, rtol=1e-7, atol=1e-9)
    _, by_critics = oracle.critic_pass(state, batch, noise, SETTINGS)
    for name in by_critics:
        numeric = central_difference(lambda moved: float(oracle.critic_pass(moved, batch, noise, SETTINGS)[0]["critic_loss"]), state, name)
        np.testing.assert_allclose(by_critics[name], numeric, rtol=1e-7, atol=1e-9)
    log_prob = np.array([-1.0, 2.5, 0.25])
    loss, gradient = oracle.temperature_pass(np.asarray(-0.7), log_prob, -2.0)
    ends = [float(oracle.temperature_pass(np.asarray(-0.7 + step), log_prob, -2.0)[0]) for step in (1e-3, -1e-3)]
    assert gradient == pytest.approx((ends[0] - ends[1]) / 2e-3, rel=1e-11)
    # -(mean(-1, 2.5, 0.25) - 2) = 1.41666..., and the loss is log_alpha times the gradient.
    assert gradient == pytest.approx(17 / 12, rel=1e-15)
    assert loss == pytest.approx(-0.7 * 17 / 12, rel=1e-15)


def test_losses_and_order_are_those_of_the_spec() -> None:
    """The whole update, its losses composed of sacref.spec, each at the place in the order that DESIGN gives it."""
    state, batch, noise = problem(critics=3)
    new, metrics, _ = oracle.update(state, batch, noise, SETTINGS)
    alpha = np.exp(state["log_alpha"])

    def draw(observations: Array, eps: Array) -> tuple[Array, Array]:
        output = network(state, "policy", observations)
        return squash(output[:, :ACTION], bound_log_std(output[:, ACTION:]), eps)

    def q(parameters: Arrays, prefix: str, observations: Array, action: Array) -> Array:
        inputs = np.concatenate([observations, action], axis=1)
        return np.stack([network(parameters, f"{prefix}{i}", inputs)[:, 0] for i in (1, 2, 3)])

    next_action, next_log_prob = draw(batch.next_observations, noise.next_actions)
    next_q = q(state, "target_critic_", batch.next_observations, next_action)
    target = td_target(batch.rewards, 0.99 * (1.0 - batch.terminated), next_q, next_log_prob, alpha)
    online = q(state, "critic_", batch.observations, batch.actions)
    action, log_prob = draw(batch.observations, noise.actions)
    expected = {
        "critic_loss": critic_loss(online, target).mean(axis=1).sum(),
        "policy_loss": actor_loss(q(new, "critic_", batch.observations, action), log_prob, alpha).mean(),
        "entropy_loss": temperature_loss(state["log_alpha"], log_prob, -2.0).mean(),
    }
    for name, value in expected.items():
        assert metrics[name] == pytest.approx(value, rel=1e-13), name
    assert metrics["entropy"] == pytest.approx(-log_prob.mean(), rel=1e-13)
    assert metrics["alpha"] == pytest.approx(0.3, rel=1e-15)
    np.testing.assert_allclose(metrics["q_mean"], online.mean(axis=1), rtol=1e-13)
    np.testing.assert_allclose(metrics["q_max"], online.max(axis=1), rtol=1e-13)
    np.testing.assert_allclose(metrics["q_min"], online.min(axis=1), rtol=1e-13)
    name = "critic_2.hidden.1.kernel"
    np.testing.assert_allclose(new[f"target_{name}"], polyak(state[f"target_{name}"], new[name], 0.005), rtol=1e-15)
    # The first step of Adam moves by the learning rate against the gradient's sign: log alpha by 1e-3.
    assert abs(new["log_alpha"] - state["log_alpha"]) == pytest.approx(1e-3, rel=1e-6)


def test_trap_05_log_prob_stays_exact_where_tanh_saturates() -> None:
    """A policy with mean +-20 and +-50: 1 - a^2 is 0 in floating point, and the density of a is still known."""
    for dtype, tolerance in ((np.float32, 1e-6), (np.float64, 1e-15)):
        state = data.initial_state(observation=1, action=1, hidden=(), seed=0, dtype=dtype)
        zeros = np.zeros((1, 1), dtype)
        for mean in (20.0, -20.0, 50.0, -50.0):
            state["policy.head.kernel"] = np.zeros((1, 2), dtype)
            state["policy.head.bias"] = np.array([mean, 0.0], dtype)
            batch = Batch(zeros, None, zeros, zeros[0], zeros, None, np.array([False]))
            metrics, _, log_prob = oracle.policy_pass(state, batch, Noise(zeros, zeros))
            # log N(0; 0, 1) - 2 (log 2 - |u|), softplus(-2|u|) being below the last digit.
            expected = -0.5 * math.log(2 * math.pi) - 2 * (math.log(2) - abs(mean))
            assert log_prob[0] == pytest.approx(expected, rel=tolerance)
            assert log_prob.dtype == dtype
            assert metrics["policy_loss"].dtype == dtype


def test_log_std_has_gradient_at_its_bounds_and_none_outside() -> None:
    state = data.initial_state(observation=1, action=4, hidden=(), seed=0)
    state["policy.head.kernel"] = np.zeros((1, 8))
    state["policy.head.bias"] = np.array([0.0, 0, 0, 0, -20.0, 2.0, -20.5, 2.5])
    batch = Batch(np.ones((2, 1)), None, np.zeros((2, 4)), np.zeros(2), np.ones((2, 1)), None, np.array([False, False]))
    noise = Noise(np.zeros((2, 4)), np.full((2, 4), 0.1))
    _, gradients, _ = oracle.policy_pass(state, batch, noise)
    by_log_std = gradients["policy.head.bias"][4:]
    assert np.all(by_log_std[:2] != 0.0)
    assert np.all(by_log_std[2:] == 0.0)


def test_a_tie_of_critics_shares_the_gradient_equally() -> None:
    state, batch, noise = problem()
    state |= {name.replace("critic_1.", "critic_2."): value for name, value in state.items() if name.startswith("critic_1.")}
    one = {name: value for name, value in state.items() if "critic_2." not in name}
    tied, alone = oracle.policy_pass(state, batch, noise)[1], oracle.policy_pass(one, batch, noise)[1]
    for name in alone:
        np.testing.assert_allclose(tied[name], alone[name], rtol=1e-12, atol=1e-16)


def test_relu_has_no_gradient_at_zero() -> None:
    state, batch, noise = problem()
    state["critic_1.hidden.0.kernel"] = np.zeros_like(state["critic_1.hidden.0.kernel"])
    state["critic_1.hidden.0.bias"] = np.zeros_like(state["critic_1.hidden.0.bias"])
    state["critic_1.hidden.1.bias"] = np.ones_like(state["critic_1.hidden.1.bias"])
    _, gradients = oracle.critic_pass(state, batch, noise, SETTINGS)
    assert np.all(gradients["critic_1.hidden.0.bias"] == 0.0)
    assert np.any(gradients["critic_1.hidden.1.bias"] != 0.0)


def test_adam_over_two_steps_by_hand() -> None:
    """A critic whose output is its head's bias b: dLoss/db = b - r, so gradients are ours to choose by the reward."""
    state = data.initial_state(observation=1, action=1, hidden=(), critics=1, seed=0)
    state["critic_1.head.kernel"] = np.zeros((2, 1))
    state["critic_1.head.bias"] = np.array([1.0])
    settings = Settings(target_entropy=-1.0, learning_rates=(0.0, 0.1, 0.0))
    zeros = np.zeros((1, 1))
    noise = Noise(zeros, zeros)

    def batch(reward: float) -> NumpyBatch:
        return Batch(zeros, None, zeros, np.array([reward]), zeros, None, np.array([True]))

    # Gradient 2: m = 0.2, v = 0.004; m_hat = 2, v_hat = 4; step 0.1 * 2 / (2 + 1e-8).
    state, _, gradients = oracle.update(state, batch(-1.0), noise, settings)
    assert gradients["critic_1.head.bias"] == pytest.approx(2.0, rel=1e-15)
    first = 1.0 - 0.1 * 2.0 / (2.0 + 1e-8)
    assert state["critic_1.head.bias"] == pytest.approx(first, rel=1e-15)
    # Gradient -1: m = 0.9 * 0.2 - 0.1 = 0.08, v = 0.999 * 0.004 + 0.001 = 0.004996;
    # m_hat = 0.08 / 0.19, v_hat = 0.004996 / 0.001999.
    state, _, gradients = oracle.update(state, batch(first + 1.0), noise, settings)
    assert gradients["critic_1.head.bias"] == pytest.approx(-1.0, rel=1e-15)
    assert state["critic_optimizer.first_moment.critic_1.head.bias"] == pytest.approx(0.08, rel=1e-14)
    assert state["critic_optimizer.second_moment.critic_1.head.bias"] == pytest.approx(0.004996, rel=1e-14)
    assert state["critic_optimizer.count"] == 2
    second = first - 0.1 * (0.08 / 0.19) / (math.sqrt(0.004996 / 0.001999) + 1e-8)
    assert state["critic_1.head.bias"] == pytest.approx(second, rel=1e-14)


def test_trap_07_clipping_is_by_the_norm_of_the_group() -> None:
    gradients = {"a": np.array([3.0]), "b": np.array([[0.0, 4.0]])}
    clipped = oracle.clip(gradients, 1.0)
    assert clipped["a"] == pytest.approx(0.6, rel=1e-15)
    np.testing.assert_allclose(clipped["b"], [[0.0, 0.8]], rtol=1e-15)
    for limit in (5.0, 100.0, 0.0, -1.0):
        assert oracle.clip(gradients, limit)["b"][0, 1] == 4.0
    assert oracle.clip({"a": np.zeros(2)}, 1.0)["a"].tolist() == [0.0, 0.0]


def test_a_fixed_temperature_does_not_move() -> None:
    state, batch, noise = problem()
    state = {name: value for name, value in state.items() if not name.startswith("temperature_optimizer")}
    new, metrics, gradients = oracle.update(state, batch, noise, SETTINGS._replace(learn_entropy=False))
    assert new["log_alpha"] == state["log_alpha"]
    assert metrics["alpha"] == pytest.approx(0.3, rel=1e-15)
    assert metrics["entropy_loss"] != 0.0
    assert gradients["log_alpha"] != 0.0
    assert set(new) == set(state)


def test_an_update_keeps_names_shapes_and_dtypes_and_writes_to_nothing() -> None:
    for dtype in (np.float32, np.float64):
        state = data.initial_state(observation=OBSERVATION, action=ACTION, hidden=HIDDEN, dtype=dtype)
        before = {name: value.copy() for name, value in state.items()}
        replay = data.synthetic_replay(64, observation=OBSERVATION, action=ACTION, seed=0, dtype=dtype)
        batch, noise = next(data.draws(replay, batch_size=BATCH, seed=0))
        new, metrics, gradients = oracle.update(state, batch, noise, SETTINGS._replace(grad_norm_clip=0.1))
        assert {n: (v.shape, v.dtype) for n, v in new.items()} == {n: (v.shape, v.dtype) for n, v in state.items()}
        assert all(value.dtype == dtype for value in (*metrics.values(), *gradients.values()))
        for name, value in before.items():
            np.testing.assert_array_equal(state[name], value)


def test_trap_03_two_updates_of_one_noise_agree_and_of_two_noises_do_not() -> None:
    state, batch, noise = problem()
    other = Noise(noise.next_actions + 1.0, noise.actions)
    first, again, different = (oracle.update(state, batch, n, SETTINGS)[1] for n in (noise, noise, other))
    assert first["critic_loss"] == again["critic_loss"]
    assert first["critic_loss"] != different["critic_loss"]
    assert oracle.policy_pass(state, batch, noise)[0] == oracle.policy_pass(state, batch, other)[0]
