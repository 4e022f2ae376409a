"""The samples of the population suite."""

from collections.abc import Iterator
from typing import ClassVar

from bench.core.samples import Figure, Samples, TimedCell, rates


class PopulationCell(TimedCell, frozen=True, kw_only=True):
    """Gradient steps of one backend's population, or of a single agent."""

    members: int
    """Number of agents; 1 for a single one."""
    width: int
    """Width of both hidden layers."""
    batch: int
    """Batch of each member."""


class PopulationSamples(Samples, frozen=True, kw_only=True):
    """Raw samples of one run of the population suite."""

    suite: ClassVar[str] = "population"
    cells: list[PopulationCell]

    def figures(self) -> Iterator[tuple[str, Figure]]:
        """Yield the names and figures that two runs are compared by."""
        for cell in self.cells:
            yield from rates(f"{cell.backend}, {cell.members} together, width {cell.width}", cell.timings, "updates/s of each")
