"""Gradient steps by precision, width, batch, networks and backend: speed, memory, error against float64: `python -m bench amp`.

Each backend, precision and size has its own process: the libraries keep a precision for the whole process, and a process tells the peak of
its memory alone. The precisions of a backend take turns, and wait while another is timed. A further precision is a line of
`bench/core/precisions.py`.
"""

import multiprocessing
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from msgspec.structs import replace

from bench.core import machine, runner, timing
from bench.core.flops import recurrent_update_flops, update_flops
from bench.core.precisions import PRECISIONS
from bench.core.samples import Timing
from bench.core.stage import Preset
from bench.core.worker import DoesNotFit, serve
from bench.suites.amp.samples import AmpCell, AmpSamples
from bench.suites.amp.worker import SEQUENCE_LENGTH, Errors, Judge, Memory, Ready, Size, Worker

NETWORKS = (None, "gru")
"""Kinds of cell; None for feed-forward networks."""
GATES = 3
"""Gates of a GRU."""
STORED = {None: 100_000, "gru": 20_000}
"""Transitions in the memory, with a carry each for recurrent networks."""
MOST_SECONDS = 15.0
"""Seconds of its rounds after which a precision sits out the rest: so slow a one shows in fewer."""
DOES_NOT_FIT = "does not fit the memory"
LEFT_OUT = "left out, as a gradient step would take very long"
LET_GO_SECONDS = 10.0
"""Seconds that a process may take to end."""

GFLOPS = {"cpu": 40.0, "gpu": 15_000.0}
"""For the estimate: billions of operations in a second, of a core and of an accelerator."""
ORACLE_GFLOPS = 15.0
"""For the estimate: of a core in float64."""
SECONDS_PER_START = {"cpu": 2.5, "gpu": 12.0}
"""For the estimate: until the processes of a backend, or the judge's, have loaded their libraries."""
SECONDS_PER_SETUP = {("cpu", None): 1.5, ("cpu", "gru"): 3.5, ("gpu", None): 5.0, ("gpu", "gru"): 12.0}
"""For the estimate: making and compiling an agent, of a kind of networks on a kind of machine."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """The sizes that a preset measures."""

    batches: tuple[int, ...]
    widths: tuple[int, ...]
    gradient_steps: int
    """Most gradient steps of one call of `agent.update`."""
    call_flops: float
    """Operations of a call, which takes at least 2 gradient steps."""
    rounds: int
    round_seconds: float
    largest_flops: float
    """Sizes whose gradient step needs more are left out."""
    slow: Mapping[tuple[str, str], float] = field(default_factory=dict)
    """(backend, precision) known to be slow -> operations of the largest gradient step that is measured."""
    largest_truth_flops: float = float("inf")
    """Operations of the largest gradient step whose errors are measured, which the judge takes in NumPy."""

    def steps(self, size: Size) -> int:
        """Return the gradient steps of a call."""
        return max(2, min(self.gradient_steps, int(self.call_flops / flops(size))))


PRESETS: dict[Preset, Sizes] = {
    "smoke": Sizes(batches=(64,), widths=(64,), gradient_steps=2, call_flops=1e9, rounds=2, round_seconds=0.05, largest_flops=1e12),
    "cpu": Sizes(
        batches=(256, 1_024),
        widths=(256, 1_024),
        gradient_steps=2,
        call_flops=1e9,
        rounds=5,
        round_seconds=0.3,
        largest_flops=40e9,
        # Without the instructions for it, torch takes 30 to 100 times as long for a product in float16.
        slow={("torch", "float16"): 1e9},
    ),
    "gpu": Sizes(
        batches=(256, 1_024, 4_096, 16_384),
        widths=(256, 512, 1_024, 2_048, 4_096),
        gradient_steps=16,
        call_flops=4e12,
        rounds=5,
        round_seconds=0.15,
        # All but the recurrent networks of 4,096 with a batch of 16,384: four agents of that size fill any device's memory.
        largest_flops=12e12,
        largest_truth_flops=3e12,
    ),
}


class Contender(Protocol):
    """A `Worker` or the `Judge`, in its own process."""

    def ask(self, method: str, *arguments: Any) -> Any:
        """Call a method; the answer is `DoesNotFit` where the memory does not suffice."""
        ...

    def close(self) -> None:
        """End the process."""
        ...


def plan(preset: Preset, threads: int, seed: int) -> runner.Plan[AmpSamples]:
    """Plan a preset on so many cores."""
    sizes = PRESETS[preset]
    left_out = [size for size in all_sizes(sizes) if flops(size) > sizes.largest_flops]
    slow = [
        f"left out: {precision} of {backend} where a gradient step needs more than {largest / 1e9:,.0f} GFLOP"
        for (backend, precision), largest in sizes.slow.items()
    ]
    return runner.Plan(
        title=f"Gradient steps by precision ({', '.join(precisions())})",
        configuration={
            "precisions": list(precisions()),
            "networks": list(NETWORKS),
            "sequence_length": SEQUENCE_LENGTH,
            "batches": list(sizes.batches),
            "widths": list(sizes.widths),
            "left_out": [named(size) for size in left_out],
            "gradient_steps": sizes.gradient_steps,
            "stored": list(STORED.values()),
            "rounds": sizes.rounds,
            "round_seconds": sizes.round_seconds,
        },
        pieces=list(pieces(sizes, threads, seed)),
        notes=[*(f"left out: {named(size)}: {flops(size) / 1e9:,.0f} GFLOP a gradient step" for size in left_out), *slow],
    )


def precisions() -> tuple[str, ...]:
    """Return the precisions that the machine has, float32 first."""
    found = machine.find_accelerator() is not None
    return tuple(name for name, precision in PRECISIONS.items() if found or not precision.cuda_only)


def all_sizes(sizes: Sizes) -> list[Size]:
    """Return all sizes: feed-forward networks first, the smallest work first."""
    return [
        size
        for recurrent in NETWORKS
        for size in sorted((Size(batch, width, recurrent) for width in sizes.widths for batch in sizes.batches), key=flops)
    ]


def flops(size: Size) -> int:
    """Count the operations of one gradient step at HalfCheetah's shapes."""
    shapes: dict[str, Any] = {"observation": 17, "action": 6, "hidden": (size.width, size.width)}
    if size.recurrent is None:
        return update_flops(**shapes, batch=size.batch)
    shapes |= {"size": size.width, "gates": GATES, "sequence_length": size.sequence_length}
    return recurrent_update_flops(**shapes, batch=size.batch // size.sequence_length).total


def named(size: Size) -> str:
    """Name a size in words."""
    return f"{'feed-forward' if size.recurrent is None else size.recurrent.upper()}, batch {size.batch:,}, width {size.width:,}"


def pieces(sizes: Sizes, threads: int, seed: int) -> Iterator[runner.Piece[AmpSamples]]:
    """Yield a piece for each size, with all precisions and backends."""
    for size in all_sizes(sizes):
        if flops(size) <= sizes.largest_flops:
            yield runner.Piece(name=named(size), seconds=_seconds(size, sizes, threads), measure=partial(measure, size, sizes, seed))


def _seconds(size: Size, sizes: Sizes, threads: int) -> float:
    kind = "gpu" if machine.find_accelerator() else "cpu"
    speed = 1e9 * GFLOPS[kind] * (threads if kind == "cpu" else 1)
    a_round = max(sizes.round_seconds, sizes.steps(size) * flops(size) / speed)
    measured = [
        (backend, precision)
        for backend in runner.BACKENDS
        for precision in precisions()
        if flops(size) <= sizes.slow.get((backend, precision), sizes.largest_flops)
    ]
    slow = sum(contender in sizes.slow for contender in measured)
    timed = (sizes.rounds + 2) * a_round * (len(measured) - slow) + 2 * MOST_SECONDS * slow
    truth = flops(size) / (1e9 * ORACLE_GFLOPS * threads) if flops(size) <= sizes.largest_truth_flops else 0.0
    # The judge makes each agent again.
    return 3 * SECONDS_PER_START[kind] + 2 * len(measured) * SECONDS_PER_SETUP[kind, size.recurrent] + timed + truth


Start = Callable[[Callable[[], Any]], Contender]
"""Starts a process that makes an object with the given function."""


def measure(size: Size, sizes: Sizes, seed: int, start: Start | None = None) -> AmpSamples:
    """Measure every backend and precision at a size: the precisions of a backend in turn; then the errors of all."""
    start = start or Remote
    cells = [cell for backend in runner.BACKENDS for cell in _timed(backend, size, sizes, seed, start)]
    if flops(size) <= sizes.largest_truth_flops:
        with closing(start(partial(Judge, seed=seed))) as judge:
            cells = [cell if cell.missing else _judged(cell, size, judge) for cell in cells]
    return AmpSamples(cells=cells)


def _timed(backend: str, size: Size, sizes: Sizes, seed: int, start: Start) -> list[AmpCell]:
    """Time the precisions of a backend; their errors are missing."""
    steps = sizes.steps(size)
    make = partial(Worker, backend, stored=STORED[size.recurrent], round_seconds=sizes.round_seconds, seed=seed)
    cells: list[AmpCell] = []
    contenders: dict[int, Contender] = {}
    with ExitStack() as running:
        for number, precision in enumerate(precisions()):
            why = runner.missing_backends().get(backend)
            if flops(size) > sizes.slow.get((backend, precision), sizes.largest_flops):
                why = why or LEFT_OUT
            if why is None:
                contenders[number] = running.enter_context(closing(start(partial(make, precision))))
            cells.append(_cell(backend, precision, size, steps, why))
        ready: dict[int, Ready] = {}
        for number, contender in contenders.items():
            answer = contender.ask("prepare", size, steps)
            if isinstance(answer, DoesNotFit):
                cells[number] = replace(cells[number], missing=DOES_NOT_FIT)
            else:
                ready[number] = answer
        timings: dict[int, list[Timing]] = {number: [] for number in ready}
        for _ in range(sizes.rounds):
            for number, found in timings.items():
                if sum(timing.seconds for timing in found) < MOST_SECONDS:
                    found.append(contenders[number].ask("round"))
        for number, answer in ready.items():
            memory: Memory = contenders[number].ask("memory")
            cells[number] = replace(
                cells[number],
                chosen=answer.chosen,
                timings=timings[number],
                compile_seconds=timing.compile_seconds(answer.first_seconds, steps, timings[number]),
                memory_bytes=memory.bytes,
                memory_of=memory.of,
            )
    return cells


def _cell(backend: str, precision: str, size: Size, steps: int, missing: str | None) -> AmpCell:
    return AmpCell(
        backend=backend,
        precision=precision,
        recurrent=size.recurrent,
        sequence_length=size.sequence_length,
        batch=size.batch,
        width=size.width,
        chosen=None,
        gradient_steps=steps,
        timings=[],
        compile_seconds=None,
        memory_bytes=None,
        memory_of=None,
        loss_error=None,
        gradient_error=None,
        missing=missing,
    )


def _judged(cell: AmpCell, size: Size, judge: Contender) -> AmpCell:
    errors: Errors | DoesNotFit = judge.ask("errors", cell.backend, cell.precision, size)
    return cell if isinstance(errors, DoesNotFit) else replace(cell, loss_error=errors.loss, gradient_error=errors.gradient)


class Remote:
    """A `Worker` or the `Judge`, in a process at the other end of a pipe."""

    def __init__(self, make: Callable[[], Any]) -> None:
        """`make`: makes it, in the process."""
        self._make = make
        self._start()

    def _start(self) -> None:
        self._connection, there = multiprocessing.Pipe()
        # Spawned, not forked: a fork copies the locks of the libraries' threads.
        self._process = multiprocessing.get_context("spawn").Process(target=serve, args=(there, self._make), daemon=True)
        self._process.start()
        there.close()

    def ask(self, method: str, *arguments: Any) -> Any:
        """The answer of a method.

        Raises:
            RuntimeError: if the process ends in place of an answer, unless it is at an agent's making and the system has killed it, as it
                does when memory runs out: that is `DoesNotFit`, and another process takes its place.
        """
        try:
            self._connection.send((method, *arguments))
            return self._connection.recv()
        except (EOFError, OSError) as error:
            self._process.join(LET_GO_SECONDS)
            if self._process.exitcode != -signal.SIGKILL or method not in ("prepare", "errors"):
                raise RuntimeError(f"the process of {self._make} ended at {method}{arguments}: what it printed says why") from error
            self.close()
            self._start()
            return DoesNotFit()

    def close(self) -> None:
        """End the process."""
        self._connection.close()
        self._process.join(LET_GO_SECONDS)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


SWEEP = runner.Sweep(AmpSamples, plan)
main, stages, estimated_seconds = SWEEP.main, SWEEP.stages, SWEEP.estimated_seconds
