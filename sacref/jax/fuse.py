"""Around a finished update: draw a batch and its noise, then take the steps; and the ways to run that fast.

`plain` compiles the update and calls it for each gradient step. `scan` compiles all gradient steps between two actions into one call: each
gathers its batch from the memory where it lies. The state is donated.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from sacref.config import Execution
from sacref.envs.scaling import to_box
from sacref.jax.memory import MemoryState, Sampler
from sacref.jax.mesh import DataParallel, divided
from sacref.jax.update import State, Update
from sacref.spec import bound_log_std, squash
from sacref.tree import Tree
from sacref.types import METRICS, Batch, Inputs, Metrics, Noise, Sequences

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


class Acting(NamedTuple):
    """What acting reads beside the policy's parameters."""

    inputs: Inputs[Array]
    """`(envs, ...)`, as the environments gave them."""
    moments: Tree
    """The preprocessors' arrays."""
    carry: Tree
    """The policy's carry, `(envs, ...)` each; () of one without."""


@dataclass(frozen=True)
class Drawing:
    """What an update is given: where its batch comes from, and which random numbers beside the two actions' noise."""

    sample: Sampler
    batch_size: int
    prepare: Callable[[Tree, Any], Any]
    """`(moments, batch)` -> the batch as the models see it."""
    critics: int = 2
    target_subset: int | None = None
    """How many target critics the target is the minimum of; None for all."""
    draws: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Critic -> widths of what its random layers take."""
    keyed: frozenset[str] = frozenset()
    """Critics that take a key in their place: models of a user's own with random layers of Flax."""


Learn = Callable[[State, MemoryState, Tree, Streams, int], tuple[State, Streams, list[Array]]]
"""`(state, memory, moments, streams, steps) -> (state, streams, metrics)`."""
Actor = Callable[[Any, Acting], tuple[Array, Array, Tree]]
"""A policy for acting: `(parameters, acting) -> (mean, raw log_std, carry)`, `(envs, action)` each."""
Act = Callable[[Any, Streams, Acting], tuple[Array, Array, Tree, Streams]]


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


def stepper(update: Update, parallel: DataParallel | None = None) -> Callable[[State, Any, Noise[Array]], tuple[State, Metrics[Array]]]:
    """The update compiled, `(state, batch, noise) -> (state, metrics)`; the state is donated."""
    if parallel is None:
        return jax.jit(update, donate_argnums=0)
    steps, parts = parallel.steps(update), parallel.local_parts
    cut = jax.jit(lambda batch, noise: jax.tree.map(lambda leaf: leaf[:, None], divided(batch, noise, parts)))

    def step(state: State, batch: Any, noise: Noise[Array]) -> tuple[State, Metrics[Array]]:
        state, metrics = steps(state, cut(batch, noise))
        return state, {name: values[0] for name, values in metrics.items()}

    return step


def pack(metrics: Metrics[Array]) -> Array:
    """The metrics of an update in one vector, in the order of `METRICS`."""
    return jnp.concatenate([metrics[name].reshape(-1) for name in METRICS if name in metrics])


def advance(stream: Array, number: int = 1) -> tuple[Array, ...]:
    """The stream after its next `number` keys, and those keys."""
    following, *keys = jax.random.split(jax.random.wrap_key_data(stream, impl=IMPLEMENTATION), number + 1)
    return jax.random.key_data(following), *keys


def draw(
    memory: MemoryState, moments: Tree, streams: Streams, drawing: Drawing
) -> tuple[Batch[Array] | Sequences[Array], Noise[Array], Streams]:
    """The batch and the noise of the next gradient step."""
    sampling, key = advance(streams.sampling)
    batch = drawing.prepare(moments, drawing.sample(memory, drawing.batch_size, key))
    like = batch.actions
    noise, first, second, *more = advance(streams.noise, 2 + (drawing.target_subset is not None) + 3 * bool(drawing.draws or drawing.keyed))

    def uniform(key: Array) -> dict[str, tuple[Array, ...]]:
        keys = iter(jax.random.split(key, sum(map(len, drawing.draws.values())) + len(drawing.keyed)))
        draws = {
            critic: tuple(jax.random.uniform(next(keys), (*like.shape[:-1], width), like.dtype) for width in widths)
            for critic, widths in drawing.draws.items()
        }
        return {**draws, **{critic: (jax.random.key_data(next(keys)),) for critic in sorted(drawing.keyed)}}

    subset = None
    if drawing.target_subset is not None:
        subset = jax.random.permutation(more.pop(), drawing.critics)[: drawing.target_subset]
    for_targets, for_critics, for_actor = map(uniform, more) if more else ({}, {}, {})
    next_actions, actions = (jax.random.normal(key, like.shape, like.dtype) for key in (first, second))
    draws: Noise[Array] = Noise(
        next_actions=next_actions, actions=actions, target_critics=subset, dropout=(for_targets, for_critics, for_actor)
    )
    return batch, draws, streams._replace(noise=noise, sampling=sampling)


def learner(update: Update, drawing: Drawing, *, execution: Execution, block: int = 1, parallel: DataParallel | None = None) -> Learn:
    """Take gradient steps on fresh batches.

    The state is donated. The metrics are a list of matrices `(step, metric)`, see `pack`.

    Args:
        block: gradient steps that one compiled call scans over. What is left of `steps`, in the last chunk or of a fraction, runs one by
            one: two lengths are compiled at most.
        parallel: the devices, where there are several. All batches of a call are then drawn before its steps, on the agent's own device,
            each device's part apart.
    """

    @partial(jax.jit, donate_argnums=0, static_argnums=4)
    def scan(state: State, memory: MemoryState, moments: Tree, streams: Streams, steps: int) -> tuple[State, Streams, Array]:
        def step(carry: tuple[State, Streams], _: None) -> tuple[tuple[State, Streams], Array]:
            state, streams = carry
            batch, noise, streams = draw(memory, moments, streams, drawing)
            state, metrics = update(state, batch, noise)
            return (state, streams), pack(metrics)

        (state, streams), metrics = jax.lax.scan(step, (state, streams), length=steps)
        return state, streams, metrics

    draw_batch = jax.jit(partial(draw, drawing=drawing))
    plain_step = stepper(update)

    def plain(state: State, memory: MemoryState, moments: Tree, streams: Streams, steps: int) -> tuple[State, Streams, Array]:
        packed = []
        for _ in range(steps):
            batch, noise, streams = draw_batch(memory, moments, streams)
            state, metrics = plain_step(state, batch, noise)
            packed.append(pack(metrics))
        return state, streams, jnp.stack(packed)

    run = _over_devices(update, drawing, parallel) if parallel is not None else plain if execution == "plain" else scan

    def learn(state: State, memory: MemoryState, moments: Tree, streams: Streams, steps: int) -> tuple[State, Streams, list[Array]]:
        packed = []
        for length in [block] * (steps // block) + [1] * (steps % block):
            state, streams, metrics = run(state, memory, moments, streams, length)
            packed.append(metrics)
        return state, streams, packed

    return learn


def _over_devices(
    update: Update, drawing: Drawing, parallel: DataParallel
) -> Callable[[State, MemoryState, Tree, Streams, int], tuple[State, Streams, Array]]:
    """Gradient steps whose batches are divided among several devices."""
    if drawing.batch_size % parallel.local_parts:
        raise ValueError(
            f"batch_size is {drawing.batch_size} for {parallel.local_parts} devices, expected a multiple of their number: change it"
        )
    part = replace(drawing, batch_size=drawing.batch_size // parallel.local_parts)
    take = parallel.steps(update)
    pack_all = jax.jit(jax.vmap(pack))

    @partial(jax.jit, static_argnums=3)
    def draw_parts(memory: MemoryState, moments: Tree, streams: Streams, steps: int) -> tuple[Tree, Streams]:
        def one(streams: Streams, _: None) -> tuple[Streams, Tree]:
            parts = []
            for _part in range(parallel.local_parts):
                batch, noise, streams = draw(memory, moments, streams, part)
                parts.append((batch, noise))
            return streams, jax.tree.map(lambda *leaves: jnp.stack(leaves), *parts)

        streams, drawn = jax.lax.scan(one, streams, length=steps)
        return jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 1, 0), drawn), streams

    def run(state: State, memory: MemoryState, moments: Tree, streams: Streams, steps: int) -> tuple[State, Streams, Array]:
        parts, streams = draw_parts(memory, moments, streams, steps)
        state, metrics = take(state, parts)
        return state, streams, pack_all(metrics)

    return run


def actors(actor: Actor, bounds: Bounds) -> dict[str, Act]:
    """Ways to act, `(policy parameters, streams, acting) -> (actions, mean actions, carry, streams)`, actions in the Box's units.

    `greedy` draws nothing, `random` is uniform over the Box, `sampled` is the policy's own.
    """

    @jax.jit
    def greedy(parameters: Any, streams: Streams, acting: Acting) -> tuple[Array, Array, Tree, Streams]:
        mean, _, carry = actor(parameters, acting)
        mean_actions = to_box(jnp.tanh(mean), *bounds)
        return mean_actions, mean_actions, carry, streams

    @jax.jit
    def random(parameters: Any, streams: Streams, acting: Acting) -> tuple[Array, Array, Tree, Streams]:
        mean, _, carry = actor(parameters, acting)
        exploration, key = advance(streams.exploration)
        uniform = jax.random.uniform(key, mean.shape, mean.dtype)
        return (
            to_box(2.0 * uniform - 1.0, *bounds),
            to_box(jnp.tanh(mean), *bounds),
            carry,
            streams._replace(exploration=exploration),
        )

    @jax.jit
    def sampled(parameters: Any, streams: Streams, acting: Acting) -> tuple[Array, Array, Tree, Streams]:
        mean, raw_log_std, carry = actor(parameters, acting)
        exploration, key = advance(streams.exploration)
        noise = jax.random.normal(key, mean.shape, mean.dtype)
        actions, _ = squash(mean, bound_log_std(raw_log_std), noise)
        return to_box(actions, *bounds), to_box(jnp.tanh(mean), *bounds), carry, streams._replace(exploration=exploration)

    return {"greedy": greedy, "random": random, "sampled": sampled}
