"""The samples of the executions suite."""

from collections.abc import Iterator
from typing import ClassVar, Literal

from bench.core.samples import Figure, Samples, Strict

Case = Literal["SAC", "SAC_RNN", "AMP", "population"]


class ExecutionCell(Strict, frozen=True, kw_only=True):
    """An agent that chose its execution beside one that ran plain: same seed, same transitions."""

    backend: str
    case: Case
    execution: str | None
    """The execution that it chose, as `agent.execution` names it; None if it could not run."""
    dtype: str
    """Of the parameters."""
    updates: int
    """Gradient steps that both took."""
    difference: float | None
    """Largest max|a - b| / max|b| of an array of the agent, or of the actions; None if it could not run, or is not finite."""
    missing: str | None
    """The reason why it could not run, or None."""


class ExecutionsSamples(Samples, frozen=True, kw_only=True):
    """Raw samples of one run of the executions suite."""

    suite: ClassVar[str] = "executions"
    cells: list[ExecutionCell]

    def figures(self) -> Iterator[tuple[str, Figure]]:
        """Yield the names and figures that two runs are compared by."""
        for cell in self.cells:
            if cell.difference is not None:
                yield f"{cell.backend}, {cell.case}", Figure([cell.difference], "relative", higher_is_better=False)
