"""Conversion between the actions of the agent, in (-1, 1), and those of the environment, in the Box's own units."""

import gymnasium
import numpy as np
from jaxtyping import Float
from numpy.typing import DTypeLike

from sacref.envs.interface import Space
from sacref.envs.spaces import DType
from sacref.spec.arrays import ArrayT, NumpyArray, namespace

FEWEST_STEPS = 256
"""Steps from the lowest action to the highest: with fewer, rounding would decide for the policy."""


def bounds_within(low: NumpyArray, high: NumpyArray, dtype: DTypeLike) -> tuple[NumpyArray, NumpyArray]:
    """Round bounds to a dtype, inwards: the nearest float32 to a float64 Box's 0.1 is larger, and an action of it outside."""
    near_low, near_high = low.astype(dtype), high.astype(dtype)
    inner_low = np.where(near_low < low, np.nextafter(near_low, near_low.dtype.type(np.inf)), near_low)
    inner_high = np.where(near_high > high, np.nextafter(near_high, near_high.dtype.type(-np.inf)), near_high)
    return inner_low, inner_high


def action_bounds(space: gymnasium.spaces.Box, dtype: DTypeLike) -> tuple[NumpyArray, NumpyArray]:
    """Return low and high of the actions, `(action,)` each, for an agent that computes in `dtype`: inside the Box, and normal numbers.

    Raises:
        ValueError: if `dtype`, or the Box's own, has too few numbers between them.
    """
    own, kind = np.dtype(space.dtype).newbyteorder("="), np.dtype(dtype)
    outer = space.low.astype(own).reshape(-1), space.high.astype(own).reshape(-1)
    low, high = _normal_within(*_normal_within(*outer, own), kind)
    furthest = np.maximum(*np.abs(outer))
    # Before the furthest, as nothing may be behind it.
    spacings = [
        np.maximum(np.spacing(np.nextafter(furthest.astype(each), each.type(0))), np.finfo(each).smallest_normal) for each in (own, kind)
    ]
    steps = np.subtract(high, low, dtype=np.float64) / np.maximum(*spacings, dtype=np.float64)
    few = np.flatnonzero(~(steps >= FEWEST_STEPS))
    if few.size:
        coarser = min(own, kind, key=lambda each: np.finfo(each).bits)
        raise ValueError(
            f"action_space is {space}: from low {outer[0][few].tolist()} to high {outer[1][few].tolist()} in dimensions {few.tolist()} "
            f"{coarser} has {np.maximum(steps[few], 0).astype(int).tolist()} steps, expected at least {FEWEST_STEPS} to choose from: "
            f"wrap each environment in gymnasium.wrappers.RescaleAction, between -1 and 1"
        )
    return low, high


def _normal_within(low: NumpyArray, high: NumpyArray, dtype: DType) -> tuple[NumpyArray, NumpyArray]:
    # Without subnormal numbers: XLA, and a GPU that is told to, take one for zero, which may lie outside.
    low, high = bounds_within(low, high, dtype)
    least, zero = np.finfo(dtype).smallest_normal, np.zeros((), dtype)
    low = np.where(np.abs(low) < least, np.where(low > 0, least, zero), low)
    return low, np.where(np.abs(high) < least, np.where(high < 0, -least, zero), high)


def as_box(actions: NumpyArray, space: Space) -> NumpyArray:
    """Convert actions to the dtype of an environment's Box; rounded ones stay inside."""
    if not isinstance(space, gymnasium.spaces.Box) or actions.dtype == space.dtype or not np.issubdtype(space.dtype, np.floating):
        return actions
    clipped: NumpyArray = np.clip(actions.astype(space.dtype), space.low, space.high)
    return clipped


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
    """Invert `to_box`. Actions outside of the Box count as the nearest inside, as environments take them."""
    xp = namespace(actions, low, high)
    # Divided first: twice the width of a Box may overflow. Doubling changes no digit.
    scaled = 2.0 * ((actions - low[None, ...]) / (high - low)[None, ...]) - 1.0
    clipped: ArrayT = xp.minimum(xp.maximum(scaled, -1.0), 1.0)
    return clipped
