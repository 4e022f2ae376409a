"""Checks of the configuration's fields, each the metadata of its field, and the values of fields as JSON holds them."""

import math
import os
import reprlib
from collections.abc import Callable, Mapping
from pathlib import Path, PurePath
from typing import Any, TypeAlias

import numpy as np

from sacref.config.callables import NotFoundError, find
from sacref.spec.schedules import SCHEDULES

PARTS = ("policy", "critic", "entropy")
"""Names of what learns, in the order of whatever is one for each."""

shortened: reprlib.Repr = reprlib.Repr()
shortened.maxstring = shortened.maxother = 160


Rule: TypeAlias = Mapping[str, Any]
"""Metadata of a field; under "check" the function that turns an assigned value into the field's, or raises `ExpectedError`."""


class ExpectedError(ValueError):
    """A value that its field does not take; the message says what the field should have held."""


def rule(
    wanted: str,
    accept: Callable[[Any], bool],
    *,
    read: Callable[[Any], object] = lambda value: value,
    none: bool = False,
    three: bool = False,
) -> Rule:
    """Return the metadata of a field: the check that turns an assigned value into the field's.

    Args:
        wanted: what the field takes, for the message.
        accept: whether a value is one of those, after `read`.
        read: turns what was assigned, with Python's scalars for NumPy's, into a value of the field.
        none: whether None is taken, too.
        three: whether three of them are taken, too, in the order of `PARTS`.
    """

    def one(value: object) -> object:
        value = plain(value)
        if value is None and none:
            return None
        value = read(value)
        if not accept(value):
            raise ExpectedError(wanted)
        return value

    def check(value: object) -> object:
        value = value.tolist() if three and isinstance(value, np.ndarray) else value
        if not three or not isinstance(value, list | tuple):
            return one(value)
        if len(value) != len(PARTS):
            raise ExpectedError(f"{wanted}; {len(value)} came")
        return tuple(map(one, value))

    return {"check": check}


def integer(low: int, high: int | None = None) -> Rule:
    """Return the rule of an integer within bounds, the bounds included."""
    wanted = f"an integer >= {low}" if high is None else f"an integer from {low} to {high}"
    return rule(wanted, lambda value: is_integer(value) and low <= value and (high is None or value <= high))


def integer_or(wanted: str, low: int | None, *names: str) -> Rule:
    """Return the rule of an integer from `low` on, or one of some names; of None, too, where there are no names."""
    return rule(
        wanted,
        lambda value: (is_integer(value) and (low is None or value >= low)) or (isinstance(value, str) and value in names),
        none=not names,
    )


def number(wanted: str, accept: Callable[[float], bool] = lambda value: True, *, none: bool = False, three: bool = False) -> Rule:
    """Return the rule of a finite number."""
    return rule(wanted, lambda value: math.isfinite(value) and accept(value), read=_as_float, none=none, three=three)


def flag() -> Rule:
    """Return the rule of a boolean."""
    return rule("True or False", lambda value: isinstance(value, bool))


def text() -> Rule:
    """Return the rule of text, or of a path, which is text then."""
    return rule(
        "a string", lambda value: isinstance(value, str), read=lambda value: os.fspath(value) if isinstance(value, os.PathLike) else value
    )


def choice(*names: str) -> Rule:
    """Return the rule of one of some names."""
    return rule(f"one of {', '.join(names)}", lambda value: isinstance(value, str) and value in names)


def named(wanted: str, *methods: str) -> Rule:
    """Return the rule of a callable, with methods where they are named, of its name, or of None."""
    return rule(
        wanted,
        lambda value: callable(value) and all(callable(getattr(value, method, None)) for method in methods),
        read=lambda value: _find(value) if isinstance(value, str) else value,
        none=True,
    )


def scheduler() -> Rule:
    """Return the rule of a schedule's callable, of its name or of None, or of three of those."""
    return rule(
        f'one of {", ".join(SCHEDULES)}, a callable, its name as "module:name", or None; '
        "or three of those in the order (policy, critic, entropy)",
        callable,
        read=lambda value: SCHEDULES.get(value) or (_find(value) if ":" in value else None) if isinstance(value, str) else value,
        none=True,
        three=True,
    )


def arguments(*, three: bool = False) -> Rule:
    """Return the rule of keyword arguments, or of three times some."""
    return rule(
        "a dict of keyword arguments" + (", or three of them in the order (policy, critic, entropy)" if three else ""),
        lambda value: isinstance(value, dict) and all(isinstance(name, str) for name in value),
        read=_read_again,
        three=three,
    )


def _find(name: str) -> object:
    if ":" not in name:
        raise ExpectedError('a callable, or its name as "module:name"')
    try:
        return find(name)
    except NotFoundError as error:
        raise ExpectedError(str(error)) from error


def is_integer(value: object) -> bool:
    """Return whether a value is an integer, and no boolean."""
    return isinstance(value, int) and not isinstance(value, bool)


def _as_float(value: object) -> float:
    """Convert a number; anything else is NaN, and what a float cannot hold infinite."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _read_again(value: object) -> object:
    """Replace tuples and arrays by lists, and paths by text, so that what is written and read again is equal."""
    if isinstance(value, Mapping):
        return {name: _read_again(entry) for name, entry in value.items()}
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, list | tuple):
        return [_read_again(entry) for entry in value]
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def plain(value: object) -> Any:
    """Return a NumPy scalar as the Python scalar that it stands for, anything else as it is."""
    return value.item() if isinstance(value, np.generic) else value


def as_json(name: str, value: object) -> object:
    """Return a value as strict JSON can hold it: NumPy's scalars are Python's there, and tuples lists.

    Args:
        name: of the argument, for the message.

    Raises:
        TypeError: for what is, or holds, something else than numbers, text, paths, arrays, lists and dicts with keys of text.
    """
    value = plain(value)
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        written = {key: as_json(f"{name}[{key!r}]", entry) for key, entry in value.items()}
        return {"is": "dict", "of": written} if written.keys() == {"is", "of"} else written
    if isinstance(value, list | tuple):
        return [as_json(f"{name}[{index}]", entry) for index, entry in enumerate(value)]
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        return {"is": "array", "of": [value.dtype.name, as_json(name, value.tolist())]}
    if isinstance(value, PurePath):
        return {"is": "path", "of": str(value)}
    if isinstance(value, float) and not math.isfinite(value):
        return {"is": "float", "of": str(value)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(
        f"{name} is {shortened.repr(value)}, which cannot be written to a file: expected numbers, text, paths, NumPy arrays, or lists and "
        f"dicts of those"
    )


def from_json(value: object) -> object:
    """Invert `as_json`.

    Raises:
        ValueError, TypeError: if it is nothing that `as_json` writes.
    """
    if isinstance(value, list):
        return [from_json(entry) for entry in value]
    if not isinstance(value, dict):
        return value
    if value.keys() != {"is", "of"}:
        return {key: from_json(entry) for key, entry in value.items()}
    kind, of = value["is"], value["of"]
    if kind == "dict" and isinstance(of, dict):
        return {key: from_json(entry) for key, entry in of.items()}
    if kind == "path" and isinstance(of, str):
        return Path(of)
    if kind == "float" and of in ("inf", "-inf", "nan"):
        return float(of)
    if kind == "array" and isinstance(of, list) and len(of) == 2 and np.dtype(of[0]).kind in "biuf":
        return np.array(from_json(of[1]), of[0])
    raise ValueError(f"{shortened.repr(value)} stands for no value")
