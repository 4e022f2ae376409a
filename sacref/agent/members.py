"""Members of a population: what the calls that stand for all of them are made of, and the runner of each."""

from collections.abc import Mapping, Sequence
from typing import Any, Generic, NamedTuple, NoReturn, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from sacref.agent.execution import Act, Acted, ActInputs, Actor, Bounds, Fused, Learn, Streams
from sacref.algorithm.data import Inputs
from sacref.algorithm.replay import AnyReplayMemory
from sacref.algorithm.sequences import Follow, MemoryT, StreamT
from sacref.algorithm.tree import Tree, map_leaves
from sacref.algorithm.update import State, Update
from sacref.config import Execution
from sacref.spec.arrays import Array, ArrayT, namespace

UpdateT = TypeVar("UpdateT", bound=Update[Any, Any])
Mask = NDArray[np.bool_]

VARYING = ("discount_factor", "target_entropy")
"""Numbers of an update in which members may differ."""
OPTIMIZERS = ("policy_optimizer", "critic_optimizer", "temperature_optimizer")


class Members(NamedTuple, Generic[ArrayT, UpdateT, StreamT]):
    """The ingredients of a population."""

    updates: Sequence[UpdateT]
    """One for each member. They may differ in the fields `VARYING`; on JAX in the optimizers' base rates, too."""
    specs: Sequence[Any]
    """One `DrawSpec` for each member, alike but for the discount of n steps."""
    follow: Follow
    """Settings of the batches, alike but for the discount."""
    actor: Actor[ArrayT]
    bounds: Bounds[ArrayT]
    states: Sequence[State[ArrayT]]
    """One for each member."""
    streams: Sequence[Streams[StreamT]]
    """Random streams of each member."""
    memory: AnyReplayMemory
    """Replay memory of all members: the environments of the first one, then those of the second, ..."""
    execution: Execution
    """As for one agent."""
    block: int
    """Gradient steps of one compiled call, as for one agent."""


class Together(Protocol[ArrayT, StreamT]):
    """States and random streams of all members, with a leading axis, over which the update and acting are mapped."""

    def __getitem__(self, member: int, /) -> State[ArrayT]: ...
    def __setitem__(self, member: int, state: State[ArrayT], /) -> None: ...
    def streams(self, member: int, /) -> Streams[StreamT]:
        """Return the random streams of a member."""
        ...

    def set_streams(self, member: int, streams: Streams[StreamT], /) -> None:
        """Let a member go on from other random streams."""
        ...

    def hold_moments(self, moments: Sequence[Tree], /) -> Sequence[Tree]:
        """Learn and act with these preprocessors' arrays of each member; return them as the members are to hold them."""
        ...

    def learn(self, which: Mask, steps: int, /) -> list[ArrayT]:
        """Take gradient steps of some members; the others stay as they are.

        Returns:
            Metrics, `(member, gradient step, metric)` each.
        """
        ...

    @property
    def fused_steps(self) -> int | None:
        """Gradient steps that `learn_and_act` takes; None where there is no such call."""
        ...

    def learn_and_act(self, mode: str, inputs: Inputs[Array], carry: Tree, /) -> tuple[ArrayT, Acted[ArrayT]]:
        """Write the memory's waiting rows, take gradient steps of all members and choose actions with the new parameters, in one call.

        Args:
            mode, inputs, carry: as of `act`; host arrays.

        Returns:
            Metrics, as of `learn`, and actions, mean actions and the carry, as of `act`.
        """
        ...

    def exploration(self) -> Sequence[object]:
        """Return the state of each member's exploration stream, which stays as it is when the stream goes on."""
        ...

    def act(self, mode: str, inputs: Inputs[ArrayT], carry: Tree, which: Mask, /) -> tuple[ArrayT, ArrayT, Tree]:
        """Choose actions of some members; the random streams and carries of the others stay as they are.

        Args:
            inputs, carry: `(members * envs, ...)`.

        Returns:
            Actions, mean actions and the carry, `(members * envs, ...)`.
        """
        ...

    def act_alone(self, member: int, inputs: ActInputs[ArrayT], /) -> tuple[ArrayT, ArrayT, Tree]:
        """Choose deterministic actions of a member, in any number of environments."""
        ...

    def apart(self, packed: Sequence[ArrayT], /) -> Sequence[ArrayT]:
        """Concatenate metrics of `learn`; return those of each member, `(gradient step, metric)`."""
        ...

    def synchronise(self) -> None:
        """Wait until the device has done all that it was asked for."""
        ...


class MemberRunner(Generic[ArrayT, MemoryT, StreamT]):
    """The state of one agent of a population, which learns and explores with the others, and is evaluated alone.

    Args:
        number: the member's.
    """

    def __init__(self, together: Together[ArrayT, StreamT], number: int) -> None:
        self._together, self._number = together, number

    @property
    def state(self) -> State[ArrayT]:
        """The member's state, without the leading axis."""
        return self._together[self._number]

    @state.setter
    def state(self, state: State[ArrayT]) -> None:
        self._together[self._number] = state

    def use(
        self,
        learn: Learn[ArrayT, MemoryT, StreamT],
        acts: Mapping[str, Act[ArrayT, StreamT]],
        fused: Fused[ArrayT, MemoryT, StreamT] | None = None,
    ) -> NoReturn:
        """Refuse other functions: those of a population are compiled for all members."""
        raise RuntimeError("an agent of a population cannot change its models' mode, nor keep gradients: train it alone")

    def learn(self, memory: MemoryT, moments: Tree, streams: Streams[StreamT], steps: int) -> NoReturn:
        """Refuse to learn alone."""
        raise RuntimeError("an agent of a population learns with the others: call the population's methods, or train it alone")

    def act(self, mode: str, streams: Streams[StreamT], inputs: ActInputs[ArrayT]) -> tuple[ArrayT, ArrayT, Tree, Streams[StreamT]]:
        """Choose deterministic actions; others are chosen for all members together."""
        if mode != "greedy":
            raise RuntimeError("an agent of a population explores with the others: call the population's methods, or train it alone")
        return *self._together.act_alone(self._number, inputs), streams


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


def by_member(tree: Tree, members: int) -> Tree:
    """Reshape `(members * envs, ...)` to `(members, envs, ...)`."""
    return map_leaves(lambda leaf: leaf.reshape(members, -1, *leaf.shape[1:]), tree)


def by_row(tree: Tree) -> Tree:
    """Reshape `(members, envs, ...)` to `(members * envs, ...)`."""
    return map_leaves(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), tree)
