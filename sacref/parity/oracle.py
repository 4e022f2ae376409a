"""One whole SAC update in NumPy, derived by hand: forward, backward, clipping, Adam, temperature, target networks.

The independent witness of the parity suite. It calls neither `sacref.spec` nor automatic differentiation, and writes what it can
in another form than they do (logaddexp for softplus, sech^2 for 1 - tanh^2), so that an error in either shows as a difference.
Its networks are in `networks.py`; it runs in the dtype of its arrays, whose names are those of checkpoints.
Sequences have a leading time axis, and a row is a step of a sequence.
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from sacref.algorithm.data import Batch, Noise, Sequences
from sacref.algorithm.tree import Tree, named_leaves
from sacref.parity.networks import Arrays, Floats, Named, Seen, Tape, backward, forward
from sacref.parity.schedules import Adaptive, Schedule

LOG_STD_LOW, LOG_STD_HIGH = -20.0, 2.0
DECAY_1, DECAY_2, EPSILON = 0.9, 0.999, 1e-8
OPTIMIZERS = ("policy_optimizer", "critic_optimizer", "temperature_optimizer")

Data = Batch[Floats] | Sequences[Floats]


class Settings(NamedTuple):
    """Settings of an update."""

    target_entropy: float
    """In nats."""
    discount_factor: float = 0.99
    polyak: float = 0.005
    learning_rates: tuple[float, float, float] = (1e-3, 1e-3, 1e-3)
    """Policy, critics, temperature."""
    grad_norm_clip: float = 0.0
    """By global norm, in groups: the policy; all critics together; the temperature never. Off when <= 0."""
    learn_entropy: bool = True
    policy_value: Literal["min", "mean"] = "min"
    """Whether the policy maximises the "min" or the "mean" of the critics."""
    policy_delay: int = 1
    """The policy and the temperature step at every n-th update."""
    schedules: tuple[Schedule | None, Schedule | None, Schedule | None] = (None, None, None)
    """Schedules of the learning rates, in their order."""
    dropout: float = 0.0
    """The share of a critic's hidden units that is dropped."""
    feed_previous: tuple[str, ...] = ("actions",)
    """Inputs of recurrent networks from the step before: "actions", "rewards"."""


class Views(NamedTuple):
    """Inputs of the networks: before the actions (now) and after them (next)."""

    policy_now: Seen
    policy_next: Seen
    critics_now: Seen
    critics_next: Seen


class Sample(NamedTuple):
    """A draw from the policy, and the tape of its backward pass."""

    action: Floats
    log_prob: Floats
    pre_tanh: Floats
    spread: Floats
    """std * noise: the derivative of pre_tanh by log_std."""
    inside: Floats
    """1 where the raw log_std lies in its bounds, ends included, else 0: the derivative of the clip."""
    tape: Tape


def update(state: Named, batch: Data, noise: Noise[Floats], settings: Settings) -> tuple[Arrays, Arrays, Arrays]:
    """Update critics, policy (which sees the new critics), temperature and targets (Haarnoja et al. 2018b, arXiv:1812.05905).

    Args:
        state: parameters, log alpha, Adam's moments and counts, by their common names. Not written to.
        batch: transitions; rewards and terminated of shape `(batch,)`, of sequences `(time, batch)`, floats in the dtype of `state`.
        noise: standard normal draws, `(batch, action)` or `(time, batch, action)` each; the draws of dropout; which target critics count.
        settings: discount, learning rates and the like.

    Returns:
        The new state; the losses and other metrics; the gradients before clipping, by the names of their parameters (that of
        log alpha also where the temperature is fixed).
    """
    rates = learning_rates(state, settings)
    policy_steps = (int(state["gradient_steps"]) + 1) % settings.policy_delay == 0

    critic_metrics, critic_gradients = critic_pass(state, batch, noise, settings)
    new = _step(state, "critic_optimizer", clip(critic_gradients, settings.grad_norm_clip), rates[1])

    policy_metrics, policy_gradients, log_prob = policy_pass(new, batch, noise, settings)
    if policy_steps:
        new = _step(new, "policy_optimizer", clip(policy_gradients, settings.grad_norm_clip), rates[0])

    # The temperature learns from the policy before its step.
    entropy_loss, temperature_gradient = temperature_pass(state["log_alpha"], log_prob, settings.target_entropy, weights(batch))
    if settings.learn_entropy and policy_steps:
        new = _step(new, "temperature_optimizer", {"log_alpha": temperature_gradient}, rates[2])

    for name in state:
        if name.startswith("target_"):
            online = new[name.removeprefix("target_")]
            new[name] = settings.polyak * online + (1 - settings.polyak) * state[name]
    for name in state:
        if name == "gradient_steps" or name.endswith("_optimizer.calls"):
            new[name] = np.asarray(state[name] + 1)
    new |= scheduled(state, new, batch, rates, settings)
    gradients = critic_gradients | policy_gradients | {"log_alpha": temperature_gradient}
    entropy = -(weights(batch) * log_prob).sum()
    metrics = critic_metrics | policy_metrics | _arrays(entropy_loss=entropy_loss, alpha=np.exp(state["log_alpha"]), entropy=entropy)
    if settings.grad_norm_clip > 0:
        metrics |= _arrays(policy_gradient_norm=norm(policy_gradients), critic_gradient_norm=norm(critic_gradients))
    for part, optimizer, rate in zip(("policy", "critic", "entropy"), OPTIMIZERS, rates, strict=True):
        if f"{optimizer}.learning_rate" in new:
            metrics[f"{part}_learning_rate"] = np.asarray(rate, new[f"{optimizer}.learning_rate"].dtype)
    return new, metrics, gradients


def critic_pass(state: Named, batch: Data, noise: Noise[Floats], settings: Settings) -> tuple[Arrays, Arrays]:
    """Return the loss of the critics, sum_critic mean_batch 1/2 (Q - y)^2, and its gradient by every critic's parameters."""
    number = critics(state)
    views, weight = see(batch, settings), weights(batch)
    for_targets, for_critics, _ = noise.dropout
    sample = _sample(state, views.policy_next, noise.next_actions)
    chosen = range(number) if noise.target_critics is None else noise.target_critics
    next_q = [
        _value(state, f"target_critic_{i + 1}", views.critics_next, sample.action, for_targets.get(f"critic_{i + 1}", ()), settings)[0]
        for i in chosen
    ]
    value = np.minimum.reduce(next_q) - np.exp(state["log_alpha"]) * sample.log_prob
    discount = settings.discount_factor if batch.discounts is None else batch.discounts
    y = batch.rewards + np.where(batch.terminated, 0, discount * value)

    loss = np.zeros((), dtype=y.dtype)
    q: list[Floats] = []
    gradients: Arrays = {}
    for i in range(1, number + 1):
        value, tape = _value(state, f"critic_{i}", views.critics_now, batch.actions, for_critics.get(f"critic_{i}", ()), settings)
        error = value - y
        loss = loss + (weight * error**2).sum() / 2
        gradients.update(backward(state, f"critic_{i}", tape, (weight * error)[..., None])[0])
        q.append(value)
    # Metrics are taken over the rows that count, in one axis.
    y, values, weight = y[weight > 0], np.stack(q)[:, weight > 0], weight[weight > 0]
    metrics = _arrays(critic_loss=loss, target_max=y.max(), target_min=y.min(), target_mean=(weight * y).sum())
    return metrics | _arrays(q_max=values.max(axis=1), q_min=values.min(axis=1), q_mean=(weight * values).sum(axis=1)), gradients


def policy_pass(state: Named, batch: Data, noise: Noise[Floats], settings: Settings) -> tuple[Arrays, Arrays, Floats]:
    """Return the loss of the policy, mean_batch(alpha log pi - min_critic Q), its gradient, and log pi of each row."""
    number = critics(state)
    alpha = np.exp(state["log_alpha"])
    views, weight = see(batch, settings), weights(batch)
    sample = _sample(state, views.policy_now, noise.actions)
    outputs = [
        _value(state, f"critic_{i}", views.critics_now, sample.action, noise.dropout[2].get(f"critic_{i}", ()), settings)
        for i in range(1, number + 1)
    ]
    q = np.stack([value for value, _ in outputs])
    if settings.policy_value == "mean":
        judged, share = q.mean(axis=0), np.full_like(q, 1 / number)
    else:
        # A tie shares its gradient equally, as torch.amin and jnp.min do.
        judged = q.min(axis=0)
        tied = (q == judged).astype(q.dtype)
        share = tied / tied.sum(axis=0)
    loss = (weight * (alpha * sample.log_prob - judged)).sum()

    by_q = -weight * share
    by_action = np.zeros_like(sample.action)
    for i, (_, tape) in enumerate(outputs):
        by_parts = backward(state, f"critic_{i + 1}", tape, by_q[i][..., None])[1]
        by_action = by_action + by_parts[..., -sample.action.shape[-1] :]

    by_log_prob = (alpha * weight)[..., None]
    decay = np.exp(-2 * np.abs(sample.pre_tanh))
    by_pre_tanh = by_action * (4 * decay / (1 + decay) ** 2) + by_log_prob * 2 * np.tanh(sample.pre_tanh)
    by_log_std = (by_pre_tanh * sample.spread - by_log_prob) * sample.inside
    gradients, _ = backward(state, "policy", sample.tape, np.concatenate([by_pre_tanh, by_log_std], axis=-1))
    return _arrays(policy_loss=loss), gradients, sample.log_prob


def temperature_pass(log_alpha: Floats, log_prob: Floats, target_entropy: float, weight: Floats) -> tuple[Floats, Floats]:
    """Return the loss of the temperature, mean_batch(-log_alpha (log pi + target_entropy)), and its gradient by log alpha."""
    gap = (weight * (log_prob + target_entropy)).sum()
    return np.asarray(-log_alpha * gap), np.asarray(-gap)


def weights(batch: Data) -> Floats:
    """Return the weight of each row in a mean: 1 / (number of rows), or where there is a mask 1 / (number of rows in it) and 0 outside."""
    counted = np.ones(batch.rewards.shape, bool) if batch.mask is None else batch.mask
    weight: Floats = (counted / counted.sum()).astype(batch.rewards.dtype)
    return weight


def see(batch: Data, settings: Settings) -> Views:
    """Split the data: critics see the states where there are any, and a sequence's cells go over all steps for what is next."""
    if isinstance(batch, Sequences):
        observations = _joined(batch.observations, 2, batch.rewards.dtype)
        states = observations if batch.states is None else _joined(batch.states, 2, batch.rewards.dtype)
        previous = {"actions": batch.previous_actions, "rewards": batch.previous_rewards[..., None]}
        nothing = np.zeros((*batch.previous_rewards.shape, 0), batch.rewards.dtype)
        fed = np.concatenate([nothing, *(previous[name] for name in settings.feed_previous)], axis=-1)
        carry = batch.carry if isinstance(batch.carry, tuple) else (batch.carry,)
        return Views(
            policy_now=Seen(observations[:-1], fed[:-1], carry),
            policy_next=Seen(observations, fed, carry, skip=1),
            critics_now=Seen(states[:-1], fed[:-1]),
            critics_next=Seen(states, fed, skip=1),
        )
    now, after = (_joined(tree, 1, batch.rewards.dtype) for tree in (batch.observations, batch.next_observations))
    states = now if batch.states is None else _joined(batch.states, 1, batch.rewards.dtype)
    next_states = after if batch.next_states is None else _joined(batch.next_states, 1, batch.rewards.dtype)
    return Views(Seen(now), Seen(after), Seen(states), Seen(next_states))


def learning_rates(state: Named, settings: Settings) -> list[float]:
    """Return the rates of this update: the base rate times the schedule's factor, which counts updates from 0, or the adapted rate."""
    found = []
    for optimizer, rate, schedule in zip(OPTIMIZERS, settings.learning_rates, settings.schedules, strict=True):
        if isinstance(schedule, Adaptive):
            rate = float(state[f"{optimizer}.learning_rate"])
        elif schedule is not None:
            rate *= schedule(int(state["gradient_steps"]))
        found.append(rate)
    return found


def scheduled(state: Named, new: Named, batch: Data, rates: Sequence[float], settings: Settings) -> Arrays:
    """Return the scheduled rates that optimizers keep: that of this update, or the next one where it follows the policy's divergence.

    An update without a step of the policy says nothing about the length of its steps: the rate stays.
    """
    found: dict[str, float] = {}
    policy_stepped = (int(state["gradient_steps"]) + 1) % settings.policy_delay == 0
    for optimizer, rate, schedule in zip(OPTIMIZERS, rates, settings.schedules, strict=True):
        if isinstance(schedule, Adaptive) and policy_stepped:
            rate = schedule(rate, divergence(state, new, batch, settings))
        if schedule is not None:
            found[f"{optimizer}.learning_rate"] = rate
    return {name: np.asarray(rate, state[name].dtype) for name, rate in found.items()}


def divergence(state: Named, new: Named, batch: Data, settings: Settings) -> float:
    """Return KL(old || new) of the Gaussians before the tanh: sum_action log(s1/s0) + (s0^2 + (m0 - m1)^2) / (2 s1^2) - 1/2; its mean."""
    seen = see(batch, settings).policy_now
    (mean, log_std, _, _), (new_mean, new_log_std, _, _) = (_gaussian(each, seen) for each in (state, new))
    ratio = np.exp(2 * (log_std - new_log_std)) + ((mean - new_mean) * np.exp(-new_log_std)) ** 2
    of_rows = (new_log_std - log_std + ratio / 2 - 1 / 2).sum(axis=-1)
    return float((weights(batch) * of_rows).sum())


def clip(gradients: Named, limit: float) -> Arrays:
    """Return the gradients times min(1, limit / norm), norm being that of all of them together; unchanged when `limit` <= 0."""
    length = norm(gradients)
    if limit <= 0 or length <= limit:
        return dict(gradients)
    return {name: g * (limit / length) for name, g in gradients.items()}


def norm(gradients: Named) -> Floats:
    """Return the Euclidean norm of all of them together."""
    return np.asarray(np.sqrt(sum((g**2).sum() for g in gradients.values())))


def critics(state: Named) -> int:
    """Count the critics of `state`."""
    number = 0
    while f"critic_{number + 1}.head.bias" in state:
        number += 1
    return number


def moment_name(optimizer: str, moment: str, parameter: str) -> str:
    """Return the common name of a parameter's moment: `policy.head.bias` -> `policy_optimizer.first_moment.head.bias`."""
    if optimizer == "temperature_optimizer":
        return f"{optimizer}.{moment}"
    return f"{optimizer}.{moment}.{parameter.removeprefix('policy.')}"


def _arrays(**values: ArrayLike) -> Arrays:
    """Make arrays of shape `()` from the scalars that NumPy's reductions return."""
    return {name: np.asarray(value) for name, value in values.items()}


def _joined(tree: Tree, axes: int, dtype: DTypeLike) -> Floats:
    """Flatten the leaves of a (nested) dict and join them in the order of their sorted names."""
    flat = {name: leaf.reshape(*leaf.shape[:axes], -1).astype(dtype) for name, leaf in named_leaves(tree).items()}
    return np.concatenate([flat[name] for name in sorted(flat, key=lambda name: name.split("."))], axis=-1)


def _value(state: Named, critic: str, seen: Seen, action: Floats, draws: Sequence[Floats], settings: Settings) -> tuple[Floats, Tape]:
    output, tape = forward(state, critic, seen, action, draws, settings.dropout)
    return output[..., 0], tape


def _gaussian(state: Named, seen: Seen) -> tuple[Floats, Floats, Floats, Tape]:
    output, tape = forward(state, "policy", seen)
    mean, raw = np.split(output, 2, axis=-1)
    inside = ((raw >= LOG_STD_LOW) & (raw <= LOG_STD_HIGH)).astype(raw.dtype)
    return mean, np.clip(raw, LOG_STD_LOW, LOG_STD_HIGH), inside, tape


def _sample(state: Named, seen: Seen, noise: Floats) -> Sample:
    mean, log_std, inside, tape = _gaussian(state, seen)
    spread = np.exp(log_std) * noise
    pre_tanh = mean + spread
    log_gaussian = -(noise**2) / 2 - log_std - math.log(2 * math.pi) / 2
    log_one_minus_square = 2 * (math.log(2) - pre_tanh - np.logaddexp(-2 * pre_tanh, 0))
    log_prob = (log_gaussian - log_one_minus_square).sum(axis=-1)
    return Sample(np.tanh(pre_tanh), log_prob, pre_tanh, spread, inside, tape)


def _step(state: Named, optimizer: str, gradients: Named, learning_rate: float) -> Arrays:
    """Take a step of Adam (Kingma and Ba 2015, arXiv:1412.6980, algorithm 1) on the parameters that `gradients` names; the rest is kept."""
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
