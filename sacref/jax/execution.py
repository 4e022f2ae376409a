"""Execution of updates and actions: a batch and its noise are drawn, then the steps are taken, plain or fast.

`plain` compiles the update and calls it for each gradient step. `scan` compiles all gradient steps between two actions into one call: each
gathers its batch from the memory where it lies. The state is donated. In a strict step that call writes the new rows before, and chooses
the next action after the gradient steps (`Fused`).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from sacref.agent import execution as shared
from sacref.agent.execution import ActInputs, ActionMode, Actor, Bounds, Upload, action_modes, numbers_shape, pack
from sacref.algorithm.data import Metrics, Noise, Sampled
from sacref.algorithm.optimizer import Parameters
from sacref.algorithm.packing import Packed
from sacref.algorithm.tree import Tree, map_leaves
from sacref.config import Execution
from sacref.jax.memory import MemoryState, write
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


def scanned(
    update: Update, spec: DrawSpec, state: State, memory: MemoryState, moments: Tree, streams: Streams, steps: int
) -> tuple[State, Streams, Array]:
    """Take gradient steps one after the other; return state, streams and packed metrics, `(step, metric)`."""

    def step(carry: tuple[State, Streams], _: None) -> tuple[tuple[State, Streams], Array]:
        state, streams = carry
        batch, noise, streams = draw(memory, moments, streams, spec)
        state, metrics = update(state, batch, noise)
        return (state, streams), pack(metrics)

    (state, streams), metrics = jax.lax.scan(step, (state, streams), length=steps)
    return state, streams, metrics


def learner(update: Update, spec: DrawSpec, *, execution: Execution, block: int = 1, parallel: DataParallel | None = None) -> Learn:
    """Return the function that takes gradient steps on fresh batches. The state is donated.

    Args:
        block: gradient steps that one compiled call scans over. The rest of `steps`, in the last chunk or of a fraction, runs one by one:
            two lengths are compiled at most.
        parallel: the devices, where there are several. All batches of a call are then drawn before its steps, on the agent's own device,
            each device's share apart.
    """

    scan = jax.jit(partial(scanned, update, spec), donate_argnums=0, static_argnums=4)
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


def acts(actor: Actor[Array], bounds: Bounds[Array]) -> dict[str, Act]:
    """Return the functions that act, by mode (`action_modes`)."""
    return {name: acting(mode, bounds) for name, mode in action_modes(actor, bounds).items()}


def actors(actor: Actor[Array], bounds: Bounds[Array]) -> dict[str, Act]:
    """Compile the functions that act, by mode."""
    return {name: jax.jit(act) for name, act in acts(actor, bounds).items()}


MOST_JOINED = 2**14
"""Numbers of an array up to which `Joining` copies it: an array more costs a call a microsecond, to copy these a few."""


Joined: TypeAlias = dict[str, list[Array]]
"""Dtype -> a list of one vector; "" -> the large arrays, each as it is."""


class Joining:
    """The joining of a state's small arrays to one vector of each dtype: each array that a compiled call takes or returns costs time.

    Args:
        state: of the structure, shapes and dtypes.
    """

    def __init__(self, state: State) -> None:
        arrays, self._structure = jax.tree.flatten(state)
        self._shapes = [array.shape for array in arrays]
        self._vectors = [array.dtype.name if array.size <= MOST_JOINED else "" for array in arrays]
        """Name of the vector that an array lies in; of a large one, which stays as it is, ""."""
        self.join: Callable[[State], Joined] = jax.jit(self._join)
        self.split: Callable[[Joined], State] = jax.jit(self._split)
        """The inverse of `join`."""

    def fits(self, state: State) -> bool:
        """Tell whether a state has this structure."""
        structure: object = jax.tree.structure(state)
        return bool(structure == self._structure)

    def _join(self, state: State) -> Joined:
        parts: dict[str, list[Array]] = {}
        for name, array in zip(self._vectors, jax.tree.leaves(state), strict=True):
            parts.setdefault(name, []).append(array.reshape(-1) if name else array)
        return {name: [jnp.concatenate(arrays)] if name else arrays for name, arrays in parts.items()}

    def _split(self, joined: Joined) -> State:
        left = {name: list(arrays) for name, arrays in joined.items()}
        for name, (vector, *_) in joined.items():
            if name:
                sizes = [math.prod(shape) for shape, own in zip(self._shapes, self._vectors, strict=True) if own == name]
                left[name] = jnp.split(vector, np.cumsum(sizes)[:-1])
        arrays = [left[name].pop(0).reshape(shape) for name, shape in zip(self._vectors, self._shapes, strict=True)]
        state: State = jax.tree.unflatten(self._structure, arrays)
        return state


class HeldState:
    """The state of an agent, or of all members of a population, whose arrays are joined between two calls of `Fused` until one is read."""

    def __init__(self, state: State) -> None:
        self._separate: State | None = state
        self._joined: Joined | None = None
        self._joining: Joining | None = None

    @property
    def separate(self) -> State:
        """Parameters, log alpha and the optimizers' states."""
        if self._separate is None:
            assert self._joined is not None
            self._separate = self.joining.split(self._joined)
        return self._separate

    @separate.setter
    def separate(self, state: State) -> None:
        self._separate, self._joined = state, None

    @property
    def joining(self) -> Joining:
        """The rule by which the arrays are joined."""
        if self._joining is None or (self._separate is not None and not self._joining.fits(self._separate)):
            self._joining = Joining(self.separate)
        return self._joining

    def give(self) -> Joined:
        """Give the joined arrays away, to a call that they are donated to; `take` has to follow."""
        if self._joined is None:
            self._joined = self.joining.join(self.separate)
        self._separate = None
        return self._joined

    def take(self, joined: Joined) -> None:
        """Go on with the joined arrays that the call returned."""
        self._joined = joined


class Fused:
    """A strict step in one compiled call (`sacref.agent.execution.Fused`) of a held state. State and memory are donated.

    Args:
        learn: `(state, memory, moments, streams) -> (state, streams, metrics)`.
        acts: by mode, as of `acting`.
        steps: gradient steps that it takes.
        dtype: of the parameters, in which floats go to the device.
    """

    def __init__(
        self,
        learn: Callable[[State, MemoryState, Tree, Streams], tuple[State, Streams, Array]],
        acts: Mapping[str, Act],
        *,
        steps: int,
        dtype: np.dtype[np.generic],
    ) -> None:
        self.steps = steps
        self._learn, self._acts, self._dtype = learn, acts, dtype
        self._upload: Upload | None = None
        self._joining: Joining | None = None
        self._calls: dict[str, Callable[..., Any]] = {}

    def __call__(
        self, state: HeldState, memory: MemoryState, rows: Packed, streams: Streams, mode: str, given: ActInputs[Any]
    ) -> tuple[HeldState, MemoryState, Streams, Array, shared.Acted[Array]]:
        if self._upload is None or self._joining is not state.joining or not self._upload.takes(given):
            self._upload, self._joining, self._calls = Upload(rows, given, self._dtype), state.joining, {}
        if mode not in self._calls:
            self._calls[mode] = self._compiled(self._acts[mode], self._upload, state.joining)
        # A buffer of its own each time: on a CPU the call may read it after the next rows are written.
        joined, *stepped = self._calls[mode](state.give(), memory, streams, self._upload.filled(rows, given))
        state.take(joined)
        return state, stepped[0], stepped[1], stepped[2], stepped[3]

    def _compiled(self, act: Act, upload: Upload, joining: Joining) -> Callable[..., Any]:
        @partial(jax.jit, donate_argnums=(0, 1))
        def step(joined: Tree, memory: MemoryState, streams: Streams, buffer: Array) -> tuple[Tree, ...]:
            rows, inputs = upload.unpack(buffer, typed)
            memory = write(memory, *map_leaves(_two_rows, rows))
            state, streams, metrics = self._learn(joining.split(joined), memory, inputs.moments, streams)
            actions, mean_actions, carry, streams = act(state.policy, streams, inputs)
            return joining.join(state), memory, streams, metrics, (actions, mean_actions, carry)

        return step


def fuse(update: Update, spec: DrawSpec, actor: Actor[Array], bounds: Bounds[Array], *, steps: int, dtype: np.dtype[np.generic]) -> Fused:
    """Return the strict step of one agent in one compiled call."""
    learn = partial(scanned, update, spec, steps=steps)
    return Fused(learn, acts(actor, bounds), steps=steps, dtype=dtype)


def _two_rows(rows: Array) -> Array:
    """Append a row, which is not kept, where there is but one.

    XLA makes one row a slice that is updated, and the draw from the memory may be computed from the memory before: it then copies it.
    """
    return rows if rows.shape[0] > 1 else jnp.concatenate([rows, jnp.zeros_like(rows)])


def typed(data: Array, dtype: np.dtype[np.generic], shape: Sequence[int]) -> Array:
    """Return bytes as an array of a dtype and shape."""
    if dtype == np.bool_:
        return (data != 0).reshape(shape)
    parts = data if dtype.itemsize == 1 else data.reshape(-1, dtype.itemsize)
    return jax.lax.bitcast_convert_type(parts, dtype).reshape(shape)


class Runner(shared.AgentRunner[Array, MemoryState, Array]):
    """The state of one agent, held as `Fused` takes it."""

    def __init__(self, state: State) -> None:
        self._held = HeldState(state)

    @property
    def state(self) -> State:
        """Parameters, log alpha and the optimizers' states."""
        return self._held.separate

    @state.setter
    def state(self, state: State) -> None:
        self._held.separate = state

    def learn_and_act(
        self, memory: MemoryState, rows: Packed, streams: Streams, mode: str, given: ActInputs[Any]
    ) -> tuple[MemoryState, Streams, Array, shared.Acted[Array]]:
        assert isinstance(self.fused, Fused)
        return self.fused(self._held, memory, rows, streams, mode, given)[1:]
