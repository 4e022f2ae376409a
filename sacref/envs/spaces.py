"""Which Gymnasium spaces the agents accept, and what they need to know of them."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from numpy.typing import DTypeLike, NDArray

from sacref.algorithm.tree import Tree, leaves, map_leaves
from sacref.spec.arrays import as_numpy, namespace
from sacref.storage.checkpoint import DTYPES
from sacref.storage.values import Like

AGENT_FLOATS = (np.dtype(np.float32), np.dtype(np.float64))
"""Dtypes that an agent can have; arrays of either become arrays of its own."""
INT64 = np.dtype(np.int64)
SIGNED: Mapping[str, str] = {"uint16": "int32", "uint32": "int64", "uint64": "int64"}
"""Unsigned dtype -> the one it is stored in on both backends: PyTorch computes hardly anything with these."""


@dataclass(frozen=True)
class Field:
    """A Box within a space of observations or states, of one environment."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    """The Box's own, in the machine's byte order; see `stored_dtype` for what the memory keeps."""
    longest_integer: np.dtype[Any] = INT64
    """That the backend has: JAX has int32 alone where its 64-bit mode is off."""

    def stored_dtype(self, float_dtype: DTypeLike) -> np.dtype[Any]:
        """The dtype in which it is stored, and models see it.

        `float_dtype` for float32 and float64; of unsigned integers of more than 8 bits a signed one; no integer of more bits than the
        backend has (a row with numbers beyond it is refused); else the Box's own.
        """
        if self.dtype in AGENT_FLOATS:
            return np.dtype(float_dtype)
        signed = np.dtype(SIGNED.get(self.dtype.name, self.dtype))
        return self.longest_integer if signed.kind == "i" and signed.itemsize > self.longest_integer.itemsize else signed

    @cached_property
    def kept(self) -> np.dtype[Any]:
        """The dtype in which rows are handed on: `stored_dtype`, with floats as the Box has them."""
        return self.stored_dtype(self.dtype)


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


def check_spaces(observation_space: Any, state_space: Any, action_space: Any, *, longest_integer: np.dtype[Any] = INT64) -> Spaces:
    """Refuse the spaces that this SAC cannot learn in.

    Args:
        observation_space: of one environment: a Box of any shape, of floats, integers or booleans, or a (nested) Dict of such.
        state_space: what the critics see beyond that: of the same kinds, or None.
        action_space: of one environment: a finite Box of floating-point numbers, low < high in every dimension. Any shape: its
            `n` numbers are the `n` dimensions of the action, in C order.
        longest_integer: that the backend has.

    Returns:
        Shapes, dtypes and bounds.

    Raises:
        TypeError: if a space is of another kind. ValueError: if a Box is empty, unbounded, or low is not below high.
    """
    low, high = _check_actions(action_space)
    return Spaces(
        observations=field_tree(observation_space, "observation_space", longest_integer),
        states=None if state_space is None else field_tree(state_space, "state_space", longest_integer),
        action_shape=tuple(action_space.shape),
        action_size=int(low.size),
        action_low=low,
        action_high=high,
    )


def field_tree(space: Any, name: str = "observation_space", longest_integer: np.dtype[Any] = INT64) -> Tree:
    """The Boxes of a space: a `Field`, or for a Dict space a dict of trees of them, in the space's order.

    Raises:
        TypeError: if the space, or one in it, is no Box, or of numbers that no memory stores. ValueError: if a Box, or the Dict, is empty.
    """
    if isinstance(space, gymnasium.spaces.Dict):
        if not space.spaces:
            raise ValueError(f"{name} is an empty Dict, expected at least one Box in it")
        for key in space.spaces:
            if not isinstance(key, str) or "." in key or not key:
                raise ValueError(f"{name} has the key {key!r}, expected a text without a dot: dots join the keys in names of arrays")
        return {key: field_tree(inner, f"{name}[{key!r}]", longest_integer) for key, inner in space.spaces.items()}
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
    _refuse_dtype(space, name, "TransformObservation")
    return Field(tuple(space.shape), np.dtype(space.dtype).newbyteorder("="), longest_integer)


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

    Each in its field's `kept` dtype, or as float32 or float64 where that is either of them.

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
    array = values if is_device_array(values) else as_numpy(values, name)
    expected = fields.shape
    if array.ndim != len(expected) + 1 or tuple(array.shape[1:]) != expected:
        raise ValueError(
            f"{name} have shape {tuple(array.shape)}, expected (envs, *{expected}) as the space says: "
            f"{'add the leading environment axis' if tuple(array.shape) == expected else 'check the environment and its wrappers'}"
        )
    if array.dtype == fields.kept:
        return array
    return _device_array_as(array, fields, name) if is_device_array(values) else _array_as(array, fields, name)


def _array_as(array: NDArray[Any], field: Field, name: str) -> NDArray[Any]:
    """A host array as `check_values` gives it.

    Raises:
        TypeError, ValueError: naming the array, if it could not be stored as it is.
    """
    if field.dtype in AGENT_FLOATS:
        native = array.dtype.newbyteorder("=")
        return exactly(array, native if native in AGENT_FLOATS else np.dtype(np.float64), name, says=field.dtype)
    return exactly(exactly(array, field.dtype, name), field.kept, name, says=field.dtype)


def _device_array_as(array: Any, field: Field, name: str) -> Any:
    """A device array as `check_values` gives it. Its dtype alone is judged: nothing waits for its values."""
    xp: Any = namespace(array)
    found = str(array.dtype).rpartition(".")[2]
    if field.dtype in AGENT_FLOATS and xp.isdtype(array.dtype, ("bool", "integral", "real floating")):
        # JAX has float64 where it has int64.
        return array if found in ("float32", "float64") else xp.astype(array, xp.float64 if field.longest_integer == INT64 else xp.float32)
    if found not in DTYPES or not (np.can_cast(found, field.dtype) or np.can_cast(found, field.kept)):
        raise _unlike(name, array.dtype, field.dtype)
    return xp.astype(array, getattr(xp, field.kept.name))


def exactly(array: NDArray[Any], dtype: np.dtype[Any], name: str, *, says: np.dtype[Any] | None = None) -> NDArray[Any]:
    """A host array in another dtype: integers as they are, floats to the nearest.

    Args:
        name: of the array, for the message. says: the dtype that its space says, where it is another.

    Raises:
        TypeError: if it is of another kind of numbers: text, fractions for integers. ValueError: if it holds numbers beyond the dtype.
    """
    if array.dtype.kind not in ("iub" if dtype.kind in "iub" else "fiub"):
        raise _unlike(name, array.dtype, says or dtype)
    with np.errstate(over="ignore"):
        converted = array.astype(dtype, copy=False)
    if dtype.kind in "iub":
        kept = np.array_equal(converted, array)
    else:
        kept = array.dtype.kind != "f" or bool((np.isfinite(converted) | ~np.isfinite(array)).all())
    if not kept:
        stored = "which the space says: give the space the dtype that the environment returns"
        if says not in (None, dtype):
            stored = f"in which {says} is stored here: make them smaller (JAX stores int64 after jax.config.update('jax_enable_x64', True))"
        raise ValueError(f"{name} hold numbers beyond {dtype}, {stored}")
    return converted


def _unlike(name: str, got: Any, says: np.dtype[Any]) -> TypeError:
    return TypeError(
        f"{name} have dtype {got}, expected {says} as the space says, since {got} would not be stored as it is: "
        f"give the space the dtype that the environment and its wrappers return"
    )


def _refuse_dtype(space: gymnasium.spaces.Box, name: str, wrapper: str) -> None:
    """Refuse a Box of numbers that neither the backends nor checkpoints hold, such as NumPy's long double.

    Raises:
        TypeError: naming the space.
    """
    if np.dtype(space.dtype).name not in DTYPES:
        raise TypeError(
            f"{name} is {space} of dtype {space.dtype}, expected one of {', '.join(DTYPES)}: wrap each environment in "
            f"gymnasium.wrappers.{wrapper} with such a Box, of float64 for instance"
        )


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
    _refuse_dtype(space, "action_space", "TransformAction")
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
