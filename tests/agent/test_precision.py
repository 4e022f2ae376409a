"""Mixed precision on both backends: the networks in low precision, the head and everything behind it in float32, scaled losses."""

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from sacref.config import ConfigError, ExperimentConfig
from sacref.spec import scaling
from tests.agent.test_models import user
from tests.backends import (
    BACKENDS,
    Backend,
    assert_same_arrays,
    draw_batch,
    draw_row,
    fill,
    forward,
    installed_backends,
    jax_in_full,
    load_backend,
    metrics_of,
    without_shape_checks,
)

backend = pytest.fixture(params=BACKENDS)(load_backend)
PRECISIONS = ("bfloat16", "float16")
UNIT = {"bfloat16": 2.0**-8, "float16": 2.0**-11}
"""Half the distance between neighbours, relative: of a number with 8, or 11, binary digits."""


def low(backend: Backend, precision: str = "bfloat16", **options: Any) -> Any:
    """A small agent of mixed precision."""
    return backend.agent(mixed_precision=True, precision=precision, hidden=options.pop("hidden", (32, 32)), **options)


def lift(agent: Any, value: float) -> None:
    """Let all critics, and their targets, be near `value`."""
    arrays = agent.arrays()
    for name in arrays:
        if "critic_" in name and name.endswith(".head.bias") and "optimizer" not in name:
            arrays[name] = np.full_like(arrays[name], value)
    agent.set_arrays(arrays)


def q_values(agent: Any, model: str, observations: NDArray[Any], actions: NDArray[Any]) -> NDArray[Any]:
    """What the update computes of a critic."""
    critic = agent.learner.state.critics[model]
    inputs = {"observations": agent.learner.backend.upload(observations), "states": None}
    values: NDArray[Any] = agent.to_numpy(agent.own_models.functions[model](critic, inputs, agent.learner.backend.upload(actions)))
    return values


@pytest.mark.parametrize("precision", PRECISIONS)
def test_hidden_layers_have_the_digits_of_the_precision_and_no_fewer(backend: Backend, precision: str) -> None:
    agent = low(backend, precision, training=False)
    observations = np.random.default_rng(0).normal(size=(64, 3))
    _, extras = agent.act(observations, None, timestep=0, timesteps=1)
    mean, _ = np.split(forward(agent.arrays(), "policy", observations), 2, axis=-1)
    wanted = 2.0 * np.tanh(mean)
    error = np.abs(agent.to_numpy(extras["mean_actions"]) - wanted).max() / np.abs(wanted).max()
    assert UNIT[precision] / 20 < error < 4 * UNIT[precision]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_trap_23_values_near_1000_keep_the_digits_of_float32(backend: Backend, precision: str) -> None:
    agent = low(backend, precision)
    lift(agent, 1000.0)
    generator = np.random.default_rng(0)
    observations, actions = generator.normal(size=(64, 3)), generator.uniform(-1, 1, (64, 2))
    values = q_values(agent, "critic_1", observations, actions)
    assert values.dtype == np.float32
    exact = forward(agent.arrays(), "critic_1", np.concatenate([observations, actions], axis=1))[:, 0]
    # Cast up behind the head they would be multiples of 4 (bfloat16) or 0.5 (float16), off by up to half of that.
    assert np.abs(values - exact).max() < 8 * UNIT[precision] * np.abs(exact - 1000.0).max()
    assert np.abs(exact - 1000.0).max() < 1.0


def test_parameters_moments_temperature_and_metrics_are_float32(backend: Backend) -> None:
    agent = low(backend)
    metrics = agent.update_on(*draw_batch(agent, 8))
    assert {array.dtype for array in metrics.values()} == {np.dtype(np.float32)}
    assert {array.dtype.name for array in agent.arrays().values()} == {"float32", "int64"}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_losses_and_gradients_are_near_those_of_float32_and_not_equal(backend: Backend, precision: str) -> None:
    full, mixed = backend.agent(hidden=(32, 32)), low(backend, precision)
    errors = []
    found = []
    for agent in (full, mixed):
        agent.keep_gradients()
        with without_shape_checks():
            metrics = agent.update_on(*draw_batch(agent, 64))
        found.append({**agent.gradients(), "critic_loss": metrics["critic_loss"], "policy_loss": metrics["policy_loss"]})
    for name, exact in found[0].items():
        errors.append(np.abs(found[1][name] - exact).max() / np.abs(exact).max())
    # Of the largest, one may be anything: where a unit's input changes its sign.
    assert UNIT[precision] / 20 < np.median(errors) < 5 * UNIT[precision]


@pytest.mark.parametrize(
    ("backend", "cell"),
    [
        pytest.param(name, cell, marks=[pytest.mark.full] * ((name, cell) != ("torch", "gru")))
        for name in BACKENDS
        for cell in ("gru", "lstm")
    ],
    indirect=["backend"],
)
def test_recurrent_agents_compute_and_carry_on(backend: Backend, cell: str) -> None:
    options: dict[str, Any] = {"algorithm": "SAC_RNN", "networks": {"recurrent": cell, "recurrent_size": 16}, "sequence_length": 4}
    full, mixed = backend.agent(**options), low(backend, hidden=(8,), **options)
    losses, acted = [], []
    for agent in (full, mixed):
        fill(agent, 16)
        agent.act(np.ones((1, 3)), None, timestep=0, timesteps=1)
        _, extras = agent.act(np.ones((1, 3)), None, timestep=1, timesteps=2)
        acted.append(agent.to_numpy(extras["mean_actions"]))
        carry = agent.carry.ongoing[True].carry
        assert {str(np.asarray(agent.to_numpy(part)).dtype) for part in (carry if isinstance(carry, tuple) else [carry])} == {"float32"}
        with pytest.MonkeyPatch.context() as patch, without_shape_checks():
            seen = metrics_of(agent, patch)
            agent.update(timestep=0, timesteps=1)
        losses.append(seen[0]["critic_loss"])
    assert 0 < np.abs(acted[1] - acted[0]).max() < 0.02
    assert losses[1] == pytest.approx(losses[0], rel=0.05) and losses[1] != losses[0]


def test_models_of_a_users_own_are_warned_of_without_a_head_alone(backend: Backend) -> None:
    models = user(backend).user_models(3, 2)
    with pytest.warns(UserWarning, match=r"models \['policy', 'critic_1', 'critic_2'\] have no `head`.*near 1,000 are 4 apart"):
        agent = backend.agent(models=models, mixed_precision=True)
    agent.update_on(*draw_batch(agent, 8))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        low(backend)


def test_a_fast_way_computes_what_the_plain_one_does(backend: Backend) -> None:
    found = []
    for execution in ("plain", {"torch": "traced", "jax": "scan"}[backend.name]):
        agent = low(backend, "float16", execution=execution, grad_norm_clip=1.0)
        fill(agent, 32)
        with without_shape_checks():
            for _ in range(5):
                agent.update(timestep=0, timesteps=1)
        found.append(agent.arrays())
    # Adam divides by the root of squares that are as small as the rounding of float16.
    for name, array in found[0].items():
        np.testing.assert_allclose(found[1][name], array, rtol=1e-4, atol=1e-4, err_msg=name)


def test_the_backends_agree_to_the_digits_of_the_precision() -> None:
    found = []
    for each in installed_backends():
        agent = low(each)
        agent.keep_gradients()
        agent.update_on(*draw_batch(agent, 64))
        found.append(agent.gradients())
    for name, gradient in found[0].items():
        assert np.abs(found[1][name] - gradient).max() <= 8 * UNIT["bfloat16"] * np.abs(gradient).max(), name


def test_float64_models_are_refused(backend: Backend) -> None:
    with pytest.raises(ConfigError, match="mixed_precision is True and the models are float64, expected float32"):
        low(backend, dtype="float64")


# Scaled losses.


def overflowing(agent: Any) -> tuple[Any, Any]:
    """A batch whose critics' gradients are beyond float16, and the policy's are not."""
    batch, noise = draw_batch(agent, 4)
    return batch._replace(rewards=np.full(4, 1e5), terminated=np.ones(4, bool)), noise


def test_a_step_whose_gradients_overflow_is_skipped_and_the_scale_halved(backend: Backend) -> None:
    agent = low(backend, "float16", execution="plain")
    before = agent.arrays()
    metrics = agent.update_on(*overflowing(agent))
    after = agent.arrays()
    for name in before:
        if name.startswith(("critic_1.", "critic_2.", "critic_optimizer.first_moment", "critic_optimizer.second_moment")):
            np.testing.assert_array_equal(after[name], before[name], err_msg=name)
    assert after["critic_optimizer.count"] == 0 and after["policy_optimizer.count"] == 1
    assert not np.array_equal(after["policy.head.kernel"], before["policy.head.kernel"])
    assert after["critic_optimizer.loss_scale"] == metrics["critic_loss_scale"] == 2.0**15
    assert after["policy_optimizer.loss_scale"] == metrics["policy_loss_scale"] == 2.0**16
    assert metrics["critic_skipped_steps"] == 1 and metrics["policy_skipped_steps"] == metrics["entropy_skipped_steps"] == 0
    for _ in range(40):
        metrics = agent.update_on(*overflowing(agent))
    # The scale fell until the gradients fit, and the critics learn.
    assert metrics["critic_skipped_steps"] < 20 and agent.arrays()["critic_optimizer.count"] > 10
    assert all(np.isfinite(array).all() for array in agent.arrays().values())


def test_the_scale_doubles_after_steps_that_did_not_overflow(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling, "GROWTH_INTERVAL", 3)
    agent = low(backend, "float16", execution="plain")
    scales = [float(agent.update_on(*draw_batch(agent, 8))["critic_loss_scale"]) for _ in range(7)]
    assert scales == [2.0**16, 2.0**16, 2.0**17, 2.0**17, 2.0**17, 2.0**18, 2.0**18]


def test_bfloat16_needs_no_scale(backend: Backend) -> None:
    agent = low(backend)
    assert not any("loss_scale" in name for name in [*agent.arrays(), *agent.update_on(*draw_batch(agent, 8))])


def test_a_policy_whose_output_is_not_finite_moves_nothing(backend: Backend) -> None:
    agent = low(backend, "float16", execution="plain")
    batch, noise = draw_batch(agent, 4)
    before = agent.arrays()
    agent.update_on(batch._replace(observations=np.full((4, 3), 1e5), next_observations=np.full((4, 3), 1e5)), noise)
    after = agent.arrays()
    for name in ("policy.head.kernel", "critic_1.head.kernel", "log_alpha"):
        np.testing.assert_array_equal(after[name], before[name], err_msg=name)
    np.testing.assert_allclose(after["target_critic_1.head.kernel"], before["target_critic_1.head.kernel"], rtol=1e-6)
    assert [after[f"{part}_optimizer.skipped_steps"] for part in ("policy", "critic", "temperature")] == [1, 1, 1]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_trap_23_values_near_1000_stay_there(backend: Backend, precision: str) -> None:
    """A reward of 10 a step for ever is worth 10 / (1 - 0.99) = 1,000."""
    agent = low(backend, precision, batch_size=32, learning_rate=3e-4, initial_entropy_value=1e-6, learn_entropy=False, polyak=0.05)
    lift(agent, 1000.0)
    generator = np.random.default_rng(0)
    for _ in range(32):
        agent.record_transition(**draw_row(agent, generator, rewards=np.full((1, 1), 10.0), terminated=np.zeros((1, 1), bool)))
    with without_shape_checks(), pytest.MonkeyPatch.context() as patch:
        seen = metrics_of(agent, patch)
        for _ in range(300):
            agent.update(timestep=0, timesteps=1)
    assert np.abs(np.array([metrics["q_mean"] for metrics in seen[-50:]]) - 1000.0).max() < 5.0
    assert np.median([metrics["critic_loss"] for metrics in seen[-50:]]) < 2.0
    assert precision != "float16" or agent.arrays()["critic_optimizer.skipped_steps"] < 30


@jax_in_full
def test_scale_and_skipped_steps_are_tracked_and_saved(backend: Backend, tmp_path: Path) -> None:
    experiment = ExperimentConfig(directory=str(tmp_path), experiment_name="run", write_interval=1, checkpoint_interval=0)
    agent = low(backend, "float16", experiment=experiment)
    agent.record_transition(**draw_row(agent, np.random.default_rng(0), rewards=np.full((1, 1), 1e6), terminated=np.ones((1, 1), bool)))
    for _ in range(2):
        agent.update(timestep=0, timesteps=1)
    agent.write_tracking_data(timestep=1, timesteps=1)
    agent.close()
    line = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert line["Precision / Critic skipped steps (max)"] == 2
    assert line["Precision / Critic loss scale"] == (2.0**15 + 2.0**14) / 2
    assert line["Precision / Policy skipped steps (max)"] == 0
    agent.save(tmp_path / "saved")
    other = low(backend, "float16")
    other.load(tmp_path / "saved")
    assert other.arrays()["critic_optimizer.loss_scale"] == 2.0**14
    assert_same_arrays(other.arrays(), agent.arrays())
