"""Gradient steps per second by batch, width, backend and execution, beside matrix products: `python -m bench update`.

No environment: the memory is filled with synthetic transitions of HalfCheetah's shapes. At each size the contenders (torch and JAX, each
fused and plain) and the products take turns, so that a machine that slows down slows all of them down.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from bench.core import contest, machine, runner
from bench.core.flops import GFLOPS, update_flops
from bench.core.stage import Preset
from bench.suites.update.samples import MatmulCell, UpdateCell, UpdateSamples

PRODUCTS = (256, 1_024)
"""Rows and columns of the matrices that are multiplied beside."""
STORED = 100_000
"""Transitions in the memory, at every size of update."""
STORED_AT = (256, 256)
"""Batch and width at which the number of stored transitions is varied."""
MOST_GRADIENT_STEPS = 16
"""Most gradient steps of a fused call."""

SECONDS_PER_SETUP = {"cpu": 6.0, "gpu": 20.0}
"""For the estimate: making and compiling the contenders of a size."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """The sizes that a preset measures."""

    batches: tuple[int, ...]
    widths: tuple[int, ...]
    stored: tuple[int, ...]
    """Numbers of stored transitions; the largest is the memory's capacity."""
    rounds: int
    round_seconds: float
    """A round takes at least so long, and at least one call."""
    largest_flops: float
    """Sizes whose gradient step needs more are left out."""
    call_flops: float
    """A fused call takes as many gradient steps as fit in, from 2 to `MOST_GRADIENT_STEPS`."""


BATCHES = (64, 256, 1_024, 4_096, 16_384)
WIDTHS = (256, 512, 1_024, 2_048)
ALL_STORED = (1_000, 10_000, 100_000, 1_000_000)
PRESETS: dict[Preset, Sizes] = {
    "smoke": Sizes(batches=(64,), widths=(256,), stored=(1_000, 10_000), rounds=2, round_seconds=0.05, largest_flops=1e12, call_flops=1e9),
    "cpu": Sizes(batches=BATCHES, widths=WIDTHS, stored=ALL_STORED, rounds=5, round_seconds=0.3, largest_flops=150e9, call_flops=40e9),
    "gpu": Sizes(batches=BATCHES, widths=WIDTHS, stored=ALL_STORED, rounds=7, round_seconds=0.15, largest_flops=1e15, call_flops=1e15),
}


def plan(preset: Preset, threads: int, seed: int) -> runner.Plan[UpdateSamples]:
    """Plan a preset on so many cores."""
    sizes = PRESETS[preset]
    left_out = [(batch, width) for batch in sizes.batches for width in sizes.widths if flops(batch, width) > sizes.largest_flops]
    return runner.Plan(
        title="Gradient steps per second",
        configuration={
            "batches": list(sizes.batches),
            "widths": list(sizes.widths),
            "left_out": [list(size) for size in left_out],
            "stored": list(sizes.stored),
            "rounds": sizes.rounds,
            "round_seconds": sizes.round_seconds,
            "dtype": "float32",
            "matmul_precision": "highest",
            "observation": 17,
            "action": 6,
        },
        pieces=list(pieces(sizes, threads, seed)),
        notes=[
            f"left out: batch {batch}, width {width}: {flops(batch, width) / 1e9:,.0f} GFLOP a gradient step" for batch, width in left_out
        ],
    )


def flops(batch: int, width: int) -> int:
    """Count the operations of one gradient step at HalfCheetah's shapes."""
    return update_flops(observation=17, action=6, hidden=(width, width), batch=batch)


def gradient_steps(batch: int, width: int, sizes: Sizes) -> int:
    """Return the gradient steps of a fused call."""
    return max(2, min(MOST_GRADIENT_STEPS, int(sizes.call_flops / flops(batch, width))))


def pieces(sizes: Sizes, threads: int, seed: int) -> Iterator[runner.Piece[UpdateSamples]]:
    """Yield the pieces: all contenders of a size; then the numbers of stored transitions."""
    kind = "gpu" if machine.find_accelerator() else "cpu"
    speed = 1e9 * (GFLOPS["gpu"] if kind == "gpu" else GFLOPS["cpu_core"] * threads)
    for width in sizes.widths:
        for batch in sizes.batches:
            if flops(batch, width) <= sizes.largest_flops:
                steps = gradient_steps(batch, width, sizes)
                seconds = [max(sizes.round_seconds, count * flops(batch, width) / speed) for count in (steps, 1)]
                yield runner.Piece(
                    name=f"batch {batch}, width {width}",
                    seconds=SECONDS_PER_SETUP[kind] + (sizes.rounds + 2) * (2 * sum(seconds) + 4 * sizes.round_seconds),
                    measure=partial(measure_size, batch, width, sizes, seed),
                )
    yield runner.Piece(
        name="stored transitions",
        seconds=SECONDS_PER_SETUP[kind] + 2 * len(sizes.stored) * (1 + (sizes.rounds + 2) * sizes.round_seconds),
        measure=partial(measure_stored, sizes, seed),
    )


def measure_size(batch: int, width: int, sizes: Sizes, seed: int) -> UpdateSamples:
    """Measure both backends, fused and plain, and the products, in turn."""
    steps = gradient_steps(batch, width, sizes)
    cells = [
        UpdateCell(
            backend=backend,
            execution=execution,
            chosen=None,
            batch=batch,
            width=width,
            stored=STORED,
            gradient_steps=steps if execution == "auto" else 1,
            flops=flops(batch, width),
            timings=[],
            compile_seconds=None,
            missing=None,
        )
        for backend in runner.BACKENDS
        for execution in ("auto", "plain")
    ]
    products = {
        (backend, size): partial(contest.product, backend, size, size, size)
        for backend in runner.BACKENDS
        for size in PRODUCTS
        if backend not in runner.missing_backends()
    }
    measured, timings = contest.measure(cells, partial(_agent, capacity=STORED, seed=seed), products, sizes.rounds, sizes.round_seconds)
    matmuls = [MatmulCell(backend=key[0], size=key[1], batch=batch, width=width, timings=found) for key, found in timings.items()]
    return UpdateSamples(cells=measured, matmuls=matmuls, stored=[])


def measure_stored(sizes: Sizes, seed: int) -> UpdateSamples:
    """Measure both backends, fused, at every number of stored transitions, in turn; all memories have one capacity."""
    batch, width = STORED_AT
    cells = [
        UpdateCell(
            backend=backend,
            execution="auto",
            chosen=None,
            batch=batch,
            width=width,
            stored=stored,
            gradient_steps=gradient_steps(batch, width, sizes),
            flops=flops(batch, width),
            timings=[],
            compile_seconds=None,
            missing=None,
        )
        for backend in runner.BACKENDS
        for stored in sizes.stored
    ]
    agent = partial(_agent, capacity=max(sizes.stored), seed=seed)
    measured, _ = contest.measure(cells, agent, {}, sizes.rounds, sizes.round_seconds)
    return UpdateSamples(cells=[], matmuls=[], stored=measured)


def _agent(cell: UpdateCell, capacity: int, seed: int) -> Any:
    # Imported here, as the process must be bound to its cores first.
    from bench.core import precisions, synthetic

    precisions.use(cell.backend, "float32")
    return synthetic.agent(
        cell.backend,
        batch_size=cell.batch,
        width=cell.width,
        stored=cell.stored,
        capacity=capacity,
        gradient_steps=cell.gradient_steps,
        execution=cell.execution,
        seed=seed,
    )


SWEEP = runner.Sweep(UpdateSamples, plan)
main, stages, estimated_seconds = SWEEP.main, SWEEP.stages, SWEEP.estimated_seconds
