"""Precision: gradient steps per second by width, batch and precision, their memory, and their error against float64."""

import statistics as standard
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from bench.core.newest import newest
from bench.core.page import Finding, Section, digest, folded, image, number, source, table
from bench.core.pictures import Picture
from bench.core.plots import NAMES
from bench.core.samples import speeds
from bench.suites.amp import plots
from bench.suites.amp.samples import AmpCell, AmpSamples

INTRODUCTION = (
    "Gradient steps per second by precision (synthetic transitions of HalfCheetah's shapes, two hidden layers; the way is the one that the"
    " agent chooses). A GRU is as wide as the hidden layers above it, and its batch, sequences times their steps, has as many rows as the"
    " feed-forward networks'. Medians of rounds that alternate between all precisions of a backend and size, each in its own process."
    " Memory is the peak of the device where it tells, else of the whole process. Errors are the largest, of one batch against the same"
    " update in float64: \\|a-b\\| / max(\\|b\\|, 1) of a loss, max\\|a-b\\| / max\\|b\\| of a gradient; empty where they are not finite"
    " or were not measured.\n"
)
ROUNDS_TO_TELL = 5
"""Rounds that tell a gain from noise: one of two that are equally fast is ahead in all of five rounds once in 32."""


def section(results: Path) -> Section:
    """Report the newest run of each preset, kind of machine and number of cores."""
    paragraphs: list[str] = []
    pictures = {}
    findings = []
    for found, heading, path in newest(results, AmpSamples):
        cells = found.samples.cells
        maps = heat_maps(cells)
        pictures[path] = Picture(digest(maps), partial(plots.heat_maps, maps=maps))
        findings += _findings(heading, cells)
        paragraphs += [
            f"### {heading}\n",
            image("Speed over width and batch, per backend and precision", path, results),
            *_starts(cells),
            folded("Every size and precision", _table(cells)),
        ]
        if left_out := found.configuration.get("left_out", []):
            # In words, or as (batch, width).
            said = (size if isinstance(size, str) else f"batch {size[0]:,}, width {size[1]:,}" for size in left_out)
            paragraphs.append(f"Left out, as it would take too long here: {'; '.join(said)}.\n")
        paragraphs.append(f"{source(found.sacref_version, found.commit, found.dirty)}; {found.date[:10]}.\n")
    return Section(["## Precision\n", INTRODUCTION, *paragraphs] if paragraphs else [], pictures, findings)


def _findings(heading: str, cells: Sequence[AmpCell]) -> list[Finding]:
    """Summarise each precision by its slowest and fastest ratio to float32."""
    ratios: dict[str, list[float]] = {}
    for cell in cells:
        if cell.precision != "float32" and (ratio := speed_up(cell, cells)) is not None:
            ratios.setdefault(f"{cell.backend} {cell.precision}", []).append(ratio)
    if not ratios:
        return []
    said = "; ".join(
        f"{name} {' to '.join(dict.fromkeys(f'{each:.2f}' for each in (min(values), max(values))))} times"
        for name, values in ratios.items()
    )
    return [Finding(f"Gradient steps per second over float32, by size of the networks, {heading}", said)]


def speed(cell: AmpCell) -> float | None:
    """Return the median gradient steps per second; None if it could not run."""
    return standard.median(speeds(cell.timings)) if cell.timings else None


def speed_up(cell: AmpCell, cells: Sequence[AmpCell]) -> float | None:
    """Return the ratio of the medians to float32 of the same backend, networks and size; None if either could not run."""
    mine, beside = speed(cell), _float32(cell, cells)
    exact = None if beside is None else speed(beside)
    return mine / exact if mine is not None and exact is not None else None


def pays(cell: AmpCell, cells: Sequence[AmpCell]) -> bool | None:
    """Return True if it is faster than float32 in each of at least `ROUNDS_TO_TELL` rounds; None if either could not run."""
    beside = _float32(cell, cells)
    if beside is None or not cell.timings or not beside.timings:
        return None
    # They take turns: rounds of one number were measured one after the other.
    ahead = [mine > exact for mine, exact in zip(speeds(cell.timings), speeds(beside.timings), strict=False)]
    return len(ahead) >= ROUNDS_TO_TELL and all(ahead)


def starts_to_pay(precision: str, cells: Sequence[AmpCell]) -> dict[int, str]:
    """Describe, for each batch, the smallest width at which a precision pays, and the wider ones where it does not."""
    found = {}
    for batch in sorted({cell.batch for cell in cells}):
        of_batch = sorted((cell for cell in cells if (cell.precision, cell.batch) == (precision, batch)), key=lambda cell: cell.width)
        told = {cell.width: paid for cell in of_batch if (paid := pays(cell, cells)) is not None}
        if not told:
            found[batch] = "not measured"
        elif not any(told.values()):
            found[batch] = f"never, up to {max(told):,}"
        else:
            first = min(width for width, paid in told.items() if paid)
            but = [f"{width:,}" for width, paid in told.items() if width > first and not paid]
            found[batch] = f"from {first:,}" + (f", but not {' and '.join(but)}" if but else "")
    return found


def heat_maps(cells: Sequence[AmpCell]) -> list[list[plots.HeatMap]]:
    """Return a row per kind of networks and precision, a panel per backend: gradient steps per second in float32, else the ratio to it."""
    rows = []
    backends = list(dict.fromkeys(cell.backend for cell in cells))
    for network, of_network in _by_network(cells).items():
        widths, batches = sorted({cell.width for cell in of_network}), sorted({cell.batch for cell in of_network})
        for precision in dict.fromkeys(cell.precision for cell in of_network):
            row = []
            for backend in backends:
                found: Mapping[tuple[int, int], AmpCell] = {
                    (cell.width, cell.batch): cell for cell in of_network if (cell.backend, cell.precision) == (backend, precision)
                }
                sized = [[found.get((width, batch)) for batch in batches] for width in widths]
                ratio = precision != "float32"
                values = [
                    [None if cell is None else speed_up(cell, of_network) if ratio else speed(cell) for cell in line] for line in sized
                ]
                paying = [[ratio and cell is not None and bool(pays(cell, of_network)) for cell in line] for line in sized]
                what = f"{precision} over float32" if ratio else "float32, gradient steps per second"
                row.append(plots.HeatMap(f"{NAMES[backend]}, {network}:\n{what}", widths, batches, values, ratio, paying))
            rows.append(row)
    return rows


def _starts(cells: Sequence[AmpCell]) -> list[str]:
    """Tabulate where each precision starts to pay: a row per kind of networks, backend and precision, a column per batch."""
    rows = []
    batches = sorted({cell.batch for cell in cells})
    for network, of_network in _by_network(cells).items():
        for backend in dict.fromkeys(cell.backend for cell in of_network):
            same = [cell for cell in of_network if cell.backend == backend]
            for precision in dict.fromkeys(cell.precision for cell in same if cell.precision != "float32"):
                found = starts_to_pay(precision, same)
                rows.append([network, backend, precision, *(found.get(batch, "not measured") for batch in batches)])
    if not rows:
        return []
    said = (
        "The width from which each precision pays, by batch: it is faster than float32 in every round, of"
        f" {ROUNDS_TO_TELL} or more (outlined above). Elsewhere it is slower, or not reliably faster.\n"
    )
    return [said, table(["networks", "backend", "precision", *(f"batch {batch:,}" for batch in batches)], rows)]


def _table(cells: Sequence[AmpCell]) -> str:
    rows = []
    for network, of_network in _by_network(cells).items():
        for cell in sorted(of_network, key=lambda cell: (cell.width, cell.batch)):
            batch = f"{cell.batch:,}" if cell.recurrent is None else f"{cell.batch // cell.sequence_length:,} x {cell.sequence_length:,}"
            start = [network, f"{cell.width:,}", batch, cell.backend, cell.precision]
            mine, ratio = speed(cell), speed_up(cell, of_network)
            if mine is None:
                rows.append([*start, f"missing: {cell.missing}", "", "", "", "", ""])
                continue
            rows.append(
                [
                    *start,
                    cell.chosen or "",
                    number(mine) if mine >= 10 else f"{mine:.2f}",
                    "" if ratio is None else f"{ratio:.2f}" if ratio >= 0.1 else f"{ratio:.3f}",
                    "" if cell.memory_bytes is None else f"{cell.memory_bytes / 2**20:,.0f} MiB of the {cell.memory_of}",
                    *("" if error is None else f"{error:.1e}" for error in (cell.loss_error, cell.gradient_error)),
                ]
            )
    header = ["networks", "width", "batch", "backend", "precision", "way", "updates/s", "over float32", "memory", "error of loss"]
    return table([*header, "of gradient"], rows)


def _by_network(cells: Sequence[AmpCell]) -> dict[str, list[AmpCell]]:
    """Group the cells by kind of networks, feed-forward first."""
    found: dict[str, list[AmpCell]] = {}
    for cell in sorted(cells, key=lambda cell: cell.recurrent or ""):
        found.setdefault("feed-forward" if cell.recurrent is None else cell.recurrent.upper(), []).append(cell)
    return found


def _float32(cell: AmpCell, cells: Sequence[AmpCell]) -> AmpCell | None:
    """Find the float32 cell that differs in precision alone."""
    same = (cell.backend, cell.recurrent, cell.batch, cell.width)
    exact = (one for one in cells if one.precision == "float32")
    return next((one for one in exact if (one.backend, one.recurrent, one.batch, one.width) == same), None)
