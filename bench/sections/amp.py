"""Precision: gradient steps per second by width, batch and precision, what they need and how far they are from float64."""

import statistics as standard
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from bench import plots
from bench.record import AmpCell, AmpSamples, Record
from bench.sections import Picture, Section, digest, number, source, table
from bench.sections.newest import newest

INTRODUCTION = (
    "Gradient steps per second by precision (synthetic transitions of HalfCheetah's shapes, two hidden layers; the way is the one that the"
    " agent chooses). Medians of rounds that alternate between all precisions and backends of a size, each in a process of its own. Memory"
    " is the peak of the device where it tells, else of the whole process, and empty where an earlier size of the process needed more."
    " Errors are the largest, of one batch against the same update in float64: \\|a-b\\| / max(\\|b\\|, 1)"
    " of a loss, max\\|a-b\\| / max\\|b\\| of a gradient.\n"
)


def section(results: Path) -> Section:
    """The newest run of each preset, kind of machine and number of cores."""
    paragraphs: list[str] = []
    pictures = {}
    for found, heading, path in newest(results, "amp"):
        cells = _samples(found).cells
        maps = heat_maps(cells)
        pictures[path] = Picture(digest(maps), partial(plots.heat_maps, maps=maps))
        paragraphs += [
            f"### {heading}\n",
            f"![Speed over width and batch, per backend and precision]({path.relative_to(results).as_posix()})\n",
            _table(cells),
        ]
        if left_out := found.configuration.get("left_out", []):
            named = "; ".join(f"batch {batch:,}, width {width:,}" for batch, width in left_out)
            paragraphs.append(f"Left out, as it would take too long here: {named}.\n")
        paragraphs.append(f"{source(found.sacref_version, found.commit, found.dirty)}; {found.date[:10]}.\n")
    return Section(["## Precision\n", INTRODUCTION, *paragraphs] if paragraphs else [], pictures)


def speed(cell: AmpCell) -> float | None:
    """Median over the rounds, gradient steps per second; None if it could not run."""
    return standard.median(timing.count / timing.seconds for timing in cell.timings) if cell.timings else None


def speed_up(cell: AmpCell, cells: Sequence[AmpCell]) -> float | None:
    """Over float32 of the same backend and size; None if either could not run."""
    same = (cell.backend, cell.batch, cell.width)
    mine = speed(cell)
    exact = next((speed(one) for one in cells if one.precision == "float32" and (one.backend, one.batch, one.width) == same), None)
    return mine / exact if mine is not None and exact is not None else None


def heat_maps(cells: Sequence[AmpCell]) -> list[list[plots.HeatMap]]:
    """A row per precision, a panel per backend: float32's gradient steps per second, the others' ratio to it."""
    widths, batches = sorted({cell.width for cell in cells}), sorted({cell.batch for cell in cells})
    backends = list(dict.fromkeys(cell.backend for cell in cells))
    rows = []
    for precision in dict.fromkeys(cell.precision for cell in cells):
        row = []
        for backend in backends:
            found: Mapping[tuple[int, int], AmpCell] = {
                (cell.width, cell.batch): cell for cell in cells if (cell.backend, cell.precision) == (backend, precision)
            }
            ratio = precision != "float32"
            values = [
                [
                    None if (cell := found.get((width, batch))) is None else speed_up(cell, cells) if ratio else speed(cell)
                    for batch in batches
                ]
                for width in widths
            ]
            title = f"{plots.NAMES[backend]}: " + (f"{precision} over float32" if ratio else "float32, gradient steps per second")
            row.append(plots.HeatMap(title, widths, batches, values, ratio))
        rows.append(row)
    return rows


def _table(cells: Sequence[AmpCell]) -> str:
    rows = []
    for cell in sorted(cells, key=lambda cell: (cell.width, cell.batch)):
        start = [str(cell.width), f"{cell.batch:,}", cell.backend, cell.precision]
        mine, ratio = speed(cell), speed_up(cell, cells)
        if mine is None:
            rows.append([*start, f"missing: {cell.missing}", "", "", "", "", ""])
            continue
        rows.append(
            [
                *start,
                cell.chosen or "",
                number(mine) if mine >= 10 else f"{mine:.2f}",
                "" if ratio is None else f"{ratio:.2f}",
                "" if cell.memory_bytes is None else f"{cell.memory_bytes / 2**20:,.0f} MiB of the {cell.memory_of}",
                *("" if error is None else f"{error:.1e}" for error in (cell.loss_error, cell.gradient_error)),
            ]
        )
    header = ["width", "batch", "backend", "precision", "way", "updates/s", "over float32", "memory", "error of loss", "of gradient"]
    return table(header, rows)


def _samples(found: Record) -> AmpSamples:
    assert isinstance(found.samples, AmpSamples)
    return found.samples
