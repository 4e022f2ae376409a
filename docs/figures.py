"""The figure of the life cycle: what runs when under the strict order, with --overlap, and with --chunk."""

import io

from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

COLOURS = {"act": "#3f7fbf", "environment": "#8a8a8a", "record": "#c08a2c", "learn": "#3f9a5f", "write": "#9a5fa8"}
COSTS = {"act": 1.0, "environment": 1.1, "record": 1.3, "learn": 1.5}
"""Durations of a timestep's calls, which are drawn and stand for no measurement."""
TEXT = {"act": "act", "environment": "step", "record": "store", "learn": "learn"}
Call = tuple[str, float, float, str]
"""Lane, start, duration, text."""


def _in_turn(start: float, t: str, *lanes: str, scale: float = 1.0) -> list[Call]:
    calls = []
    for lane in lanes:
        text = TEXT[lane] if lane == "learn" else f"{TEXT[lane]} {t}"
        calls.append((lane, start, scale * COSTS[lane], text))
        start += scale * COSTS[lane]
    return calls


def _schedules() -> list[tuple[str, list[Call]]]:
    strict = [*_in_turn(0.0, "t", "act", "environment", "record", "learn"), *_in_turn(4.9, "t+1", "act", "environment", "record", "learn")]
    overlap = _in_turn(0.0, "t", "act", "environment", "record")
    for k, t in enumerate(("t+1", "t+2")):
        start = 3.4 * (k + 1)
        overlap += [*_in_turn(start, t, "act", "environment", "record"), *_in_turn(start + COSTS["act"], t, "learn")]
    chunk = [
        *(call for k, t in enumerate(("t", "t+1")) for call in _in_turn(3.1 * k, t, "act", "environment", "record", scale=0.9)),
        ("learn", 6.3, 3.7, "after 64 timesteps: 64 steps"),
    ]
    return [("strict, the default", strict), ("--overlap", overlap), ("--chunk 64", chunk)]


def life_cycle(*, dark: bool) -> str:
    """Draw the figure as SVG."""
    ink = "#e6e6e6" if dark else "#222222"
    figure = Figure(figsize=(9, 6.4), facecolor="none")
    FigureCanvasSVG(figure)
    lanes = ["act", "environment", "record", "learn"]
    names = ["act", "envs.step", "record_transition", "post_interaction"]
    for axes, (title, calls) in zip(figure.subplots(3, 1, sharex=True), _schedules(), strict=True):
        axes.set_facecolor("none")
        for lane, start, long, text in calls:
            row = lanes.index(lane)
            axes.broken_barh([(start + 0.03, long - 0.06)], (row - 0.4, 0.8), facecolors=COLOURS[lane])
            axes.text(start + long / 2, row, text, ha="center", va="center", color="white", fontsize=8)
        axes.set_title(title, loc="left", color=ink, fontsize=10, family="sans-serif")
        axes.set_yticks(range(4), names, color=ink, fontsize=9)
        axes.set_xticks([])
        axes.set_xlim(-0.1, 10.1)
        axes.set_ylim(3.6, -0.6)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.hlines([0.5, 1.5, 2.5], -0.1, 10.1, color=ink, alpha=0.15, linewidth=0.6)
    axes.set_xlabel("time", color=ink, fontsize=9, loc="right")
    figure.tight_layout()
    written = io.StringIO()
    figure.savefig(written, format="svg", transparent=True, metadata={"Date": None})
    return written.getvalue()
