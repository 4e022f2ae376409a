"""Running mean and variance: merging those of two sets of rows, and standardising values by them."""

from jaxtyping import Float

from sacref.spec.arrays import ArrayT, require_one_dtype, require_shape


def merge(
    count: Float[ArrayT, ""],
    mean: Float[ArrayT, "*shape"],
    m2: Float[ArrayT, "*shape"],
    other_count: Float[ArrayT, ""],
    other_mean: Float[ArrayT, "*shape"],
    other_m2: Float[ArrayT, "*shape"],
) -> tuple[Float[ArrayT, ""], Float[ArrayT, "*shape"], Float[ArrayT, "*shape"]]:
    """Merge the moments of two sets of rows.

    Chan, Golub & LeVeque 1983 (The American Statistician 37(3), doi:10.1080/00031305.1983.10483115), their pairwise update in terms of
    means. Unlike a sum of squares it keeps the variance of values that are large beside their spread. A set may have one row, or none.

    Args:
        count, other_count: the rows of each set, `()`.
        mean, other_mean: their means, `(*shape)`; those of no rows are not read but must be finite.
        m2, other_m2: their sums of squared differences from the mean, `(*shape)`; the variance times the count. 0 of no rows.

    Returns:
        Count, mean and m2 of both sets together.

    Raises:
        TypeError: if the dtypes differ. ValueError: if the shapes differ.
    """
    xp = require_one_dtype("merge", count=count, mean=mean, m2=m2, other_count=other_count, other_mean=other_mean, other_m2=other_m2)
    shape = tuple(mean.shape)
    for name, array in (("m2", m2), ("other_mean", other_mean), ("other_m2", other_m2)):
        require_shape("merge", name, array, shape, "as mean")
    for name, array in (("count", count), ("other_count", other_count)):
        require_shape("merge", name, array, (), "a scalar")
    total: ArrayT = count + other_count
    share: ArrayT = other_count / xp.where(total > 0.0, total, 1.0)
    difference: ArrayT = other_mean - mean
    merged_mean: ArrayT = mean + difference * share
    merged_m2: ArrayT = m2 + other_m2 + difference * difference * (count * share)
    return total, merged_mean, merged_m2


def standardise(
    values: Float[ArrayT, "..."],
    mean: Float[ArrayT, "*shape"],
    variance: Float[ArrayT, "*shape"],
    *,
    epsilon: float = 1e-8,
    clip: float = 5.0,
) -> Float[ArrayT, "..."]:
    """Return values in units of their spread: (values - mean) / sqrt(variance + epsilon), cut at -clip and clip.

    The usual normaliser of observations, as in Andrychowicz et al. 2021 (arXiv:2006.05990), appendix B.9.

    Args:
        values: `(*batch, *shape)`.
        mean, variance: of each number, `(*shape)`.
        epsilon: what keeps a number that never varies from being divided by 0, in squared units of the values.
        clip: the largest magnitude of what is returned, in standard deviations.

    Returns:
        Shape `(*batch, *shape)`. NaN stays NaN.

    Raises:
        TypeError: if the dtypes differ. ValueError: if `values` does not end in the shape of `mean`.
    """
    xp = require_one_dtype("standardise", values=values, mean=mean, variance=variance)
    shape = tuple(mean.shape)
    require_shape("standardise", "variance", variance, shape, "as mean")
    batch_axes = values.ndim - len(shape)
    if batch_axes < 0 or tuple(values.shape)[batch_axes:] != shape:
        raise ValueError(
            f"standardise: values has shape {tuple(values.shape)}, expected (*batch, *shape) with *shape {shape} as mean: "
            f"give it the moments of its own numbers"
        )
    lifted = (None,) * batch_axes + (...,)
    scale: ArrayT = xp.sqrt(variance + epsilon)
    scaled: ArrayT = (values - mean[lifted]) / scale[lifted]
    clipped: ArrayT = xp.where(scaled < -clip, -clip, xp.where(scaled > clip, clip, scaled))
    return clipped
