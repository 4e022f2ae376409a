"""Speed-up over the number of ranks."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from matplotlib.figure import Figure

from bench.core import pictures
from bench.core.plots import NAMES, legend_below
from sacref.training.plots import STYLES


class ScalingCurve(NamedTuple):
    """Speed-up of one backend over one rank."""

    backend: str
    weak: bool
    """True if each rank has the whole batch, False if a share of it."""
    ranks: list[int]
    ratios: list[float]


def scaling_lines(widths: Mapping[int, Sequence[ScalingCurve]]) -> Figure:
    """Draw the speed-up over the number of ranks, one panel per width: weak filled and drawn through, strong open and dotted."""
    figure = Figure(figsize=(3.4 * max(2, len(widths)), 3.6), layout="constrained")
    panels = figure.subplots(1, len(widths), squeeze=False, sharey=True)[0]
    for axes, (width, curves) in zip(panels, widths.items(), strict=True):
        ticks = sorted({count for curve in curves for count in curve.ranks})
        axes.plot(ticks, ticks, "--", color="0.6", linewidth=1, label="as many times as ranks")
        for curve in curves:
            colour, _ = STYLES[curve.backend]
            axes.plot(
                curve.ranks,
                curve.ratios,
                "-" if curve.weak else ":",
                color=colour,
                marker="o" if curve.backend == "torch" else "s",
                markerfacecolor=colour if curve.weak else pictures.paper(),
                label=f"{NAMES[curve.backend]}, {'weak' if curve.weak else 'strong'}",
            )
        axes.set_xscale("log", base=2)
        axes.set_xticks(ticks, [str(count) for count in ticks])
        axes.set_ylim(bottom=0)
        axes.set_xlabel("ranks")
        axes.set_title(f"width {width:,}", fontsize="medium")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("transitions per second over one rank's")
    legend_below(figure, panels[0], ncols=3)
    return figure
