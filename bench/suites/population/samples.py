"""The samples of the population suite."""

from collections.abc import Iterator
from typing import ClassVar

from bench.core.samples import Figure, Samples, TimedCell, rates


class PopulationCell(TimedCell, frozen=True, kw_only=True):
    """Gradient steps of one backend's population of a size, or of an agent alone."""

    members: int
    """1 for an agent alone."""
    width: int
    """Of both hidden layers."""
    batch: int
    """Of each member."""


class PopulationSamples(Samples, frozen=True, kw_only=True):
    """Raw samples of one run of the population suite."""

    suite: ClassVar[str] = "population"
    cells: list[PopulationCell]

    def figures(self) -> Iterator[tuple[str, Figure]]:
        """Yield the names and figures that two runs are compared by."""
        for cell in self.cells:
            yield from rates(f"{cell.backend}, {cell.members} together, width {cell.width}", cell.timings, "updates/s of each")
