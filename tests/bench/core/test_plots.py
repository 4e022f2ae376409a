"""The report's figures: in which unit time is drawn, and where the legends are."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from bench.core.bootstrap import Estimate
from bench.core.statistics import Interval
from bench.suites.learning import plots as learning
from bench.suites.learning.plots import AgentCurve, Point
from bench.suites.population import plots as population
from bench.suites.population.plots import PopulationCurve
from bench.suites.scaling import plots as scaling
from bench.suites.scaling.plots import ScalingCurve
from bench.suites.tasks import plots as aggregate_plots
from bench.suites.update import plots as update
from bench.suites.update.plots import UpdateCurve


@pytest.mark.parametrize(
    ("longest", "unit", "last"),
    [(8.0, "seconds", 8.0), (120.0, "seconds", 120.0), (150.0, "minutes", 2.5), (7_200.0, "minutes", 120.0), (9_000.0, "hours", 2.5)],
)
def test_wall_clock_is_drawn_in_the_unit_of_the_longest_run(longest: float, unit: str, last: float) -> None:
    curves = {
        backend: [Point(step, seconds, False, 1.0, None, 1) for step, seconds in ((10, end / 4), (20, end))]
        for backend, end in (("torch", longest), ("jax", longest / 8))
    }
    scores = {
        backend: [aggregate_plots.Score(point.step, point.seconds, False, Estimate(1.0, None)) for point in points]
        for backend, points in curves.items()
    }
    for figure in (learning.learning_curve("", curves, []), aggregate_plots.over_tasks("", scores, {})):
        axes = figure.axes[1]
        assert axes.get_xlabel() == f"{unit} of wall-clock"
        drawn = [np.asarray(line.get_xdata()).tolist() for line in axes.get_lines()]
        assert drawn == [pytest.approx([last / 4, last]), pytest.approx([last / 32, last / 8])]


def wide() -> list[Point]:
    """Their band covers the axes from corner to corner."""
    return [Point(step, float(step), False, 0.0, Interval(-100.0, 100.0), 3) for step in (1, 2, 3)]


BACKENDS = ("torch", "jax")
FIGURES: dict[str, Figure] = {
    "learning": learning.learning_curve("", {backend: wide() for backend in BACKENDS}, []),
    "comparison": learning.compared_curves(
        "Is it?", [AgentCurve(backend, label, label == "this", wide()) for label in ("this", "that") for backend in BACKENDS]
    ),
    **{
        f"updates, {len(widths)} widths": update.update_lines(
            {width: [UpdateCurve(name, fused, [64, 256], [9.0, 5.0]) for name in BACKENDS for fused in (True, False)] for width in widths}
        )
        for widths in ([256], [64, 256, 512, 1024])
    },
    "populations": population.population_lines({64: [PopulationCurve(name, [1, 2], [5.0, 9.0]) for name in BACKENDS]}),
    "ranks": scaling.scaling_lines({64: [ScalingCurve(name, weak, [1, 2], [1.0, 1.5]) for name in BACKENDS for weak in (True, False)]}),
    "tasks": aggregate_plots.over_tasks(
        "", {name: [aggregate_plots.Score(1, 1.0, False, Estimate(1.0, Interval(0.0, 2.0)))] for name in BACKENDS}, {}
    ),
}


@pytest.mark.parametrize("name", FIGURES)
def test_legends_cover_nothing_that_is_drawn(name: str) -> None:
    figure = FIGURES[name]
    figure.draw_without_rendering()
    assert not [axes for axes in figure.axes if axes.get_legend() is not None]
    (legend,) = figure.legends
    place, page = legend.get_window_extent(), figure.bbox
    assert page.x0 <= place.x0 and place.x1 <= page.x1 and page.y0 <= place.y0
    for axes in figure.axes:
        box = axes.get_tightbbox()
        assert box is not None and box.y0 >= place.y1
