"""Around a finished update: draw a batch and its noise, then take the steps; and the ways to run that fast.

`plain` compiles the update and calls it for each gradient step. `scan` compiles all gradient steps between two actions into one call: each
gathers its batch from the memory where it lies. The state is donated.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from sacref.config import Execution
from sacref.envs.scaling import to_box
from sacref.jax.memory import MemoryState, sample
from sacref.jax.update import Policy, State, Update
from sacref.spec import bound_log_std, squash
from sacref.types import METRICS, Batch, Inputs, Metrics, Noise

IMPLEMENTATION = "threefry2x32"
"""Of the random numbers: named, in the place of JAX's setting, and the one whose numbers do not depend on vmap."""


class Streams(NamedTuple):
    """The random streams of an agent, apart from each other and from every global generator.

    The data of Threefry keys, uint32: JAX wraps a key array that leaves a compiled call in Python each time.
    """

    noise: Array
    sampling: Array
    exploration: Array


class Bounds(NamedTuple):
    """The Box of actions, `(action,)` each."""

    low: Array
    high: Array


Learn = Callable[[State, MemoryState, Streams, int], tuple[State, Streams, list[Array]]]
Act = Callable[[Any, Streams, Inputs[Array]], tuple[Array, Array, Streams]]


def choose(execution: Execution) -> Execution:
    """The way to run updates.

    Raises:
        ValueError: if there is no such way in JAX.
    """
    if execution not in ("auto", "plain", "scan"):
        raise ValueError(f"execution is {execution!r}, which is PyTorch's: expected auto, plain or scan on JAX")
    return "scan" if execution == "auto" else execution


def describe() -> str:
    """How updates run unless told otherwise."""
    return choose("auto")


def stepper(update: Update) -> Callable[[State, Batch[Array], Noise[Array]], tuple[State, Metrics[Array]]]:
    """The update compiled, `(state, batch, noise) -> (state, metrics)`; the state is donated."""
    return jax.jit(update, donate_argnums=0)


def pack(metrics: Metrics[Array]) -> Array:
    """The metrics of an update in one vector, in the order of `METRICS`."""
    return jnp.concatenate([metrics[name].reshape(-1) for name in METRICS if name in metrics])


def advance(stream: Array, number: int = 1) -> tuple[Array, ...]:
    """The stream after its next `number` keys, and those keys."""
    following, *keys = jax.random.split(jax.random.wrap_key_data(stream, impl=IMPLEMENTATION), number + 1)
    return jax.random.key_data(following), *keys


def draw(memory: MemoryState, streams: Streams, batch_size: int) -> tuple[Batch[Array], Noise[Array], Streams]:
    """The batch and the noise of the next gradient step."""
    sampling, key = advance(streams.sampling)
    noise, first, second = advance(streams.noise, 2)
    batch = sample(memory, batch_size, key)
    like = batch.actions
    next_actions, actions = (jax.random.normal(key, like.shape, like.dtype) for key in (first, second))
    return batch, Noise(next_actions=next_actions, actions=actions), streams._replace(noise=noise, sampling=sampling)


def learner(update: Update, *, batch_size: int, execution: Execution, block: int = 1) -> Learn:
    """Take gradient steps on fresh batches: `(state, memory, streams, steps) -> (state, streams, metrics)`.

    The state is donated. The metrics are a list of matrices `(step, metric)`, see `pack`.

    Args:
        block: gradient steps that one compiled call scans over. What is left of `steps`, in the last chunk or of a fraction, runs one by
            one: two lengths are compiled at most.
    """

    @partial(jax.jit, donate_argnums=0, static_argnums=3)
    def scan(state: State, memory: MemoryState, streams: Streams, steps: int) -> tuple[State, Streams, Array]:
        def step(carry: tuple[State, Streams], _: None) -> tuple[tuple[State, Streams], Array]:
            state, streams = carry
            batch, noise, streams = draw(memory, streams, batch_size)
            state, metrics = update(state, batch, noise)
            return (state, streams), pack(metrics)

        (state, streams), metrics = jax.lax.scan(step, (state, streams), length=steps)
        return state, streams, metrics

    draw_batch = jax.jit(draw, static_argnums=2)
    plain_step = stepper(update)

    def plain(state: State, memory: MemoryState, streams: Streams, steps: int) -> tuple[State, Streams, Array]:
        packed = []
        for _ in range(steps):
            batch, noise, streams = draw_batch(memory, streams, batch_size)
            state, metrics = plain_step(state, batch, noise)
            packed.append(pack(metrics))
        return state, streams, jnp.stack(packed)

    run = plain if execution == "plain" else scan

    def learn(state: State, memory: MemoryState, streams: Streams, steps: int) -> tuple[State, Streams, list[Array]]:
        packed = []
        for length in [block] * (steps // block) + [1] * (steps % block):
            state, streams, metrics = run(state, memory, streams, length)
            packed.append(metrics)
        return state, streams, packed

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
        exploration, key = advance(streams.exploration)
        uniform = jax.random.uniform(key, mean_actions.shape, mean_actions.dtype)
        return to_box(2.0 * uniform - 1.0, *bounds), mean_actions, streams._replace(exploration=exploration)

    @jax.jit
    def sampled(parameters: Any, streams: Streams, inputs: Inputs[Array]) -> tuple[Array, Array, Streams]:
        mean, raw_log_std, mean_actions = mean_and_std(parameters, inputs)
        exploration, key = advance(streams.exploration)
        noise = jax.random.normal(key, mean.shape, mean.dtype)
        actions, _ = squash(mean, bound_log_std(raw_log_std), noise)
        return to_box(actions, *bounds), mean_actions, streams._replace(exploration=exploration)

    return {"greedy": greedy, "random": random, "sampled": sampled}
