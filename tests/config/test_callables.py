"""Callables as text: what is written finds the very same again, and what has no name is told apart."""

import math
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from sacref.config.callables import NotFoundError, UnnamedError, description, find, text_of, why_lost


class Maker:
    def make(self) -> None: ...

    @classmethod
    def build(cls) -> None: ...

    def __call__(self) -> None: ...


class Derived(Maker): ...


def given(*arguments: Any, **named: Any) -> Any:
    return arguments, named


HERE = __name__
NAMED: dict[str, Any] = {
    "gymnasium.wrappers.common:TimeLimit": gymnasium.wrappers.TimeLimit,
    f"{HERE}:given": given,
    f"{HERE}:Derived.build": Derived.build,
    "builtins:abs": abs,
    "numpy:tanh": np.tanh,
    "gymnasium.wrappers.common:TimeLimit(max_episode_steps=7)": partial(gymnasium.wrappers.TimeLimit, max_episode_steps=7),
    f"{HERE}:given(1, True, None, 'a (', a=-2.5, b=[1, (2,), {{'c': -1e999}}])": partial(
        given, 1, True, None, "a (", b=[1, (2,), {"c": -math.inf}], a=-2.5
    ),
    f"{HERE}:given(numpy.float32(0.5), numpy.array([[1, 2]], 'uint8'), numpy.bool(True), pathlib.Path('a/b'))": partial(
        given, np.float32(0.5), np.array([[1, 2]], np.uint8), np.bool_(True), Path("a/b")
    ),
    f"{HERE}:given({HERE}.Maker, functools.partial({HERE}.given, 2, key=builtins.abs), dtype=numpy.float32)": partial(
        given, Maker, partial(given, 2, key=abs), dtype=np.float32
    ),
    f"{HERE}:given(1, 2)": partial(partial(given, 1), 2),
}


def parts(function: Any) -> Any:
    """What two callables have to have in common: a partial is equal to itself alone."""
    if isinstance(function, partial):
        return function.func, [parts(value) for value in function.args], {name: parts(value) for name, value in function.keywords.items()}
    return (type(function), function.dtype, function.tolist()) if isinstance(function, np.ndarray | np.generic) else function


@pytest.mark.parametrize("text", NAMED)
def test_what_is_written_finds_the_same_again(text: str) -> None:
    function = NAMED[text]
    assert text_of(function) == description(function) == text
    assert parts(find(text)) == parts(function)
    assert why_lost(text) is None


UNNAMED: dict[str, Any] = {
    f"{HERE}:<lambda>": lambda: 1,
    f"a method of an instance, {HERE}:Maker.make": Maker().make,
    f"an instance of {HERE}:Maker": Maker(),
    f"functools.partial of {HERE}:given: {HERE}:<lambda>": partial(given, lambda: 1),
    f"functools.partial of {HERE}:given: an instance of {HERE}:Maker": partial(given, [Maker()]),
    f"functools.partial of {HERE}:given: the argument nan is a builtins.float, which cannot be written": partial(given, math.nan),
    f"functools.partial of {HERE}:given: the argument {{1}} is a builtins.set, which cannot be written": partial(given, {1}),
    f"functools.partial of <a method of an instance, {HERE}:Maker.make>: a method of an instance, {HERE}:Maker.make": partial(Maker().make),
}


@pytest.mark.parametrize("said", UNNAMED)
def test_what_has_no_name_is_said_to_have_none(said: str) -> None:
    assert description(UNNAMED[said]) == f"<{said}>"
    with pytest.raises(UnnamedError):
        text_of(UNNAMED[said])
    reason = why_lost(f"<{said}>")
    assert reason is not None and reason.startswith("has no name that leads to it alone: define it with `def` or `class` at the top level")


def test_a_local_function_and_one_in_the_place_of_another_have_no_name() -> None:
    def given() -> None: ...

    assert description(given) == f"<{HERE}:{test_a_local_function_and_one_in_the_place_of_another_have_no_name.__name__}.<locals>.given>"
    given.__qualname__ = "given"
    assert description(given) == f"<{HERE}:given>", "another function has this name"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("__main__:Task", "is of the script that was run (__main__)"),
        ("__main__:make(3)", "is of the script that was run (__main__)"),
        ("tests:given(functools.partial(__main__.make, 3))", "is of the script that was run (__main__)"),
        ("functools:partial", "was written without its arguments"),
        ("tests.config.test_callables:test.<locals>.<lambda>", "has no name that leads to it alone"),
    ],
)
def test_what_another_process_cannot_find_is_said(text: str, reason: str) -> None:
    said = why_lost(text)
    assert said is not None and said.startswith(reason)
    assert why_lost("my__main__:Task") is why_lost("Pendulum-v1") is None


@pytest.mark.parametrize(
    "text",
    [
        *("os", "os:", ":getcwd", ".os:getcwd", "os:nothing", "no_such_module:name", "a b:c", f"os:{'a' * 20_000}"),
        *("os:path(", "os:sep(1)", "os:getcwd(x)", "os:getcwd(**{'a': 1})", "os:getcwd(*[1])", "os:getcwd() + 1", "os:getcwd(1)(2)"),
        *("os:getcwd(os.system('x'))", "os:getcwd(numpy.array(os.system('x')))", "os:getcwd((x for x in os.path))", "os:getcwd(-'a')"),
        *(f"os:getcwd({'(' * 5000}", f"os:getcwd({'-' * 5000}1)", f"os:getcwd({'[' * 90}{']' * 90}", "os:getcwd(numpy.uint8(300))"),
    ],
    ids=lambda text: text[:30],
)
def test_text_that_names_nothing_is_refused_with_one_kind_of_error(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.system", lambda command: pytest.fail("a command of the text is run"))
    with pytest.raises(NotFoundError, match=r"^module:name"):
        find(text)
