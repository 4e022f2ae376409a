"""The samples of the throughput suite."""

from collections.abc import Iterator
from typing import Any, ClassVar

from bench.core.samples import Figure, Samples, Strict


class Round(Strict, frozen=True, kw_only=True):
    """One timed stretch of one contender."""

    steps: int
    """Environment steps, each with its gradient steps."""
    seconds: float
    """Duration from before the first step until the device is idle after the last."""
    waited_seconds: float | None
    """Seconds that the contender waited before it, while the others had their turn; None if it is not known."""
    waited_cpu_seconds: float | None
    """Processor time that it used meanwhile: about 0, or it would have slowed down the others."""


class Contender(Strict, frozen=True, kw_only=True):
    """One implementation in a throughput run."""

    name: str
    rounds: list[Round]
    """Rounds in the order in which they were timed; contenders take turns. Empty if it could not run."""
    compile_seconds: float | None
    """Time of the first steps beyond that of later ones; None if it could not run."""
    missing: str | None
    """The reason why it could not run, or None."""
    library: str | None
    """Library of its updates, torch or jax; this and the next are None if it is not known."""
    strictness: str | None
    """strict, overlapped (one update old) or chunked (up to K steps old)."""
    execution: str | None
    """Execution of its gradient steps, `agent.execution` for sacref's own; this and the next two are None without a process."""
    env: str | None
    """The environment's id in its Gymnasium."""
    accelerator: str | None
    """The device that its process computed on, or None for the CPU."""
    settings: dict[str, Any]
    """Differences from the configuration of the run."""
    libraries: dict[str, str]
    """Name -> version of Python and the libraries, from inside its process."""
    note: str | None
    """Remark for a reader of its figures."""


class ThroughputSamples(Samples, frozen=True, kw_only=True):
    """Raw samples of one throughput run: every contender in its own process, timed in turn."""

    suite: ClassVar[str] = "throughput"
    contenders: list[Contender]

    def figures(self) -> Iterator[tuple[str, Figure]]:
        """Yield the names and figures that two runs are compared by."""
        for contender in self.contenders:
            values = [timed.steps / timed.seconds for timed in contender.rounds]
            if values:
                yield contender.name, Figure(values, "steps/s", reference=not contender.name.startswith("sacref"))
