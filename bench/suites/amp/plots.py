"""Numbers over width and batch."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from bench.core import pictures


class HeatMap(NamedTuple):
    """A number for each width and batch; None where there is none."""

    title: str
    widths: list[int]
    batches: list[int]
    values: list[list[float | None]]
    """Row by width, column by batch."""
    ratio: bool
    """True for ratios, False for amounts."""
    outlined: list[list[bool]]
    """True for the values with a line around them."""


def heat_maps(maps: Sequence[Sequence[HeatMap]]) -> Figure:
    """Draw numbers over width and batch, a row of panels per precision: colour and number, and a line around those that stand out."""
    figure = Figure(figsize=(1.0 + 4.6 * len(maps[0]), 0.6 + 2.8 * len(maps)), layout="constrained")
    for row, panels in zip(figure.subplots(len(maps), len(maps[0]), squeeze=False), maps, strict=True):
        for axes, found in zip(row, panels, strict=True):
            values = np.array([[np.nan if value is None else value for value in line] for line in found.values])
            # Ratios: two hues that every eye tells apart, white where nothing is gained, deepest from half and double on at the least.
            farthest = float(np.clip(np.nanmax(np.abs(np.log2(values)), initial=0.0), 1.0, 2.0)) if np.isfinite(values).any() else 1.0
            limits = {"vmin": -farthest, "vmax": farthest} if found.ratio else {}
            image = axes.imshow(np.log2(values), cmap="PuOr" if found.ratio else "cividis", aspect="auto", **limits)
            for (i, j), value in np.ndenumerate(values):
                red, green, blue, _ = image.cmap(image.norm(np.log2(value))) if np.isfinite(value) else (1.0, 1.0, 1.0, 1.0)
                dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
                text = (
                    ""
                    if not np.isfinite(value)
                    else f"{value:.2f}x"
                    if found.ratio
                    else f"{value:,.3g}"
                    if value < 100
                    else f"{value:,.0f}"
                )
                axes.text(j, i, text, ha="center", va="center", fontsize="small", color="white" if dark else "black")
            axes.add_collection(
                LineCollection(outline(found.outlined), colors=pictures.ink(), linewidths=2.5, capstyle="projecting", zorder=3)
            )
            axes.set_xticks(range(len(found.batches)), [f"{batch:,}" for batch in found.batches])
            axes.set_yticks(range(len(found.widths)), [f"{width:,}" for width in found.widths])
            axes.set_xlabel("batch")
            axes.set_ylabel("width")
            axes.set_title(found.title, fontsize="medium")
    return figure


Line = tuple[tuple[float, float], tuple[float, float]]


def outline(inside: Sequence[Sequence[bool]]) -> list[Line]:
    """Return the lines around the cells that are inside, (column, row) to (column, row); cell (i, j) is the unit square around (j, i)."""

    def is_inside(i: int, j: int) -> bool:
        return 0 <= i < len(inside) and 0 <= j < len(inside[i]) and inside[i][j]

    rows, columns = len(inside), max(map(len, inside), default=0)
    across = [
        ((j - 0.5, i - 0.5), (j + 0.5, i - 0.5)) for i in range(rows + 1) for j in range(columns) if is_inside(i, j) != is_inside(i - 1, j)
    ]
    along = [
        ((j - 0.5, i - 0.5), (j - 0.5, i + 0.5)) for i in range(rows) for j in range(columns + 1) if is_inside(i, j) != is_inside(i, j - 1)
    ]
    return across + along
