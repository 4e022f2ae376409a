"""Recurrent updates: gradient steps per second beside a feed-forward agent's, and the parts of their time."""

import statistics as standard
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from bench.core.flops import product_flops
from bench.core.newest import newest
from bench.core.page import Section, digest, image, number, source, table
from bench.core.pictures import Picture
from bench.core.plots import NAMES
from bench.core.samples import speeds
from bench.suites.recurrent import plots
from bench.suites.recurrent.samples import ProductCell, RecurrentCell, RecurrentSamples

INTRODUCTION = (
    "Gradient steps per second of a recurrent agent beside a feed-forward one whose batch has as many rows, sequences times their steps."
    " No environment: synthetic transitions of HalfCheetah's shapes, float32 throughout. Medians of rounds that alternate between all"
    " agents and products of two matrices, timed by the same backend. GFLOP counts the matrix products of a gradient step; of them, the"
    " recurrence's (hidden states times their weights) are small and come one after another, a step of the sequences at a time.\n\n"
    "A gradient step's time has three parts. **Products**: all of its products, at the speed of those of 256³. **Small products**: what the"
    " recurrence's take longer than that, at the measured speed of products of their own shape. **Rest**: what is left: gates, activations,"
    " Adam, and what each call costs; below 0 where the agent multiplies faster than the products beside it (PyTorch's traced way, by"
    " oneDNN). A cell step is one step of one network's cell, forward or backward; they are taken one after another.\n"
)


class Parts(NamedTuple):
    """Milliseconds of the parts of a gradient step, which add up to its measured time."""

    products: float
    """All products, at the speed of the square ones."""
    small: float
    """Further time of the recurrence's products, which are slower than that."""
    rest: float
    """Negative where the agent multiplies faster than the products that are timed beside it."""


def section(results: Path) -> Section:
    """Report the newest run of each preset, kind of machine and number of cores."""
    paragraphs: list[str] = []
    pictures = {}
    for found, heading, path in newest(results, RecurrentSamples):
        samples = found.samples
        bars = {_name(cell): drawn(parts(cell, samples.products)) for cell in samples.cells if cell.execution == "auto" and cell.timings}
        if bars:
            pictures[path] = Picture(digest(bars), partial(plots.limit_bars, bars=bars))
        hidden = " and ".join(f"{width:,}" for width in found.configuration["hidden"])
        paragraphs += [
            f"### {heading}\n",
            f"{found.configuration['recurrent'].upper()} of {found.configuration['recurrent_size']:,}; hidden layers of {hidden};"
            f" {found.configuration['rows']:,} rows.\n",
            *([image("Milliseconds of a gradient step and where they go", path, results)] if bars else []),
            _table(samples),
            *_limits(samples),
            f"{source(found.sacref_version, found.commit, found.dirty)}; {found.date[:10]}.\n",
        ]
    return Section(["## Recurrent updates\n", INTRODUCTION, *paragraphs] if paragraphs else [], pictures)


def parts(cell: RecurrentCell, products: Sequence[ProductCell]) -> Parts:
    """Split the time of a gradient step."""
    square, small = rates(cell, products)
    at_square = 1e3 * cell.flops / square
    extra = 0.0 if small is None else 1e3 * cell.recurrence_flops * (1 / small - 1 / square)
    return Parts(at_square, extra, milliseconds(cell) - at_square - extra)


def rates(cell: RecurrentCell, products: Sequence[ProductCell]) -> tuple[float, float | None]:
    """Return the operations per second of the square products, and of those of the recurrence; None for a feed-forward agent."""
    found = {
        (one.rows, one.inner == one.columns): product_flops(one.rows, one.inner, one.columns) * standard.median(speeds(one.timings))
        for one in products
        if one.backend == cell.backend
    }
    (square,) = (rate for (_, is_square), rate in found.items() if is_square)
    return square, found[cell.batch, False] if cell.recurrent else None


def milliseconds(cell: RecurrentCell) -> float:
    """Return the median milliseconds of a gradient step."""
    return 1e3 / standard.median(speeds(cell.timings))


def drawn(found: Parts) -> dict[str, float]:
    """Return the parts as they are drawn: none negative, and together the measured time."""
    total = sum(found)
    products = min(found.products, total)
    small = min(max(found.small, 0.0), total - products)
    return {"products": products, "small products": small, "rest": total - products - small}


def _name(cell: RecurrentCell) -> str:
    agent = f"{cell.recurrent.upper()}, {cell.batch:,} x {cell.sequence_length:,}" if cell.recurrent else "feed-forward"
    return f"{NAMES[cell.backend]}: {agent}"


def _table(samples: RecurrentSamples) -> str:
    rows = []
    for cell in samples.cells:
        agent = cell.recurrent.upper() if cell.recurrent else "feed-forward"
        way = f"auto: {cell.chosen}" if cell.execution == "auto" and cell.chosen else cell.execution
        start = [agent, f"{cell.batch:,} x {cell.sequence_length:,}", cell.backend, way]
        if not cell.timings:
            rows.append([*start, f"missing: {cell.missing}", *[""] * 7])
            continue
        square, small = rates(cell, samples.products)
        speed = standard.median(speeds(cell.timings))
        rows.append(
            [
                *start,
                number(speed) if speed >= 10 else f"{speed:.2f}",
                f"{cell.flops / 1e9:.2f}",
                f"{cell.recurrence_flops / cell.flops:.0%}" if cell.recurrent else "",
                number(cell.flops * speed / 1e9),
                f"{cell.flops * speed / square:.0%} of {number(square / 1e9)}",
                f"{cell.flops * speed / small:.0%} of {number(small / 1e9)}" if small else "",
                f"{cell.cell_steps:,}" if cell.recurrent else "",
                f"{cell.compile_seconds or 0.0:.1f} s",
            ]
        )
    header = ["agent", "batch x steps", "backend", "way", "updates/s", "GFLOP", "in the recurrence", "GFLOP/s"]
    return table([*header, "of 256³", "of its recurrence's", "cell steps", "compiling"], rows)


def _limits(samples: RecurrentSamples) -> list[str]:
    """Describe the parts of each agent's time, its ratios to plain and to feed-forward, and then the cost of longer sequences."""
    measured = {(cell.backend, cell.execution, cell.sequence_length): cell for cell in samples.cells if cell.timings}
    chosen = [cell for cell in measured.values() if cell.execution == "auto"]
    lines = []
    for cell in chosen:
        mine, found = milliseconds(cell), parts(cell, samples.products)
        small = f" + small products {found.small:.1f}" if cell.recurrent else ""
        said = [f"{mine:.1f} ms = products {found.products:.1f}{small} + rest {found.rest:.1f}"]
        if (beside := measured.get((cell.backend, "auto", 1))) and beside is not cell:
            longer, more = mine / milliseconds(beside), cell.flops / beside.flops
            said.append(f"{longer:.1f} times as long as feed-forward, for {more:.1f} times the operations")
        if plain := measured.get((cell.backend, "plain", cell.sequence_length)):
            said.append(f"plain takes {milliseconds(plain) / mine:.2f} times as long")
        if cell.recurrent:
            said.append(f"most of it is {max(found._asdict().items(), key=lambda part: part[1])[0].replace('small', 'small products')}")
        lines.append(f"- {_name(cell)}: {'; '.join(said)}.")
    for backend in dict.fromkeys(cell.backend for cell in chosen):
        recurrent = sorted((cell for cell in chosen if cell.recurrent and cell.backend == backend), key=lambda cell: cell.sequence_length)
        if len(recurrent) > 1:
            short, long = recurrent[0], recurrent[-1]
            longer, steps = milliseconds(long) - milliseconds(short), long.cell_steps - short.cell_steps
            lines.append(
                f"- {NAMES[backend]}, sequences of {long.sequence_length:,} in place of {short.sequence_length:,}, as many rows:"
                f" {longer:+.1f} ms for {steps:,} cell steps more, {1e3 * longer / steps:.0f} µs each."
            )
    return ["\n".join(lines) + "\n"] if lines else []
