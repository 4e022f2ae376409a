"""Numerical faults of training: the first metrics that are not finite, their likely cause, and advice."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sacref.agent.protocol import Agent
from sacref.config import SACConfig
from sacref.spec.arrays import NumpyArray

MOST_SKIPPED = 100
"""Steps in a row that may overflow in float16: after 24, the largest loss scale has become the smallest."""

NAMED = 6
"""Names that a message lists."""

_CAUSES = (
    ("learning_rate", "the learning rate's schedule"),
    ("alpha", "the temperature, by its step before this one"),
    ("target", "the policy, by its last step before this one, or by its output for this batch"),
    ("q_", "the critics' values of this batch"),
    ("critic_loss", "the critics' loss, which overflows"),
    ("critic_gradient_norm", "the critics' gradient"),
    ("entropy", "the policy's output for this batch"),
    ("policy_loss", "the critics' gradient: the policy's loss is the first to see the critics after their step"),
    ("policy_gradient_norm", "the policy's gradient"),
)
"""Metrics in the order in which an update computes them, and the cause where one is the first that is not finite."""


class NumericalError(RuntimeError):
    """Training has become NaN or infinite; the message says what, at which gradient step, the last good checkpoint, and the fix."""


class Fault(NamedTuple):
    """The first gradient step that measured what is not finite."""

    row: int
    """Among those that were looked at."""
    names: list[str]
    """Names of the metrics, in the order in which an update computes them."""
    cause: str


def first_fault(names: Sequence[str], rows: NumpyArray) -> Fault | None:
    """Find the first row of metrics, `(gradient step, metric)`, with NaN or infinity; None where all are finite.

    Args:
        names: of each column; of those that each critic has, a name several times.
        rows: what was measured. Steps that were skipped, for a float16 overflow, are to be left out of it.
    """
    bad = ~np.isfinite(rows)
    if not bad.any():
        return None
    row = int(bad.any(axis=1).argmax())
    found = list(dict.fromkeys(name for name, is_bad in zip(names, bad[row], strict=True) if is_bad))
    ranked = sorted(found, key=_order)
    place = _order(ranked[0])
    return Fault(row, ranked, _CAUSES[place][1] if place < len(_CAUSES) else "the temperature's loss")


def _order(name: str) -> int:
    """Return the place of a metric in an update, as an index of `_CAUSES`."""
    matches = [place for place, (part, _) in enumerate(_CAUSES) if (name == part if part in ("alpha", "entropy") else part in name)]
    return matches[0] if matches else len(_CAUSES)


def not_finite(arrays: Mapping[str, NumpyArray]) -> list[str]:
    """Names of the arrays that hold NaN or infinity, as they come."""
    return [name for name, array in arrays.items() if not np.isfinite(array).all()]


def listed(names: Sequence[str]) -> str:
    """List the first names, and how many more there are."""
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")


def advice(cfg: SACConfig, checkpoint: Path | None) -> str:
    """Name the checkpoint to go on from, and settings to change."""
    fixes = ["lower learning_rate"]
    if cfg.grad_norm_clip <= 0:
        fixes.append("clip gradients (grad_norm_clip)")
    if cfg.mixed_precision:
        fixes.append("compute in float32 (mixed_precision=False)")
    fixes.append("make rewards smaller (reward_scale)")
    good = "There is no checkpoint yet" if checkpoint is None else f"The last good checkpoint is {checkpoint}"
    return f"{good}. Train again with another setting: {', '.join(fixes)}; in models of your own, look for roots, logarithms and quotients"


def require_finite_actions(agent: Agent, actions: NumpyArray) -> NumpyArray:
    """Return the actions; raise if the policy makes NaN or infinity, for which a simulator must not be blamed.

    Args:
        actions: `(envs, *action)`, as the agent chose them.

    Raises:
        NumericalError: naming the gradient step where it is training that did it.
    """
    if np.isfinite(actions).all():
        return actions
    agent.check_numbers()
    bad = np.flatnonzero(~np.isfinite(actions).reshape(len(actions), -1).all(axis=1))
    raise NumericalError(
        f"the policy's actions for environment {', '.join(map(str, bad))} are not finite (NaN or infinity), and its parameters are: its "
        f"output overflows for these observations. Look at their size (an observation_preprocessor standardises), or at models of your own"
    )
