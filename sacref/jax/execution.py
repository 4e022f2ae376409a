"""Execution of updates and actions: a batch and its noise are drawn, then the steps are taken, plain or fast.

`plain` compiles the update and calls it for each gradient step. `scan` compiles all gradient steps between two actions into one call: each
gathers its batch from the memory where it lies. The state is donated.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array

from sacref.agent import execution as shared
from sacref.agent.execution import ActInputs, ActionMode, Actor, Bounds, action_modes, numbers_shape, pack
from sacref.algorithm.data import Metrics, Noise, Sampled
from sacref.algorithm.optimizer import Parameters
from sacref.algorithm.tree import Tree
from sacref.config import Execution
from sacref.jax.memory import MemoryState
from sacref.jax.mesh import DataParallel, divided
from sacref.jax.optim import State, Update

IMPLEMENTATION = "threefry2x32"
"""The random numbers' generator, named here whatever JAX's setting is: its numbers do not depend on vmap."""

Learn: TypeAlias = shared.Learn[Array, MemoryState, Array]
Act: TypeAlias = shared.Act[Array, Array]
Streams: TypeAlias = shared.Streams[Array]
"""The data of Threefry keys, uint32: JAX wraps a key array that leaves a compiled call in Python each time."""

DISTRIBUTIONS: dict[str, Callable[..., Array]] = {"uniform": jax.random.uniform, "normal": jax.random.normal}


@dataclass(frozen=True)
class DrawSpec(shared.DrawSpec[Array, MemoryState, Array]):
    """The specification of a draw, with keys for Flax's own random layers."""

    keyed: frozenset[str] = frozenset()
    """Critics that take a key instead of numbers: models of a user's own with random layers of Flax."""


def choose(execution: Execution) -> Execution:
    """Choose the execution of updates.

    Raises:
        ValueError: if it is none of JAX's.
    """
    if execution not in ("auto", "plain", "scan"):
        raise ValueError(f"execution is {execution!r}, which is PyTorch's: expected auto, plain or scan on JAX")
    return "scan" if execution == "auto" else execution


def describe() -> str:
    """Say how updates run unless told otherwise."""
    return choose("auto")


def stepper(update: Update, parallel: DataParallel | None = None) -> Callable[[State, Any, Noise[Array]], tuple[State, Metrics[Array]]]:
    """Compile the update, `(state, batch, noise) -> (state, metrics)`; the state is donated."""
    if parallel is None:
        return jax.jit(update, donate_argnums=0)
    steps, parts = parallel.steps(update), parallel.local_parts
    cut = jax.jit(lambda batch, noise: jax.tree.map(lambda leaf: leaf[:, None], divided(batch, noise, parts)))

    def step(state: State, batch: Any, noise: Noise[Array]) -> tuple[State, Metrics[Array]]:
        state, metrics = steps(state, cut(batch, noise))
        return state, {name: values[0] for name, values in metrics.items()}

    return step


def advance(stream: Array, number: int = 1) -> tuple[Array, ...]:
    """Return the stream after its next `number` keys, and those keys."""
    following, *keys = jax.random.split(jax.random.wrap_key_data(stream, impl=IMPLEMENTATION), number + 1)
    return jax.random.key_data(following), *keys


def draw(memory: MemoryState, moments: Tree, streams: Streams, spec: DrawSpec) -> tuple[Sampled[Array], Noise[Array], Streams]:
    """Draw the batch and the noise of the next gradient step."""
    sampling, key = advance(streams.sampling)
    rows = spec.sample(memory, spec.batch_size, key)
    return draw_noise(rows, moments, streams._replace(sampling=sampling), spec)


def draw_noise(rows: Sampled[Array], moments: Tree, streams: Streams, spec: DrawSpec) -> tuple[Sampled[Array], Noise[Array], Streams]:
    """Prepare the rows that `draw` took from the memory, and draw the noise."""
    batch = spec.prepare(moments, rows)
    like = batch.actions
    noise, first, second, *more = advance(streams.noise, 2 + (spec.target_subset is not None) + 3 * bool(spec.draw_widths or spec.keyed))

    def uniform(key: Array) -> dict[str, tuple[Array, ...]]:
        keys = iter(jax.random.split(key, sum(map(len, spec.draw_widths.values())) + len(spec.keyed)))
        draws = {
            critic: tuple(jax.random.uniform(next(keys), (*like.shape[:-1], width), like.dtype) for width in widths)
            for critic, widths in spec.draw_widths.items()
        }
        return {**draws, **{critic: (jax.random.key_data(next(keys)),) for critic in sorted(spec.keyed)}}

    subset = None
    if spec.target_subset is not None:
        subset = jax.random.permutation(more.pop(), spec.num_critics)[: spec.target_subset]
    for_targets, for_critics, for_actor = map(uniform, more) if more else ({}, {}, {})
    next_actions, actions = (jax.random.normal(key, like.shape, like.dtype) for key in (first, second))
    draws: Noise[Array] = Noise(
        next_actions=next_actions, actions=actions, target_critics=subset, dropout=(for_targets, for_critics, for_actor)
    )
    return batch, draws, streams._replace(noise=noise)


def learner(update: Update, spec: DrawSpec, *, execution: Execution, block: int = 1, parallel: DataParallel | None = None) -> Learn:
    """Return the function that takes gradient steps on fresh batches. The state is donated.

    Args:
        block: gradient steps that one compiled call scans over. The rest of `steps`, in the last chunk or of a fraction, runs one by one:
            two lengths are compiled at most.
        parallel: the devices, where there are several. All batches of a call are then drawn before its steps, on the agent's own device,
            each device's share apart.
    """

    @partial(jax.jit, donate_argnums=0, static_argnums=4)
    def scan(state: State, memory: MemoryState, moments: Tree, streams: Streams, steps: int) -> tuple[State, Streams, Array]:
        def step(carry: tuple[State, Streams], _: None) -> tuple[tuple[State, Streams], Array]:
            state, streams = carry
            batch, noise, streams = draw(memory, moments, streams, spec)
            state, metrics = update(state, batch, noise)
            return (state, streams), pack(metrics)

        (state, streams), metrics = jax.lax.scan(step, (state, streams), length=steps)
        return state, streams, metrics

    draw_batch = jax.jit(partial(draw, spec=spec))
    plain_step = stepper(update)

    def plain(state: State, memory: MemoryState, moments: Tree, streams: Streams, steps: int) -> tuple[State, Streams, Array]:
        packed = []
        for _ in range(steps):
            batch, noise, streams = draw_batch(memory, moments, streams)
            state, metrics = plain_step(state, batch, noise)
            packed.append(pack(metrics))
        return state, streams, jnp.stack(packed)

    run = _over_devices(update, spec, parallel) if parallel is not None else plain if execution == "plain" else scan

    def learn(state: State, memory: MemoryState, moments: Tree, streams: Streams, steps: int) -> tuple[State, Streams, list[Array]]:
        packed = []
        for length in [block] * (steps // block) + [1] * (steps % block):
            state, streams, metrics = run(state, memory, moments, streams, length)
            packed.append(metrics)
        return state, streams, packed

    return learn


def _over_devices(
    update: Update, spec: DrawSpec, parallel: DataParallel
) -> Callable[[State, MemoryState, Tree, Streams, int], tuple[State, Streams, Array]]:
    """Return the function that takes gradient steps whose batches are divided among several devices."""
    if spec.batch_size % parallel.local_parts:
        raise ValueError(
            f"batch_size is {spec.batch_size} for {parallel.local_parts} devices, expected a multiple of their number: change it"
        )
    share = replace(spec, batch_size=spec.batch_size // parallel.local_parts)
    take = parallel.steps(update)
    pack_all = jax.jit(jax.vmap(pack))

    @partial(jax.jit, static_argnums=3)
    def draw_parts(memory: MemoryState, moments: Tree, streams: Streams, steps: int) -> tuple[Tree, Streams]:
        def one(streams: Streams, step: None) -> tuple[Streams, Tree]:
            parts = []
            for _ in range(parallel.local_parts):
                batch, noise, streams = draw(memory, moments, streams, share)
                parts.append((batch, noise))
            return streams, jax.tree.map(lambda *leaves: jnp.stack(leaves), *parts)

        streams, drawn = jax.lax.scan(one, streams, length=steps)
        return jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 1, 0), drawn), streams

    def run(state: State, memory: MemoryState, moments: Tree, streams: Streams, steps: int) -> tuple[State, Streams, Array]:
        parts, streams = draw_parts(memory, moments, streams, steps)
        state, metrics = take(state, parts)
        return state, streams, pack_all(metrics)

    return run


def acting(mode: ActionMode[Array], bounds: Bounds[Array]) -> Act:
    """Return the function of an action mode that draws its own random numbers."""

    def act(parameters: Parameters[Array], streams: Streams, inputs: ActInputs[Array]) -> tuple[Array, Array, Tree, Streams]:
        if mode.distribution is None:
            return *mode.function(parameters, inputs), streams
        exploration, key = advance(streams.exploration)
        numbers = DISTRIBUTIONS[mode.distribution](key, numbers_shape(inputs, bounds), bounds.low.dtype)
        return *mode.function(parameters, inputs, numbers), streams._replace(exploration=exploration)

    return act


def actors(actor: Actor[Array], bounds: Bounds[Array]) -> dict[str, Act]:
    """Compile the functions that act, by mode (`action_modes`)."""
    return {name: jax.jit(acting(mode, bounds)) for name, mode in action_modes(actor, bounds).items()}
