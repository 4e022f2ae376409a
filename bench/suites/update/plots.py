"""Gradient steps per second over the batch."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from matplotlib.figure import Figure

from bench.core import pictures
from bench.core.plots import NAMES, legend_below
from sacref.training.plots import STYLES


class UpdateCurve(NamedTuple):
    """Gradient steps per second of one backend and execution."""

    backend: str
    fused: bool
    """True if the agent chose the execution."""
    batches: list[int]
    speeds: list[float]


def update_lines(widths: Mapping[int, Sequence[UpdateCurve]]) -> Figure:
    """Draw gradient steps per second over the batch, one panel per width: auto filled and drawn through, plain open and dotted."""
    figure = Figure(figsize=(3.2 * max(2, len(widths)), 3.6), layout="constrained")
    panels = figure.subplots(1, len(widths), squeeze=False, sharey=True)[0]
    for axes, (width, curves) in zip(panels, widths.items(), strict=True):
        for curve in curves:
            colour, _ = STYLES[curve.backend]
            axes.plot(
                curve.batches,
                curve.speeds,
                "-" if curve.fused else ":",
                color=colour,
                marker="o" if curve.backend == "torch" else "s",
                markerfacecolor=colour if curve.fused else pictures.paper(),
                label=f"{NAMES[curve.backend]}, {'auto' if curve.fused else 'plain'}",
            )
        axes.set_xscale("log", base=4)
        axes.set_yscale("log")
        ticks = sorted({batch for curve in curves for batch in curve.batches})
        axes.set_xticks(ticks, [f"{batch:,}" for batch in ticks], fontsize="small")
        axes.set_xlabel("batch")
        axes.set_title(f"width {width:,}", fontsize="medium")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("gradient steps per second")
    legend_below(figure, panels[0], ncols=2 * max(1, len(widths) // 2))
    return figure
