"""The learning records by preset, version and machine, and the metrics of a run's evaluations."""

import itertools
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, TypeAlias

from bench.core import record, statistics
from bench.core.page import place, source
from bench.core.record import Record, RecordError
from bench.suites.learning import plots
from bench.suites.learning.presets import PRESETS, REPEATED
from bench.suites.learning.samples import LearningSamples

Run: TypeAlias = Record[LearningSamples]
"""The record of a training run."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """The runs of one preset by one version on processors, of whatever kind, or on one kind of accelerator.

    Returns do not depend on the processor, but for rounding; speeds do, and are told apart.
    """

    preset: str
    env: str
    steps: int
    settings: dict[str, Any]
    """Differences from the paper's settings."""
    arguments: dict[str, Any]
    """Other differences from the defaults of `sacref.train`: wrappers, networks."""
    version: str
    device: str
    """`cpu`, or the accelerator."""
    runs: dict[str, list[Run]]
    """Backend -> its runs, by seed; torch first."""

    @property
    def all_runs(self) -> list[Run]:
        """Runs of every backend."""
        return [run for runs in self.runs.values() for run in runs]

    @property
    def place(self) -> str:
        """Kinds of machines that it ran on."""
        return " and ".join(by_place(self.all_runs))

    @property
    def differences(self) -> list[str]:
        """Differences from the settings of the introduction, each by its name."""
        return [f"{name} {_said(value)}" for name, value in {**self.settings, **self.arguments}.items()]

    @property
    def agent(self) -> str:
        """The task, with the wrappers and networks that make it another one, or another agent."""
        return (
            f"{self.env} ({', '.join(f'{name} {_said(value)}' for name, value in self.arguments.items())})" if self.arguments else self.env
        )

    @property
    def repeats(self) -> bool:
        """True if an action acts for two steps of the task."""
        return self.arguments == {"wrappers": [*REPEATED]}

    @property
    def is_plain(self) -> bool:
        """True without wrappers and networks that make it another task, or another agent, than those of published runs."""
        return not self.arguments or self.repeats

    @property
    def title(self) -> str:
        """Title of the preset if the records ran its configuration; else the task and the preset's name."""
        preset = PRESETS.get(self.preset)
        ran = (self.env, self.steps, self.settings, self.arguments)
        # Through JSON, which makes lists of tuples.
        if preset and ran == (preset.env, preset.steps, *json.loads(json.dumps([dict(preset.settings), dict(preset.arguments)]))):
            return preset.title
        return f"{self.env} ({self.preset})" if self.differences else self.env

    @property
    def heading(self) -> str:
        """Title and length."""
        return f"{self.title}, {self.steps:,} steps"

    @property
    def date(self) -> str:
        """Date of the newest run."""
        return max(run.date for run in self.all_runs)


def by_place(members: Iterable[Run]) -> dict[str, list[Run]]:
    """Map the kinds of machines, in the order of their names, to the runs there."""
    return {where: list(there) for where, there in itertools.groupby(sorted(members, key=_place), key=_place)}


def shared_place(members: Sequence[Sequence[Run]]) -> str | None:
    """Return the kind of machine that has runs of each of these, of several the one with the most; None if there is none."""
    places = [by_place(each) for each in members]
    shared = [where for where in places[0] if all(where in each for each in places)]
    return max(shared, key=lambda where: sum(len(each[where]) for each in places), default=None)


def sources(run: Run) -> list[str]:
    """Name the source of every session that tells it; where none does, that of the record."""
    told = [source(run.sacref_version, each.commit, each.dirty) for each in run.samples.sessions if each.dirty is not None]
    return told or [source(run.sacref_version, run.commit, run.dirty)]


def tells_sources(run: Run) -> bool:
    """Return True if the source of each session is known."""
    return len(run.samples.sessions) == 1 or all(session.dirty is not None for session in run.samples.sessions)


def _place(run: Run) -> str:
    return place(run.hardware)


def read(results: Path) -> list[Group]:
    """Read the groups of the records under results/learning, newest first.

    Raises:
        RecordError: if a JSON file is no record, or one preset's name stands for two configurations.
    """
    return group(record.read(path, LearningSamples) for path in sorted(results.glob("learning/*/*.json")))


def largest(groups: Sequence[Group]) -> list[Group]:
    """Return, for each preset, the group with the most runs, of equals the newest: one new run displaces no ten."""
    found: dict[str, Group] = {}
    for one in groups:  # newest first
        if one.preset not in found or len(one.all_runs) > len(found[one.preset].all_runs):
            found[one.preset] = one
    return list(found.values())


def group(records: Iterable[Run]) -> list[Group]:
    """Group the records, newest group first. The newest record of each run counts.

    Raises:
        RecordError: if one preset's name stands for two configurations.
    """
    runs: dict[tuple[str, str, str], dict[tuple[str, int], Run]] = defaultdict(dict)
    tasks: dict[str, tuple[str, int, dict[str, Any], dict[str, Any]]] = {}
    for found in sorted(records, key=lambda found: found.date):
        chosen = found.configuration
        preset, task = chosen["preset"], (chosen["env"], chosen["steps"], chosen.get("settings", {}), chosen.get("arguments", {}))
        if tasks.setdefault(preset, task) != task:
            raise RecordError(f"preset {preset} stands for {tasks[preset]} and, in {found.run}, for {task}: rename one")
        runs[preset, found.sacref_version, found.hardware.accelerator or "cpu"][found.configuration["backend"], found.seed] = found
    groups = []
    for (preset, version, device), members in runs.items():
        by_backend: dict[str, list[Run]] = {}
        for backend, seed in sorted(members, key=lambda member: (member[0] != "torch", member)):
            by_backend.setdefault(backend, []).append(members[backend, seed])
        env, steps, settings, arguments = tasks[preset]
        groups.append(
            Group(
                preset=preset,
                env=env,
                steps=steps,
                settings=settings,
                arguments=arguments,
                version=version,
                device=device,
                runs=by_backend,
            )
        )
    return sorted(groups, key=lambda found: (found.steps, not found.differences, found.date), reverse=True)


def curve(runs: Sequence[Run], where: str | None = None) -> list[plots.Point]:
    """Return the mean over seeds at each evaluation that every seed has, with its interval.

    Args:
        runs: the seeds.
        where: kind of machine whose runs the wall-clock is the median of; None for all.
    """
    timed = runs if where is None else by_place(runs)[where]
    points = []
    for step in steps(runs):
        returns = [after(run, step) for run in runs]
        points.append(
            plots.Point(
                step=step,
                seconds=median_seconds(timed, step),
                spread=not all(map(has_times, timed)),
                mean=statistics.mean(returns),
                interval=statistics.t_interval(returns),
                seeds=len(returns),
            )
        )
    return points


def final(run: Run) -> float:
    """Return the mean return of a run's final evaluation."""
    return statistics.mean(run.samples.evaluations[-1].returns)


def last_tenth(run: Run) -> float:
    """Return the mean return of a run's evaluations in the last tenth of its steps."""
    evaluations = run.samples.evaluations
    return statistics.mean([statistics.mean(each.returns) for each in evaluations if each.step > 0.9 * evaluations[-1].step])


def best(runs: Sequence[Run]) -> plots.Point:
    """Return the highest point of the mean curve, a maximum over its steps, which flatters."""
    return max(curve(runs), key=lambda point: point.mean)


def after(run: Run, step: int) -> float:
    """Return the mean return of a run's evaluation after `step` environment steps."""
    (returns,) = (evaluation.returns for evaluation in run.samples.evaluations if evaluation.step == step)
    return statistics.mean(returns)


def steps(runs: Iterable[Run]) -> list[int]:
    """Return the steps after which all of the runs were evaluated."""
    return sorted(set.intersection(*({evaluation.step for evaluation in run.samples.evaluations} for run in runs)))


def seconds(run: Run, step: int) -> float:
    """Return the wall-clock until an evaluation; where the record holds none, a share of the whole run's."""
    if not has_times(run):
        return step / speed(run)
    (known,) = (evaluation.seconds for evaluation in run.samples.evaluations if evaluation.step == step)
    return known or 0.0


def median_seconds(runs: Sequence[Run], step: int) -> float:
    """Return the median over runs of the wall-clock until an evaluation: one that stalled moves it little."""
    return median(seconds(run, step) for run in runs)


def has_times(run: Run) -> bool:
    """Return True if the record holds the time of each evaluation."""
    return all(evaluation.seconds is not None for evaluation in run.samples.evaluations)


def last_common_step(one: Group, other: Group) -> int | None:
    """Return the last step after which all runs of both were evaluated; None if there is none."""
    return max(steps([*one.all_runs, *other.all_runs]), default=None)


def speed(run: Run) -> float:
    """Return the environment steps per second of the whole run."""
    return run.samples.evaluations[-1].step / sum(session.wall_seconds for session in run.samples.sessions)


def members(run: Run) -> int:
    """Return the number of runs that were trained together with this one, itself included, at most."""
    return max(session.members for session in run.samples.sessions)


def _said(value: Any) -> str:
    """Format the value of a setting; an object of a module by its name alone."""
    if isinstance(value, list):
        return ", ".join(map(_said, value))
    return f"{value:,}" if isinstance(value, int | float) and not isinstance(value, bool) else str(value).rpartition(":")[2]
