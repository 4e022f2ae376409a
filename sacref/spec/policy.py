"""The policy: a Gaussian squashed through tanh into (-1, 1), and its log-density."""

import math

from jaxtyping import Float

from sacref.spec.arrays import ArrayT, Namespace, require_one_dtype, require_shape

LOG_2 = math.log(2.0)
HALF_LOG_2_PI = 0.5 * math.log(2.0 * math.pi)


def bound_log_std(raw: Float[ArrayT, "*batch action"], low: float = -20.0, high: float = 2.0) -> Float[ArrayT, "*batch action"]:
    """Clip the raw log standard deviation to [low, high].

    Haarnoja et al. 2018b (arXiv:1812.05905), as in the authors' code: a hard clip, so that the gradient is 1 inside (the ends
    included) and 0 outside. Written with `where` because the libraries' own `clip` disagree about the gradient at the ends.

    Args:
        raw: unbounded output of the policy network, shape `(*batch, action)`.
        low, high: bounds in nats.

    Returns:
        Log standard deviation in nats, shape `(*batch, action)`.

    Raises:
        TypeError: if raw is neither float32 nor float64. ValueError: if `low > high`.
    """
    if low > high:
        raise ValueError(f"bound_log_std: low is {low} and high is {high}, expected low <= high: swap them")
    xp = require_one_dtype("bound_log_std", raw=raw)
    bounded: ArrayT = xp.where(raw < low, low, xp.where(raw > high, high, raw))
    return bounded


def squash(
    mean: Float[ArrayT, "*batch action"],
    log_std: Float[ArrayT, "*batch action"],
    noise: Float[ArrayT, "*batch action"],
) -> tuple[Float[ArrayT, "*batch action"], Float[ArrayT, "*batch"]]:
    """Return a reparameterised sample of the squashed Gaussian and its log-density: u = mean + e^log_std * noise, a = tanh u.

    Haarnoja et al. 2018b (arXiv:1812.05905), equation 21 (appendix C), with log(1 - tanh^2 u) in its softplus form
    2 (log 2 - u - softplus(-2u)), which is exact where tanh saturates.

    Args:
        mean, log_std: of the Gaussian before the squashing, shape `(*batch, action)`; log_std in nats.
        noise: a standard normal draw, shape `(*batch, action)`.

    Returns:
        Action in (-1, 1), shape `(*batch, action)`, and its log-density in nats, shape `(*batch,)`.
    """
    xp = require_one_dtype("squash", mean=mean, log_std=log_std, noise=noise)
    require_shape("squash", "log_std", log_std, tuple(mean.shape), "as mean")
    require_shape("squash", "noise", noise, tuple(mean.shape), "as mean")
    pre_tanh: ArrayT = mean + xp.exp(log_std) * noise
    return xp.tanh(pre_tanh), _log_density(xp, noise, log_std, pre_tanh)


def log_prob(
    mean: Float[ArrayT, "*batch action"],
    log_std: Float[ArrayT, "*batch action"],
    pre_tanh: Float[ArrayT, "*batch action"],
) -> Float[ArrayT, "*batch"]:
    """Return the log-density of the action tanh(pre_tanh) under the squashed Gaussian; the equation of `squash`, for a given u.

    Haarnoja et al. 2018b (arXiv:1812.05905), equation 21. It takes u and not the action, because a saturated tanh cannot be inverted.

    Args:
        mean, log_std: of the Gaussian before the squashing, shape `(*batch, action)`; log_std in nats.
        pre_tanh: u, the value before the squashing, shape `(*batch, action)`.

    Returns:
        Log-density in nats, shape `(*batch,)`.
    """
    xp = require_one_dtype("log_prob", mean=mean, log_std=log_std, pre_tanh=pre_tanh)
    require_shape("log_prob", "log_std", log_std, tuple(mean.shape), "as mean")
    require_shape("log_prob", "pre_tanh", pre_tanh, tuple(mean.shape), "as mean")
    standardised: ArrayT = (pre_tanh - mean) / xp.exp(log_std)
    return _log_density(xp, standardised, log_std, pre_tanh)


def _log_density(xp: Namespace, standardised: ArrayT, log_std: ArrayT, pre_tanh: ArrayT) -> ArrayT:
    """Return sum[log N(u) - log(1 - tanh^2 u)] over the action axis."""
    log_gaussian = -0.5 * standardised * standardised - log_std - HALF_LOG_2_PI
    # u + softplus(-2u) is the even function |u| + log1p(e^-2|u|): neither side of zero cancels, nothing overflows.
    magnitude = xp.abs(pre_tanh)
    log_jacobian = 2.0 * (LOG_2 - magnitude - xp.log1p(xp.exp(-2.0 * magnitude)))
    log_density: ArrayT = xp.sum(log_gaussian - log_jacobian, axis=-1)
    return log_density
