"""Gradient steps per second over the number of agents."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from matplotlib.figure import Figure

from bench.core.plots import NAMES, legend_below
from sacref.training.plots import STYLES


class PopulationCurve(NamedTuple):
    """Gradient steps per second of one backend's populations."""

    backend: str
    members: list[int]
    speeds: list[float]
    """Speeds of all members together."""


def population_lines(widths: Mapping[int, Sequence[PopulationCurve]]) -> Figure:
    """Draw gradient steps per second of all members over their number, one panel per width; dotted those of one agent."""
    figure = Figure(figsize=(3.4 * max(2, len(widths)), 3.6), layout="constrained")
    panels = figure.subplots(1, len(widths), squeeze=False)[0]
    for axes, (width, curves) in zip(panels, widths.items(), strict=True):
        ticks = sorted({count for curve in curves for count in curve.members})
        for curve in curves:
            colour, line = STYLES[curve.backend]
            marker = "o" if curve.backend == "torch" else "s"
            axes.plot(curve.members, curve.speeds, color=colour, linestyle=line, marker=marker, label=NAMES[curve.backend])
            if curve.members[0] == 1:
                axes.axhline(curve.speeds[0], color=colour, linestyle=":", linewidth=1)
        axes.set_xscale("log", base=2)
        axes.set_xticks(ticks, [str(count) for count in ticks])
        axes.set_ylim(bottom=0)
        axes.set_xlabel("agents together")
        axes.set_title(f"width {width:,}", fontsize="medium")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("gradient steps per second, all agents")
    legend_below(figure, panels[0], ncols=2)
    return figure
