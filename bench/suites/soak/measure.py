"""Memory and open files over a long run: `python -m bench soak` (`nox -s soak`).

A whole run of each backend in its own process, with a small network in an environment that costs nothing. Once the replay memory is full,
resident memory may differ by 2%, the number of open files not at all, and Python may not hold one more object for every step. Exit status 1
where they do: something leaks.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec
from rich.console import Console

from bench.core import machine, record, runner
from bench.core.stage import Preset
from bench.suites.soak.samples import SoakCell, SoakSample, SoakSamples

TOLERANCE = 0.02
"""Largest relative difference of resident memory from its value when the replay memory was full."""
BLOCKS_PER_STEP = 0.5
"""Largest growth of the blocks of memory of Python's objects, for each step. An array that every step leaks is one or more; a leak of a
checkpoint or an evaluation is less."""
STEPS_PER_SECOND = 300.0
"""For the estimate."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """The sizes that a preset measures."""

    steps: int
    capacity: int
    """Transitions that the replay memory holds."""
    samples: int


PRESETS: dict[Preset, Sizes] = {
    "smoke": Sizes(steps=2_000, capacity=500, samples=20),
    "cpu": Sizes(steps=200_000, capacity=20_000, samples=200),
    "gpu": Sizes(steps=200_000, capacity=20_000, samples=200),
}


def main(*, preset: Preset = "cpu", threads: int | None = None, seed: int = 0, results: Path | None = None, dry_run: bool = False) -> int:
    """Run both backends, and write the record.

    Args:
        preset: smoke (half a minute), or cpu (200,000 steps; about 20 minutes). It computes on the CPU everywhere.
        threads: cores that the processes are bound to; None for all.
        seed: of the runs.
        results: folder for the record; None for results/soak, and for runs/smoke/soak with the preset smoke.
        dry_run: print the plan, and stop.

    Returns:
        Exit status: 0; 1 where memory or open files grew; 130 after Ctrl-C.
    """
    threads = runner.bind(threads)
    sizes = PRESETS[preset]
    console = Console(soft_wrap=True)
    console.print(f"Resident memory and open files over {sizes.steps:,} steps, preset {preset}, {threads} core(s)")
    results = results or runner.default_results("soak", preset)
    run = runner.Run(
        name=runner.run_name("soak", preset, threads),
        configuration={
            "preset": preset,
            "steps": sizes.steps,
            "capacity": sizes.capacity,
            "hidden": [32, 32],
            "batch_size": 32,
            "threads": threads,
            "tolerance": TOLERANCE,
        },
        seed=seed,
        results=results,
        on_cpu=True,
    )
    pieces = [
        runner.Piece(name=backend, seconds=sizes.steps / STEPS_PER_SECOND, measure=partial(measure, backend, sizes, seed))
        for backend in runner.BACKENDS
    ]
    status = runner.execute(run, pieces, SoakSamples, console=console, dry_run=dry_run)
    path = runner.recorded(results, run.name, machine.slug(machine.hardware(None)))
    if status or dry_run or path is None:
        return status
    samples = record.read(path, SoakSamples).samples
    said = {cell.backend: verdict(cell) for cell in samples.cells}
    for backend, found in said.items():
        console.print(f"  {backend}: {found or 'flat'}")
    return int(any(said.values()))


def measure(backend: str, sizes: Sizes, seed: int) -> SoakSamples:
    """Run a backend in its own process."""
    missing = runner.missing_backends().get(backend)
    if missing is not None:
        return SoakSamples(cells=[_cell(backend, sizes, missing=missing)])
    job = {"backend": backend, "steps": sizes.steps, "capacity": sizes.capacity, "samples": sizes.samples, "seed": seed}
    command = [sys.executable, "-m", "bench.suites.soak.worker", json.dumps(job)]
    finished = subprocess.run(command, cwd=machine.ROOT, stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(finished.stdout.splitlines()[-1])
    return SoakSamples(
        cells=[_cell(backend, sizes, execution=found["execution"], samples=msgspec.convert(found["samples"], list[SoakSample]))]
    )


def full(cell: SoakCell) -> list[SoakSample]:
    """Return the samples since the replay memory was full."""
    return [sample for sample in cell.samples if sample.step > cell.capacity + cell.steps // 100]


def growth(cell: SoakCell) -> float:
    """Return the largest relative difference of resident memory from its value when the replay memory was full."""
    first, *later = (sample.resident_bytes for sample in full(cell))
    return max(abs(each - first) for each in later) / first


def blocks_per_step(cell: SoakCell) -> float:
    """Return the growth of Python's blocks of memory for each step since the replay memory was full.

    From the least of the first half of the samples to the least of the second: some blocks are held for a while.
    """
    samples = full(cell)
    first, second = (min(part, key=lambda sample: sample.blocks) for part in (samples[: len(samples) // 2], samples[len(samples) // 2 :]))
    return (second.blocks - first.blocks) / (second.step - first.step)


def verdict(cell: SoakCell) -> str:
    """Describe the growth beyond the limits; empty without one, or if nothing was measured."""
    if cell.missing is not None:
        return ""
    found = []
    if growth(cell) > TOLERANCE:
        found.append(f"resident memory differs by {growth(cell):.1%}, at most {TOLERANCE:.0%} are expected")
    files = {sample.open_files for sample in full(cell)}
    if len(files) > 1:
        found.append(f"there are {min(files)} to {max(files)} open files, their number is expected to stay")
    if blocks_per_step(cell) > BLOCKS_PER_STEP:
        found.append(f"each step leaves {blocks_per_step(cell):.2f} blocks behind, at most {BLOCKS_PER_STEP} are expected")
    return "; ".join(found)


def _cell(
    backend: str, sizes: Sizes, *, execution: str | None = None, samples: Sequence[SoakSample] = (), missing: str | None = None
) -> SoakCell:
    return SoakCell(
        backend=backend, execution=execution, steps=sizes.steps, capacity=sizes.capacity, samples=list(samples), missing=missing
    )
