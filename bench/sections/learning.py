"""Learning: final evaluations per backend, learning curves, published points beside them, and agents that are compared."""

import json
import statistics as standard
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from bench import plots, record, statistics
from bench.presets import COMPARISONS, PRESETS, Comparison
from bench.published import Published, published
from bench.record import LearningSamples, Record, RecordError
from bench.sections import Picture, Section, digest, interval, number, place, source, table

INTRODUCTION = (
    "Return of a seed: mean of the **final evaluation of 10 deterministic episodes** (the mean action; undiscounted) on environments of its"
    " own, after the last training step. Intervals are 95%: of the mean by Student's t over seeds, of the interquartile mean (IQM) by"
    " bootstrap over seeds. Settings, where a group names no others: batch 256, learning rate 3e-4, two hidden layers of 256, one gradient"
    " step per environment step, 5,000 random steps first. A recurrent agent's batch_size counts sequences. Steps per second count"
    " everything, evaluations and compiling included: for a benchmark see Throughput.\n"
)


@dataclass(frozen=True, kw_only=True)
class Group:
    """The runs of one preset by one version on one kind of machine."""

    preset: str
    env: str
    steps: int
    settings: dict[str, Any]
    """What differs from the paper's settings."""
    arguments: dict[str, Any]
    """What else differs from the defaults of `sacref.train`: wrappers, networks."""
    version: str
    place: str
    runs: dict[str, list[Record]]
    """Backend -> its runs, by seed; torch first."""

    @property
    def all_runs(self) -> list[Record]:
        """Of every backend."""
        return [run for runs in self.runs.values() for run in runs]

    @property
    def differences(self) -> list[str]:
        """What the introduction's settings do not say, each by its name."""
        return [f"{name} {_said(value)}" for name, value in {**self.settings, **self.arguments}.items()]

    @property
    def title(self) -> str:
        """The preset's, if the records ran what it says; else the task and the preset's name."""
        preset = PRESETS.get(self.preset)
        ran = (self.env, self.steps, self.settings, self.arguments)
        # As JSON gives it back.
        if preset and ran == (preset.env, preset.steps, *json.loads(json.dumps([dict(preset.settings), dict(preset.arguments)]))):
            return preset.title
        return f"{self.env} ({self.preset})" if self.differences else self.env

    @property
    def heading(self) -> str:
        """Title and length."""
        return f"{self.title}, {self.steps:,} steps"

    @property
    def date(self) -> str:
        """Of the newest run."""
        return max(run.date for run in self.all_runs)


def section(results: Path) -> Section:
    """Per preset: the curve of its newest group, a table of every group, the published points. Then the comparisons."""
    groups = group(record.read(path) for path in sorted(results.glob("learning/*/*.json")))
    paragraphs = ["## Learning\n", INTRODUCTION] if groups else []
    pictures = {}
    for preset in dict.fromkeys(found.preset for found in groups):
        same = [found for found in groups if found.preset == preset]
        newest = same[0]
        path = results / "learning" / f"{preset}.png"
        # Of the task as it is, not as wrappers have made it.
        references = [] if newest.arguments else published(newest.env, newest.steps)
        curves = {backend: curve(runs) for backend, runs in newest.runs.items()}
        pictures[path] = Picture(
            digest(newest.title, curves, references),
            partial(plots.learning_curve, title=newest.title, curves=curves, references=references),
        )
        paragraphs.append(f"### {newest.heading}\n")
        if newest.differences:
            paragraphs.append(f"Settings that differ: {'; '.join(newest.differences)}.\n")
        paragraphs.append(f"![{newest.title}: return over {newest.steps:,} environment steps, PyTorch and JAX](learning/{path.name})\n")
        for found in same:
            paragraphs += _own_table(found)
        paragraphs += _beside_strict(newest, groups)
        if references and not newest.settings:
            paragraphs += _published_table(references)
    for comparison in COMPARISONS:
        compared = _compared(comparison, groups, results)
        paragraphs += compared.paragraphs
        pictures |= compared.pictures
    return Section(paragraphs, pictures)


def group(records: Iterable[Record]) -> list[Group]:
    """Group the records, newest group first. Of two records of one run the newer counts.

    Raises:
        RecordError: if one preset's name stands for two configurations.
    """
    runs: dict[tuple[str, str, str], dict[tuple[str, int], Record]] = defaultdict(dict)
    tasks: dict[str, tuple[str, int, dict[str, Any], dict[str, Any]]] = {}
    for found in sorted(records, key=lambda found: found.date):
        chosen = found.configuration
        preset, task = chosen["preset"], (chosen["env"], chosen["steps"], chosen.get("settings", {}), chosen.get("arguments", {}))
        if tasks.setdefault(preset, task) != task:
            raise RecordError(f"preset {preset} stands for {tasks[preset]} and, in {found.run}, for {task}: rename one")
        runs[preset, found.sacref_version, place(found)][found.configuration["backend"], found.seed] = found
    groups = []
    for (preset, version, where), members in runs.items():
        by_backend: dict[str, list[Record]] = {}
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
                place=where,
                runs=by_backend,
            )
        )
    return sorted(groups, key=lambda found: (found.steps, not found.differences, found.date), reverse=True)


def curve(runs: Sequence[Record]) -> list[plots.Point]:
    """Mean over seeds at each evaluation that every seed has, with the interval of that mean."""
    returns: dict[int, list[float]] = defaultdict(list)
    for run in runs:
        for evaluation in _samples(run).evaluations:
            returns[evaluation.step].append(statistics.mean(evaluation.returns))
    return [
        plots.Point(step=step, mean=statistics.mean(values), interval=statistics.t_interval(values), seeds=len(values))
        for step, values in sorted(returns.items())
        if len(values) == len(runs)
    ]


def final(run: Record) -> float:
    """Mean return of a run's final evaluation."""
    return statistics.mean(_samples(run).evaluations[-1].returns)


def after(run: Record, step: int) -> float:
    """Mean return of a run's evaluation after `step` environment steps."""
    (returns,) = (evaluation.returns for evaluation in _samples(run).evaluations if evaluation.step == step)
    return statistics.mean(returns)


def last_common_step(one: Group, other: Group) -> int | None:
    """The last step after which every run of both was evaluated, None if there is none."""
    evaluated = ({evaluation.step for evaluation in _samples(run).evaluations} for run in (*one.all_runs, *other.all_runs))
    return max(set.intersection(*evaluated), default=None)


def speed(run: Record) -> float:
    """Environment steps per second of the whole run."""
    return _samples(run).evaluations[-1].step / sum(session.wall_seconds for session in _samples(run).sessions)


def _own_table(found: Group) -> list[str]:
    rows = []
    intervals = []
    for backend, runs in found.runs.items():
        finals = [final(run) for run in runs]
        intervals.append(statistics.t_interval(finals))
        rows.append(
            [
                backend,
                ", ".join(str(run.seed) for run in runs),
                number(statistics.mean(finals)),
                number(statistics.std(finals)),
                interval(intervals[-1]),
                f"{number(statistics.iqm(finals))} {interval(statistics.bootstrap_interval(finals))}",
                ", ".join(number(value) for value in finals),
                number(standard.median(speed(run) for run in runs)),
            ]
        )
    paragraphs = [table(["backend", "seeds", "mean", "std", "95% of the mean", "IQM, 95%", "per seed", "steps/s"], rows)]
    if len(known := [ends for ends in intervals if ends is not None]) == 2:
        paragraphs.append(f"The backends' intervals of the mean {'overlap' if statistics.overlap(*known) else 'do **not** overlap'}.\n")
    cores = " or ".join(map(str, sorted({run.hardware.threads for run in found.all_runs})))
    sources = " and ".join(sorted({source(run.sacref_version, run.commit, run.dirty) for run in found.all_runs}))
    paragraphs.append(f"{sources}, on {found.place}; each run on {cores} core(s); {found.date[:10]}.\n")
    return paragraphs


def _beside_strict(found: Group, groups: Sequence[Group]) -> list[str]:
    """A chunked group's means beside those of the strict one."""
    if set(found.settings) != {"chunk"} or found.arguments:
        return []
    sentences = []
    for strict in groups:
        if (strict.env, strict.steps, strict.differences, strict.place) == (found.env, found.steps, [], found.place):
            for backend in sorted(set(found.runs) & set(strict.runs), reverse=True):
                finals = [[final(run) for run in one.runs[backend]] for one in (found, strict)]
                both = [statistics.t_interval(values) for values in finals]
                chunked, beside = (f"{number(statistics.mean(values))} {interval(ends)}" for values, ends in zip(finals, both, strict=True))
                ends = [one for one in both if one is not None]
                if len(ends) == 2:
                    verdict = "overlap" if statistics.overlap(*ends) else "do **not** overlap"
                    sentences.append(f"{backend}, chunked {chunked}, strict {beside}: the intervals of the mean {verdict}.")
    if not sentences:
        return []
    return [f"A policy up to {found.settings['chunk']} steps old beside the strict one. " + " ".join(sentences) + "\n"]


def _compared(comparison: Comparison, groups: Sequence[Group], results: Path) -> Section:
    """Two presets' returns and what lies between them, after the last step that both have: of each pair by one version on one machine."""
    pairs = [
        (one, other, step)
        for one in groups
        for other in groups
        if (one.preset, other.preset) == (comparison.preset, comparison.beside)
        and (one.env, one.version, one.place) == (other.env, other.version, other.place)
        and (step := last_common_step(one, other)) is not None
    ]
    if not pairs:
        return Section([], {})
    (first, second, last), path = pairs[0], results / "learning" / f"{comparison.name}.png"
    curves = [
        plots.AgentCurve(backend, label, found is first, [point for point in curve(runs) if point.step <= last])
        for found, label in ((first, comparison.label), (second, comparison.beside_label))
        for backend, runs in found.runs.items()
    ]
    title = f"{comparison.question} {first.env}, {last:,} steps"
    longer = [
        f" The runs of {label} go on to {found.steps:,} steps: they are compared after {last:,}."
        for found, label in ((first, comparison.label), (second, comparison.beside_label))
        if found.steps > last
    ]
    paragraphs = [
        f"### {title}\n",
        f"{comparison.label}: {first.title}; {comparison.beside_label}: {second.title}.{''.join(longer)} A difference is that of the means"
        " over seeds; its interval is Welch's.\n",
        f"![Return of both agents over {last:,} environment steps, PyTorch and JAX](learning/{path.name})\n",
    ]
    for pair in pairs:
        paragraphs += _difference_table(comparison, *pair)
    return Section(paragraphs, {path: Picture(digest(title, curves), partial(plots.compared_curves, title=title, curves=curves))})


def _difference_table(comparison: Comparison, one: Group, other: Group, step: int) -> list[str]:
    rows, of_means, of_difference = [], [], []
    for backend in (backend for backend in one.runs if backend in other.runs):
        returns = [[after(run, step) for run in found.runs[backend]] for found in (one, other)]
        ends, apart = [statistics.t_interval(values) for values in returns], statistics.difference_interval(*returns)
        means = [f"{number(statistics.mean(values))} {interval(each)}".strip() for values, each in zip(returns, ends, strict=True)]
        seeds = " and ".join(str(count) for count in dict.fromkeys(map(len, returns)))
        rows.append([backend, *means, number(statistics.mean(returns[0]) - statistics.mean(returns[1])), interval(apart), seeds])
        if len(known := [each for each in ends if each is not None]) == 2 and apart is not None:
            of_means.append(f"{backend}: they {'overlap' if statistics.overlap(*known) else 'do **not** overlap'}")
            holds = apart.low <= 0.0 <= apart.high
            of_difference.append(f"{backend}: the interval {'holds 0' if holds else 'is clear of 0'}")
    if not rows:
        return []
    labels = [f"{label}: mean, 95%" for label in (comparison.label, comparison.beside_label)]
    said = [f"Of the means' intervals, {'; '.join(of_means)}. Of the difference, {'; '.join(of_difference)}.\n"] if of_means else []
    return [
        table(["backend", *labels, "difference", "95% of the difference", "seeds"], rows),
        *said,
        f"sacref {one.version}, on {one.place}.\n",
    ]


def _said(value: Any) -> str:
    """A setting's value; of what lies in a module the name alone."""
    if isinstance(value, list):
        return ", ".join(map(_said, value))
    return f"{value:,}" if isinstance(value, int | float) and not isinstance(value, bool) else str(value).rpartition(":")[2]


def _published_table(points: Sequence[Published]) -> list[str]:
    rows = [
        [
            point.source,
            f"{point.env}-{point.env_version}",
            f"{point.steps:,}",
            f"{number(point.mean)} ± {number(point.std)}",
            str(point.seeds),
            point.metric,
            f"`{point.citation}`",
        ]
        for point in points
    ]
    header = ["published", "task", "steps", "mean ± std over seeds", "seeds", "metric", "read in"]
    return ["Published runs of SAC, each with its own settings and metric:\n", table(header, rows)]


def _samples(run: Record) -> LearningSamples:
    assert isinstance(run.samples, LearningSamples)
    return run.samples
