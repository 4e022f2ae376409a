"""Interactive report of runs: one HTML file with return curves, metrics and what the runs differ in. `sacref report`."""

import html
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from sacref.storage.checkpoint import short
from sacref.storage.metric_files import METRICS_FILE
from sacref.training.plots import COLOURS, CONFIDENCE, Curve, seeds_curve
from sacref.training.run_directory import RunError, differing, flat, read_config, read_evaluations, runs_in, told

T = TypeVar("T")

POINTS = 1_000
"""Most points of a curve of `metrics.jsonl`; of longer ones, evenly spaced points are drawn."""
PAUSE = 20
"""Times the usual time between two lines of `metrics.jsonl`, beyond which the run was not running."""
PANEL_PIXELS = 280
FEW = 30
"""Points of a curve that are marked if there are no more."""
SPEED = "speed"
PANELS: Mapping[str, str] = {
    "Return of the training episodes": "Reward / Total reward (mean)",
    "Critic loss": "Loss / Critic loss",
    "Policy loss": "Loss / Policy loss",
    "Entropy loss": "Loss / Entropy loss",
    "Q-values, mean over the critics": "Q-network / Q{critic} (mean)",
    "Entropy of the policy (nats)": "Policy / Entropy",
    "Temperature alpha": "Coefficient / Entropy coefficient",
    "Steps per second, evaluations included": SPEED,
}
"""Title of a panel -> tag of `metrics.jsonl`, or `SPEED`."""

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>
body {{ font-family: system-ui, sans-serif; margin: 0 auto; max-width: 70rem; padding: 1rem; }}
h1 {{ font-size: 1.4rem; }} h2 {{ font-size: 1.1rem; margin-top: 2rem; }}
.scrolls {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-size: 0.85rem; font-variant-numeric: tabular-nums; }}
th, td {{ border-bottom: 1px solid #8886; padding: 0.3rem 0.8rem 0.3rem 0; text-align: left; white-space: nowrap; }}
</style>
</head>
<body>
<h1>{title}</h1>
<p>Lines of one colour are the seeds of the same settings; a thick line is their mean over the evaluations that all have, its
band the {level:.0%} interval of the mean. Point at a line for its seed, at the legend to hide or show settings; drag to zoom all
panels, double-click to go back.</p>
{figure}
<h2>Runs</h2>
{runs}
<h2>Settings that differ</h2>
{differences}
</body>
</html>
"""
# Plotly colours a figure when it is made: this follows the page.
FOLLOW_THE_PAGE = """
const dark = matchMedia("(prefers-color-scheme: dark)");
const paint = () => Plotly.relayout("{plot_id}", {template: dark.matches ? DARK : LIGHT});
dark.addEventListener("change", paint);
paint();
"""


class _Run(NamedTuple):
    directory: Path
    config: dict[str, Any]
    returns: dict[int, list[float]]
    """Environment step -> the returns of that evaluation's episodes."""
    lines: list[dict[str, Any]]
    """Lines of `metrics.jsonl`."""

    @property
    def seed(self) -> int:
        return int(self.config["seed"])


def write_report(run_dirs: Sequence[str | Path], *, output: str | Path) -> None:
    """Write one HTML file about runs, which opens from a disk and loads nothing from a network.

    It shows the evaluations' returns, losses, Q-values, entropy, temperature and speed over environment steps, a table of the runs, and the
    settings that differ. Runs with the same settings but for the seed have one colour.

    Args:
        run_dirs: run directories, finished or not, and folders of such.
        output: the file.

    Raises:
        RunError: if there is no run, a directory holds none, or one that has written neither an evaluation nor a metric yet, or two runs
            are of the same settings and seed. ImportError: if plotly is not installed.
    """
    if not run_dirs:
        raise RunError("a report got no run directory: name at least one")
    runs = [_read(directory) for run_dir in run_dirs for directory in runs_in(Path(run_dir).expanduser())]
    flats = [flat(run.config) for run in runs]
    differences = differing(flats)
    groups: dict[str, list[_Run]] = {}
    for run, settings in zip(runs, flats, strict=True):
        label = ", ".join([str(settings["env"]), str(settings["backend"]), *told(settings, differences)])
        group = groups.setdefault(label, [])
        for other in group:
            if other.seed == run.seed:
                raise RunError(
                    f"{other.directory} and {run.directory} have the same settings and seed {run.seed}, and would be counted as two "
                    f"seeds: name one of them"
                )
        group.append(run)
    if find_spec("plotly") is None:
        raise ImportError("a report needs plotly, which is not installed: pip install 'sacref[report]', or take sacref plot")
    environments = sorted({str(run.config["env"]) for run in runs})
    page = PAGE.format(
        title=html.escape(f"{', '.join(environments)}: {len(runs)} run{'s' if len(runs) > 1 else ''}"),
        level=CONFIDENCE,
        figure=_figure(groups, environments),
        runs=_runs_table(groups),
        differences=_differences_table(differences, groups) if differences else "<p>None but the seeds.</p>",
    )
    output = Path(output).expanduser()
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(page, encoding="utf-8")


def _read(directory: Path) -> _Run:
    config = read_config(directory)
    if missing := {"env", "backend", "seed", "cfg"} - config.keys():
        raise RunError(f"{directory / 'config.json'} has no {min(missing)}, expected a run directory as `sacref train` writes it")
    returns = {step: list(evaluation.returns) for step, evaluation in read_evaluations(directory / "evaluation.json")}
    lines = _read_metrics(directory / METRICS_FILE)
    if not returns and not lines:
        raise RunError(
            f"{directory} has neither evaluations nor metrics yet, expected evaluation.json or {METRICS_FILE} with an entry: train "
            f"longer, or with a shorter evaluation_interval or experiment.write_interval"
        )
    return _Run(directory, config, returns, lines)


def _read_metrics(path: Path) -> list[dict[str, object]]:
    """Read the lines; one that a running or killed process has half written is left out."""
    if not path.is_file():
        return []
    whole = path.read_bytes().split(b"\n")[:-1]
    try:
        lines = [json.loads(line) for line in whole]
        for line in lines:
            line["environment_steps"], line["wall_time"] = int(line["environment_steps"]), float(line["wall_time"])
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(
            f"{path} is damaged ({type(error).__name__}: {short.repr(str(error))[1:-1]}): restore it, or move it away"
        ) from error
    return lines


def _thinned(values: Sequence[T]) -> list[T]:
    """Return at most `POINTS` of the values, evenly spaced from the first to the last."""
    return [values[round(place)] for place in np.linspace(0, len(values) - 1, min(len(values), POINTS))]


def _seconds(lines: Sequence[Mapping[str, Any]]) -> float:
    """Return the wall-clock from the first line to the last, without the pauses before a run was resumed."""
    between = [after["wall_time"] - before["wall_time"] for before, after in itertools.pairwise(lines)]
    usual = float(np.median(between)) if between else 0.0
    return float(sum(seconds for seconds in between if seconds <= PAUSE * usual))


def _values(run: _Run, tag: str) -> tuple[list[int], list[float | None]]:
    """Return environment steps and values of a panel's curve; None is a gap, where the value was not finite."""
    pairs: list[tuple[int, float | None]] = []
    if tag == SPEED:
        for before, after in itertools.pairwise(_thinned(run.lines)):
            steps, seconds = (after[name] - before[name] for name in ("environment_steps", "wall_time"))
            if steps > 0 and seconds > 0:
                pairs.append((after["environment_steps"], steps / seconds))
    else:
        matching = re.compile(re.escape(tag).replace(re.escape("{critic}"), r"\d+"))
        for line in run.lines:
            values = [value for name, value in line.items() if matching.fullmatch(name)]
            if values:
                pairs.append((line["environment_steps"], None if None in values else float(np.mean(values))))
        pairs = _thinned(pairs)
    return [step for step, _ in pairs], [value for _, value in pairs]


def _figure(groups: Mapping[str, Sequence[_Run]], environments: Sequence[str]) -> str:
    """Draw all panels, one below the other, as one figure: they share the legend and the steps."""
    from plotly import io
    from plotly.subplots import make_subplots

    runs = [run for group in groups.values() for run in group]
    shown = {title: tag for title, tag in PANELS.items() if any(_values(run, tag)[0] for run in runs)}
    titles = [f"{env}: return of the evaluations" for env in environments] + list(shown)
    figure = make_subplots(
        rows=len(titles),
        cols=1,
        shared_xaxes="all",
        subplot_titles=[html.escape(title) for title in titles],
        vertical_spacing=min(0.08, 60 / (PANEL_PIXELS * len(titles))),
    )
    for number, (label, group) in enumerate(groups.items()):
        colour, safe = COLOURS[number % len(COLOURS)], html.escape(label)
        common = {"legendgroup": label, "name": safe, "mode": "lines", "showlegend": False}
        row = environments.index(str(group[0].config["env"])) + 1
        figure.add_scatter(x=[None], y=[None], row=row, col=1, line_color=colour, **{**common, "showlegend": True})
        if len(group) > 1 and (curve := seeds_curve([run.returns for run in group])) is not None:
            _draw_mean(figure, curve, colour, common, row)
        for run in group:
            steps = sorted(run.returns)
            curves: dict[int, tuple[list[int], list[Any]]] = {row: (steps, [float(np.mean(run.returns[step])) for step in steps])}
            curves |= {number: _values(run, tag) for number, tag in enumerate(shown.values(), len(environments) + 1)}
            for panel, (x, y) in curves.items():
                if x:
                    who = f"seed {run.seed}, {html.escape(str(run.directory))}<extra>{safe}</extra>"
                    figure.add_scatter(
                        **{**common, "mode": "lines+markers" if len(x) < FEW else "lines", "marker": {"size": 5}},
                        x=x,
                        y=y,
                        row=panel,
                        col=1,
                        line={"color": colour, "width": 1.2},
                        opacity=0.75,
                        hovertemplate=f"%{{y:,.5~g}} after %{{x:,}} steps<br>{who}",
                    )
    if "Temperature alpha" in titles:
        figure.update_yaxes(type="log", row=titles.index("Temperature alpha") + 1, col=1)
    figure.update_xaxes(title_text="Environment steps", row=len(titles), col=1)
    figure.update_xaxes(showticklabels=True, tickformat="~s")
    figure.update_annotations(font_size=14, x=0, xanchor="left")
    top = 60 + 20 * len(groups)  # a phone has one entry of the legend beside another nowhere
    figure.update_layout(
        height=PANEL_PIXELS * len(titles) + top,
        hovermode="closest",
        legend={"orientation": "h", "x": 0, "y": 1, "yref": "container", "yanchor": "top"},
        margin={"l": 55, "r": 15, "t": top, "b": 50},
    )
    script = FOLLOW_THE_PAGE
    for name, template in (("DARK", "plotly_dark"), ("LIGHT", "plotly_white")):
        colours = io.templates[template].to_plotly_json()
        colours["layout"] |= {"paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)"}
        script = script.replace(name, json.dumps(colours))
    text: str = figure.to_html(
        div_id="curves", full_html=False, include_plotlyjs=True, config={"responsive": True, "displayModeBar": False}, post_script=script
    )
    return text


def _draw_mean(figure: Any, curve: Curve, colour: str, common: Mapping[str, object], row: int) -> None:
    """Draw the mean of seeds and the band around it."""
    x, mean, low, high = (values.tolist() for values in (curve.steps, curve.mean, curve.low, curve.high))
    figure.add_scatter(
        x=x + x[::-1],
        y=high + low[::-1],
        row=row,
        col=1,
        fill="toself",
        fillcolor=colour,
        line_width=0,
        opacity=0.18,
        hoverinfo="skip",
        **common,
    )
    figure.add_scatter(
        x=x,
        y=mean,
        row=row,
        col=1,
        line={"color": colour, "width": 3},
        customdata=list(zip(low, high, strict=True)),
        hovertemplate="mean %{y:,.5~g}, interval %{customdata[0]:,.5~g} to %{customdata[1]:,.5~g} after %{x:,} steps<extra>"
        + f"{common['name']}</extra>",
        **common,
    )


def _runs_table(groups: Mapping[str, Sequence[_Run]]) -> str:
    rows = []
    for label, group in groups.items():
        for run in group:
            means = {step: float(np.mean(returns)) for step, returns in run.returns.items()}
            last, best = max(means, default=None), max(means, key=lambda step: means[step], default=None)
            first, end = (run.lines[0], run.lines[-1]) if run.lines else ({}, {})
            seconds = _seconds(run.lines)
            rows.append(
                [
                    str(run.directory),
                    label,
                    str(run.seed),
                    f"{max(last or 0, end.get('environment_steps', 0)):,}",
                    "" if last is None else f"{means[last]:,.1f} after {last:,}",
                    "" if best is None else f"{means[best]:,.1f} after {best:,}",
                    f"{(end['environment_steps'] - first['environment_steps']) / seconds:,.0f}" if seconds > 0 else "",
                ]
            )
    return _table(["run", "settings", "seed", "steps", "last evaluation", "best evaluation", "steps/s, with evaluations"], rows)


def _differences_table(differences: Sequence[str], groups: Mapping[str, Sequence[_Run]]) -> str:
    rows = []
    for name in differences:
        values = ({short.repr(flat(run.config).get(name)): None for run in group} for group in groups.values())
        rows.append([name, *(" or ".join(each) for each in values)])
    return _table(["setting", *groups], rows)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        return f"<tr>{''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in cells)}</tr>"

    return f'<div class="scrolls"><table>\n{line(header, "th")}\n' + "\n".join(line(row, "td") for row in rows) + "\n</table></div>"
