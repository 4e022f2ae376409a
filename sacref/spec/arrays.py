"""Arrays of any library: the operators and functions that NumPy, PyTorch and JAX share, and checks of dtypes and shapes."""

import builtins
from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias, TypeVar, cast, runtime_checkable

import array_api_compat.numpy
import numpy as np
from array_api_compat import array_namespace, is_torch_array
from numpy.typing import DTypeLike, NDArray

NumpyArray: TypeAlias = NDArray[Any]
"""A NumPy array of any dtype."""


@runtime_checkable
class Array(Protocol):
    """Any array of the Python array API standard: `numpy.ndarray`, `torch.Tensor`, `jax.Array`."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> object: ...
    @property
    def ndim(self) -> int: ...
    def __neg__(self) -> Any: ...
    def __invert__(self) -> Any: ...
    def __add__(self, other: Any, /) -> Any: ...
    def __radd__(self, other: Any, /) -> Any: ...
    def __sub__(self, other: Any, /) -> Any: ...
    def __rsub__(self, other: Any, /) -> Any: ...
    def __mul__(self, other: Any, /) -> Any: ...
    def __rmul__(self, other: Any, /) -> Any: ...
    def __truediv__(self, other: Any, /) -> Any: ...
    def __lt__(self, other: Any, /) -> Any: ...
    def __gt__(self, other: Any, /) -> Any: ...
    def __getitem__(self, key: Any, /) -> Any: ...


ArrayT = TypeVar("ArrayT", bound=Array)


@runtime_checkable
class Namespace(Protocol):
    """Functions of the array API standard."""

    @property
    def float32(self) -> object: ...
    @property
    def float64(self) -> object: ...
    @property
    def int32(self) -> object: ...
    @property
    def bool(self) -> object: ...
    def abs(self, x: ArrayT, /) -> ArrayT: ...
    def cos(self, x: ArrayT, /) -> ArrayT: ...
    def exp(self, x: ArrayT, /) -> ArrayT: ...
    def sqrt(self, x: ArrayT, /) -> ArrayT: ...
    def expm1(self, x: ArrayT, /) -> ArrayT: ...
    def log1p(self, x: ArrayT, /) -> ArrayT: ...
    def tanh(self, x: ArrayT, /) -> ArrayT: ...
    def where(self, condition: object, x1: Any, x2: Any, /) -> Any: ...
    def minimum(self, x1: ArrayT, x2: ArrayT | float, /) -> ArrayT: ...
    def maximum(self, x1: ArrayT, x2: ArrayT | float, /) -> ArrayT: ...
    def logical_and(self, x1: ArrayT, x2: ArrayT, /) -> ArrayT: ...
    def logical_or(self, x1: ArrayT, x2: ArrayT, /) -> ArrayT: ...
    def logical_not(self, x: ArrayT, /) -> ArrayT: ...
    def all(self, x: ArrayT, /, *, axis: int) -> ArrayT: ...
    def min(self, x: ArrayT, /, *, axis: int) -> ArrayT: ...
    def max(self, x: ArrayT, /, *, axis: int) -> ArrayT: ...
    def stack(self, arrays: Sequence[ArrayT], /) -> ArrayT: ...
    def concat(self, arrays: Sequence[ArrayT], /, *, axis: int | None = 0) -> ArrayT: ...
    def astype(self, x: ArrayT, dtype: object, /, *, copy: builtins.bool = True) -> ArrayT: ...
    def sum(self, x: ArrayT, /, *, axis: int | None = None, dtype: object = None) -> ArrayT: ...
    def cumulative_sum(self, x: ArrayT, /, *, axis: int | None = None, dtype: object = None) -> ArrayT: ...
    def argsort(self, x: ArrayT, /) -> ArrayT: ...
    def take_along_axis(self, x: ArrayT, indices: ArrayT, /, *, axis: int) -> ArrayT: ...
    def isfinite(self, x: ArrayT, /) -> ArrayT: ...
    def mean(self, x: ArrayT, /, *, axis: int) -> ArrayT: ...
    def asarray(self, x: object, /, *, dtype: object = None, device: object = None, copy: builtins.bool | None = None) -> Any: ...
    def isdtype(self, dtype: object, kind: str | tuple[str, ...], /) -> builtins.bool: ...
    def reshape(self, x: ArrayT, /, shape: tuple[int, ...]) -> ArrayT: ...
    def ones_like(self, x: ArrayT, /) -> ArrayT: ...
    def zeros_like(self, x: ArrayT, /) -> ArrayT: ...


def namespace(*arrays: Array) -> Namespace:
    """Return the array-API namespace that all `arrays` belong to.

    Raises:
        TypeError: if the arrays come from different libraries, or one of them is not an array.
    """
    if arrays and all(type(array) is np.ndarray for array in arrays):
        return cast(Namespace, array_api_compat.numpy)  # what is found below, in a tenth of the time
    return cast(Namespace, array_namespace(*arrays))


def as_numpy(values: object, name: str) -> NumpyArray:
    """Return numbers of any kind as a NumPy array on the host, to the bit; a NumPy array as it is.

    Args:
        values: an array of any library, on any device, or a (nested) list of numbers. A torch tensor leaves its gradients behind.
        name: of the values, for the message.

    Raises:
        ValueError: if the lists are of unequal lengths.
    """
    if type(values) is np.ndarray:
        return values
    if is_torch_array(values):
        tensor = values.detach().cpu()
        # NumPy has no bfloat16; each of its numbers is one of float32.
        return (tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor).numpy()
    if isinstance(values, list | tuple) and any(map(is_torch_array, values)):
        values = [as_numpy(value, name) for value in values]
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise ValueError(f"{name} are lists of unequal lengths, expected one shape for all rows: mend what makes them") from error
    return array.astype(np.float32) if array.dtype.name == "bfloat16" else array


def largest_finite(dtype: DTypeLike) -> float:
    """Return the largest number that is finite where it is rounded to a dtype: half a step beyond the dtype's own largest, in float32."""
    info = np.finfo(dtype)
    beyond = float(info.max) + 2.0 ** (int(info.maxexp) - info.nmant - 2)  # infinite in float64
    return float(np.nextafter(beyond, 0.0))


def require_one_dtype(function: str, **arrays: Array) -> Namespace:
    """Refuse arrays that do not share one dtype, float32 or float64; return their namespace.

    Raises:
        TypeError: naming the argument that differs, or is a number of Python's, and the fix.
    """
    xp = namespace(*arrays.values())
    for name, array in arrays.items():
        if not hasattr(array, "dtype"):  # Python's numbers belong to every namespace
            raise TypeError(f"{function}: {name} is the number {array}, expected an array: make it one, of the others' dtype and device")
    first = next(iter(arrays))
    expected = arrays[first].dtype
    if expected not in (xp.float32, xp.float64):
        raise TypeError(
            f"{function}: {first} has dtype {expected}, expected float32 or float64: "
            f"cast it before the call (low precision belongs in the layers below the last one)"
        )
    for name, array in arrays.items():
        if array.dtype != expected:
            raise TypeError(
                f"{function}: {name} has dtype {array.dtype}, expected {expected} as {first} has: "
                f"cast {name} to {expected}, so that nothing is promoted in silence"
            )
    return xp


def require_shape(function: str, name: str, array: Array, expected: tuple[int, ...], like: str) -> None:
    """Refuse an array whose shape is not `expected`, the shape that `like` describes. Nothing is broadcast.

    Raises:
        ValueError: with the shape that came, the one expected, and the repair that fits the difference.
    """
    got = tuple(array.shape)
    if got == expected:
        return
    if got == (*expected, 1):
        fix = f"drop the last axis of {name}"
    elif got == (1, *expected):
        fix = f"drop the first axis of {name}"
    elif (*got, 1) == expected:
        fix = f"add a last axis to {name}, or drop the last axis of the other argument"
    elif sorted(got) == sorted(expected):
        fix = f"permute the axes of {name}"
    else:
        fix = f"give {name} the batch shape of the other arguments; the spec broadcasts no batch axes"
    raise ValueError(f"{function}: {name} has shape {got}, expected {expected} ({like}): {fix}")


def require_critic_axis(function: str, name: str, q: Array, batch: tuple[int, ...], like: str) -> None:
    """Refuse values that are not `(critic, *batch)`.

    Raises:
        ValueError: with the shape that came, the one expected, and the repair that fits the difference.
    """
    got = tuple(q.shape)
    if got == batch:
        fix = f"add the critic axis, {name}[None]"
    elif got[1:] == batch:
        return
    elif got == (*batch, 1):
        fix = f"drop the last axis of {name} and add the critic axis in front, {name}[None]"
    elif got[:-1] == batch:
        fix = f"move the critic axis of {name} to the front"
    elif got[1:] == (*batch, 1):
        fix = f"drop the last axis of {name}"
    elif (*got[1:], 1) == batch:
        fix = f"drop the last axis of {like}"
    else:
        fix = f"stack the critics' values, each of shape {batch}, along a first axis"
    raise ValueError(f"{function}: {name} has shape {got}, expected (critic, *batch) with *batch {batch}, as {like}: {fix}")


def require_scalar_or_batch(function: str, name: str, array: Array, batch: tuple[int, ...]) -> None:
    """Refuse an array that is neither a scalar nor `(*batch,)`.

    Raises:
        ValueError: with the shape that came, the one expected, and the fix.
    """
    got = tuple(array.shape)
    if got not in ((), batch) and all(size == 1 for size in got):
        raise ValueError(f"{function}: {name} has shape {got}, expected () or {batch}: make {name} a scalar, {name}.reshape(())")
    if got != ():
        require_shape(function, name, array, batch, "() or *batch")
