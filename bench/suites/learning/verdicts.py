"""Our runs beside published ones of the same task after as many steps: their difference, and a verdict on their agreement."""

from collections.abc import Sequence, Set
from typing import NamedTuple

from bench.core import statistics
from bench.core.agreement import Agreement, Summary, agreement
from bench.core.page import folded, interval, number, signed, table
from bench.suites.learning import runs as of_runs
from bench.suites.learning.published import Published, published, settings_of
from bench.suites.learning.runs import Group, Run

INTRODUCTION = (
    "Published runs of SAC beside these, after as many steps: both are means over seeds of **one evaluation at that step** (ours: 10"
    " deterministic episodes), not of the last tenth nor the maximum. The difference is ours less theirs, its interval Welch's; beside"
    " it stands the smallest true difference that so many seeds of such spread would have shown with 80% power (two-sided, 5%). Where a"
    " source publishes its seeds, the mean of the curve up to that step is compared in the same way, over the evaluations that both"
    " have. A verdict is given between like settings only (learning rates, target entropy, temperature, batch, random steps, updates"
    " per step, action repeat, networks); a temperature whose start a source draws around ours is like, and named: Adam moves its"
    " logarithm by the learning rate a step, by 1 in 3,300 steps. So is a policy whose standard deviation starts elsewhere. *Below* and"
    " *above*: the interval is clear of 0. *Agrees*: it holds 0 and stays within 20% of the published mean. *Cannot tell*: it holds 0"
    " and reaches further. *Other settings*: theirs differ as said, or no file says what they are. *Not comparable*: the task's own"
    " reward is another one in their version.\n"
)
APART = ("below", "above")
"""Verdicts of a difference that is shown."""
OTHER_REWARD = "not comparable: the reward of this version differs"
FEWEST_EVALUATIONS = 3
"""Evaluations that both have, below which a curve says no more than the point does."""


class Beside(NamedTuple):
    """One backend's runs beside one published point."""

    backend: str
    step: int
    """Step of ours; theirs is within a hundredth of it."""
    returns: list[float]
    reference: Published
    found: Agreement
    curve: Agreement | None
    """Comparison of the mean of each seed's curve up to the step; None where the source has none by seed, or none to compare with."""
    evaluations: int
    """Evaluations of the curve that both have."""
    differences: tuple[str, ...]
    """Settings in which the source differs, or may differ."""
    remark: str
    """Difference of the source that withholds no verdict; empty for none."""
    comparable: bool
    """True if both tasks have the same reward."""

    @property
    def alike(self) -> bool:
        """True if a verdict may be given: the same reward and the same settings."""
        return self.comparable and not self.differences

    @property
    def verdict(self) -> str:
        """The verdict in a word or two; a curve that lies apart is told where the point does not."""
        if not self.comparable:
            return "not comparable"
        if self.differences:
            return "other settings"
        apart = self.curve is not None and self.curve.verdict in APART and self.curve.verdict != self.found.verdict
        return f"{self.found.verdict}, its curve {self.curve.verdict}" if self.curve and apart else self.found.verdict


def beside(group: Group) -> list[Beside]:
    """Compare every backend with every published point of a step that it was evaluated at, the last step first."""
    if not group.is_plain:
        return []
    own = settings_of(group.env, group.settings, repeated=group.repeats)
    found = []
    for reference in sorted(published(group.env, group.steps), key=lambda point: (-round(point.steps, -3), point.source)):
        for backend, runs in group.runs.items():
            step = min(of_runs.steps(runs), key=lambda step: abs(step - reference.steps), default=0)
            if abs(step - reference.steps) <= 0.01 * step:
                returns = [of_runs.after(run, step) for run in runs]
                common = _common(runs, reference)
                found.append(
                    Beside(
                        backend=backend,
                        step=step,
                        returns=returns,
                        reference=reference,
                        found=agreement(returns, Summary(reference.mean, reference.sample_std, reference.seeds)),
                        curve=_curves(runs, reference, common),
                        evaluations=len(common),
                        differences=tuple(own.differences(reference.settings)),
                        remark=own.remark(reference.settings),
                        comparable=reference.comparable(group.env),
                    )
                )
    return found


def _common(runs: Sequence[Run], reference: Published) -> set[int]:
    """Return the steps up to the point after which all seeds of both were evaluated; none where the source has no curves by seed."""
    return set(of_runs.steps(runs)).intersection(*reference.curves) if reference.curves else set()


def _curves(runs: Sequence[Run], reference: Published, common: Set[int]) -> Agreement | None:
    """Compare the mean of each seed's curve over the evaluations that both have."""
    if len(common) < FEWEST_EVALUATIONS:
        return None
    ours = [statistics.mean([of_runs.after(run, step) for step in common]) for run in runs]
    theirs = [statistics.mean([curve[step] for step in common]) for curve in reference.curves]
    return agreement(ours, Summary(statistics.mean(theirs), statistics.std(theirs) or 0.0, len(theirs)))


def paragraphs(group: Group, groups: Sequence[Group]) -> list[str]:
    """Return the table, the returns of runs with a source's own settings, and the citations."""
    found = beside(group)
    if not found:
        return []
    citations = "\n".join(dict.fromkeys(f"- {one.reference.name}, {task(one.reference)}: `{one.reference.citation}`" for one in found))
    return [
        table(
            [
                *("published", "task", "steps", "its metric", "mean ± std (seeds)", "sacref", "mean ± std (seeds)"),
                *("difference, 95%", "smallest that would show", "curve up to the step: difference, 95%", "verdict"),
            ],
            [_row(one) for one in found],
        ),
        *_apart(found),
        *_with_their_settings(group, found, groups),
        folded(
            "Where the published numbers stand",
            f"{citations}\n\nStandard deviations are over n in these sources, and over n - 1 in the table.\n",
        ),
    ]


def task(reference: Published) -> str:
    """Name the task with its version."""
    return f"{reference.env}-{reference.env_version}"


def _row(one: Beside) -> list[str]:
    reference, found = one.reference, one.found
    spread = statistics.std(one.returns)
    ours = number(statistics.mean(one.returns)) + (f" ± {number(spread)}" if spread is not None else "")
    theirs = number(reference.mean) + (f" ± {number(reference.sample_std)}" if reference.seeds > 1 else "")
    verdict = one.verdict
    if not one.comparable:
        verdict = OTHER_REWARD
    elif one.differences:
        verdict = f"other settings: {'; '.join(one.differences)}"
    elif one.remark:
        verdict += f" ({one.remark})"
    return [
        reference.name,
        task(reference),
        f"{one.step:,}",
        reference.metric,
        f"{theirs} ({reference.seeds})",
        one.backend,
        f"{ours} ({len(one.returns)})",
        _difference(found) if one.comparable else "",
        number(found.smallest) if one.comparable else "",
        f"{_difference(one.curve)} ({one.curve.verdict}; {one.evaluations} evaluations)" if one.curve and one.alike else "",
        verdict,
    ]


def _difference(found: Agreement) -> str:
    return f"{signed(found.difference)} {interval(found.interval)}".strip()


def _apart(found: Sequence[Beside]) -> list[str]:
    """Name the curves that lie below or above a source of the same settings."""
    said = []
    for one in found:
        for what, compared in (("after", one.found), ("in the mean of the curve up to", one.curve)):
            if one.alike and compared is not None and compared.verdict in APART:
                name = f"{one.reference.name} ({task(one.reference)})"
                said.append(f"{one.backend} is {compared.verdict} {name} {what} {one.step:,} steps")
    return [f"**Apart from what is published with the same settings**: {'; '.join(said)}.\n"] if said else []


def _with_their_settings(group: Group, found: Sequence[Beside], groups: Sequence[Group]) -> list[str]:
    """Say what recorded runs with the settings of a source reach, where this group's differ."""
    last = max(one.step for one in found)
    sources = {one.reference.source: one.reference for one in found if one.step == last and one.comparable and one.differences}
    said = []
    for reference in sources.values():
        for other in groups:
            if other.env != group.env or not other.is_plain or last not in of_runs.steps(other.all_runs):
                continue
            if settings_of(other.env, other.settings, repeated=other.repeats).differences(reference.settings):
                continue
            reached = ", ".join(
                f"{backend} {number(statistics.mean([of_runs.after(run, last) for run in runs]))} ({len(runs)})"
                for backend, runs in other.runs.items()
            )
            said.append(f"with the settings of {reference.name} ({number(reference.mean)}) sacref reaches {reached} ({other.title})")
    return [f"After {last:,} steps, mean (seeds): {'; '.join(said)}.\n"] if said else []
