"""What the compared agents are fed: one synthetic replay, the batches drawn from it, the noise, and the weights to start from."""

import math
import operator
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from sacref.initialisation import dense_layers
from sacref.parity import oracle
from sacref.types import Batch, Noise

TERMINATED_SHARE = 0.02


def synthetic_replay(size: int, *, observation: int, action: int, seed: int, dtype: DTypeLike = np.float64) -> Batch[NDArray[Any]]:
    """`size` transitions of the scale that a MuJoCo task has: standard normal observations, rewards 1 +- 2, 2% terminated."""
    generator = np.random.default_rng([seed, 0])
    observations = generator.standard_normal((size, observation))
    return Batch(
        observations=observations.astype(dtype),
        states=None,
        actions=np.tanh(generator.standard_normal((size, action))).astype(dtype),
        rewards=(1.0 + 2.0 * generator.standard_normal(size)).astype(dtype),
        next_observations=(0.9 * observations + 0.4 * generator.standard_normal((size, observation))).astype(dtype),
        next_states=None,
        terminated=generator.random(size) < TERMINATED_SHARE,
    )


def draws(replay: Batch[NDArray[Any]], *, batch_size: int, seed: int) -> Iterator[tuple[Batch[NDArray[Any]], Noise[NDArray[Any]]]]:
    """Batches drawn from `replay` with replacement, each with its noise, in the dtype of `replay`; without end."""
    generator = np.random.default_rng([seed, 1])
    size, action = replay.actions.shape
    dtype = replay.actions.dtype
    while True:
        batch = replay.map(operator.itemgetter(generator.integers(size, size=batch_size)))
        noise = generator.standard_normal((2, batch_size, action)).astype(dtype)
        yield batch, Noise(next_actions=noise[0], actions=noise[1])


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
) -> oracle.Arrays:
    """The state before the first update, by common names: weights as the default models draw them, targets their copies, moments 0."""
    shapes = {"policy": (observation, 2 * action)} | {f"critic_{i + 1}": (observation + action, 1) for i in range(critics)}
    state: oracle.Arrays = {}
    for model, (inputs, outputs) in shapes.items():
        layers = dense_layers(inputs=inputs, hidden=hidden, outputs=outputs, seed=seed, model=model)
        state |= {f"{model}.{name}": array for name, array in layers.items()}
    optimized = [(("policy_optimizer" if name.startswith("policy.") else "critic_optimizer"), name) for name in state]
    state |= {f"target_{name}": value.copy() for name, value in state.items() if name.startswith("critic_")}
    state["log_alpha"] = np.asarray(math.log(alpha))
    if learn_entropy:
        optimized.append(("temperature_optimizer", "log_alpha"))
    for optimizer, name in optimized:
        for moment in ("first_moment", "second_moment"):
            state[oracle.moment_name(optimizer, moment, name)] = np.zeros_like(state[name])
    state = {name: np.asarray(value, dtype=dtype) for name, value in state.items()}
    counters = {"gradient_steps", *(f"{optimizer}.count" for optimizer, _ in optimized)}
    return state | {name: np.asarray(0, np.int64) for name in sorted(counters)}
