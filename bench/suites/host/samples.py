"""The samples of the host suite."""

from collections.abc import Iterator
from typing import ClassVar, Literal

import msgspec

from bench.core.samples import Figure, Samples, Strict, Timing

Part = Literal["pre", "act", "to_numpy", "environment", "record", "learn"]


class PartTime(Strict, frozen=True, kw_only=True):
    """The time of a part of the loop in a round."""

    seconds: float
    """Wall-clock time."""
    processor_seconds: float
    """Processor time of the thread that called it."""


class Round(Strict, frozen=True, kw_only=True):
    """One timed stretch of one contender, from an idle device to an idle device."""

    timesteps: int
    """Steps of the vector environment, each with one gradient step of every agent."""
    seconds: float
    processor_seconds: float
    """Processor time of all threads of the process."""
    parts: dict[Part, PartTime]
    """Parts that the contender's loop tells apart; a part that is missing took no time, or is in the rest."""


class Counts(Strict, frozen=True, kw_only=True):
    """Calls of a steady timestep, from the library's own profiler."""

    timesteps: int
    """Timesteps that were counted."""
    unit: str
    """The kind of launches."""
    uploads: float | None
    """Transfers from the host to the device in a timestep; this and downloads are None where the profiler does not show them."""
    launches: float
    """Calls of compiled functions, kernels or operations in a timestep."""
    downloads: float | None
    """Transfers from the device to the host in a timestep."""


class HostCell(Strict, frozen=True, kw_only=True):
    """The training loop of one implementation, with tiny networks."""

    name: str
    library: str
    """Library of its updates."""
    members: int
    """Agents that are trained together."""
    num_envs: int
    """Environments of each."""
    execution: str | None
    """Execution of its gradient steps, `agent.execution` for sacref's own; None without a process, as the next two."""
    accelerator: str | None
    """The device that its process computed on, or None for the CPU."""
    libraries: dict[str, str]
    """Name -> version of Python and the libraries, from inside its process."""
    rounds: list[Round]
    """Rounds in the order in which they were timed; contenders take turns. Empty if it could not run."""
    counts: Counts | None
    missing: str | None
    """The reason why it could not run, or None."""


class OverheadCell(Strict, frozen=True, kw_only=True):
    """A run of `sacref.train` with tiny networks, and three callbacks and three loggers that do nothing."""

    backend: str
    env: str
    stretches: list[Timing]
    """Stretches of timesteps, in the order in which they were timed. Empty if it could not run."""
    calls: list[Timing]
    """Calls of the callbacks after a timestep and of the loggers, in each stretch."""
    missing: str | None
    """The reason why it could not run, or None."""


class HostSamples(Samples, frozen=True, kw_only=True):
    """Raw samples of one run of the host suite."""

    suite: ClassVar[str] = "host"
    cells: list[HostCell]
    overheads: list[OverheadCell] = msgspec.field(default_factory=list)

    def figures(self) -> Iterator[tuple[str, Figure]]:
        """Yield the names and figures that two runs are compared by."""
        for cell in self.cells:
            if cell.rounds:
                name = f"{cell.name}, {cell.members * cell.num_envs} environments"
                values = [1e6 * host_seconds(timed) / timed.timesteps for timed in cell.rounds]
                yield name, Figure(values, "us", higher_is_better=False, reference=not cell.name.startswith("sacref"))
        for each in self.overheads:
            if each.stretches:
                spent = [1e6 * calls.seconds / stretch.count for stretch, calls in zip(each.stretches, each.calls, strict=True)]
                yield f"callbacks and loggers, {each.backend}, {each.env}", Figure(spent, "us", higher_is_better=False)


def host_seconds(timed: Round) -> float:
    """Return the wall-clock time of a round without the environment's."""
    return timed.seconds - timed.parts["environment"].seconds


def added(cell: OverheadCell) -> list[float]:
    """Return the time in callbacks and loggers of each stretch, relative to the rest of the stretch."""
    return [calls.seconds / (stretch.seconds - calls.seconds) for stretch, calls in zip(cell.stretches, cell.calls, strict=True)]
