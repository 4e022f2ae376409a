"""Runs that were killed and resumed, against runs that were not."""

from pathlib import Path

from bench.core.newest import newest
from bench.core.page import Finding, Section, source, table
from bench.core.plots import NAMES
from bench.suites.faults.samples import FaultsCell, FaultsSamples

INTRODUCTION = (
    "SIGKILL at random moments of whole runs, which `--resume` takes up, until they come to their end. Then metrics, events, evaluations,"
    " checkpoints (weights, optimizers, random streams, statistics, simulations) and replay memory are compared with those of a run that"
    " was never killed, bit for bit; wall-clock times are left out.\n"
)


def section(results: Path) -> Section:
    """Report the newest run of each preset, kind of machine and number of cores."""
    paragraphs: list[str] = []
    findings = []
    for found, heading, _ in newest(results, FaultsSamples):
        tasks: dict[tuple[str, str, str], list[FaultsCell]] = {}
        for cell in found.samples.cells:
            tasks.setdefault((cell.backend, cell.env, cell.what), []).append(cell)
        rows = []
        for (backend, env, what), cells in tasks.items():
            start = [NAMES[backend], env + (what and f", {what}"), f"{cells[0].steps:,}"]
            if cells[0].missing is not None:
                rows.append([*start, f"missing: {cells[0].missing}", "", "", ""])
                continue
            sums = [str(sum(getattr(cell, name) for cell in cells)) for name in ("kills", "resumed", "runs")]
            rows.append([*start, *sums, "; ".join(words for cell in cells for words in cell.differences) or "none"])
        if ran := [cell for cell in found.samples.cells if cell.missing is None]:
            kills, runs = sum(cell.kills for cell in ran), sum(cell.runs for cell in ran)
            differences = sum(len(cell.differences) for cell in ran)
            said = f"{kills} kills of {runs} runs; differences from runs that were never killed: {differences or 'none'}"
            findings.append(Finding("Runs that were killed and resumed", said))
        paragraphs += [
            f"### {heading}\n",
            table(["backend", "task", "steps", "kills", "resumed", "runs", "differences"], rows),
            f"{source(found.sacref_version, found.commit, found.dirty)}; {found.date[:10]}.\n",
        ]
    return Section(["## Killed runs\n", INTRODUCTION, *paragraphs] if paragraphs else [], {}, findings)
