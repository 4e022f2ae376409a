"""Around a finished update: draw a batch and its noise, then take the steps; and the ways to run that fast.

`plain` compiles the update and calls it for each gradient step. `scan` compiles all gradient steps between two actions into one call: each
gathers its batch from the memory where it lies. The state is donated. Of a `Population` the steps of all members are one call, too.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from sacref.agent.lockstep import Lockstep
from sacref.algorithm.data import METRICS, Batch, Inputs, Metrics, Noise, Sequences
from sacref.algorithm.tree import Tree
from sacref.config import Execution
from sacref.envs.scaling import to_box
from sacref.jax.memory import MemoryState, Sampler
from sacref.jax.mesh import DataParallel, divided
from sacref.jax.optim import State, Update
from sacref.spec import bound_log_std, squash

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
    rows = drawing.sample(memory, drawing.batch_size, key)
    return draw_around(rows, moments, streams._replace(sampling=sampling), drawing)


def draw_around(
    rows: Any, moments: Tree, streams: Streams, drawing: Drawing
) -> tuple[Batch[Array] | Sequences[Array], Noise[Array], Streams]:
    """What `draw` does with the rows that it took from the memory."""
    batch = drawing.prepare(moments, rows)
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
    return batch, draws, streams._replace(noise=noise)


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


def ways(actor: Actor, bounds: Bounds) -> dict[str, Act]:
    """Ways to act, `(policy parameters, streams, acting) -> (actions, mean actions, carry, streams)`, actions in the Box's units.

    `greedy` draws nothing, `random` is uniform over the Box, `sampled` is the policy's own.
    """

    def greedy(parameters: Any, streams: Streams, acting: Acting) -> tuple[Array, Array, Tree, Streams]:
        mean, _, carry = actor(parameters, acting)
        mean_actions = to_box(jnp.tanh(mean), *bounds)
        return mean_actions, mean_actions, carry, streams

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

    def sampled(parameters: Any, streams: Streams, acting: Acting) -> tuple[Array, Array, Tree, Streams]:
        mean, raw_log_std, carry = actor(parameters, acting)
        exploration, key = advance(streams.exploration)
        noise = jax.random.normal(key, mean.shape, mean.dtype)
        actions, _ = squash(mean, bound_log_std(raw_log_std), noise)
        return to_box(actions, *bounds), to_box(jnp.tanh(mean), *bounds), carry, streams._replace(exploration=exploration)

    return {"greedy": greedy, "random": random, "sampled": sampled}


def actors(actor: Actor, bounds: Bounds) -> dict[str, Act]:
    """`ways`, compiled."""
    return {name: jax.jit(way) for name, way in ways(actor, bounds).items()}


class Alone:
    """The state of one agent, its gradient steps and its actions."""

    def __init__(self, state: State) -> None:
        self.state = state

    def use(self, learn: Learn, acts: Mapping[str, Act]) -> None:
        """From now on learn and act so."""
        self._learn, self._acts = learn, acts

    def learn(self, memory: MemoryState, moments: Tree, streams: Streams, steps: int) -> tuple[Streams, list[Array]]:
        self.state, streams, metrics = self._learn(self.state, memory, moments, streams, steps)
        return streams, metrics

    def act(self, way: str, streams: Streams, acting: Acting) -> tuple[Array, Array, Tree, Streams]:
        return self._acts[way](self.state.policy, streams, acting)


class Lesson(NamedTuple):
    """What a member gives to gradient steps."""

    memory: MemoryState
    moments: Tree
    streams: Streams


class Scene(NamedTuple):
    """What a member gives to an action."""

    streams: Streams
    acting: Acting


class Population:
    """Agents that share nothing, and learn and act in one call: their states have a leading axis, over which the update is mapped.

    Args:
        updates: of each member. They may differ in the fields `VARYING`, and the optimizers in their base rates.
        drawings: of each member; alike but for the discount of n steps.
        actor, bounds, block: as of one agent.
        states: of each member.
    """

    VARYING = ("discount_factor", "target_entropy")
    """Fields of the update that are numbers."""
    OPTIMIZERS = ("policy_optimizer", "critic_optimizer", "temperature_optimizer")

    def __init__(
        self,
        updates: Sequence[Update],
        drawings: Sequence[Drawing],
        actor: Actor,
        bounds: Bounds,
        states: Sequence[State],
        *,
        block: int = 1,
    ) -> None:
        self.members = len(states)
        self._state: State = _stacked(states)
        self._own, self._block = self._differences(updates, states[0].log_alpha.dtype), block
        update = updates[0]
        self._lock = threading.Lock()
        """Of threads that read and write members' states; while any does, none learns."""

        def step(state: State, batch: Any, noise: Noise[Array], own: Mapping[str, Array]) -> tuple[State, Array]:
            fields: dict[str, Any] = {
                name: getattr(update, name).with_rate(value) if name in self.OPTIMIZERS else value for name, value in own.items()
            }
            state, metrics = replace(update, **fields)(state, batch, noise)
            return state, pack(metrics)

        @partial(jax.jit, donate_argnums=0, static_argnums=(4, 5))
        def scan(
            state: State, lessons: Sequence[Lesson], own: Mapping[str, Array], learns: Array, steps: int, all_learn: bool
        ) -> tuple[State, list[Streams], Array]:
            moments = _stacked([lesson.moments for lesson in lessons])

            def all_step(carry: tuple[State, Streams], _: None) -> tuple[tuple[State, Streams], Array]:
                state, streams = carry
                sampling, keys = jax.vmap(advance)(streams.sampling)
                # Each from its own memory: stacked, all memories would be copied.
                rows = [
                    drawing.sample(lesson.memory, drawing.batch_size, key)
                    for lesson, drawing, key in zip(lessons, drawings, keys, strict=True)
                ]
                around = partial(draw_around, drawing=drawings[0])
                batch, noise, streams = jax.vmap(around)(_stacked(rows), moments, streams._replace(sampling=sampling))
                stepped, metrics = jax.vmap(step)(state, batch, noise, own)
                return (stepped, streams), metrics

            (stepped, streams), metrics = jax.lax.scan(all_step, (state, _stacked([lesson.streams for lesson in lessons])), length=steps)
            if not all_learn:
                stepped = jax.tree.map(lambda new, old: jnp.where(learns.reshape(-1, *[1] * (new.ndim - 1)), new, old), stepped, state)
            return stepped, self._apart(streams), jnp.moveaxis(metrics, 1, 0)

        self._scan = scan
        self._ways = {name: self._together(way) for name, way in ways(actor, bounds).items()}
        self._of = jax.jit(lambda tree, member: jax.tree.map(lambda leaf: leaf[member], tree))
        self._with = jax.jit(
            lambda tree, member, value: jax.tree.map(lambda leaf, own: leaf.at[member].set(own), tree, value), donate_argnums=0
        )

    def __getitem__(self, member: int) -> State:
        with self._lock:
            state: State = self._of(self._state, member)
        return state

    def __setitem__(self, member: int, state: State) -> None:
        with self._lock:
            self._state = self._with(self._state, member, state)

    def learn(self, lessons: Mapping[int, Lesson], steps: int) -> dict[int, tuple[Streams, list[Array]]]:
        """Gradient steps of the members that are named; the others stay as they are."""
        anyone = next(iter(lessons.values()))
        given = [lessons.get(member, anyone) for member in range(self.members)]
        learns = np.array([member in lessons for member in range(self.members)])
        packed: dict[int, list[Array]] = {member: [] for member in lessons}
        for length in [self._block] * (steps // self._block) + [1] * (steps % self._block):
            self._state, streams, metrics = self._scan(self._state, given, self._own, learns, length, bool(learns.all()))
            given = [lesson._replace(streams=its) for lesson, its in zip(given, streams, strict=True)]
            for member, of_member in packed.items():
                of_member.append(metrics[member])
        return {member: (given[member].streams, of_member) for member, of_member in packed.items()}

    def act(self, way: str, scenes: Mapping[int, Scene]) -> dict[int, tuple[Array, Array, Tree, Streams]]:
        """Actions of the members that are named."""
        anyone = next(iter(scenes.values()))
        answers = self._ways[way](self._state.policy, [scenes.get(member, anyone) for member in range(self.members)])
        return {member: answers[member] for member in scenes}

    def _differences(self, updates: Sequence[Update], dtype: Any) -> dict[str, Array]:
        """What the members differ in, `(members,)` each; what they share stays a constant, as it is of one agent."""
        numbers = {name: [getattr(update, name) for update in updates] for name in self.VARYING}
        numbers |= {name: [getattr(update, name).learning_rate for update in updates] for name in self.OPTIMIZERS}
        return {name: jnp.asarray(values, dtype) for name, values in numbers.items() if len(set(values)) > 1}

    def _together(self, way: Act) -> Callable[[Any, Sequence[Scene]], list[tuple[Array, Array, Tree, Streams]]]:
        @jax.jit
        def act(parameters: Any, scenes: Sequence[Scene]) -> list[tuple[Array, Array, Tree, Streams]]:
            scene = _stacked(scenes)
            answers = jax.vmap(way)(parameters, scene.streams, scene.acting)
            return self._apart(answers)

        return act

    def _apart(self, tree: Any) -> list[Any]:
        """What is each member's of a tree with a leading axis."""
        return [jax.tree.map(lambda leaf, member=member: leaf[member], tree) for member in range(self.members)]

    def answer(self, kind: Any, requests: Mapping[int, Any]) -> Mapping[int, Any]:
        """What `Lockstep` asks for the members."""
        what, detail = kind[:2]
        return self.learn(requests, detail) if what == "learn" else self.act(detail, requests)


class Member:
    """The state of one agent of a population; what it learns and how it acts is done together with the others."""

    def __init__(self, population: Population, lockstep: Lockstep[Any, Any], number: int) -> None:
        self._population, self._lockstep, self._number = population, lockstep, number

    @property
    def state(self) -> State:
        return self._population[self._number]

    @state.setter
    def state(self, state: State) -> None:
        self._population[self._number] = state

    def use(self, learn: Learn, acts: Mapping[str, Act]) -> None:
        raise RuntimeError("an agent of a population cannot change its models' mode, nor keep gradients: train it alone")

    def learn(self, memory: MemoryState, moments: Tree, streams: Streams, steps: int) -> tuple[Streams, list[Array]]:
        answer: tuple[Streams, list[Array]] = self._lockstep.call(self._number, ("learn", steps), Lesson(memory, moments, streams))
        return answer

    def act(self, way: str, streams: Streams, acting: Acting) -> tuple[Array, Array, Tree, Streams]:
        shapes = tuple(leaf.shape for leaf in jax.tree.leaves(acting))
        answer: tuple[Array, Array, Tree, Streams] = self._lockstep.call(self._number, ("act", way, shapes), Scene(streams, acting))
        return answer


def urgency(kind: Any) -> int:
    """Of what a member asks for: evaluations come before steps, and all meet at learning."""
    return 0 if kind[0] == "learn" else 2 if kind[1] == "greedy" else 1


def populate(agents: Sequence[Any]) -> Lockstep[Any, Any]:
    """Let agents that are alike learn and act together from now on, each in a thread of its own.

    Returns:
        Where they meet: an agent that ends says so by `leave`.

    Raises:
        ValueError: if an agent computes on several devices.
    """
    if agents[0]._parallel is not None:
        raise ValueError("a population learns on one device: leave out the other devices, or train its members one by one")
    population = Population(
        [agent._update for agent in agents],
        [agent._drawing() for agent in agents],
        agents[0]._actor(),
        agents[0]._action_bounds,
        [agent._state for agent in agents],
        block=agents[0]._block,
    )
    lockstep: Lockstep[Any, Any] = Lockstep(len(agents), population.answer, urgency=urgency)
    for number, agent in enumerate(agents):
        agent._runner = Member(population, lockstep, number)
    return lockstep


def part(agent: Any) -> None:
    """Let an agent of a population go on alone."""
    agent._runner = Alone(agent._state)
    agent._fuse()


def _stacked(trees: Sequence[Any]) -> Any:
    """Trees alike, with a leading axis."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
