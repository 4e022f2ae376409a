"""Curves of runs: the returns that `curve.png` and `sacref plot` show."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter
from matplotlib.transforms import ScaledTranslation
from numpy.typing import NDArray
from scipy import stats

from sacref.storage.checkpoint import read_json
from sacref.training.run_directory import differing, flat, runs_in, told

STYLES = {"torch": ("#D55E00", "-"), "jax": ("#0072B2", "--")}
"""Colour and line of each backend: two of Okabe and Ito's colours, told apart with any colour vision, and by the line in grey."""

CONFIDENCE = 0.95
PANELS_IN_A_ROW = 3
LEGEND_INCHES = 0.45
"""Between the axes and the legend below them: room for the numbers and the name of the axis."""
COLOURS = ("#3A8FD9", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6BB1", "#999999")
"""About Okabe and Ito's, but for yellow and black, which are lost on a light or on a dark page; all are seen on both."""


class PlotError(ValueError):
    """Runs that cannot be drawn; the message says which, and the fix."""


class _Run(NamedTuple):
    source: Path
    """Run directory or table."""
    environment: str
    backend: str
    seed: int
    returns: dict[int, list[float]]
    """Environment step -> the returns of that evaluation's episodes."""
    settings: Mapping[str, object]
    """Flat configuration; empty for a run of a table."""


class _Group(NamedTuple):
    """Key that the seeds of one curve share."""

    environment: str
    backend: str
    settings: str
    """Settings that differ from those of other runs that are drawn; empty for none."""

    @property
    def name(self) -> str:
        """Name in the legend."""
        return f"{self.backend}, {self.settings}" if self.settings else self.backend


class Curve(NamedTuple):
    """The evaluation returns of one group of runs, those of one environment, backend and settings."""

    steps: Int[np.ndarray, " evaluations"]
    """Environment steps."""
    mean: Float[np.ndarray, " evaluations"]
    low: Float[np.ndarray, " evaluations"]
    high: Float[np.ndarray, " evaluations"]
    label: str
    """Which runs these are, and what the band from `low` to `high` is."""


def plot_runs(run_dirs: Sequence[str | Path], *, output: str | Path) -> Figure:
    """Draw the evaluation returns of runs over environment steps: one panel per environment, one curve per backend and settings.

    Runs are seeds of one curve if their `config.json` differ in nothing but the seed and in what a resumed run may change.

    A table (.csv) holds the runs of many, a row for each evaluation: columns `env`, `backend`, `seed`, `step`, `return`, and optionally
    `preset`, a panel of its own for each.

    Several seeds: their mean, and its 95% confidence interval (Student t, so that three seeds look as uncertain as they are). A single
    run: the mean of each evaluation's episodes, and their standard deviation. The legend says which.

    Args:
        run_dirs: run directories, each with `config.json` and `evaluation.json`, folders of such, and tables.
        output: the picture; its suffix chooses the format (.png, .pdf, .svg).

    Returns:
        The figure, as written.

    Raises:
        PlotError: if there is no run, a run has no evaluation yet, two runs are of the same settings and seed, a table has two rows of one
            evaluation, or the suffix is no picture's.
    """
    output = Path(output).expanduser()
    if not run_dirs:
        raise PlotError("plot_runs got no run directory: name at least one")
    formats = Figure().canvas.get_supported_filetypes()
    if output.suffix.removeprefix(".") not in formats:
        raise PlotError(f"output {output} has suffix {output.suffix!r}, expected one of {', '.join('.' + f for f in sorted(formats))}")
    groups = _grouped([run for given in run_dirs for run in _read_all(Path(given).expanduser())])

    environments = sorted({group.environment for group in groups})
    columns = min(len(environments), PANELS_IN_A_ROW)
    rows = -(-len(environments) // columns)
    figure = Figure(figsize=(7.0 * columns, 5.0 * rows), layout="constrained")
    for place, environment in enumerate(environments, 1):
        axes = figure.add_subplot(rows, columns, place)
        drawn = sorted(group for group in groups if group.environment == environment)
        one_each = len({group.backend for group in drawn}) == len(drawn)
        for number, group in enumerate(drawn):
            colour, line = STYLES.get(group.backend, ("#000000", ":"))
            _draw(axes, _curve(group.name, groups[group]), colour if one_each else COLOURS[number % len(COLOURS)], line)
        axes.set_title(environment)
        axes.set_xlabel("Environment steps")
        axes.set_ylabel("Evaluation return (sum of rewards per episode)")
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        # Below: "best" looks for a place that is free of lines, and lies on bands.
        below = axes.transAxes + ScaledTranslation(0.0, -LEGEND_INCHES, figure.dpi_scale_trans)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, 0.0), bbox_transform=below, frameon=False)
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=150)
    return figure


def _draw(axes: Axes, curve: Curve, colour: str, line: str) -> None:
    # Markers, so that a run of one evaluation is seen too.
    marker = "o" if len(curve.steps) < 30 else None
    axes.plot(curve.steps, curve.mean, color=colour, linestyle=line, marker=marker, markersize=4, linewidth=2, label=curve.label)
    axes.fill_between(curve.steps, curve.low, curve.high, color=colour, alpha=0.18, linewidth=0)


def seeds_curve(returns: Sequence[Mapping[int, Sequence[float]]], label: str = "") -> Curve | None:
    """Compute the mean over seeds and its interval (Student's t), at the evaluations that all of them have; None if there is none.

    Args:
        returns: of each seed, environment step -> the returns of that evaluation's episodes. At least two seeds.
        label: of the curve.
    """
    shared = sorted(set.intersection(*map(set, returns)))
    if not shared:
        return None
    of_seeds = np.asarray([[np.mean(seed[step]) for step in shared] for seed in returns])
    mean = of_seeds.mean(axis=0)
    half = stats.t.ppf(0.5 + CONFIDENCE / 2, len(returns) - 1) * of_seeds.std(axis=0, ddof=1) / np.sqrt(len(returns))
    return Curve(np.asarray(shared), mean, mean - half, mean + half, label)


def _curve(name: str, runs: list[_Run]) -> Curve:
    """Compute the mean and the band of the runs of one group, at the evaluations that all of them have."""
    if len(runs) > 1:
        label = f"{name}: mean of {len(runs)} seeds; band: its {CONFIDENCE:.0%} interval"
        curve = seeds_curve([run.returns for run in runs], label)
        if curve is None:
            said = ", ".join(f"{run.source} (seed {run.seed})" for run in runs)
            raise PlotError(f"{said} have no evaluation at a common step: plot them apart, or train them with one evaluation interval")
        return curve
    steps = sorted(runs[0].returns)
    returns = [np.asarray(runs[0].returns[step]) for step in steps]
    mean = np.asarray([episodes.mean() for episodes in returns])
    half = np.asarray([episodes.std() for episodes in returns])
    spread = f"; band: std of {_range(returns)} episodes" if any(len(episodes) > 1 for episodes in returns) else ""
    return Curve(np.asarray(steps), mean, mean - half, mean + half, f"{name}: seed {runs[0].seed}{spread}")


def _range(returns: list[NDArray[np.float64]]) -> str:
    """Say how many episodes an evaluation had: one number, or the lowest and the highest."""
    counts = {len(episodes) for episodes in returns}
    return "-".join(str(count) for count in sorted({min(counts), max(counts)}))


def _grouped(runs: Sequence[_Run]) -> dict[_Group, list[_Run]]:
    """Group the runs by environment, backend and settings, no two of one seed."""
    differences = differing([run.settings for run in runs if run.settings])
    groups: dict[_Group, list[_Run]] = {}
    for run in runs:
        settings = ", ".join(told(run.settings, differences)) if run.settings else ""
        group = groups.setdefault(_Group(run.environment, run.backend, settings), [])
        for other in group:
            if other.seed == run.seed:
                raise PlotError(
                    f"{other.source} and {run.source} are both {run.environment} on {run.backend} with the same settings and seed "
                    f"{run.seed}, and would be counted as two seeds: plot one of them"
                )
        group.append(run)
    return groups


def _read_all(source: Path) -> list[_Run]:
    return _read_table(source) if source.suffix == ".csv" else [_read(directory) for directory in runs_in(source)]


def _read_table(path: Path) -> list[_Run]:
    """Read the runs of a table, a row for each evaluation."""
    runs: dict[tuple[str, str, int], _Run] = {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                environment = f"{row['env']} ({row['preset']})" if row.get("preset") else row["env"]
                key = environment, row["backend"], int(row["seed"])
                run = runs.setdefault(key, _Run(path, *key, {}, {}))
                run.returns.setdefault(int(row["step"]), []).append(float(row["return"]))
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise PlotError(
            f"{path}: {type(error).__name__} {error}, expected a table with the columns env, backend, seed, step and return: "
            f"name a run directory, or a file like results/learning/curves.csv"
        ) from error
    if not runs:
        raise PlotError(f"{path} has no row: name a table that holds evaluations")
    for run in runs.values():
        _check_returns(run)
        for step, returns in run.returns.items():
            if len(returns) > 1:
                raise PlotError(
                    f"{path} has two rows of {run.environment} on {run.backend} with seed {run.seed} at step {step:,}, expected one for "
                    f"each evaluation, the mean of its episodes: name the runs apart in the column preset, or leave out one of them"
                )
    return list(runs.values())


def _read(directory: Path) -> _Run:
    """Read the parts of a run directory that a curve is made of."""
    if not directory.is_dir():
        raise PlotError(f"{directory} is no directory, expected a run directory as `sacref train --run-dir` writes it")
    config, evaluations = (_read_json(directory, name) for name in ("config.json", "evaluation.json"))
    try:
        environment, backend, seed = str(config["env"]), str(config["backend"]), int(config["seed"])
        returns = {int(entry["step"]): [float(value) for value in entry["returns"]] for entry in evaluations}
    except (KeyError, TypeError, ValueError) as error:
        raise PlotError(
            f"{directory}: {type(error).__name__} {error} while reading config.json (env, backend, seed) and evaluation.json "
            f"(a list of step, returns, mean, std): is it a run directory of sacref?"
        ) from error
    if not returns:
        raise PlotError(f"{directory}/evaluation.json holds no evaluation yet: train longer, or evaluate more often")
    run = _Run(directory, environment, backend, seed, returns, flat(config))
    _check_returns(run, "/evaluation.json")
    return run


def _check_returns(run: _Run, file: str = "") -> None:
    for step, values in run.returns.items():
        if not values or not np.isfinite(values).all():
            raise PlotError(f"{run.source}{file} has returns {values} at step {step}, expected at least one finite number")


def _read_json(directory: Path, name: str) -> Any:
    path = directory / name
    if not path.is_file():
        raise PlotError(f"{path} is missing: {directory} holds no run, or one that has not been evaluated yet")
    return read_json(path)
