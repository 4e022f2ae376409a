"""Scaling: gradient steps of several ranks beside one alone."""

import statistics as standard
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from bench.core.newest import newest
from bench.core.page import Section, digest, image, number, source, table
from bench.core.pictures import Picture
from bench.core.samples import speeds
from bench.suites.scaling import plots
from bench.suites.scaling.samples import ScalingCell, ScalingSamples

INTRODUCTION = (
    "Gradient steps per second of several processes (ranks) that train one agent together: they average their gradients in every step."
    " Weak: each rank has as large a batch as a single one. Strong: they share one of that size. No environment: synthetic transitions of"
    " HalfCheetah's shapes, two hidden layers, float32 throughout. Medians of rounds that alternate between the numbers of ranks; a step"
    " ends when the last rank is done. Speed-up is of transitions per second over one rank, efficiency the speed-up for each rank.\n"
)
SHARED = (
    "The ranks share the cores of one machine, over gloo: the table shows the cost of the division here, not the gain of another machine.\n"
)
APART = "Each rank has a GPU of its own, over NCCL.\n"


def section(results: Path) -> Section:
    """Report the newest run of each preset, kind of machine and number of cores."""
    paragraphs: list[str] = []
    pictures = {}
    for found, heading, path in newest(results, ScalingSamples):
        cells = found.samples.cells
        widths = curves(cells)
        if widths:
            pictures[path] = Picture(digest(widths), partial(plots.scaling_lines, widths=widths))
        paragraphs += [
            f"### {heading}\n",
            APART if found.configuration["device"] == "cuda" else SHARED,
            *([image("Speed-up over the number of ranks", path, results)] if widths else []),
            _table(cells),
            f"{source(found.sacref_version, found.commit, found.dirty)}; {found.date[:10]}.\n",
        ]
    return Section(["## Several ranks\n", INTRODUCTION, *paragraphs] if paragraphs else [], pictures)


def transitions(cell: ScalingCell) -> float | None:
    """Return the median transitions per second that all ranks together learn from; None if it could not run."""
    return standard.median(speeds(cell.timings)) * cell.batch * cell.ranks if cell.timings else None


def speed_up(cell: ScalingCell, cells: Sequence[ScalingCell]) -> float | None:
    """Return the ratio to one rank of the same backend and width; None if either could not run."""
    mine = transitions(cell)
    alone = next((transitions(one) for one in cells if (one.backend, one.width, one.ranks) == (cell.backend, cell.width, 1)), None)
    return mine / alone if mine is not None and alone is not None else None


def curves(cells: Sequence[ScalingCell]) -> dict[int, list[plots.ScalingCurve]]:
    """Return, for each width, the speed-up of each backend over the ranks, weak and strong; both begin with one rank."""
    found: dict[int, list[plots.ScalingCurve]] = {}
    for width in sorted({cell.width for cell in cells}):
        for backend in dict.fromkeys(cell.backend for cell in cells):
            for scaling in ("weak", "strong"):
                points = [
                    (cell.ranks, ratio)
                    for cell in cells
                    if (cell.backend, cell.width) == (backend, width)
                    and (cell.ranks == 1 or cell.scaling == scaling)
                    and (ratio := speed_up(cell, cells)) is not None
                ]
                if len(points) > 1:
                    curve = plots.ScalingCurve(backend, scaling == "weak", [ranks for ranks, _ in points], [ratio for _, ratio in points])
                    found.setdefault(width, []).append(curve)
    return found


def _table(cells: Sequence[ScalingCell]) -> str:
    rows = []
    for cell in sorted(cells, key=lambda cell: (cell.width, cell.backend != "torch", cell.ranks, cell.scaling != "weak")):
        kind = "one rank" if cell.ranks == 1 else cell.scaling
        start = [f"{cell.width:,}", cell.backend, kind, str(cell.ranks), str(cell.threads), f"{cell.batch:,}"]
        if not cell.timings:
            rows.append([*start, f"missing: {cell.missing}", *[""] * 5])
            continue
        speed, ratio = standard.median(speeds(cell.timings)), speed_up(cell, cells)
        rows.append(
            [
                *start,
                cell.chosen or "",
                number(speed) if speed >= 10 else f"{speed:.2f}",
                number(transitions(cell)),
                "" if ratio is None else f"{ratio:.2f}",
                "" if ratio is None else f"{ratio / cell.ranks:.0%}",
                f"{cell.compile_seconds or 0.0:.1f} s",
            ]
        )
    header = ["width", "backend", "scaling", "ranks", "threads each", "batch each", "way", "updates/s", "transitions/s"]
    return table([*header, "speed-up", "efficiency", "compiling"], rows)
