"""The parts of a gradient step."""

from collections.abc import Mapping

from matplotlib.figure import Figure

from bench.core.plots import stacked_bars

LIMIT_STYLES = {
    "products": ("#56B4E9", ""),
    "small products": ("#009E73", "//"),
    "rest": ("0.7", ".."),
}
"""Colour and hatch of each part of a gradient step."""


def limit_bars(bars: Mapping[str, Mapping[str, float]]) -> Figure:
    """Draw the milliseconds of a gradient step by part: a stacked bar per agent."""
    return stacked_bars(bars, LIMIT_STYLES, "milliseconds of a gradient step")
