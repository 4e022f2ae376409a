"""Masked reductions: over the rows that count, and of all rows the plain reduction bit for bit."""

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from sacref.spec import masked_max, masked_mean, masked_min

if TYPE_CHECKING:
    from tests.conftest import Backend

VALUES = [[[1.0, np.nan, 3.0], [6.0, 100.0, np.inf]], [[-1.0, np.nan, -3.0], [-6.0, 100.0, np.inf]]]
"""(critic, time, batch); only 1, 3 and 6 of the first critic count, and their negatives of the second."""
MASK = [[True, False, True], [True, False, False]]


def mask_of(xp: "Backend", mask: Any) -> Any:
    return xp.module.asarray(np.asarray(mask, bool))


def test_by_hand(xp: "Backend") -> None:
    values, mask = xp.asarray(VALUES), mask_of(xp, MASK)
    np.testing.assert_allclose(xp.numpy(masked_mean(values, mask)), [10 / 3, -10 / 3], rtol=4 * xp.eps)
    assert xp.numpy(masked_max(values, mask)).tolist() == [6.0, -1.0]
    assert xp.numpy(masked_min(values, mask)).tolist() == [1.0, -6.0]
    assert xp.numpy(masked_max(values[0, ...], mask)).shape == ()
    assert float(xp.numpy(masked_mean(values[0, ...], mask))) == pytest.approx(10 / 3, rel=4 * xp.eps)


def test_without_a_mask_it_is_the_last_axis(xp: "Backend") -> None:
    values = xp.asarray([[1.0, 2.0, 6.0], [0.0, -2.0, -4.0]])
    assert xp.numpy(masked_mean(values)).tolist() == [3.0, -2.0]
    assert xp.numpy(masked_max(values)).tolist() == [6.0, 0.0]
    assert xp.numpy(masked_min(values)).tolist() == [1.0, -4.0]


def test_no_row_at_all_is_a_mean_of_zero(xp: "Backend") -> None:
    values, mask = xp.asarray([[np.nan, np.inf]]), mask_of(xp, [[False, False]])
    assert float(xp.numpy(masked_mean(values, mask))) == 0.0
    assert float(xp.numpy(masked_max(values, mask))) == -np.inf
    assert float(xp.numpy(masked_min(values, mask))) == np.inf


def test_means_of_parts_over_their_mean_count_make_that_of_the_whole(xp: "Backend") -> None:
    values, mask = [[1.0, 2.0, 4.0], [8.0, 16.0, 32.0]], [[True, False, False], [True, True, True]]
    parts = [masked_mean(xp.asarray(rows), mask_of(xp, counted), xp.asarray(2.0)) for rows, counted in zip(values, mask, strict=True)]
    assert [float(xp.numpy(part)) for part in parts] == pytest.approx([0.5, 28.0], rel=4 * xp.eps)
    whole = float(xp.numpy(masked_mean(xp.asarray(values), mask_of(xp, mask))))
    assert sum(float(xp.numpy(part)) for part in parts) / 2 == pytest.approx(whole, rel=4 * xp.eps) == 57 / 4
    # Of two parts with one row together, the mean count is a half.
    half = masked_mean(xp.asarray(values[0]), mask_of(xp, mask[0]), xp.asarray(0.5))
    assert float(xp.numpy(half)) == pytest.approx(2.0, rel=4 * xp.eps)
    with pytest.raises(ValueError, match="count is given without a mask"):
        masked_mean(xp.asarray([1.0, 2.0]), count=xp.asarray(2.0))


@pytest.mark.parametrize("batch", [1, 3, 41, 64, 100])
@pytest.mark.parametrize("time", [False, True])
def test_of_all_rows_it_is_the_plain_mean_bit_for_bit(xp: "Backend", batch: int, time: bool) -> None:
    """Also of a batch with a time axis of one step: so a recurrent agent at sequences of one step has the plain agent's losses."""
    values = xp.asarray(np.random.default_rng(batch).normal(size=(2, batch)))
    with_time = xp.module.reshape(values, (2, 1, batch)) if time else values
    mask = mask_of(xp, np.ones((1, batch) if time else batch))
    for one, other in ((values, with_time), (values[0, ...], with_time[0, ...])):
        plain = xp.numpy(masked_mean(one))
        assert plain.tolist() == xp.numpy(masked_mean(other, mask)).tolist()
        np.testing.assert_array_equal(plain, xp.numpy(xp.module.mean(one, **{"dim" if xp.library == "torch" else "axis": -1})))


@pytest.mark.parametrize("batch", [1, 3, 64, 100])
def test_of_all_rows_its_gradient_is_the_plain_one_bit_for_bit(autodiff_xp: "Backend", batch: int) -> None:
    values, mask = np.random.default_rng(batch).normal(size=(1, batch)), mask_of(autodiff_xp, np.ones((1, batch)))
    plain = autodiff_xp.gradient(lambda x: masked_mean(x * x), values[0])
    masked = autodiff_xp.gradient(lambda x: masked_mean(x * x, mask), values)
    assert plain.tolist() == masked[0].tolist()


@pytest.mark.parametrize("batch", [3, 64, 100, 256])
def test_compiled_by_jax_it_is_the_plain_mean_bit_for_bit(batch: int) -> None:
    """XLA multiplies by the reciprocal of a number of rows that it knows, so that a division by one that is counted differs."""
    jax = pytest.importorskip("jax")
    for dtype in ("float32", "float64"):
        values = jax.numpy.asarray(np.random.default_rng(batch).normal(size=(1, batch)), dtype)
        masked = jax.jit(masked_mean)(values, jax.numpy.ones((1, batch), bool))
        assert float(masked) == float(jax.jit(lambda x: x.mean(-1))(values[0]))


def test_trap_19_rows_that_do_not_count_have_no_gradient(autodiff_xp: "Backend") -> None:
    """Not even where they are not finite: 0 * NaN would be NaN."""
    mask = mask_of(autodiff_xp, MASK)
    gradient = autodiff_xp.gradient(lambda x: masked_mean(3.0 * x, mask), VALUES[0])
    np.testing.assert_allclose(gradient, MASK, rtol=4 * autodiff_xp.eps)


def test_what_is_no_mask_is_refused(xp: "Backend") -> None:
    values = xp.asarray(np.ones((2, 4, 3)))
    for function in (masked_mean, masked_max, masked_min):
        unchecked = getattr(function, "__wrapped__", function)  # the tests' own shape checks speak first otherwise
        with pytest.raises(TypeError, match=rf"{function.__name__}: mask has dtype .*expected bool"):
            unchecked(values, xp.asarray(np.ones((4, 3))))
        with pytest.raises(ValueError, match=rf"{function.__name__}: mask has shape \(3, 4\), expected \(4, 3\).*permute the axes of mask"):
            unchecked(values, mask_of(xp, np.ones((3, 4))))
        with pytest.raises(ValueError, match=r"mask has shape \(1, 2, 4, 3\), expected \(2, 4, 3\).*drop the first axis"):
            unchecked(values, mask_of(xp, np.ones((1, 2, 4, 3))))
