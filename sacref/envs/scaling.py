"""Between the actions of the agent, in (-1, 1), and those of the environment, in the Box's own units."""

from jaxtyping import Float

from sacref.spec.arrays import ArrayT, namespace


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
