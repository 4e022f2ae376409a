"""Agreement of the two backends: a test of equivalence of their returns, per preset and per task."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from bench.core import statistics
from bench.core.agreement import MARGIN, Equivalence, equivalence
from bench.core.page import Finding, Section, interval, number, signed, table
from bench.suites.learning import runs

INTRODUCTION = (
    "The returns of PyTorch and JAX in a test of equivalence, two one-sided Welch tests at 5% each: the backends are equivalent"
    f" where a true difference of {MARGIN:.0%} of the mean return or more, in either direction, is rejected. The margin is that of the"
    " verdicts on published curves, and older than the test; most of these runs are older than it."
    " Returns are those of each seed's final evaluation. A task pools its presets, each return divided by the mean of its preset: the"
    " difference is the mean of the presets' differences, each counted by its runs, and its error theirs.\n"
)


def section(results: Path) -> Section:
    """Test every preset that both backends trained with two seeds or more, then every task."""
    groups = [one for one in runs.largest(runs.read(results)) if {"torch", "jax"} <= one.runs.keys()]
    rows, findings = [], []
    pooled: dict[str, list[tuple[list[float], list[float]]]] = defaultdict(list)
    for one in groups:
        torch, jax = ([runs.final(run) for run in one.runs[backend]] for backend in ("torch", "jax"))
        found = equivalence([(torch, jax)])
        if found is None:
            continue
        rows.append(_row(one.heading, torch, jax, found, digits=0))
        scale = abs(statistics.mean([*torch, *jax]))
        pooled[one.agent].append(([value / scale for value in torch], [value / scale for value in jax]))
    for task, pairs in pooled.items():
        torch, jax = ([value for pair in pairs for value in pair[index]] for index in (0, 1))
        found = equivalence(pairs)
        if found is not None and len(pairs) > 1:
            rows.append(_row(f"**{task}**, {len(pairs)} presets pooled", torch, jax, found, digits=3))
        if found is not None:
            said = f"{found.difference:+.1%} [{found.interval.low:+.1%}, {found.interval.high:+.1%}]"
            findings.append(f"{task} {_verdict(found)}, {said} of the mean, a 90% interval ({len(torch)} and {len(jax)} runs)")
    if not rows:
        return Section([], {})
    header = ["runs", "torch: mean (seeds)", "jax: mean (seeds)", "torch less jax, 90%", "margin", "p", "verdict"]
    return Section(
        ["## Agreement of the backends\n", INTRODUCTION, table(header, rows)],
        {},
        [Finding(f"Equivalence of PyTorch and JAX, within {MARGIN:.0%} of the return", "; ".join(findings))],
    )


def _row(name: str, torch: Sequence[float], jax: Sequence[float], found: Equivalence, *, digits: int) -> list[str]:
    means = [f"{statistics.mean(values):,.{digits}f} ({len(values)})" for values in (torch, jax)]
    difference = signed(found.difference) if digits == 0 else f"{found.difference:+.{digits}f}"
    margin = number(found.margin) if digits == 0 else f"{found.margin:.{digits}f}"
    return [name, *means, f"{difference} {interval(found.interval, digits=digits)}", margin, f"{found.p_value:.3f}", _verdict(found)]


def _verdict(found: Equivalence) -> str:
    return "equivalent" if found.equivalent else "not shown"
