"""Between the agent's actions and the Box's, on every array library."""

from typing import Any

import gymnasium
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from sacref.envs.scaling import action_bounds, as_box, bounds_within, from_box, to_box
from tests.conftest import Backend

LOW, HIGH = [-2.0, 0.5, -0.4], [2.0, 0.75, 1.6]


def test_the_ends_and_the_middle_of_the_box(xp: Backend) -> None:
    low, high = xp.asarray(LOW), xp.asarray(HIGH)
    actions = xp.asarray([[-1.0] * 3, [1.0] * 3, [0.0] * 3, [0.5, -0.5, 0.25]])
    wanted = np.array([LOW, HIGH, [0.0, 0.625, 0.6], [1.0, 0.5625, 0.85]], xp.dtype)
    np.testing.assert_allclose(xp.numpy(to_box(actions, low, high)), wanted, rtol=4 * xp.eps, atol=4 * xp.eps)
    np.testing.assert_allclose(xp.numpy(from_box(xp.asarray(wanted), low, high)), xp.numpy(actions), rtol=16 * xp.eps, atol=16 * xp.eps)
    assert xp.numpy(to_box(actions[:2, :], low, high)).tolist() == [xp.numpy(low).tolist(), xp.numpy(high).tolist()]


def test_actions_outside_of_the_box_count_as_the_nearest_inside(xp: Backend) -> None:
    low, high = xp.asarray(LOW), xp.asarray(HIGH)
    outside = xp.asarray([[-9.0, 9.0, 1.7], [2.5, 0.0, -0.5]])
    assert xp.numpy(from_box(outside, low, high)).tolist() == [[-1, 1, 1], [1, -1, -1]]
    assert xp.numpy(to_box(xp.asarray([[-1.5, 1.5, 2.0]]), low, high)).tolist() == np.array([[-2.0, 0.75, 1.6]], xp.dtype).tolist()


finite = st.floats(-1e6, 1e6, width=32)


@given(low=finite, width=st.floats(2.0**-10, 1e6, width=32), action=st.floats(-1.0, 1.0, width=32))
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_no_rounding_leaves_the_box_and_the_way_back_is_near(dtype: type, low: float, width: float, action: float) -> None:
    bounds: tuple[NDArray[Any], NDArray[Any]] = np.array([low], dtype), np.array([low], dtype) + dtype(width)
    if not bounds[0] < bounds[1]:
        return
    scaled = to_box(np.array([[action]], dtype), *bounds)
    assert scaled.dtype == dtype
    assert bounds[0] <= scaled[0] <= bounds[1]
    back = from_box(scaled, *bounds)
    assert -1 <= back[0, 0] <= 1
    # What a position loses near a far-away bound, in units of the half width.
    largest = max(abs(bounds[0][0]), abs(bounds[1][0]), width)
    assert abs(back[0, 0] - action) <= 16 * np.finfo(dtype).eps * (1 + largest / (bounds[1] - bounds[0])[0])


def test_environments_scale_row_by_row(xp: Backend) -> None:
    low, high = xp.asarray(LOW), xp.asarray(HIGH)
    rows = np.random.default_rng(0).uniform(-1, 1, (5, 3))
    together = xp.numpy(to_box(xp.asarray(rows), low, high))
    for row, scaled in zip(rows, together, strict=True):
        np.testing.assert_allclose(xp.numpy(to_box(xp.asarray(row[None]), low, high))[0], scaled, rtol=4 * xp.eps)


@given(low=st.floats(-1e6, 1e6), width=st.floats(1e-3, 1e6))
def test_bounds_of_fewer_digits_are_the_nearest_within(low: float, width: float) -> None:
    bounds = np.array([low]), np.array([low + width])
    inner_low, inner_high = bounds_within(*bounds, np.float32)
    assert inner_low.dtype == inner_high.dtype == np.float32
    assert np.nextafter(inner_low, np.float32(-np.inf)) < bounds[0] <= inner_low
    assert inner_high <= bounds[1] < np.nextafter(inner_high, np.float32(np.inf))
    assert [bound.tolist() for bound in bounds_within(*bounds, np.float64)] == [bound.tolist() for bound in bounds]


def box(low: float, high: float, dtype: str) -> gymnasium.spaces.Box:
    return gymnasium.spaces.Box(np.array([low], dtype), np.array([high], dtype), dtype=np.dtype(dtype))


@pytest.mark.parametrize(
    ("low", "high", "own", "steps"),
    [
        (1e8, 1e8 + 1, "float64", 0),
        (1.0, 1.0 + 1e-9, "float64", 0),
        (-1e-50, 1e-50, "float64", 0),
        (0.0, 1e-40, "float32", 0),
        (-1.0, -1.0 + 2.0**-17, "float64", 128),
        (1e8, 1e8 + 800, "float32", 100),
        (1000.0, 1001.0, "float16", 2),
    ],
)
def test_bounds_too_near_for_a_policy_are_refused(low: float, high: float, own: str, steps: int) -> None:
    space = box(low, high, own)
    coarser = "float16" if own == "float16" else "float32"
    message = rf"from low \[.*\] to high \[.*\] in dimensions \[0\] {coarser} has \[{steps}\] steps, expected at least 256 .*RescaleAction"
    with pytest.raises(ValueError, match=message):
        action_bounds(space, np.float32)


@pytest.mark.parametrize(
    ("low", "high", "own", "dtype"),
    [
        (1e8, 1e8 + 1, "float64", "float64"),
        (-1e-50, 1e-50, "float64", "float64"),
        (-1e38, 1e38, "float32", "float32"),
        (-1.7e38, 1.7e38, "float64", "float32"),
        (1000.0, 1001.0, "float32", "float32"),
        (-2.0, 2.0, "float16", "float32"),
        (-65504.0, 65504.0, "float16", "float32"),
        (0.0, 4e-36, "float32", "float32"),
        (-1e-40, 1.0, "float32", "float32"),
        (1e-40, 1.0, "float32", "float64"),
        (-2.0, 0.1, ">f8", "float32"),
    ],
)
def test_what_is_accepted_scales_there_and_back(low: float, high: float, own: str, dtype: str) -> None:
    space = box(low, high, own)
    bounds = action_bounds(space, dtype)
    assert [bound.dtype for bound in bounds] == [np.dtype(dtype)] * 2
    assert all(bound == 0 or abs(bound[0]) >= np.finfo(dtype).smallest_normal for bound in bounds)
    actions = np.linspace(-1, 1, 17, dtype=dtype)[:, None]
    scaled = to_box(actions, *bounds)
    assert all(space.contains(as_box(row, space)) for row in scaled)
    np.testing.assert_allclose(from_box(scaled, *bounds), actions, atol=2 / 256)
    np.testing.assert_array_equal(from_box(scaled[[0, -1]], *bounds), [[-1], [1]])


def test_actions_of_a_box_with_other_digits_are_in_its_dtype_and_inside() -> None:
    space = box(-0.1, 0.1, "float64")
    given = np.array([[0.1], [-0.1], [0.05]], np.float32)
    assert not space.contains(given[0].astype(np.float64))
    assert as_box(given, space).tolist() == [[0.1], [-0.1], [float(np.float32(0.05))]]
    assert as_box(given, box(-0.1, 0.1, "float32")) is given
    half = as_box(given, box(-0.1, 0.1, "float16"))
    assert half.dtype == np.float16
    assert as_box(given, gymnasium.spaces.Discrete(3)) is given
