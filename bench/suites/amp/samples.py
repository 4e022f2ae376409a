"""The samples of the amp suite."""

from collections.abc import Iterator, Mapping
from typing import ClassVar, Literal

from bench.core.samples import Figure, Samples, TimedCell, rates


class AmpCell(TimedCell, frozen=True, kw_only=True):
    """Gradient steps of one backend in one precision, at one size of one kind of networks, in their own process."""

    precision: str
    recurrent: str | None
    """Kind of cell, as wide as the hidden layers above it; None for feed-forward networks."""
    sequence_length: int
    """1 for feed-forward networks."""
    batch: int
    """Rows of a gradient step: transitions, or sequences times their steps."""
    width: int
    memory_bytes: int | None
    """Peak memory of the device, of the process where `memory_of` says so."""
    memory_of: Literal["device", "process"] | None
    loss_error: float | None
    """Largest |a - b| / max(|b|, 1) of the losses of one batch, b in float64; None where it is not finite, or was not measured."""
    gradient_error: float | None
    """Largest max|a - b| / max|b| over the gradients' arrays, b in float64; None as above."""


class AmpSamples(Samples, frozen=True, kw_only=True):
    """Raw samples of one run of the mixed-precision suite."""

    suite: ClassVar[str] = "amp"
    cells: list[AmpCell]

    def figures(self) -> Iterator[tuple[str, Figure]]:
        """Yield the names and figures that two runs are compared by."""
        for cell in self.cells:
            kind = "" if cell.recurrent is None else f"{cell.recurrent}, "
            name = f"{cell.backend} {cell.precision}, {kind}batch {cell.batch}, width {cell.width}"
            yield from rates(name, cell.timings, "updates/s")
            single: Mapping[str, tuple[float | None, str]] = {
                "memory": (None if cell.memory_bytes is None else cell.memory_bytes / 2**20, "MiB"),
                "loss error": (cell.loss_error, ""),
                "gradient error": (cell.gradient_error, ""),
            }
            for what, (value, unit) in single.items():
                if value is not None:
                    yield f"{name}: {what}", Figure([value], unit, higher_is_better=False)
