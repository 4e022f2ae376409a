"""The samples of the learning suite."""

from collections.abc import Iterator
from statistics import fmean
from typing import ClassVar

from bench.core.samples import Figure, Samples, Strict


class Evaluation(Strict, frozen=True, kw_only=True):
    """Deterministic episodes after some steps of the training."""

    step: int
    """Environment steps trained before it."""
    returns: list[float]
    """Undiscounted sum of rewards of each episode."""
    seconds: float | None
    """Wall-clock of the run's sessions until then, earlier evaluations included; None if it is not known."""


class Session(Strict, frozen=True, kw_only=True, omit_defaults=True):
    """One uninterrupted stretch of a run; a run that was resumed has several."""

    started: str
    """UTC, ISO 8601."""
    resumed: bool
    wall_seconds: float
    """Duration of the whole session: environments, updates, evaluations and, on JAX, compiling."""
    cpu_seconds: float
    """Processor time of the session; about `wall_seconds` for a run on one thread."""
    members: int
    """Number of runs that this process trained together, as a population."""
    energy_joules: float | None
    """Energy that the accelerator drew during the session, for all runs that share it; None on the CPU, and if it does not tell."""
    commit: str | None = None
    """Commit of the source tree that trained; None outside a Git checkout, and where `dirty` is None."""
    dirty: bool | None = None
    """True if the code differed from that commit, or there was no commit; None in older records, which name the last session's alone."""


class LearningSamples(Samples, frozen=True, kw_only=True):
    """Raw samples of one training run."""

    suite: ClassVar[str] = "learning"
    evaluations: list[Evaluation]
    """Evaluations at every interval, oldest first; the last is the final one."""
    sessions: list[Session]

    def figures(self) -> Iterator[tuple[str, Figure]]:
        """Yield the names and figures that two runs are compared by."""
        last = self.evaluations[-1]
        yield "final return", Figure([fmean(last.returns)], "return")
        yield "speed", Figure([last.step / sum(session.wall_seconds for session in self.sessions)], "steps/s")
