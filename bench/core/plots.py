"""The figures of the report's pictures, in the colours of the theme that is chosen (`bench.pictures`)."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from bench.core import pictures
from bench.core.statistics import Interval
from bench.suites.learning.published import Published
from sacref.training.plots import STYLES

LIBRARIES = {"torch": "PyTorch", "jax": "JAX"}
NAMES = {backend: f"sacref, {library}" for backend, library in LIBRARIES.items()}
MARKERS = "osD^v<>"


class Point(NamedTuple):
    """A point of a learning curve."""

    step: int
    seconds: float
    """Of wall-clock until then, mean over seeds."""
    spread: bool
    """Whether those of a whole run were spread evenly over its steps."""
    mean: float
    interval: Interval | None
    """Of the mean; None for a single seed."""
    seeds: int


def learning_curve(title: str, curves: Mapping[str, Sequence[Point]], references: Sequence[Published]) -> Figure:
    """Return over environment steps and over wall-clock: a line per backend; published points with their standard deviation."""
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
        by_step.errorbar(
            [point.steps + (index - (len(sources) - 1) / 2) * apart for point in points_of],
            [point.mean for point in points_of],
            yerr=[point.std for point in points_of],
            fmt=marker,
            color="0.5",
            capsize=3,
            markersize=5,
            label=f"{first.name} ({first.env}-{first.env_version}){spread}:\n{first.metric}",
        )
    _finish_curves(by_step, title)
    by_clock.set_xlabel(clock.label)
    by_clock.set_xlim(left=0)
    by_clock.grid(alpha=0.3)
    _legend_below(figure, by_step, ncols=2)
    return figure


class AgentCurve(NamedTuple):
    """One of two agents that are compared, on one backend."""

    backend: str
    label: str
    first: bool
    """Whether it is the one that the question is about."""
    points: list[Point]


class Timed(Protocol):
    """A point of a curve over wall-clock."""

    @property
    def seconds(self) -> float:
        """Until then."""

    @property
    def spread(self) -> bool:
        """Whether those of a whole run were spread evenly over its steps."""


class Clock(NamedTuple):
    """An axis of wall-clock."""

    seconds: float
    """Of its unit."""
    label: str


def clock_of(points: Iterable[Timed]) -> Clock:
    """Of curves that are drawn together: in seconds up to two minutes of the longest, in minutes up to two hours, else in hours."""
    every = list(points)
    longest = max((point.seconds for point in every), default=0.0)
    size, unit = (1.0, "seconds") if longest <= 120 else (60.0, "minutes") if longest <= 7200 else (3600.0, "hours")
    how = ", spread evenly over the steps" if any(point.spread for point in every) else " of wall-clock"
    return Clock(size, f"{unit}{how}")


def compared_curves(title: str, curves: Sequence[AgentCurve]) -> Figure:
    """Return over environment steps of two agents on both backends: the first filled and drawn through, the other open and dotted."""
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
    _legend_below(figure, axes, ncols=2)
    return figure


def _draw_curve(axes: Axes, points: Sequence[Point], label: str, **style: Any) -> None:
    """A line through the means, with its interval."""
    steps = [point.step for point in points]
    seeds = points[-1].seeds if points else 0
    band = ", 95% interval of the mean" if seeds > 1 else ""
    label = f"{label}: {seeds} seed{'s' if seeds != 1 else ''}{band}"
    axes.plot(steps, [point.mean for point in points], label=label, **style)
    intervals = [point.interval for point in points if point.interval]
    if intervals:
        low, high = [ends.low for ends in intervals], [ends.high for ends in intervals]
        axes.fill_between(steps, low, high, color=style["color"], alpha=0.15, linewidth=0)


def _legend_below(figure: Figure, axes: Axes, *, ncols: int) -> None:
    """Name what is drawn in `axes` below the figure: no place within is known to be free, as bands are not asked for one."""
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=ncols, fontsize="x-small", frameon=False)


def _finish_curves(axes: Axes, title: str) -> None:
    axes.set_xlabel("environment steps")
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.set_ylabel("return, mean of 10 deterministic episodes")
    axes.set_title(title)
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.grid(alpha=0.3)


class Bar(NamedTuple):
    """A contender of a throughput run."""

    speeds: list[float]
    """Steps per second of each round."""
    backend: str | None
    """torch or jax if it is sacref's, None for a peer."""
    strict: bool
    """Whether each action follows the newest update."""


def throughput_bars(machines: Mapping[str, Mapping[str, Bar]]) -> Figure:
    """Median steps per second of each contender, with its rounds as dots, hatched if its policy is stale; one panel per machine."""
    rows = [len(bars) for bars in machines.values()]
    figure = Figure(figsize=(8, 0.8 + sum(0.9 + 0.3 * count for count in rows)), layout="constrained")
    panels = figure.subplots(len(machines), squeeze=False, gridspec_kw={"height_ratios": [3 + count for count in rows]})[:, 0]
    for axes, (where, bars) in zip(panels, machines.items(), strict=True):
        for row, bar in enumerate(bars.values()):
            colour = STYLES[bar.backend][0] if bar.backend else "0.6"
            hatch = None if bar.strict else "//"
            axes.barh(row, float(np.median(bar.speeds)), color=colour, alpha=0.8, hatch=hatch, edgecolor=pictures.paper(), linewidth=0)
            axes.plot(bar.speeds, [row] * len(bar.speeds), ".", color=pictures.ink(), markersize=4)
        axes.set_yticks(range(len(bars)), list(bars))
        axes.invert_yaxis()
        axes.set_xlim(left=0)
        axes.set_xlabel("environment steps per second, one gradient step each\n(hatched: with an older policy)")
        axes.set_title(where, fontsize="medium")
    return figure


class UpdateCurve(NamedTuple):
    """Gradient steps per second of one backend in one way."""

    backend: str
    fused: bool
    """Whether the agent chose the way."""
    batches: list[int]
    speeds: list[float]


def update_lines(widths: Mapping[int, Sequence[UpdateCurve]]) -> Figure:
    """Gradient steps per second over the batch, one panel per width: auto filled and drawn through, plain open and dotted."""
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
    _legend_below(figure, panels[0], ncols=2 * max(1, len(widths) // 2))
    return figure


PART_STYLES = {
    "act": ("#56B4E9", ""),
    "environment": ("#009E73", "//"),
    "record": ("#F0E442", "\\\\"),
    "update": ("#E69F00", ""),
    "rest": ("0.7", ".."),
}
"""Colour and hatching of each part of the loop: Okabe and Ito's colours, and neighbours told apart in grey too."""


def part_bars(backends: Mapping[str, Mapping[str, float]]) -> Figure:
    """Milliseconds of an environment step by part of the loop: a stacked bar per backend."""
    bars = {NAMES[backend]: parts for backend, parts in backends.items()}
    return _stacked_bars(bars, PART_STYLES, "milliseconds of an environment step with its gradient step, device idle after each part")


LIMIT_STYLES = {
    "products": ("#56B4E9", ""),
    "small products": ("#009E73", "//"),
    "rest": ("0.7", ".."),
}
"""As PART_STYLES, of the parts of a gradient step."""


def limit_bars(bars: Mapping[str, Mapping[str, float]]) -> Figure:
    """Milliseconds of a gradient step by what they go to: a stacked bar per agent."""
    return _stacked_bars(bars, LIMIT_STYLES, "milliseconds of a gradient step")


def _stacked_bars(bars: Mapping[str, Mapping[str, float]], styles: Mapping[str, tuple[str, str]], label: str) -> Figure:
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


class HeatMap(NamedTuple):
    """A number for each width and batch; None where there is none."""

    title: str
    widths: list[int]
    batches: list[int]
    values: list[list[float | None]]
    """Row by width, column by batch."""
    ratio: bool
    """Whether the values are ratios to 1, or amounts."""
    outlined: list[list[bool]]
    """Which of them are set apart by a line around them."""


def heat_maps(maps: Sequence[Sequence[HeatMap]]) -> Figure:
    """Numbers over width and batch, a row of panels per precision: colour and the number itself, a line around those that stand out."""
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


class PopulationCurve(NamedTuple):
    """Gradient steps per second of one backend's populations."""

    backend: str
    members: list[int]
    speeds: list[float]
    """Of all members together."""


def population_lines(widths: Mapping[int, Sequence[PopulationCurve]]) -> Figure:
    """Gradient steps per second of all members over their number, one panel per width; dotted what one agent alone takes."""
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
    _legend_below(figure, panels[0], ncols=2)
    return figure


class ScalingCurve(NamedTuple):
    """Speed-up of one backend over one rank."""

    backend: str
    weak: bool
    """Whether each rank has the whole batch, or a share of it."""
    ranks: list[int]
    ratios: list[float]


def scaling_lines(widths: Mapping[int, Sequence[ScalingCurve]]) -> Figure:
    """Speed-up over the number of ranks, one panel per width: weak filled and drawn through, strong open and dotted."""
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
    _legend_below(figure, panels[0], ncols=3)
    return figure


KIND_STYLES = {
    "losses": ("#56B4E9", "-"),
    "gradients": ("#D55E00", "-"),
    "parameters": ("#0072B2", "-"),
    "targets": ("#009E73", "--"),
    "moments": ("#E69F00", "--"),
    "alpha": ("#CC79A7", ":"),
}
"""Colour and line of what is compared between backends: Okabe and Ito's colours."""


def drift(dtype: str, pairs: Mapping[str, Mapping[str, Sequence[float]]]) -> Figure:
    """Largest relative difference after each update, by kind; a panel per pair."""
    columns = min(3, len(pairs))
    rows = -(-len(pairs) // columns)
    figure = Figure(figsize=(3.2 * columns + 0.4, 2.6 * rows + 0.5), layout="constrained")
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    named = {}
    for axes, (pair, kinds) in zip(panels.flat, pairs.items(), strict=False):
        for kind, values in kinds.items():
            colour, line = KIND_STYLES.get(kind, ("0.5", "-."))
            (named[kind],) = axes.plot(range(1, len(values) + 1), values, color=colour, linestyle=line, linewidth=1)
        axes.set_yscale("log")
        axes.set_title(pair, fontsize="medium")
        axes.grid(alpha=0.3)
    for axes in panels[-1]:
        axes.set_xlabel("update")
    figure.supylabel(f"largest relative difference, {dtype}", fontsize="medium")
    figure.legend(named.values(), named.keys(), loc="outside lower center", ncols=len(named), fontsize="small", frameon=False)
    return figure


Line = tuple[tuple[float, float], tuple[float, float]]


def outline(inside: Sequence[Sequence[bool]]) -> list[Line]:
    """The lines around what is inside, (column, row) to (column, row); the cell of row i and column j is the unit square around (j, i)."""

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
