"""What the replay memories of the backends share: where rows lie, the checks of size and of checkpoints, the rows that wait on the host.

Each environment has a ring of its own, of `slots` rows, so that what follows a row is known. Row `slot * envs + env` of the memory is slot
`slot` of environment `env`. `head` and `size` have an entry for each environment.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from sacref.algorithm.data import Batch, Sequences, Transition
from sacref.algorithm.tree import Tree, map_leaves
from sacref.spec.arrays import namespace

MOST_ROWS = 2**31 - 1
"""Rows that a position of 32 bits can tell apart, which JAX has unless told otherwise."""
ROWS_AT_ONCE = 65_536
"""Rows that are restored together: what a block takes beside the ring itself is small."""


def blocks(size: int) -> Iterator[slice]:
    """The rows of a ring from 0 to `size`, `ROWS_AT_ONCE` at a time."""
    return (slice(start, min(start + ROWS_AT_ONCE, size)) for start in range(0, size, ROWS_AT_ONCE))


def check_size(capacity: Any, num_envs: Any) -> None:
    """Refuse a capacity or a number of environments that no memory can have.

    Raises:
        TypeError: if one is not an integer. ValueError: if one is too small.
    """
    for name, value in {"capacity": capacity, "num_envs": num_envs}.items():
        if isinstance(value, bool) or not isinstance(value, int | np.integer):
            raise TypeError(f"ReplayMemory: {name} is {value!r}, expected an integer: int({value!r})")
    if num_envs < 1:
        raise ValueError(f"ReplayMemory: num_envs is {num_envs}, expected at least 1")
    if capacity < num_envs:
        raise ValueError(f"ReplayMemory: capacity is {capacity}, expected at least num_envs = {num_envs}: one step must fit")
    if capacity > MOST_ROWS:
        raise ValueError(f"ReplayMemory: capacity is {capacity}, expected at most {MOST_ROWS}: positions have 32 bits")


def check_room(capacity: int, row_bytes: int, device_bytes: int | None = None) -> None:
    """Refuse a memory that cannot be allocated, before it is tried: the system may end a process that asks for too much.

    Args:
        capacity: transitions. row_bytes: of a transition. device_bytes: that are free on a device of its own; None for the host's memory.

    Raises:
        ValueError: naming what would fit.
    """
    free = host_bytes() if device_bytes is None else device_bytes
    if free is not None and capacity * row_bytes > free:
        raise ValueError(
            f"ReplayMemory: capacity (memory_capacity) is {capacity:,}, which takes {capacity * row_bytes / 1e9:,.1f} GB at {row_bytes:,} "
            f"bytes for each transition, and {free / 1e9:,.1f} GB are free: expected at most {free // row_bytes:,}"
        )


def host_bytes() -> int | None:
    """Bytes of memory that this machine, or its container, can still give, those that are swapped included; None where none is known."""
    known = []
    with suppress(OSError, ValueError, LookupError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        table = {name: int(value.split()[0]) for name, _, value in (line.partition(":") for line in lines)}
        known.append(1024 * (table["MemAvailable"] + table["SwapFree"]))
    with suppress(OSError, ValueError):  # "max" is no number
        known.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    with suppress(OSError, ValueError, AttributeError):
        if not known:
            known.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return min(known, default=None)


def check_arrays(
    arrays: Mapping[str, NDArray[Any]], rings: Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]], slots: int, envs: int
) -> None:
    """Refuse arrays that are not the filled rows of each ring, with a `head` and a `size` that rings of `slots` rows can have.

    Raises:
        ValueError: naming the array.
    """
    if set(arrays) != {*rings, "head", "size"}:
        raise ValueError(f"memory: the arrays are {sorted(arrays)}, expected {sorted([*rings, 'head', 'size'])}")
    for name in ("head", "size"):
        if arrays[name].shape != (envs,) or not np.issubdtype(arrays[name].dtype, np.integer):
            raise ValueError(
                f"memory: {name} has shape {arrays[name].shape} and dtype {arrays[name].dtype}, expected {(envs,)} integers: "
                f"use the number of environments it was saved with"
            )
    for head, size in zip(arrays["head"].tolist(), arrays["size"].tolist(), strict=True):
        if not (0 <= size <= slots and 0 <= head < slots and (size == slots or head == size % slots)):
            raise ValueError(f"memory: head {head} and size {size} do not fit a ring of {slots} rows: use the capacity it was saved with")
    rows = filled_rows(arrays["size"])
    for name, (shape, dtype) in rings.items():
        if arrays[name].shape != (rows, *shape) or arrays[name].dtype != dtype:
            raise ValueError(
                f"memory: {name} has shape {arrays[name].shape} and dtype {arrays[name].dtype}, expected {(rows, *shape)} and {dtype}"
            )


def filled_rows(size: NDArray[Any]) -> int:
    """Rows from the memory's first to the last that holds a transition of any environment."""
    return int(size.max()) * len(size)


def check_block(timesteps: int, envs: int, capacity: int) -> None:
    """Refuse timesteps that are stored together and do not fit into the rings.

    Raises:
        ValueError: if they are more than a ring has slots.
    """
    if timesteps > capacity // envs:
        raise ValueError(
            f"ReplayMemory: {timesteps * envs} rows are stored together (chunk times environments), the capacity is {capacity}: "
            f"lower chunk, or make the memory larger"
        )


class Follow(NamedTuple):
    """How a batch is made of the rows of a memory, beyond drawing them one by one."""

    n_step: int = 1
    """Steps of a transition."""
    discount_factor: float = 0.99
    """Of the rewards within the n steps."""
    sequence_length: int = 0
    """Steps of a sequence that are learned from; 0 draws transitions."""
    burn_in: int = 0
    """Steps before those, at most."""
    stored_carry: bool = True
    """Whether a sequence begins with the carry that the policy had, else with zeros."""

    @property
    def needs_first(self) -> bool:
        """Whether rows must know what they follow."""
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


class Rings(Protocol):
    """The memory of a backend, `MemoryState`, as what follows sees it."""

    @property
    def rows(self) -> Any: ...
    @property
    def head(self) -> Any: ...
    @property
    def size(self) -> Any: ...
    @property
    def slots(self) -> int: ...
    def take(self, ring: Any, index: Any, /) -> Any: ...


def locate(number: Any, size: Any) -> tuple[Any, Any]:
    """Slot and environment of the `number`-th of all rows that are stored, `(batch,)` each; `size` is `(envs,)`."""
    xp: Any = namespace(number, size)
    if size.shape[0] == 1:
        return number, xp.zeros_like(number)
    ends = xp.cumulative_sum(size, dtype=number.dtype)
    environment = xp.sum(xp.astype(number[:, None] >= ends[None, :-1], number.dtype), axis=1, dtype=number.dtype)
    return number - (ends - size)[environment], environment


def index_of(slot: Any, environment: Any, envs: int) -> Any:
    """The memory's row of a slot."""
    return slot if envs == 1 else slot * envs + environment


def row_of(number: Any, size: Any) -> Any:
    """The memory's row of the `number`-th of all rows that are stored."""
    return number if size.shape[0] == 1 else index_of(*locate(number, size), size.shape[0])


def follow(memory: Rings, slot: Any, environment: Any, steps: Any) -> tuple[Any, Any]:
    """The rows after a row, and how many of them continue it.

    Args:
        slot, environment: where to begin, `(batch,)`; slots count around the ring. steps: 0, 1, ..., `(time,)`.

    Returns:
        Rows of the memory, `(time, batch)`, and whether each belongs to the same episode as the first one and was stored after it.
    """
    xp: Any = namespace(slot)
    index = _index(memory, slot[None, :] + steps[:, None], environment)
    newer = memory.size[environment] - _older(memory, slot, environment)
    broken = (memory.take(memory.rows.first, index) & (steps[:, None] > 0)) | (steps[:, None] >= newer[None, :])
    return index, xp.cumulative_sum(xp.astype(broken, steps.dtype), axis=0) == 0


def steps_before(memory: Rings, slot: Any, environment: Any, steps: Any) -> Any:
    """How many rows before a row belong to its episode, `(batch,)`, counted up to the length of `steps` = 0, 1, ..."""
    xp: Any = namespace(slot)
    index = _index(memory, slot[None, :] - steps[:, None], environment)
    broken = memory.take(memory.rows.first, index) | (steps[:, None] >= _older(memory, slot, environment)[None, :])
    unbroken = xp.cumulative_sum(xp.astype(broken, steps.dtype), axis=0) == 0
    return xp.sum(xp.astype(unbroken, slot.dtype), axis=0, dtype=slot.dtype)


def _index(memory: Rings, slots: Any, environment: Any) -> Any:
    """The memory's rows of slots, `(time, batch)`."""
    return index_of(slots % memory.slots, environment[None, :], memory.size.shape[0])


def _older(memory: Rings, slot: Any, environment: Any) -> Any:
    """How many rows of the environment are older than a row, `(batch,)`."""
    oldest = memory.head - memory.size
    return (slot - oldest[environment]) % memory.slots


def gather(memory: Rings, number: Any) -> Batch[Any]:
    """Transitions of one step: the `number`-th of all rows that are stored, `(batch,)`."""
    return Batch(*_take(memory, tuple(memory.rows[:7]), row_of(number, memory.size)))


def gather_steps(memory: Rings, number: Any, settings: Follow, steps: Any) -> Batch[Any]:
    """Transitions of n steps, or of fewer where the episode or the memory ends before.

    Sutton & Barto 2018, equation 7.1: the rewards of m steps, then the value of the m-th successor times gamma^m. No correction for the
    policy having changed since.

    Args:
        number: the first rows, counted as in `gather`, `(batch,)`. steps: 0, 1, ..., n.
    """
    xp: Any = namespace(number)
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


def gather_sequences(memory: Rings, number: Any, settings: Follow, steps: Any) -> Sequences[Any]:
    """Sequences of successive rows: up to `burn_in`, then up to `sequence_length` from the given ones on.

    Args:
        number: the first rows that are learned from, counted as in `gather`, `(batch,)`. steps: 0, 1, ..., burn_in + sequence_length - 1.
    """
    xp: Any = namespace(number)
    rows = memory.rows
    slot, environment = locate(number, memory.size)
    warm_up = steps_before(memory, slot, environment, steps[: settings.burn_in])
    index, alive = follow(memory, slot - warm_up, environment, steps)
    learned = steps[:, None] - warm_up[None, :]

    def with_last(ring: Any, successors: Any) -> Any:
        """`(time + 1, batch, ...)`: where a sequence has ended, what came after its last row."""
        now, after = memory.take(ring, index), memory.take(successors, index)
        continues = xp.reshape(alive[1:], (*alive[1:].shape, *(1 for _ in now.shape[2:])))
        return xp.concat([now[:1], xp.where(continues, now[1:], after[:-1]), after[-1:]])

    observations, states = map_leaves(with_last, (rows.observations, rows.states), (rows.next_observations, rows.next_states))
    actions, rewards, terminated = _take(memory, (rows.actions, rows.rewards, rows.terminated), index)
    before = _take(memory, (rows.previous_actions, rows.previous_rewards), index[:1])
    carry = _take(memory, rows.carry, index[0])
    return Sequences(
        observations=observations,
        states=states,
        previous_actions=xp.concat([before[0], actions]),
        previous_rewards=xp.concat([before[1], rewards]),
        actions=actions,
        rewards=rewards,
        terminated=terminated,
        mask=alive & (learned >= 0) & (learned < settings.sequence_length),
        carry=carry if settings.stored_carry else map_leaves(xp.zeros_like, carry),
    )


def _take(memory: Rings, tree: Tree, index: Any) -> Tree:
    return map_leaves(lambda ring: memory.take(ring, index), tree)


class Staging:
    """Rows of NumPy arrays on their way into a ring, handed over in blocks of one shape, so that one compiled function takes them all.

    Args:
        like: arrays with the rows' dtypes and shapes.
        rows: rows of a block.
    """

    def __init__(self, like: Transition[NDArray[Any]], rows: int) -> None:
        self.rows = rows
        self._dtypes = map_leaves(lambda leaf: leaf.dtype, like)
        self._waiting: list[tuple[Transition[NDArray[Any]], NDArray[np.bool_]]] = []
        self._count = 0

    def __len__(self) -> int:
        """How many rows wait."""
        return self._count

    @property
    def full(self) -> bool:
        """Whether the block must be taken before more rows can be added."""
        return len(self) >= self.rows

    def add(self, transition: Transition[NDArray[Any]], keep: NDArray[np.bool_]) -> None:
        """Copy rows, `(envs, ...)`; the caller may write into its arrays again.

        Raises:
            ValueError: if they do not fit into what is left of the block.
        """
        if self._count + keep.shape[0] > self.rows:
            raise ValueError(f"ReplayMemory: {keep.shape[0]} rows came, room is for {self.rows - self._count}: add num_envs rows at a time")
        # Rows that are not kept may hold anything.
        with nullcontext() if np.count_nonzero(keep) == keep.size else np.errstate(over="ignore"):
            stored: Transition[NDArray[Any]] = map_leaves(lambda dtype, values: np.array(values, dtype), self._dtypes, transition)
        self._waiting.append((stored, np.array(keep, np.bool_)))
        self._count += keep.shape[0]

    def take(self) -> tuple[Transition[NDArray[Any]], NDArray[np.bool_]]:
        """The rows that wait, in order, filled up to a block with rows that are not kept: `(rows, ...)` and `(rows,)`."""
        waiting, self._waiting = self._waiting, []
        count, self._count = self._count, 0
        if len(waiting) == 1 and count == self.rows:
            return waiting[0]
        missing = self.rows - count

        def block(*arrays: NDArray[Any]) -> NDArray[Any]:
            return np.concatenate([*arrays, np.zeros((missing, *arrays[0].shape[1:]), arrays[0].dtype)])

        return map_leaves(block, *(row for row, _ in waiting)), block(*(keep for _, keep in waiting))
