"""Environment steps per second of each contender."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from bench.core import pictures
from sacref.training.plots import STYLES


class Bar(NamedTuple):
    """A contender of a throughput run."""

    speeds: list[float]
    """Steps per second of each round."""
    backend: str | None
    """torch or jax if it is sacref's, None for a peer."""
    strict: bool
    """True if each action follows the newest update."""


def throughput_bars(machines: Mapping[str, Mapping[str, Bar]]) -> Figure:
    """Draw median steps per second of each contender, with its rounds as dots, hatched if its policy is stale; one panel per machine."""
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
