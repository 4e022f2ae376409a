"""Reductions over the rows of a batch that count: padding does not, nor do steps that only warm up a carry."""

import math

from jaxtyping import Bool, Float

from sacref.spec.arrays import ArrayT, Namespace, require_one_dtype, require_shape


def masked_mean(
    values: Float[ArrayT, "*leading_and_batch"],
    mask: Bool[ArrayT, "*batch"] | None = None,
    count: Float[ArrayT, ""] | None = None,
) -> Float[ArrayT, "*leading"]:
    """Return the mean over the rows that count: sum(where(mask, values, 0)) / max(count, 1).

    The losses of sequences of unequal length, as in Ni et al. 2022 (arXiv:2110.05038). A row that does not count enters neither the value
    nor the gradient, be it infinite or NaN. (The gradient of what computed such a row is 0 times its own slope, so that padding should
    still be numbers that a network maps to numbers, as zeros are.)

    Args:
        values: shape `(*leading, *batch)`.
        mask: which rows count, bool, shape `(*batch,)`; None for a batch of one axis whose rows all count.
        count: replaces the number of rows that count, by which the sum is divided, shape `()`. Where the batch is one part of a larger one,
            it is the mean number over the parts, so that the mean over the parts is that of the whole. Only with a mask.

    Returns:
        Mean, shape `(*leading,)`; 0 where no row counts.

    Raises:
        TypeError: if values is neither float32 nor float64, or mask not bool. ValueError: if mask is not of the last axes' shape, or there
            is a count and no mask.
    """
    xp = require_one_dtype("masked_mean", values=values)
    if mask is None and count is not None:
        raise ValueError("masked_mean: count is given without a mask, expected both: the rows of equal parts need no count")
    if mask is None:
        mean: ArrayT = xp.mean(values, axis=-1)
        return mean
    rows, counted = _rows("masked_mean", xp, values, mask)
    count = xp.sum(xp.astype(counted, values.dtype), axis=-1) if count is None else count
    # The library's own mean times a factor that is 1 where all rows count: then both branches agree bit for bit, though XLA divides by a
    # number of rows that it knows in another way than by one that is counted. An array divided by an array: of a number by an array,
    # torch makes a product with the reciprocal.
    share = rows.shape[-1] * xp.ones_like(count) / xp.where(count > 0, count, 1.0)
    mean = xp.mean(xp.where(counted, rows, 0.0), axis=-1) * share
    return mean


def masked_max(values: Float[ArrayT, "*leading_and_batch"], mask: Bool[ArrayT, "*batch"] | None = None) -> Float[ArrayT, "*leading"]:
    """Return the largest value of the rows that count (sequences: Ni et al. 2022, arXiv:2110.05038).

    Args:
        values: shape `(*leading, *batch)`.
        mask: see `masked_mean`.

    Returns:
        Maximum, shape `(*leading,)`; -inf where no row counts.

    Raises:
        TypeError, ValueError: as `masked_mean`.
    """
    xp = require_one_dtype("masked_max", values=values)
    if mask is not None:
        rows, counted = _rows("masked_max", xp, values, mask)
        values = xp.where(counted, rows, -math.inf)
    return xp.max(values, axis=-1)


def masked_min(values: Float[ArrayT, "*leading_and_batch"], mask: Bool[ArrayT, "*batch"] | None = None) -> Float[ArrayT, "*leading"]:
    """Return the smallest value of the rows that count (sequences: Ni et al. 2022, arXiv:2110.05038).

    Args:
        values: shape `(*leading, *batch)`.
        mask: see `masked_mean`.

    Returns:
        Minimum, shape `(*leading,)`; inf where no row counts.

    Raises:
        TypeError, ValueError: as `masked_mean`.
    """
    xp = require_one_dtype("masked_min", values=values)
    if mask is not None:
        rows, counted = _rows("masked_min", xp, values, mask)
        values = xp.where(counted, rows, math.inf)
    return xp.min(values, axis=-1)


def _rows(function: str, xp: Namespace, values: ArrayT, mask: ArrayT) -> tuple[ArrayT, ArrayT]:
    """Return values `(*leading, rows)` and mask `(*1, rows)`: one axis for the batch, over which both are summed alike."""
    if mask.dtype != xp.bool:
        raise TypeError(f"{function}: mask has dtype {mask.dtype}, expected bool: make it of a comparison, such as weights > 0")
    leading, batch = tuple(values.shape[: values.ndim - mask.ndim]), tuple(values.shape[max(values.ndim - mask.ndim, 0) :])
    require_shape(function, "mask", mask, batch, "the last axes of values")
    counted: ArrayT = xp.reshape(mask, (*(1 for _ in leading), -1))
    return xp.reshape(values, (*leading, -1)), counted


REDUCTIONS = {"max": masked_max, "min": masked_min, "mean": masked_mean}
"""Kind -> reduction, for metrics of a batch."""
