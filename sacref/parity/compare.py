"""Differences between two implementations: per array, per kind of array, per update."""

import itertools
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from sacref.algorithm.data import Noise
from sacref.parity.drivers import Implementation, Outcome
from sacref.parity.networks import Arrays, Floats
from sacref.parity.oracle import Data

KINDS = ("losses", "gradients", "parameters", "targets", "moments", "alpha")
"""Kinds of compared arrays. `losses`: all metrics of an update, `moments`: the optimizers' with all counters, `alpha`: log alpha."""
PAIRS_OF = ("torch", "jax", "numpy_float32", "numpy")
"""The order of a pair's sides: the second one is what the difference is relative to."""


class Difference(NamedTuple):
    """Difference of an array from the one it is compared with."""

    absolute: float
    """max|a - b|; infinite where one of them is not finite."""
    relative: float
    """max|a - b| / max|b| for arrays, |a - b| / max(|b|, 1) for scalars."""
    where: str
    """The array's name, and the index of the largest absolute difference."""


def difference(a: Floats, b: Floats, name: str) -> Difference:
    """Compare two arrays of one shape; differences are taken in float64.

    Raises:
        ValueError: if the shapes differ.
    """
    if a.shape != b.shape:
        raise ValueError(f"{name} has shape {a.shape} on one side and {b.shape} on the other: the implementations do not mirror each other")
    gap = np.abs(np.subtract(a, b, dtype=np.float64))
    largest = int(np.argmax(gap))
    absolute = float(gap.flat[largest])
    if b.ndim == 0:
        where, scale = name, max(abs(float(b)), 1.0)
    else:
        where = f"{name}[{', '.join(str(int(i)) for i in np.unravel_index(largest, b.shape))}]"
        scale = float(np.abs(b).max())
    if not (math.isfinite(absolute) and math.isfinite(scale)):
        return Difference(math.inf, math.inf, where)
    return Difference(absolute, absolute / scale if scale > 0 else math.copysign(math.inf, absolute) if absolute else 0.0, where)


def kind_of(name: str) -> str:
    """Return the one of `KINDS` to which an array of the state belongs, by its common name."""
    if "_optimizer." in name or name == "gradient_steps":
        return "moments"
    if name.startswith("target_"):
        return "targets"
    return "alpha" if name == "log_alpha" else "parameters"


def compare(a: Outcome, b: Outcome) -> dict[str, tuple[Difference, Difference]]:
    """Compare the outcomes of one update in two implementations.

    Returns:
        Kind -> the differences of the arrays with the largest absolute and with the largest relative difference.

    Raises:
        ValueError: if one side has an array that the other lacks.
    """
    found: dict[str, list[Difference]] = {kind: [] for kind in KINDS}
    for fields, of_kind in ((0, lambda _: "losses"), (1, lambda _: "gradients"), (2, kind_of)):
        for name, left, right in _matched(a[fields], b[fields]):
            found[of_kind(name)].append(difference(left, right, name))
    return {
        kind: (max(differences, key=lambda d: d.absolute), max(differences, key=lambda d: d.relative))
        for kind, differences in found.items()
        if differences
    }


def _matched(a: Arrays, b: Arrays) -> Iterable[tuple[str, Floats, Floats]]:
    if set(a) != set(b):
        raise ValueError(f"only one side has {sorted(set(a) ^ set(b))}: the implementations do not mirror each other")
    return ((name, a[name], b[name]) for name in b)


class Largest(NamedTuple):
    """The largest difference of a run, and when and where it was."""

    value: float
    update: int
    """From 1."""
    where: str


NOTHING_YET = Largest(-1.0, 0, "")


@dataclass
class Trace:
    """All differences of one kind between one pair: one entry per update, and the largest."""

    absolute: list[float] = field(default_factory=list)
    relative: list[float] = field(default_factory=list)
    largest_absolute: Largest = NOTHING_YET
    largest_relative: Largest = NOTHING_YET

    def add(self, absolute: Difference, relative: Difference) -> None:
        """Append the differences of one update."""
        self.absolute.append(absolute.absolute)
        self.relative.append(relative.relative)
        if absolute.absolute > self.largest_absolute.value:
            self.largest_absolute = Largest(absolute.absolute, len(self.absolute), absolute.where)
        if relative.relative > self.largest_relative.value:
            self.largest_relative = Largest(relative.relative, len(self.relative), relative.where)


@dataclass
class Traces:
    """Differences and metrics of a run of several implementations side by side."""

    pairs: dict[tuple[str, str], dict[str, Trace]]
    """(a, b) -> kind -> differences of a from b."""
    metrics: dict[str, dict[str, list[object]]]
    """Implementation -> metric -> its value at each update."""


def side_by_side(
    found: Mapping[str, Implementation],
    draws: Iterable[tuple[Data, Noise[Floats]]],
    *,
    on_update: Callable[[dict[str, Outcome]], None] = lambda outcomes: None,
) -> Traces:
    """Feed the same batches and noise to all implementations, and compare every pair after every update.

    Args:
        found: name -> implementation, each in the state to start from.
        draws: batches with their noise; it ends the run.
        on_update: called after each update with its outcomes.
    """
    names = sorted(found, key=PAIRS_OF.index)
    traces = Traces(pairs={pair: {} for pair in itertools.combinations(names, 2)}, metrics={name: {} for name in names})
    for batch, noise in draws:
        outcomes = {name: found[name].update(batch, noise) for name in names}
        for (a, b), kinds in traces.pairs.items():
            for kind, (absolute, relative) in compare(outcomes[a], outcomes[b]).items():
                kinds.setdefault(kind, Trace()).add(absolute, relative)
        for name, outcome in outcomes.items():
            for metric, value in outcome.metrics.items():
                traces.metrics[name].setdefault(metric, []).append(value.tolist())
        on_update(outcomes)
    return traces
