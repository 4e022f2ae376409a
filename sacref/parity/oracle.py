"""One whole SAC update in NumPy, derived by hand: forward, backward, clipping, Adam, temperature, target networks.

The independent witness of the parity suite. It calls neither `sacref.spec` nor automatic differentiation, and writes what it can
in another form than they do (logaddexp for softplus, sech^2 for 1 - tanh^2), so that an error in either shows as a difference.
Plain ReLU networks only; it runs in the dtype of the arrays that it is given. Names are the common names of DESIGN section 4.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sacref.types import Batch, Noise

Floats = NDArray[Any]
Arrays = dict[str, Floats]
Named = Mapping[str, Floats]

LOG_STD_LOW, LOG_STD_HIGH = -20.0, 2.0
DECAY_1, DECAY_2, EPSILON = 0.9, 0.999, 1e-8


class Settings(NamedTuple):
    """The numbers of an update that are not arrays."""

    target_entropy: float
    """In nats."""
    discount_factor: float = 0.99
    polyak: float = 0.005
    learning_rates: tuple[float, float, float] = (1e-3, 1e-3, 1e-3)
    """Of the policy, the critics and the temperature."""
    grad_norm_clip: float = 0.0
    """By global norm, in groups: the policy; all critics together; the temperature never. Off when <= 0."""
    learn_entropy: bool = True


class Sample(NamedTuple):
    """A draw from the policy, with what its backward pass needs."""

    action: Floats
    log_prob: Floats
    pre_tanh: Floats
    spread: Floats
    """std * noise: the derivative of pre_tanh by log_std."""
    inside: Floats
    """1 where the raw log_std lies in its bounds, ends included, else 0: the derivative of the clip."""
    tape: list[Floats]


def update(state: Named, batch: Batch[Floats], noise: Noise[Floats], settings: Settings) -> tuple[Arrays, Arrays, Arrays]:
    """One update: critics, policy (which sees the new critics), temperature, target networks. Haarnoja et al. 2018b (arXiv:1812.05905).

    Args:
        state: parameters, log alpha, Adam's moments and counts, by their common names. Not written to.
        batch: transitions; rewards and terminated of shape `(batch,)`, floats in the dtype of `state`.
        noise: standard normal draws, `(batch, action)` each.
        settings: discount, learning rates and the like.

    Returns:
        The new state; the losses and what else was measured; the gradients before clipping, by the names of their parameters (that of
        log alpha also where the temperature is fixed).
    """
    critic_metrics, critic_gradients = critic_pass(state, batch, noise, settings)
    new = _step(state, "critic_optimizer", clip(critic_gradients, settings.grad_norm_clip), settings.learning_rates[1])

    policy_metrics, policy_gradients, log_prob = policy_pass(new, batch, noise)
    new = _step(new, "policy_optimizer", clip(policy_gradients, settings.grad_norm_clip), settings.learning_rates[0])

    # The policy that is judged is the one before its step.
    entropy_loss, temperature_gradient = temperature_pass(state["log_alpha"], log_prob, settings.target_entropy)
    if settings.learn_entropy:
        new = _step(new, "temperature_optimizer", {"log_alpha": temperature_gradient}, settings.learning_rates[2])

    for name in state:
        if name.startswith("target_"):
            online = new[name.removeprefix("target_")]
            new[name] = settings.polyak * online + (1 - settings.polyak) * state[name]
    new["gradient_steps"] = np.asarray(state["gradient_steps"] + 1)
    gradients = critic_gradients | policy_gradients | {"log_alpha": temperature_gradient}
    temperature_metrics = _arrays(entropy_loss=entropy_loss, alpha=np.exp(state["log_alpha"]), entropy=-log_prob.mean())
    return new, critic_metrics | policy_metrics | temperature_metrics, gradients


def critic_pass(state: Named, batch: Batch[Floats], noise: Noise[Floats], settings: Settings) -> tuple[Arrays, Arrays]:
    """Loss of the critics, sum_critic mean_batch 1/2 (Q - y)^2, and its gradient by every critic's parameters."""
    number = critics(state)
    sample = _sample(state, batch.next_observations, noise.next_actions)
    next_q = [
        _forward(state, f"target_critic_{i}", np.concatenate([batch.next_observations, sample.action], axis=1))[0][:, 0]
        for i in range(1, number + 1)
    ]
    value = np.minimum.reduce(next_q) - np.exp(state["log_alpha"]) * sample.log_prob
    y = batch.rewards + np.where(batch.terminated, 0, settings.discount_factor * value)

    inputs = np.concatenate([batch.observations, batch.actions], axis=1)
    loss = np.zeros((), dtype=y.dtype)
    q: list[Floats] = []
    gradients: Arrays = {}
    for i in range(1, number + 1):
        output, tape = _forward(state, f"critic_{i}", inputs)
        error = output[:, 0] - y
        loss = loss + (error**2).mean() / 2
        gradients.update(_backward(state, f"critic_{i}", tape, (error / error.size)[:, None])[0])
        q.append(output[:, 0])
    values = np.stack(q)
    metrics = _arrays(critic_loss=loss, target_max=y.max(), target_min=y.min(), target_mean=y.mean())
    return metrics | _arrays(q_max=values.max(axis=1), q_min=values.min(axis=1), q_mean=values.mean(axis=1)), gradients


def policy_pass(state: Named, batch: Batch[Floats], noise: Noise[Floats]) -> tuple[Arrays, Arrays, Floats]:
    """Loss of the policy, mean_batch(alpha log pi - min_critic Q), its gradient by the policy's parameters, and log pi `(batch,)`."""
    number = critics(state)
    alpha = np.exp(state["log_alpha"])
    sample = _sample(state, batch.observations, noise.actions)
    inputs = np.concatenate([batch.observations, sample.action], axis=1)
    outputs = [_forward(state, f"critic_{i}", inputs) for i in range(1, number + 1)]
    q = np.stack([output[:, 0] for output, _ in outputs])
    least = q.min(axis=0)
    loss = (alpha * sample.log_prob - least).mean()

    # A tie shares its gradient equally, as torch.amin and jnp.min do.
    tied = (q == least).astype(q.dtype)
    by_q = -tied / tied.sum(axis=0) / least.size
    by_action = np.zeros_like(sample.action)
    for i, (_, tape) in enumerate(outputs):
        by_inputs = _backward(state, f"critic_{i + 1}", tape, by_q[i][:, None])[1]
        by_action = by_action + by_inputs[:, batch.observations.shape[1] :]

    by_log_prob = alpha / least.size
    decay = np.exp(-2 * np.abs(sample.pre_tanh))
    by_pre_tanh = by_action * (4 * decay / (1 + decay) ** 2) + by_log_prob * 2 * np.tanh(sample.pre_tanh)
    by_log_std = (by_pre_tanh * sample.spread - by_log_prob) * sample.inside
    gradients, _ = _backward(state, "policy", sample.tape, np.concatenate([by_pre_tanh, by_log_std], axis=1))
    return _arrays(policy_loss=loss), gradients, sample.log_prob


def temperature_pass(log_alpha: Floats, log_prob: Floats, target_entropy: float) -> tuple[Floats, Floats]:
    """Loss of the temperature, mean_batch(-log_alpha (log pi + target_entropy)), and its gradient by log alpha."""
    gap = (log_prob + target_entropy).mean()
    return np.asarray(-log_alpha * gap), np.asarray(-gap)


def clip(gradients: Named, limit: float) -> Arrays:
    """The gradients times min(1, limit / norm), norm being that of all of them together; unchanged when `limit` <= 0."""
    norm = np.sqrt(sum((g**2).sum() for g in gradients.values()))
    if limit <= 0 or norm <= limit:
        return dict(gradients)
    return {name: g * (limit / norm) for name, g in gradients.items()}


def critics(state: Named) -> int:
    """How many critics `state` holds."""
    number = 0
    while f"critic_{number + 1}.head.bias" in state:
        number += 1
    return number


def moment_name(optimizer: str, moment: str, parameter: str) -> str:
    """The common name of a parameter's moment: `policy.head.bias` -> `policy_optimizer.first_moment.head.bias`."""
    if optimizer == "temperature_optimizer":
        return f"{optimizer}.{moment}"
    return f"{optimizer}.{moment}.{parameter.removeprefix('policy.')}"


def _arrays(**values: Any) -> Arrays:
    """What NumPy's reductions return are scalars; the common form is an array of shape `()`."""
    return {name: np.asarray(value) for name, value in values.items()}


def _layers(state: Named, model: str) -> list[str]:
    hidden = 0
    while f"{model}.hidden.{hidden}.kernel" in state:
        hidden += 1
    return [*(f"{model}.hidden.{i}" for i in range(hidden)), f"{model}.head"]


def _forward(state: Named, model: str, inputs: Floats) -> tuple[Floats, list[Floats]]:
    """The network's output, and the tape: what entered each layer."""
    tape = [inputs]
    *hidden, head = _layers(state, model)
    for layer in hidden:
        tape.append(np.maximum(tape[-1] @ state[f"{layer}.kernel"] + state[f"{layer}.bias"], 0))
    return tape[-1] @ state[f"{head}.kernel"] + state[f"{head}.bias"], tape


def _backward(state: Named, model: str, tape: list[Floats], by_output: Floats) -> tuple[Arrays, Floats]:
    """The gradient by the network's parameters, and by its inputs."""
    gradients: Arrays = {}
    layers = _layers(state, model)
    by_input = by_output
    for depth in reversed(range(len(layers))):
        gradients[f"{layers[depth]}.kernel"] = tape[depth].T @ by_output
        gradients[f"{layers[depth]}.bias"] = by_output.sum(axis=0)
        by_input = by_output @ state[f"{layers[depth]}.kernel"].T
        by_output = by_input * (tape[depth] > 0)
    return gradients, by_input


def _sample(state: Named, observations: Floats, noise: Floats) -> Sample:
    output, tape = _forward(state, "policy", observations)
    mean, raw = np.split(output, 2, axis=1)
    inside = ((raw >= LOG_STD_LOW) & (raw <= LOG_STD_HIGH)).astype(raw.dtype)
    log_std = np.clip(raw, LOG_STD_LOW, LOG_STD_HIGH)
    spread = np.exp(log_std) * noise
    pre_tanh = mean + spread
    log_gaussian = -(noise**2) / 2 - log_std - math.log(2 * math.pi) / 2
    log_one_minus_square = 2 * (math.log(2) - pre_tanh - np.logaddexp(-2 * pre_tanh, 0))
    log_prob = (log_gaussian - log_one_minus_square).sum(axis=1)
    return Sample(np.tanh(pre_tanh), log_prob, pre_tanh, spread, inside, tape)


def _step(state: Named, optimizer: str, gradients: Named, learning_rate: float) -> Arrays:
    """Adam (Kingma and Ba 2015, arXiv:1412.6980, algorithm 1) on the parameters that `gradients` names; the rest is kept."""
    new = dict(state)
    count = int(state[f"{optimizer}.count"]) + 1
    new[f"{optimizer}.count"] = np.asarray(count, np.int64)
    for name, gradient in gradients.items():
        first_name, second_name = (moment_name(optimizer, moment, name) for moment in ("first_moment", "second_moment"))
        first = DECAY_1 * state[first_name] + (1 - DECAY_1) * gradient
        second = DECAY_2 * state[second_name] + (1 - DECAY_2) * gradient**2
        first_unbiased = first / (1 - DECAY_1**count)
        second_unbiased = second / (1 - DECAY_2**count)
        new[first_name], new[second_name] = np.asarray(first), np.asarray(second)
        new[name] = np.asarray(state[name] - learning_rate * first_unbiased / (np.sqrt(second_unbiased) + EPSILON))
    return new
