"""Data for the compared agents: a synthetic replay or sequences, batches drawn from it, noise, and initial weights."""

import math
import operator
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import DTypeLike

from sacref.agent.networks import Cell, Network
from sacref.algorithm.data import Batch, Noise, Sequences
from sacref.algorithm.tree import Tree
from sacref.parity.networks import Arrays, Floats
from sacref.parity.oracle import OPTIMIZERS, moment_name
from sacref.parity.schedules import Schedule

TERMINATED_SHARE = 0.02
MASKED_SHARE = 0.25
FRESH_SHARE = 0.4
"""Share of sequences that begin at an episode's start."""
FINAL_SHARE = 0.3
"""Share of sequences that end by termination."""

NumpyBatch = Batch[Floats]
NumpySequences = Sequences[Floats]
NumpyNoise = Noise[Floats]


def synthetic_replay(
    size: int,
    *,
    observation: int,
    action: int,
    seed: int,
    dtype: DTypeLike = np.float64,
    states: int = 0,
    n_step: int = 1,
    discount_factor: float = 0.99,
) -> NumpyBatch:
    """Make `size` transitions of the scale that a MuJoCo task has: standard normal observations, rewards 1 +- 2, 2% terminated.

    With `states` > 0 there are privileged states of that width; with `n_step` > 1 each transition is of 1 to n steps and has its discount.
    """
    generator = np.random.default_rng([seed, 0])
    observations = generator.standard_normal((size, observation))
    replay = Batch(
        observations=observations.astype(dtype),
        states=None,
        actions=np.tanh(generator.standard_normal((size, action))).astype(dtype),
        rewards=(1.0 + 2.0 * generator.standard_normal(size)).astype(dtype),
        next_observations=(0.9 * observations + 0.4 * generator.standard_normal((size, observation))).astype(dtype),
        next_states=None,
        terminated=generator.random(size) < TERMINATED_SHARE,
    )
    if states > 0:
        now, after = generator.standard_normal((2, size, states))
        replay = replay._replace(states=now.astype(dtype), next_states=(0.9 * now + 0.4 * after).astype(dtype))
    if n_step > 1:
        steps = generator.integers(1, n_step + 1, size)
        replay = replay._replace(discounts=(discount_factor**steps).astype(dtype))
    return replay


def draws(
    replay: NumpyBatch,
    *,
    batch_size: int,
    seed: int,
    masked: bool = False,
    critics: int = 2,
    target_subset: int | None = None,
    dropout_widths: Sequence[int] = (),
) -> Iterator[tuple[NumpyBatch, NumpyNoise]]:
    """Draw batches from `replay` with replacement, each with its noise, in the dtype of `replay`; without end.

    Args:
        replay: transitions.
        batch_size: rows of a batch.
        seed: for rows and noise.
        masked: whether some rows of each batch do not count.
        critics, target_subset: how many critics there are, and how many of them a target is the minimum of; None for all.
        dropout_widths: widths of the draws for each random layer of a critic.
    """
    generator = np.random.default_rng([seed, 1])
    size, action = replay.actions.shape
    dtype = replay.actions.dtype
    while True:
        batch = replay.map(operator.itemgetter(generator.integers(size, size=batch_size)))
        noise = _noise(generator, (batch_size,), action, critics, target_subset, dropout_widths, dtype)
        if masked:
            counted = generator.random(batch_size) >= MASKED_SHARE
            counted[generator.integers(batch_size)] = True
            batch = batch._replace(mask=counted)
        yield batch, noise


def sequence_draws(
    *,
    observation: int,
    action: int,
    states: int,
    carry: Sequence[int],
    sequence_length: int,
    burn_in: int,
    batch_size: int,
    seed: int,
    dtype: DTypeLike = np.float64,
    critics: int = 2,
    target_subset: int | None = None,
    dropout_widths: Sequence[int] = (),
) -> Iterator[tuple[NumpySequences, NumpyNoise]]:
    """Make sequences of the scale of `synthetic_replay`, each batch with its noise; without end.

    Each column begins with 0 to `burn_in` steps of warm-up, none at an episode's start, and goes on with 1 to `sequence_length` steps that
    are learned from; the last column ends early. Steps behind the end are as large as the data, so that a missing mask shows.

    Args:
        observation, action, states: widths; no states if 0.
        carry: width of each array of the policy's carry.
        sequence_length, burn_in: steps.
        batch_size: columns of a batch.
        seed, dtype, critics, target_subset, dropout_widths: see `draws`.
    """
    generator = np.random.default_rng([seed, 2])
    steps = burn_in + sequence_length
    columns = np.arange(batch_size)
    while True:
        observations = generator.standard_normal((steps + 1, batch_size, observation))
        actions = np.tanh(generator.standard_normal((steps + 1, batch_size, action)))
        rewards = 1.0 + 2.0 * generator.standard_normal((steps + 1, batch_size))
        before = [np.tanh(generator.standard_normal((batch_size, width))) for width in carry]
        fresh = generator.random(batch_size) < FRESH_SHARE
        warm = np.where(fresh, 0, generator.integers(0, burn_in + 1, batch_size))
        length = warm + generator.integers(1, sequence_length + 1, batch_size)
        length[-1] = warm[-1] + max(sequence_length // 2, 1)
        time = np.arange(steps)[:, None]
        terminated = np.zeros((steps, batch_size), bool)
        terminated[length - 1, columns] = generator.random(batch_size) < FINAL_SHARE
        # The step before the first one: nothing at an episode's start.
        actions[0, fresh], rewards[0, fresh] = 0.0, 0.0
        arrays = tuple(np.where(fresh[:, None], 0.0, array).astype(dtype) for array in before)
        sequences = Sequences(
            observations=observations.astype(dtype),
            states=generator.standard_normal((steps + 1, batch_size, states)).astype(dtype) if states > 0 else None,
            previous_actions=actions.astype(dtype),
            previous_rewards=rewards.astype(dtype),
            actions=actions[1:].astype(dtype),
            rewards=rewards[1:].astype(dtype),
            terminated=terminated,
            mask=(time >= warm) & (time < length),
            carry=arrays[0] if len(arrays) == 1 else arrays,
        )
        yield sequences, _noise(generator, (steps, batch_size), action, critics, target_subset, dropout_widths, dtype)


def split_observations(observations: Floats) -> Tree:
    """Split the observations of a Box into those of a Dict space: the first half rounded up, and the rest."""
    half = (observations.shape[-1] + 1) // 2
    return {"positions": observations[..., :half], "velocities": observations[..., half:]}


def initial_state(
    *,
    observation: int,
    action: int,
    hidden: Sequence[int],
    critics: int = 2,
    alpha: float = 1.0,
    learn_entropy: bool = True,
    seed: int = 0,
    dtype: DTypeLike = np.float64,
    states: int = 0,
    network: str = "mlp",
    critic_hidden: Sequence[int] | None = None,
    layer_norm: bool = False,
    recurrent: str | None = None,
    recurrent_size: int = 128,
    fed: int = 0,
    learning_rates: Sequence[float] = (1e-3, 1e-3, 1e-3),
    schedules: Sequence[Schedule | None] = (None, None, None),
    policy_delay: int = 1,
) -> Arrays:
    """Return the state before the first update, by common names: weights as the default models draw them, targets their copies, moments 0.

    Args:
        observation, action, states: widths; critics see the states where that is above 0.
        hidden: widths of the hidden layers, or residual blocks; those of the critics are `critic_hidden`, where it is not None.
        critics: number of critics.
        alpha: temperature.
        learn_entropy: whether it has an optimizer.
        seed, dtype: for the weights.
        network: kind of the networks.
        layer_norm: whether critics have it.
        recurrent, recurrent_size: kind of cell or None, and its size.
        fed: width of what cells are fed from the step before.
        learning_rates, schedules: for the policy, the critics and the temperature.
        policy_delay: updates until the policy and the temperature step.
    """
    seen = {"policy": observation} | {f"critic_{i + 1}": states or observation for i in range(critics)}
    state: Arrays = {}
    for model, width in seen.items():
        judges = model != "policy"
        cell = None if recurrent is None else Cell(recurrent, width + fed, recurrent_size)
        structure = Network(
            reads="observations",
            paths=("",),
            inputs=width + judges * action + (0 if cell is None else cell.size),
            hidden=tuple(critic_hidden if judges and critic_hidden is not None else hidden),
            outputs=1 if judges else 2 * action,
            layer_norm=layer_norm and judges,
            cell=cell,
            kind=network,
        )
        state |= {f"{model}.{name}": array for name, array in structure.draw(seed=seed, model=model).items()}
    optimized = [(("policy_optimizer" if name.startswith("policy.") else "critic_optimizer"), name) for name in state]
    state |= {f"target_{name}": value.copy() for name, value in state.items() if name.startswith("critic_")}
    state["log_alpha"] = np.asarray(math.log(alpha))
    if learn_entropy:
        optimized.append(("temperature_optimizer", "log_alpha"))
    for optimizer, name in optimized:
        for moment in ("first_moment", "second_moment"):
            state[moment_name(optimizer, moment, name)] = np.zeros_like(state[name])
    counters = {"gradient_steps", *(f"{optimizer}.count" for optimizer, _ in optimized)}
    for optimizer, rate, schedule in zip(OPTIMIZERS, learning_rates, schedules, strict=True):
        if schedule is not None:
            state[f"{optimizer}.learning_rate"] = np.asarray(rate)
        if f"{optimizer}.count" in counters and (schedule is not None or (policy_delay > 1 and optimizer != "critic_optimizer")):
            counters.add(f"{optimizer}.calls")
    state = {name: np.asarray(value, dtype=dtype) for name, value in state.items()}
    return state | {name: np.asarray(0, np.int64) for name in sorted(counters)}


def _noise(
    generator: np.random.Generator,
    rows: tuple[int, ...],
    action: int,
    critics: int,
    target_subset: int | None,
    dropout_widths: Sequence[int],
    dtype: DTypeLike,
) -> NumpyNoise:
    next_actions, actions = generator.standard_normal((2, *rows, action)).astype(dtype)
    noise = Noise(next_actions=next_actions, actions=actions)
    if target_subset is not None:
        noise = noise._replace(target_critics=generator.choice(critics, target_subset, replace=False))
    if dropout_widths:
        names = [f"critic_{i + 1}" for i in range(critics)]
        targets, online, judges = (
            {name: tuple(generator.random((*rows, width)).astype(dtype) for width in dropout_widths) for name in names} for _ in range(3)
        )
        noise = noise._replace(dropout=(targets, online, judges))
    return noise
