"""The update schedule: timesteps ask for gradient steps, which are counted exactly and taken at the end of a chunk."""

import logging
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

from sacref.config import SACConfig
from sacref.config.update_to_data import FINEST
from sacref.storage import checkpoint

logger: logging.Logger = logging.getLogger(__name__)


class Progress(NamedTuple):
    """Position between two updates."""

    due: Fraction = Fraction(0)
    """Gradient steps that the timesteps so far ask for and no update has taken."""
    waiting: int = 0
    """Timesteps of the chunk that has begun."""


class UpdateSchedule:
    """Counts timesteps and says how many gradient steps are due.

    Args:
        num_envs: environments of this rank.
    """

    def __init__(self, cfg: SACConfig, num_envs: int) -> None:
        self.progress: Progress = Progress()
        self._chunk = cfg.chunk
        self._per_timestep = Fraction(cfg.gradient_steps_per_timestep(num_envs))
        self._counted = self._per_timestep.limit_denominator(FINEST)

    def after_timestep(self, *, last: bool) -> int:
        """Count a timestep that is learned from.

        Args:
            last: whether the run ends here.

        Returns:
            The gradient steps to take now: at the end of a chunk or of the run, else 0.
        """
        due, waiting = self.progress
        if self._chunk == 1 and not due and self._counted.denominator == 1:
            return self._counted.numerator  # without fractions, which take longer than the rest of a timestep's bookkeeping
        due, waiting = due + self._counted, waiting + 1
        if waiting < self._chunk and not last:
            self.progress = Progress(due, waiting)
            return 0
        steps = int(due)
        self.progress = Progress(due - steps)
        return steps

    def metadata(self) -> dict[str, object]:
        """Return the progress as a checkpoint holds it."""
        due, waiting = self.progress
        return {"gradient_steps_due": [due.numerator, due.denominator], "timesteps_to_learn_from": waiting}

    def read(self, path: Path, metadata: Mapping[str, object]) -> Progress:
        """Return the progress that the metadata of a checkpoint hold; the beginning of a chunk where they hold none.

        Raises:
            checkpoint.CheckpointError: if they are no numbers of steps.
        """
        due, waiting = metadata.get("gradient_steps_due", [0, 1]), metadata.get("timesteps_to_learn_from", 0)
        numbers = [*due, waiting] if isinstance(due, list) and len(due) == 2 else []
        if not numbers or not all(type(number) is int and number >= 0 for number in numbers) or not 0 < numbers[1] <= FINEST:
            raise checkpoint.CheckpointError(
                f"{path} says gradient steps {checkpoint.short.repr(due)} are due after {checkpoint.short.repr(waiting)} timesteps, "
                f"expected two integers and one"
            )
        numerator, denominator, timesteps = numbers
        if numerator > denominator * (self._chunk * self._per_timestep + 1) or timesteps >= self._chunk:
            # Of an agent with longer chunks or more environments; or a stranger's number, which would keep an update busy for ever.
            logger.info("%s was written within a chunk that this agent does not have: a new one begins", path)
            return Progress()
        return Progress(Fraction(numerator, denominator), timesteps)
