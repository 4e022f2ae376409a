"""Return curves: over environment steps and wall-clock, and of two agents that are compared."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from bench.core import pictures
from bench.core.plots import NAMES, clock_label, clock_of, legend_below
from bench.core.statistics import Interval
from bench.suites.learning.published import Published
from sacref.training.plots import STYLES

MARKERS = "osD^v<>"


class Point(NamedTuple):
    """A point of a learning curve."""

    step: int
    seconds: float
    """Wall-clock until then, median over the seeds of one kind of machine."""
    spread: bool
    """True if the seconds of a whole run were spread evenly over its steps."""
    mean: float
    interval: Interval | None
    """Interval of the mean; None for a single seed."""
    seeds: int


def learning_curve(
    title: str,
    curves: Mapping[str, Sequence[Point]],
    references: Sequence[Published],
    *,
    other_reward: Collection[str] = (),
    where: str = "",
) -> Figure:
    """Draw return over environment steps and over wall-clock: a line per backend; published points with their standard deviation.

    Args:
        title: title of the figure.
        curves: backend -> its curve.
        references: published points of the task.
        other_reward: sources whose version of the task has another reward; their points are hollow.
        where: kind of machine that the wall-clock was measured on; empty to leave it out.
    """
    figure = Figure(figsize=(9, 5.2), layout="constrained")
    by_step, by_clock = figure.subplots(1, 2, sharey=True, width_ratios=[3, 2])
    clock = clock_of(point for points in curves.values() for point in points)
    for backend, points in curves.items():
        colour, line = STYLES[backend]
        _draw_curve(by_step, points, NAMES[backend], color=colour, linestyle=line, marker=".")
        times = [point.seconds / clock.seconds for point in points]
        by_clock.plot(times, [point.mean for point in points], color=colour, linestyle=line, marker=".")
    sources = dict.fromkeys(reference.source for reference in references)
    # Side by side around the step that they share, or they would hide each other.
    apart = 0.012 * max((reference.steps for reference in references), default=0)
    for index, (marker, source) in enumerate(zip(MARKERS, sources, strict=False)):
        points_of = [reference for reference in references if reference.source == source]
        first = points_of[0]
        spread = f", ± std of {first.seeds} seeds" if first.seeds > 1 else ", one seed"
        hollow = source in other_reward
        by_step.errorbar(
            [point.steps + (index - (len(sources) - 1) / 2) * apart for point in points_of],
            [point.mean for point in points_of],
            yerr=[point.sample_std for point in points_of],
            fmt=marker,
            color="0.5",
            capsize=3,
            markersize=5,
            markerfacecolor=pictures.paper() if hollow else "0.5",
            label=f"{first.name} ({first.env}-{first.env_version}{', another reward' * hollow}){spread}:\n{first.metric}",
        )
    _finish_curves(by_step, title)
    by_clock.set_xlabel(clock_label(clock, where))
    by_clock.set_xlim(left=0)
    by_clock.grid(alpha=0.3)
    legend_below(figure, by_step, ncols=2)
    return figure


class AgentCurve(NamedTuple):
    """One of two agents that are compared, on one backend."""

    backend: str
    label: str
    first: bool
    """True for the agent that the question is about."""
    points: list[Point]


def compared_curves(title: str, curves: Sequence[AgentCurve]) -> Figure:
    """Draw return over environment steps of two agents on both backends: the first filled and drawn through, the other open and dotted."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for curve in curves:
        colour, _ = STYLES[curve.backend]
        _draw_curve(
            axes,
            curve.points,
            f"{curve.label}: {NAMES[curve.backend]}",
            color=colour,
            linestyle="-" if curve.first else ":",
            marker="o" if curve.backend == "torch" else "s",
            markersize=4,
            markerfacecolor=colour if curve.first else pictures.paper(),
        )
    _finish_curves(axes, title)
    legend_below(figure, axes, ncols=2)
    return figure


def _draw_curve(axes: Axes, points: Sequence[Point], label: str, **style: Any) -> None:
    """Draw a line through the means, with its interval."""
    steps = [point.step for point in points]
    seeds = points[-1].seeds if points else 0
    band = ", 95% interval of the mean" if seeds > 1 else ""
    label = f"{label}: {seeds} seed{'s' if seeds != 1 else ''}{band}"
    axes.plot(steps, [point.mean for point in points], label=label, **style)
    intervals = [point.interval for point in points if point.interval]
    if intervals:
        low, high = [ends.low for ends in intervals], [ends.high for ends in intervals]
        axes.fill_between(steps, low, high, color=style["color"], alpha=0.15, linewidth=0)


def _finish_curves(axes: Axes, title: str) -> None:
    axes.set_xlabel("environment steps")
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.set_ylabel("return, mean of 10 deterministic episodes")
    axes.set_title(title)
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.grid(alpha=0.3)
