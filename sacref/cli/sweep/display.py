"""Progress of a sweep: a line for each run that starts or ends, on a terminal a table of those that run; the returns at the end."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from sacref.cli.sweep.grid import Run
from sacref.cli.sweep.process import LOG
from sacref.cli.sweep.record import Record


class Display:
    """Display of a sweep's record while it runs.

    Args:
        record: what is shown.
        total: runs of the sweep.
        enabled: False shows nothing.
        console: where; standard error unless given.
    """

    def __init__(self, record: Record, total: int, *, enabled: bool = True, console: Console | None = None) -> None:
        self._record, self._total, self._enabled = record, total, enabled
        self._console = console if console is not None else Console(stderr=True)
        self._live = Live(console=self._console, auto_refresh=False) if enabled and self._console.is_terminal else None

    def __enter__(self) -> "Display":
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if self._live is not None:
            self._live.update(Text(self._counts()), refresh=True)
            self._live.stop()

    def line(self, text: str) -> None:
        """Print a line, above the table where there is one."""
        if self._enabled:
            self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def ended(self, run: Run) -> None:
        """Print how a run ended."""
        entry = self._record[run]
        said = {"done": _evaluated(entry["evaluation"]), "failed": f"{entry['error']} (see {run.directory / LOG})"}.get(entry["state"], "")
        over = len(self._record.named("done")) + len(self._record.named("failed"))
        self.line(f"[{over}/{self._total}] {run.name} {entry['state']}: {said}" if said else f"{run.name} {entry['state']}")

    def refresh(self) -> None:
        """Draw the table of the runs that run."""
        if self._live is None:
            return
        table = Table(box=None)
        for name in ("run", "step", "of", "mean return"):
            table.add_column(name, justify="left" if name == "run" else "right")
        for run in self._record.named("running"):
            evaluation = self._record[run]["evaluation"]
            step, mean = (f"{evaluation['step']:,}", f"{evaluation['mean']:,.1f}") if evaluation else ("-", "-")
            table.add_row(run.name, step, f"{run.steps:,}", mean)
        self._live.update(Group(Text(self._counts()), table), refresh=True)

    def _counts(self) -> str:
        return ", ".join(f"{len(self._record.named(state))} {state}" for state in ("waiting", "running", "done", "failed"))


def returns_table(returns: Sequence[Mapping[str, Any]]) -> Table:
    """Return a table with a line for each environment, backend and other value of the grid."""
    names = list(dict.fromkeys(name for group in returns for name in group["values"]))
    table = Table(title="Return of the last evaluation", title_justify="left")
    for name in names:
        table.add_column(name)
    for name in ("seeds", "mean", "standard deviation"):
        table.add_column(name, justify="right")
    for group in returns:
        values = [str(group["values"].get(name, "")) for name in names]
        std = "-" if group["std"] is None else f"{group['std']:,.1f}"
        table.add_row(*values, str(len(group["seeds"])), f"{group['mean']:,.1f}", std)
    return table


def plot_command(runs: Sequence[Run], directory: Path) -> str | None:
    """Return the shell's command that draws the curves; None where the grid has more than what makes a panel, a curve or a seed."""
    if not runs or set(runs[0].values) - {"env", "backend", "seed"}:
        return None
    return shlex.join(["sacref", "plot", str(directory), "--output", str(directory / "returns.png")])


def _evaluated(evaluation: Mapping[str, object] | None) -> str:
    return "" if evaluation is None else f"mean return {evaluation['mean']:,.1f} at step {evaluation['step']:,}"
