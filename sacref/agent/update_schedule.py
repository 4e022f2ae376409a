"""When an agent learns: timesteps ask for gradient steps, which are counted exactly and taken at the end of a chunk."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from sacref.config import SACConfig
from sacref.storage import checkpoint

logger = logging.getLogger(__name__)

FINEST = 1_000_000
"""Gradient steps for each timestep are counted exactly, in fractions with denominators up to this."""


@dataclass
class Pace:
    """Where an agent is between two updates."""

    due: Fraction = Fraction(0)
    """Gradient steps that the timesteps so far ask for and no update has taken."""
    waiting: int = 0
    """Timesteps of the chunk at hand."""

    def after_timestep(self, cfg: SACConfig, num_envs: int, *, last: bool) -> int:
        """Count a timestep that is learned from.

        Args:
            num_envs: environments of this rank. last: whether the run ends here.

        Returns:
            The gradient steps to take now: at the end of a chunk or of the run, else 0.
        """
        self.due += Fraction(cfg.gradient_steps_per_timestep(num_envs)).limit_denominator(FINEST)
        self.waiting += 1
        if self.waiting < cfg.chunk and not last:
            return 0
        self.waiting = 0
        steps = int(self.due)
        self.due -= steps
        return steps

    def metadata(self) -> dict[str, Any]:
        """What a checkpoint says of it."""
        return {"gradient_steps_due": [self.due.numerator, self.due.denominator], "timesteps_to_learn_from": self.waiting}


def read_pace(path: Path, metadata: Mapping[str, Any], cfg: SACConfig, num_envs: int) -> Pace:
    """What `Pace.metadata` gave; the beginning of a chunk for a checkpoint that does not say.

    Raises:
        checkpoint.CheckpointError: if they are no numbers of steps.
    """
    due, waiting = metadata.get("gradient_steps_due", [0, 1]), metadata.get("timesteps_to_learn_from", 0)
    numbers = [*due, waiting] if isinstance(due, list) and len(due) == 2 else []
    if not numbers or not all(type(number) is int and number >= 0 for number in numbers) or not 0 < due[1] <= FINEST:
        raise checkpoint.CheckpointError(
            f"{path} says gradient steps {checkpoint.short.repr(due)} are due after {checkpoint.short.repr(waiting)} timesteps, "
            f"expected two integers and one"
        )
    most = cfg.chunk * Fraction(cfg.gradient_steps_per_timestep(num_envs)) + 1
    if due[0] > due[1] * most or waiting >= cfg.chunk:
        # Of an agent with longer chunks or more environments; or a stranger's number, which would keep an update busy for ever.
        logger.info("%s was written within a chunk that this agent does not have: a new one begins", path)
        return Pace()
    return Pace(Fraction(*due), waiting)
