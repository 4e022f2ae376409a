"""Divergence between the policies before and after an update."""

from jaxtyping import Float

from sacref.spec.arrays import ArrayT, require_one_dtype, require_shape


def kl_divergence(
    mean: Float[ArrayT, "*batch action"],
    log_std: Float[ArrayT, "*batch action"],
    new_mean: Float[ArrayT, "*batch action"],
    new_log_std: Float[ArrayT, "*batch action"],
) -> Float[ArrayT, "*batch"]:
    """Return the divergence of the new policy from the old one, KL(old || new).

    Of the Gaussians before the tanh, which is one and the same map for both and so leaves their divergence as it is. What adaptive rates
    are steered by, as the adaptive penalty of Schulman et al. 2017 (arXiv:1707.06347), section 4, is.

    Args:
        mean, log_std: of the old policy, shape `(*batch, action)`; log_std in nats.
        new_mean, new_log_std: of the new policy, shape `(*batch, action)`.

    Returns:
        Divergence in nats, summed over the actions, shape `(*batch,)`.

    Raises:
        TypeError: if the dtypes differ. ValueError: if the shapes differ.
    """
    xp = require_one_dtype("kl_divergence", mean=mean, log_std=log_std, new_mean=new_mean, new_log_std=new_log_std)
    for name, array in (("log_std", log_std), ("new_mean", new_mean), ("new_log_std", new_log_std)):
        require_shape("kl_divergence", name, array, tuple(mean.shape), "as mean")
    shift = (new_mean - mean) / xp.exp(new_log_std)
    narrowing = log_std - new_log_std
    # expm1, and not a ratio of variances less 1: after a small step the two policies all but agree.
    divergence: ArrayT = xp.sum(0.5 * (shift * shift + xp.expm1(2.0 * narrowing)) - narrowing, axis=-1)
    return divergence
