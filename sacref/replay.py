"""What the replay memories of the backends share: the checks of their size, and of what a checkpoint says they hold."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray


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
