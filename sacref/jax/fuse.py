"""Around a finished update: draw a batch and its noise, then take the step. Compiled, with the state donated."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from sacref.envs.scaling import to_box
from sacref.jax.memory import MemoryState, sample
from sacref.jax.update import Policy, State, Update
from sacref.spec import bound_log_std, squash
from sacref.types import Batch, Inputs, Metrics, Noise


class Streams(NamedTuple):
    """The random streams of an agent, apart from each other and from every global generator."""

    noise: Array
    sampling: Array
    exploration: Array


class Bounds(NamedTuple):
    """The Box of actions, `(action,)` each."""

    low: Array
    high: Array


Learn = Callable[[State, MemoryState, Streams], tuple[State, Streams, Metrics[Array]]]
Act = Callable[[Any, Streams, Inputs[Array]], tuple[Array, Array, Streams]]


def stepper(update: Update) -> Callable[[State, Batch[Array], Noise[Array]], tuple[State, Metrics[Array]]]:
    """The update compiled, `(state, batch, noise) -> (state, metrics)`; the state is donated."""
    return jax.jit(update, donate_argnums=0)


def learner(update: Update, *, batch_size: int) -> Learn:
    """A gradient step on a fresh batch: `(state, memory, streams) -> (state, streams, metrics)`."""

    @partial(jax.jit, donate_argnums=0)
    def learn(state: State, memory: MemoryState, streams: Streams) -> tuple[State, Streams, Metrics[Array]]:
        sampling, key = jax.random.split(streams.sampling)
        noise, first, second = jax.random.split(streams.noise, 3)
        batch = sample(memory, batch_size, key)

        def draw(key: Array) -> Array:
            like = batch.actions
            return jax.random.normal(key, like.shape, like.dtype)

        state, metrics = update(state, batch, Noise(next_actions=draw(first), actions=draw(second)))
        return state, streams._replace(noise=noise, sampling=sampling), metrics

    return learn


def actors(policy: Policy, bounds: Bounds) -> dict[str, Act]:
    """Ways to act, `(policy parameters, streams, inputs) -> (actions, mean actions, streams)`, in the Box's units.

    `greedy` draws nothing, `random` is uniform over the Box, `sampled` is the policy's own.
    """

    def mean_and_std(parameters: Any, inputs: Inputs[Array]) -> tuple[Array, Array, Array]:
        mean, raw_log_std = policy(parameters, inputs)
        return mean, raw_log_std, to_box(jnp.tanh(mean), *bounds)

    @jax.jit
    def greedy(parameters: Any, streams: Streams, inputs: Inputs[Array]) -> tuple[Array, Array, Streams]:
        _, _, mean_actions = mean_and_std(parameters, inputs)
        return mean_actions, mean_actions, streams

    @jax.jit
    def random(parameters: Any, streams: Streams, inputs: Inputs[Array]) -> tuple[Array, Array, Streams]:
        _, _, mean_actions = mean_and_std(parameters, inputs)
        exploration, key = jax.random.split(streams.exploration)
        uniform = jax.random.uniform(key, mean_actions.shape, mean_actions.dtype)
        return to_box(2.0 * uniform - 1.0, *bounds), mean_actions, streams._replace(exploration=exploration)

    @jax.jit
    def sampled(parameters: Any, streams: Streams, inputs: Inputs[Array]) -> tuple[Array, Array, Streams]:
        mean, raw_log_std, mean_actions = mean_and_std(parameters, inputs)
        exploration, key = jax.random.split(streams.exploration)
        noise = jax.random.normal(key, mean.shape, mean.dtype)
        actions, _ = squash(mean, bound_log_std(raw_log_std), noise)
        return to_box(actions, *bounds), mean_actions, streams._replace(exploration=exploration)

    return {"greedy": greedy, "random": random, "sampled": sampled}
