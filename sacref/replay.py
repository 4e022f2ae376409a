"""What the replay memories of the backends share: the checks of size and of checkpoints, and the rows that wait on the host."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sacref.types import Transition

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


def check_arrays(arrays: Mapping[str, NDArray[Any]], rings: Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]], capacity: int) -> None:
    """Refuse arrays that are not `size` rows of each ring, with a `head` and a `size` that a ring of `capacity` rows can have.

    Raises:
        ValueError: naming the array.
    """
    if set(arrays) != {*rings, "head", "size"}:
        raise ValueError(f"memory: the arrays are {sorted(arrays)}, expected {sorted([*rings, 'head', 'size'])}")
    for name in ("head", "size"):
        if arrays[name].shape != () or not np.issubdtype(arrays[name].dtype, np.integer):
            raise ValueError(f"memory: {name} has shape {arrays[name].shape} and dtype {arrays[name].dtype}, expected one integer")
    head, size = int(arrays["head"]), int(arrays["size"])
    if not (0 <= size <= capacity and 0 <= head < capacity and (size == capacity or head == size % capacity)):
        raise ValueError(f"memory: head {head} and size {size} do not fit a capacity of {capacity}: use the capacity it was saved with")
    for name, (shape, dtype) in rings.items():
        if arrays[name].shape != (size, *shape) or arrays[name].dtype != dtype:
            raise ValueError(
                f"memory: {name} has shape {arrays[name].shape} and dtype {arrays[name].dtype}, expected {(size, *shape)} and {dtype}"
            )


def check_block(rows: int, capacity: int) -> None:
    """Refuse rows that are stored together and do not fit into the ring.

    Raises:
        ValueError: if there are more than `capacity`.
    """
    if rows > capacity:
        raise ValueError(
            f"ReplayMemory: {rows} rows are stored together (chunk times environments), the capacity is {capacity}: "
            f"lower chunk, or make the memory larger"
        )


class Staging:
    """Rows of NumPy arrays on their way into a ring, handed over in blocks of one shape, so that one compiled function takes them all.

    Args:
        like: arrays with the rows' dtypes and shapes.
        rows: rows of a block.
    """

    def __init__(self, like: Transition[NDArray[Any]], rows: int) -> None:
        self.rows = rows
        self._dtypes = [None if field is None else field.dtype for field in like]
        self._waiting: list[tuple[Transition[NDArray[Any]], NDArray[np.bool_]]] = []

    def __len__(self) -> int:
        """How many rows wait."""
        return sum(keep.shape[0] for _, keep in self._waiting)

    @property
    def full(self) -> bool:
        """Whether the block must be taken before more rows can be added."""
        return len(self) >= self.rows

    def add(self, transition: Transition[NDArray[Any]], keep: NDArray[np.bool_]) -> None:
        """Copy rows, `(envs, ...)`; the caller may write into its arrays again.

        Raises:
            ValueError: if they do not fit into what is left of the block.
        """
        if len(self) + keep.shape[0] > self.rows:
            raise ValueError(f"ReplayMemory: {keep.shape[0]} rows came, room is for {self.rows - len(self)}: add num_envs rows at a time")
        fields: list[Any] = [
            None if dtype is None else np.array(values, dtype) for dtype, values in zip(self._dtypes, transition, strict=True)
        ]
        self._waiting.append((Transition(*fields), np.array(keep, np.bool_)))

    def take(self) -> tuple[Transition[NDArray[Any]], NDArray[np.bool_]]:
        """The rows that wait, in order, filled up to a block with rows that are not kept: `(rows, ...)` and `(rows,)`."""
        waiting, self._waiting = self._waiting, []
        if len(waiting) == 1 and waiting[0][1].shape[0] == self.rows:
            return waiting[0]
        missing = self.rows - sum(keep.shape[0] for _, keep in waiting)

        def block(arrays: list[Any]) -> Any:
            return None if arrays[0] is None else np.concatenate([*arrays, np.zeros((missing, *arrays[0].shape[1:]), arrays[0].dtype)])

        fields = [block([row[i] for row, _ in waiting]) for i in range(len(self._dtypes))]
        return Transition(*fields), block([keep for _, keep in waiting])
