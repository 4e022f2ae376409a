"""The oracle's learning-rate schedules, in Python floats: a factor of the number of updates made before, or a rule on the divergence."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Schedule = Callable[..., float]
"""Updates made before -> factor of the rate; or an `Adaptive`."""


def constant(done: int) -> float:
    """Return 1."""
    return 1.0


def linear(done: int, *, steps: float, end: float = 0.0) -> float:
    """Go from 1 to `end` in `steps` updates."""
    left = max(steps - done, 0) / steps
    return left + (1 - left) * end


def cosine(done: int, *, steps: float, end: float = 0.0) -> float:
    """Go from 1 to `end` in `steps` updates, along cos^2 of a quarter turn."""
    weight = math.cos(math.pi / 2 * min(done, steps) / steps) ** 2
    return weight + (1 - weight) * end


def exponential(done: int, *, decay: float) -> float:
    """Multiply by `decay` at every update."""
    return float(decay**done)


def warm_up(done: int, *, steps: float) -> float:
    """Go through 1/steps, 2/steps, ..., 1, 1."""
    return min(done + 1, steps) / steps


def piecewise(done: int, *, boundaries: tuple[float, ...], factors: tuple[float, ...]) -> float:
    """Return `factors[i]`, i being how many boundaries are reached."""
    return factors[sum(done >= boundary for boundary in boundaries)]


@dataclass(frozen=True)
class Adaptive:
    """The rule of rl_games and skrl: too far from the threshold by `kl_factor`, and the rate moves by `lr_factor`."""

    kl_threshold: float = 0.008
    kl_factor: float = 2.0
    lr_factor: float = 1.5
    min_lr: float = 1e-6
    max_lr: float = 1e-2

    def __call__(self, rate: float, divergence: float) -> float:
        """Return the rate of the next update."""
        if divergence > self.kl_threshold * self.kl_factor:
            return max(float(rate) / self.lr_factor, self.min_lr)
        if divergence < self.kl_threshold / self.kl_factor:
            return min(float(rate) * self.lr_factor, self.max_lr)
        return float(rate)


FACTORS: dict[str, Schedule] = {each.__name__: each for each in (constant, linear, cosine, exponential, warm_up, piecewise)}


def make(name: str | None, kwargs: dict[str, Any]) -> Schedule | None:
    """Make the schedule of a name in a configuration; None for a constant rate."""
    if name is None:
        return None
    if name == "kl_adaptive":
        return Adaptive(**kwargs)
    return lambda done: FACTORS[name](done, **kwargs)
