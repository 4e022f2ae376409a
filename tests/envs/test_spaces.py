"""Which spaces are accepted, and that each refusal names the fix."""

from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, Tuple

from sacref.envs.spaces import check_spaces

OBSERVATIONS = Box(-np.inf, np.inf, (3,), np.float64)
ACTIONS = Box(np.array([-1.0, 0.0], np.float32), np.array([1.0, 4.0], np.float32))


def test_a_box_is_described() -> None:
    spaces = check_spaces(OBSERVATIONS, None, ACTIONS)
    assert (spaces.observation_shape, spaces.observation_dtype) == ((3,), np.dtype(np.float64))
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
    ],
)
def test_floats_are_stored_in_the_agents_dtype_and_all_else_in_its_own(own: Any, asked: str, stored: str) -> None:
    spaces = check_spaces(Box(0, 100, (2, 2), own), None, ACTIONS)
    assert spaces.stored_dtype(asked) == np.dtype(stored)


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
        (Dict(a=OBSERVATIONS), TypeError, "gymnasium.wrappers.FlattenObservation"),
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


def test_a_state_space_is_refused() -> None:
    with pytest.raises(ValueError, match="expected None: asymmetric critics are not available"):
        check_spaces(OBSERVATIONS, OBSERVATIONS, ACTIONS)


def test_the_widest_box_whose_width_is_a_float32_is_accepted() -> None:
    assert check_spaces(OBSERVATIONS, None, Box(-1.7e38, 1.7e38, (1,), np.float32)).action_size == 1
