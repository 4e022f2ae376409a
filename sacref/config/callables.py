"""Callables as text: how a file or a flag names one, and how it is found again.

`module:name`, and with arguments `module:name(1, key=[2.5, None])`, which stands for `functools.partial`. Arguments are Python's literals
and what is imported by its dotted name; of calls there are those of `functools.partial`, `numpy.array`, NumPy's scalars and `pathlib.Path`.
"""

import ast
import math
import pkgutil
import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path, PurePath
from types import MethodType
from typing import Any

import numpy as np

SCALARS = ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32", "float64")
"""Types of NumPy's scalars that an argument may have."""
LONGEST = 10_000
"""Characters of a callable's text."""
SCRIPT = re.compile(r"(?<![\w.])__main__[:.]")
"""Begin of the name of what is defined in the script that runs, or in a notebook."""
MODULE = "define it with `def` or `class` at the top level of a module"


class NotFoundError(ValueError):
    """Text that names no callable which could be imported; the message says what was expected."""


class UnnamedError(ValueError):
    """A callable that no text would find again; the message says what it is."""


def find(text: str) -> object:
    """Find what a text names, a callable where it is one's text. Its module is imported, which runs it.

    Raises:
        NotFoundError: if the text has another form, or there is no such thing.
    """
    name, opened, arguments = text.partition("(")
    module, colon, attribute = name.partition(":")
    if not colon or not module or not attribute or module.startswith(".") or len(text) > LONGEST:
        raise NotFoundError("module:name, or module:name(1, key=2)")
    try:
        found = pkgutil.resolve_name(name)
    except ImportError as error:
        raise NotFoundError(f"module:name of something that can be imported ({error}): is its folder on PYTHONPATH?") from error
    except (AttributeError, ValueError) as error:
        raise NotFoundError(f"module:name of something that can be imported, and of something that exists there ({error})") from error
    if opened:
        try:
            call = ast.parse(f"f({arguments}", mode="eval").body
            if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or not callable(found):
                raise ValueError("behind the name stands something else than the arguments of a call")
            return _called(partial, [found], call)
        except (SyntaxError, ValueError, TypeError, ImportError, AttributeError, OverflowError, RecursionError, MemoryError) as error:
            raise NotFoundError(f"module:name(1, key=2) with arguments that can be read ({error})") from error
    return found


def text_of(function: object) -> str:
    """Return the text by which `find` finds a callable.

    Raises:
        UnnamedError: if there is none: for a lambda, a local function, a method of an instance, or an instance.
    """
    if type(function) is not partial:
        return _name_of(function)
    try:
        text = f"{_name_of(function.func)}({_arguments(function.args, function.keywords)})"
        find(text)
    except (UnnamedError, NotFoundError) as error:
        raise UnnamedError(f"functools.partial of {description(function.func)}: {error}") from error
    return text


def description(function: object) -> str:
    """Return the text by which `find` finds a callable; for one without, its description in angle brackets."""
    try:
        return text_of(function)
    except UnnamedError as error:
        return f"<{error}>"


def why_lost(text: str) -> str | None:
    """Return why another process cannot find what `description` gave, and the fix; None where it can, if the module is there."""
    if SCRIPT.search(text) and not has_no_name(text):
        return f"is of the script that was run (__main__), and found in no other process: {MODULE}"
    return has_no_name(text)


def has_no_name(text: str) -> str | None:
    """Return why not even this process can tell what `description` gave from another callable, and the fix; None where it can."""
    if "<" in text.partition("(")[0]:
        return f"has no name that leads to it alone: {MODULE}"
    return "was written without its arguments: train again" if text == "functools:partial" else None


def _name_of(function: Any) -> str:
    kind, method = type(function), isinstance(function, MethodType)
    if method and isinstance(function.__self__, type):
        text = f"{function.__self__.__module__}:{function.__self__.__qualname__}.{function.__name__}"
    elif (name := getattr(function, "__qualname__", None)) is not None:
        text = f"{function.__module__}:{name}"
    else:
        raise UnnamedError(f"an instance of {kind.__module__}:{kind.__qualname__}")
    try:
        found = find(text)
    except NotFoundError:
        found = None
    if found is not function and not (method and found == function):  # a method is made at each look-up, and equal
        raise UnnamedError(f"a method of an instance, {text}" if method else text)
    return text


def _arguments(positional: Iterable[object], keywords: Mapping[str, object]) -> str:
    return ", ".join([*map(_expression, positional), *(f"{key}={_expression(value)}" for key, value in sorted(keywords.items()))])


def _expression(value: Any) -> str:
    """Write a value as Python would, if `_value` reads it again.

    Raises:
        UnnamedError: for any other.
    """
    kind = type(value)
    if value is None or kind in (bool, int, str):
        return repr(value)
    if kind is float and not math.isnan(value):
        return repr(value).replace("inf", "1e999")
    if kind in (list, tuple):
        items = ", ".join(map(_expression, value))
        return f"[{items}]" if kind is list else f"({items}{',' * (len(value) == 1)})"
    if kind is dict:
        return f"{{{', '.join(f'{_expression(key)}: {_expression(entry)}' for key, entry in value.items())}}}"
    if isinstance(value, np.generic) and f"numpy.{value.dtype.name}" in _CALLS:
        return f"numpy.{value.dtype.name}({_expression(value.item())})"
    if kind is np.ndarray and f"numpy.{value.dtype.name}" in _CALLS:
        return f"numpy.array({_expression(value.tolist())}, {value.dtype.name!r})"
    if isinstance(value, PurePath):
        return f"pathlib.Path({str(value)!r})"
    if kind is partial:
        return f"functools.partial({_arguments((value.func, *value.args), value.keywords)})"
    if callable(value):
        return _name_of(value).replace(":", ".")
    raise UnnamedError(f"the argument {value!r:.100} is a {kind.__module__}.{kind.__qualname__}, which cannot be written")


_CALLS: dict[str, Callable[..., object]] = {
    "functools.partial": partial,
    "numpy.array": np.array,
    "pathlib.Path": Path,
    **{f"numpy.{name}": np.dtype(name).type for name in SCALARS},
}
"""Functions that are called where an argument is read."""


def _value(node: ast.expr) -> object:
    """Invert `_expression`."""
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) and isinstance(node.operand, ast.Constant):
        number: Any = node.operand.value
        return -number
    if isinstance(node, ast.List | ast.Tuple):
        items = [_value(element) for element in node.elts]
        return items if isinstance(node, ast.List) else tuple(items)
    if isinstance(node, ast.Dict) and None not in node.keys:
        return {_value(key): _value(entry) for key, entry in zip(node.keys, node.values, strict=True) if key is not None}
    if isinstance(node, ast.Attribute):
        return pkgutil.resolve_name(ast.unparse(node))
    if isinstance(node, ast.Call) and (name := ast.unparse(node.func)) in _CALLS:
        return _called(_CALLS[name], [], node)
    raise ValueError(f"{ast.unparse(node)[:100]} is no literal, and no dotted name")


def _called(function: Callable[..., object], first: list[object], call: ast.Call) -> object:
    keywords = {}
    for keyword in call.keywords:
        if keyword.arg is None:
            raise ValueError("** stands for names that are not written")
        keywords[keyword.arg] = _value(keyword.value)
    return function(*first, *map(_value, call.args), **keywords)
