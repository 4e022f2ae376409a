"""What a module that a suite starts in a process of its own says to whoever else starts it."""

import reprlib
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

ParsedT = TypeVar("ParsedT")

_short = reprlib.Repr()
_short.maxstring = _short.maxother = 80


def read(takes: str, suite: str, arguments: Sequence[str], parse: Callable[[Sequence[str]], ParsedT]) -> ParsedT:
    """What the suite has said to the module; one line, and the end of the process, where it was another who started it.

    Args:
        takes: what the module is called with, for the line.
        suite: the module that starts it.
        arguments: of the command line.
        parse: of the arguments; a ValueError, TypeError or LookupError of its says that they are not the suite's.

    Raises:
        SystemExit: 0 for --help or -h, 2 for what `parse` refuses.
    """
    line = f"usage: {takes}; python -m {suite} starts it"
    if {"--help", "-h"} & set(arguments):
        print(line)
        raise SystemExit(0)
    try:
        return parse(arguments)
    except (ValueError, TypeError, LookupError) as error:
        given = " ".join(arguments)
        print(f"{line} (got {_short.repr(given) if given else 'nothing'}: {type(error).__name__}: {error})", file=sys.stderr)
        raise SystemExit(2) from None


def refuse(module: str, suite: str) -> None:
    """`read` of a module whose functions the suite calls, and which has no command line."""
    read(f"{module} has no command line", suite, sys.argv[1:], _nothing)


def _nothing(arguments: Sequence[str]) -> Any:
    raise ValueError("there is nothing that it takes")
