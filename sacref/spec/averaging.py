"""Exponential moving average of parameters."""

from jaxtyping import Float

from sacref.spec.arrays import ArrayT, require_one_dtype, require_shape


def polyak(target: Float[ArrayT, "*shape"], online: Float[ArrayT, "*shape"], tau: float | Float[ArrayT, ""]) -> Float[ArrayT, "*shape"]:
    """Move a target parameter towards its online twin: tau online + (1 - tau) target.

    Lillicrap et al. 2016 (arXiv:1509.02971), algorithm 1. Two products and a sum; the `lerp` that PyTorch's recorded updates have
    in their place rounds differently.

    Args:
        target, online: of one shape.
        tau: the online parameter's share, in [0, 1]; 0 keeps the target, 1 copies the online one.

    Returns:
        The new target, of the same shape.

    Raises:
        TypeError: if the dtypes differ. ValueError: if the shapes differ.
    """
    require_one_dtype("polyak", target=target, online=online)
    require_shape("polyak", "online", online, tuple(target.shape), "as target")
    if isinstance(tau, float | int):
        tau = float(tau)  # a NumPy scalar is a float too, but would promote float32 to its own type
    else:
        require_one_dtype("polyak", target=target, tau=tau)
        require_shape("polyak", "tau", tau, (), "a scalar")
    averaged: ArrayT = tau * online + (1.0 - tau) * target
    return averaged
