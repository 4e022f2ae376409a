"""Record of what an examined agent showed: its weights before and after each update, and the gradients that its optimizers took."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from sacref.algorithm.data import Batch
from sacref.examine.choices import Choices
from sacref.examine.oracle import NETWORKS, Adam, Moments, group
from sacref.examine.problem import Scene
from sacref.parity.networks import Arrays, Floats, Named

TOLERANCE = {"float64": 1e-9, "float32": 1e-5}
"""Largest relative difference that rounding explains, by dtype."""
ROUNDED = 5e-4
"""As `TOLERANCE`, of a log-density from 1 - a^2 in float32, which has few digits of it where an action comes near its bound."""
LOOSE, LOOSER = 1e-5, 0.15
"""Relative differences up to which a variant is looked at closely: of float64 gradients, and of those that are known less well."""


@dataclass
class Update:
    """One observed update."""

    number: int
    """From 0."""
    batch: Batch[Floats]
    draws: Floats
    first_draws: Floats
    """Those of the first update, for noise that is frozen."""
    before: Arrays
    after: Arrays
    steps: Mapping[str, Sequence[Arrays]] = field(default_factory=dict)
    """Network -> the gradient of each of its optimizer's steps, as the optimizer took it."""
    errors: Arrays = field(default_factory=dict)
    """Parameter -> largest error of its gradient beyond rounding, of gradients that were computed from weights."""

    def noise(self) -> dict[str, Floats]:
        """Name -> standard normal arrays that the update may have drawn: its own, and those of the first update."""
        own = {f"fresh {i}": each for i, each in enumerate(self.draws)}
        return own | {f"frozen {i}": each for i, each in enumerate(self.first_draws)}

    def moved(self, network: str) -> bool:
        """Say whether a network's parameters changed."""
        before, after = group(self.before, network), group(self.after, network)
        return any(not np.array_equal(before[name], after[name]) for name in before)


@dataclass
class Trajectory:
    """The updates of a scene."""

    scene: Scene
    updates: list[Update]
    shown: bool = True
    """Whether the agent showed its gradients."""

    @property
    def loose(self) -> float:
        """Relative difference up to which a variant is looked at closely."""
        return LOOSE if self.shown and self.scene.problem.dtype == "float64" else LOOSER

    @property
    def tolerance(self) -> float:
        """Largest relative difference that rounding explains."""
        return TOLERANCE[self.scene.problem.dtype]

    def tolerance_of(self, chosen: Choices) -> float:
        """Return the largest relative difference of a variant that rounding explains."""
        return ROUNDED if self.scene.problem.dtype == "float32" and "1 - a^2" in chosen.log_prob else self.tolerance

    def between(self, network: str, adam: Adam) -> list[list[Arrays]]:
        """Compute the network's parameters before its first step of each update, after it, after the second and so on."""
        moments = {name: Moments.none(array) for name, array in group(self.updates[0].before, network).items()}
        found = []
        for update in self.updates:
            states = [group(update.before, network)]
            for gradients in update.steps.get(network, ()):
                state = dict(states[-1])
                for name, gradient in gradients.items():
                    state[name], moments[name] = adam.step(state[name], gradient, moments[name], self.scene.problem.learning_rate)
                states.append(state)
            found.append(states)
        return found


def steps_by_network(gradients: Sequence[Named]) -> dict[str, list[Arrays]]:
    """Gradients of optimizer steps, in their order, put together by network: critics may have an optimizer each."""
    found: dict[str, list[Arrays]] = {network: [] for network in NETWORKS}
    for step in gradients:
        for network, steps in found.items():
            part = group(step, network)
            if part and steps and not set(part) & set(steps[-1]):
                steps[-1] |= part
            elif part:
                steps.append(part)
    return found


def recovered(trajectory: Trajectory, adam: Adam) -> Trajectory:
    """Compute the gradient of each network's first step from the weights before and after it, as if `adam` had made the step.

    Adam's first step is the gradient's sign but for its epsilon: in float64, epsilon / |g| can be read off the step.
    """
    rate, found, waiting = trajectory.scene.problem.learning_rate, [], set(NETWORKS)
    for update in trajectory.updates:
        steps: dict[str, list[Arrays]] = {network: [] for network in NETWORKS}
        errors: Arrays = {}
        for network in [network for network in NETWORKS if network in waiting and update.moved(network)]:
            waiting.remove(network)
            gradients = {}
            for name, before in group(update.before, network).items():
                after = update.after[name]
                rounding = np.finfo(before.dtype).eps * (4 + 2 * (np.abs(before) + np.abs(after)) / rate)
                direction = (before - after) / rate - adam.weight_decay * before
                if (np.abs(direction) > 1 + rounding).any():
                    break
                gradients[name], errors[name] = adam.first_gradient(direction, rounding)
            else:
                steps[network].append(gradients)
        found.append(replace(update, steps=steps, errors=errors))
    return replace(trajectory, updates=found)


def gradient_difference(a: Named, b: Named, errors: Named) -> float:
    """Largest difference of one network's gradients beyond `errors`, relative to its largest element: single sums may cancel.

    Elements whose error is infinite are left out.
    """
    gaps, sizes = [0.0], [0.0]
    for name, array in b.items():
        error = errors.get(name, np.zeros_like(array))
        known = np.isfinite(error)
        gaps.append(float((np.abs(a[name] - array) - error)[known].max(initial=0)))
        sizes.append(float(np.abs(array)[known].max(initial=0)))
    gap, size = max(gaps), max(sizes)
    return gap / size if size > 0 and math.isfinite(gap) else math.inf if gap > 0 else 0.0


def difference(a: Named, b: Named) -> float:
    """Largest relative difference of arrays of the same names, max|a - b| / max|b| of each; infinite where one is not finite."""
    largest = 0.0
    for name, array in b.items():
        gap, size = float(np.abs(a[name] - array).max()), float(np.abs(array).max())
        if not math.isfinite(gap):
            return math.inf
        largest = max(largest, gap / size if size > 0 else math.inf if gap > 0 else 0.0)
    return largest
