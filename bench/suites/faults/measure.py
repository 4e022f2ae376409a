"""Runs that are killed at random moments and resumed, against runs that are not: `python -m bench faults` (`nox -s faults`).

Each is a whole run of `sacref.train` in its own process, which SIGKILL ends again and again, and `--resume` continues. Most kills fall
while it trains, after a checkpoint; some at any moment since its start, while it imports, compiles or reads. At its end everything but the
clock has to equal, bit for bit, a run that was never killed: metrics, events, evaluations, checkpoints with all random streams and
simulations, replay memory. Exit status 1 where anything differs.
"""

import json
import multiprocessing
import os
import random
import signal
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from bench.core import machine, record, runner
from bench.core.stage import Preset
from bench.suites.faults import worker as faults_worker
from bench.suites.faults.samples import FaultsCell, FaultsSamples
from sacref.storage import checkpoint
from sacref.storage.metric_files import EVENTS
from sacref.training import checkpoints

TOO_LONG = 300.0
"""Seconds after which a process is given up that should have ended."""
KILLS_PER_PIECE = 10
SECONDS_PER_KILL = 6.0
"""For the estimate."""
AT_ANY_MOMENT = 0.25
"""Share of the kills that do not wait for a checkpoint."""
LEAST_RESUMED = 3
"""Least number of starts from within a run, in every measurement: only they show the contents of a checkpoint."""
LOOK = 0.005
"""Seconds between two searches for a new checkpoint."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """A run that is killed."""

    backend: str
    env: str
    steps: int
    what: str
    """Difference from a feed-forward run in float32, in words."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)


TASKS = (
    Task(backend="torch", env="HalfCheetah-v5", steps=360, what=""),
    Task(
        backend="jax",
        env="Ant-v5",
        steps=360,
        what="float16",
        settings={"mixed_precision": True, "precision": "float16"},
    ),
    Task(backend="torch", env="Humanoid-v5", steps=240, what=""),
    Task(
        backend="torch",
        env="HalfCheetah-v5",
        steps=240,
        what="GRU",
        settings={"sequence_length": 4, "batch_size": 4, "n_step": 1},
        options={"recurrent": "gru", "recurrent_size": 8},
    ),
)
KILLS: dict[Preset, int] = {"smoke": 4, "cpu": 200, "gpu": 200}
"""SIGKILLs of all tasks together."""

processes: Any = multiprocessing.get_context("forkserver")


def main(*, preset: Preset = "cpu", threads: int | None = 1, seed: int = 0, results: Path | None = None, dry_run: bool = False) -> int:
    """Kill and resume, and write the record.

    Args:
        preset: smoke (4 kills, a minute), or cpu (200; about 20 minutes). It computes on the CPU everywhere.
        threads: cores that the processes are bound to.
        seed: of the moments.
        results: folder for the record; None for results/faults, and for runs/smoke/faults with the preset smoke.
        dry_run: print the plan, and stop.

    Returns:
        Exit status: 0; 1 where a killed run ended differently; 130 after Ctrl-C.
    """
    threads = runner.bind(threads)
    console = Console(soft_wrap=True)
    console.print(f"Runs killed by SIGKILL and resumed, against runs that are not, preset {preset}, {threads} core(s)")
    results = results or runner.default_results("faults", preset)
    kills = KILLS[preset]
    run = runner.Run(
        name=runner.run_name("faults", preset, threads),
        configuration={"preset": preset, "kills": kills, "threads": threads, "settings": faults_worker.SETTINGS},
        seed=seed,
        results=results,
        on_cpu=True,
    )
    pieces = []
    for task in TASKS:
        left, number = kills // len(TASKS), 0
        while left > 0:
            several = min(left, KILLS_PER_PIECE)
            name = f"{task.backend}, {task.env}{task.what and ', ' + task.what}, {number}"
            pieces.append(
                runner.Piece(name=name, seconds=several * SECONDS_PER_KILL, measure=partial(measure, task, several, f"{seed} {name}"))
            )
            left, number = left - several, number + 1
    status = runner.execute(run, pieces, FaultsSamples, console=console, dry_run=dry_run)
    path = runner.recorded(results, run.name, machine.slug(machine.hardware(None)))
    if status or dry_run or path is None:
        return status
    samples = record.read(path, FaultsSamples).samples
    differences = [f"{cell.backend}, {cell.env}: {words}" for cell in samples.cells for words in cell.differences]
    console.print("\n".join(f"  {words}" for words in differences) or "  every run ended as the one that was not killed")
    return int(bool(differences))


def measure(task: Task, kills: int, seed: str, *, least_resumed: int = LEAST_RESUMED) -> FaultsSamples:
    """Kill a task's runs so many times, and compare each run that ends with one that was not killed.

    Args:
        seed: of the moments.
        least_resumed: least number of starts from within a run.
    """
    missing = runner.missing_backends().get(task.backend)
    cell = partial(FaultsCell, backend=task.backend, env=task.env, what=task.what, steps=task.steps)
    if missing is not None:
        return FaultsSamples(cells=[cell(kills=0, resumed=0, runs=0, seconds=0.0, differences=[], missing=missing)])
    # Each process begins as a copy of one that has imported these.
    processes.set_forkserver_preload(
        ["bench.suites.faults.worker", "sacref.training.experiment", "gymnasium.envs.mujoco", "sacref.jax", "sacref.torch"]
    )
    moments = random.Random(seed)
    killed, resumed, number = 0, 0, 0
    differences: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "whole"
        if task.backend == "jax":
            _run(task, whole)  # it compiles here, for all that follow
        began = time.monotonic()
        _run(task, whole)
        seconds = time.monotonic() - began
        training, end = _training_seconds(whole), _newest(whole)
        while killed < kills or resumed < least_resumed:
            directory = Path(folder) / f"killed-{number}"
            number += 1
            ended = False
            while not ended:
                resumed += 0 < _newest(directory) < end
                if moments.random() < AT_ANY_MOMENT:
                    kill = Kill(wait=False, seconds=moments.uniform(0.0, seconds))
                else:
                    kill = Kill(wait=True, seconds=moments.uniform(0.0, training))
                ended = _run(task, directory, kill)
                killed += not ended
            differences += [f"run {number}: {words}" for words in compare(directory, whole)]
    return FaultsSamples(cells=[cell(kills=killed, resumed=resumed, runs=number, seconds=seconds, differences=differences, missing=None)])


@dataclass(frozen=True)
class Kill:
    """A moment of SIGKILL."""

    wait: bool
    """True to wait for a checkpoint that was not there when the process started."""
    seconds: float
    """Seconds after that checkpoint, or after the start."""


def _newest(directory: Path) -> int:
    """Return the timestep of the last checkpoint; 0 if there is none."""
    return max(checkpoints.finished_checkpoints(directory), default=0)


def _training_seconds(directory: Path) -> float:
    """Return the seconds between the first and the last line of metrics."""
    times = [line["wall_time"] for line in _metrics(directory)]
    return float(times[-1] - times[0])


def _run(task: Task, directory: Path, kill: Kill | None = None) -> bool:
    """Train in a process, from the last checkpoint if there is one; return True if it ended well, False if it was killed.

    Raises:
        RuntimeError: if it ended in another way, or not at all.
    """
    found = 0 if kill is None else _newest(directory)
    compilations = str(directory.parent / "compilations")
    arguments = (task.backend, task.env, task.steps, str(directory), compilations, dict(task.settings), dict(task.options), found > 0)
    process = processes.Process(target=faults_worker.train, args=arguments)
    process.start()
    deadline = time.monotonic() + TOO_LONG
    if kill is not None and kill.wait:
        while process.is_alive() and time.monotonic() < deadline and _newest(directory) == found:
            process.join(LOOK)
    process.join(deadline - time.monotonic() if kill is None else kill.seconds)
    late = process.is_alive()
    if late:
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    status: int = process.exitcode
    process.close()
    hung = time.monotonic() > deadline
    killed = late and kill is not None and status == -signal.SIGKILL
    if hung or (status != 0 and not killed):
        raise RuntimeError(f"{task.backend}, {task.env}: the process ended with {status}" + (f" after {TOO_LONG:.0f} s" if hung else ""))
    return status == 0


def compare(directory: Path, whole: Path) -> list[str]:
    """Describe the differences between two runs, without those of the clock."""
    found = []
    for what, of in (("evaluations", _evaluations), ("metrics", _lines), ("events", _events)):
        if of(directory) != of(whole):
            found.append(f"other {what}")
    mine, wanted = dict(_arrays(directory)), dict(_arrays(whole))
    found += [f"{name} is in one of the two alone" for name in sorted(mine.keys() ^ wanted.keys())]
    for name in sorted(mine.keys() & wanted.keys()):
        one, other = mine[name], wanted[name]
        if one.dtype != other.dtype or one.shape != other.shape or one.tobytes() != other.tobytes():
            found.append(f"{name} differs")
    return found


def _evaluations(directory: Path) -> Any:
    return json.loads((directory / "evaluation.json").read_text())


def _metrics(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def _lines(directory: Path) -> list[dict[str, Any]]:
    lines = _metrics(directory)
    return [{tag: value for tag, value in line.items() if tag != "wall_time" and not tag.startswith("Stats / ")} for line in lines]


def _events(directory: Path) -> list[tuple[int, str, float]]:
    """Return step, tag and value of all TensorBoard events, from all files of a run."""
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    found: list[tuple[int, str, float]] = []
    for path in sorted(directory.glob(EVENTS)):
        for event in LegacyEventFileLoader(str(path)).Load():
            found += [(event.step, value.tag, value.simple_value) for value in event.summary.value if not value.tag.startswith("Stats / ")]
    return sorted(found, key=lambda each: each[:2])


def _arrays(directory: Path) -> Iterator[tuple[str, NDArray[Any]]]:
    """Yield name and values of all arrays of the kept checkpoints, and of the replay memory at the end."""
    for path in [*directory.glob("checkpoints/agent_*"), directory / "checkpoints" / checkpoints.BEST]:
        for group, arrays in checkpoint.read(path).groups.items():
            for name, array in arrays.items():
                if "Stats / " not in name:  # times that are tracked and not written yet
                    yield f"{path.name}/{group}/{name}", array
    with np.load(directory / faults_worker.MEMORY) as memory:
        yield from ((f"memory/{name}", memory[name]) for name in memory.files)
