"""Between the actions of the agent, in (-1, 1), and those of the environment, in the Box's own units."""

from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import DTypeLike, NDArray

from sacref.spec.arrays import ArrayT, namespace


def bounds_within(low: NDArray[np.float64], high: NDArray[np.float64], dtype: DTypeLike) -> tuple[NDArray[Any], NDArray[Any]]:
    """The bounds in a dtype, rounded inwards: the nearest float32 to a float64 Box's 0.1 is larger, and an action of it outside."""
    near_low, near_high = low.astype(dtype), high.astype(dtype)
    inner_low = np.where(near_low < low, np.nextafter(near_low, near_low.dtype.type(np.inf)), near_low)
    inner_high = np.where(near_high > high, np.nextafter(near_high, near_high.dtype.type(-np.inf)), near_high)
    return inner_low, inner_high


def to_box(
    actions: Float[ArrayT, "envs action"], low: Float[ArrayT, "action"], high: Float[ArrayT, "action"]
) -> Float[ArrayT, "envs action"]:
    """Map [-1, 1] onto [low, high] affinely. The result never leaves the Box, whatever the rounding."""
    xp = namespace(actions, low, high)
    scaled = low[None, ...] + (0.5 * (actions + 1.0)) * (high - low)[None, ...]
    scaled = xp.where(scaled < low[None, ...], low[None, ...], scaled)
    clipped: ArrayT = xp.where(scaled > high[None, ...], high[None, ...], scaled)
    return clipped


def from_box(
    actions: Float[ArrayT, "envs action"], low: Float[ArrayT, "action"], high: Float[ArrayT, "action"]
) -> Float[ArrayT, "envs action"]:
    """The inverse of `to_box`. Actions outside of the Box count as the nearest inside, which is what environments make of them."""
    xp = namespace(actions, low, high)
    scaled = 2.0 * (actions - low[None, ...]) / (high - low)[None, ...] - 1.0
    scaled = xp.where(scaled < -1.0, -1.0, scaled)
    clipped: ArrayT = xp.where(scaled > 1.0, 1.0, scaled)
    return clipped
