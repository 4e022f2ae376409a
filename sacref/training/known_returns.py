"""Returns that are known of a task, published ones and those of sacref's own benchmark, each with its settings."""

import json
import math
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from scipy import stats

from sacref.config import paper_config
from sacref.config.train_config import TrainConfig

TABLE = Path(__file__).with_name("known_returns.json")
"""Made by `python -m bench.report` from the published curves and records that the benchmarks have."""
OWN = "sacref"
"""Source of the returns that no one else published."""
CONFIDENCE = 0.95
FEWEST_RUNS = 3
"""Runs below which nothing is said of where another may end."""
MOST_DIFFERENCES = 4
"""Settings in which a source may differ that is named nevertheless."""
NOT_THE_RETURNS = {"experiment", "seed", "execution", "target_entropy_per_dimension", "gradient_steps"}
"""Fields of `SACConfig` that change no return but by chance, or through another field."""
PLAIN: dict[str, object] = {
    "hidden": [256, 256],
    "num_envs": 1,
    "vector_env": None,
    "ranks": 1,
    "wrappers": [],
    "env_kwargs": {},
    "memory_capacity": 1_000_000,
    "evaluation_max_steps": None,
}
"""Options of a run, beside `SACConfig` and the models', that all sources have alike."""


class Known(NamedTuple):
    """The mean returns of one source on one task."""

    source: str
    """Who trained, for a reader."""
    task: str
    """Gymnasium id; without a version, where the reward is the same in all."""
    runs: int
    """Seeds, those of both backends for sacref."""
    settings: Mapping[str, Any]
    """Fields of `SACConfig` in which they differ from the paper's settings."""
    remark: str
    """Difference from these settings that no field says; empty for none."""
    returns: Mapping[str, tuple[float, float]]
    """Environment steps -> mean and standard deviation (over n - 1) over the runs of the evaluation at that step."""

    def around(self, steps: int) -> list[int]:
        """List the steps with known returns: those of the number given, or the nearest on both sides of it; none beyond the ends."""
        at = sorted(map(int, self.returns))
        below, above = [step for step in at if step <= steps], [step for step in at if step >= steps]
        return sorted({below[-1], above[0]}) if below and above else []


@cache
def table() -> tuple[Known, ...]:
    """Read the table."""
    return tuple(Known(**row) for row in json.loads(TABLE.read_text(encoding="utf-8")))


def meaning(config: Mapping[str, object], steps: int, mean: float, runs: int = 1) -> list[str]:
    """Say what a return means beside those that are known of the task after as many steps.

    Args:
        config: the content of the run's `config.json`.
        steps: environment steps after which it was evaluated.
        mean: the return.
        runs: runs of which it is the mean.

    Returns:
        Lines to print: a line for each source with the run's settings; where nothing is published with them, the published source that
        differs least.
    """
    run = json.loads(json.dumps(config))  # tuples as lists, as the table has them
    env = str(run["env"])
    rows = [row for row in table() if row.task in (env, env.rpartition("-v")[0]) and row.around(steps)]
    apart = sorted(
        ((_differences(run, row, steps), row) for row in rows), key=lambda pair: (len(pair[0]), pair[1].source == OWN, -pair[1].runs)
    )
    said = [
        f"{_said(row, steps)} with these settings{f' ({row.remark})' if row.remark else ''}; {_place(row, steps, mean, runs)}"
        for differences, row in apart
        if not differences
    ]
    published = [(differences, row) for differences, row in apart if row.source != OWN]
    if published and not published[0][0]:
        return said
    nearest = f"sacref knows no published return of {env} with these settings after {steps:,} steps"
    if published and len(published[0][0]) <= MOST_DIFFERENCES:
        nearest += f"; {_said(published[0][1], steps)} with {', '.join(published[0][0])}"
    return [*said, nearest]


def _said(row: Known, steps: int) -> str:
    at = [f"{row.returns[str(step)][0]:,.0f}{_deviation(row, step)} after {step:,}" for step in row.around(steps)]
    return f"{row.source} ({row.task}, {row.runs} {'runs' if row.runs > 1 else 'run'}) has {' and '.join(at)} steps"


def _deviation(row: Known, step: int) -> str:
    return f" +- {row.returns[str(step)][1]:,.0f}" if row.runs > 1 else ""


def _place(row: Known, steps: int, mean: float, runs: int) -> str:
    """Say where the mean return of so many runs lies beside the prediction interval of as many more of the source, by Student's t."""
    around = [row.returns[str(step)] for step in row.around(steps)]
    if row.runs < FEWEST_RUNS:
        return f"{'one run says' if row.runs == 1 else f'{row.runs} runs say'} little about another"
    if any(std == 0.0 for _, std in around):
        return "its runs returned the same, and say little about how far another may be from them"
    reach = float(stats.t.ppf(0.5 + CONFIDENCE / 2, row.runs - 1)) * math.sqrt(1 / runs + 1 / row.runs)
    low, high = min(value - reach * std for value, std in around), max(value + reach * std for value, std in around)
    others = "another run" if runs == 1 else f"the mean of {runs} others"
    expected = f"the {CONFIDENCE:.0%} prediction interval of {others}, {low:,.0f} to {high:,.0f}"
    if low <= mean <= high:
        return f"{mean:,.0f} is within {expected}"
    if mean > high:
        return f"{mean:,.0f} is above {expected}"
    return f"{mean:,.0f} is below {expected}, for which docs/troubleshooting.md says where to look"


def _differences(run: Mapping[str, Any], row: Known, steps: int) -> list[str]:
    """List the settings of the source that the run has otherwise, in its first `steps` environment steps."""
    dimensions = math.prod(run["action_space"]["shape"])
    plain = {**PLAIN, **TrainConfig().checked().model_options}
    wanted = _settings({**paper_config().to_dict(), **row.settings}, dimensions, 1) | plain
    own = _settings(run["cfg"], dimensions, run["num_envs"] * run.get("ranks", 1)) | {
        name: {**run, **run["models"]}.get(name, value) for name, value in plain.items()
    }
    if own["memory_capacity"] >= steps:  # none was forgotten, and none of theirs
        own["memory_capacity"] = plain["memory_capacity"]
    return [f"{name} {_short(value)} (here {_short(own[name])})" for name, value in wanted.items() if own.get(name, value) != value]


def _settings(fields: Mapping[str, Any], dimensions: int, num_envs: int) -> dict[str, Any]:
    """Return the fields that change returns, with the target entropy of so many action dimensions and the updates for each transition."""
    per_dimension, target_entropy = fields["target_entropy_per_dimension"] * dimensions, fields["target_entropy"]
    target_entropy = None if not fields["learn_entropy"] else per_dimension if target_entropy is None else target_entropy
    ratio = fields["gradient_steps"] / num_envs if fields["update_to_data"] is None else fields["update_to_data"]
    returned = {name: value for name, value in fields.items() if name not in NOT_THE_RETURNS}
    return returned | {"target_entropy": target_entropy, "update_to_data": float(ratio)}


def _short(value: object) -> str:
    return f"{value:,}" if type(value) is int else str(value)
