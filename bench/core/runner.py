"""The runner of suites that measure many sizes: a plan with its time, a progress bar, samples that survive a stop, and the record."""

import gc
import hashlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Generic

import msgspec
import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

import sacref
from bench.core import machine, record, stage, timing
from bench.core.record import SamplesT
from bench.core.stage import Choices, Preset, Stage

BACKENDS = ("torch", "jax")
PARTIAL = machine.ROOT / "runs" / "bench"
"""Folder of the samples of unfinished runs."""


@dataclass(frozen=True, kw_only=True)
class Piece(Generic[SamplesT]):
    """A part of a run; a stop loses the current piece alone."""

    name: str
    seconds: float
    """Estimated."""
    measure: Callable[[], SamplesT]


@dataclass(frozen=True, kw_only=True)
class Run:
    """The record of a run without its samples."""

    name: str
    configuration: dict[str, Any]
    """Everything that was chosen; JSON values."""
    seed: int
    results: Path
    """Folder of the suite's records."""
    on_cpu: bool = False
    """True if it computes on the CPU also where there is an accelerator."""


def default_preset() -> Preset:
    """Return the preset that fits the machine."""
    return "gpu" if machine.find_accelerator() else "cpu"


def default_results(suite: str, preset: Preset, only: Sequence[str] = ()) -> Path:
    """Return the folder of a suite's records; that of smoke runs and of parts, which are no results, stays out of the report."""
    runs = machine.ROOT / "runs"
    return (runs / "smoke" if preset == "smoke" else runs / "part" if only else machine.ROOT / "results") / suite


def bind(threads: int | None) -> int:
    """Bind the process to `threads` cores, None for all, before NumPy, torch or JAX is imported.

    Returns:
        Their number.
    """
    cores = machine.available_cores()
    threads = len(cores) if threads is None else threads
    if not 1 <= threads <= len(cores):
        raise SystemExit(f"--threads is {threads}, expected 1 to {len(cores)}")
    os.environ.update(machine.threads(threads))
    machine.keep_to_cores(cores[:threads])
    return threads


def run_name(suite: str, preset: Preset, threads: int) -> str:
    """Return the name of a run and of its file."""
    return f"{suite}-{preset}-{threads}core{'s' if threads > 1 else ''}"


def missing_backends() -> dict[str, str]:
    """Return the backends that cannot be imported, each with the reason."""
    missing = {}
    for backend in BACKENDS:
        try:
            __import__(f"sacref.{backend}")
        except ImportError as error:
            missing[backend] = str(error)
    return missing


def first_accelerator(missing: dict[str, str]) -> str | None:
    """Return the device that the first available backend computes on; None for the CPU."""
    return next((machine.accelerator(backend) for backend in BACKENDS if backend not in missing), None)


def does_not_fit(error: Exception) -> bool:
    """Return True if an allocation failed, on the host or on the device. The libraries share no class of exception."""
    said = f"{type(error).__name__}: {error}".lower()
    return isinstance(error, MemoryError) or any(sign in said for sign in ("out of memory", "resource_exhausted", "can't allocate memory"))


def execute(
    run: Run, pieces: Sequence[Piece[SamplesT]], kind: type[SamplesT], *, console: Console, dry_run: bool, unfinished: Path = PARTIAL
) -> int:
    """Print the plan, measure what no earlier start has measured, and write the record.

    Args:
        run: the record without its samples.
        pieces: in order.
        kind: type of the samples.
        console: for plan and progress.
        dry_run: stop after the plan.
        unfinished: folder for the samples until the record is written.

    Returns:
        Exit status: 0, or 130 after Ctrl-C.
    """
    commit, dirty = machine.source()
    where = machine.hardware(machine.find_accelerator())
    kept = Kept(unfinished, run, kind, [commit, dirty, msgspec.to_builtins(where), machine.libraries()])
    todo = [piece for piece in pieces if piece.name not in kept.samples]
    for piece in pieces:
        console.print(
            f"  {piece.name}: " + ("measured by an earlier start" if piece.name in kept.samples else f"about {timing.said(piece.seconds)}")
        )
    console.print(f"{run.name}: {len(todo)} of {len(pieces)} to do, together about {timing.said(sum(piece.seconds for piece in todo))}")
    if dry_run:
        return 0
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    try:
        # Drawn between pieces: a thread that draws would slow down the measurement.
        with Progress(*columns, console=console, auto_refresh=False) as progress:
            task = progress.add_task(run.name, total=len(pieces), completed=len(pieces) - len(todo))
            for piece in todo:
                progress.update(task, description=piece.name, refresh=True)
                kept.add(piece.name, piece.measure())
                release()
                progress.advance(task)
            progress.refresh()
    except KeyboardInterrupt:
        console.print(f"Interrupted: the samples so far are kept in {kept.path}; the same command goes on from there.")
        return 130
    measured_on = machine.hardware(None if run.on_cpu else first_accelerator(missing_backends()))
    path = record.write_new(
        run.results,
        record.make(
            merge([kept.samples[piece.name] for piece in pieces]),
            run=run.name,
            source=(commit, dirty),
            configuration=run.configuration,
            hardware=measured_on,
            libraries=machine.libraries(),
            seed=run.seed,
        ),
    )
    kept.path.unlink(missing_ok=True)
    console.print(f"-> {path}")
    return 0


def release() -> None:
    """Free the allocations of the last size: agents hold their compiled functions in cycles, and torch keeps memory that JAX may need."""
    gc.collect()
    torch: Any = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


class Kept(Generic[SamplesT]):
    """The samples of an unfinished run, in a file that is named after the configuration, source and machine."""

    def __init__(self, folder: Path, run: Run, kind: type[SamplesT], circumstances: Any) -> None:
        key = json.dumps([sacref.__version__, kind.suite, run.name, run.configuration, run.seed, circumstances], sort_keys=True)
        self.path = folder / kind.suite / f"{run.name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"
        written: dict[str, Any] = json.loads(self.path.read_text(encoding="utf-8")) if self.path.exists() else {}
        self.samples: dict[str, SamplesT] = {name: msgspec.convert(value, kind) for name, value in written.items()}

    def add(self, name: str, samples: SamplesT) -> None:
        """Keep the samples of a piece."""
        self.samples[name] = samples
        self.path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(msgspec.to_builtins(self.samples), allow_nan=False)
        temporary = self.path.with_suffix(".part")
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(self.path)


def merge(parts: Sequence[SamplesT]) -> SamplesT:
    """Concatenate the lists of all parts."""
    kind = type(parts[0])
    return kind(**{name: [sample for part in parts for sample in getattr(part, name)] for name in kind.__struct_fields__})


@dataclass(frozen=True, kw_only=True)
class Plan(Generic[SamplesT]):
    """A run of a suite on some cores."""

    title: str
    configuration: dict[str, Any]
    """Everything that was chosen, but for preset and cores; JSON values."""
    pieces: Sequence[Piece[SamplesT]]
    notes: Sequence[str] = ()
    """Further lines of the plan, such as the sizes that are left out."""
    on_cpu: bool = False
    """True if it computes on the CPU also where there is an accelerator."""


@dataclass(frozen=True)
class Sweep(Generic[SamplesT]):
    """The command of a suite that measures the sizes of a preset."""

    kind: type[SamplesT]
    plan: Callable[[Preset, int, int], Plan[SamplesT]]
    """Called with the preset, the number of cores, and the seed."""
    threads: int | None = None
    """Number of cores unless told otherwise; None for all."""

    def main(
        self,
        *,
        preset: Preset | None = None,
        only: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME...")] = (),
        threads: int | None = None,
        seed: int = 0,
        results: Path | None = None,
        dry_run: bool = False,
    ) -> int:
        """Measure every size of a preset, and write the record. A stopped run goes on where it was.

        Args:
            preset: smoke (a minute or two), cpu (minutes) or gpu (larger sizes); None for cpu or gpu, as the machine is.
            only: these pieces of the plan, in this order; all, unless given.
            threads: cores that the processes are bound to; None for the suite's own number, which is all for most suites.
            seed: of weights, transitions and environments.
            results: folder for the record; None for that of the suite in results/, in runs/smoke/ with the preset smoke, and in runs/part/
                with --only.
            dry_run: print the plan with its time, and stop.

        Returns:
            Exit status: 0, or 130 after Ctrl-C.
        """
        preset = preset or default_preset()
        threads = bind(self.threads if threads is None else threads)
        plan = self.plan(preset, threads, seed)
        by_name = {piece.name: piece for piece in plan.pieces}
        if unknown := [name for name in only if name not in by_name]:
            raise SystemExit(f"--only names {'; '.join(unknown)}, expected some of: {'; '.join(by_name)}")
        chosen = [by_name[name] for name in only] or plan.pieces
        console = Console(soft_wrap=True)
        console.print(f"{plan.title}, preset {preset}, {threads} core(s)")
        for note in plan.notes:
            console.print(f"  {note}")
        run = Run(
            name=run_name(self.kind.suite, preset, threads) + ("-part" if only else ""),
            configuration={"preset": preset, **plan.configuration, "threads": threads, **({"only": list(only)} if only else {})},
            seed=seed,
            results=results or default_results(self.kind.suite, preset, only),
            on_cpu=plan.on_cpu,
        )
        return execute(run, chosen, self.kind, console=console, dry_run=dry_run)

    def estimated_seconds(self, preset: Preset, threads: int) -> float:
        """Estimate the seconds of a preset on so many cores."""
        return sum(piece.seconds for piece in self.plan(preset, threads, 0).pieces)

    def stages(self, choices: Choices) -> list[Stage]:
        """Return the suite's part of `python -m bench`."""
        suite, cores = self.kind.suite, self.threads or len(machine.available_cores())
        plan, results = self.plan(choices.preset, cores, 0), choices.results / suite
        here = machine.slug(machine.hardware(None if plan.on_cpu else machine.find_accelerator()))
        found = recorded(results, run_name(suite, choices.preset, cores), here)
        return [
            Stage(
                name=f"{suite}, preset {choices.preset}",
                seconds=0.0 if found else sum(piece.seconds for piece in plan.pieces),
                run=partial(stage.module, "bench", suite, "--preset", choices.preset, "--results", str(results)),
            )
        ]


def recorded(results: Path, name: str, here: str) -> Path | None:
    """Return the newest record of a run by this version on this kind of machine; None if there is none."""
    for path in sorted(results.glob(f"*-{here}/{name}.json"), reverse=True):
        if record.version(path) == sacref.__version__:
            return path
    return None
