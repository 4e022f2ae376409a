"""Values come back from arrays and JSON with the types that they had, and what is no value is refused."""

import json
import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from sacref.storage.values import DEEPEST, UnsupportedError, decode, encode

VALUES = [
    None,
    True,
    3,
    -(2**127) - 5,
    0.1,
    -math.inf,
    "text",
    np.float32(0.1),
    np.float64(0.1),
    np.bool_(True),
    np.int64(7),
    np.arange(6, dtype=np.uint64).reshape(2, 3),
    np.array(2.5),
    np.zeros((0, 3), np.float32),
    [1, (2.0, None), [np.float32(3.0)]],
    {"is": "tuple", "of": {"a": (np.ones(2),), "b": {}}},
]


def same(one: Any, other: Any) -> bool:
    if type(one) is not type(other):
        return False
    if isinstance(one, np.ndarray | np.generic):
        return one.dtype == other.dtype and np.shape(one) == np.shape(other) and np.array_equal(one, other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


@pytest.mark.parametrize("value", VALUES, ids=lambda value: repr(value)[:30])
def test_a_value_comes_back_of_its_own_type(value: Any) -> None:
    arrays: dict[str, NDArray[Any]] = {}
    written = json.loads(json.dumps(encode(value, "v", arrays), allow_nan=False))
    assert all(type(array) is np.ndarray for array in arrays.values())
    assert same(decode(written, arrays), value)


@pytest.mark.parametrize("value", [np.array([1.5, -2.0], ">f4"), np.array([-3, 2**40], ">i8")])
def test_an_array_of_the_other_byte_order_comes_back_in_the_machines_own(value: NDArray[Any]) -> None:
    arrays: dict[str, NDArray[Any]] = {}
    found = decode(encode(value, "v", arrays), arrays)
    assert found.tolist() == value.tolist()
    assert found.dtype.isnative and found.dtype == value.dtype.newbyteorder("=")


def test_arrays_are_named_by_their_place_and_copied() -> None:
    arrays: dict[str, NDArray[Any]] = {}
    array = np.ones((3, 2)).T
    written = encode({"a": [array, (array,)]}, "v", arrays)
    assert list(arrays) == ["v.a.0", "v.a.1.0"]
    array[:] = 0
    assert arrays["v.a.0"].tolist() == [[1, 1, 1], [1, 1, 1]]
    assert arrays["v.a.0"].flags.c_contiguous
    decode(written, arrays)["a"][0][:] = 5
    assert arrays["v.a.0"].max() == 1


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (object(), "v is a builtins.object, expected numbers"),
        ([1, {2}], "v.1 is a builtins.set"),
        ({"a": {1: 2}}, r"v.a has the keys \[1\], expected text"),
        (np.array(["a"]), "v has dtype <U1, expected one of bool, int8"),
        (np.ones(2, complex), "v has dtype complex128"),
        (np.ones(2, np.longdouble), "v has dtype float128|v has dtype longdouble"),
    ],
)
def test_what_has_no_such_form_is_named(value: Any, message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        encode(value, "v", {})


@pytest.mark.parametrize(
    ("value", "name"),
    [({"a.b": np.ones(1), "a": {"b": np.zeros(1)}}, "v.a.b"), ({"m": [np.float32(1.0)], "m.0": np.ones(1)}, "v.m.0")],
)
def test_two_arrays_of_one_name_are_refused(value: Any, name: str) -> None:
    with pytest.raises(UnsupportedError) as raised:
        encode(value, "v", {})
    assert str(raised.value) == f"{name} comes twice: give its keys names without dots"
    arrays: dict[str, NDArray[Any]] = {}
    numbers = {"a.b": 1, "a": {"b": 2}}  # of which none has a name
    assert decode(encode(numbers, "v", arrays), arrays) == numbers


@pytest.mark.parametrize("kind", ["list", "tuple", "dict"])
def test_what_is_written_is_as_deep_as_what_is_read(kind: str) -> None:
    def nested(depth: int) -> Any:
        value: Any = 7
        for _ in range(depth):
            value = {"list": [value], "tuple": (value,), "dict": {"0": value}}[kind]
        return value

    written = encode(nested(DEEPEST), "v", {})
    assert decode(written, {}) == nested(DEEPEST)
    assert decode([written], {}) == [nested(DEEPEST)]  # as the states of callbacks are
    with pytest.raises(UnsupportedError) as raised:
        encode(nested(DEEPEST + 1), "v", {})
    assert str(raised.value) == f"v{'.0' * 51} lies in 51 lists and dicts, expected at most 50: write it as a flat list or an array"
    cyclic: list[Any] = []
    cyclic.append(cyclic)
    with pytest.raises(UnsupportedError, match="lies in 51 lists and dicts"):
        encode(cyclic, "v", {})


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ({"is": "array", "of": "w"}, "the array 'w' is missing"),
        ({"is": "scalar", "of": "v"}, "stands for no value"),  # It has two numbers.
        ({"is": "list", "of": []}, "stands for no value"),
        ({"is": "tuple", "of": {}}, "stands for no value"),
        ({"is": "array", "of": 3}, "stands for no value"),
        ({"is": "integer", "of": "x"}, "invalid literal"),
        ({"a": 1}, "stands for no value"),
        ([{"is": "dict", "of": []}], "stands for no value"),
    ],
)
def test_what_stands_for_no_value_is_refused(written: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decode(written, {"v": np.ones(2)})
