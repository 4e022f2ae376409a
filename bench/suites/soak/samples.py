"""The samples of the soak suite."""

from collections.abc import Iterator
from typing import ClassVar

from bench.core.samples import Figure, Samples, Strict


class SoakSample(Strict, frozen=True, kw_only=True):
    """A process during a run."""

    step: int
    """Environment steps trained before it."""
    resident_bytes: int
    """Memory of the process in RAM."""
    open_files: int
    """File descriptors of the process."""
    blocks: int
    """Blocks of memory of Python's objects, after a garbage collection: one or more for each object."""


class SoakCell(Strict, frozen=True, kw_only=True):
    """A long run of one backend, in its own process."""

    backend: str
    execution: str | None
    """The execution of the gradient steps, as `agent.execution` names it; None if it could not run."""
    steps: int
    capacity: int
    """Transitions that the replay memory holds."""
    samples: list[SoakSample]
    """Oldest first. Empty if it could not run."""
    missing: str | None
    """The reason why it could not run, or None."""


class SoakSamples(Samples, frozen=True, kw_only=True):
    """Raw samples of one run of the soak suite."""

    suite: ClassVar[str] = "soak"
    cells: list[SoakCell]

    def figures(self) -> Iterator[tuple[str, Figure]]:
        """Yield the names and figures that two runs are compared by."""
        for cell in self.cells:
            if cell.samples:
                yield f"{cell.backend}, memory at the end", Figure([cell.samples[-1].resident_bytes / 2**20], "MiB", higher_is_better=False)
