"""What the actor sees of the critics: the minimum of several, or the mean."""

from collections.abc import Callable, Mapping
from typing import Any

from sacref.spec.arrays import ArrayT, namespace


def all_values(q: ArrayT) -> ArrayT:
    """The values of all critics, `(critic, *batch)`, as they are: the actor takes their minimum."""
    return q


def mean_value(q: ArrayT) -> ArrayT:
    """The mean over the critics as that of a single one, `(1, *batch)` (REDQ: Chen et al. 2021, arXiv:2101.05982, algorithm 1)."""
    mean: ArrayT = namespace(q).mean(q, axis=0)[None, ...]
    return mean


POLICY_VALUES: Mapping[str, Callable[[Any], Any]] = {"min": all_values, "mean": mean_value}
"""What `cfg.policy_value` shows the actor of the critics."""
