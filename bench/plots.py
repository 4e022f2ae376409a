"""The report's pictures. Each carries the digest of what it was drawn from, so that a stale one is recognised without redrawing it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter
from PIL import Image

from bench.published import Published
from bench.statistics import Interval
from sacref.plotting import STYLES

STYLE_VERSION = 1
"""Raised when a picture should be drawn anew from the same data."""

NAMES = {"torch": "sacref, PyTorch", "jax": "sacref, JAX"}
MARKERS = "osD^v<>"


class Point(NamedTuple):
    """A point of a learning curve."""

    step: int
    mean: float
    interval: Interval | None
    """Of the mean; None for a single seed."""
    seeds: int


def learning_curve(path: Path, digest: str, env: str, curves: Mapping[str, Sequence[Point]], references: Sequence[Published]) -> None:
    """Return over environment steps: a line with its interval per backend, published points with their standard deviation."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for backend, points in curves.items():
        colour, line = STYLES[backend]
        steps = [point.step for point in points]
        seeds = points[-1].seeds if points else 0
        band = ", 95% interval of the mean" if seeds > 1 else ""
        label = f"{NAMES[backend]}: {seeds} seed{'s' if seeds != 1 else ''}{band}"
        axes.plot(steps, [point.mean for point in points], line, color=colour, marker=".", label=label)
        intervals = [point.interval for point in points if point.interval]
        if intervals:
            axes.fill_between(
                steps, [ends.low for ends in intervals], [ends.high for ends in intervals], color=colour, alpha=0.15, linewidth=0
            )
    for marker, source in zip(MARKERS, dict.fromkeys(reference.source for reference in references), strict=False):
        points_of = [reference for reference in references if reference.source == source]
        first = points_of[0]
        axes.errorbar(
            [point.steps for point in points_of],
            [point.mean for point in points_of],
            yerr=[point.std for point in points_of],
            fmt=marker,
            color="0.35",
            capsize=3,
            markersize=5,
            label=f"{source} ({first.env}-{first.env_version}), ± std of {first.seeds} seeds:\n{first.metric}",
        )
    axes.set_xlabel("environment steps")
    axes.set_ylabel("return, mean of 10 deterministic episodes")
    axes.set_title(env)
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.grid(alpha=0.3)
    axes.legend(fontsize="x-small", loc="best")
    _save(figure, path, digest)


def throughput_bars(path: Path, digest: str, machines: Mapping[str, Mapping[str, Sequence[float]]]) -> None:
    """Median steps per second of each contender, with its rounds as dots; one panel per machine."""
    figure = Figure(figsize=(7, 0.8 + 2.0 * len(machines)), layout="constrained")
    for axes, (where, speeds) in zip(figure.subplots(len(machines), squeeze=False)[:, 0], machines.items(), strict=True):
        for row, (name, values) in enumerate(speeds.items()):
            colour = next((style[0] for backend, style in STYLES.items() if name == f"sacref {backend}"), "0.6")
            axes.barh(row, float(np.median(values)), color=colour, alpha=0.8)
            axes.plot(values, [row] * len(values), ".", color="black", markersize=4)
        axes.set_yticks(range(len(speeds)), list(speeds))
        axes.invert_yaxis()
        axes.set_xlim(left=0)
        axes.set_xlabel("environment steps per second, one gradient step each")
        axes.set_title(where, fontsize="medium")
    _save(figure, path, digest)


def digest_of(path: Path) -> str | None:
    """The digest that a picture carries; None if there is no such picture."""
    if not path.exists():
        return None
    with Image.open(path) as image:
        return image.info.get("Description")


def _save(figure: Figure, path: Path, digest: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, metadata={"Description": digest, "Software": None})
