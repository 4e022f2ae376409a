"""The samples of the learning suite."""

from collections.abc import Iterator
from statistics import fmean
from typing import ClassVar

from bench.core.samples import Figure, Samples, Strict


class Evaluation(Strict, frozen=True, kw_only=True):
    """Deterministic episodes at one point of the training."""

    step: int
    """Environment steps trained before it."""
    returns: list[float]
    """Undiscounted sum of rewards of each episode."""
    seconds: float | None
    """Wall-clock of the run's sessions until it had trained so far, evaluations before this one included. None if it is not known."""


class Session(Strict, frozen=True, kw_only=True):
    """One uninterrupted stretch of a run; a run that was resumed has several."""

    started: str
    """UTC, ISO 8601."""
    resumed: bool
    wall_seconds: float
    """The whole session: environments, updates, evaluations and, on JAX, compiling."""
    cpu_seconds: float
    """Processor time of the same; about `wall_seconds` for a run that keeps to one thread."""
    members: int
    """Runs that this process trained together, as a population, in this time."""
    energy_joules: float | None
    """What the accelerator drew in the meantime, whoever used it: runs beside each other share it. None on the CPU, and if it does not
    tell."""


class LearningSamples(Samples, frozen=True, kw_only=True):
    """Raw samples of one training run."""

    suite: ClassVar[str] = "learning"
    evaluations: list[Evaluation]
    """At every evaluation interval, oldest first; the last is the final one."""
    sessions: list[Session]

    def figures(self) -> Iterator[tuple[str, Figure]]:
        """Yield the names and figures that two runs are compared by."""
        last = self.evaluations[-1]
        yield "final return", Figure([fmean(last.returns)], "return")
        yield "speed", Figure([last.step / sum(session.wall_seconds for session in self.sessions)], "steps/s")
