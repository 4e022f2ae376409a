"""Populations: agents that share nothing, and learn and act in one call."""

from collections.abc import Mapping, Sequence
from typing import Any, Generic, NamedTuple, Protocol, TypeAlias, TypeVar

from sacref.agent.execution import Act, ActInputs, Actor, AgentRunner, Bounds, Learn, Streams
from sacref.agent.lockstep import Lockstep
from sacref.algorithm.sequences import MemoryT, StreamT
from sacref.algorithm.tree import Tree, leaves, map_leaves
from sacref.algorithm.update import State, Update
from sacref.spec.arrays import ArrayT, namespace

UpdateT = TypeVar("UpdateT", bound=Update[Any, Any])

VARYING = ("discount_factor", "target_entropy")
"""Numbers of an update in which members may differ."""
OPTIMIZERS = ("policy_optimizer", "critic_optimizer", "temperature_optimizer")


class LearnRequest(NamedTuple, Generic[MemoryT, StreamT]):
    """A member's request for gradient steps."""

    memory: MemoryT
    moments: Tree
    streams: Streams[StreamT]


class ActRequest(NamedTuple, Generic[ArrayT, StreamT]):
    """A member's request for an action."""

    streams: Streams[StreamT]
    inputs: ActInputs[ArrayT]


Learned: TypeAlias = tuple[Streams[StreamT], list[ArrayT]]
"""Streams after gradient steps, and their metrics."""
Acted: TypeAlias = tuple[ArrayT, ArrayT, Tree, Streams[StreamT]]
"""Actions, mean actions, carry, and the streams after them."""


class Population(Protocol[ArrayT, MemoryT, StreamT]):
    """The states of all members, with a leading axis, over which the update is mapped."""

    def __getitem__(self, member: int, /) -> State[ArrayT]: ...
    def __setitem__(self, member: int, state: State[ArrayT], /) -> None: ...

    def learn(self, requests: Mapping[int, LearnRequest[MemoryT, StreamT]], steps: int, /) -> Mapping[int, Learned[StreamT, ArrayT]]:
        """Take gradient steps of the members that ask; the others stay as they are."""
        ...

    def act(self, mode: str, requests: Mapping[int, ActRequest[ArrayT, StreamT]], /) -> Mapping[int, Acted[ArrayT, StreamT]]:
        """Choose actions of the members that ask."""
        ...


class MemberRunner(Generic[ArrayT, MemoryT, StreamT]):
    """The state of one agent of a population; its gradient steps and its actions are computed together with the others'.

    Args:
        number: the member's.
        lockstep: where the members meet.
    """

    def __init__(self, population: Population[ArrayT, MemoryT, StreamT], lockstep: Lockstep[Any, Any], number: int) -> None:
        self._population, self._lockstep, self._number = population, lockstep, number

    @property
    def state(self) -> State[ArrayT]:
        """The member's state, without the leading axis."""
        return self._population[self._number]

    @state.setter
    def state(self, state: State[ArrayT]) -> None:
        self._population[self._number] = state

    def use(self, learn: Learn[ArrayT, MemoryT, StreamT], acts: Mapping[str, Act[ArrayT, StreamT]]) -> None:
        """Refuse other functions: those of a population are compiled for all members."""
        raise RuntimeError("an agent of a population cannot change its models' mode, nor keep gradients: train it alone")

    def learn(self, memory: MemoryT, moments: Tree, streams: Streams[StreamT], steps: int) -> Learned[StreamT, ArrayT]:
        """Take gradient steps once all members ask for some."""
        request = LearnRequest(memory, moments, streams)
        learned: Learned[StreamT, ArrayT] = self._lockstep.call(self._number, ("learn", steps), request)
        return learned

    def act(self, mode: str, streams: Streams[StreamT], inputs: ActInputs[ArrayT]) -> Acted[ArrayT, StreamT]:
        """Choose actions once all members ask for some, of one mode and one number of environments together."""
        shapes = tuple(tuple(leaf.shape) for leaf in leaves(inputs))
        acted: Acted[ArrayT, StreamT] = self._lockstep.call(self._number, ("act", mode, shapes), ActRequest(streams, inputs))
        return acted


class Members(NamedTuple, Generic[ArrayT, UpdateT]):
    """The ingredients of a population."""

    updates: Sequence[UpdateT]
    """One for each member. They may differ in the fields `VARYING`; on JAX in the optimizers' base rates, too."""
    specs: Sequence[Any]
    """One `DrawSpec` for each member, alike but for the discount of n steps."""
    actor: Actor[ArrayT]
    bounds: Bounds[ArrayT]
    states: Sequence[State[ArrayT]]
    """One for each member."""


def members_of(agents: Sequence[Any]) -> Members[Any, Any]:
    """Collect the ingredients of a population of these agents."""
    learners = [agent.learner for agent in agents]
    return Members(
        [learner.update for learner in learners],
        [learner.draw_spec() for learner in learners],
        learners[0].actor(),
        learners[0].bounds,
        [learner.state for learner in learners],
    )


def meet(agents: Sequence[Any], population: Population[ArrayT, MemoryT, StreamT]) -> Lockstep[Any, Any]:
    """Let agents be the members of a population from now on, each in a thread of its own.

    Returns:
        Where they meet: an agent that ends says so by `leave`.
    """

    def answer(kind: Any, requests: Mapping[int, Any]) -> Mapping[int, Any]:
        request, detail = kind[:2]
        return population.learn(requests, detail) if request == "learn" else population.act(detail, requests)

    lockstep: Lockstep[Any, Any] = Lockstep(len(agents), answer, urgency=urgency)
    for number, agent in enumerate(agents):
        agent.learner.runner = MemberRunner(population, lockstep, number)
    return lockstep


def depart(agent: Any) -> None:
    """Let an agent of a population go on alone, from a copy of its state."""
    learner = agent.learner
    learner.runner = AgentRunner(map_leaves(learner.backend.copy, learner.state))
    learner.compile()


def urgency(kind: Any) -> int:
    """Order the kinds of requests: evaluations come before steps, and all meet at learning."""
    return 0 if kind[0] == "learn" else 2 if kind[1] == "greedy" else 1


def differences(updates: Sequence[Update[ArrayT, Any]]) -> dict[str, list[Any]]:
    """Return the values of the fields in which the members' updates differ; of an optimizer, its base rate."""
    numbers = {name: [getattr(update, name) for update in updates] for name in VARYING}
    numbers |= {name: [getattr(update, name).learning_rate for update in updates] for name in OPTIMIZERS}
    return {name: values for name, values in numbers.items() if len(set(values)) > 1}


def stacked(trees: Sequence[Tree]) -> Tree:
    """Stack trees of one structure along a leading axis."""
    return map_leaves(lambda *branches: namespace(branches[0]).stack(branches), *trees)


def member_of(tree: Tree, member: int) -> Tree:
    """Return a member's part of a tree with a leading axis."""
    return map_leaves(lambda leaf: leaf[member], tree)
