"""What the replay memories of the backends share: the checks of size and of checkpoints, and the rows that wait on the host."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sacref.types import Transition


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


class Staging:
    """Rows of NumPy arrays on their way into a ring, handed over in blocks of one shape, so that one compiled function takes them all.

    Args:
        like: arrays with the rows' dtypes and shapes.
        rows: rows of a block.
        capacity: of the ring.

    Raises:
        ValueError: if a block does not fit into the ring.
    """

    def __init__(self, like: Transition[NDArray[Any]], rows: int, capacity: int) -> None:
        if rows > capacity:
            raise ValueError(
                f"ReplayMemory: {rows} rows are stored together (chunk times environments), the capacity is {capacity}: "
                f"lower chunk, or make the memory larger"
            )
        self.rows = rows
        self._like = like
        self._fields = [None if field is None else field.dtype for field in like]
        self._nothing = self._block(like, np.empty(0, np.bool_))
        self._waiting: list[tuple[Transition[NDArray[Any]], NDArray[np.bool_]]] = []

    def __len__(self) -> int:
        """How many rows wait."""
        return sum(keep.shape[0] for _, keep in self._waiting)

    @property
    def full(self) -> bool:
        """Whether the block must be taken before more rows can be added."""
        return len(self) >= self.rows

    def add(self, transition: Transition[NDArray[Any]], keep: NDArray[np.bool_]) -> None:
        """Copy rows, `(envs, ...)`; the caller may write into its arrays again."""
        fields: list[Any] = [
            None if dtype is None else np.array(values, dtype) for dtype, values in zip(self._fields, transition, strict=True)
        ]
        self._waiting.append((Transition(*fields), np.array(keep, np.bool_)))

    def take(self) -> tuple[Transition[NDArray[Any]], NDArray[np.bool_]]:
        """The rows that wait, in order, filled up to a block with rows that are not kept: `(rows, ...)` and `(rows,)`."""
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return self._nothing
        if len(waiting) == 1 and waiting[0][1].shape[0] == self.rows:
            return waiting[0]
        fields: list[Any] = [
            None if dtype is None else np.concatenate([row[i] for row, _ in waiting]) for i, dtype in enumerate(self._fields)
        ]
        return self._block(Transition(*fields), np.concatenate([keep for _, keep in waiting]))

    def _block(self, rows: Transition[NDArray[Any]], keep: NDArray[np.bool_]) -> tuple[Transition[NDArray[Any]], NDArray[np.bool_]]:
        missing = self.rows - keep.shape[0]

        def filled(array: NDArray[Any]) -> NDArray[Any]:
            return np.concatenate([array, np.zeros((missing, *array.shape[1:]), array.dtype)])

        return rows.map(filled), filled(keep)
