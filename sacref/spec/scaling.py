"""Dynamic loss scaling, which keeps small gradients above the smallest number that float16 has."""

from sacref.spec.arrays import ArrayT, namespace

INITIAL_SCALE = 2.0**16
"""The scale of the first step, as in torch.amp.GradScaler."""
LARGEST_SCALE = 2.0**24
"""The largest scale: gradients that are exactly zero never overflow, and would let it grow for ever."""
GROWTH_INTERVAL = 2_000
"""Steps without an overflow after which the scale doubles."""


def next_scale(scale: ArrayT, good_steps: ArrayT, overflow: ArrayT) -> tuple[ArrayT, ArrayT]:
    """Return the loss scale of the next step (Micikevicius et al. 2018, arXiv:1710.03740, section 3.2).

    It halves where the scaled gradients overflowed, and doubles after `GROWTH_INTERVAL` steps in a row where they did not, within
    [1, `LARGEST_SCALE`]. Being powers of two, scales change no digit of a gradient.

    Args:
        scale: `()`, in force at this step.
        good_steps: `()`, integers: steps without an overflow since the scale changed.
        overflow: `()`, bool: whether this step's gradients hold infinity or NaN.

    Returns:
        Scale and good_steps of the next step.
    """
    xp = namespace(scale)
    grown = good_steps + 1 >= GROWTH_INTERVAL
    following = xp.where(overflow, scale * 0.5, xp.where(grown, scale * 2.0, scale))
    counted = xp.where(xp.logical_or(overflow, grown), xp.zeros_like(good_steps), good_steps + 1)
    # clip of array-api-compat 1.12 and 1.13 indexes by a mask, which no CUDA graph can hold.
    bounded: ArrayT = xp.where(following < 1.0, 1.0, xp.where(following > LARGEST_SCALE, LARGEST_SCALE, following))
    return bounded, counted
