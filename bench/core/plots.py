"""Shared parts of the suites' figures: names of the backends, axes of wall-clock, legends, stacked bars."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple, Protocol

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.core import pictures

LIBRARIES = {"torch": "PyTorch", "jax": "JAX"}
NAMES = {backend: f"sacref, {library}" for backend, library in LIBRARIES.items()}


class Timed(Protocol):
    """A point of a curve over wall-clock."""

    @property
    def seconds(self) -> float:
        """Seconds until then."""

    @property
    def spread(self) -> bool:
        """True if the seconds of a whole run were spread evenly over its steps."""


class Clock(NamedTuple):
    """An axis of wall-clock."""

    seconds: float
    """Length of its unit."""
    label: str


def clock_of(points: Iterable[Timed]) -> Clock:
    """Return the axis of some curves: seconds up to two minutes of the longest, minutes up to two hours, else hours."""
    every = list(points)
    longest = max((point.seconds for point in every), default=0.0)
    size, unit = (1.0, "seconds") if longest <= 120 else (60.0, "minutes") if longest <= 7200 else (3600.0, "hours")
    how = ", spread evenly over the steps" if any(point.spread for point in every) else " of wall-clock"
    return Clock(size, f"{unit}{how}")


def clock_label(clock: Clock, where: str) -> str:
    """Return the label of an axis of medians on one kind of machine, which is left out if it is empty."""
    return f"{clock.label},\nmedian on {where}" if where else clock.label


def legend_below(figure: Figure, axes: Axes, *, ncols: int) -> None:
    """Put the legend of `axes` below the figure: Matplotlib's search for a free place within ignores bands."""
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=ncols, fontsize="x-small", frameon=False)


def stacked_bars(bars: Mapping[str, Mapping[str, float]], styles: Mapping[str, tuple[str, str]], label: str) -> Figure:
    figure = Figure(figsize=(8, 1.4 + 0.6 * len(bars)), layout="constrained")
    axes = figure.subplots()
    left = np.zeros(len(bars))
    for part, (colour, hatch) in styles.items():
        widths = np.array([parts[part] for parts in bars.values()])
        axes.barh(range(len(bars)), widths, left=left, color=colour, hatch=hatch, edgecolor=pictures.paper(), linewidth=0.5, label=part)
        left += widths
    for row, total in enumerate(left):
        axes.annotate(f" {total:.2f} ms", (total, row), va="center", fontsize="small")
    axes.set_yticks(range(len(bars)), list(bars))
    axes.invert_yaxis()
    axes.set_xlim(0, 1.15 * max(left))
    axes.set_xlabel(label)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=len(styles), fontsize="small", frameon=False)
    return figure
