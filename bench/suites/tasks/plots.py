"""The figure of all tasks together: sample efficiency, wall-clock and, of several tasks, the performance profile."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter

from bench.core.bootstrap import Estimate, Profile
from bench.core.plots import NAMES, clock_label, clock_of
from sacref.training.plots import STYLES


class Score(NamedTuple):
    """A point of a curve of scores."""

    step: int
    seconds: float
    """Wall-clock until then: mean over the tasks of the median over the runs of one kind of machine."""
    spread: bool
    """True if the seconds of a whole run were spread evenly over its steps."""
    iqm: Estimate


def over_tasks(title: str, curves: Mapping[str, Sequence[Score]], profiles: Mapping[str, Profile], *, where: str = "") -> Figure:
    """Draw the IQM by step and by wall-clock, and the share of runs above each score; a line per backend, and its 95% band if it has one.

    Args:
        title: title of the figure.
        curves: backend -> its curve.
        profiles: backend -> its performance profile; empty to leave the panel out.
        where: kind of machine that the wall-clock was measured on; empty to leave it out.
    """
    figure = Figure(figsize=(9 if profiles else 7, 3.8), layout="constrained")
    by_step, by_clock, *rest = figure.subplots(1, 3 if profiles else 2)
    clock = clock_of(point for points in curves.values() for point in points)
    by_clock.sharey(by_step)
    for backend, points in curves.items():
        for axes, places in ((by_step, [point.step for point in points]), (by_clock, [point.seconds / clock.seconds for point in points])):
            ends = [point.iqm.interval for point in points if point.iqm.interval is not None]
            _draw(axes, backend, places, [point.iqm.value for point in points], [each.low for each in ends], [each.high for each in ends])
    for axes in rest:
        for backend, profile in profiles.items():
            _draw(axes, backend, profile.thresholds, profile.shares, profile.low, profile.high)
        axes.set_xlabel("score")
        axes.set_ylabel("share of runs above it")
        axes.set_title("performance profile", fontsize="medium")
    by_step.set_xlabel("environment steps")
    by_step.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    by_step.tick_params(axis="x", labelrotation=30)
    by_step.set_ylabel("IQM of the score")
    by_step.set_title("sample efficiency", fontsize="medium")
    by_clock.set_xlabel(clock_label(clock, where))
    by_clock.set_xlim(left=0)
    by_clock.set_title("wall-clock", fontsize="medium")
    for axes in (by_step, by_clock, *rest):
        axes.grid(alpha=0.3)
    figure.suptitle(title, fontsize="medium")
    figure.legend(*by_step.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize="small", frameon=False)
    return figure


def _draw(axes: Axes, backend: str, places: Sequence[float], values: Sequence[float], low: Sequence[float], high: Sequence[float]) -> None:
    colour, line = STYLES[backend]
    band = ", 95% stratified-bootstrap interval" if low else ""
    axes.plot(places, values, color=colour, linestyle=line, label=f"{NAMES[backend]}{band}")
    if low:
        axes.fill_between(places, low, high, color=colour, alpha=0.15, linewidth=0)
