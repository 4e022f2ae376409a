"""Populations: gradient steps of agents that learn together, beside one alone."""

import statistics as standard
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from bench.core.newest import newest
from bench.core.page import Finding, Section, digest, image, number, source, table
from bench.core.pictures import Picture
from bench.core.samples import speeds
from bench.suites.population import plots
from bench.suites.population.samples import PopulationCell, PopulationSamples

INTRODUCTION = (
    "Gradient steps per second of agents that learn together in one process (`sacref train --seeds 0:10`), each with networks and a memory"
    " of its own, beside one agent alone. No environment: synthetic transitions of HalfCheetah's shapes, two hidden layers, float32"
    " throughout. Medians of rounds that alternate between all sizes. Together pays where one agent leaves the machine idle; where it does"
    " not, ten agents take ten times as long as one.\n"
)


def section(results: Path) -> Section:
    """Report the newest run of each preset, kind of machine and number of cores."""
    paragraphs: list[str] = []
    pictures = {}
    findings = []
    for found, heading, path in newest(results, PopulationSamples):
        cells = found.samples.cells
        findings += _findings(heading, cells)
        widths = curves(cells)
        if widths:
            pictures[path] = Picture(digest(widths), partial(plots.population_lines, widths=widths))
        paragraphs += [
            f"### {heading}\n",
            f"Batch {found.configuration['batch']:,} of each.\n",
            *([image("Gradient steps per second of all agents over their number", path, results)] if widths else []),
            _table(cells),
            f"{source(found.sacref_version, found.commit, found.dirty)}; {found.date[:10]}.\n",
        ]
    return Section(["## Populations\n", INTRODUCTION, *paragraphs] if paragraphs else [], pictures, findings)


def together(cell: PopulationCell) -> float | None:
    """Return the median gradient steps per second of all members; None if it could not run."""
    return cell.members * standard.median(speeds(cell.timings)) if cell.timings else None


def gain(cell: PopulationCell, cells: Sequence[PopulationCell]) -> float | None:
    """Return the ratio to one agent of the same backend and width; None if either could not run."""
    mine = together(cell)
    alone = next((together(one) for one in cells if (one.backend, one.width, one.members) == (cell.backend, cell.width, 1)), None)
    return mine / alone if mine is not None and alone is not None else None


def _findings(heading: str, cells: Sequence[PopulationCell]) -> list[Finding]:
    most = max((cell.members for cell in cells if cell.timings), default=1)
    said = [
        f"width {cell.width:,}, {cell.backend} {ratio:.2f} times"
        for cell in sorted(cells, key=lambda cell: (cell.width, cell.backend != "torch"))
        if cell.members == most > 1 and (ratio := gain(cell, cells)) is not None
    ]
    return [Finding(f"Gradient steps per second of {most} agents together over one alone, {heading}", "; ".join(said))] if said else []


def curves(cells: Sequence[PopulationCell]) -> dict[int, list[plots.PopulationCurve]]:
    """Return, for each width, the speed of each backend over the number of members."""
    found: dict[int, list[plots.PopulationCurve]] = {}
    for width in sorted({cell.width for cell in cells}):
        for backend in dict.fromkeys(cell.backend for cell in cells):
            points = [
                (cell.members, speed)
                for cell in sorted(cells, key=lambda cell: cell.members)
                if (cell.backend, cell.width) == (backend, width) and (speed := together(cell)) is not None
            ]
            if points:
                curve = plots.PopulationCurve(backend, [members for members, _ in points], [speed for _, speed in points])
                found.setdefault(width, []).append(curve)
    return found


def _table(cells: Sequence[PopulationCell]) -> str:
    rows = []
    for cell in sorted(cells, key=lambda cell: (cell.width, cell.backend != "torch", cell.members)):
        start = [f"{cell.width:,}", cell.backend, "alone" if cell.members == 1 else str(cell.members)]
        if not cell.timings:
            rows.append([*start, f"missing: {cell.missing}", *[""] * 4])
            continue
        ratio = gain(cell, cells)
        rows.append(
            [
                *start,
                cell.chosen or "",
                number(together(cell)),
                number(standard.median(speeds(cell.timings))),
                "" if ratio is None else f"{ratio:.2f}",
                f"{cell.compile_seconds or 0.0:.1f} s",
            ]
        )
    return table(["width", "backend", "agents", "way", "updates/s, all", "of each", "all, over one alone", "compiling"], rows)
