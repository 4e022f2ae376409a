"""Executions: differences between those that agents choose and the plain one."""

from pathlib import Path

from bench.core.newest import newest
from bench.core.page import Finding, Section, source, table
from bench.suites.executions.samples import ExecutionCell, ExecutionsSamples

INTRODUCTION = (
    "Agents with one seed, driven through their life cycle with the same observations and rewards, once with the execution that they choose"
    " on the device and once plain: the largest difference of actions, parameters, moments and counters, max\\|a-b\\| / max\\|b\\| per"
    " array. AMP multiplies in bfloat16. A population of two trains on Pendulum-v1, and each member is held against a plain run of its seed"
    " alone, whose environment answers every difference with another state.\n"
)


def section(results: Path) -> Section:
    """Report the newest run of each preset, kind of machine and number of cores."""
    paragraphs: list[str] = []
    findings = []
    for found, heading, _ in newest(results, ExecutionsSamples):
        rows = [
            [cell.backend, cell.case, cell.execution or "", cell.dtype, f"{cell.updates:,}", _said(cell)] for cell in found.samples.cells
        ]
        paragraphs += [
            f"### {heading}\n",
            table(["backend", "agent", "execution", "dtype", "updates", "largest difference from plain"], rows),
            f"{source(found.sacref_version, found.commit, found.dirty)}; {found.date[:10]}.\n",
        ]
        precise = [cell.difference for cell in found.samples.cells if cell.dtype == "float64" and cell.difference is not None]
        if precise:
            findings.append(
                Finding(f"Chosen execution beside plain in float64, {heading}", f"largest relative difference {max(precise):.1e}")
            )
    return Section(["## Executions\n", INTRODUCTION, *paragraphs] if paragraphs else [], {}, findings)


def _said(cell: ExecutionCell) -> str:
    if cell.missing is not None:
        return f"missing: {cell.missing}"
    return "not finite" if cell.difference is None else f"{cell.difference:.1e}"
