"""The parts of a training step with tiny networks."""

from collections.abc import Mapping

from matplotlib.figure import Figure

from bench.core.plots import stacked_bars

PART_STYLES = {
    "environment": ("#009E73", "//"),
    "pre": ("#CC79A7", ""),
    "act": ("#56B4E9", ""),
    "to_numpy": ("#0072B2", "//"),
    "record": ("#F0E442", "\\\\"),
    "learn": ("#E69F00", ""),
    "rest": ("0.7", ".."),
}
"""Colour and hatching of each part of the loop: Okabe and Ito's colours, and neighbours told apart in grey too."""


def part_bars(contenders: Mapping[str, Mapping[str, float]]) -> Figure:
    """Draw the milliseconds of a timestep by part of the loop: a stacked bar per contender."""
    return stacked_bars(contenders, PART_STYLES, "milliseconds of a timestep, networks of width 8, one environment")
