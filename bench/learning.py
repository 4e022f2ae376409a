"""The learning suite: every backend and seed of a preset, several runs beside each other, each on one core.

`python -m bench.learning halfcheetah-100k --jobs 2`; `python -m bench.learning standard` for a suite of presets, one after the other. A run
whose record exists is skipped, a run that stopped half-way is resumed.
"""

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Annotated, Literal

import tyro
from rich.console import Console

import sacref
from bench import machine, record
from bench.learning_run import Job, read_evaluations, resumable
from bench.presets import Preset, presets_of

Backend = Literal["torch", "jax"]
RESULTS = machine.ROOT / "results" / "learning"
RUNS = machine.ROOT / "runs" / "learning"

UNMEASURED_STEPS_PER_SECOND = 80.0
"""Environment steps per second of one run on one core, evaluations included, for the estimate on a machine without a record."""

WORKER = (sys.executable, "-m", "bench.learning_run")

STOP_SECONDS = 60.0
"""How long a run may take to write its checkpoint after Ctrl-C."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a start of the suite will do."""

    jobs: list[Job]
    """In the order of their start: seed by seed, so that an early stop leaves both backends with the same seeds."""
    skipped: list[Path]
    """Records that exist."""
    seconds: float
    """Estimated wall-clock time of the whole."""


def main(
    preset: Annotated[
        Literal[
            "smoke",
            "invertedpendulum-fast",
            "invertedpendulum",
            "halfcheetah-100k",
            "halfcheetah-200k-tianshou",
            "halfcheetah-200k-jaxrl",
            "halfcheetah-200k",
            "hopper-100k",
            "halfcheetah-100k-chunked",
            "halfcheetah-50k-bfloat16",
            "pendulum-hidden",
            "pendulum-hidden-gru",
            "halfcheetah-hidden",
            "halfcheetah-hidden-gru",
            "halfcheetah-privileged",
            "standard",
            "halfcheetah-1m",
            "hopper-1m",
            "walker2d-1m",
            "ant-1m",
            "humanoid-1m",
            "agreement",
            "halfcheetah-v4-1m",
            "hopper-v4-1m",
            "walker2d-v4-1m",
            "ant-v4-1m",
            "humanoid-v4-1m",
        ],
        tyro.conf.Positional,
    ],
    /,
    *,
    backends: tuple[Backend, ...] = ("torch", "jax"),
    seeds: tuple[int, ...] | None = None,
    jobs: int | None = None,
    results: Path = RESULTS,
    runs: Path = RUNS,
    dry_run: bool = False,
) -> int:
    """Train the runs of a preset, or of a suite of presets (standard, agreement), and write their records.

    Args:
        preset: what to train; see bench/presets.py.
        backends: of these two.
        seeds: instead of the preset's.
        jobs: runs beside each other, each bound to a core of its own; unless told otherwise as many as there are cores.
        results: folder for the records.
        runs: folder for the runs' own directories.
        dry_run: say what would be done, and stop.

    Returns:
        Exit status: 0, 1 if a run failed, 130 after Ctrl-C.
    """
    console = Console(soft_wrap=True)
    cores = machine.available_cores()
    jobs = len(cores) if jobs is None else jobs
    if not 1 <= jobs <= len(cores):
        raise SystemExit(f"--jobs is {jobs}, expected 1 to {len(cores)}: each run is bound to a core of its own, and {len(cores)} are free")
    chosen = presets_of(preset)
    plans = [plan(one, backends, seeds or one.seeds, jobs, results, runs) for one in chosen]
    for one, todo in zip(chosen, plans, strict=True):
        describe(console, one, todo, jobs)
    waiting = [job for todo in plans for job in todo.jobs]
    if len(plans) > 1:
        console.print(f"Together {len(waiting)} runs: about {_minutes(sum(todo.seconds for todo in plans))}")
    if dry_run or not waiting:
        return 0
    with _terminate_as_interrupt():
        return Pool(waiting, cores[:: len(cores) // jobs][:jobs], console).run()


def plan(preset: Preset, backends: Sequence[str], seeds: Sequence[int], jobs: int, results: Path, runs: Path) -> Plan:
    """Which runs of the preset are still to be done on this machine with this version, and how long they will take."""
    here = machine.slug(machine.hardware(machine.find_accelerator()))
    out = results / f"{datetime.now(UTC):%Y-%m-%d}-{here}"
    wanted = [
        Job(
            preset=preset.name,
            env=preset.env,
            backend=backend,
            seed=seed,
            steps=preset.steps,
            evaluation_interval=preset.evaluation_interval,
            evaluation_episodes=preset.evaluation_episodes,
            run_dir=str(runs / sacref.__version__ / f"{preset.name}-{backend}-seed{seed}"),
            out=str(out / f"{preset.name}-{backend}-seed{seed}.json"),
            core=0,
            settings=dict(preset.settings),
            # As JSON gives it back, which a record's configuration is compared with.
            arguments=json.loads(json.dumps(dict(preset.arguments))),
        )
        for seed in seeds
        for backend in backends
    ]
    done = {job.name: path for job in wanted if (path := existing(job, results, here))}
    todo = [job for job in wanted if job.name not in done]
    steps = sum(job.steps for job in todo) - sum(_evaluated(job) for job in todo)
    # A run that only lacks its record takes a moment, and is not nothing.
    seconds = max(1.0, steps / min(jobs, len(todo)) / steps_per_second(results, here, preset.name)) if todo else 0.0
    return Plan(jobs=todo, skipped=list(done.values()), seconds=seconds)


def existing(job: Job, results: Path, here: str) -> Path | None:
    """The record of this run by this version on this kind of machine, of any date.

    Raises:
        RecordError: if a file of its name is no record. SystemExit: if it is one of another configuration.
    """
    for path in sorted(results.glob(f"*-{here}/{job.name}.json"), reverse=True):
        found = record.read(path)
        if found.sacref_version != sacref.__version__:
            continue
        if (found.configuration | job.configuration()) != found.configuration:
            raise SystemExit(f"{path} holds a run of another configuration than preset {job.preset}: move it away, or rename the preset")
        return path
    return None


def steps_per_second(results: Path, here: str, preset: str | None = None) -> float:
    """Steps per second of the slowest of this machine's newest records, else a guess.

    Of those of the preset; where there are none, of those with the paper's networks and task.
    """
    found = [record.read(path) for path in sorted(results.glob(f"*-{here}/*.json"))]
    alike = [one for one in found if one.configuration["preset"] == preset] or [
        one for one in found if "arguments" not in one.configuration
    ]
    speeds = []
    for one in alike[-6:]:
        if isinstance(one.samples, record.LearningSamples):
            seconds = sum(session.wall_seconds for session in one.samples.sessions)
            speeds.append(one.samples.evaluations[-1].step / seconds)
    return min(speeds, default=UNMEASURED_STEPS_PER_SECOND)


def describe(console: Console, preset: Preset, todo: Plan, jobs: int) -> None:
    """Say what will be done."""
    console.print(f"Preset {preset.name}: {preset.title}, {preset.steps:,} steps, evaluation every {preset.evaluation_interval:,} steps")
    for path in todo.skipped:
        console.print(f"  skipped, recorded in {path}")
    for job in todo.jobs:
        at = _evaluated(job)
        start = f"resumed (evaluated at step {at:,})" if resumable(Path(job.run_dir)) else "new"
        console.print(f"  {job.name}: {start}, in {job.run_dir}")
    if todo.jobs:
        count = f"{len(todo.jobs)} run{'s' if len(todo.jobs) > 1 else ''}"
        console.print(f"{count}, {min(jobs, len(todo.jobs))} beside each other on one core each: about {_minutes(todo.seconds)}")
    else:
        console.print("Nothing left to do.")


class Pool:
    """Runs jobs in processes of their own, one per core, and shows how far each is."""

    def __init__(
        self, jobs: Sequence[Job], cores: Sequence[int], console: Console, *, worker: Sequence[str] = WORKER, interval: float = 60.0
    ) -> None:
        """`worker`: command that takes a job as JSON. `interval`: seconds between two lines of progress."""
        self._worker = list(worker)
        self._waiting = list(jobs)
        self._cores = list(cores)
        self._console = console
        self._interval = interval
        self._running: dict[subprocess.Popen[bytes], Job] = {}
        self._failed: list[tuple[Job, int]] = []
        self._done = 0

    def run(self) -> int:
        """Work until no job is left; a job that fails does not stop the others."""
        started = last = time.monotonic()
        try:
            while self._waiting or self._running:
                while self._waiting and self._cores:
                    self._start(self._waiting.pop(0), self._cores.pop(0))
                time.sleep(0.5)
                for process in [process for process in self._running if process.poll() is not None]:
                    self._finish(process)
                if self._running and time.monotonic() - last >= self._interval:
                    last = time.monotonic()
                    self._console.print(f"[{_minutes(last - started)}] " + "; ".join(progress(job) for job in self._running.values()))
        except KeyboardInterrupt:
            self._stop()
            self._console.print("Interrupted: what was trained is kept, the same command goes on from there.")
            return 130
        for job, status in self._failed:
            self._console.print(f"FAILED (status {status}): {job.name}; its output is in {log(job)}")
        self._console.print(f"{self._done} recorded, {len(self._failed)} failed, in {_minutes(time.monotonic() - started)}")
        return 1 if self._failed else 0

    def _start(self, job: Job, core: int) -> None:
        job = dataclasses.replace(job, core=core)
        log(job).parent.mkdir(parents=True, exist_ok=True)
        with log(job).open("ab") as output:
            # A session of its own: Ctrl-C reaches this process alone, which then stops the runs in order.
            process = subprocess.Popen(
                [*self._worker, json.dumps(dataclasses.asdict(job))],
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                cwd=machine.ROOT,
                env={**os.environ, **machine.ONE_THREAD},
                start_new_session=True,
            )
        self._running[process] = job
        self._console.print(f"started {job.name} on core {core} (output in {log(job)})")

    def _finish(self, process: subprocess.Popen[bytes]) -> None:
        job = self._running.pop(process)
        self._cores.append(job.core)
        if process.returncode == 0:
            self._done += 1
            self._console.print(f"done {progress(job)} -> {job.out}")
        else:
            self._failed.append((job, process.returncode))
            self._console.print(f"failed {job.name} with status {process.returncode}; going on with the others")

    def _stop(self) -> None:
        """Ask each run to write what it has, wait, and end those that do not."""
        for ask, patience in ((signal.SIGINT, STOP_SECONDS), (signal.SIGKILL, 5.0)):
            for process in self._running:
                if process.poll() is None:
                    process.send_signal(ask)
            deadline = time.monotonic() + patience
            while any(process.poll() is None for process in self._running) and time.monotonic() < deadline:
                time.sleep(0.1)


def log(job: Job) -> Path:
    """Where a run's output goes."""
    return Path(job.run_dir).with_suffix(".log")


def progress(job: Job) -> str:
    """How far a run is, and its last evaluation."""
    step = _last_step(job)
    evaluations = read_evaluations(Path(job.run_dir))
    shown = f"{job.name} {100 * step // job.steps}%"
    if evaluations:
        returns = evaluations[-1].returns
        shown += f" (evaluation {sum(returns) / len(returns):,.0f} at {evaluations[-1].step:,})"
    return shown


def _last_step(job: Job) -> int:
    """The last environment step that the run has written a line about."""
    try:
        with (Path(job.run_dir) / "metrics.jsonl").open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - 16_384))
            lines = [line for line in file.read().split(b"\n") if line.startswith(b"{") and line.endswith(b"}")]
        return max(int(json.loads(lines[-1])["environment_steps"]), _evaluated(job))
    except (FileNotFoundError, IndexError):
        return _evaluated(job)


def _evaluated(job: Job) -> int:
    """The step of the run's last evaluation, 0 before the first."""
    evaluations = read_evaluations(Path(job.run_dir))
    return evaluations[-1].step if evaluations else 0


def _minutes(seconds: float) -> str:
    if seconds >= 10 * 3_600:
        return f"{seconds / 3_600:.0f} h"
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


@contextlib.contextmanager
def _terminate_as_interrupt() -> Iterator[None]:
    """Treat SIGTERM and SIGHUP like Ctrl-C: the runs must not outlive this process."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
