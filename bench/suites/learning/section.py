"""Learning: final evaluations per backend, learning curves beside published points, and comparisons of agents."""

import statistics as standard
import textwrap
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

from bench.core import bootstrap, statistics
from bench.core.page import Finding, Section, digest, image, interval, number, signed, table
from bench.core.pictures import Picture
from bench.core.plots import LIBRARIES
from bench.suites.learning import curves as tables
from bench.suites.learning import known, plots, runs
from bench.suites.learning import verdicts as agreement
from bench.suites.learning.presets import COMPARISONS, Comparison
from bench.suites.learning.published import published
from bench.suites.learning.runs import Group

INTRODUCTION = (
    "Returns are undiscounted, of the mean action, on environments of their own. **Final**: mean of the final evaluation of 10"
    " deterministic episodes, after the last training step. **Last 10%**: mean of the evaluations in the last tenth of the steps."
    " **Max**: the highest point of the mean curve, and its step; a maximum flatters. Intervals are 95%: of the mean by Student's t over"
    " seeds, of the interquartile mean (IQM) and of the probability that a run ends above another by bootstrap over seeds, where there"
    " are five or more. Settings, where a group names no others: batch 256, learning rate"
    " 3e-4, two hidden layers of 256, one gradient step per environment step, 5,000 random steps first. A recurrent agent's batch_size"
    " counts sequences. Steps per second count everything, evaluations and compiling included: for a benchmark see Throughput.\n"
)
FILES = (
    "Every seed's curve with its settings (of each preset those of one version and machine, which has the most):"
    " [curves.csv](learning/curves.csv), a row for each evaluation, which `sacref plot` draws;"
    " [curves.npz](learning/curves.npz), for NumPy: `PRESET/BACKEND/scores` of `(seeds, 1, evaluations)`, as rliable expects the scores"
    " of an algorithm on one task, with `steps` and `seeds` beside them.\n"
)
TITLE_WIDTH = 80
"""Characters of a line above a picture that compares two agents."""
KNOWN = "training/known_returns.json"
"""File of the package beside the results."""
ASIDE = {"chunk", "mixed_precision"}
"""Settings whose cost a preset measures: the summary leaves them to their own sections."""


def section(results: Path) -> Section:
    """Report each preset: the curve of its largest group, a table of every group, the published points. Then the comparisons."""
    groups = runs.read(results)
    paragraphs = ["## Learning\n", INTRODUCTION, FILES] if groups else []
    if any(map(agreement.beside, groups)):
        paragraphs.append(agreement.INTRODUCTION)
    pictures = {}
    findings: list[Finding] = []
    for largest in runs.largest(groups):
        path = results / "learning" / f"{largest.preset}.png"
        references = published(largest.env, largest.steps) if largest.is_plain else []
        where = runs.shared_place([*largest.runs.values()])
        curves = {backend: runs.curve(members, where) for backend, members in largest.runs.items()}
        other_reward = [*dict.fromkeys(point.source for point in references if not point.comparable(largest.env))]
        drawn_where = where or largest.place
        pictures[path] = Picture(
            digest(largest.title, curves, references, other_reward, drawn_where),
            partial(
                plots.learning_curve,
                title=largest.title,
                curves=curves,
                references=references,
                other_reward=other_reward,
                where=drawn_where,
            ),
        )
        paragraphs.append(f"### {largest.heading}\n")
        if largest.differences:
            paragraphs.append(f"Settings that differ: {'; '.join(largest.differences)}.\n")
        about = f"{largest.title}: return over {largest.steps:,} environment steps and over wall-clock, {_libraries(largest.runs)}"
        paragraphs.append(image(about, path, results))
        for found in (found for found in groups if found.preset == largest.preset):
            paragraphs += _own_table(found)
        paragraphs += _beside_strict(largest, groups)
        paragraphs += agreement.paragraphs(largest, groups)
        findings += _finding(largest)
    for comparison in COMPARISONS:
        compared = _compared(comparison, groups, results)
        paragraphs += compared.paragraphs
        pictures |= compared.pictures
        findings += compared.findings
    files = tables.files(runs.largest(groups), results / "learning")
    if (package := results.parent / "sacref").is_dir():
        files |= {package / KNOWN: known.table(groups).encode()}
    return Section(paragraphs, pictures, findings, files)


def _finding(group: Group) -> list[Finding]:
    """Summarise runs beside published ones."""
    found = agreement.beside(group)
    if not found or ASIDE & group.settings.keys():
        return []
    last = max(one.step for one in found)
    references = {one.reference.source: one.reference for one in found if one.step == last}
    theirs = ", ".join(f"{one.name} {number(one.mean)} ({agreement.task(one)})" for one in references.values())
    sentences = []
    for backend, members in group.runs.items():
        of_backend = [one for one in found if (one.backend, one.step) == (backend, last)]
        if not of_backend:
            continue
        returns = of_backend[0].returns
        verdicts: dict[str, list[str]] = {}
        for one in sorted(of_backend, key=lambda one: not one.alike):
            verdicts.setdefault(one.verdict, []).append(one.reference.name)
        said = "; ".join(f"{verdict}: {', '.join(names)}" for verdict, names in verdicts.items())
        sentences.append(f"{backend} **{number(statistics.mean(returns))}** ({_seeds(len(members))}; {said})")
    return [Finding(f"Return, {group.title}, evaluation after {last:,} steps", f"{'; '.join(sentences)}. Published: {theirs}")]


def _seeds(count: int) -> str:
    return f"{count} seed{'s' if count > 1 else ''}"


def _libraries(backends: Iterable[str]) -> str:
    return " and ".join(LIBRARIES[backend] for backend in backends)


def _own_table(found: Group) -> list[str]:
    rows = []
    intervals = []
    for backend, members in found.runs.items():
        finals = [runs.final(run) for run in members]
        best = runs.best(members)
        intervals.append(statistics.t_interval(finals))
        rows.append(
            [
                backend,
                ", ".join(str(run.seed) for run in members),
                number(statistics.mean(finals)),
                number(statistics.std(finals)),
                interval(intervals[-1]),
                f"{number(statistics.iqm(finals))} {interval(statistics.bootstrap_interval(finals))}".strip(),
                ", ".join(number(value) for value in finals),
                number(statistics.mean([runs.last_tenth(run) for run in members])),
                f"{number(best.mean)} at {best.step:,}",
                " / ".join(number(standard.median(map(runs.speed, there))) for there in runs.by_place(members).values()),
            ]
        )
    of_final = ("final: mean", "std", "95% of the mean", "final: IQM, 95%", "final, per seed")
    paragraphs = [table(["backend", "seeds", *of_final, "last 10%: mean", "max of the mean", "steps/s"], rows)]
    if len(known := [ends for ends in intervals if ends is not None]) == 2:
        better = bootstrap.probability_of_improvement(*([[runs.final(run) for run in members]] for members in found.runs.values()))
        first, second = found.runs
        verdict = "overlap" if statistics.overlap(*known) else "do **not** overlap"
        paragraphs.append(
            f"The backends' intervals of the mean {verdict}. A run of {first} ends above one of {second} with probability {better}.\n"
        )
    threads = sorted({run.hardware.threads for run in found.all_runs})
    cores = f"{' or '.join(map(str, threads))} core{'' if threads == [1] else 's'}"
    together = max(runs.members(run) for run in found.all_runs)
    process = "each run" if together == 1 else f"up to {together} runs together in a process, a population,"
    sources = " and ".join(sorted({source for run in found.all_runs for source in runs.sources(run)}))
    paragraphs.append(f"{sources}, on {found.place}; {process} on {cores}; {found.date[:10]}.{_last_commits(found)}\n")
    return paragraphs


def _last_commits(found: Group) -> str:
    """Name the runs of several sessions whose record holds the commit of the last one alone."""
    said = []
    for backend, members in found.runs.items():
        if seeds := [str(run.seed) for run in members if not runs.tells_sources(run)]:
            said.append(f"{backend}, seed{'s' if len(seeds) > 1 else ''} {', '.join(seeds)}")
    return f" A resumed run is named by the commit of its last session: {'; '.join(said)}." if said else ""


def _beside_strict(found: Group, groups: Sequence[Group]) -> list[str]:
    """Compare a chunked group's means with those of the strict one."""
    if set(found.settings) != {"chunk"} or found.arguments:
        return []
    sentences = []
    for strict in groups:
        if (strict.env, strict.steps, strict.differences, strict.device) == (found.env, found.steps, [], found.device):
            for backend in sorted(set(found.runs) & set(strict.runs), reverse=True):
                finals = [[runs.final(run) for run in one.runs[backend]] for one in (found, strict)]
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
    """Compare the returns of two presets after the last step that both have, for each pair by one version on one kind of device."""
    pairs = [
        (one, other, step)
        for one in groups
        for other in groups
        if (one.preset, other.preset) == (comparison.preset, comparison.beside)
        and (one.env, one.version, one.device) == (other.env, other.version, other.device)
        and (step := runs.last_common_step(one, other)) is not None
    ]
    if not pairs:
        return Section([], {})
    (first, second, last), path = pairs[0], results / "learning" / f"{comparison.name}.png"
    curves = [
        plots.AgentCurve(backend, label, found is first, [point for point in runs.curve(members) if point.step <= last])
        for found, label in ((first, comparison.label), (second, comparison.beside_label))
        for backend, members in found.runs.items()
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
        image(f"Return of both agents over {last:,} environment steps, {_libraries(first.runs)}", path, results),
    ]
    for pair in pairs:
        paragraphs += _difference_table(comparison, *pair)
    differences = [
        f"{backend} {signed(statistics.mean(returns[0]) - statistics.mean(returns[1]))} {interval(apart)}".strip()
        for backend, returns, apart in _differences(first, second, last)
    ]
    finding = Finding(title, f"{comparison.label} less {comparison.beside_label}, mean return: {'; '.join(differences)}")
    lines = textwrap.fill(title, TITLE_WIDTH)
    drawn = Picture(digest(lines, curves), partial(plots.compared_curves, title=lines, curves=curves))
    return Section(paragraphs, {path: drawn}, [finding] if differences else [])


def _differences(one: Group, other: Group, step: int) -> list[tuple[str, list[list[float]], statistics.Interval | None]]:
    """Return, for each backend that both have, the returns of both after a step, and the interval of the difference of their means."""
    found = []
    for backend in (backend for backend in one.runs if backend in other.runs):
        returns = [[runs.after(run, step) for run in group.runs[backend]] for group in (one, other)]
        found.append((backend, returns, statistics.difference_interval(*returns)))
    return found


def _difference_table(comparison: Comparison, one: Group, other: Group, step: int) -> list[str]:
    rows, of_means, of_difference = [], [], []
    for backend, returns, apart in _differences(one, other, step):
        ends = [statistics.t_interval(values) for values in returns]
        means = [f"{number(statistics.mean(values))} {interval(each)}".strip() for values, each in zip(returns, ends, strict=True)]
        better = bootstrap.probability_of_improvement([returns[0]], [returns[1]])
        seeds = " and ".join(str(count) for count in dict.fromkeys(map(len, returns)))
        between = number(statistics.mean(returns[0]) - statistics.mean(returns[1]))
        rows.append([backend, *means, between, interval(apart), str(better), seeds])
        if len(known := [each for each in ends if each is not None]) == 2 and apart is not None:
            of_means.append(f"{backend} {'yes' if statistics.overlap(*known) else '**no**'}")
            holds = apart.low <= 0.0 <= apart.high
            of_difference.append(f"{backend} {'holds 0' if holds else 'clear of 0'}")
    if not rows:
        return []
    labels = [f"{label}: mean, 95%" for label in (comparison.label, comparison.beside_label)]
    said = (
        [f"Overlap of the means' intervals: {'; '.join(of_means)}. Interval of the difference: {'; '.join(of_difference)}.\n"]
        if of_means
        else []
    )
    return [
        table(["backend", *labels, "difference", "95% of the difference", "P(a run is above)", "seeds"], rows),
        *said,
        f"sacref {one.version}, on {' and '.join(runs.by_place([*one.all_runs, *other.all_runs]))}.\n",
    ]
