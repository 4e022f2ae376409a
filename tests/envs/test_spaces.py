"""Which spaces are accepted, and that each refusal names the fix."""

from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, Tuple

from sacref.algorithm.tree import named_leaves
from sacref.envs.spaces import Field, check_spaces, check_values, flat_size

OBSERVATIONS = Box(-np.inf, np.inf, (3,), np.float64)
ACTIONS = Box(np.array([-1.0, 0.0], np.float32), np.array([1.0, 4.0], np.float32))


def test_a_box_is_described() -> None:
    spaces = check_spaces(OBSERVATIONS, None, ACTIONS)
    assert spaces.observations == Field((3,), np.dtype(np.float64))
    assert spaces.states is None
    assert (spaces.action_shape, spaces.action_size) == ((2,), 2)
    np.testing.assert_array_equal(spaces.action_low, np.array([-1.0, 0.0]))
    np.testing.assert_array_equal(spaces.action_high, np.array([1.0, 4.0]))
    assert spaces.action_low.dtype == spaces.action_high.dtype == np.float64


def test_actions_of_two_axes_are_flattened_in_c_order() -> None:
    high = np.arange(1, 7, dtype=np.float32).reshape(2, 3)
    spaces = check_spaces(OBSERVATIONS, None, Box(-high, high))
    assert (spaces.action_shape, spaces.action_size) == ((2, 3), 6)
    np.testing.assert_array_equal(spaces.action_high, np.arange(1.0, 7.0))


@pytest.mark.parametrize(
    ("own", "asked", "stored"),
    [
        (np.float64, "float32", "float32"),
        (np.float32, "float64", "float64"),
        (np.float16, "float32", "float16"),
        (np.uint8, "float32", "uint8"),
        (np.int64, "float64", "int64"),
        (np.uint16, "float32", "int32"),
        (np.uint32, "float32", "int64"),
        (np.uint64, "float32", "int64"),
        (">f8", "float32", "float32"),
        (">u2", "float32", "int32"),
        (">i8", "float32", "int64"),
    ],
)
def test_floats_are_stored_in_the_agents_dtype_and_all_else_in_its_own(own: Any, asked: str, stored: str) -> None:
    spaces = check_spaces(Box(0, 100, (2, 2), np.dtype(own)), None, ACTIONS)
    assert spaces.observations.stored_dtype(asked) == np.dtype(stored)
    assert spaces.observations.stored_dtype(asked).isnative


@pytest.mark.parametrize(
    ("own", "stored"), [("int64", "int32"), ("uint64", "int32"), ("uint32", "int32"), ("uint16", "int32"), ("int8", "int8")]
)
def test_no_stored_integer_has_more_bits_than_the_backend(own: str, stored: str) -> None:
    space = Box(0, 100, (2,), np.dtype(own))
    field = check_spaces(space, space, ACTIONS, longest_integer=np.dtype(np.int32)).observations
    assert field.stored_dtype("float32") == np.dtype(stored)


def test_numbers_that_nobody_stores_are_refused() -> None:
    space = Box(-1, 1, (2,), np.longdouble)
    message = r"is Box\(.*\) of dtype \w+, expected one of bool, int8, .*, float64: wrap each environment in gymnasium.wrappers.Transform"
    with pytest.raises(TypeError, match=f"observation_space {message}Observation"):
        check_spaces(space, None, ACTIONS)
    with pytest.raises(TypeError, match=rf"state_space\['a'\] {message}Observation"):
        check_spaces(OBSERVATIONS, Dict(a=space), ACTIONS)
    with pytest.raises(TypeError, match=f"action_space {message}Action"):
        check_spaces(OBSERVATIONS, None, space)


@pytest.mark.parametrize(
    ("space", "error", "message"),
    [
        (Discrete(4), TypeError, "SAC here needs a gymnasium.spaces.Box"),
        (MultiBinary(4), TypeError, "SAC here needs a gymnasium.spaces.Box"),
        ("Box", TypeError, "a str"),
        (Box(-3, 3, (2,), np.int32), TypeError, "dtype int32; wrap each environment in gymnasium.wrappers.TransformAction"),
        (Box(-np.inf, np.inf, (2,)), ValueError, r"dimensions \[0, 1\]; wrap each environment in gymnasium.wrappers.RescaleAction"),
        (Box(np.array([-1, -1], np.float32), np.array([1, np.inf], np.float32)), ValueError, r"dimensions \[1\]"),
        (Box(-3e38, 3e38, (1,), np.float32), ValueError, "finite bounds"),
        (Box(-1e300, 1e300, (1,), np.float64), ValueError, "finite bounds"),
        (Box(np.array([0, 2], np.float32), np.array([1, 2], np.float32)), ValueError, r"low < high, got low \[2.\] and high \[2.\]"),
        (Box(-1, 1, (0,)), ValueError, "at least one number"),
    ],
    ids=str,
)
def test_an_action_space_that_sac_cannot_use_is_refused(space: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        check_spaces(OBSERVATIONS, None, space)


@pytest.mark.parametrize(
    ("space", "error", "message"),
    [
        (Dict(a=Discrete(2)), TypeError, r"observation_space\['a'\] is Discrete\(2\).*gymnasium.wrappers.FlattenObservation"),
        (Dict({}), ValueError, "an empty Dict"),
        (Dict({"a.b": OBSERVATIONS}), ValueError, r"the key 'a\.b', expected a text without a dot"),
        (Tuple([OBSERVATIONS]), TypeError, "gymnasium.wrappers.FlattenObservation"),
        (Discrete(4), TypeError, "FlattenObservation, which makes it one-hot"),
        (gymnasium.spaces.Text(4), TypeError, "gymnasium.wrappers.TransformObservation"),
        (None, TypeError, "a NoneType"),
        (Box(-1, 1, (2, 0)), ValueError, "at least one number"),
    ],
    ids=str,
)
def test_an_observation_space_that_sac_cannot_use_is_refused(space: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        check_spaces(space, None, ACTIONS)


def test_a_dict_space_is_a_tree_of_fields_in_its_order() -> None:
    part = Dict([("y", Box(0, 255, (2, 2), np.uint8)), ("b", Box(-1, 1, ()))])
    space = Dict([("z", OBSERVATIONS), ("a", part)])
    spaces = check_spaces(space, part, ACTIONS)
    inner = {"y": Field((2, 2), np.dtype(np.uint8)), "b": Field((), np.dtype(np.float32))}
    assert spaces.observations == {"z": Field((3,), np.dtype(np.float64)), "a": inner}
    assert list(spaces.observations) == list(space.spaces) and list(spaces.observations["a"]) == list(part.spaces)
    assert spaces.states == inner
    assert flat_size(spaces.observations) == 3 + 4 + 1
    assert named_leaves(space)["a.y"] is part["y"]


def test_values_are_checked_against_the_fields() -> None:
    fields = check_spaces(Dict(a=OBSERVATIONS, b=Box(-1, 1, (2,))), None, ACTIONS).observations

    def check(values: Any) -> Any:
        return check_values(values, fields, "observations", lambda value: False)

    good = {"a": np.zeros((4, 3)), "b": [[1.0, 2.0]] * 4}
    assert {key: array.shape for key, array in check(good).items()} == {"a": (4, 3), "b": (4, 2)}
    with pytest.raises(ValueError, match=r"observations lacks the keys \['b'\] and has the unknown keys \['c'\]"):
        check({"a": good["a"], "c": good["b"]})
    with pytest.raises(ValueError, match=r"observations\['b'\] have shape \(4, 3\), expected \(envs, \*\(2,\)\)"):
        check({**good, "b": good["a"]})
    with pytest.raises(ValueError, match=r"keys of \{'a': 4, 'b': 1\} rows"):
        check({**good, "b": [[1.0, 2.0]]})
    with pytest.raises(TypeError, match="observations is a ndarray, expected a dict with the keys"):
        check(good["a"])
    with pytest.raises(TypeError, match=r"is a dict with the keys \['a', 'b'\], expected one array"):
        check_values(good, fields["a"], "observations", lambda value: False)


@pytest.mark.parametrize(
    ("space", "values", "error", "message"),
    [
        (Box(-1, 1, (1,)), [[None]], TypeError, "observations have dtype object, expected float32 as the space says"),
        (Box(-1, 1, (1,)), [["1.0"]], TypeError, "observations have dtype <U3, expected float32"),
        (Box(-1, 1, (1,)), [[1j]], TypeError, "observations have dtype complex128, expected float32"),
        (
            Box(0, 255, (1,), np.uint8),
            [[0.5]],
            TypeError,
            "dtype float64, expected uint8 .* would not be stored as it is",
        ),
        (Box(0, 255, (1,), np.uint8), [[256]], ValueError, "observations hold numbers beyond uint8"),
        (Box(0, 255, (1,), np.uint8), [[-1]], ValueError, "observations hold numbers beyond uint8"),
        (Box(-128, 127, (1,), np.int8), [[128]], ValueError, "observations hold numbers beyond int8"),
        (Box(0, 9, (1,), np.uint16), [[2**16]], ValueError, "observations hold numbers beyond uint16, which the space says"),
        (Box(0, 9, (1,), np.uint64), [[2**63]], ValueError, "beyond int64, in which uint64 is stored here: make them smaller"),
        (Box(0, 9, (1,), np.float16), [[1e5]], ValueError, "observations hold numbers beyond float16, which the space says"),
    ],
)
def test_values_that_could_not_be_stored_as_they_are_are_refused(space: Any, values: Any, error: type[Exception], message: str) -> None:
    fields = check_spaces(space, None, ACTIONS).observations
    with pytest.raises(error, match=message):
        check_values(values, fields, "observations", lambda value: False)


@pytest.mark.parametrize(
    ("own", "given", "taken"),
    [
        (np.uint8, np.int64, np.uint8),
        (np.float32, np.int64, np.float64),
        (np.float16, np.float64, np.float16),
        (np.int64, np.bool_, np.int64),
        (np.float64, np.float32, np.float32),
        (np.float64, ">f8", np.float64),
        (np.float32, np.longdouble, np.float64),
        (">i2", ">i2", np.int16),
        (np.uint16, np.uint16, np.int32),
        (np.uint64, np.int8, np.int64),
    ],
)
def test_values_of_another_dtype_that_are_stored_as_they_are_are_taken(own: Any, given: Any, taken: Any) -> None:
    fields = check_spaces(Box(0, 1, (2,), np.dtype(own)), None, ACTIONS).observations
    values = np.array([[0, 1]], given)
    found = check_values(values, fields, "observations", lambda value: False)
    assert found.dtype == taken and found.dtype.isnative
    assert found.tolist() == [[0, 1]]


def test_values_of_the_space_s_own_dtype_are_not_copied() -> None:
    fields = check_spaces(OBSERVATIONS, None, ACTIONS).observations
    for dtype in (np.float32, np.float64):
        values = np.zeros((1, 3), dtype)
        assert check_values(values, fields, "observations", lambda value: False) is values


def test_a_number_beyond_the_backend_s_longest_integer_is_refused_by_name() -> None:
    fields = check_spaces(Box(0, 2**40, (1,), np.int64), None, ACTIONS, longest_integer=np.dtype(np.int32)).observations
    with pytest.raises(ValueError, match=r"observations hold numbers beyond int32, in which int64 is stored here: .*jax_enable_x64"):
        check_values(np.array([[2**31]]), fields, "observations", lambda value: False)
    assert check_values(np.array([[2**31 - 1]]), fields, "observations", lambda value: False).tolist() == [[2**31 - 1]]


def test_the_widest_box_whose_width_is_a_float32_is_accepted() -> None:
    assert check_spaces(OBSERVATIONS, None, Box(-1.7e38, 1.7e38, (1,), np.float32)).action_size == 1
