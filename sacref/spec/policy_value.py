"""The value that the actor maximises: the minimum of the critics, or their mean."""

from collections.abc import Callable, Mapping
from typing import Any

from sacref.spec.arrays import ArrayT, namespace


def all_values(q: ArrayT) -> ArrayT:
    """Return the values of all critics, `(critic, *batch)`, as they are: the actor takes their minimum."""
    return q


def mean_value(q: ArrayT) -> ArrayT:
    """Return the mean over the critics as that of a single one, `(1, *batch)` (REDQ: Chen et al. 2021, arXiv:2101.05982, algorithm 1)."""
    mean: ArrayT = namespace(q).mean(q, axis=0)[None, ...]
    return mean


POLICY_VALUES: Mapping[str, Callable[[Any], Any]] = {"min": all_values, "mean": mean_value}
"""`cfg.policy_value` -> what the actor sees of `(critic, *batch)`, of which it takes the minimum."""
