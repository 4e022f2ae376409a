"""The samples of the throughput suite."""

from collections.abc import Iterator
from typing import Any, ClassVar

from bench.core.samples import Figure, Samples, Strict


class Round(Strict, frozen=True, kw_only=True):
    """One timed stretch of one contender."""

    steps: int
    """Environment steps, each with its gradient steps."""
    seconds: float
    """From before the first step until the device is idle after the last."""
    waited_seconds: float | None
    """How long the contender stood still before, while the others had their turn; None in a record of version 1."""
    waited_cpu_seconds: float | None
    """Processor time that it used meanwhile: about 0, or it would have slowed the others down."""


class Contender(Strict, frozen=True, kw_only=True):
    """One implementation in a throughput run."""

    name: str
    rounds: list[Round]
    """In the order in which they were timed, one of each contender in turn. Empty if it could not run."""
    compile_seconds: float | None
    """What the first steps took beyond later ones (in version 1 the first learning steps alone); None if it could not run."""
    missing: str | None
    """Why it could not run, or None."""
    library: str | None
    """What computes its updates: torch or jax. This and the next are None in a record of version 1 that did not tell."""
    strictness: str | None
    """strict, overlapped (one update old) or chunked (up to K steps old)."""
    execution: str | None
    """How its gradient steps were executed; `agent.execution` of sacref's own. This and the next are of its process: None without one."""
    env: str | None
    """The environment's id in its Gymnasium."""
    accelerator: str | None
    """The device that its process computed on, or None for the CPU."""
    settings: dict[str, Any]
    """Where it differs from the configuration of the run."""
    libraries: dict[str, str]
    """Name -> version of Python and the libraries, from inside its process."""
    note: str | None
    """What a reader of its figures should know."""


class ThroughputSamples(Samples, frozen=True, kw_only=True):
    """Raw samples of one throughput run: every contender in a process of its own (in version 1 in one), timed in turn."""

    suite: ClassVar[str] = "throughput"
    contenders: list[Contender]

    def figures(self) -> Iterator[tuple[str, Figure]]:
        """Yield the names and figures that two runs are compared by."""
        for contender in self.contenders:
            values = [timed.steps / timed.seconds for timed in contender.rounds]
            if values:
                yield contender.name, Figure(values, "steps/s", reference=not contender.name.startswith("sacref"))
