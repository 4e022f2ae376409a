"""The run-time checker behind the tests' import hook: beartype, without the hints that it cannot check."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from beartype import BeartypeConf, beartype
from beartype.door import is_bearable
from beartype.roar import BeartypeCallHintForwardRefException, BeartypeDecorHintException

CONFIGURATION = BeartypeConf(is_pep484_tower=True)
"""An int is a float, as it is to mypy."""


def modules() -> list[str]:
    """Names of the modules whose signatures hold shapes. The types of the others are for mypy: at run time they would slow all tests."""
    root = Path(__file__).parents[1]
    paths = (path for path in sorted((root / "sacref").rglob("*.py")) if "from jaxtyping import" in path.read_text(encoding="utf-8"))
    return [".".join(path.relative_to(root).with_suffix("").parts) for path in paths]


def check(function: Callable[..., Any]) -> Callable[..., Any]:
    """Check a function's arguments and result whenever it is called.

    beartype refuses generic NamedTuples such as `Batch[Array]`, and protocols without `runtime_checkable`, instead of passing them
    over: they count as Any, and the array hints beside them are still checked.
    """
    hints = getattr(function, "__annotations__", {})
    function.__annotations__ = {name: hint if _can_check(hint) else Any for name, hint in hints.items()}
    return beartype(conf=CONFIGURATION)(function)


def _can_check(hint: Any) -> bool:
    try:
        is_bearable(None, hint)
    except BeartypeCallHintForwardRefException:
        return True
    except BeartypeDecorHintException:
        return False
    return True
