"""Gradient steps of a recurrent agent beside a feed-forward one with as many rows, and their limits: `python -m bench recurrent`.

No environment: the memories are filled with synthetic transitions of HalfCheetah's shapes. All contenders (torch and JAX, each fused and
plain, feed-forward and by length of the sequences) and the products of two matrices take turns, so that a machine that slows down slows
all of them down. The products are square ones, and those of the recurrence: the hidden states of a batch times their weights.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from bench.core import contest, machine, runner
from bench.core.flops import recurrent_update_flops, update_flops
from bench.core.stage import Preset
from bench.suites.recurrent.samples import ProductCell, RecurrentCell, RecurrentSamples

KIND, GATES, SIZE = "gru", 3, 128
"""The cell."""
WIDTH = 128
"""Width of both hidden layers above it, and of the feed-forward agent's."""
ROWS = 1_024
"""Rows of a gradient step: transitions, or sequences times their steps."""
SQUARE = 256
"""Rows and columns of the square matrices."""
STORED = 20_000
"""Transitions in each memory."""

STEPS_PER_SECOND = {"cpu": 8.0, "gpu": 100.0}
"""For the estimate: gradient steps of the slowest contender."""
SECONDS_PER_SETUP = {"cpu": 5.0, "gpu": 15.0}
"""For the estimate: making and compiling a contender."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """The sizes that a preset measures."""

    lengths: tuple[int, ...]
    """Steps of a sequence; each divides `ROWS`."""
    gradient_steps: int
    """In a fused call."""
    rounds: int
    round_seconds: float
    """A round takes at least so long, and at least one call."""


PRESETS: dict[Preset, Sizes] = {
    "smoke": Sizes(lengths=(4,), gradient_steps=2, rounds=2, round_seconds=0.05),
    "cpu": Sizes(lengths=(8, 32), gradient_steps=2, rounds=7, round_seconds=0.3),
    "gpu": Sizes(lengths=(8, 32, 128), gradient_steps=16, rounds=7, round_seconds=0.3),
}


def plan(preset: Preset, threads: int, seed: int) -> runner.Plan[RecurrentSamples]:
    """Plan a preset on so many cores."""
    sizes = PRESETS[preset]
    return runner.Plan(
        title="Gradient steps per second of recurrent agents",
        configuration={
            "recurrent": KIND,
            "recurrent_size": SIZE,
            "hidden": [WIDTH, WIDTH],
            "rows": ROWS,
            "lengths": list(sizes.lengths),
            "stored": STORED,
            "rounds": sizes.rounds,
            "round_seconds": sizes.round_seconds,
            "dtype": "float32",
            "matmul_precision": "highest",
            "observation": 17,
            "action": 6,
        },
        pieces=[runner.Piece(name="all contenders in turn", seconds=_seconds(sizes), measure=partial(measure, sizes, seed))],
    )


def _seconds(sizes: Sizes) -> float:
    kind = "gpu" if machine.find_accelerator() else "cpu"
    contenders = len(cells(sizes))
    a_round = max(sizes.round_seconds, sizes.gradient_steps / STEPS_PER_SECOND[kind])
    return contenders * (SECONDS_PER_SETUP[kind] + (sizes.rounds + 2) * a_round)


def measure(sizes: Sizes, seed: int) -> RecurrentSamples:
    """Measure all contenders and the products, in turn."""
    shapes = [(ROWS // length, SIZE, GATES * SIZE) for length in sizes.lengths] + [(SQUARE, SQUARE, SQUARE)]
    products = {
        (backend, *shape): partial(contest.product, backend, *shape)
        for backend in runner.BACKENDS
        for shape in shapes
        if backend not in runner.missing_backends()
    }
    measured, timings = contest.measure(cells(sizes), partial(_agent, seed=seed), products, sizes.rounds, sizes.round_seconds)
    beside = [
        ProductCell(backend=backend, rows=rows, inner=inner, columns=columns, timings=found)
        for (backend, rows, inner, columns), found in timings.items()
    ]
    return RecurrentSamples(cells=measured, products=beside)


def cells(sizes: Sizes) -> Sequence[RecurrentCell]:
    """Return the cells without timings: the feed-forward agents of each backend and execution, then the recurrent ones by length."""
    return [
        _cell(backend, execution, length, sizes)
        for length in (None, *sizes.lengths)
        for backend in runner.BACKENDS
        for execution in ("auto", "plain")
    ]


def _cell(backend: str, execution: str, length: int | None, sizes: Sizes) -> RecurrentCell:
    shapes: dict[str, Any] = {"observation": 17, "action": 6, "hidden": (WIDTH, WIDTH)}
    flops, recurrence, cell_steps = update_flops(**shapes, batch=ROWS), 0, 0
    if length is not None:
        flops, recurrence, cell_steps = recurrent_update_flops(
            **shapes, size=SIZE, gates=GATES, sequence_length=length, batch=ROWS // length
        )
    return RecurrentCell(
        backend=backend,
        execution=execution,
        chosen=None,
        recurrent=None if length is None else KIND,
        sequence_length=length or 1,
        batch=ROWS // (length or 1),
        gradient_steps=sizes.gradient_steps if execution == "auto" else 1,
        flops=flops,
        recurrence_flops=recurrence,
        cell_steps=cell_steps,
        timings=[],
        compile_seconds=None,
        missing=None,
    )


def _agent(cell: RecurrentCell, seed: int) -> Any:
    # Imported here, as the process must be bound to its cores first.
    from bench.core import precisions, synthetic

    precisions.use(cell.backend, "float32")
    return synthetic.agent(
        cell.backend,
        batch_size=cell.batch,
        width=WIDTH,
        stored=STORED,
        gradient_steps=cell.gradient_steps,
        execution=cell.execution,
        seed=seed,
        settings=None if cell.recurrent is None else {"sequence_length": cell.sequence_length},
        recurrent=cell.recurrent,
        recurrent_size=SIZE,
    )


SWEEP = runner.Sweep(RecurrentSamples, plan)
main, stages, estimated_seconds = SWEEP.main, SWEEP.stages, SWEEP.estimated_seconds
