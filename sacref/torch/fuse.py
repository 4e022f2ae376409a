"""Around a finished update: draw a batch and its noise, then take the steps; and the ways to run that fast.

`plain` calls the update as it is written. `traced` runs a recording of it (`graph.py`). `cuda_graph` captures draw and step on the device,
so that the host launches once for each gradient step. `torch.compile` is none of them: on the CPU its code for a recording was
measured to take one and a half times as long as the recording, and 20 s to make.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from sacref.agent.lockstep import Lockstep
from sacref.algorithm.data import METRICS, Batch, Inputs, Metrics, Noise, Sequences
from sacref.algorithm.tree import Tree
from sacref.config import Execution
from sacref.envs.scaling import to_box
from sacref.spec import bound_log_std, squash
from sacref.torch.graph import Recorded, RecordedTogether, detects_anomalies, leaves_of, onednn_available
from sacref.torch.memory import MemoryState, Sampler
from sacref.torch.optim import State, Update

logger = logging.getLogger(__name__)


class Streams(NamedTuple):
    """The random streams of an agent, apart from each other and from every global generator."""

    noise: torch.Generator
    sampling: torch.Generator
    exploration: torch.Generator


class Bounds(NamedTuple):
    """The Box of actions, `(action,)` each."""

    low: Tensor
    high: Tensor


class Acting(NamedTuple):
    """What acting reads beside the policy's parameters."""

    inputs: Inputs[Tensor]
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
    generators: tuple[torch.Generator, ...] = ()
    """Of models of a user's own, whose layers draw from them."""


Step = Callable[[State, Any, Noise[Tensor]], Tensor]
"""A gradient step that writes into the state; it returns the metrics as one vector, see `pack`."""
Learn = Callable[[State, MemoryState, Tree, Streams, int], tuple[State, Streams, list[Tensor]]]
"""`(state, memory, moments, streams, steps) -> (state, streams, metrics)`."""
Actor = Callable[[Any, Acting], tuple[Tensor, Tensor, Tree]]
"""A policy for acting: `(parameters, acting) -> (mean, raw log_std, carry)`, `(envs, action)` each."""
Act = Callable[[Any, Streams, Acting], tuple[Tensor, Tensor, Tree, Streams]]


def choose(execution: Execution, device: torch.device, *, own_models: bool, ranks: int = 1) -> Execution:
    """The way to run updates on `device`.

    Args:
        execution: "auto", or the way that is asked for.
        own_models: whether all models are sacref's. A recording keeps what Python code of a model decided once, so that models of a user's
            own are recorded only when asked.
        ranks: processes that learn together. What they tell each other is captured in a CUDA graph only when asked.

    Raises:
        ValueError: if there is no such way on this device.
    """
    if execution == "scan":
        raise ValueError("execution is 'scan', which is JAX's: expected auto, plain, traced or cuda_graph on PyTorch")
    if execution == "cuda_graph" and device.type != "cuda":
        raise ValueError(f"execution is 'cuda_graph' and the device {device}: expected a CUDA device, or execution 'auto'")
    if execution != "auto":
        return execution
    fast: Execution = "traced" if device.type != "cuda" else "cuda_graph" if ranks == 1 else "plain"
    if own_models:
        return fast
    logger.info("models of your own: updates run plain; execution=%r records them once and is faster where they only compute", fast)
    return "plain"


def describe(device: torch.device) -> str:
    """How updates of default models in float32 run on `device` unless told otherwise, and which library multiplies."""
    execution = choose("auto", device, own_models=True)
    return f"{execution}, products by oneDNN" if execution == "traced" and onednn_available() else execution


def stepper(update: Update) -> Update:
    """The update itself, `(state, batch, noise) -> (state, metrics)`."""
    return update


def pack(metrics: Metrics[Tensor]) -> Tensor:
    """The metrics of an update in one vector, in the order of `METRICS`."""
    return torch.cat([metrics[name].reshape(-1) for name in METRICS if name in metrics])


def draw(
    memory: MemoryState, moments: Tree, streams: Streams, drawing: Drawing
) -> tuple[Batch[Tensor] | Sequences[Tensor], Noise[Tensor], Streams]:
    """The batch and the noise of the next gradient step."""
    batch = drawing.prepare(moments, drawing.sample(memory, drawing.batch_size, streams.sampling))
    like = batch.actions

    def numbers(distribution: Callable[..., Tensor], shape: Sequence[int]) -> Tensor:
        return distribution(tuple(shape), generator=streams.noise, dtype=like.dtype, device=like.device)

    def uniform() -> dict[str, tuple[Tensor, ...]]:
        return {
            critic: tuple(numbers(torch.rand, (*like.shape[:-1], width)) for width in widths) for critic, widths in drawing.draws.items()
        }

    first, second = (numbers(torch.randn, like.shape) for _ in range(2))
    subset = None
    if drawing.target_subset is not None:
        subset = numbers(torch.rand, (drawing.critics,)).argsort()[: drawing.target_subset]
    noise = Noise(next_actions=first, actions=second, target_critics=subset, dropout=(uniform(), uniform(), uniform()))
    return batch, noise, streams


def in_place(update: Update, state: State, batch: Any, noise: Noise[Tensor]) -> Tensor:
    """A gradient step that writes into the state; it returns the metrics as one vector, see `pack`."""
    stepped, metrics = update(state, batch, noise)
    with torch.no_grad():
        for old, new in zip(leaves_of(state), leaves_of(stepped), strict=True):
            if new is not old:
                old.copy_(new)
    return pack(metrics)


def learner(update: Update, drawing: Drawing, *, execution: Execution) -> Learn:
    """Take gradient steps on fresh batches.

    The state is written in place. The metrics are a list of matrices `(step, metric)`, see `pack`.
    """

    take = partial(in_place, update)

    def draw_and(step: Step) -> Callable[[State, MemoryState, Tree, Streams], Tensor]:
        def draw_and_step(state: State, memory: MemoryState, moments: Tree, streams: Streams) -> Tensor:
            batch, noise, _ = draw(memory, moments, streams, drawing)
            return step(state, batch, noise)

        return draw_and_step

    plain = fast = draw_and(take)
    if execution == "traced":
        fast = draw_and(Recorded(take))
    elif execution == "cuda_graph":
        fast = Captured(plain, drawing.generators)

    def learn(state: State, memory: MemoryState, moments: Tree, streams: Streams, steps: int) -> tuple[State, Streams, list[Tensor]]:
        gradient_step = plain if fast is not plain and detects_anomalies() else fast
        metrics = []
        for _ in range(steps):
            advance_schedules(update, state)
            metrics.append(gradient_step(state, memory, moments, streams))
        return state, streams, [torch.stack(metrics)] if metrics else []

    return learn


def advance_schedules(update: Update, state: State) -> None:
    """Let the schedules that run on the host (torch.optim.lr_scheduler) write the next step's learning rates into the state."""
    update.policy_optimizer.prepare(state.policy_optimizer)
    update.critic_optimizer.prepare(state.critic_optimizer)
    update.temperature_optimizer.prepare(state.temperature_optimizer)


def capture_on_cuda(
    function: Callable[[], Tensor], generators: Sequence[torch.Generator], warm_up: Callable[[], None]
) -> Callable[[], Tensor]:
    """Capture `function` as a CUDA graph, after `warm_up` on the same stream; the result replays it.

    Registered generators go on from replay to replay.
    """
    device = generators[0].device
    # All of it: a graph keeps the states of generators on the device that is current when they are registered.
    with torch.cuda.device(device):
        graph = torch.cuda.CUDAGraph()
        for generator in generators:
            graph.register_generator_state(generator)
        # A stream of the agent's device: torch's default one for captures lies on the device that was current first.
        stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch leaves it unannotated.
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            warm_up()
        torch.cuda.current_stream(device).wait_stream(stream)
        # Of this thread: in a population that one may still be closing what another has finished.
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            output = function()

    def replay() -> Tensor:
        with torch.cuda.device(device):  # whose current stream it is launched on
            graph.replay()
        return output

    return replay


class Captured:
    """Draw and step as one graph on the device.

    Args:
        draw_and_step: `(state, memory, moments, streams) -> metrics`. It writes into the state. Of a population the others are tuples.
        generators: which it draws from beside the streams.
    """

    WARM_UP = 3
    """Calls before the capture, on copies: libraries allocate their workspaces in the first ones."""

    def __init__(self, draw_and_step: Callable[[State, Any, Any, Any], Tensor], generators: tuple[torch.Generator, ...] = ()) -> None:
        self.draw_and_step = draw_and_step
        self.generators = generators
        self._captured_of: list[Any] = []
        self._replay: Callable[[], Tensor] | None = None

    def __call__(self, state: State, memory: Any, moments: Any, streams: Any) -> Tensor:
        given = [state, *_each(memory), *_each(moments)]
        if self._replay is None or any(a is not b for a, b in zip(given, self._captured_of, strict=True)):
            self._replay = capture_on_cuda(
                lambda: self.draw_and_step(state, memory, moments, streams),
                self._drawn_from(streams),
                lambda: self._warm_up(state, memory, moments, streams),
            )
            self._captured_of = given
        return self._replay().clone()

    def _drawn_from(self, streams: Any) -> tuple[torch.Generator, ...]:
        return (*(generator for each in _each(streams) for generator in (each.noise, each.sampling)), *self.generators)

    def _warm_up(self, state: State, memory: Any, moments: Any, streams: Any) -> None:
        generators = self._drawn_from(streams)
        before = [generator.get_state() for generator in generators]
        copied = pytree.tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, state)
        for _ in range(self.WARM_UP):
            self.draw_and_step(copied, memory, moments, streams)
        for generator, state_before in zip(generators, before, strict=True):
            generator.set_state(state_before)


def _each(parts: Any) -> tuple[Any, ...]:
    """Of all members of a population, or of one agent."""
    return parts if type(parts) is tuple else (parts,)


class Way(NamedTuple):
    """A way to act."""

    function: Callable[..., tuple[Tensor, Tensor, Tree]]
    """`(policy parameters, acting, numbers) -> (actions, mean actions, carry)`; without the numbers where none are drawn."""
    distribution: Callable[..., Tensor] | None
    """What the numbers are drawn with, `(envs, action)`."""

    def numbers(self, streams: Streams, acting: Acting, bounds: Bounds) -> tuple[Tensor, ...]:
        """What the function takes beside."""
        if self.distribution is None:
            return ()
        shape = (next(leaves_of(acting.inputs["observations"])).shape[0], *bounds.low.shape)
        return (self.distribution(shape, generator=streams.exploration, dtype=bounds.low.dtype, device=bounds.low.device),)


def ways(actor: Actor, bounds: Bounds) -> dict[str, Way]:
    """Ways to act, actions in the Box's units.

    `greedy` draws nothing, `random` is uniform over the Box, `sampled` is the policy's own.
    """

    def greedy(parameters: Any, acting: Acting) -> tuple[Tensor, Tensor, Tree]:
        mean, _, carry = actor(parameters, acting)
        mean_actions = to_box(torch.tanh(mean), *bounds)
        return mean_actions, mean_actions, carry

    def random(parameters: Any, acting: Acting, uniform: Tensor) -> tuple[Tensor, Tensor, Tree]:
        _, mean_actions, carry = greedy(parameters, acting)
        return to_box(2.0 * uniform - 1.0, *bounds), mean_actions, carry

    def sampled(parameters: Any, acting: Acting, noise: Tensor) -> tuple[Tensor, Tensor, Tree]:
        mean, raw_log_std, carry = actor(parameters, acting)
        actions, _ = squash(mean, bound_log_std(raw_log_std), noise)
        return to_box(actions, *bounds), to_box(torch.tanh(mean), *bounds), carry

    return {"greedy": Way(greedy, None), "random": Way(random, torch.rand), "sampled": Way(sampled, torch.randn)}


def actors(actor: Actor, bounds: Bounds, *, execution: Execution) -> dict[str, Act]:
    """`ways`, `(policy parameters, streams, acting) -> (actions, mean actions, carry, streams)`."""

    def act_by(way: Way) -> Act:
        run = way.function if execution == "plain" else Recorded(way.function)

        @torch.no_grad()
        def act(parameters: Any, streams: Streams, acting: Acting) -> tuple[Tensor, Tensor, Tree, Streams]:
            return *run(parameters, acting, *way.numbers(streams, acting, bounds)), streams

        return act

    return {name: act_by(way) for name, way in ways(actor, bounds).items()}


class Alone:
    """The state of one agent, its gradient steps and its actions."""

    def __init__(self, state: State) -> None:
        self.state = state

    def use(self, learn: Learn, acts: Mapping[str, Act]) -> None:
        """From now on learn and act so."""
        self._learn, self._acts = learn, acts

    def learn(self, memory: MemoryState, moments: Tree, streams: Streams, steps: int) -> tuple[Streams, list[Tensor]]:
        self.state, streams, metrics = self._learn(self.state, memory, moments, streams, steps)
        return streams, metrics

    def act(self, way: str, streams: Streams, acting: Acting) -> tuple[Tensor, Tensor, Tree, Streams]:
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
        updates: of each member. They may differ in the fields `VARYING`.
        drawings: of each member; alike but for the discount of n steps.
        actor, bounds, execution: as of one agent. Where it is "plain", or only some members learn, they take their steps one after another.
        states: of each member.
    """

    VARYING = ("discount_factor", "target_entropy")
    """Fields of the update that are numbers."""

    def __init__(
        self,
        updates: Sequence[Update],
        drawings: Sequence[Drawing],
        actor: Actor,
        bounds: Bounds,
        states: Sequence[State],
        *,
        execution: Execution,
    ) -> None:
        self.members = len(states)
        self._updates, self._drawings, self._bounds = updates, drawings, bounds
        self._state: State = _stacked(states)
        self._of = [_member(self._state, member) for member in range(self.members)]
        self._own = self._differences()
        self._ways = ways(actor, bounds)
        self._together = {name: RecordedTogether(way.function) for name, way in self._ways.items()}
        self._plain = execution == "plain"
        self._step = RecordedTogether(self._in_place)
        self._learn_alone = [learner(*each, execution=execution) for each in zip(updates, drawings, strict=True)]
        generators = tuple(generator for drawing in drawings for generator in drawing.generators)
        self._gradient_step = Captured(self._draw_and_step, generators) if execution == "cuda_graph" else self._draw_and_step

    def __getitem__(self, member: int) -> State:
        state: State = self._of[member]
        return state

    def __setitem__(self, member: int, state: State) -> None:
        held, given = list(leaves_of(self._of[member])), list(leaves_of(state))
        for old, new in zip(held, given, strict=True):
            if old is not new and old is not None:
                old.copy_(new)

    def learn(self, lessons: Mapping[int, Lesson], steps: int) -> dict[int, tuple[Streams, list[Tensor]]]:
        """Gradient steps of the members that are named; the others stay as they are."""
        if self._plain or len(lessons) < self.members or detects_anomalies():
            return {member: self._learn_alone[member](self._of[member], *lesson, steps)[1:] for member, lesson in lessons.items()}
        memories, moments, streams = (tuple(lessons[member][part] for member in range(self.members)) for part in range(3))
        metrics = []
        for _ in range(steps):
            for update, state in zip(self._updates, self._of, strict=True):
                advance_schedules(update, state)
            metrics.append(self._gradient_step(self._state, memories, moments, streams))
        packed = torch.stack(metrics, 1) if metrics else None
        return {member: (lesson.streams, [] if packed is None else [packed[member]]) for member, lesson in lessons.items()}

    def act(self, way: str, scenes: Mapping[int, Scene]) -> dict[int, tuple[Tensor, Tensor, Tree, Streams]]:
        """Actions of the members that are named."""
        its = self._ways[way]
        numbers = {member: its.numbers(*scene, self._bounds) for member, scene in scenes.items()}
        if self._plain:
            with torch.no_grad():
                return {
                    member: (*its.function(self._of[member].policy, acting, *numbers[member]), streams)
                    for member, (streams, acting) in scenes.items()
                }
        anyone = next(iter(scenes))
        given = [member if member in scenes else anyone for member in range(self.members)]
        acting, drawn = (_stacked([parts[member] for member in given]) for parts in ({m: s.acting for m, s in scenes.items()}, numbers))
        answers = self._together[way](self._state.policy, acting, *drawn)
        return {member: (*_member(answers, member), scene.streams) for member, scene in scenes.items()}

    def _draw_and_step(self, state: State, memories: Any, moments: Any, streams: Any) -> Tensor:
        drawn = [draw(*parts) for parts in zip(memories, moments, streams, self._drawings, strict=True)]
        batch, noise = (_stacked([each[part] for each in drawn]) for part in (0, 1))
        metrics: Tensor = self._step(state, batch, noise, self._own)
        return metrics

    def _in_place(self, state: State, batch: Any, noise: Noise[Tensor], own: Mapping[str, Any]) -> Tensor:
        return in_place(replace(self._updates[0], **own), state, batch, noise)

    def _differences(self) -> dict[str, Tensor]:
        """What the members differ in, `(members,)` each; what they share stays a constant, as it is of one agent.

        Raises:
            ValueError: if they differ in a base rate, which here is a constant of a recording.
        """
        for slot in ("policy_optimizer", "critic_optimizer", "temperature_optimizer"):
            rates = [getattr(update, slot).learning_rate for update in self._updates]
            if len(set(rates)) > 1:
                raise ValueError(f"the members' learning rates are {rates}: on PyTorch they have to be the same, on JAX they may differ")
        numbers = {name: [getattr(update, name) for update in self._updates] for name in self.VARYING}
        like = self._state.log_alpha
        return {name: like.new_tensor(values) for name, values in numbers.items() if len(set(values)) > 1}

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

    def learn(self, memory: MemoryState, moments: Tree, streams: Streams, steps: int) -> tuple[Streams, list[Tensor]]:
        answer: tuple[Streams, list[Tensor]] = self._lockstep.call(self._number, ("learn", steps), Lesson(memory, moments, streams))
        return answer

    def act(self, way: str, streams: Streams, acting: Acting) -> tuple[Tensor, Tensor, Tree, Streams]:
        shapes = tuple(leaf.shape for leaf in leaves_of(acting) if leaf is not None)
        answer: tuple[Tensor, Tensor, Tree, Streams] = self._lockstep.call(self._number, ("act", way, shapes), Scene(streams, acting))
        return answer


def urgency(kind: Any) -> int:
    """Of what a member asks for: evaluations come before steps, and all meet at learning."""
    return 0 if kind[0] == "learn" else 2 if kind[1] == "greedy" else 1


def populate(agents: Sequence[Any]) -> Lockstep[Any, Any]:
    """Let agents that are alike learn and act together from now on, each in a thread of its own.

    Returns:
        Where they meet: an agent that ends says so by `leave`.
    """
    population = Population(
        [agent._update for agent in agents],
        [agent._drawing() for agent in agents],
        agents[0]._actor(),
        agents[0]._action_bounds,
        [agent._state for agent in agents],
        execution=agents[0].execution,
    )
    lockstep: Lockstep[Any, Any] = Lockstep(len(agents), population.answer, urgency=urgency)
    for number, agent in enumerate(agents):
        agent._runner = Member(population, lockstep, number)
    return lockstep


def part(agent: Any) -> None:
    """Let an agent of a population go on alone."""
    agent._runner = Alone(pytree.tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, agent._state))
    agent._fuse()


def _stacked(trees: Sequence[Any]) -> Any:
    """Trees alike, with a leading axis."""
    return pytree.tree_map(lambda *leaves: None if leaves[0] is None else torch.stack(leaves), *trees)


def _member(tree: Any, member: int) -> Any:
    """What is one member's of a tree with a leading axis: views."""
    return pytree.tree_map(lambda leaf: None if leaf is None else leaf[member], tree)
