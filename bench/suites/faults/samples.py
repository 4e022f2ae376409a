"""The samples of the faults suite."""

from collections.abc import Iterator
from typing import ClassVar

from bench.core.samples import Figure, Samples, Strict


class FaultsCell(Strict, frozen=True, kw_only=True):
    """Runs of one task that were killed and resumed until they ended."""

    backend: str
    env: str
    what: str
    """Difference from a feed-forward agent in float32, in words; empty without one."""
    steps: int
    """Environment steps of a run."""
    kills: int
    """SIGKILLs."""
    resumed: int
    """Starts that went on within a run. The others found no checkpoint yet, or the last one."""
    runs: int
    """Runs that ended, and were compared with one that was not killed."""
    seconds: float
    """Duration of a run that was not killed."""
    differences: list[str]
    """Differences, in words."""
    missing: str | None
    """The reason why it could not run, or None."""


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
