"""The samples of a record: what every suite's have in common, and the figures that `bench.compare` holds against each other."""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import ClassVar, NamedTuple

import msgspec


class Strict(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A part of a record. Reading refuses a field that is missing, is not known, or has another type."""


class Timing(Strict, frozen=True, kw_only=True):
    """One timed stretch, from an idle device to an idle device."""

    count: int
    """Gradient steps, environment steps, calls or products in it."""
    seconds: float


class TimedCell(Strict, frozen=True, kw_only=True):
    """Gradient steps of one backend at one size."""

    backend: str
    chosen: str | None
    """The execution of the gradient steps, as `agent.execution` names it; None if it could not run."""
    gradient_steps: int
    """In one call of `agent.update`."""
    timings: list[Timing]
    """Timings of gradient steps, in the order in which they were taken; contenders take turns. Empty if it could not run."""
    compile_seconds: float | None
    """Time of the first call beyond that of later ones; None if it could not run."""
    missing: str | None
    """The reason why it could not run, or None."""


class Figure(NamedTuple):
    """A figure: one value for each round, seed or run."""

    values: list[float]
    unit: str
    higher_is_better: bool = True
    reference: bool = False
    """True for a figure of the machine or of a peer, False for one of sacref."""


class Samples(Strict, frozen=True, kw_only=True):
    """The raw samples of one run of a suite, as lists."""

    suite: ClassVar[str]
    """Name of the suite."""

    @abstractmethod
    def figures(self) -> Iterator[tuple[str, Figure]]:
        """Yield the names and figures that two runs are compared by."""


def speeds(timings: Sequence[Timing]) -> list[float]:
    """Return the count per second of each timing."""
    return [timing.count / timing.seconds for timing in timings]


def rates(name: str, timings: Sequence[Timing], unit: str, *, reference: bool = False) -> Iterator[tuple[str, Figure]]:
    """Yield the figure of the counts per second of each timing; none without timings."""
    if timings:
        yield name, Figure(speeds(timings), unit, reference=reference)
