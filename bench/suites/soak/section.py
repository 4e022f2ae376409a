"""Long runs: resident memory and open files from when the replay memory is full until the end."""

from pathlib import Path

from bench.core.newest import newest
from bench.core.page import Finding, Section, source, table
from bench.core.plots import NAMES
from bench.suites.soak.measure import blocks_per_step, full, growth
from bench.suites.soak.samples import SoakSamples

INTRODUCTION = (
    "Resident memory and open files of a process over a whole run (tracking, evaluations, checkpoints) of a small network. Growth is the"
    " largest difference of a later sample from the first one after the replay memory was full. Blocks are those of memory that Python's"
    " objects hold: an array that every step leaves behind is one or more for each step.\n"
)


def section(results: Path) -> Section:
    """Report the newest run of each preset, kind of machine and number of cores."""
    paragraphs: list[str] = []
    findings = []
    for found, heading, _ in newest(results, SoakSamples):
        rows = []
        for cell in found.samples.cells:
            start = [NAMES[cell.backend], cell.execution or "", f"{cell.steps:,}"]
            if cell.missing is not None:
                rows.append([*start, f"missing: {cell.missing}", "", "", "", "", ""])
                continue
            samples = full(cell)
            files = sorted({sample.open_files for sample in samples})
            rows.append(
                [
                    *start,
                    f"{samples[0].step:,}",
                    f"{samples[0].resident_bytes / 2**20:,.1f}",
                    f"{samples[-1].resident_bytes / 2**20:,.1f}",
                    f"{growth(cell):.2%}",
                    f"{blocks_per_step(cell):.3f}",
                    " to ".join(dict.fromkeys((str(files[0]), str(files[-1])))),
                ]
            )
        if ran := [cell for cell in found.samples.cells if cell.missing is None]:
            growths = ", ".join(f"{NAMES[cell.backend]} {growth(cell):.2%} over {cell.steps:,} steps" for cell in ran)
            findings.append(Finding("Growth of memory once the replay memory is full", growths))
        header = ["backend", "way", "steps", "full at", "MiB then", "MiB at the end", "growth", "blocks per step", "open files"]
        paragraphs += [
            f"### {heading}\n",
            table(header, rows),
            f"{source(found.sacref_version, found.commit, found.dirty)}; {found.date[:10]}.\n",
        ]
    return Section(["## Long runs\n", INTRODUCTION, *paragraphs] if paragraphs else [], {}, findings)
