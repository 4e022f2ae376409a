"""Report of a parity run: a table, a JSON record with every update's numbers, and a plot of the drift."""

import datetime
import json
import math
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.table import Table

import sacref
from sacref.parity.compare import KINDS, Largest, Traces
from sacref.parity.drivers import Problem
from sacref.storage.versions import installed

SCHEMA_VERSION = 1
LIBRARIES = ("numpy", "torch", "jax", "jaxlib", "flax", "optax", "array-api-compat")


@dataclass(frozen=True)
class Report:
    """The outcome of `sacref.parity.run`."""

    problem: Problem
    updates: int
    traces: Traces

    def largest(self, kind: str | None = None) -> Largest:
        """Return the largest relative difference of any pair, over one kind or over all of them."""
        traces = [trace for kinds in self.traces.pairs.values() for name, trace in kinds.items() if kind in (None, name)]
        return max((trace.largest_relative for trace in traces), key=lambda largest: largest.value, default=Largest(0.0, 0, ""))

    def within(self, tolerance: float) -> bool:
        """Tell whether losses and states stayed together, relative, at every update.

        Gradients are judged by the moments that hold them: a bias of one element has a gradient that passes through zero, beside which
        any rounding is large.
        """
        return all(self.largest(kind).value <= tolerance for kind in KINDS if kind != "gradients")

    def table(self) -> Table:
        """Tabulate the largest differences per pair and kind, for a rich console."""
        table = Table(title=f"{self.updates} updates in {self.problem.dtype}: largest differences", title_justify="left")
        for heading, justify in (("pair", "left"), ("kind", "left"), ("absolute", "right"), ("relative", "right"), ("update", "right")):
            table.add_column(heading, justify="right" if justify == "right" else "left")
        table.add_column("where it is largest, relative", overflow="fold")
        for (a, b), kinds in self.traces.pairs.items():
            for kind in KINDS:
                if kind in kinds:
                    absolute, relative = kinds[kind].largest_absolute, kinds[kind].largest_relative
                    where = relative.where.replace("[", r"\[")
                    table.add_row(f"{a} - {b}", kind, f"{absolute.value:.1e}", f"{relative.value:.1e}", str(relative.update), where)
            table.add_section()
        return table

    def to_dict(self) -> dict[str, object]:
        """Return the record as JSON, with raw samples per update."""
        commit, dirty = _source()
        return {
            "schema_version": SCHEMA_VERSION,
            "suite": "parity",
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "sacref_version": sacref.__version__,
            "commit": commit,
            "dirty": dirty,
            "configuration": {"updates": self.updates, **self.problem.to_dict()},
            "seed": self.problem.seed,
            "hardware": _hardware(),
            "libraries": installed(LIBRARIES),
            "largest": {
                f"{a} - {b}": {
                    kind: {"absolute": trace.largest_absolute._asdict(), "relative": trace.largest_relative._asdict()}
                    for kind, trace in kinds.items()
                }
                for (a, b), kinds in self.traces.pairs.items()
            },
            "samples": {
                # Three digits keep the file small.
                "differences": {
                    f"{a} - {b}": {
                        kind: {"absolute": _short(trace.absolute), "relative": _short(trace.relative)} for kind, trace in kinds.items()
                    }
                    for (a, b), kinds in self.traces.pairs.items()
                },
                "metrics": self.traces.metrics,
            },
        }

    def write(self, path: Path) -> tuple[Path, Path]:
        """Write the record to `path`, and the drift plot beside it as PNG; return both paths."""
        path.parent.mkdir(parents=True, exist_ok=True)
        record = self.to_dict()
        # One line per entry. Infinity (a side that is not finite) has no JSON of its own; Python's reader knows it.
        lines = (f"{json.dumps(key)}: {json.dumps(value)}" for key, value in record.items())
        path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
        picture = path.with_suffix(".png")
        draw(record, picture)
        return path, picture


def draw(record: Mapping[str, Any], picture: Path) -> None:
    """Plot a record's relative differences over the updates, a panel per pair."""
    pairs = record["samples"]["differences"]
    columns = min(3, len(pairs))
    rows = math.ceil(len(pairs) / columns)
    figure = Figure(figsize=(4.2 * columns, 3.2 * rows + 0.4), layout="constrained")
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for axis, (pair, kinds) in zip(axes.flat, pairs.items(), strict=False):
        for kind, samples in kinds.items():
            axis.plot(range(1, len(samples["relative"]) + 1), samples["relative"], label=kind, linewidth=1)
        axis.set(title=pair, yscale="log")
        axis.grid(True, alpha=0.3)
    for axis in axes[-1]:
        axis.set_xlabel("update")
    figure.supylabel(f"largest relative difference, {record['configuration']['dtype']}", fontsize="medium")
    figure.legend(*axes.flat[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(KINDS))
    figure.savefig(picture, dpi=110)


def _short(values: Iterable[float]) -> list[float]:
    return [float(f"{value:.2e}") for value in values]


def _source() -> tuple[str | None, bool]:
    """Return the commit of the source tree, and whether its code (results/ is none) differs from it; (None, True) outside Git."""
    root = Path(__file__).resolve().parents[2]

    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", str(root), *arguments], check=True, capture_output=True, text=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "--", ".", ":(exclude)results"))
    except (OSError, subprocess.CalledProcessError):
        return None, True


def _hardware() -> dict[str, object]:
    """Describe the machine's kind, never its name."""
    model = platform.processor() or platform.machine()
    processors = Path("/proc/cpuinfo")
    if processors.exists():
        lines = processors.read_text(encoding="utf-8").splitlines()
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), model)
    return {"cpu_model": model, "cores": os.cpu_count(), "architecture": platform.machine(), "system": platform.system()}
