"""Host work: microseconds of a training step by part, beside the environment's own step and beside peers."""

import statistics as standard
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from bench.core.newest import newest
from bench.core.page import Finding, Section, digest, image, number, source, table
from bench.core.pictures import Picture
from bench.suites.host import plots
from bench.suites.host.samples import Counts, HostCell, HostSamples, OverheadCell, Round, added, host_seconds

INTRODUCTION = (
    "Microseconds of a timestep on HalfCheetah-v5 with networks of width 8 and batches of 8, so that arithmetic costs next to"
    " nothing: the work of the host is left, which decides the speed where the device is fast. One core, one gradient step a"
    " timestep, tracking on; every contender trains in its own process by its own loop. Medians of rounds that alternate between the"
    " contenders. Host work is the timestep without the step of the vector environment; learn is all of `post_interaction`, or of a"
    " peer's `train`, and where sacref's strict step is one call it stores the rows and chooses the next action too, which act then"
    " hands out; the rest is between the calls. A ratio of 2.0 to the environment means that the host needs twice as long as the"
    " simulation. On a GPU, act includes the wait for the actions. Uploads, launches and downloads are those of a steady timestep,"
    " from the libraries' profilers: a launch is the call of a compiled function (JAX), an operation (PyTorch on a CPU), or a kernel"
    " or graph (PyTorch on CUDA); an upload or download is an array that passes between host and device, and on a CPU nothing is"
    " downloaded.\n"
)
PARTS = tuple(part for part in plots.PART_STYLES if part != "environment")
BESIDE = {
    "act and record / environment": ("act", "to_numpy", "record"),
    "with learn": ("act", "to_numpy", "record", "learn"),
    "all host work": PARTS,
}
"""Heading of a ratio to the environment -> the parts in it."""


def section(results: Path) -> Section:
    """Report the newest run of each preset, kind of machine and number of cores."""
    paragraphs: list[str] = []
    pictures = {}
    findings = []
    for found, heading, path in newest(results, HostSamples):
        cells = found.samples.cells
        paragraphs.append(f"### {heading}\n")
        if bars := {cell.name: parts(cell) for cell in cells if cell.rounds and together(cell) == 1}:
            pictures[path] = Picture(digest(bars), partial(plots.part_bars, contenders=bars))
            paragraphs.append(image("Milliseconds of a timestep by part, per contender", path, results))
        for count in sorted({together(cell) for cell in cells}):
            single = [cell for cell in cells if together(cell) == count and cell.members == 1]
            paragraphs += [f"Microseconds of a timestep with {count} environment{'s' if count > 1 else ''}:\n", _table(single)]
        paragraphs += [
            *_populations(cells),
            *_overheads(found.samples.overheads),
            f"{source(found.sacref_version, found.commit, found.dirty)}; {found.date[:10]}.\n",
        ]
        findings += [*_findings(heading, cells), *_overhead_findings(heading, found.samples.overheads)]
    return Section(["## Host work\n", INTRODUCTION, *paragraphs] if paragraphs else [], pictures, findings)


def together(cell: HostCell) -> int:
    """Return the environments of all agents."""
    return cell.members * cell.num_envs


def parts(cell: HostCell) -> dict[str, float]:
    """Return part -> median milliseconds of a timestep."""
    rounds = {part: [_seconds(timed, part) / timed.timesteps for timed in cell.rounds] for part in plots.PART_STYLES}
    return {part: 1e3 * standard.median(values) for part, values in rounds.items()}


def _seconds(timed: Round, part: str) -> float:
    if part == "rest":
        return timed.seconds - sum(each.seconds for each in timed.parts.values())
    return next((each.seconds for name, each in timed.parts.items() if name == part), 0.0)


def host_microseconds(cell: HostCell) -> list[float]:
    """Return the host work of a timestep in each round."""
    return [1e6 * host_seconds(timed) / timed.timesteps for timed in cell.rounds]


def beside_environment(cell: HostCell, which: Sequence[str]) -> float:
    """Return the median ratio of some parts to the environment's step, of the same rounds."""
    return standard.median(sum(_seconds(timed, part) for part in which) / _seconds(timed, "environment") for timed in cell.rounds)


def processor_microseconds(cell: HostCell) -> float:
    """Return the median processor time of a timestep without the environments'."""
    found = [(timed.processor_seconds - timed.parts["environment"].processor_seconds) / timed.timesteps for timed in cell.rounds]
    return 1e6 * standard.median(found)


def _table(cells: Sequence[HostCell]) -> str:
    rows = []
    for cell in cells:
        if not cell.rounds:
            rows.append([cell.name, f"missing: {cell.missing}", *[""] * (len(PARTS) + len(BESIDE) + 4)])
            continue
        host = host_microseconds(cell)
        rows.append(
            [
                cell.name,
                cell.execution or "",
                *(number(1e3 * value) if value else "" for part, value in parts(cell).items() if part in PARTS),
                f"{number(standard.median(host))} ({number(min(host))} to {number(max(host))})",
                number(1e3 * parts(cell)["environment"]),
                *(f"{beside_environment(cell, which):.2f}" for which in BESIDE.values()),
                *_counts(cell.counts),
            ]
        )
    header = ["", "execution", *PARTS, "host work (range)", "environment", *BESIDE, "uploads, launches, downloads", "of"]
    return table(header, rows)


def _counts(counts: Counts | None) -> list[str]:
    if counts is None:
        return ["", ""]
    shown = ("-" if value is None else f"{value:.3g}" for value in (counts.uploads, counts.launches, counts.downloads))
    return [", ".join(shown), counts.unit]


def _populations(cells: Sequence[HostCell]) -> list[str]:
    """Compare populations with one agent that has as many environments, both with the execution that they choose."""
    rows = []
    for cell in cells:
        if cell.members == 1 or not cell.rounds:
            continue
        one = next((each for each in cells if each.name == f"sacref {cell.library} auto" and together(each) == together(cell)), None)
        alone = processor_microseconds(one) if one is not None and one.rounds else None
        mine = processor_microseconds(cell)
        rows.append([cell.library, number(mine), number(alone), "" if alone is None else f"{mine / alone:.2f}"])
    if not rows:
        return [f"{cell.name} is missing: {cell.missing}\n" for cell in cells if cell.members > 1]
    count = max(together(cell) for cell in cells)
    about = f"Microseconds of processor time of a timestep, without the environments', of {count} agents with one environment each:\n"
    return [about, table(["backend", f"{count} agents", f"one agent, {count} environments", "ratio"], rows)]


def _overheads(cells: Sequence[OverheadCell]) -> list[str]:
    """Report the time that callbacks and loggers add to a timestep."""
    if not cells:
        return []
    rows = []
    for cell in cells:
        if not cell.stretches:
            rows.append([cell.backend, cell.env, f"missing: {cell.missing}", "", ""])
            continue
        low, middle, high = standard.quantiles(added(cell), n=4)
        timestep, calls = (
            1e6 * standard.median(each.seconds / stretch.count for each, stretch in zip(timings, cell.stretches, strict=True))
            for timings in (cell.stretches, cell.calls)
        )
        rows.append([cell.backend, cell.env, number(timestep), f"{calls:.1f}", f"+{middle:.2%} ({low:.2%} to {high:.2%})"])
    about = (
        "Microseconds of a timestep of `sacref.train` with three callbacks, which are called after each timestep, and three loggers, all of"
        " which do nothing, and of the calls to them in it, with what the run does for them: medians of"
        f" {max(len(cell.stretches) for cell in cells)} stretches. Added is the time of the calls relative to the rest, with quartiles; a"
        " run without callbacks makes no such call:\n"
    )
    return [about, table(["backend", "environment", "timestep", "calls", "added"], rows)]


def _overhead_findings(heading: str, cells: Sequence[OverheadCell]) -> list[Finding]:
    said = [f"+{standard.median(added(cell)):.2%} on {cell.backend} ({cell.env})" for cell in cells if cell.stretches]
    return (
        [Finding(f"Time that three callbacks and three loggers that do nothing add to a timestep, {heading}", "; ".join(said))]
        if said
        else []
    )


def _findings(heading: str, cells: Sequence[HostCell]) -> list[Finding]:
    said = [
        f"{cell.name} {beside_environment(cell, PARTS):.1f} times"
        for cell in cells
        if cell.rounds and together(cell) == 1 and not cell.name.endswith(" plain")
    ]
    return [Finding(f"Host work of a training step beside the environment's step, {heading}", "; ".join(said))] if said else []
