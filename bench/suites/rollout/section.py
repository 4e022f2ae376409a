"""Rollout: environments, acting, the loop by number of environments, and the parts of a step's time."""

import statistics as standard
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from bench.core.newest import newest
from bench.core.page import Finding, Section, digest, image, number, source, table
from bench.core.pictures import Picture
from bench.core.samples import Timing, speeds
from bench.suites.rollout import plots
from bench.suites.rollout.samples import ActCell, EnvironmentCell, LoopCell, RolloutSamples

INTRODUCTION = (
    "Parts of the training loop; medians of rounds that alternate between the contenders of a table. Environments are stepped with"
    " random actions: in turn (sync), in a process each (async), or in batches by threads (batched), whose numbers are those of sync to the"
    " bit. `mujoco.rollout` is MuJoCo's own loop over the same simulations, without observations, rewards and resets: closed loop, of one"
    " control step a call, as a policy needs it; open loop, of 64. Acting is from a NumPy observation to a NumPy action of the policy. The"
    " loop takes one gradient step for each environment step, whatever the number of environments (HalfCheetah-v5, batch 256, two hidden"
    " layers of 256, float32; tracking off). The parts are measured in a separate pass that waits for the device after each: parts that"
    " overlap in the loop then follow each other, so that they add up to slightly more than the loop takes.\n"
)

VECTORIZED = ("sync", "batched")
"""Vectorizations of every task."""


def section(results: Path) -> Section:
    """Report the newest run of each preset, kind of machine and number of cores."""
    paragraphs: list[str] = []
    pictures = {}
    findings = []
    for found, heading, path in newest(results, RolloutSamples):
        samples = found.samples
        paragraphs += [
            f"### {heading}\n",
            "Environment steps per second, by number of environments:\n",
            _environments(samples.environments),
        ]
        for env in dict.fromkeys(cell.env for cell in samples.environments if cell.stepped_by not in VECTORIZED):
            cells = [cell for cell in samples.environments if cell.env == env]
            compared = _compared(cells)
            paragraphs += [f"{env} stepped in every way, environment steps per second:\n", _ways(cells), *compared]
            findings += [Finding(f"MuJoCo in batches, {env}", sentence.removesuffix(".\n")) for sentence in compared]
        paragraphs += ["Milliseconds of acting, by number of environments:\n", _backends(samples.acts, lambda one: f"{1e3 / one:.3f}")]
        paragraphs += ["Environment steps per second of the whole loop, by number of environments:\n", _backends(samples.loops, number)]
        if parts := milliseconds(samples):
            pictures[path] = Picture(digest(parts), partial(plots.part_bars, backends=parts))
            paragraphs.append(image("Where the time of a step goes, per backend", path, results))
            rows = [[backend, *(f"{value:.3f}" for value in of.values()), f"{sum(of.values()):.3f}"] for backend, of in parts.items()]
            paragraphs.append("Milliseconds of a step with one environment, by part:\n")
            paragraphs.append(table(["backend", *plots.PART_STYLES, "together"], rows))
        paragraphs.append(f"{source(found.sacref_version, found.commit, found.dirty)}; {found.date[:10]}.\n")
    return Section(["## Rollout\n", INTRODUCTION, *paragraphs] if paragraphs else [], pictures, findings)


def milliseconds(samples: RolloutSamples) -> dict[str, dict[str, float]]:
    """Return backend -> part -> median milliseconds of an environment step."""
    found: dict[str, dict[str, float]] = {}
    for cell in samples.parts:
        found.setdefault(cell.backend, {})[cell.part] = 1e3 * standard.median(timing.seconds / timing.count for timing in cell.timings)
    return {backend: {part: parts[part] for part in plots.PART_STYLES} for backend, parts in found.items()}


def speed(timings: Sequence[Timing]) -> float:
    """Return the median count per second."""
    return standard.median(speeds(timings))


def _environments(cells: Sequence[EnvironmentCell]) -> str:
    """Tabulate sync beside batched, on the most threads that were measured."""
    counts = sorted({cell.num_envs for cell in cells})
    rows = []
    for env, by in dict.fromkeys((cell.env, cell.stepped_by) for cell in cells if cell.stepped_by in VECTORIZED):
        found = _by_count(cells, env, by)
        rows.append([env, by, *(_cell(found.get(count), number) for count in counts)])
    return table(["task", "stepped by", *map(str, counts)], rows)


def _ways(cells: Sequence[EnvironmentCell]) -> str:
    """Tabulate one task: a row for each vectorization and number of threads."""
    counts = sorted({cell.num_envs for cell in cells})
    rows = []
    for by, threads in dict.fromkeys((cell.stepped_by, cell.threads) for cell in cells):
        by_count = {cell.num_envs: cell for cell in cells if (cell.stepped_by, cell.threads) == (by, threads)}
        name, on = f"mujoco.{by}" if by.startswith("rollout") else by, "a process each" if by == "async" else str(threads)
        rows.append([name, on, *(_cell(by_count.get(count), number) for count in counts)])
    return table(["stepped by", "threads", *map(str, counts)], rows)


def _compared(cells: Sequence[EnvironmentCell]) -> list[str]:
    """Compare batched stepping with sync and with MuJoCo's rollout, for the most environments on the most threads."""
    (env,) = {cell.env for cell in cells}
    count = max(cell.num_envs for cell in cells)
    found = {by: _by_count(cells, env, by).get(count) for by in ("sync", "batched", "rollout, closed loop")}
    speeds = {by: speed(cell.timings) for by, cell in found.items() if cell is not None and cell.timings}
    batched = found["batched"]
    if len(speeds) < len(found) or batched is None:
        return []
    of_sync, of_rollout = (speeds["batched"] / speeds[by] for by in ("sync", "rollout, closed loop"))
    threads = f"{batched.threads} thread{'s' if batched.threads > 1 else ''}"
    return [
        f"With {count} environments on {threads}, batched is {of_sync:.1f} times sync, and {of_rollout:.0%} of the closed loop alone.\n"
    ]


def _by_count(cells: Sequence[EnvironmentCell], env: str, by: str) -> dict[int, EnvironmentCell]:
    """Return number of environments -> cell on the most threads."""
    found = [cell for cell in cells if (cell.env, cell.stepped_by) == (env, by)]
    return {cell.num_envs: cell for cell in sorted(found, key=lambda cell: cell.threads)}


def _backends(cells: Sequence[ActCell | LoopCell], show: Callable[[float], str]) -> str:
    counts = sorted({cell.num_envs for cell in cells})
    rows = []
    for backend in dict.fromkeys(cell.backend for cell in cells):
        by_count = {cell.num_envs: cell for cell in cells if cell.backend == backend}
        compiling = [cell.compile_seconds for cell in by_count.values() if cell.compile_seconds is not None]
        ways = dict.fromkeys(cell.execution for cell in by_count.values() if isinstance(cell, LoopCell) and cell.execution)
        name = f"{backend} ({', '.join(ways)})" if ways else backend
        rows.append([name, *(_cell(by_count.get(count), show) for count in counts), f"{max(compiling):.1f} s" if compiling else ""])
    return table(["backend", *map(str, counts), "compiling, at most"], rows)


def _cell(cell: EnvironmentCell | ActCell | LoopCell | None, show: Callable[[float], str]) -> str:
    if cell is None:
        return ""
    return show(speed(cell.timings)) if cell.timings else f"missing: {cell.missing}"
