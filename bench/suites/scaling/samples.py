"""The samples of the scaling suite."""

from collections.abc import Iterator
from typing import ClassVar, Literal

from bench.core.samples import Figure, Samples, TimedCell, rates


class ScalingCell(TimedCell, frozen=True, kw_only=True):
    """Gradient steps that several ranks of one backend take together."""

    scaling: Literal["weak", "strong"]
    """weak: each rank has as large a batch as one alone; strong: they share one of that size. One rank is both, and stands under weak."""
    ranks: int
    threads: int
    """Cores of each rank."""
    device: str
    """Device of each rank: "cpu", or "cuda" for its own GPU."""
    batch: int
    """Batch of each rank."""
    width: int
    """Width of both hidden layers."""


class ScalingSamples(Samples, frozen=True, kw_only=True):
    """Raw samples of one run of the scaling suite."""

    suite: ClassVar[str] = "scaling"
    cells: list[ScalingCell]

    def figures(self) -> Iterator[tuple[str, Figure]]:
        """Yield the names and figures that two runs are compared by."""
        for cell in self.cells:
            kind = "one rank" if cell.ranks == 1 else f"{cell.ranks} ranks, {cell.scaling}"
            yield from rates(f"{cell.backend}, {kind}, width {cell.width} on {cell.device}", cell.timings, "updates/s")
