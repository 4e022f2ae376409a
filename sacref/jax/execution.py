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


def actors(actor: Actor[Array], bounds: Bounds[Array]) -> dict[str, Act]:
    """Compile the functions that act, by mode (`action_modes`)."""
    return {name: jax.jit(acting(mode, bounds)) for name, mode in action_modes(actor, bounds).items()}


MOST_RAVELED = 2**14
"""Numbers of a parameter up to which `Ravel` copies it: an array more costs a call a microsecond, to copy these a few."""


class Ravel:
    """Joins the small parameters of a model, since each array that a compiled call takes or returns costs the host time.

    Args:
        parameters: of the names, shapes and dtypes.
    """

    def __init__(self, parameters: Parameters[Array]) -> None:
        self._shapes = {name: leaf.shape for name, leaf in parameters.items() if leaf.size <= MOST_RAVELED}
        self._large = [name for name in parameters if name not in self._shapes]
        self._ends = np.cumsum([math.prod(shape) for shape in self._shapes.values()])[:-1]

    def join(self, parameters: Parameters[Array]) -> Parameters[Array]:
        """Return the large parameters under their names, and all others as one vector, `raveled`."""
        joined = {name: parameters[name] for name in self._large}
        if self._shapes:
            joined["raveled"] = jnp.concatenate([parameters[name].reshape(-1) for name in self._shapes])
        return joined

    def split(self, joined: Parameters[Array]) -> Parameters[Array]:
        """Invert `join`."""
        parts = jnp.split(joined["raveled"], self._ends) if self._shapes else []
        small = {name: part.reshape(shape) for (name, shape), part in zip(self._shapes.items(), parts, strict=True)}
        return {name: joined[name] for name in self._large} | small


class JoinedStates:
    """The states of an agent with the small parameters of each model joined, and the optimizers' moments likewise.

    Args:
        state: of the agent, for names and shapes.
    """

    def __init__(self, state: State) -> None:
        self._policy = Ravel(state.policy)
        self._critics = {name: Ravel(parameters) for name, parameters in state.critics.items()}

    def join(self, state: State) -> State:
        """Join the small parameters of a state."""
        return self._map(state, self._policy.join, {name: ravel.join for name, ravel in self._critics.items()})

    def split(self, state: State) -> State:
        """Invert `join`."""
        return self._map(state, self._policy.split, {name: ravel.split for name, ravel in self._critics.items()})

    def _map(self, state: State, policy: Callable[..., Any], critics: Mapping[str, Callable[..., Any]]) -> State:
        def all_critics(tree: Tree) -> dict[str, Any]:
            return {name: function(tree[name]) for name, function in critics.items()}

        return state._replace(
            policy=policy(state.policy),
            critics=all_critics(state.critics),
            target_critics=all_critics(state.target_critics),
            policy_optimizer=_map_alike(policy, state.policy, state.policy_optimizer),
            critic_optimizer=_map_alike(all_critics, state.critics, state.critic_optimizer),
        )

    def policy(self, state: State) -> Parameters[Array]:
        """Return the policy's parameters of a joined state."""
        return self._policy.split(state.policy)

    def update(self, update: Update) -> Update:
        """Return the update of joined states."""

        def joined(model: Callable[..., Any], ravel: Ravel) -> Callable[..., Any]:
            return lambda parameters, *inputs: model(ravel.split(parameters), *inputs)

        critics = {name: joined(model, self._critics[name]) for name, model in update.critics.items()}
        return replace(update, policy=joined(update.policy, self._policy), critics=critics)


def _map_alike(function: Callable[[Tree], Tree], like: Tree, tree: Tree) -> Tree:
    """Map the branches of `tree` that have the structure of `like`; everything else stays as it is."""
    structure: object = jax.tree.structure(like)

    def alike(branch: Tree) -> bool:
        return bool(jax.tree.structure(branch) == structure)

    return jax.tree.map(lambda branch: function(branch) if alike(branch) else branch, tree, is_leaf=alike)


class Fused:
    """A strict step in one compiled call (`sacref.agent.execution.Fused`) of a joined state. State and memory are donated.

    Args:
        steps: gradient steps that it takes. dtype: of the parameters, in which floats go to the device.
    """

    def __init__(
        self, update: Update, spec: DrawSpec, actor: Actor[Array], bounds: Bounds[Array], *, steps: int, dtype: np.dtype[np.generic]
    ) -> None:
        self.steps = steps
        self._update, self._spec, self._dtype = update, spec, dtype
        self._acts = {name: acting(mode, bounds) for name, mode in action_modes(actor, bounds).items()}
        self._joined: JoinedStates | None = None
        self._upload: Upload | None = None
        self._calls: dict[str, Callable[..., Any]] = {}

    def __call__(
        self, state: State, memory: MemoryState, rows: Packed, streams: Streams, mode: str, given: ActInputs[Any]
    ) -> tuple[State, MemoryState, Streams, Array, shared.Acted[Array]]:
        if self._upload is None or not self._upload.takes(given):
            self._upload, self._calls = Upload(rows, given, self._dtype), {}
        if mode not in self._calls:
            self._calls[mode] = self._compiled(self._acts[mode], self._upload)
        stepped: tuple[State, MemoryState, Streams, Array, shared.Acted[Array]]
        # A buffer of its own each time: on a CPU the call may read it after the next rows are written.
        stepped = self._calls[mode](state, memory, streams, self._upload.filled(rows, given))
        return stepped

    def _compiled(self, act: Act, upload: Upload) -> Callable[..., Any]:
        assert self._joined is not None
        joined = self._joined
        update = joined.update(self._update)

        @partial(jax.jit, donate_argnums=(0, 1))
        def step(
            state: State, memory: MemoryState, streams: Streams, buffer: Array
        ) -> tuple[State, MemoryState, Streams, Array, shared.Acted[Array]]:
            rows, inputs = upload.unpack(buffer, typed)
            memory = write(memory, *map_leaves(_two_rows, rows))
            state, streams, metrics = scanned(update, self._spec, state, memory, inputs.moments, streams, self.steps)
            actions, mean_actions, carry, streams = act(joined.policy(state), streams, inputs)
            return state, memory, streams, metrics, (actions, mean_actions, carry)

        return step

    def join(self, state: State) -> State:
        """Join the small parameters of a state, as the call takes it."""
        if self._joined is None:
            self._joined = JoinedStates(state)
            self._join, self._split = jax.jit(self._joined.join), jax.jit(self._joined.split)
        joined: State = self._join(state)
        return joined

    def split(self, state: State) -> State:
        """Invert `join`."""
        separate: State = self._split(state)
        return separate


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
    """The state of one agent, whose small parameters are joined between two calls of `Fused` until something else reads them."""

    _separate: State | None
    _joined: State | None

    @property
    def state(self) -> State:
        """Parameters, log alpha and the optimizers' states."""
        if self._separate is None:
            assert isinstance(self.fused, Fused) and self._joined is not None
            self._separate = self.fused.split(self._joined)
        return self._separate

    @state.setter
    def state(self, state: State) -> None:
        self._separate, self._joined = state, None

    def use(self, learn: Learn, acts: Mapping[str, Act], fused: shared.Fused[Array, MemoryState, Array] | None = None) -> None:
        self._separate, self._joined = self.state, None  # as that which joined it may go
        super().use(learn, acts, fused)

    def learn_and_act(
        self, memory: MemoryState, rows: Packed, streams: Streams, mode: str, given: ActInputs[Any]
    ) -> tuple[MemoryState, Streams, Array, shared.Acted[Array]]:
        assert isinstance(self.fused, Fused)
        joined = self.fused.join(self.state) if self._joined is None else self._joined
        self._separate = None
        self._joined, memory, streams, metrics, acted = self.fused(joined, memory, rows, streams, mode, given)
        return memory, streams, metrics, acted
