"""Updates: gradient steps per second by size and execution, beside matrix products, and over the number of stored transitions."""

import statistics as standard
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from bench.core.flops import matmul_flops
from bench.core.newest import newest
from bench.core.page import Section, digest, image, number, source, table
from bench.core.pictures import Picture
from bench.core.record import Record
from bench.core.samples import speeds
from bench.suites.update import plots
from bench.suites.update.samples import MatmulCell, UpdateCell, UpdateSamples

INTRODUCTION = (
    "Gradient steps per second, no environment: synthetic transitions of HalfCheetah's shapes, two hidden layers, float32 throughout. Plain"
    " is the update called once a gradient step; auto is the way that the agent chooses on this device. Medians of rounds that alternate"
    " between all ways of a size and the products of two square float32 matrices, timed by the same backend. GFLOP/s counts the matrix"
    " products of a gradient step alone; the shares are of what products of 256 and of 1,024 rows and columns reach in the same rounds."
    " PyTorch's product is `matmul` (MKL); the traced way multiplies with oneDNN, which is faster on some processors: shares above 100%.\n"
)
FLAT = 0.10
"""Largest relative difference of a gradient step's time over the number of stored transitions."""


def section(results: Path) -> Section:
    """Report the newest run of each preset, kind of machine and number of cores."""
    paragraphs: list[str] = []
    pictures = {}
    for found, heading, path in newest(results, UpdateSamples):
        samples = found.samples
        lines = curves(samples.cells)
        pictures[path] = Picture(digest(lines), partial(plots.update_lines, widths=lines))
        paragraphs += [
            f"### {heading}\n",
            image("Gradient steps per second over the batch, per width", path, results),
            _table(samples),
            *_left_out(found),
            *_stored(samples),
            f"{source(found.sacref_version, found.commit, found.dirty)}; {found.date[:10]}.\n",
        ]
    return Section(["## Updates\n", INTRODUCTION, *paragraphs] if paragraphs else [], pictures)


def curves(cells: Sequence[UpdateCell]) -> dict[int, list[plots.UpdateCurve]]:
    """Return, for each width, a curve over the batch for each backend and execution."""
    found: dict[int, dict[tuple[str, str], plots.UpdateCurve]] = {}
    for cell in sorted(cells, key=lambda cell: (cell.width, cell.batch)):
        if cell.timings:
            of_width = found.setdefault(cell.width, {})
            curve = of_width.setdefault((cell.backend, cell.execution), plots.UpdateCurve(cell.backend, cell.execution != "plain", [], []))
            curve.batches.append(cell.batch)
            curve.speeds.append(standard.median(speeds(cell.timings)))
    return {width: list(of_width.values()) for width, of_width in found.items()}


def roofline(cell: UpdateCell, matmuls: Sequence[MatmulCell]) -> dict[int, float]:
    """Return size of a product -> share of its GFLOP/s that the gradient steps reach; both by the same backend, in the same rounds."""
    mine = cell.flops * standard.median(speeds(cell.timings))
    beside = [one for one in matmuls if (one.backend, one.batch, one.width) == (cell.backend, cell.batch, cell.width)]
    return {one.size: mine / (matmul_flops(one.size) * standard.median(speeds(one.timings))) for one in beside}


def spread(cells: Sequence[UpdateCell]) -> float:
    """Return the relative difference between the slowest and the fastest median time."""
    times = [1 / standard.median(speeds(cell.timings)) for cell in cells]
    return max(times) / min(times) - 1


def _table(samples: UpdateSamples) -> str:
    rows = []
    for cell in sorted(samples.cells, key=lambda cell: (cell.width, cell.batch)):
        way = f"auto: {cell.chosen}" if cell.execution == "auto" and cell.chosen else cell.execution
        start = [f"{cell.width:,}", f"{cell.batch:,}", cell.backend, way]
        if not cell.timings:
            rows.append([*start, f"missing: {cell.missing}", "", "", "", ""])
            continue
        median = standard.median(speeds(cell.timings))
        shares = roofline(cell, samples.matmuls)
        compiling = "" if cell.compile_seconds is None else f"{cell.compile_seconds:.1f} s"
        rows.append(
            [
                *start,
                number(median) if median >= 10 else f"{median:.2f}",
                number(cell.flops * median / 1e9),
                *(f"{shares[size]:.0%}" if size in shares else "" for size in (256, 1024)),
                compiling,
            ]
        )
    return table(["width", "batch", "backend", "way", "updates/s", "GFLOP/s", "of 256³", "of 1,024³", "compiling"], rows)


def _left_out(found: Record[UpdateSamples]) -> list[str]:
    sizes = found.configuration.get("left_out", [])
    named = "; ".join(f"batch {batch:,}, width {width:,}" for batch, width in sizes)
    return [f"Left out, as it would take too long here: {named}.\n"] if named else []


def _stored(samples: UpdateSamples) -> list[str]:
    paragraphs = []
    numbers = sorted({cell.stored for cell in samples.stored})
    rows = []
    for backend in dict.fromkeys(cell.backend for cell in samples.stored):
        cells = [cell for cell in samples.stored if cell.backend == backend and cell.timings]
        if not cells:
            continue
        times = {cell.stored: 1e3 / standard.median(speeds(cell.timings)) for cell in cells}
        apart = spread(cells)
        rows.append(
            [
                backend,
                *(f"{times[stored]:.3f}" if stored in times else "" for stored in numbers),
                f"{apart:.0%}" + ("" if apart <= FLAT else f", more than the {FLAT:.0%} that it should"),
            ]
        )
    if rows:
        first = samples.stored[0]
        paragraphs.append(f"Milliseconds of a gradient step by stored transitions (auto, batch {first.batch}, width {first.width}):\n")
        paragraphs.append(table(["backend", *(f"{stored:,}" for stored in numbers), "slowest over fastest"], rows))
    return paragraphs
