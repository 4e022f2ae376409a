"""Dynamic loss scaling: what keeps small gradients above the smallest number that float16 has."""

from typing import Any

from sacref.spec.arrays import ArrayT, namespace

INITIAL_SCALE = 2.0**16
"""Of the first step, as in torch.amp.GradScaler."""
LARGEST_SCALE = 2.0**24
"""Where gradients that are exactly zero, which never overflow, stop the growth."""
GROWTH_INTERVAL = 2_000
"""Steps without an overflow after which the scale doubles."""


def next_scale(scale: ArrayT, good_steps: ArrayT, overflow: Any) -> tuple[ArrayT, ArrayT]:
    """The loss scale of the next step (Micikevicius et al. 2018, arXiv:1710.03740, section 3.2).

    It halves where the scaled gradients overflowed, and doubles after `GROWTH_INTERVAL` steps in a row where they did not, within
    [1, `LARGEST_SCALE`]. Being powers of two, scales change no digit of a gradient.

    Args:
        scale: `()`, of this step.
        good_steps: `()`, integers: steps without an overflow since the scale changed.
        overflow: `()`, bool: whether this step's gradients hold infinity or NaN.

    Returns:
        Scale and good_steps of the next step.
    """
    xp: Any = namespace(scale)
    grown = good_steps + 1 >= GROWTH_INTERVAL
    following = xp.where(overflow, scale * 0.5, xp.where(grown, scale * 2.0, scale))
    counted = xp.where(overflow | grown, xp.zeros_like(good_steps), good_steps + 1)
    return xp.clip(following, 1.0, LARGEST_SCALE), counted
