"""The running scaler: NumPy's moments of every row once, the same numbers on each library, and what it refuses."""

import subprocess
import sys
from typing import Any

import gymnasium
import numpy as np
import pytest
from numpy.typing import NDArray

from sacref.preprocessing import Preprocessor, RunningStandardScaler
from tests.conftest import Backend

BOX = gymnasium.spaces.Box(-np.inf, np.inf, (3,), np.float32)


def rows(count: int, seed: int = 0) -> NDArray[np.float64]:
    return np.random.default_rng(seed).normal([5.0, -2.0, 1e3], [3.0, 0.5, 1e-2], (count, 3))


def on_device(xp: Backend, scaler: RunningStandardScaler) -> dict[str, Any]:
    return {name: xp.asarray(array) for name, array in scaler.arrays().items()}


def test_it_is_a_preprocessor() -> None:
    assert isinstance(RunningStandardScaler(BOX), Preprocessor)


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_its_moments_are_numpys_of_all_rows(size: int) -> None:
    scaler, fresh = RunningStandardScaler(BOX), rows(1000)
    for start in range(0, 1000, size):
        scaler.update(fresh[start : start + size])
    arrays = scaler.arrays()
    assert {name: array.dtype for name, array in arrays.items()} == dict.fromkeys(("count", "mean", "variance"), np.dtype(np.float64))
    assert arrays["count"] == 1000
    np.testing.assert_allclose(arrays["mean"], fresh.mean(axis=0), rtol=1e-12)
    # The last number is 1e5 times as large as its spread, which costs as many roundings.
    np.testing.assert_allclose(arrays["variance"][:2], fresh.var(axis=0)[:2], rtol=1e-12)
    np.testing.assert_allclose(arrays["variance"][2], fresh.var(axis=0)[2], rtol=1e-8)


def test_trap_12_one_row_gives_no_nan_and_the_variance_of_one_number() -> None:
    scaler = RunningStandardScaler(BOX, epsilon=0.25)
    scaler.update(np.array([[1.0, 2.0, 3.0]]))
    arrays = scaler.arrays()
    assert [arrays["count"].tolist(), arrays["mean"].tolist(), arrays["variance"].tolist()] == [1.0, [1.0, 2.0, 3.0], [0.0] * 3]
    assert scaler.transform(arrays, np.array([[1.0, 3.0, 0.0]])).tolist() == [[0.0, 2.0, -5.0]]


def test_the_variance_is_the_populations() -> None:
    scaler = RunningStandardScaler(gymnasium.spaces.Box(-1, 1, (1,)))
    scaler.update([[1.0], [3.0]])
    assert scaler.arrays()["variance"].tolist() == [1.0]


def test_before_the_first_row_it_only_cuts(xp: Backend) -> None:
    scaler = RunningStandardScaler(BOX, epsilon=1e-12, clip=2.0)
    scaler.update(np.zeros((0, 3)))
    assert [array.tolist() for array in scaler.arrays().values()] == [0.0, [0.0] * 3, [1.0] * 3]
    transformed = xp.numpy(scaler.transform(on_device(xp, scaler), xp.asarray([[0.5, -1.0, 7.0]])))
    np.testing.assert_allclose(transformed, [[0.5, -1.0, 2.0]], rtol=1e-11 + xp.eps)


def test_rows_of_narrow_types_are_summed_in_float64() -> None:
    space = gymnasium.spaces.Box(0, 255, (2, 2), np.uint8)
    images = np.random.default_rng(0).integers(0, 256, (500, 2, 2), np.uint8)
    scaler = RunningStandardScaler(space)
    scaler.update(images)
    np.testing.assert_allclose(scaler.arrays()["mean"], images.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(scaler.arrays()["variance"], images.var(axis=0), rtol=1e-12)


def test_the_transform_is_the_same_on_every_library(xp: Backend) -> None:
    scaler = RunningStandardScaler(BOX, clip=1.5)
    scaler.update(rows(200))
    values = rows(24, seed=1).astype(xp.dtype).reshape(4, 6, 3)
    arrays = {name: array.astype(xp.dtype).astype(np.float64) for name, array in scaler.arrays().items()}
    expected = np.clip((values.astype(np.float64) - arrays["mean"]) / np.sqrt(arrays["variance"] + 1e-8), -1.5, 1.5)
    assert (np.abs(expected) == 1.5).any() and (np.abs(expected) < 1.4).any()
    transformed = xp.numpy(scaler.transform(on_device(xp, scaler), xp.asarray(values)))
    np.testing.assert_allclose(transformed, expected, rtol=8 * xp.eps, atol=8 * xp.eps)


def test_the_transform_can_be_jitted() -> None:
    jax = pytest.importorskip("jax")
    scaler = RunningStandardScaler(BOX)
    scaler.update(rows(50))
    values = jax.numpy.asarray(rows(4, seed=1))
    arrays = {name: jax.numpy.asarray(array) for name, array in scaler.arrays().items()}
    jitted = jax.jit(scaler.transform)
    np.testing.assert_allclose(jitted(arrays, values), scaler.transform(arrays, values), rtol=1e-13)
    # The moments are arguments: what is compiled sees the new ones.
    moved = {**arrays, "mean": arrays["mean"] + 0.25}
    np.testing.assert_allclose(jitted(moved, values), scaler.transform(moved, values), rtol=1e-13)
    assert not np.array_equal(jitted(moved, values), jitted(arrays, values))


TRACE = """
import gymnasium, torch
from torch.fx.experimental.proxy_tensor import make_fx
from sacref.preprocessing import RunningStandardScaler
scaler = RunningStandardScaler(gymnasium.spaces.Box(-1, 1, (3,)))
scaler.update([[0.0, 1.0, 2.0], [1.0, 5.0, 2.5]])
arrays = {name: torch.tensor(array) for name, array in scaler.arrays().items()}
values = torch.rand(2, 4, 3, dtype=torch.float64)
traced = make_fx(lambda arrays, values: scaler.transform(arrays, values))(arrays, values)
moved = {**arrays, "mean": arrays["mean"] + 0.25}
torch.testing.assert_close(traced(moved, values), scaler.transform(moved, values), rtol=0, atol=0)
compiled = torch.compile(scaler.transform, fullgraph=True, backend="eager")
torch.testing.assert_close(compiled(moved, values), scaler.transform(moved, values), rtol=1e-13, atol=0)
print("traced")
"""


def test_the_transform_can_be_traced_by_torch() -> None:
    """In a process without the shape checks, which break the graph."""
    pytest.importorskip("torch")
    process = subprocess.run([sys.executable, "-c", TRACE], capture_output=True, text=True, timeout=120)
    assert (process.stdout.strip(), process.returncode) == ("traced", 0), process.stderr


def test_what_is_saved_goes_on_bit_for_bit() -> None:
    scaler, restored = RunningStandardScaler(BOX), RunningStandardScaler(BOX)
    scaler.update(rows(10))
    saved = scaler.arrays()
    restored.set_arrays(saved)
    saved["mean"][:] = np.nan
    for one in (scaler, restored):
        one.update(rows(5, seed=1))
        one.update(rows(1, seed=2))
    for name, array in scaler.arrays().items():
        assert restored.arrays()[name].tobytes() == array.tobytes()


def test_the_arrays_are_copies() -> None:
    scaler = RunningStandardScaler(BOX)
    scaler.update(rows(10))
    before, kept = scaler.arrays(), scaler.arrays()
    for array in kept.values():
        array[...] = -7.0
    scaler.arrays()["mean"][:] = 9.0
    for name, array in scaler.arrays().items():
        assert array.tolist() == before[name].tolist()
    scaler.update(rows(10))
    assert before["count"] == 10.0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.zeros(3), r"rows have shape \(3,\), expected \(n, \*shape\) with \*shape \(3,\)"),
        (np.zeros((2, 4)), r"rows have shape \(2, 4\)"),
        (np.array([[0.0] * 3, [0.0, np.nan, 0.0]]), r"rows \[1\] of 2 hold NaN or infinity"),
        (np.array([[0.0, np.inf, 0.0]]), r"rows \[0\] of 1 hold NaN or infinity"),
    ],
)
def test_rows_that_would_spoil_the_moments_are_refused_and_leave_them(given: NDArray[Any], message: str) -> None:
    scaler = RunningStandardScaler(BOX)
    scaler.update(rows(3))
    before = scaler.arrays()
    with pytest.raises(ValueError, match=message):
        scaler.update(given)
    for name, array in scaler.arrays().items():
        assert array.tolist() == before[name].tolist()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mean": np.zeros(2)}, r"mean has shape \(2,\), expected \(3,\)"),
        ({"count": np.zeros(1)}, r"count has shape \(1,\), expected \(\)"),
        ({"variance": np.array([1.0, -1.0, 1.0])}, "variance holds numbers that no rows can have given"),
        ({"count": np.array(-1.0)}, "count holds numbers"),
        ({"mean": np.array([0.0, np.nan, 0.0])}, "mean holds numbers"),
        ({"m2": np.zeros(3)}, r"got arrays \['count', 'm2', 'mean', 'variance'\], expected \['count', 'mean', 'variance'\]"),
    ],
)
def test_arrays_of_another_scaler_are_refused(change: dict[str, NDArray[Any]], message: str) -> None:
    scaler = RunningStandardScaler(BOX)
    with pytest.raises(ValueError, match=message):
        scaler.set_arrays({**scaler.arrays(), **change})
    assert scaler.arrays()["variance"].tolist() == [1.0] * 3


@pytest.mark.parametrize("name", ["epsilon", "clip"])
@pytest.mark.parametrize("value", [0.0, -1.0, float("inf"), float("nan"), True])
def test_settings_out_of_range_are_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"RunningStandardScaler: {name} is .*, expected a positive, finite number"):
        RunningStandardScaler(BOX, **{name: value})


def test_a_space_that_is_no_box_is_refused() -> None:
    with pytest.raises(TypeError, match=r"space is Dict.*expected a gymnasium.spaces.Box: make one scaler for each Box"):
        RunningStandardScaler(gymnasium.spaces.Dict(a=BOX))
