"""Python values as named NumPy arrays and what JSON can hold, and back: each of the very type that it was, as its arithmetic is too."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sacref.checkpoint import DTYPES

LARGEST_INTEGER = 2**53
"""Beyond it an integer is written as text: not every reader of JSON keeps it."""


class UnsupportedError(TypeError):
    """A value that has no such form; the message names it."""


def encode(value: Any, name: str, arrays: dict[str, NDArray[Any]]) -> Any:
    """What JSON can hold in the place of a value.

    Args:
        value: None, a number, text, an array of a type that a checkpoint holds, or lists, tuples and dicts (with keys of text) of those.
        name: its own; its arrays' names begin with it.
        arrays: where copies of its arrays are put.

    Raises:
        UnsupportedError: if it is, or holds, something else.
    """
    kind = type(value)
    if value is None or kind in (bool, str) or (kind is int and abs(value) <= LARGEST_INTEGER) or (kind is float and math.isfinite(value)):
        return value
    if kind is int:
        return {"is": "integer", "of": str(value)}
    if kind is float:
        return {"is": "float", "of": str(value)}
    if kind is np.ndarray or isinstance(value, np.generic):
        if value.dtype.name not in DTYPES or not value.dtype.isnative:
            raise UnsupportedError(f"{name} has dtype {value.dtype}, expected one of {', '.join(DTYPES)}")
        arrays[name] = np.array(value, order="C")
        return {"is": "array" if kind is np.ndarray else "scalar", "of": name}
    if kind in (list, tuple):
        items = [encode(item, f"{name}.{number}", arrays) for number, item in enumerate(value)]
        return {"is": "tuple", "of": items} if kind is tuple else items
    if isinstance(value, Mapping):
        if odd := [key for key in value if type(key) is not str]:
            raise UnsupportedError(f"{name} has the keys {odd}, expected text")
        return {"is": "dict", "of": {key: encode(item, f"{name}.{key}", arrays) for key, item in value.items()}}
    raise UnsupportedError(
        f"{name} is a {kind.__module__}.{kind.__qualname__}, expected numbers, text, NumPy arrays, or lists and dicts of those"
    )


def decode(value: Any, arrays: Mapping[str, NDArray[Any]]) -> Any:
    """The value that `encode` was given. Its arrays are copies.

    Raises:
        ValueError: if it is nothing that `encode` makes, or an array is missing.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list):
        return [decode(item, arrays) for item in value]
    if isinstance(value, dict) and value.keys() == {"is", "of"}:
        kind, of = value["is"], value["of"]
        if kind == "dict" and isinstance(of, dict):
            return {key: decode(item, arrays) for key, item in of.items()}
        if kind == "tuple" and isinstance(of, list):
            return tuple(decode(item, arrays) for item in of)
        if kind in ("array", "scalar") and isinstance(of, str):
            if of not in arrays:
                raise ValueError(f"the array {of!r} is missing")
            if kind == "array":
                return np.array(arrays[of], order="C")
            if arrays[of].shape == ():
                return arrays[of][()]
        if kind in ("integer", "float") and isinstance(of, str):
            return int(of) if kind == "integer" else float(of)
    raise ValueError(f"{str(value)[:80]} stands for no value")
