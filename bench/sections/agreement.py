"""Our runs beside published ones of the same task after as many steps: what lies between them, whether they agree, and if not, why."""

from collections.abc import Sequence
from typing import NamedTuple

from bench import runs as of_runs
from bench import statistics
from bench.agreement import Agreement, Summary, agreement
from bench.presets import PRESETS
from bench.published import Published, published
from bench.runs import Group
from bench.sections import folded, interval, number, signed, table

INTRODUCTION = (
    "Published runs of SAC beside these, after as many steps: both are means over seeds of **one evaluation at that step** (ours: 10"
    " deterministic episodes), not of the last tenth nor the maximum. The difference is ours less theirs, its interval Welch's; beside"
    " it stands the smallest true difference that so many seeds of such spread would have shown with 80% power (two-sided, 5%)."
    " *Below* and *above*: the interval is clear of 0. *Agrees*: it holds 0 and stays within 20% of the published mean. *Cannot tell*:"
    " it holds 0 and reaches further. *Not comparable*: the task's own reward is another one in their version.\n"
)


class Beside(NamedTuple):
    """One backend's runs beside one published point."""

    backend: str
    step: int
    """Of ours; theirs is within a hundredth of it."""
    returns: list[float]
    reference: Published
    found: Agreement | None
    """None where the rewards are not the same, so that no agreement can be claimed."""


def beside(group: Group) -> list[Beside]:
    """Every backend beside every published point of a step that it was evaluated at, the last step first."""
    if group.arguments:  # Wrappers and networks make it another task, or another agent.
        return []
    found = []
    for reference in sorted(published(group.env, group.steps), key=lambda point: (-round(point.steps, -3), point.source)):
        for backend, runs in group.runs.items():
            at = [step for step in of_runs.steps(runs) if abs(step - reference.steps) <= 0.01 * step]
            if at:
                returns = [of_runs.after(run, at[0]) for run in runs]
                theirs = Summary(reference.mean, reference.sample_std, reference.seeds)
                verdict = agreement(returns, theirs) if reference.comparable(group.env) else None
                found.append(Beside(backend, at[0], returns, reference, verdict))
    return found


def paragraphs(group: Group, groups: Sequence[Group]) -> list[str]:
    """The table, what is below and why, and where the published numbers stand."""
    found = beside(group)
    if not found:
        return []
    citations = "\n".join(dict.fromkeys(f"- {one.reference.name}, {task(one.reference)}: `{one.reference.citation}`" for one in found))
    return [
        table(
            [
                *("published", "task", "steps", "its metric", "mean ± std (seeds)", "sacref", "mean ± std (seeds)"),
                *("difference, 95%", "smallest that would show", "verdict"),
            ],
            [_row(one) for one in found],
        ),
        *_below(group, found, groups),
        folded(
            "Where the published numbers stand",
            f"{citations}\n\nStandard deviations are over n in these sources, and over n - 1 in the table.\n",
        ),
    ]


def task(reference: Published) -> str:
    """Name and version."""
    return f"{reference.env}-{reference.env_version}"


def _row(one: Beside) -> list[str]:
    reference, found = one.reference, one.found
    spread = statistics.std(one.returns)
    ours = number(statistics.mean(one.returns)) + (f" ± {number(spread)}" if spread is not None else "")
    return [
        reference.name,
        task(reference),
        f"{one.step:,}",
        reference.metric,
        f"{number(reference.mean)} ± {number(reference.sample_std)} ({reference.seeds})",
        one.backend,
        f"{ours} ({len(one.returns)})",
        f"{signed(found.difference)} {interval(found.interval)}".strip() if found else "",
        number(found.smallest) if found else "",
        found.verdict if found else "not comparable: the reward of this version differs",
    ]


def _below(group: Group, found: Sequence[Beside], groups: Sequence[Group]) -> list[str]:
    """Which curves are below, after how many steps, and the likely cause."""
    below = [one for one in found if one.found is not None and one.found.verdict == "below"]
    if not below:
        return []
    said = []
    for step in dict.fromkeys(one.step for one in below):
        under: dict[str, list[str]] = {}
        for backend in group.runs:
            theirs = [f"{one.reference.name} ({task(one.reference)})" for one in below if (one.step, one.backend) == (step, backend)]
            if theirs:
                under.setdefault(", ".join(theirs), []).append(backend)
        who = "; ".join(f"{' and '.join(backends)} below {theirs}" for theirs, backends in under.items())
        said.append(f"**Below what is published** after {step:,} steps: {who}.")
    preset = PRESETS.get(group.preset)
    if preset is None or preset.cause is None:
        said.append("The cause is not known.")
    else:
        said += [f"Likely cause: {preset.cause.text}", _tested(group, groups, preset.cause.tested_by, below[0].step)]
    return [" ".join(said) + "\n"]


def _tested(group: Group, groups: Sequence[Group], name: str, step: int) -> str:
    """What runs without the cause reach after as many steps."""
    others = [one for one in groups if one.preset == name and one.env == group.env and step in of_runs.steps(one.all_runs)]
    if not others:
        return "It is not tested yet: no runs without it are recorded."
    other, sentences = others[0], []
    for backend in (backend for backend in other.runs if backend in group.runs):
        without, with_it = ([of_runs.after(run, step) for run in one.runs[backend]] for one in (other, group))
        apart = statistics.difference_interval(without, with_it)
        verdict = ", of which one seed tells nothing"
        if apart is not None:
            verdict = f" {interval(apart)}: {'it matters' if apart.low > 0 else 'it is not shown to matter'}"
        means = statistics.mean(without), statistics.mean(with_it)
        sentences.append(
            f"after {step:,} steps {backend} reaches {number(means[0])} without it ({other.title}) and {number(means[1])} with it,"
            f" a difference of {signed(means[0] - means[1])}{verdict}"
        )
    return f"Tested: {'; '.join(sentences)}."
