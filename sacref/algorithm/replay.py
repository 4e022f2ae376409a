"""The replay memory: rings of transitions on the device, the rows that wait on the host, and checks of sizes and of checkpoints.

Positions are chosen on the device, so that nothing waits for it. For the rings' layout see `sacref.algorithm.sequences`.
"""

import math
import os
from collections.abc import Iterator, Mapping
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

import numpy as np
from numpy.typing import DTypeLike, NDArray

from sacref.algorithm.data import Transition
from sacref.algorithm.packing import Packed
from sacref.algorithm.sequences import Follow, MemoryT, check_follow
from sacref.algorithm.tree import Tree, leaves, map_leaves, named_leaves
from sacref.spec.arrays import NumpyArray

DeviceT = TypeVar("DeviceT")

MOST_ROWS = 2**31 - 1
"""Rows that a position of 32 bits can tell apart, which JAX has unless told otherwise."""
ROWS_AT_ONCE = 65_536
"""Rows that are restored together: what a block takes beside the ring itself is small."""


def blocks(size: int, envs: int) -> Iterator[slice]:
    """Return the rows of a memory from 0 to `size`, about `ROWS_AT_ONCE` at a time, all environments' of a slot together."""
    step = max(ROWS_AT_ONCE // envs, 1) * envs
    return (slice(start, min(start + step, size)) for start in range(0, size, step))


def check_size(capacity: int, num_envs: int) -> None:
    """Refuse a capacity or a number of environments that no memory can have.

    Raises:
        TypeError: if one is not an integer. ValueError: if one is too small.
    """
    given: dict[str, object] = {"capacity": capacity, "num_envs": num_envs}
    for name, value in given.items():
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
    """Return the bytes of memory that this machine, or its container, can still give, swap included; None where none is known."""
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
    arrays: Mapping[str, NumpyArray], rings: Mapping[str, tuple[tuple[int, ...], np.dtype[np.generic]]], slots: int, envs: int
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


def filled_rows(size: NumpyArray) -> int:
    """Count the rows from the memory's first to the last that holds a transition of any environment."""
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


class Staging:
    """Host rows that wait for the ring, handed over in blocks of one shape, so that one compiled function takes them all.

    Args:
        like: arrays with the rows' dtypes and shapes.
        rows: rows of a block.
    """

    def __init__(self, like: Transition[NumpyArray], rows: int) -> None:
        self.rows = rows
        block = like.map(lambda leaf: np.empty((rows, *leaf.shape[1:]), leaf.dtype))
        self._packed = Packed((block, np.empty(rows, np.bool_)))
        self._count = 0

    def __len__(self) -> int:
        """Count the rows that wait."""
        return self._count

    @property
    def full(self) -> bool:
        """True where the block must be taken before more rows can be added."""
        return len(self) >= self.rows

    def add(self, transition: Transition[NumpyArray], keep: NDArray[np.bool_]) -> None:
        """Copy rows, `(envs, ...)`; the caller may write into its arrays again.

        Raises:
            ValueError: if they do not fit into what is left of the block.
        """
        begin, end = self._count, self._count + keep.shape[0]
        if end > self.rows:
            raise ValueError(f"ReplayMemory: {keep.shape[0]} rows came, room is for {self.rows - self._count}: add num_envs rows at a time")
        # Rows that are not kept may hold anything.
        with nullcontext() if np.count_nonzero(keep) == keep.size else np.errstate(over="ignore"):
            self._packed.fill((transition, keep), slice(begin, end))
        self._count = end

    def take(self) -> Packed:
        """Hand over the rows that wait, in order, filled up to a block with rows that are not kept: `(rows, ...)` and `(rows,)`.

        The next `add` writes into them.
        """
        self._packed.views[1][self._count :] = False
        self._count = 0
        return self._packed


class RowSpaces(Protocol):
    """The spaces of one environment, as the memory stores them."""

    @property
    def observations(self) -> Tree:
        """Fields with a shape and a `stored_dtype`."""
        ...

    @property
    def states(self) -> Tree | None: ...
    @property
    def action_size(self) -> int: ...


class RingLibrary(Protocol[MemoryT, DeviceT]):
    """A library's rings: what a backend provides for a replay memory."""

    def device(self, name: Any, /) -> DeviceT:
        """Return the device of that name."""
        ...

    def free_bytes(self, device: DeviceT, /) -> int | None:
        """Return the bytes that are free on a device of its own memory; None for the host's."""
        ...

    def numpy_dtype(self, dtype: Any, /) -> np.dtype[np.generic]:
        """Return NumPy's dtype for the library's."""
        ...

    def zeros(self, like: Transition[NumpyArray], slots: int, envs: int, device: DeviceT, /) -> MemoryT:
        """Make empty rings for rows of these shapes and dtypes."""
        ...

    def write(self, memory: MemoryT, transition: Transition[Any], keep: Any, /) -> MemoryT:
        """Store the rows that `keep` names, timestep by timestep, over the oldest ones; arrays of the library or of NumPy."""
        ...

    def to_numpy(self, array: Any, rows: int | None = None, /) -> NumpyArray:
        """Return an array, or its first rows, on the host; where it can, without a copy."""
        ...

    def take(self, memory: MemoryT, index: NumpyArray, /) -> Mapping[str, NumpyArray]:
        """Return rows by name, on the host."""
        ...

    def fill(self, memory: MemoryT, arrays: Mapping[str, NumpyArray], first: int = 0, /) -> MemoryT:
        """Write the rows of environments from `first` on, from the first slot on, and their `head` and `size`; in place."""
        ...

    def cut(self, memory: MemoryT, first: int, envs: int, /) -> MemoryT:
        """Copy the rings of so many environments from `first` on."""
        ...


class ReplayMemory(Generic[MemoryT, DeviceT]):
    """Storage for the transitions of all environments together.

    Args:
        capacity: how many transitions, of all environments together, each having the same share; the oldest are overwritten.
        num_envs: how many environments are stepped at a time.
        device: where the transitions lie; None for the agent's device. The agent allocates at its construction.

    Raises:
        ValueError: if `capacity` or `num_envs` is not positive, or one step of all environments does not fit.
    """

    library: RingLibrary[MemoryT, DeviceT]

    def __init__(self, capacity: int, num_envs: int, device: str | DeviceT | None = None) -> None:
        check_size(capacity, num_envs)
        self.capacity: int = int(capacity)
        self.num_envs: int = int(num_envs)
        self.device: DeviceT | None = None if device is None else self.library.device(device)
        self.written: bool = False
        """True once anything was stored, as far as the host knows without waiting for the device."""
        self.added: int = 0
        """Timesteps that were ever stored, a restored memory's not counted."""
        self.settings: Follow = Follow()
        self._state: MemoryT | None = None
        self._staging: Staging | None = None
        self._like: Transition[NumpyArray]
        self._whole: ReplayMemory[MemoryT, DeviceT] | None = None
        self._first = 0
        self._is_attached = False

    def part(self, number: int, parts: int) -> "ReplayMemory[MemoryT, DeviceT]":
        """Return a memory of the `number`-th of equal shares of the environments, whose rows lie in this one.

        It reads and restores its own rows; they are added and drawn by this memory, until the part is detached.
        """
        own = type(self)(self.capacity // parts, self.num_envs // parts, self.device)
        own._whole, own._first, own._is_attached = self, number * own.num_envs, True
        return own

    def detach(self) -> None:
        """Let a part go on by itself, with a copy of its rows, which is made where it is first needed."""
        self._is_attached = False

    def allocate(
        self,
        spaces: RowSpaces,
        dtype: object,
        device: DeviceT,
        *,
        staged_timesteps: int = 1,
        settings: Follow | None = None,
        carry: Tree = None,
    ) -> None:
        """Make room for transitions of these spaces; floats in `dtype`. An agent calls this once, at its construction.

        Args:
            staged_timesteps: how many timesteps of host rows are collected before they are stored together.
            settings: how batches are made; None for transitions of one step.
            carry: of a recurrent policy, for one environment, `(1, ...)` each.
        """
        if self._state is not None:
            raise ValueError("ReplayMemory: this memory belongs to another agent already: make one for each agent")
        if self.device not in (None, device):
            raise ValueError(f"ReplayMemory: it is on {self.device}, the agent on {device}: leave the memory's device out")
        check_block(staged_timesteps, self.num_envs, self.capacity)
        settings = settings or Follow()
        check_follow(settings, self.slots)
        self.device, self.settings = device, settings
        if self._whole is not None:
            if self._whole._state is None:
                self._whole.allocate(spaces, dtype, device, staged_timesteps=staged_timesteps, settings=settings, carry=carry)
            self._like, self._staging = self._whole._like, Staging(self._whole._like, staged_timesteps * self.num_envs)
            return
        self._like = self._empty_rows(spaces, self.library.numpy_dtype(dtype), carry)
        check_room(
            self.slots * self.num_envs,
            sum(row.dtype.itemsize * math.prod(row.shape[1:]) for row in leaves(self._like)),
            self.library.free_bytes(device),
        )
        self._state = self.library.zeros(self._like, self.slots, self.num_envs, device)
        self._staging = Staging(self._like, staged_timesteps * self.num_envs)

    def _empty_rows(self, spaces: RowSpaces, floats: np.dtype[np.generic], carry: Tree) -> Transition[NumpyArray]:
        """Return arrays of no row, which have the rows' shapes and dtypes."""

        def none(shape: tuple[int, ...], kind: DTypeLike) -> NumpyArray:
            return np.empty((0, *shape), kind)

        def of_space(fields: Tree) -> Tree:
            return map_leaves(lambda field: none(field.shape, field.stored_dtype(floats)), fields)

        recurrent = self.settings.sequence_length > 0
        return Transition(
            observations=of_space(spaces.observations),
            states=of_space(spaces.states),
            actions=none((spaces.action_size,), floats),
            rewards=none((), floats),
            next_observations=of_space(spaces.observations),
            next_states=of_space(spaces.states),
            terminated=none((), np.bool_),
            first=none((), np.bool_) if self.settings.needs_first else None,
            previous_actions=none((spaces.action_size,), floats) if recurrent else None,
            previous_rewards=none((), floats) if recurrent else None,
            carry=map_leaves(lambda leaf: none(tuple(leaf.shape[1:]), self.library.numpy_dtype(leaf.dtype)), carry) if recurrent else None,
        )

    @property
    def state(self) -> MemoryT:
        """The rings on the device, with everything in them that was added."""
        if self._whole is not None:
            if self._is_attached:
                raise ValueError("ReplayMemory: this memory is a part of a population's, whose members learn together: wait for its end")
            self._state, self._whole = self.library.cut(self._whole.state, self._first, self.num_envs), None
        if self._state is None or self._staging is None:
            raise ValueError("ReplayMemory: not allocated yet: give it to an agent first, SAC(memory=...)")
        if len(self._staging):
            self._state = self.library.write(self._state, *map_leaves(np.array, self._staging.take().views))
        return self._state

    def hand_over(self) -> tuple[MemoryT, Packed]:
        """Hand over the rings, and the rows that wait for them, to who writes these; `take_back` gives the rings back.

        The rows are a block of transitions, `(rows, ...)` each, and which of them are kept, `(rows,)`. The next `add` writes into them.
        """
        state = self.state if self._whole is not None else self._state
        if state is None or self._staging is None:
            raise ValueError("ReplayMemory: not allocated yet: give it to an agent first, SAC(memory=...)")
        return state, self._staging.take()

    def take_back(self, state: MemoryT) -> None:
        """Go on with the rings that `hand_over` gave, in which its rows are written."""
        self._state = state

    def __len__(self) -> int:
        """Count the transitions that are stored; waits for the device."""
        return int(self.counters()[1].sum())

    def add(self, transition: Transition[Any], keep: object) -> None:
        """Store one row per environment where `keep`, `(envs,)`, is True. NumPy rows wait on the host until they are needed."""
        if self._staging is not None and isinstance(keep, np.ndarray):
            if self._staging.full or self._whole is not None:
                self._state = self.state
            self._staging.add(transition, keep)
        else:
            self._state = self.library.write(self.state, transition, keep)
        self.written = True
        self.added += 1

    @property
    def slots(self) -> int:
        """Transitions that each environment has room for."""
        return self.capacity // self.num_envs

    def counters(self) -> tuple[NumpyArray, NumpyArray]:
        """Return the slot that is written next and the number of transitions, `(envs,)` each, on the host."""
        if self._whole is not None:
            own = slice(self._first, self._first + self.num_envs)
            head, size = (counter[own] for counter in self._whole.counters())
        else:
            head, size = (np.array(self.library.to_numpy(array), np.int64) for array in (self.state.head, self.state.size))
        return head, size

    def rows(self, index: NumpyArray) -> dict[str, NumpyArray]:
        """Return rows of the memory by name, on the host."""
        if self._whole is not None:
            slot, env = np.divmod(index, self.num_envs)
            return self._whole.rows(slot * self._whole.num_envs + self._first + env)
        return dict(self.library.take(self.state, index))

    def arrays(self, *, copy: bool = True) -> dict[str, NumpyArray]:
        """Return the stored transitions and the write heads, as NumPy arrays.

        Args:
            copy: False gives views of the memory where it lies on the CPU, to be let go of before the next write.
        """
        head, size = self.counters()
        filled = filled_rows(size)
        if self._whole is not None:
            return {**self.rows(np.arange(filled)), "head": head, "size": size}
        rings = named_leaves(self.state.rows)
        rows = {name: np.array(self.library.to_numpy(ring, filled), copy=copy or None) for name, ring in rings.items()}
        return {**rows, "head": head, "size": size}

    def set_arrays(self, arrays: Mapping[str, NumpyArray]) -> None:
        """Restore what `arrays` gave.

        Raises:
            ValueError: if the arrays are not those of a memory of this capacity and these shapes. Nothing is changed then.
        """
        kinds = {name: (row.shape[1:], row.dtype) for name, row in named_leaves(self._like).items()}
        check_arrays(arrays, kinds, self.slots, self.num_envs)
        self.written = bool(arrays["size"].any())
        if self._whole is not None:
            self._whole._restore(arrays, self._first)
        else:
            self._restore(arrays, 0)

    def _restore(self, arrays: Mapping[str, NumpyArray], first: int) -> None:
        """Restore the rows of environments from `first` on."""
        self._state = self.library.fill(self.state, arrays, first)
        self.written = self.written or bool(arrays["size"].any())


AnyReplayMemory: TypeAlias = ReplayMemory[Any, Any]
