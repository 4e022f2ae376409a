"""Running moments: those of all rows at once, however they come; and values in units of their spread."""

import inspect
import itertools
import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import NDArray

from sacref.spec.moments import merge, standardise

if TYPE_CHECKING:
    from tests.conftest import Backend


def moments(rows: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Count, mean and m2 of rows; 0, 0 and 0 of none."""
    mean = rows.mean(axis=0) if len(rows) else np.zeros(rows.shape[1:], rows.dtype)
    return np.asarray(len(rows), rows.dtype), mean, np.square(rows - mean).sum(axis=0)


def merged(xp: "Backend", chunks: list[NDArray[Any]]) -> list[NDArray[Any]]:
    """The moments of the chunks together, merged one after the other, beginning with those of no rows."""
    state: tuple[Any, ...] = tuple(xp.asarray(array) for array in moments(chunks[0][:0]))
    for chunk in chunks:
        state = merge(*state, *(xp.asarray(array) for array in moments(chunk.astype(xp.dtype))))
    return [xp.numpy(array) for array in state]


def split(rows: NDArray[Any], sizes: list[int]) -> list[NDArray[Any]]:
    """Rows in chunks of these sizes in turn, all of them used."""
    ends = [end for end in itertools.accumulate(itertools.islice(itertools.cycle(sizes), 2 * len(rows))) if end < len(rows)]
    return np.split(rows, ends)


def test_by_hand(xp: "Backend") -> None:
    """1, 3 and 8: mean 4, squared differences 9 + 1 + 16; of the second number, 5 each time."""
    first = [xp.asarray(2.0), xp.asarray([2.0, 5.0]), xp.asarray([2.0, 0.0])]
    second = [xp.asarray(1.0), xp.asarray([8.0, 5.0]), xp.asarray([0.0, 0.0])]
    for parts in ((first, second), (second, first)):
        count, mean, m2 = (xp.numpy(array) for array in merge(*parts[0], *parts[1]))
        assert count == 3.0
        np.testing.assert_allclose(mean, [4.0, 5.0], rtol=4 * xp.eps)
        np.testing.assert_allclose(m2, [26.0, 0.0], rtol=4 * xp.eps)


@pytest.mark.parametrize("sizes", [pytest.param([1], marks=pytest.mark.full), [1, 7, 2], [100], [1000], [0, 3]], ids=str)
def test_chunks_give_the_moments_of_all_rows(xp: "Backend", sizes: list[int]) -> None:
    rows = np.random.default_rng(0).normal([0.0, 3.0, -2.0], [1.0, 0.1, 0.5], (1000, 3))
    count, mean, m2 = merged(xp, split(rows, sizes))
    exact = rows.astype(xp.dtype).astype(np.float64)
    assert count == 1000
    # 1e-12 in float64: what a thousand roundings leave.
    tolerance = 4500 * xp.eps
    assert np.abs(mean - exact.mean(axis=0)).max() <= tolerance
    np.testing.assert_allclose(m2 / count, exact.var(axis=0), rtol=tolerance)


def test_no_rows_change_nothing(xp: "Backend") -> None:
    rows = np.random.default_rng(1).normal(size=(9, 2))
    some, none = ([xp.asarray(array) for array in moments(part)] for part in (rows, rows[:0]))
    for together in (merge(*some, *none), merge(*none, *some)):
        assert [xp.numpy(array).tolist() for array in together] == [xp.numpy(array).tolist() for array in some]
    assert [xp.numpy(array).tolist() for array in merge(*none, *none)] == [0.0, [0.0, 0.0], [0.0, 0.0]]


@pytest.mark.parametrize("size", [1, 8])
def test_a_large_offset_keeps_the_variance_that_a_sum_of_squares_loses(size: int) -> None:
    rows = 1e8 + np.random.default_rng(2).normal(size=(4000, 2))
    state = moments(rows[:0])
    for chunk in split(rows, [size]):
        state = merge(*state, *moments(chunk))
    count, mean, m2 = state
    # The same rows about zero, which lose nothing.
    expected = (rows - 1e8).var(axis=0)
    np.testing.assert_allclose(mean, rows.mean(axis=0), rtol=1e-12)
    # A row's difference from a mean of 1e8 is known to 1.5e-8.
    np.testing.assert_allclose(m2 / count, expected, rtol=1e-7)
    naive = np.square(rows).sum(axis=0) / len(rows) - np.square(rows.sum(axis=0) / len(rows))
    assert (np.abs(naive - expected) > 0.1 * expected).all()


def test_standardised_by_hand(xp: "Backend") -> None:
    """(values - mean) / sqrt(variance + 0.25), the variance 2 - 0.25 and 0; the batch has two axes."""
    values = xp.asarray([[[3.0, 1.0], [-1.0, 0.75]], [[1.0, 3.5], [1.0, -9.0]]])
    scaled = standardise(values, xp.asarray([1.0, 1.0]), xp.asarray([3.75, 0.0]), epsilon=0.25, clip=3.0)
    np.testing.assert_allclose(xp.numpy(scaled), [[[1.0, 0.0], [-1.0, -0.5]], [[0.0, 3.0], [0.0, -3.0]]], rtol=4 * xp.eps)


def test_a_single_value_of_any_shape_is_standardised_and_nan_stays(xp: "Backend") -> None:
    mean, variance = xp.asarray(np.full((2, 1), 2.0)), xp.asarray(np.full((2, 1), 4.0))
    scaled = xp.numpy(standardise(xp.asarray([[4.0], [np.nan]]), mean, variance, epsilon=1e-12, clip=0.5))
    assert scaled.shape == (2, 1)
    assert scaled[0, 0] == 0.5
    assert np.isnan(scaled[1, 0])


def test_standardised_rows_have_mean_0_and_variance_1(xp: "Backend") -> None:
    rows = np.random.default_rng(3).normal([5.0, -2.0], [3.0, 0.5], (500, 2))
    scaled = xp.numpy(standardise(xp.asarray(rows), xp.asarray(rows.mean(axis=0)), xp.asarray(rows.var(axis=0)), epsilon=1e-12, clip=9.0))
    np.testing.assert_allclose(scaled.mean(axis=0), 0.0, atol=100 * xp.eps)
    np.testing.assert_allclose(scaled.var(axis=0), 1.0, rtol=100 * xp.eps + 1e-11)


@pytest.mark.parametrize("shape", [(4, 3), (2,), (2, 1), ()])
def test_values_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"standardise: values has shape .*, expected \(\*batch, \*shape\) with \*shape \(2, 2\) as mean"):
        standardise(np.zeros(shape), np.zeros((2, 2)), np.ones((2, 2)))


@pytest.mark.parametrize("argument", ["m2", "other_mean", "other_m2"])
def test_moments_of_unequal_shapes_are_refused(argument: str) -> None:
    arguments: dict[str, Any] = {name: np.ones(3) for name in ("mean", "m2", "other_mean", "other_m2")} | {argument: np.ones(1)}
    with pytest.raises(ValueError, match=re.escape(f"merge: {argument} has shape (1,), expected (3,) (as mean)")):
        inspect.unwrap(merge)(**arguments, count=np.ones(()), other_count=np.ones(()))


@pytest.mark.parametrize("argument", ["count", "other_count"])
def test_a_count_is_a_scalar(argument: str) -> None:
    arguments: dict[str, Any] = {name: np.ones(3) for name in ("mean", "m2", "other_mean", "other_m2")}
    counts = {"count": np.ones(()), "other_count": np.ones(())} | {argument: np.ones(3)}
    with pytest.raises(ValueError, match=re.escape(f"merge: {argument} has shape (3,), expected () (a scalar)")):
        inspect.unwrap(merge)(**arguments, **counts)


def test_a_variance_has_the_shape_of_the_mean() -> None:
    with pytest.raises(ValueError, match=re.escape("standardise: variance has shape (1,), expected (3,) (as mean)")):
        inspect.unwrap(standardise)(np.zeros((2, 3)), np.zeros(3), np.ones(1))


def test_standardised_unless_told_otherwise(xp: "Backend") -> None:
    """A number that never varies is divided by 1e-4, and nothing is beyond 5; both are told by name alone."""
    scaled = standardise(xp.asarray([1e-4, -1e-4, 1.0, -1.0]), xp.asarray(np.zeros(4)), xp.asarray(np.zeros(4)))
    np.testing.assert_allclose(xp.numpy(scaled), [1.0, -1.0, 5.0, -5.0], rtol=4 * xp.eps)
    parameters = inspect.signature(standardise).parameters
    assert [name for name, one in parameters.items() if one.kind is one.KEYWORD_ONLY] == ["epsilon", "clip"]
    assert [name for name, one in parameters.items() if one.kind is one.POSITIONAL_OR_KEYWORD] == ["values", "mean", "variance"]
