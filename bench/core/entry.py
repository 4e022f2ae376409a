"""Entry point of a module that a suite starts as a process: it tells others, in one line, which command to use."""

import reprlib
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

ParsedT = TypeVar("ParsedT")

_short = reprlib.Repr()
_short.maxstring = _short.maxother = 80


def read(takes: str, suite: str, arguments: Sequence[str], parse: Callable[[Sequence[str]], ParsedT]) -> ParsedT:
    """Parse the arguments of a suite; for any others, print one line and end the process.

    Args:
        takes: command line of the module, for the line.
        suite: command that starts the module.
        arguments: of the command line.
        parse: raises a ValueError, TypeError or LookupError for arguments that are not the suite's.

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
    """Refuse every start of a module that has no command line."""
    read(f"{module} has no command line", suite, sys.argv[1:], _nothing)


def _nothing(arguments: Sequence[str]) -> Any:
    raise ValueError("it takes no arguments")
