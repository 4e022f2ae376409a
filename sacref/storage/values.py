"""Python values as JSON and named NumPy arrays, and back; types are kept exactly, since arithmetic depends on them."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from sacref.spec.arrays import NumpyArray
from sacref.storage.checkpoint import DTYPES, short

DEEPEST = 50
"""Lists and dicts within each other that are encoded. One more is decoded: a checkpoint holds the states of callbacks in a list."""
LARGEST_TEXT = 1000
"""Digits of an integer or float that is written as text."""
LARGEST_INTEGER = 2**53
"""Beyond it an integer is written as text: not every reader of JSON keeps it."""


class UnsupportedError(TypeError):
    """A value that cannot be encoded; the message names it."""


def encode(value: Any, name: str, arrays: dict[str, NumpyArray], *, depth: int = 0) -> object:
    """Encode a value as JSON; its arrays are named there.

    Args:
        value: None, a number, text, an array of a dtype that a checkpoint holds, or lists, tuples and dicts (with keys of text) of those.
            Arrays of either byte order are written in the machine's own.
        name: of the value; its arrays' names begin with it.
        arrays: receives copies of its arrays.
        depth: lists and dicts that the value lies in.

    Raises:
        UnsupportedError: if it is, or holds, something else, if two arrays in it have one name, or if too many lists and dicts lie within
            each other.
    """
    if depth > DEEPEST:
        raise UnsupportedError(f"{name} lies in {depth} lists and dicts, expected at most {DEEPEST}: write it as a flat list or an array")
    kind = type(value)
    if value is None or kind in (bool, str) or (kind is int and abs(value) <= LARGEST_INTEGER) or (kind is float and math.isfinite(value)):
        return value
    if kind in (int, float):
        return {"is": "integer" if kind is int else "float", "of": str(value)}
    if kind is np.ndarray or isinstance(value, np.generic):
        if value.dtype.name not in DTYPES:
            raise UnsupportedError(f"{name} has dtype {value.dtype}, expected one of {', '.join(DTYPES)}")
        if name in arrays:
            raise UnsupportedError(f"{name} comes twice: give its keys names without dots")
        arrays[name] = np.array(value, value.dtype.newbyteorder("="), order="C")
        return {"is": "array" if kind is np.ndarray else "scalar", "of": name}
    if kind in (list, tuple):
        items = [encode(item, f"{name}.{number}", arrays, depth=depth + 1) for number, item in enumerate(value)]
        return {"is": "tuple", "of": items} if kind is tuple else items
    if isinstance(value, Mapping):
        if odd := [key for key in value if type(key) is not str]:
            raise UnsupportedError(f"{name} has the keys {odd}, expected text")
        return {"is": "dict", "of": {key: encode(item, f"{name}.{key}", arrays, depth=depth + 1) for key, item in value.items()}}
    raise UnsupportedError(
        f"{name} is a {kind.__module__}.{kind.__qualname__}, expected numbers, text, NumPy arrays, or lists and dicts of those"
    )


def decode(value: object, arrays: Mapping[str, NumpyArray], *, depth: int = 0) -> Any:
    """Return the value that `encode` was given, with copies of its arrays.

    Raises:
        ValueError: if `encode` makes no such value, or an array is missing.
    """
    if depth > DEEPEST + 1:
        raise ValueError(f"more than {DEEPEST + 1} lists and dicts lie within each other")
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list):
        return [decode(item, arrays, depth=depth + 1) for item in value]
    if isinstance(value, dict) and value.keys() == {"is", "of"}:
        kind, of = value["is"], value["of"]
        if kind == "dict" and isinstance(of, dict):
            return {key: decode(item, arrays, depth=depth + 1) for key, item in of.items()}
        if kind == "tuple" and isinstance(of, list):
            return tuple(decode(item, arrays, depth=depth + 1) for item in of)
        if kind in ("array", "scalar") and isinstance(of, str):
            if of not in arrays:
                raise ValueError(f"the array {short.repr(of)} is missing")
            if kind == "array":
                return np.array(arrays[of], order="C")
            if arrays[of].shape == ():
                return arrays[of][()]
        if kind in ("integer", "float") and isinstance(of, str) and len(of) <= LARGEST_TEXT:
            return int(of) if kind == "integer" else float(of)
    raise ValueError(f"{short.repr(value)} stands for no value")


class Like(NamedTuple):
    """The shape of an array, None for any length, and the kinds that its dtype may have."""

    shape: tuple[int | None, ...]
    kinds: str


class Maybe(NamedTuple):
    """A value that may be None."""

    like: object


def refuse_unlike(name: str, value: Any, like: Any) -> None:
    """Refuse a decoded value that does not have a given form.

    Args:
        name: of the value, for the message.
        like: a `Like` or `Maybe`; a type; None; a dict: key -> form, where `...` stands for any other key; a tuple: the forms of a list
            or tuple of that length; a list of one form, which all elements have.

    Raises:
        ValueError: naming the first that differs.
    """
    if isinstance(like, Maybe):
        if value is not None:
            refuse_unlike(name, value, like.like)
        return
    if isinstance(like, Like):
        alike = isinstance(value, np.ndarray) and value.dtype.kind in like.kinds and value.ndim == len(like.shape)
        alike = alike and all(size is None or size == found for size, found in zip(like.shape, value.shape, strict=True))
    elif isinstance(like, dict):
        alike = isinstance(value, dict) and (... in like or value.keys() == like.keys())
    elif isinstance(like, tuple):
        alike = isinstance(value, list | tuple) and len(value) == len(like)
    elif isinstance(like, list):
        alike = isinstance(value, list | tuple)
    else:
        alike = value is None if like is None else type(value) is like
    if not alike:
        found = f"an array {value.dtype} {value.shape}" if isinstance(value, np.ndarray) else short.repr(value)
        raise ValueError(f"{name} is {found}, expected {_described(like)}")
    if isinstance(like, dict):
        for key, inner in value.items():
            refuse_unlike(f"{name}, {short.repr(key)}", inner, like[key] if key in like else like[...])
    elif isinstance(like, tuple | list) and not isinstance(like, Like):
        for number, inner in enumerate(value):
            refuse_unlike(f"{name}, {number}", inner, like[number] if isinstance(like, tuple) else like[0])


def _described(like: Any) -> str:
    if isinstance(like, Like):
        return f"an array of shape {like.shape} of the kinds {like.kinds!r}"
    if isinstance(like, dict):
        return f"a dict of {[key for key in like if key is not ...]}"
    if isinstance(like, tuple | list):
        return f"a list of {len(like)}" if isinstance(like, tuple) else "a list"
    return "nothing" if like is None else f"a {like.__name__}"
