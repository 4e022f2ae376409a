"""The samples of the update suite."""

from collections.abc import Iterator
from typing import ClassVar

from bench.core.samples import Figure, Samples, Strict, TimedCell, Timing, rates


class UpdateCell(TimedCell, frozen=True, kw_only=True):
    """Gradient steps of one backend, in one way, at one size."""

    execution: str
    """The option of that name: "auto" or "plain"."""
    batch: int
    width: int
    """Width of both hidden layers."""
    stored: int
    """Transitions in the memory."""
    flops: int
    """Floating-point operations of the matrix products of one gradient step."""


class MatmulCell(Strict, frozen=True, kw_only=True):
    """Products of two square float32 matrices, timed in turn with the gradient steps of one size."""

    backend: str
    size: int
    """Rows and columns of each matrix."""
    batch: int
    width: int
    """The size of update whose rounds these stand beside."""
    timings: list[Timing]
    """Timings of products."""


class UpdateSamples(Samples, frozen=True, kw_only=True):
    """Raw samples of one run of the update suite."""

    suite: ClassVar[str] = "update"
    cells: list[UpdateCell]
    """Over batch and width."""
    matmuls: list[MatmulCell]
    stored: list[UpdateCell]
    """Over the number of stored transitions, at one batch and width."""

    def figures(self) -> Iterator[tuple[str, Figure]]:
        """Yield the names and figures that two runs are compared by."""
        for cell in self.cells:
            yield from rates(f"{cell.backend} {cell.execution}, batch {cell.batch}, width {cell.width}", cell.timings, "updates/s")
        for cell in self.stored:
            yield from rates(f"{cell.backend}, {cell.stored:,} stored", cell.timings, "updates/s")
        for backend, size in dict.fromkeys((matmul.backend, matmul.size) for matmul in self.matmuls):
            timings = [timing for matmul in self.matmuls if (matmul.backend, matmul.size) == (backend, size) for timing in matmul.timings]
            yield from rates(f"{backend}, product of {size}", timings, "products/s", reference=True)
