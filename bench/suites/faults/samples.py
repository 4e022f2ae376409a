"""The samples of the faults suite."""

from collections.abc import Iterator
from typing import ClassVar

from bench.core.samples import Figure, Samples, Strict


class FaultsCell(Strict, frozen=True, kw_only=True):
    """Runs of one task that were killed and resumed, until each came to its end."""

    backend: str
    env: str
    what: str
    """How they differ from a feed-forward agent's in float32, in words; empty if they do not."""
    steps: int
    """Environment steps of a run."""
    kills: int
    """SIGKILLs."""
    resumed: int
    """Starts that went on from the midst of a run. The others found no checkpoint yet, or the last one."""
    runs: int
    """That came to their end, and were compared with one that was not killed."""
    seconds: float
    """Of a run that was not killed."""
    differences: list[str]
    """What was not the same, in words."""
    missing: str | None
    """Why it could not run, or None."""


class FaultsSamples(Samples, frozen=True, kw_only=True):
    """Raw samples of one run of the faults suite."""

    suite: ClassVar[str] = "faults"
    cells: list[FaultsCell]

    def figures(self) -> Iterator[tuple[str, Figure]]:
        """Yield the names and figures that two runs are compared by."""
        for cell in self.cells:
            if cell.missing is None:
                name = f"{cell.backend}, {cell.env}{cell.what and f', {cell.what}'}, differences of killed runs"
                yield name, Figure([float(len(cell.differences))], "", higher_is_better=False)
