"""The oracle against derivatives taken by other means, and against numbers worked out by hand."""

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from sacref.algorithm.data import Batch, Noise, Sequences
from sacref.parity import data, oracle, schedules
from sacref.parity.compare import difference
from sacref.parity.drivers import Oracle
from sacref.parity.networks import Arrays
from sacref.parity.oracle import Settings
from sacref.spec.averaging import polyak
from sacref.spec.losses import actor_loss, critic_loss, td_target, temperature_loss
from sacref.spec.policy import bound_log_std, squash
from tests.parity.features import ALONE, FEATURES, PLAIN, RECURRENT

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
    metrics, gradients, _ = oracle.policy_pass(state, batch, noise, SETTINGS)
    assert set(gradients) == {name for name in state if name.startswith("policy.")}

    def objective(moved: Arrays) -> complex:
        return policy_objective(moved, critics, batch, noise)

    assert metrics["policy_loss"] == pytest.approx(objective(state), rel=1e-12)
    for name in gradients:
        np.testing.assert_allclose(gradients[name], complex_step(objective, state, name), rtol=1e-11, atol=1e-14)


def test_gradients_are_the_central_differences_of_the_oracles_own_losses() -> None:
    state, batch, noise = problem()
    _, by_policy, _ = oracle.policy_pass(state, batch, noise, SETTINGS)
    for name in by_policy:
        numeric = central_difference(lambda moved: float(oracle.policy_pass(moved, batch, noise, SETTINGS)[0]["policy_loss"]), state, name)
        np.testing.assert_allclose(by_policy[name], numeric, rtol=1e-7, atol=1e-9)
    _, by_critics = oracle.critic_pass(state, batch, noise, SETTINGS)
    for name in by_critics:
        numeric = central_difference(lambda moved: float(oracle.critic_pass(moved, batch, noise, SETTINGS)[0]["critic_loss"]), state, name)
        np.testing.assert_allclose(by_critics[name], numeric, rtol=1e-7, atol=1e-9)
    log_prob = np.array([-1.0, 2.5, 0.25])
    third = np.full(3, 1 / 3)
    loss, gradient = oracle.temperature_pass(np.asarray(-0.7), log_prob, -2.0, third)
    ends = [float(oracle.temperature_pass(np.asarray(-0.7 + step), log_prob, -2.0, third)[0]) for step in (1e-3, -1e-3)]
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
            metrics, _, log_prob = oracle.policy_pass(state, batch, Noise(zeros, zeros), SETTINGS)
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
    _, gradients, _ = oracle.policy_pass(state, batch, noise, SETTINGS)
    by_log_std = gradients["policy.head.bias"][4:]
    assert np.all(by_log_std[:2] != 0.0)
    assert np.all(by_log_std[2:] == 0.0)


def test_a_tie_of_critics_shares_the_gradient_equally() -> None:
    state, batch, noise = problem()
    state |= {name.replace("critic_1.", "critic_2."): value for name, value in state.items() if name.startswith("critic_1.")}
    one = {name: value for name, value in state.items() if "critic_2." not in name}
    tied, alone = oracle.policy_pass(state, batch, noise, SETTINGS)[1], oracle.policy_pass(one, batch, noise, SETTINGS)[1]
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
    assert oracle.policy_pass(state, batch, noise, SETTINGS)[0] == oracle.policy_pass(state, batch, other, SETTINGS)[0]


@pytest.mark.parametrize("feature", [*FEATURES, *ALONE])
def test_updates_are_those_of_automatic_differentiation(feature: str) -> None:
    """Losses, gradients and parameters over 12 updates, by PyTorch's own modules, distributions, optimizers and schedules."""
    pytest.importorskip("torch")
    from tests.parity.autodiff import Reference

    chosen = (FEATURES | ALONE)[feature]
    state = chosen.initial_state()
    ours, theirs = Oracle(chosen, state), Reference(chosen, state)
    for batch, noise in itertools.islice(chosen.draws(), 12):
        outcome = ours.update(batch, noise)
        metrics, gradients = theirs.update(batch, noise)
        assert set(outcome.gradients) == set(gradients)
        for name, value in metrics.items():
            assert difference(outcome.metrics[name], value, name).relative < 1e-12, name
        for name, gradient in gradients.items():
            assert difference(outcome.gradients[name], gradient, name).relative < 1e-11, name
        for name, parameter in theirs.parameters().items():
            # Adam turns the rounding of a gradient near zero into a step of up to 1e8 times its size.
            assert difference(outcome.state[name], parameter, name).relative < 1e-9, name


TINY = replace(PLAIN, observation=3, action=2, hidden=(4,), batch_size=3, recurrent_size=3)
BY_DIFFERENCES = {
    "feed-forward": replace(
        TINY, states=2, dict_observations=True, masked=True, n_step=3, critics=3, target_subset=2, layer_norm=True, dropout=0.2
    ),
    "mean of critics": replace(TINY, critics=3, policy_value="mean"),
    "simba": replace(TINY, network="simba", critic_hidden=(3, 3)),
    **{kind: replace(TINY, recurrent=kind, sequence_length=3, burn_in=2, states=2) for kind in ("rnn", "gru", "lstm")},
}


@pytest.mark.parametrize("name", BY_DIFFERENCES)
def test_gradients_with_features_are_the_central_differences_of_the_oracles_own_losses(name: str) -> None:
    chosen = BY_DIFFERENCES[name]
    settings = chosen.settings()
    state = moved_apart(chosen.initial_state())
    batch, noise = next(chosen.draws())
    _, by_critics = oracle.critic_pass(state, batch, noise, settings)
    _, by_policy, _ = oracle.policy_pass(state, batch, noise, settings)
    for parameter, gradient in by_critics.items():
        numeric = central_difference(
            lambda moved: float(oracle.critic_pass(moved, batch, noise, settings)[0]["critic_loss"]), state, parameter
        )
        np.testing.assert_allclose(gradient, numeric, rtol=1e-6, atol=1e-8, err_msg=parameter)
    for parameter, gradient in by_policy.items():
        numeric = central_difference(
            lambda moved: float(oracle.policy_pass(moved, batch, noise, settings)[0]["policy_loss"]), state, parameter
        )
        np.testing.assert_allclose(gradient, numeric, rtol=1e-6, atol=1e-8, err_msg=parameter)


def moved_apart(state: Arrays) -> Arrays:
    """Parameters off their first values, biases and targets too, so that no factor in a gradient is 0 or 1 by chance."""
    generator = np.random.default_rng(7)
    parts = ("policy.", "critic_", "target_critic_")
    moved = [name for name in state if name.startswith(parts) and "_optimizer." not in name]
    return state | {name: state[name] + 0.2 * generator.standard_normal(state[name].shape) for name in moved}


def test_trap_18_critics_start_from_zeros_and_the_policy_from_its_carry() -> None:
    """Another carry changes the policy's samples, and thereby losses, but not what the critics say of the stored actions."""
    chosen = RECURRENT
    state = chosen.initial_state()
    batch, noise = next(chosen.draws())
    assert isinstance(batch, Sequences)
    other = batch._replace(carry=batch.carry + 1.0)
    one, two = (oracle.update(state, each, noise, chosen.settings())[1] for each in (batch, other))
    np.testing.assert_array_equal(one["q_mean"], two["q_mean"])
    for name in ("critic_loss", "policy_loss", "entropy"):
        assert abs(one[name] - two[name]) > 1e-3, name


def test_trap_18_the_next_step_is_seen_with_what_came_before_it() -> None:
    """The value after a step needs the step's own observation: another first observation changes the target of a sequence of one step."""
    chosen = replace(RECURRENT, sequence_length=1, burn_in=0)
    state = chosen.initial_state()
    batch, noise = next(chosen.draws())
    assert isinstance(batch, Sequences)
    first = batch.observations.copy()
    first[0] += 1.0
    one, two = (oracle.critic_pass(state, each, noise, chosen.settings())[0] for each in (batch, batch._replace(observations=first)))
    assert abs(one["target_mean"] - two["target_mean"]) > 1e-3


def test_trap_19_what_the_mask_leaves_out_has_no_part_in_the_update() -> None:
    """Rewards and noise of warm-up and padding, and the observations behind the end, may be anything; those of the warm-up may not."""
    chosen = replace(RECURRENT, batch_size=6)
    state = chosen.initial_state()
    batch, noise = next(chosen.draws())
    assert isinstance(batch, Sequences)
    outside = ~batch.mask
    behind = np.cumsum(batch.mask[::-1], axis=0)[::-1] == 0
    before = outside & ~behind
    assert before.any()
    assert behind.any()
    rewards, observations = batch.rewards.copy(), batch.observations.copy()
    rewards[outside] = 1e6
    # Row t + 1 is the successor of step t, which counts where the step does.
    observations[1:][behind] = 1e3
    other = noise.map(lambda array: np.where(outside[..., None], -3.0, array))
    first = oracle.update(state, batch, noise, chosen.settings())
    second = oracle.update(state, batch._replace(rewards=rewards, observations=observations), other, chosen.settings())
    for one, two in zip(first, second, strict=True):
        for name, value in one.items():
            np.testing.assert_array_equal(two[name], value, err_msg=name)
    observations = batch.observations.copy()
    observations[:-1][before] += 1.0
    warmed = oracle.update(state, batch._replace(observations=observations), noise, chosen.settings())
    assert abs(warmed[1]["critic_loss"] - first[1]["critic_loss"]) > 1e-3


def test_a_mask_is_the_batch_without_its_rows() -> None:
    chosen = replace(PLAIN, masked=True)
    state = chosen.initial_state()
    batch, noise = next(chosen.draws())
    assert isinstance(batch, Batch)
    assert batch.mask is not None
    assert not batch.mask.all()
    kept = np.flatnonzero(batch.mask)
    less = batch._replace(mask=None).map(lambda array: array[kept])
    whole = oracle.update(state, batch, noise, chosen.settings())
    part = oracle.update(state, less, noise.map(lambda array: array[kept]), chosen.settings())
    for one, two in zip(whole, part, strict=True):
        for name, value in one.items():
            np.testing.assert_allclose(two[name], value, rtol=1e-12, atol=1e-15, err_msg=name)


def test_policy_delay_leaves_policy_and_temperature_alone_in_between() -> None:
    chosen = replace(PLAIN, policy_delay=3)
    implementation = Oracle(chosen, chosen.initial_state())
    slow = ("policy.", "policy_optimizer.", "log_alpha", "temperature_optimizer.")
    for number, (batch, noise) in enumerate(itertools.islice(chosen.draws(), 7), 1):
        before = implementation.state
        after = implementation.update(batch, noise).state
        for name in before:
            if name.startswith(slow) and name.partition(".")[2] not in ("calls", "learning_rate"):
                assert np.array_equal(before[name], after[name]) == (number % 3 != 0), name
        assert not np.array_equal(before["critic_1.head.bias"], after["critic_1.head.bias"])
        assert after["policy_optimizer.count"] == number // 3


def test_schedules_by_hand() -> None:
    expected = {
        ("constant", ()): [1.0, 1.0, 1.0],
        ("linear", (("steps", 4), ("end", 0.2))): [1.0, 0.8, 0.6, 0.4, 0.2, 0.2],
        ("cosine", (("steps", 4), ("end", 0.5))): [1.0, 0.75 + math.sqrt(0.125) / 2, 0.75, 0.75 - math.sqrt(0.125) / 2, 0.5, 0.5],
        ("exponential", (("decay", 0.5),)): [1.0, 0.5, 0.25],
        ("warm_up", (("steps", 4),)): [0.25, 0.5, 0.75, 1.0, 1.0],
        ("piecewise", (("boundaries", (1, 3)), ("factors", (2.0, 0.5, 3.0)))): [2.0, 0.5, 0.5, 3.0, 3.0],
    }
    for (name, kwargs), factors in expected.items():
        schedule = schedules.make(name, dict(kwargs))
        assert schedule is not None
        assert [schedule(done) for done in range(len(factors))] == pytest.approx(factors, rel=1e-15), name
    adaptive = schedules.Adaptive(kl_threshold=0.01, kl_factor=2.0, lr_factor=1.5, min_lr=1e-4, max_lr=1e-3)
    assert [adaptive(6e-4, kl) for kl in (0.021, 0.02, 0.005, 0.0049)] == pytest.approx([4e-4, 6e-4, 6e-4, 9e-4], rel=1e-15)
    assert [adaptive(1.2e-4, 1.0), adaptive(8e-4, 0.0)] == [1e-4, 1e-3]


def test_a_schedule_scales_the_step_of_its_update() -> None:
    """The first step of Adam is the rate itself, against the sign: warm-up over four makes it a quarter."""
    chosen = replace(PLAIN, schedule=("warm_up", None, "warm_up"), schedule_kwargs=({"steps": 4}, {}, {"steps": 2}))
    state = chosen.initial_state()
    new, _, gradients = oracle.update(state, *next(chosen.draws()), chosen.settings())
    for name, rate in (("policy.head.bias", 3e-3 / 4), ("critic_1.head.bias", 2e-3), ("log_alpha", 1e-3 / 2)):
        np.testing.assert_allclose(new[name] - state[name], -rate * np.sign(gradients[name]), rtol=1e-5)


def test_an_adapted_rate_is_in_force_from_the_next_update() -> None:
    """Thresholds far off both ways: one rate falls by 1.5 at each update, the other rises."""
    chosen = replace(
        PLAIN, schedule=("kl_adaptive", "kl_adaptive", None), schedule_kwargs=({"kl_threshold": 1e-9}, {"kl_threshold": 1e3}, {})
    )
    state = chosen.initial_state()
    implementation = Oracle(chosen, state)
    first, second = (implementation.update(*pair).state for pair in itertools.islice(chosen.draws(), 2))
    assert first["policy_optimizer.learning_rate"] == pytest.approx(3e-3 / 1.5, rel=1e-15)
    assert second["policy_optimizer.learning_rate"] == pytest.approx(3e-3 / 1.5**2, rel=1e-15)
    assert second["critic_optimizer.learning_rate"] == pytest.approx(2e-3 * 1.5**2, rel=1e-15)
    assert np.abs(first["policy.head.bias"] - state["policy.head.bias"]).max() == pytest.approx(3e-3, rel=1e-5)


def test_divergence_by_hand() -> None:
    """Means 0 and 1, both of standard deviation 1: 1/2. Standard deviations 1 and 2: log 2 + 1/8 - 1/2. Old first."""
    state = data.initial_state(observation=1, action=2, hidden=(), seed=0)
    state["policy.head.kernel"] = np.zeros((1, 4))
    batch = Batch(np.zeros((2, 1)), None, np.zeros((2, 2)), np.zeros(2), np.zeros((2, 1)), None, np.array([False, False]))
    old, new = ({**state, "policy.head.bias": np.array(bias)} for bias in ([0.0, 0, 0, 0], [1.0, 0, 0, math.log(2)]))
    assert oracle.divergence(old, new, batch, SETTINGS) == pytest.approx(0.5 + math.log(2) + 1 / 8 - 1 / 2, rel=1e-14)


def test_sequences_of_one_step_are_the_feed_forward_update_when_the_cell_is_cut_off() -> None:
    """With the layers' rows for the cell's output at zero, a sequence of one step without warm-up is a batch."""
    plain = PLAIN.initial_state()
    chosen = replace(RECURRENT, hidden=PLAIN.hidden, sequence_length=1, burn_in=0)
    state = chosen.initial_state()
    size = chosen.recurrent_size
    for name, value in plain.items():
        if name in state and value.shape == state[name].shape:
            state[name] = value
        elif name in state:
            state[name] = np.concatenate([np.zeros((size, value.shape[1])), value])
    batch, noise = next(PLAIN.draws())
    assert isinstance(batch, Batch)
    sequences = Sequences(
        observations=np.stack([batch.observations, batch.next_observations]),
        states=None,
        previous_actions=np.zeros((2, *batch.actions.shape)),
        previous_rewards=np.zeros((2, *batch.rewards.shape)),
        actions=batch.actions[None],
        rewards=batch.rewards[None],
        terminated=batch.terminated[None],
        mask=np.ones_like(batch.terminated[None]),
        carry=np.ones((len(batch.rewards), size)),
    )
    widened = noise.map(lambda array: array[None])
    critics = oracle.critic_pass(plain, batch, noise, SETTINGS), oracle.critic_pass(state, sequences, widened, SETTINGS)
    policies = oracle.policy_pass(plain, batch, noise, SETTINGS), oracle.policy_pass(state, sequences, widened, SETTINGS)
    for expected, found in (critics, policies):
        for name, value in expected[0].items():
            np.testing.assert_allclose(found[0][name], value, rtol=1e-12, err_msg=name)
        for name, gradient in expected[1].items():
            np.testing.assert_allclose(found[1][name][-len(gradient) :], gradient, rtol=1e-9, atol=1e-14, err_msg=name)
