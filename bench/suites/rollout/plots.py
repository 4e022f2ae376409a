"""The parts of an environment step."""

from collections.abc import Mapping

from matplotlib.figure import Figure

from bench.core.plots import NAMES, stacked_bars

PART_STYLES = {
    "act": ("#56B4E9", ""),
    "environment": ("#009E73", "//"),
    "record": ("#F0E442", "\\\\"),
    "update": ("#E69F00", ""),
    "rest": ("0.7", ".."),
}
"""Colour and hatching of each part of the loop: Okabe and Ito's colours, and neighbours told apart in grey too."""


def part_bars(backends: Mapping[str, Mapping[str, float]]) -> Figure:
    """Draw the milliseconds of an environment step by part of the loop: a stacked bar per backend."""
    bars = {NAMES[backend]: parts for backend, parts in backends.items()}
    return stacked_bars(bars, PART_STYLES, "milliseconds of an environment step with its gradient step, device idle after each part")
