"""All tasks together: normalised scores of the runs with the paper's settings, by the methods of Agarwal et al. 2021."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bench.core import bootstrap
from bench.core.page import Section, digest, image, number, table
from bench.core.pictures import Picture
from bench.core.statistics import FEWEST_RESAMPLED
from bench.suites.learning import runs
from bench.suites.learning.published import Published, published
from bench.suites.learning.runs import Group, Run
from bench.suites.tasks import plots as aggregate_plots

NORMALISER = "jaxrl"
"""The published source whose mean return after as many steps is a score of 1 (a random policy's is about 0)."""

INTRODUCTION = (
    "A score is a return over the mean that jaxrl published of the task after as many steps as the runs have: 1 is as much, on its version"
    " of the task. IQM: interquartile mean over all runs of all tasks, its interval by stratified bootstrap (runs are resampled within"
    f" their task), where a backend has {FEWEST_RESAMPLED} runs or more of each task. Settings are the paper's; a task without a published"
    " mean is left out, and a backend that lacks a task is too.\n"
)


class Task(NamedTuple):
    """A task, and the published mean that is a score of 1."""

    group: Group
    reference: Published


class Chosen(NamedTuple):
    """Content of the section."""

    steps: int
    tasks: list[Task]
    backends: dict[str, list[list[Run]]]
    """Backend -> runs of each task, the same number of all."""
    left_out: list[str]
    """Backends that lack a task."""


def section(results: Path) -> Section:
    """Report the most tasks of one length; the longer of two lengths with as many."""
    chosen = choose(runs.largest(runs.read(results)))
    if chosen is None:
        return Section([], {})
    path = results / "learning" / "tasks.png"
    of_tasks = [of_task for members in chosen.backends.values() for of_task in members]
    where = runs.shared_place(of_tasks)
    curves = {backend: curve(chosen.tasks, members, where) for backend, members in chosen.backends.items()}
    finals = {backend: final_scores(chosen.tasks, members) for backend, members in chosen.backends.items()}
    # The profile of a single task would repeat the table of its runs.
    profiles = {backend: profile(scores) for backend, scores in finals.items()} if len(chosen.tasks) > 1 else {}
    named = ", ".join(f"{one.group.env} (score of 1: {number(one.reference.mean)}, {version(one.reference)})" for one in chosen.tasks)
    title = f"{', '.join(one.group.env for one in chosen.tasks)}; {chosen.steps:,} steps"
    rows = []
    for backend, scores in finals.items():
        rows.append([backend, str(len(scores[0])), str(bootstrap.iqm(scores))])
    paragraphs = [
        "## Tasks together\n",
        INTRODUCTION,
        f"Tasks: {named}; {chosen.steps:,} steps each.{_not_comparable(chosen.tasks)}\n",
        image(f"IQM of the scores over steps and over wall-clock, {title}", path, results),
        table(["backend", "seeds of each task", "final score: IQM, 95%"], rows),
    ]
    if few := [f"{backend} ({len(scores[0])})" for backend, scores in finals.items() if len(scores[0]) < FEWEST_RESAMPLED]:
        paragraphs.append(f"Too few runs of a task for an interval: {', '.join(few)}.\n")
    if {"torch", "jax"} <= finals.keys():
        better = bootstrap.probability_of_improvement(finals["torch"], finals["jax"])
        paragraphs.append(f"A run of torch ends above one of jax with probability {better} (ties count half; average over the tasks).\n")
    if chosen.left_out:
        paragraphs.append(f"Left out, as it was not run on all of these tasks: {', '.join(chosen.left_out)}.\n")
    if not profiles:
        paragraphs.append("There is no performance profile of a single task.\n")
    drawn_where = where or " and ".join(runs.by_place(run for of_task in of_tasks for run in of_task))
    draw = partial(aggregate_plots.over_tasks, title=title, curves=curves, profiles=profiles, where=drawn_where)
    return Section(paragraphs, {path: Picture(digest(title, curves, profiles, drawn_where), draw)})


def _not_comparable(tasks: Sequence[Task]) -> str:
    """Name the tasks whose reward differs from that of the published version."""
    others = [one.group.env for one in tasks if not one.reference.comparable(one.group.env)]
    if not others:
        return ""
    return (
        f" The reward of {' and '.join(others)} differs from that version's: there a score is a unit, and no comparison with {NORMALISER}."
    )


def choose(groups: Sequence[Group]) -> Chosen | None:
    """Choose the groups with the paper's settings and one length that cover the most tasks; None if no task has a published mean."""
    by_steps: dict[int, dict[str, Task]] = {}
    for group in groups:
        references = [point for point in published(group.env, group.steps) if point.name == NORMALISER and point.steps == group.steps]
        if references and not group.differences:
            by_steps.setdefault(group.steps, {}).setdefault(group.env, Task(group, references[0]))
    if not by_steps:
        return None
    steps, tasks = max(by_steps.items(), key=lambda each: (len(each[1]), each[0]))
    known = sorted(tasks.values(), key=lambda one: one.group.env)
    all_backends = dict.fromkeys(backend for one in known for backend in one.group.runs)
    shared = [backend for backend in all_backends if all(backend in one.group.runs for one in known)]
    backends = {backend: _as_many([one.group.runs[backend] for one in known]) for backend in shared}
    return Chosen(steps, known, backends, [backend for backend in all_backends if backend not in shared]) if shared else None


def final_scores(tasks: Sequence[Task], members: Sequence[Sequence[Run]]) -> list[list[float]]:
    """Return the normalised final return of each run, by task."""
    return [[runs.final(run) / task.reference.mean for run in of_task] for task, of_task in zip(tasks, members, strict=True)]


def curve(tasks: Sequence[Task], members: Sequence[Sequence[Run]], where: str | None = None) -> list[aggregate_plots.Score]:
    """Return the IQM of the scores after each step that every run was evaluated at, normalised by the reference at the end.

    Args:
        tasks: the tasks.
        members: runs of each task.
        where: kind of machine whose runs count for the wall-clock, the mean over tasks of the median over runs; None for all.
    """
    every = [run for of_task in members for run in of_task]
    timed = members if where is None else [runs.by_place(of_task)[where] for of_task in members]
    spread = not all(runs.has_times(run) for of_task in timed for run in of_task)
    points = []
    for step in runs.steps(every):
        scores = [[runs.after(run, step) / task.reference.mean for run in of_task] for task, of_task in zip(tasks, members, strict=True)]
        seconds = float(np.mean([runs.median_seconds(of_task, step) for of_task in timed]))
        points.append(aggregate_plots.Score(step, seconds, spread, bootstrap.iqm(scores)))
    return points


def profile(scores: Sequence[Sequence[float]]) -> bootstrap.Profile:
    """Return the performance profile at thresholds from 0 to beyond the highest score."""
    return bootstrap.performance_profile(scores, np.linspace(0.0, max(1.5, *map(max, scores)), 61).tolist())


def version(reference: Published) -> str:
    """Name the source and its version of the task."""
    return f"{reference.name} on {reference.env}-{reference.env_version}"


def _as_many(members: Sequence[Sequence[Run]]) -> list[list[Run]]:
    """Return the first seeds of each task, as many as the task with the fewest has."""
    count = min(map(len, members))
    return [list(of_task[:count]) for of_task in members]
