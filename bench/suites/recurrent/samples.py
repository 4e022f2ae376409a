"""The samples of the recurrent suite."""

from collections.abc import Iterator
from typing import ClassVar

from bench.core.samples import Figure, Samples, Strict, TimedCell, Timing, rates


class RecurrentCell(TimedCell, frozen=True, kw_only=True):
    """Gradient steps of one backend and execution, by a recurrent agent or by the feed-forward one beside it."""

    execution: str
    """The option of that name: "auto" or "plain"."""
    recurrent: str | None
    """Kind of cell; None for the feed-forward agent."""
    sequence_length: int
    """1 for the feed-forward agent."""
    batch: int
    """Sequences, or transitions."""
    flops: int
    """Floating-point operations of the matrix products of one gradient step."""
    recurrence_flops: int
    """The part of `flops` in products of a hidden state with its weights, one after another; 0 for the feed-forward agent."""
    cell_steps: int
    """Number of steps that the cells take one after another, forward and backward; 0 for the feed-forward agent."""


class ProductCell(Strict, frozen=True, kw_only=True):
    """Products of float32 matrices, rows x inner by inner x columns and back, timed in turn with the agents."""

    backend: str
    rows: int
    inner: int
    columns: int
    timings: list[Timing]
    """Timings of products."""


class RecurrentSamples(Samples, frozen=True, kw_only=True):
    """Raw samples of one run of the recurrent suite."""

    suite: ClassVar[str] = "recurrent"
    cells: list[RecurrentCell]
    products: list[ProductCell]

    def figures(self) -> Iterator[tuple[str, Figure]]:
        """Yield the names and figures that two runs are compared by."""
        for cell in self.cells:
            kind = "feed-forward" if cell.recurrent is None else f"{cell.recurrent}, sequence {cell.sequence_length}"
            yield from rates(f"{cell.backend} {cell.execution}, {kind}, batch {cell.batch}", cell.timings, "updates/s")
        for product in self.products:
            name = f"{product.backend}, product of {product.rows} x {product.inner} and {product.inner} x {product.columns}"
            yield from rates(name, product.timings, "products/s", reference=True)
