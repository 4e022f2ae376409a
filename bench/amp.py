"""Gradient steps by width, batch, precision and backend: speed, memory, and the error against float64: `python -m bench.amp`.

Each backend and precision has a process of its own, since the libraries keep a precision for the whole process; the processes take turns,
and one waits while another is timed. A further precision is a line of `bench/precisions.py`.
"""

import multiprocessing
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

import tyro
from rich.console import Console

from bench import machine, sweep, timing
from bench.amp_worker import DoesNotFit, Errors, Memory, Ready, Size, serve
from bench.flops import update_flops
from bench.precisions import PRECISIONS
from bench.record import AmpCell, AmpSamples, Timing
from bench.update import BATCHES, GFLOPS, STORED, WIDTHS

DOES_NOT_FIT = "does not fit the memory"
LET_GO_SECONDS = 10.0
"""How long a process may take to end."""
ORACLE_GFLOPS = 20.0
"""For the estimate: of a core in float64."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What a preset measures."""

    batches: tuple[int, ...]
    widths: tuple[int, ...]
    gradient_steps: int
    """Of one call of `agent.update`."""
    rounds: int
    round_seconds: float
    largest_flops: float
    """Sizes whose gradient step needs more are left out."""


PRESETS: dict[sweep.Preset, Sizes] = {
    "smoke": Sizes(batches=(64,), widths=(64,), gradient_steps=2, rounds=2, round_seconds=0.05, largest_flops=1e12),
    "cpu": Sizes(batches=(256, 1_024, 4_096), widths=(256, 1_024), gradient_steps=2, rounds=5, round_seconds=0.3, largest_flops=40e9),
    "gpu": Sizes(batches=BATCHES, widths=WIDTHS, gradient_steps=16, rounds=5, round_seconds=0.15, largest_flops=1e15),
}


class Contender(Protocol):
    """A backend in a precision, in a process of its own."""

    def ask(self, method: str, *arguments: Any) -> Any:
        """The answer of a method of `amp_worker.Worker`; `DoesNotFit` where the memory does not suffice."""
        ...


def main(
    *, preset: sweep.Preset | None = None, threads: int | None = None, seed: int = 0, results: Path | None = None, dry_run: bool = False
) -> int:
    """Measure every size of a preset in every precision of the device, and write the record.

    Args:
        preset: smoke (under a minute), cpu or gpu (every size); unless told otherwise, cpu or gpu, as the machine is.
        threads: cores that the processes are bound to; unless told otherwise, all.
        seed: of weights and transitions.
        results: folder for the record; unless told otherwise results/amp, for smoke runs/smoke/amp.
        dry_run: print the plan, and stop.

    Returns:
        Exit status: 0, or 130 after Ctrl-C.
    """
    preset = preset or sweep.default_preset()
    threads = sweep.bind(threads)
    sizes = PRESETS[preset]
    console = Console(soft_wrap=True)
    console.print(f"Gradient steps by precision ({', '.join(precisions())}), preset {preset}, {threads} core(s)")
    left_out = [size for size in all_sizes(sizes) if flops(size) > sizes.largest_flops]
    for batch, width in left_out:
        console.print(f"  left out: batch {batch}, width {width}: {flops(Size(batch, width)) / 1e9:,.0f} GFLOP a gradient step")
    run = sweep.Run(
        suite="amp",
        name=sweep.run_name("amp", preset, threads),
        configuration={
            "preset": preset,
            "precisions": list(precisions()),
            "batches": list(sizes.batches),
            "widths": list(sizes.widths),
            "left_out": [list(size) for size in left_out],
            "gradient_steps": sizes.gradient_steps,
            "stored": STORED,
            "rounds": sizes.rounds,
            "round_seconds": sizes.round_seconds,
            "threads": threads,
        },
        seed=seed,
        results=results or sweep.default_results("amp", preset),
    )
    with Processes(sizes, seed) as processes:
        todo = list(pieces(sizes, threads, processes))
        return sweep.execute(run, todo, AmpSamples(cells=[]), console=console, dry_run=dry_run)


def estimated_seconds(preset: sweep.Preset, threads: int) -> float:
    """How long a preset will take."""
    with Processes(PRESETS[preset], 0) as processes:
        return sum(piece.seconds for piece in pieces(PRESETS[preset], threads, processes))


def precisions() -> tuple[str, ...]:
    """Those that the machine has, float32 first."""
    found = machine.find_accelerator() is not None
    return tuple(name for name, precision in PRECISIONS.items() if found or not precision.cuda_only)


def all_sizes(sizes: Sizes) -> list[Size]:
    """Smallest work first, so that most sizes show the peak of their own memory."""
    return sorted((Size(batch, width) for width in sizes.widths for batch in sizes.batches), key=flops)


def flops(size: Size) -> int:
    """Operations of one gradient step at HalfCheetah's shapes."""
    return update_flops(observation=17, action=6, hidden=(size.width, size.width), batch=size.batch)


def pieces(sizes: Sizes, threads: int, processes: "Processes") -> Iterator[sweep.Piece[AmpSamples]]:
    """All precisions and backends of a size."""
    kind = "gpu" if machine.find_accelerator() else "cpu"
    speed = 1e9 * (GFLOPS["gpu"] if kind == "gpu" else GFLOPS["cpu_core"] * threads)
    contenders = len(sweep.BACKENDS) * len(precisions())
    for size in all_sizes(sizes):
        if flops(size) <= sizes.largest_flops:
            a_round = max(sizes.round_seconds, sizes.gradient_steps * flops(size) / speed)
            oracle = flops(size) / (1e9 * ORACLE_GFLOPS * threads)
            yield sweep.Piece(
                name=f"batch {size.batch}, width {size.width}",
                seconds=contenders * (4 + oracle + (sizes.rounds + 2) * a_round),
                measure=partial(measure, size, sizes, processes),
            )


def measure(size: Size, sizes: Sizes, processes: "Processes") -> AmpSamples:
    """Every backend and precision at a size, in turn."""
    cells: list[AmpCell] = []
    ready: dict[int, tuple[Contender, Ready]] = {}
    for (backend, precision), contender in processes.contenders("speed").items():
        cell = AmpCell(
            backend=backend,
            precision=precision,
            batch=size.batch,
            width=size.width,
            chosen=None,
            gradient_steps=sizes.gradient_steps,
            timings=[],
            compile_seconds=None,
            memory_bytes=None,
            memory_of=None,
            loss_error=None,
            gradient_error=None,
            missing=None,
        )
        if isinstance(contender, str):
            cell = replace(cell, missing=contender)
        elif isinstance(answer := contender.ask("prepare", size), DoesNotFit):
            cell = replace(cell, missing=DOES_NOT_FIT)
        else:
            ready[len(cells)] = contender, answer
            cell = replace(cell, chosen=answer.chosen)
        cells.append(cell)
    timings: dict[int, list[Timing]] = {number: [] for number in ready}
    for _ in range(sizes.rounds):
        for number, found in timings.items():
            found.append(ready[number][0].ask("round"))
    for number, (contender, answer) in ready.items():
        memory: Memory = contender.ask("finish")
        judge = processes.contenders("error")[cells[number].backend, cells[number].precision]
        assert not isinstance(judge, str), "a backend that has been timed can be imported"
        errors = judge.ask("errors", size)
        if isinstance(errors, DoesNotFit):
            errors = Errors(None, None)
        cells[number] = replace(
            cells[number],
            timings=timings[number],
            compile_seconds=timing.compile_seconds(answer.first_seconds, sizes.gradient_steps, timings[number]),
            memory_bytes=memory.bytes,
            memory_of=memory.of,
            loss_error=errors.loss,
            gradient_error=errors.gradient,
        )
    return AmpSamples(cells=cells)


class Processes:
    """The processes of the run, started when the first size is measured, and ended with it."""

    def __init__(self, sizes: Sizes, seed: int) -> None:
        self._arguments = (sizes.gradient_steps, STORED, sizes.round_seconds, seed)
        self._remotes: list[Remote] = []
        self._contenders: dict[str, dict[tuple[str, str], Contender | str]] = {}

    def __enter__(self) -> "Processes":
        return self

    def __exit__(self, *_: object) -> None:
        for remote in self._remotes:
            remote.close()

    def contenders(self, purpose: Literal["speed", "error"]) -> dict[tuple[str, str], Contender | str]:
        """(backend, precision) -> its process, or why there is none.

        Errors have processes apart: what float64 needs shall not stand in the memory of float32.
        """
        if purpose not in self._contenders:
            missing = sweep.missing_backends()
            self._contenders[purpose] = {
                (backend, precision): missing.get(backend) or self._start(backend, precision)
                for precision in precisions()
                for backend in sweep.BACKENDS
            }
        return self._contenders[purpose]

    def _start(self, backend: str, precision: str) -> "Remote":
        self._remotes.append(Remote(backend, precision, *self._arguments))
        return self._remotes[-1]


class Remote:
    """A backend in a precision, in a process at the other end of a pipe."""

    def __init__(self, *arguments: Any) -> None:
        """`arguments`: of `amp_worker.serve`, behind the pipe."""
        self._arguments = arguments
        self._start()

    def _start(self) -> None:
        self._connection, there = multiprocessing.Pipe()
        # Spawned, not forked: a fork copies the locks of the libraries' threads.
        self._process = multiprocessing.get_context("spawn").Process(target=serve, args=(there, *self._arguments), daemon=True)
        self._process.start()
        there.close()

    def ask(self, method: str, *arguments: Any) -> Any:
        """The answer of a method of `amp_worker.Worker`.

        Raises:
            RuntimeError: if the process ends in place of an answer, unless it is at a size's start and the system has killed it, as it does
                when memory runs out: that is `DoesNotFit`, and another process takes its place.
        """
        try:
            self._connection.send((method, *arguments))
            return self._connection.recv()
        except (EOFError, OSError) as error:
            self._process.join(LET_GO_SECONDS)
            if self._process.exitcode != -signal.SIGKILL or method not in ("prepare", "errors"):
                raise RuntimeError(
                    f"the process of {self._arguments[:2]} ended at {method}{arguments}: what it printed says why"
                ) from error
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


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
