"""Gymnasium spaces that the agents accept, and checks of values against them."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, NamedTuple, TypeAlias

import gymnasium
import numpy as np
from numpy.typing import DTypeLike, NDArray

from sacref.algorithm.tree import Tree, leaves, map_leaves, map_named, named_leaves
from sacref.spec.arrays import NumpyArray, as_numpy, namespace
from sacref.storage.checkpoint import DTYPES
from sacref.storage.values import Like

DType: TypeAlias = np.dtype[Any]

AGENT_FLOATS = (np.dtype(np.float32), np.dtype(np.float64))
"""Dtypes that an agent can have; arrays of either become arrays of its own."""
INT64 = np.dtype(np.int64)
SIGNED: Mapping[str, str] = {"uint16": "int32", "uint32": "int64", "uint64": "int64"}
"""Unsigned dtype -> the one it is stored in on both backends: PyTorch computes hardly anything with these."""


@dataclass(frozen=True)
class Field:
    """A Box within a space of observations or states, of one environment."""

    shape: tuple[int, ...]
    dtype: DType
    """The Box's own, in the machine's byte order; see `stored_dtype` for what the memory keeps."""
    longest_integer: DType = INT64
    """The longest integer of the backend: JAX has int32 alone where its 64-bit mode is off."""
    bounds: tuple[NumpyArray, NumpyArray] | None = field(default=None, compare=False, repr=False)
    """The Box's lowest and highest values, of its shape."""

    def stored_dtype(self, float_dtype: DTypeLike) -> DType:
        """Return the dtype in which it is stored, and models see it.

        `float_dtype` for float32 and float64; of unsigned integers of more than 8 bits a signed one; no integer of more bits than the
        backend has (a row with numbers beyond it is refused); else the Box's own.
        """
        if self.dtype in AGENT_FLOATS:
            return np.dtype(float_dtype)
        signed = np.dtype(SIGNED.get(self.dtype.name, self.dtype))
        return self.longest_integer if signed.kind == "i" and signed.itemsize > self.longest_integer.itemsize else signed

    @cached_property
    def kept(self) -> DType:
        """The dtype in which rows are handed on: `stored_dtype`, with floats as the Box has them."""
        return self.stored_dtype(self.dtype)


class Spaces(NamedTuple):
    """Shapes, dtypes and bounds of the spaces of one environment, without a leading axis."""

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


def check_spaces(observation_space: object, state_space: object, action_space: Any, *, longest_integer: DType = INT64) -> Spaces:
    """Refuse spaces that this SAC cannot learn in.

    Args:
        observation_space: of one environment: a Box of any shape, of floats, integers or booleans, or a (nested) Dict of such.
        state_space: what the critics see beyond that: of the same kinds, or None.
        action_space: of one environment: a finite Box of floating-point numbers, low < high in every dimension. Any shape: its
            `n` numbers are the `n` dimensions of the action, in C order.
        longest_integer: of the backend.

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


def field_tree(space: object, name: str = "observation_space", longest_integer: DType = INT64) -> Tree:
    """Return a `Field` for a Box, or for a Dict space a dict of trees of them, in the space's order.

    Raises:
        TypeError: if the space, or one in it, is no Box, or of numbers that no memory stores. ValueError: if a Box, or the Dict, is empty.
    """
    return map_named(partial(_field, longest_integer), name, space, require=_require_dict)


def _require_dict(name: str, space: object) -> None:
    if not isinstance(space, gymnasium.spaces.Dict):
        raise _no_box(name, space)
    if not space.spaces:
        raise ValueError(f"{name} is an empty Dict, expected at least one Box in it")
    for key in space.spaces:
        if not isinstance(key, str) or "." in key or not key:
            raise ValueError(f"{name} has the key {key!r}, expected a text without a dot: dots join the keys in names of arrays")


def _field(longest_integer: DType, name: str, space: object) -> Field:
    if not isinstance(space, gymnasium.spaces.Box):
        raise _no_box(name, space)
    if 0 in space.shape:
        raise ValueError(f"{name} is {space} of shape {space.shape}, expected at least one number: remove the empty axis")
    _refuse_dtype(space, name, "TransformObservation")
    return Field(tuple(space.shape), np.dtype(space.dtype).newbyteorder("="), longest_integer, (space.low, space.high))


def _no_box(name: str, space: object) -> TypeError:
    flatten = "wrap each environment in gymnasium.wrappers.FlattenObservation"
    fix = {
        gymnasium.spaces.Tuple: flatten,
        gymnasium.spaces.Discrete: f"{flatten}, which makes it one-hot",
        gymnasium.spaces.MultiDiscrete: f"{flatten}, which makes it one-hot",
        gymnasium.spaces.MultiBinary: flatten,
    }.get(type(space), "wrap each environment in gymnasium.wrappers.TransformObservation with a Box")
    return TypeError(f"{name} is {_describe(space)}, expected a gymnasium.spaces.Box, or a Dict of such: {fix}")


def flat_size(fields: Tree) -> int:
    """Count the numbers in all Boxes of a tree, of `Field`s or a space."""
    return sum(math.prod(field.shape) for field in leaves(fields))


def rows_like(space: Tree, rows: int) -> Tree:
    """Describe rows of a space for `refuse_unlike`; None for no space."""
    return map_leaves(lambda box: Like((rows, *box.shape), "fiub"), space)


def check_values(values: Tree, fields: Tree, name: str, is_device_array: Callable[[object], bool]) -> Tree:
    """Return `values` as a tree of arrays `(envs, *shape)` that branches as the fields do: NumPy, unless they are the backend's own.

    Each in its field's `kept` dtype, or as float32 or float64 where that is either of them.

    Raises:
        ValueError, TypeError: naming the array whose shape or kind of numbers, or the dict whose keys, are not the space's.
    """
    checked = map_named(partial(_check_array, is_device_array), name, fields, values, require=_require_keys)
    if isinstance(fields, dict):
        rows = {path: int(leaf.shape[0]) for path, leaf in named_leaves(checked).items()}
        if len(set(rows.values())) != 1:
            raise ValueError(f"{name} has keys of {rows} rows, expected as many of each: one per environment")
    return checked


def _require_keys(name: str, fields: Mapping[str, Tree], values: Tree) -> None:
    if not isinstance(values, Mapping):
        raise TypeError(f"{name} is a {type(values).__name__}, expected a dict with the keys {sorted(fields)} as the Dict space says")
    if set(values) != set(fields):
        missing, unknown = sorted(set(fields) - set(values)), sorted(set(values) - set(fields), key=str)
        raise ValueError(f"{name} lacks the keys {missing} and has the unknown keys {unknown}: give what the Dict space says")


def _check_array(is_device_array: Callable[[object], bool], name: str, field: Field, values: Tree) -> Tree:
    if isinstance(values, Mapping):
        raise TypeError(f"{name} is a dict with the keys {sorted(values, key=str)}, expected one array: the space is a Box")
    array = values if is_device_array(values) else as_numpy(values, name)
    expected = field.shape
    if array.ndim != len(expected) + 1 or tuple(array.shape[1:]) != expected:
        raise ValueError(
            f"{name} have shape {tuple(array.shape)}, expected (envs, *{expected}) as the space says: "
            f"{'add the leading environment axis' if tuple(array.shape) == expected else 'check the environment and its wrappers'}"
        )
    if array.dtype == field.kept:
        return array
    return _device_array_as(array, field, name) if is_device_array(values) else _array_as(array, field, name)


def _array_as(array: NumpyArray, field: Field, name: str) -> NumpyArray:
    if field.dtype in AGENT_FLOATS:
        native = array.dtype.newbyteorder("=")
        return exactly(array, native if native in AGENT_FLOATS else np.dtype(np.float64), name, says=field.dtype)
    return exactly(exactly(array, field.dtype, name), field.kept, name, says=field.dtype)


def _device_array_as(array: Tree, field: Field, name: str) -> Tree:
    """Convert by the dtype alone: nothing waits for the array's values."""
    xp = namespace(array)
    found = str(array.dtype).rpartition(".")[2]
    if field.dtype in AGENT_FLOATS and xp.isdtype(array.dtype, ("bool", "integral", "real floating")):
        # JAX has float64 where it has int64.
        return array if found in ("float32", "float64") else xp.astype(array, xp.float64 if field.longest_integer == INT64 else xp.float32)
    if found not in DTYPES or not (np.can_cast(found, field.dtype) or np.can_cast(found, field.kept)):
        raise _unlike(name, array.dtype, field.dtype)
    return xp.astype(array, getattr(xp, field.kept.name))


def exactly(array: NumpyArray, dtype: DType, name: str, *, says: DType | None = None) -> NumpyArray:
    """Convert a host array: integers as they are, floats to the nearest.

    Args:
        name: for the message. says: the dtype of the space, where it is another.

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


def _unlike(name: str, got: object, says: DType) -> TypeError:
    return TypeError(
        f"{name} have dtype {got}, expected {says} as the space says, since {got} would not be stored as it is: "
        f"give the space the dtype that the environment and its wrappers return"
    )


def _refuse_dtype(space: gymnasium.spaces.Box, name: str, wrapper: str) -> None:
    """Refuse numbers that neither the backends nor checkpoints hold, such as NumPy's long double."""
    if np.dtype(space.dtype).name not in DTYPES:
        raise TypeError(
            f"{name} is {space} of dtype {space.dtype}, expected one of {', '.join(DTYPES)}: wrap each environment in "
            f"gymnasium.wrappers.{wrapper} with such a Box, of float64 for instance"
        )


def _check_actions(space: object) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
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


def _describe(space: object) -> str:
    if isinstance(space, gymnasium.Space):
        return f"{space}"
    return f"a {type(space).__name__} ({space!r})"
