"""Learning-rate schedules: step -> factor of the base rate. The step counts from 0, so that the first one is taken at `factor(0)`.

A factor multiplies the base rate and never the rate of the step before, which would compound it.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from jaxtyping import Float

from sacref.spec.arrays import ArrayT, require_one_dtype


def constant(step: Float[ArrayT, "*shape"]) -> Float[ArrayT, "*shape"]:
    """Return 1.

    Args:
        step: gradient steps before this one.

    Returns:
        Factor of the base rate, of step's shape and dtype; as all schedules here.
    """
    return require_one_dtype("constant", step=step).ones_like(step)


def linear(step: Float[ArrayT, "*shape"], *, steps: float, end: float = 0.0) -> Float[ArrayT, "*shape"]:
    """Go from 1 to `end` along a line, then `end`: 1 + (end - 1) min(step / steps, 1).

    Args:
        step: gradient steps before this one.
        steps: gradient steps until `end` is reached.
        end: last factor.

    Raises:
        ValueError: if steps is not above 0, or end is below 0.
    """
    _require("linear", "steps", steps, steps > 0, "a number > 0")
    _require("linear", "end", end, end >= 0, "a number >= 0")
    xp = require_one_dtype("linear", step=step)
    factor: ArrayT = 1.0 + (end - 1.0) * xp.where(step < steps, step / steps, 1.0)
    return factor


def cosine(step: Float[ArrayT, "*shape"], *, steps: float, end: float = 0.0) -> Float[ArrayT, "*shape"]:
    """Go from 1 to `end` along half a cosine, then `end`: end + (1 - end) (1 + cos(pi min(step / steps, 1))) / 2.

    Loshchilov & Hutter 2017 (arXiv:1608.03983), equation 5, without restarts.

    Args:
        step: gradient steps before this one.
        steps: gradient steps until `end` is reached.
        end: last factor.

    Raises:
        ValueError: if steps is not above 0, or end is below 0.
    """
    _require("cosine", "steps", steps, steps > 0, "a number > 0")
    _require("cosine", "end", end, end >= 0, "a number >= 0")
    xp = require_one_dtype("cosine", step=step)
    factor: ArrayT = end + (1.0 - end) * 0.5 * (1.0 + xp.cos(math.pi * xp.where(step < steps, step / steps, 1.0)))
    return factor


def exponential(step: Float[ArrayT, "*shape"], *, decay: float) -> Float[ArrayT, "*shape"]:
    """Return decay^step.

    Args:
        step: gradient steps before this one.
        decay: factor of one step, above 0 and at most 1.

    Raises:
        ValueError: if decay is outside that range.
    """
    _require("exponential", "decay", decay, 0 < decay <= 1, "a number above 0 and at most 1")
    xp = require_one_dtype("exponential", step=step)
    factor: ArrayT = xp.exp(math.log(decay) * step)
    return factor


def warm_up(step: Float[ArrayT, "*shape"], *, steps: float) -> Float[ArrayT, "*shape"]:
    """Go from 1 / steps to 1 along a line, then 1: min((step + 1) / steps, 1).

    Goyal et al. 2017 (arXiv:1706.02677), section 2.2. Not from 0, as optax's: a step at rate 0 learns nothing.

    Args:
        step: gradient steps before this one.
        steps: gradient steps until the base rate is reached; the last of them is taken at it.

    Raises:
        ValueError: if steps is not above 0.
    """
    _require("warm_up", "steps", steps, steps > 0, "a number > 0")
    xp = require_one_dtype("warm_up", step=step)
    factor: ArrayT = xp.where(step + 1.0 < steps, (step + 1.0) / steps, 1.0)
    return factor


def piecewise(step: Float[ArrayT, "*shape"], *, boundaries: Sequence[float], factors: Sequence[float]) -> Float[ArrayT, "*shape"]:
    """Return a factor that is constant between boundaries: factors[i] from boundaries[i - 1] on, until before boundaries[i].

    Each factor multiplies the base rate, unlike those of optax's piecewise_constant_schedule, which multiply each other.

    Args:
        step: gradient steps before this one.
        boundaries: first steps of each piece but the first one, in rising order.
        factors: one for each piece, so one more than boundaries.

    Raises:
        ValueError: if the boundaries do not rise, a factor is below 0, or their number does not fit.
    """
    rising = all(low < high for low, high in pairwise(boundaries))
    _require("piecewise", "boundaries", boundaries, len(boundaries) > 0 and rising, "numbers in rising order")
    fitting = len(factors) == len(boundaries) + 1 and all(factor >= 0 for factor in factors)
    _require("piecewise", "factors", factors, fitting, f"{len(boundaries) + 1} numbers >= 0, one more than boundaries")
    xp = require_one_dtype("piecewise", step=step)
    factor: ArrayT = factors[0] * xp.ones_like(step)
    for first, following in zip(boundaries, factors[1:], strict=True):
        factor = xp.where(step < first, factor, float(following))
    return factor


@dataclass(frozen=True)
class KLAdaptive:
    """A rate that follows the policy's divergence step by step.

    The rule of rl_games (AdaptiveScheduler) and skrl (KLAdaptiveRL), which keeps the divergence near the threshold that the adaptive
    penalty of Schulman et al. 2017 (arXiv:1707.06347), section 4, aims at: lower the rate where an update moves the policy too far, raise
    it where the policy hardly moves.
    """

    kl_threshold: float = 0.008
    """Divergence of an update that is aimed at, in nats."""
    kl_factor: float = 2.0
    """The rate stays while the divergence is within kl_threshold / kl_factor and kl_threshold * kl_factor."""
    lr_factor: float = 1.5
    """What the rate is divided or multiplied by."""
    min_lr: float = 1e-6
    """The rate is not lowered below this."""
    max_lr: float = 1e-2
    """The rate is not raised above this."""

    def __post_init__(self) -> None:
        _require("KLAdaptive", "kl_threshold", self.kl_threshold, self.kl_threshold > 0, "a number > 0")
        _require("KLAdaptive", "kl_factor", self.kl_factor, self.kl_factor >= 1, "a number >= 1")
        _require("KLAdaptive", "lr_factor", self.lr_factor, self.lr_factor >= 1, "a number >= 1")
        _require("KLAdaptive", "min_lr", self.min_lr, self.min_lr >= 0, "a number >= 0")
        _require("KLAdaptive", "max_lr", self.max_lr, self.max_lr >= self.min_lr, f"a number >= min_lr, {self.min_lr}")

    def next_rate(self, rate: Float[ArrayT, ""], kl: Float[ArrayT, ""]) -> Float[ArrayT, ""]:
        """Return the rate of the next step.

        Args:
            rate: in force at this step, shape `()`.
            kl: mean divergence of the policy after this step from the one before, in nats, shape `()`. NaN leaves the rate, and so does
                exactly 0: a policy that took no step, a delayed one, says nothing about the rate.

        Returns:
            max(rate / lr_factor, min_lr) where kl is above the range, min(rate * lr_factor, max_lr) where it is below, else rate.
        """
        xp = require_one_dtype("next_rate", rate=rate, kl=kl)
        lower, higher = rate / self.lr_factor, rate * self.lr_factor
        lower, higher = xp.where(lower < self.min_lr, self.min_lr, lower), xp.where(higher > self.max_lr, self.max_lr, higher)
        too_far, hardly = kl > self.kl_threshold * self.kl_factor, kl < self.kl_threshold / self.kl_factor
        moved = xp.abs(kl) > 0
        following: ArrayT = xp.where(too_far, lower, xp.where(hardly, xp.where(moved, higher, rate), rate))
        return following


FACTORS: dict[str, Callable[..., Any]] = {
    function.__name__: function for function in (constant, linear, cosine, exponential, warm_up, piecewise)
}
"""Name -> function from the step to the factor."""
SCHEDULES: dict[str, Callable[..., object]] = {**FACTORS, "kl_adaptive": KLAdaptive}
"""Name in a configuration -> schedule."""


def _require(function: str, name: str, value: object, fine: bool, expected: str) -> None:
    if not fine:
        raise ValueError(f"{function}: {name} is {value}, expected {expected}")
