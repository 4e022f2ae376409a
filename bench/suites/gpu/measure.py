"""All that a GPU is wanted for, in order of worth, within a budget of minutes: `python -m bench gpu`.

Each piece is a command of another suite. A piece that reaches its budget is stopped as by Ctrl-C: what it measured is kept, the next piece
begins, and the next start of this command goes on with it. Where a job may take ten minutes at most, start it again and again with
`--minutes 9`. `--smoke` rehearses all of it, with tiny sizes, on any machine.
"""

import contextlib
import hashlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console

import sacref
from bench.core import machine
from bench.core.runner import BACKENDS, PARTIAL

STOP_SECONDS = 30.0
"""Seconds before the end of its budget at which a piece is asked to stop: a population then writes its checkpoints."""
SHORTEST_SECONDS = 2 * STOP_SECONDS
"""A piece is not begun with less time."""
RUNS = machine.ROOT / "runs" / "learning"
"""Directories of the training runs, whose records are written at their end."""
Outcome = Literal["done", "stopped", "failed"]

UPDATES = [
    f"batch {batch}, width {width}" for batch, width in ((256, 256), (64, 256), (4096, 256), (256, 1024), (4096, 1024), (16384, 1024))
]
AMP = [f"feed-forward, batch {batch}, width {width}" for batch, width in (("256", "256"), ("4,096", "1,024"), ("16,384", "4,096"))]
"""Pieces of their suites' plans: all of them would take hours."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A part of the day."""

    name: str
    about: str
    minutes: float
    """Longest duration."""
    command: tuple[str, ...]
    """Arguments of `python -m bench`, without the folder of the records."""


def pieces(*, smoke: bool) -> list[Piece]:
    """Return the pieces in order."""
    preset = ("--preset", "smoke" if smoke else "gpu")
    size = ("--preset", "smoke" if smoke else "medium")
    learning = ("learning", "smoke", "--backends", "jax") if smoke else ("learning", "halfcheetah-1m", "--backends", "jax", "torch")
    return [
        Piece(name="parity", about="backends and oracle, float32 without TF32", minutes=2.5, command=("parity", *preset)),
        Piece(name="executions", about="fused beside plain: SAC, SAC_RNN, AMP, a population", minutes=3.0, command=("executions", *preset)),
        Piece(name="host", about="host work of a step by part, beside peers", minutes=3.0, command=("host", *preset)),
        Piece(
            name="throughput", about="strict steps per second on HalfCheetah-v5, beside peers", minutes=3.0, command=("throughput", *size)
        ),
        Piece(name="update", about="gradient steps by batch and width", minutes=3.0, command=("update", *preset, *_only(UPDATES, smoke))),
        Piece(name="population", about="agents together: 1, 2, 5, 10, 20, 50", minutes=4.0, command=("population", *preset)),
        Piece(name="amp", about="precisions by batch and width", minutes=4.0, command=("amp", *preset, *_only(AMP, smoke))),
        Piece(name="learning", about="ten seeds of HalfCheetah-v5, for as long as is left", minutes=8.5, command=learning),
    ]


def _only(names: Sequence[str], smoke: bool) -> tuple[str, ...]:
    return () if smoke else ("--only", *names)


def main(
    *,
    minutes: float = 28.0,
    piece: float = 8.5,
    smoke: bool = False,
    results: Path | None = None,
    again: bool = False,
    dry_run: bool = False,
) -> int:
    """Measure on a GPU, in order: parity, executions, host work, throughput, updates, populations, precisions, learning.

    Args:
        minutes: budget of this start; what it leaves undone, the next start does.
        piece: longest duration of a piece, in minutes. One that is stopped goes on at the end, if there is time.
        smoke: tiny sizes, on whatever machine this is; its records stay out of the results.
        results: folder of the records; None for results, and for runs/smoke with --smoke.
        again: forget what was done before.
        dry_run: print the plan, and stop.

    Returns:
        Exit status: 0; 1 if a piece failed, or there is no GPU; 130 after Ctrl-C.
    """
    console = Console(soft_wrap=True)
    accelerator = machine.find_accelerator()
    results = (results or machine.ROOT / ("runs/smoke" if smoke else "results")).absolute()
    state = State(_state_path(accelerator, smoke), again=again)
    day = Day(pieces(smoke=smoke), state, minutes=minutes, piece=piece, console=console)
    console.print(f"{accelerator or 'no GPU'}; records go to {results}; what is done is kept in {state.path}")
    day.print_plan()
    if dry_run:
        return 0
    if accelerator is None and not smoke:
        console.print("All is skipped: there is no GPU here (nvidia-smi names none). --smoke rehearses the whole on this machine.")
        return 1
    for line in computes_on():
        console.print(line)
    before = written(results)
    try:
        status = day.run(lambda command, seconds: run((*command, "--results", str(results / command[0])), seconds))
    except KeyboardInterrupt:
        console.print("Interrupted: what was measured is kept; the same command goes on from there.")
        status = 130
    for path, changed in written(results).items():
        if before.get(path) != changed:
            console.print(f"wrote {path}", markup=False)
    if not smoke:
        console.print(f"`python -m bench.report` makes the page of {results}.")
    return status


class State:
    """The pieces that are done, in a file that is named after source and machine.

    Args:
        path: of the file.
        again: forget them.
    """

    def __init__(self, path: Path, *, again: bool) -> None:
        self.path = path
        known: dict[str, Outcome] = json.loads(path.read_text(encoding="utf-8")) if path.exists() and not again else {}
        self.outcomes = known

    def add(self, name: str, outcome: Outcome) -> None:
        """Note the outcome of a piece."""
        self.outcomes[name] = outcome
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(".part")
        temporary.write_text(json.dumps(self.outcomes), encoding="utf-8")
        temporary.replace(self.path)


def _state_path(accelerator: str | None, smoke: bool) -> Path:
    # A digest of the code: a copy of the checkout may lack Git's folder.
    source = hashlib.sha256()
    for path in sorted(path for folder in ("sacref", "bench") for path in (machine.ROOT / folder).rglob("*.py")):
        source.update(path.read_bytes())
    kind = "smoke" if smoke else machine.slug(machine.hardware(accelerator))
    return PARTIAL / "gpu" / f"{sacref.__version__}-{source.hexdigest()[:10]}-{kind}.json"


Execute = Callable[[tuple[str, ...], float], Outcome]
"""`(command, seconds)`: runs a command, and stops it before so many seconds are over."""


class Day:
    """The pieces, and the time that is left for them.

    Args:
        pieces: in order.
        state: what earlier starts have done.
        minutes: budget of this start.
        piece: longest duration of a piece, in minutes.
        console: for plan and progress.
    """

    def __init__(self, pieces: Sequence[Piece], state: State, *, minutes: float, piece: float, console: Console) -> None:
        if not minutes > 0 or not piece > 0:
            raise SystemExit(f"--minutes is {minutes:g}, --piece {piece:g}, expected positive numbers of minutes")
        self._pieces, self._state, self._console = pieces, state, console
        self._minutes, self._longest = minutes, piece

    def print_plan(self) -> None:
        """Print each piece with its budget."""
        for number, piece in enumerate(self._pieces):
            known = self._state.outcomes.get(piece.name)
            budget = "done by an earlier start" if known == "done" else f"at most {self._budget(piece):g} min"
            goes_on = ", goes on where it stopped" if known == "stopped" else ""
            self._console.print(f"  {number + 1}. {piece.name} ({piece.about}): {budget}{goes_on}")
        self._console.print(f"Together at most {self._minutes:g} min; what a piece does not need is left for the later ones.")

    def run(self, execute: Execute) -> int:
        """Do the pieces that are not done; return 1 if one failed, else 0."""
        until = time.monotonic() + 60 * self._minutes
        outcomes = {piece.name: "done by an earlier start" for piece in self._pieces}
        waiting = [piece for piece in self._pieces if self._state.outcomes.get(piece.name) != "done"]
        took = dict.fromkeys(outcomes, 0.0)
        while waiting:
            piece = waiting.pop(0)
            left = until - time.monotonic()
            if left < SHORTEST_SECONDS:
                if not took[piece.name]:
                    outcomes[piece.name] = f"skipped: time is up, {max(0.0, left):.0f} s of {self._minutes:g} min are left"
                continue
            seconds = min(60 * self._budget(piece), left)
            number = self._pieces.index(piece) + 1
            self._console.rule(f"{number} of {len(self._pieces)}: {piece.name}, at most {seconds / 60:.1f} of {left / 60:.1f} min left")
            began = time.monotonic()
            outcome = execute(piece.command, seconds)
            self._state.add(piece.name, outcome)
            took[piece.name] += time.monotonic() - began
            if outcome == "stopped":  # it goes on in what the others leave
                waiting.append(piece)
            what = "stopped by its budget, the next start goes on with it" if outcome == "stopped" else outcome
            outcomes[piece.name] = f"{what}, {took[piece.name]:.0f} s"
        self._console.rule("the day")
        for name, said in outcomes.items():
            self._console.print(f"  {name}: {said}", markup=False)
        return int("failed" in self._state.outcomes.values())

    def _budget(self, piece: Piece) -> float:
        return min(piece.minutes, self._longest, self._minutes)


def run(command: Sequence[str], seconds: float) -> Outcome:
    """Run `python -m bench` with these arguments; stop it before so many seconds are over."""
    process = subprocess.Popen([sys.executable, "-m", "bench", *command], cwd=machine.ROOT)
    with _ended(process):
        try:
            return "failed" if process.wait(max(1.0, seconds - STOP_SECONDS)) else "done"
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_SECONDS)
            # One that ended well was about to end anyway.
            return "done" if process.returncode == 0 else "stopped"


@contextlib.contextmanager
def _ended(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """End the process, also after Ctrl-C, which has reached it as well."""
    try:
        yield
    except KeyboardInterrupt:
        with contextlib.suppress(subprocess.TimeoutExpired, KeyboardInterrupt):
            process.wait(STOP_SECONDS)
        raise
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def computes_on() -> Iterator[str]:
    """Yield a line for each backend: the device that it computes on, or why there is none. Each is asked in its own process."""
    for backend in BACKENDS:
        check = f"from bench.core import machine; print(machine.accelerator({backend!r}) or 'the CPU')"
        answer = subprocess.run([sys.executable, "-c", check], cwd=machine.ROOT, capture_output=True, text=True, check=False)
        last = (answer.stdout if answer.returncode == 0 else answer.stderr).strip().splitlines()
        yield f"{backend} computes on {last[-1]}" if answer.returncode == 0 else f"{backend} is missing: {last[-1] if last else '?'}"


def written(results: Path) -> Mapping[Path, int]:
    """Return the records, and the evaluations of unfinished training runs, each with the time of its last change."""
    found = [*results.rglob("*.json"), *(RUNS.rglob("evaluation.json"))]
    return {path: path.stat().st_mtime_ns for path in sorted(found)}
