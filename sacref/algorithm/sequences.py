"""Batches from the rows of a replay memory: transitions of one or n steps, and sequences of recurrent agents.

Each environment has a ring of its own, of `slots` rows, so that what follows a row is known. Row `slot * envs + env` of the memory is slot
`slot` of environment `env`. `head` and `size` have an entry for each environment.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Generic, NamedTuple, Protocol, TypeAlias, TypeVar

from sacref.algorithm.data import Batch, Sampled, Sequences, Transition
from sacref.algorithm.tree import Tree, map_leaves
from sacref.spec.arrays import ArrayT, namespace


class Follow(NamedTuple):
    """Settings for batches of successive rows."""

    n_step: int = 1
    """Number of steps of a transition."""
    discount_factor: float = 0.99
    """Discount of the rewards within the n steps."""
    sequence_length: int = 0
    """Steps of a sequence that are learned from; 0 draws transitions."""
    burn_in: int = 0
    """Steps before those, at most."""

    @property
    def needs_first(self) -> bool:
        """True where rows must know what they follow."""
        return self.n_step > 1 or self.sequence_length > 0


def check_follow(settings: Follow, slots: int) -> None:
    """Refuse settings that ask for more successive rows than a ring of `slots` rows has.

    Raises:
        ValueError: naming the setting.
    """
    for name, rows in {"n_step": settings.n_step, "burn_in + sequence_length": settings.burn_in + settings.sequence_length}.items():
        if rows > slots:
            raise ValueError(
                f"ReplayMemory: {name} is {rows}, and each environment has room for {slots} rows (capacity / num_envs): "
                f"lower it, or make the memory larger"
            )


class Rings(Protocol[ArrayT]):
    """The rings of all environments, and where their next transitions go; a backend's `MemoryState`."""

    @property
    def rows(self) -> Transition[ArrayT]:
        """`(slots * envs, ...)` each."""
        ...

    @property
    def head(self) -> ArrayT:
        """`(envs,)`, integers: the slot written next."""
        ...

    @property
    def size(self) -> ArrayT:
        """`(envs,)`, integers: how many slots hold transitions."""
        ...

    @property
    def slots(self) -> int:
        """Rows that each environment has room for."""
        ...

    def place(self, slot: Any, environment: Any, /) -> Any:
        """Return the memory's rows of slots."""
        ...

    def take(self, ring: ArrayT, index: ArrayT, /) -> ArrayT:
        """Return rows of a ring, `(*index.shape, ...)`."""
        ...


class PartRings(NamedTuple, Generic[ArrayT]):
    """The rings of some successive environments of a memory; their rows stay where they lie."""

    memory: Rings[ArrayT]
    """The rings of all environments."""
    head: ArrayT
    """`(some,)`: as of `Rings`."""
    size: ArrayT
    """`(some,)`: as of `Rings`."""
    first: "Index"
    """Number of the first of these environments, an integer or an array `()`."""

    @property
    def rows(self) -> Transition[ArrayT]:
        """Rows of all environments."""
        return self.memory.rows

    @property
    def slots(self) -> int:
        """Rows that each environment has room for."""
        return self.memory.slots

    def place(self, slot: "Index", environment: "Index") -> "Index":
        """Return the memory's rows of slots of these environments."""
        return self.memory.place(slot, self.first + environment)

    def take(self, ring: ArrayT, index: ArrayT) -> ArrayT:
        """Return rows of a ring, `(*index.shape, ...)`."""
        return self.memory.take(ring, index)


MemoryT = TypeVar("MemoryT", bound=Rings[Any])
"""The backend's `MemoryState`."""
Index: TypeAlias = Any
"""An array of integers or booleans, with the operators that `Array` does not ask for."""
StreamT = TypeVar("StreamT")
"""A random stream: a generator of PyTorch, a key of JAX."""


def locate(number: Index, size: Index) -> tuple[Index, Index]:
    """Return slot and environment of the `number`-th of all rows that are stored, `(batch,)` each; `size` is `(envs,)`."""
    xp = namespace(number, size)
    if size.shape[0] == 1:
        return number, xp.zeros_like(number)
    ends = xp.cumulative_sum(size, dtype=number.dtype)
    environment = xp.sum(xp.astype(number[:, None] >= ends[None, :-1], number.dtype), axis=1, dtype=number.dtype)
    return number - (ends - size)[environment], environment


def index_of(slot: Index, environment: Index, envs: int) -> Index:
    """Return the memory's row of a slot."""
    return slot if envs == 1 else slot * envs + environment


def row_of(memory: Rings[ArrayT], number: Index) -> Index:
    """Return the memory's row of the `number`-th of all rows that are stored."""
    return memory.place(number, 0) if memory.size.shape[0] == 1 else memory.place(*locate(number, memory.size))


def follow(memory: Rings[ArrayT], slot: Index, environment: Index, steps: Index) -> tuple[Index, Index]:
    """Find the rows after a row, and those of them that continue it.

    Args:
        slot, environment: where to begin, `(batch,)`; slots count around the ring. steps: 0, 1, ..., `(time,)`.

    Returns:
        Rows of the memory, `(time, batch)`, and whether each belongs to the same episode as the first one and was stored after it.
    """
    xp = namespace(slot)
    index = memory.place((slot[None, :] + steps[:, None]) % memory.slots, environment[None, :])
    newer = memory.size[environment] - _older(memory, slot, environment)
    first: Index = memory.rows.first
    broken = (memory.take(first, index) & (steps[:, None] > 0)) | (steps[:, None] >= newer[None, :])
    return index, xp.cumulative_sum(xp.astype(broken, steps.dtype), axis=0) == 0


def steps_before(memory: Rings[ArrayT], slot: Index, environment: Index, steps: Index) -> Index:
    """Count the rows before a row that belong to its episode, `(batch,)`, up to the length of `steps` = 0, 1, ..."""
    xp = namespace(slot)
    index = memory.place((slot[None, :] - steps[:, None]) % memory.slots, environment[None, :])
    first: Index = memory.rows.first
    broken = memory.take(first, index) | (steps[:, None] >= _older(memory, slot, environment)[None, :])
    unbroken = xp.cumulative_sum(xp.astype(broken, steps.dtype), axis=0) == 0
    return xp.sum(xp.astype(unbroken, slot.dtype), axis=0, dtype=slot.dtype)


def _older(memory: Rings[ArrayT], slot: Index, environment: Index) -> Index:
    """Count the rows of the environment that are older than a row, `(batch,)`."""
    oldest = memory.head - memory.size
    return (slot - oldest[environment]) % memory.slots


def gather(memory: Rings[ArrayT], number: Index) -> Batch[ArrayT]:
    """Take transitions of one step: the `number`-th of all rows that are stored, `(batch,)`."""
    return Batch(*_take(memory, tuple(memory.rows[:7]), row_of(memory, number)))


def gather_steps(memory: Rings[ArrayT], number: Index, settings: Follow, steps: Index) -> Batch[ArrayT]:
    """Make transitions of n steps, or of fewer where the episode or the memory ends before.

    Sutton & Barto 2018, equation 7.1: the rewards of m steps, then the value of the m-th successor times gamma^m. No correction for the
    policy having changed since.

    Args:
        number: the first rows, counted as in `gather`, `(batch,)`. steps: 0, 1, ..., n.
    """
    xp = namespace(number)
    rows = memory.rows
    index, alive = follow(memory, *locate(number, memory.size), steps[:-1])
    count = xp.sum(xp.astype(alive, index.dtype), axis=0, dtype=index.dtype)
    first, last = index[0], xp.take_along_axis(index, (count - 1)[None, :], axis=0)[0]
    gamma = settings.discount_factor ** xp.astype(steps, rows.rewards.dtype)
    rewards = memory.take(rows.rewards, index) * gamma[:-1][:, None]
    observations, states, actions = _take(memory, (rows.observations, rows.states, rows.actions), first)
    next_observations, next_states, terminated = _take(memory, (rows.next_observations, rows.next_states, rows.terminated), last)
    return Batch(
        observations=observations,
        states=states,
        actions=actions,
        rewards=xp.sum(xp.where(alive, rewards, xp.zeros_like(rewards)), axis=0),
        next_observations=next_observations,
        next_states=next_states,
        terminated=terminated,
        discounts=gamma[count],
    )


def gather_sequences(memory: Rings[ArrayT], number: Index, settings: Follow, steps: Index) -> Sequences[ArrayT]:
    """Make sequences of successive rows: up to `burn_in`, then up to `sequence_length` from the given ones on.

    Args:
        number: the first rows that are learned from, counted as in `gather`, `(batch,)`. steps: 0, 1, ..., burn_in + sequence_length - 1.
    """
    xp = namespace(number)
    rows = memory.rows
    slot, environment = locate(number, memory.size)
    warm_up = steps_before(memory, slot, environment, steps[: settings.burn_in])
    index, alive = follow(memory, slot - warm_up, environment, steps)
    learned = steps[:, None] - warm_up[None, :]

    def with_last(ring: Index, successors: Index) -> Index:
        """Append the successor of a sequence's last row, wherever it has ended: `(time + 1, batch, ...)`."""
        now, after = memory.take(ring, index), memory.take(successors, index)
        continues = xp.reshape(alive[1:], (*alive[1:].shape, *(1 for _ in now.shape[2:])))
        return xp.concat([now[:1], xp.where(continues, now[1:], after[:-1]), after[-1:]])

    observations, states = map_leaves(with_last, (rows.observations, rows.states), (rows.next_observations, rows.next_states))
    actions, rewards, terminated = _take(memory, (rows.actions, rows.rewards, rows.terminated), index)
    before = _take(memory, (rows.previous_actions, rows.previous_rewards), index[:1])
    return Sequences(
        observations=observations,
        states=states,
        previous_actions=xp.concat([before[0], actions]),
        previous_rewards=xp.concat([before[1], rewards]),
        actions=actions,
        rewards=rewards,
        terminated=terminated,
        mask=alive & (learned >= 0) & (learned < settings.sequence_length),
        carry=_take(memory, rows.carry, index[0]),
    )


def _take(memory: Rings[ArrayT], tree: Tree, index: Index) -> Tree:
    return map_leaves(lambda ring: memory.take(ring, index), tree)


class Sampler(Generic[MemoryT, StreamT]):
    """Draws batches, uniformly and with replacement.

    Args:
        draw: `(memory, batch_size, stream)` -> numbers of rows, among all that are stored, `(batch,)`.
        steps: `(memory, length)` -> 0, 1, ..., length - 1.
    """

    def __init__(self, draw: Callable[[MemoryT, int, StreamT], Index], steps: Callable[[MemoryT, int], Index]) -> None:
        self._draw, self._steps = draw, steps

    def __call__(self, settings: Follow) -> Callable[[MemoryT, int, StreamT], Sampled[Any]]:
        """Return the function that draws a batch, `(memory, batch_size, stream) -> batch`."""
        if settings.sequence_length > 0:
            return partial(self.sequences, settings=settings)
        return self.transitions if settings.n_step == 1 else partial(self.n_steps, settings=settings)

    def transitions(self, memory: MemoryT, batch_size: int, stream: StreamT) -> Batch[Any]:
        """Draw transitions of one step."""
        return gather(memory, self._draw(memory, batch_size, stream))

    def n_steps(self, memory: MemoryT, batch_size: int, stream: StreamT, settings: Follow) -> Batch[Any]:
        """Draw transitions of n steps, by their first rows."""
        return gather_steps(memory, self._draw(memory, batch_size, stream), settings, self._steps(memory, settings.n_step + 1))

    def sequences(self, memory: MemoryT, batch_size: int, stream: StreamT, settings: Follow) -> Sequences[Any]:
        """Draw sequences, by the first rows that are learned from."""
        steps = self._steps(memory, settings.burn_in + settings.sequence_length)
        return gather_sequences(memory, self._draw(memory, batch_size, stream), settings, steps)
