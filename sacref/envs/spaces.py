"""Which Gymnasium spaces the agents accept, and what they need to know of them."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from numpy.typing import DTypeLike, NDArray

from sacref.envs.values import Like
from sacref.spec.arrays import namespace
from sacref.tree import Tree, leaves, map_leaves


@dataclass(frozen=True)
class Field:
    """A Box within a space of observations or states, of one environment."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    """The Box's own; see `stored_dtype` for what the memory keeps."""

    def stored_dtype(self, float_dtype: DTypeLike) -> np.dtype[Any]:
        """The dtype in which it is stored: `float_dtype` for float32 and float64, else the Box's own."""
        return np.dtype(float_dtype) if self.dtype in (np.dtype(np.float32), np.dtype(np.float64)) else self.dtype


class Spaces(NamedTuple):
    """What the agents need to know of an environment's spaces (those of one environment, without a leading axis)."""

    observations: Tree
    """A `Field`, or a dict of trees of them."""
    states: Tree | None
    """The same of the privileged states, or None."""
    action_shape: tuple[int, ...]
    """The Box's own. Models and memory see actions flattened to `action_size`; `act` returns `(envs, *action_shape)`."""
    action_size: int
    """The number of action dimensions, dim(A)."""
    action_low: NDArray[np.float64]
    """`(action_size,)`, in the Box's units."""
    action_high: NDArray[np.float64]
    """`(action_size,)`, in the Box's units."""


def check_spaces(observation_space: Any, state_space: Any, action_space: Any) -> Spaces:
    """Refuse the spaces that this SAC cannot learn in.

    Args:
        observation_space: of one environment: a Box of any shape, of floats, integers or booleans, or a (nested) Dict of such.
        state_space: what the critics see beyond that: of the same kinds, or None.
        action_space: of one environment: a finite Box of floating-point numbers, low < high in every dimension. Any shape: its
            `n` numbers are the `n` dimensions of the action, in C order.

    Returns:
        Shapes, dtypes and bounds.

    Raises:
        TypeError: if a space is of another kind. ValueError: if a Box is empty, unbounded, or low is not below high.
    """
    low, high = _check_actions(action_space)
    return Spaces(
        observations=field_tree(observation_space, "observation_space"),
        states=None if state_space is None else field_tree(state_space, "state_space"),
        action_shape=tuple(action_space.shape),
        action_size=int(low.size),
        action_low=low,
        action_high=high,
    )


def field_tree(space: Any, name: str = "observation_space") -> Tree:
    """The Boxes of a space: a `Field`, or for a Dict space a dict of trees of them, in the space's order.

    Raises:
        TypeError: if the space, or one in it, is no Box. ValueError: if a Box, or the Dict, is empty.
    """
    if isinstance(space, gymnasium.spaces.Dict):
        if not space.spaces:
            raise ValueError(f"{name} is an empty Dict, expected at least one Box in it")
        for key in space.spaces:
            if not isinstance(key, str) or "." in key or not key:
                raise ValueError(f"{name} has the key {key!r}, expected a text without a dot: dots join the keys in names of arrays")
        return {key: field_tree(inner, f"{name}[{key!r}]") for key, inner in space.spaces.items()}
    if not isinstance(space, gymnasium.spaces.Box):
        flatten = "wrap each environment in gymnasium.wrappers.FlattenObservation"
        fix = {
            gymnasium.spaces.Tuple: flatten,
            gymnasium.spaces.Discrete: f"{flatten}, which makes it one-hot",
            gymnasium.spaces.MultiDiscrete: f"{flatten}, which makes it one-hot",
            gymnasium.spaces.MultiBinary: flatten,
        }.get(type(space), "wrap each environment in gymnasium.wrappers.TransformObservation with a Box")
        raise TypeError(f"{name} is {_describe(space)}, expected a gymnasium.spaces.Box, or a Dict of such: {fix}")
    if 0 in space.shape:
        raise ValueError(f"{name} is {space} of shape {space.shape}, expected at least one number: remove the empty axis")
    return Field(tuple(space.shape), np.dtype(space.dtype))


def flat_size(fields: Tree) -> int:
    """How many numbers there are in all Boxes of a tree."""
    return sum(math.prod(field.shape) for field in leaves(fields))


def boxes(space: Any) -> Tree:
    """The Boxes themselves, in the tree that `field_tree` gives."""
    if isinstance(space, gymnasium.spaces.Dict):
        return {key: boxes(inner) for key, inner in space.spaces.items()}
    return space


def rows_like(space: Any, rows: int) -> Tree:
    """What rows of a space are like, for `refuse_unlike`; None for no space."""
    return map_leaves(lambda box: Like((rows, *box.shape), "fiub"), boxes(space))


def check_values(values: Any, fields: Tree, name: str, is_device_array: Callable[[Any], bool]) -> Tree:
    """`values` as a tree of arrays `(envs, *shape)` in the place of the fields: NumPy, unless they are the backend's own.

    Raises:
        ValueError, TypeError: naming the array whose shape or kind of numbers, or the dict whose keys, are not the space's.
    """
    if isinstance(fields, dict):
        if not isinstance(values, Mapping):
            raise TypeError(f"{name} is a {type(values).__name__}, expected a dict with the keys {sorted(fields)} as the Dict space says")
        if set(values) != set(fields):
            missing, unknown = sorted(set(fields) - set(values)), sorted(set(values) - set(fields), key=str)
            raise ValueError(f"{name} lacks the keys {missing} and has the unknown keys {unknown}: give what the Dict space says")
        checked = {key: check_values(values[key], inner, f"{name}[{key!r}]", is_device_array) for key, inner in fields.items()}
        rows = {key: int(leaves(inner)[0].shape[0]) for key, inner in checked.items()}
        if len(set(rows.values())) != 1:
            raise ValueError(f"{name} has keys of {rows} rows, expected as many of each: one per environment")
        return checked
    if isinstance(values, Mapping):
        raise TypeError(f"{name} is a dict with the keys {sorted(values, key=str)}, expected one array: the space is a Box")
    array = values if is_device_array(values) else np.asarray(values)
    expected = fields.shape
    if array.ndim != len(expected) + 1 or tuple(array.shape[1:]) != expected:
        raise ValueError(
            f"{name} have shape {tuple(array.shape)}, expected (envs, *{expected}) as the space says: "
            f"{'add the leading environment axis' if tuple(array.shape) == expected else 'check the environment and its wrappers'}"
        )
    if array.dtype != fields.dtype:
        _refuse_lossy(array, fields.dtype, name, device=is_device_array(values))
    return array


def _refuse_lossy(array: Any, dtype: np.dtype[Any], name: str, *, device: bool) -> None:
    """Refuse what could not be stored as it is: no numbers, fractions in a space of integers, integers beyond its dtype.

    Of device arrays the dtype alone is judged: nothing waits for their values.

    Raises:
        TypeError, ValueError: naming the array.
    """
    if device:
        xp: Any = namespace(array)
        fits = xp.isdtype(array.dtype, ("bool", "integral") if dtype.kind in "iub" else ("bool", "integral", "real floating"))
    else:
        fits = array.dtype.kind in ("iub" if dtype.kind in "iub" else "fiub")
    if not fits:
        raise TypeError(
            f"{name} have dtype {array.dtype}, expected {dtype} as the space says, since {array.dtype} would not be stored as it is: "
            f"give the space the dtype that the environment and its wrappers return"
        )
    if dtype.kind in "iub" and not device and not np.array_equal(array.astype(dtype), array):
        raise ValueError(f"{name} hold numbers beyond {dtype}, which the space says: give the space the dtype that the environment returns")


def _check_actions(space: Any) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    if not isinstance(space, gymnasium.spaces.Box):
        raise TypeError(
            f"action_space is {_describe(space)}: SAC here needs a gymnasium.spaces.Box of floating-point numbers; "
            f"choose a task with continuous actions, or another algorithm for discrete ones"
        )
    if not np.issubdtype(space.dtype, np.floating):
        raise TypeError(
            f"action_space is {space}: SAC here needs a Box of floating-point numbers, got dtype {space.dtype}; "
            f"wrap each environment in gymnasium.wrappers.TransformAction with a float32 Box"
        )
    if 0 in space.shape:
        raise ValueError(f"action_space is {space} of shape {space.shape}, expected at least one number: remove the empty axis")
    low, high = np.asarray(space.low, np.float64).reshape(-1), np.asarray(space.high, np.float64).reshape(-1)
    # Bounds such as float32's largest number are "unbounded" in disguise: the width must be a float32 too.
    bounded = np.isfinite(low) & np.isfinite(high)
    bounded[bounded] &= high[bounded] / 2 - low[bounded] / 2 < np.finfo(np.float32).max / 2
    if not bounded.all():
        raise ValueError(
            f"action_space is {space}: SAC here needs finite bounds, got low {low[~bounded]} and high {high[~bounded]} in dimensions "
            f"{np.flatnonzero(~bounded).tolist()}; wrap each environment in gymnasium.wrappers.RescaleAction (unbounded: first in "
            f"gymnasium.wrappers.TransformAction with a finite Box; ClipAction alone does not bound the space)"
        )
    if not (low < high).all():
        wrong = np.flatnonzero(~(low < high))
        raise ValueError(
            f"action_space is {space}: expected low < high, got low {low[wrong]} and high {high[wrong]} in dimensions {wrong.tolist()}; "
            f"remove the dimensions that cannot move, with gymnasium.wrappers.TransformAction"
        )
    return low, high


def _describe(space: Any) -> str:
    if isinstance(space, gymnasium.Space):
        return f"{space}"
    return f"a {type(space).__name__} ({space!r})"
