"""The table of known returns in the package, `sacref/training/known_returns.json`, made from the published curves and our records."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from bench.core import statistics
from bench.suites.learning import runs
from bench.suites.learning.presets import TASKS
from bench.suites.learning.published import DRAWN, MILESTONES, UNKNOWN, Published, Settings, published
from bench.suites.learning.runs import Group
from sacref.config import paper_config

FINE_UNTIL = 200_000
"""Environment steps up to which every evaluation is in the table; beyond, the milestones are."""
SHARES = {"-dim(A)": -1.0, "-dim(A)/2": -0.5}
"""Target entropy of a published source -> nats for each action dimension."""


def table(groups: Sequence[Group]) -> str:
    """Return the content of the table, a line for each source and task."""
    rows = [*_published(), *_own(runs.largest(groups))]
    return "[\n" + ",\n".join(sorted(map(json.dumps, rows))) + "\n]\n"


def _published() -> Iterator[dict[str, Any]]:
    for env in (f"{name}-v5" for name in TASKS):
        sources: dict[tuple[str, Settings], list[Published]] = {}
        for point in published(env, MILESTONES[-1]):
            if point.comparable(env) and UNKNOWN not in point.settings:
                sources.setdefault((point.name, point.settings), []).append(point)
        for (source, settings), points in sources.items():
            last = max(points, key=lambda point: point.steps)
            returns = {point.steps: [point.mean, point.sample_std] for point in points}
            if last.curves:
                at = set.intersection(*(set(curve) for curve in last.curves))
                returns = {step: _mean([curve[step] for curve in last.curves]) for step in at}
            remark = f"their temperature is {DRAWN}" if settings.temperature == DRAWN else ""
            yield _row(source, env, last.seeds, _fields(settings), returns, remark)


def _own(groups: Sequence[Group]) -> Iterator[dict[str, Any]]:
    """Pool both backends. Of presets that differ in their length alone, the one with the most runs counts."""
    alike: dict[tuple[str, str], list[Group]] = {}
    for group in groups:
        if not group.arguments:  # wrappers and networks make it another task or agent
            alike.setdefault((group.env, json.dumps(group.settings, sort_keys=True)), []).append(group)
    for (env, settings), same in alike.items():
        best = max(same, key=lambda group: (len(group.all_runs), group.steps))
        returns = {step: _mean([runs.after(run, step) for run in best.all_runs]) for step in runs.steps(best.all_runs)}
        yield _row("sacref", env, len(best.all_runs), json.loads(settings), returns)


def _row(source: str, env: str, count: int, settings: dict[str, Any], returns: dict[int, list[float]], remark: str = "") -> dict[str, Any]:
    return {
        "task": "HalfCheetah" if env.startswith("HalfCheetah-") else env,  # whose reward is the same in all versions
        "source": source,
        "runs": count,
        "settings": settings,
        "remark": remark,
        "returns": {
            str(step): [round(value, 1) for value in returns[step]] for step in sorted(returns) if step <= FINE_UNTIL or step in MILESTONES
        },
    }


def _mean(values: Sequence[float]) -> list[float]:
    return [statistics.mean(values), statistics.std(values) or 0.0]


def _fields(settings: Settings) -> dict[str, Any]:
    """Write the settings of a published source as differences from the paper's: fields of `SACConfig`."""
    kind, _, start = settings.temperature.rpartition(" ")
    learned = kind != "fixed at"
    rates = [settings.policy_learning_rate, settings.critic_learning_rate, *([settings.entropy_learning_rate] if learned else [])]
    assert len(set(rates)) == 1 and settings.hidden == "256x256", settings
    steps = int(settings.random_steps)
    fields = {
        "learning_rate": float(rates[0]),
        "learn_entropy": learned,
        "initial_entropy_value": 1.0 if settings.temperature == DRAWN else float(start),
        "target_entropy_per_dimension": SHARES[settings.target_entropy] if learned else -1.0,
        "batch_size": int(settings.batch_size),
        "random_timesteps": steps,
        "learning_starts": steps,
    }
    paper = paper_config().to_dict()
    return {name: value for name, value in fields.items() if value != paper[name]}
