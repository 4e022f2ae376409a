"""The learning suite: every backend and seed of a preset. On a CPU several runs at once, each on one core; on an accelerator all seeds of a
backend together in one process, as a population.

`python -m bench learning halfcheetah-100k --jobs 2`; `python -m bench learning standard` for a suite of presets, one after the other. A run
whose record exists is skipped; a run that stopped is resumed, in a population or alone.
"""

import contextlib
import dataclasses
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Annotated, Literal

import tyro
from rich.console import Console

import sacref
from bench.core import machine, record, stage, timing
from bench.core.stage import Choices, Stage
from bench.suites.learning.presets import COMPARISONS, PRESETS, Preset, presets_of
from bench.suites.learning.runs import members
from bench.suites.learning.samples import LearningSamples
from bench.suites.learning.worker import Job, name_of, read_evaluations, resumable
from sacref.envs.dm_control import DM_CONTROL, register_dm_control

Backend = Literal["torch", "jax"]
RESULTS = machine.ROOT / "results" / "learning"
RUNS = machine.ROOT / "runs" / "learning"
LONGEST_SECONDS = 90 * 60.0
"""A preset fits a machine if its runs are estimated to take no longer."""

UNMEASURED_STEPS_PER_SECOND = 80.0
"""Environment steps per second of one run on one core, evaluations included, for the estimate on a machine without a record."""
UNMEASURED_STEPS_PER_SECOND_TOGETHER = 2_000.0
"""As `UNMEASURED_STEPS_PER_SECOND`, for all runs of a population on an accelerator."""

WORKER = (sys.executable, "-m", "bench.suites.learning.worker")

STOP_SECONDS = 60.0
"""Seconds that a run may take to write its checkpoint after Ctrl-C."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The runs that a start of the suite will do."""

    jobs: list[Job]
    """Runs in the order of their start: seed by seed, so that an early stop leaves both backends with the same seeds."""
    skipped: list[Path]
    """Records that exist."""
    together: int
    """Most runs of a process."""
    seconds: float
    """Estimated wall-clock time of the whole."""

    @property
    def groups(self) -> list[list[Job]]:
        """Jobs of each process, in the order of their start."""
        if self.together == 1:
            return [[job] for job in self.jobs]
        of_backend: dict[str, list[Job]] = {}
        for job in self.jobs:
            of_backend.setdefault(job.backend, []).append(job)
        chunks = [[jobs[i : i + self.together] for i in range(0, len(jobs), self.together)] for jobs in of_backend.values()]
        return [group for row in itertools.zip_longest(*chunks, fillvalue=[]) for group in row if group]


@dataclass(frozen=True, kw_only=True)
class Arrangement:
    """The share of each run in the machine."""

    jobs: int
    """Processes at once."""
    together: int
    """Most runs of a process."""
    cores: list[list[int]]
    """Cores of each process."""


def main(
    preset: Annotated[
        Literal[
            "smoke",
            "invertedpendulum-fast",
            "invertedpendulum",
            "halfcheetah-100k",
            "cheetah-run-100k",
            "ant-200k-sb3",
            "halfcheetah-200k-nnabla",
            "hopper-200k-nnabla",
            "walker2d-200k-nnabla",
            "halfcheetah-200k-tianshou",
            "halfcheetah-200k-jaxrl",
            "halfcheetah-200k",
            "hopper-100k",
            "halfcheetah-100k-chunked",
            "halfcheetah-50k-bfloat16",
            "halfcheetah-100k-simba",
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
        ],
        tyro.conf.Positional,
    ],
    /,
    *,
    backends: tuple[Backend, ...] = ("torch", "jax"),
    seeds: tuple[int, ...] | None = None,
    jobs: int | None = None,
    together: int | None = None,
    results: Path = RESULTS,
    runs: Path = RUNS,
    dry_run: bool = False,
) -> int:
    """Train the runs of a preset, or of a suite of presets (standard, agreement), and write their records.

    Args:
        preset: see bench/suites/learning/presets.py.
        backends: one or both of these.
        seeds: instead of the preset's.
        jobs: processes at once, each bound to its own cores; None for the number of cores, and for one where there is an accelerator or a
            process trains several runs.
        together: runs of one backend that a process trains, as a population; None for one, and for all seeds where there is an
            accelerator.
        results: folder for the records.
        runs: folder for the runs' own directories.
        dry_run: print the plan, and stop.

    Returns:
        Exit status: 0, 1 if a run failed, 130 after Ctrl-C.
    """
    console = Console(soft_wrap=True)
    chosen = presets_of(preset)
    shared = arrange(max(len(seeds or one.seeds) for one in chosen), jobs, together)
    plans = [plan(one, backends, seeds or one.seeds, shared.jobs, results, runs, together=shared.together) for one in chosen]
    for one, todo in zip(chosen, plans, strict=True):
        describe(console, one, todo, shared.jobs)
    waiting = [group for todo in plans for group in todo.groups]
    if len(plans) > 1:
        console.print(f"Together {sum(map(len, waiting))} runs: about {timing.said(sum(todo.seconds for todo in plans))}")
    if dry_run or not waiting:
        return 0
    with _terminate_as_interrupt():
        return Pool(waiting, shared.cores, console).run()


def stages(choices: Choices) -> list[Stage]:
    """Return this suite's part of `python -m bench`: the training runs of one preset or suite of presets."""
    results = choices.results / "learning"
    name = choices.learning_preset or ("smoke" if choices.preset == "smoke" else fitting_preset(results))
    runs = [
        plan(chosen, ("torch", "jax"), chosen.seeds, shared.jobs, results, RUNS, together=shared.together)
        for chosen in presets_of(name)
        for shared in [arrange(len(chosen.seeds))]
    ]
    return [
        Stage(
            name=f"learning, preset {name}",
            seconds=sum(run.seconds for run in runs),
            run=partial(stage.module, "bench", "learning", name, "--results", str(results)),
        )
    ]


def fitting_preset(results: Path) -> str:
    """Return the longest preset, or the standard suite, whose runs this machine does in `LONGEST_SECONDS`; else the shortest.

    Presets that exist for a comparison are left out, alone they say little, and those that need packages which are not there.
    """
    here = machine.slug(machine.hardware(machine.find_accelerator()))

    def seconds(name: str) -> float:
        total = 0.0
        for preset in presets_of(name):
            shared = arrange(len(preset.seeds))
            # Both backends; each round of processes takes as long as one of them.
            rounds = -(-2 * -(-len(preset.seeds) // shared.together) // shared.jobs)
            runs = min(shared.together, len(preset.seeds))
            total += preset.steps * runs * rounds / steps_per_second(results, here, together=shared.together)
        return total

    compared = {
        name
        for comparison in COMPARISONS
        for name in (comparison.preset, comparison.beside)
        # The unchanged task with the paper's settings says something alone.
        if PRESETS[name].settings or PRESETS[name].arguments
    }
    missing = {name for name, preset in PRESETS.items() if preset.env.startswith(DM_CONTROL) and not register_dm_control()}
    by_length = sorted((name for name in (*PRESETS, "standard") if name not in compared | missing), key=seconds)
    return [name for name in by_length if seconds(name) <= LONGEST_SECONDS or name == by_length[0]][-1]


def arrange(seeds: int, jobs: int | None = None, together: int | None = None) -> Arrangement:
    """Arrange so many seeds on this machine; None for what suits it.

    Raises:
        SystemExit: for more jobs than cores, or if `together` is not positive.
    """
    cores, device = machine.available_cores(), machine.find_accelerator() is not None
    together = (seeds if device else 1) if together is None else together
    if together < 1:
        raise SystemExit(f"--together is {together}, expected an integer >= 1: the runs that a process trains")
    jobs = (1 if device or together > 1 else len(cores)) if jobs is None else jobs
    if not 1 <= jobs <= len(cores):
        raise SystemExit(
            f"--jobs is {jobs}, expected 1 to {len(cores)}: each process is bound to cores of its own, and {len(cores)} are free"
        )
    share = len(cores) // jobs
    # One run computes on one core, as its record says; what trains several has all that there are.
    shares = [cores[start : start + (share if together > 1 else 1)] for start in range(0, share * jobs, share)]
    return Arrangement(jobs=jobs, together=together, cores=shares)


def plan(preset: Preset, backends: Sequence[str], seeds: Sequence[int], jobs: int, results: Path, runs: Path, *, together: int = 1) -> Plan:
    """Plan the runs of the preset that this version has not done on this machine."""
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
            run_dir=str(runs / sacref.__version__ / f"{preset.name}-{backend}" / f"seed={seed}"),
            out=str(out / f"{preset.name}-{backend}-seed{seed}.json"),
            settings=dict(preset.settings),
            # Through JSON, which makes lists of tuples: a record's configuration is compared with it.
            arguments=json.loads(json.dumps(dict(preset.arguments))),
        )
        for seed in seeds
        for backend in backends
    ]
    done = {job.name: path for job in wanted if (path := existing(job, results, here))}
    todo = [job for job in wanted if job.name not in done]
    steps = sum(job.steps for job in todo) - sum(_evaluated(job) for job in todo)
    speed = steps_per_second(results, here, preset.name, together=together)
    # A run that only lacks its record takes a moment, and is not nothing.
    seconds = max(1.0, steps / min(jobs, len(todo)) / speed) if todo else 0.0
    return Plan(jobs=todo, skipped=list(done.values()), together=together, seconds=seconds)


def existing(job: Job, results: Path, here: str) -> Path | None:
    """Return the record of this run by this version on this kind of machine, of any date; None if there is none.

    Raises:
        RecordError: if a file of its name is no record.
        SystemExit: if it has another configuration.
    """
    for path in sorted(results.glob(f"*-{here}/{job.name}.json"), reverse=True):
        found = record.read(path, LearningSamples)
        if found.sacref_version != sacref.__version__:
            continue
        if (found.configuration | job.configuration()) != found.configuration:
            raise SystemExit(f"{path} holds a run of another configuration than preset {job.preset}: move it away, or rename the preset")
        return path
    return None


def steps_per_second(results: Path, here: str, preset: str | None = None, *, together: int = 1) -> float:
    """Estimate the steps per second of a process, of all its runs: those of the slowest of this machine's newest records, else a guess.

    Records of the preset count; without them, those with the paper's networks and task. Records of populations tell nothing about single
    runs, nor the other way round.
    """
    found = [
        one
        for path in sorted(results.glob(f"*-{here}/*.json"))
        if (members(one := record.read(path, LearningSamples)) > 1) == (together > 1)
    ]
    alike = [one for one in found if one.configuration["preset"] == preset] or [
        one for one in found if "arguments" not in one.configuration
    ]
    speeds = []
    for one in alike[-6:]:
        seconds = sum(session.wall_seconds for session in one.samples.sessions)
        speeds.append(members(one) * one.samples.evaluations[-1].step / seconds)
    guess = UNMEASURED_STEPS_PER_SECOND if together == 1 or machine.find_accelerator() is None else UNMEASURED_STEPS_PER_SECOND_TOGETHER
    return min(speeds, default=guess)


def describe(console: Console, preset: Preset, todo: Plan, jobs: int) -> None:
    """Print the plan."""
    console.print(f"Preset {preset.name}: {preset.title}, {preset.steps:,} steps, evaluation every {preset.evaluation_interval:,} steps")
    for path in todo.skipped:
        console.print(f"  skipped, recorded in {path}")
    for job in todo.jobs:
        at = _evaluated(job)
        start = f"resumed (evaluated at step {at:,})" if resumable(Path(job.run_dir)) else "new"
        console.print(f"  {job.name}: {start}, in {job.run_dir}")
    if todo.jobs:
        count = f"{len(todo.jobs)} run{'s' if len(todo.jobs) > 1 else ''}"
        groups = todo.groups
        beside = f"{min(jobs, len(groups))} beside each other"
        how = f"{beside} on one core each" if todo.together == 1 else f"up to {todo.together} together in a process, {beside}"
        console.print(f"{count}, {how}: about {timing.said(todo.seconds)}")
    else:
        console.print("Nothing left to do.")


class Pool:
    """A pool of processes, each on its own cores, that run jobs and show their progress.

    Args:
        groups: the jobs of each process.
        cores: of each process.
        worker: command that takes a list of jobs as JSON.
        interval: seconds between two lines of progress.
    """

    def __init__(
        self,
        groups: Sequence[Sequence[Job]],
        cores: Sequence[Sequence[int]],
        console: Console,
        *,
        worker: Sequence[str] = WORKER,
        interval: float = 60.0,
    ) -> None:
        self._worker = list(worker)
        self._waiting = list(groups)
        self._cores = list(cores)
        self._console = console
        self._interval = interval
        self._running: dict[subprocess.Popen[bytes], list[Job]] = {}
        self._failed: list[tuple[list[Job], int]] = []
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
                    self._console.print(f"[{timing.said(last - started)}] " + "; ".join(map(progress, self._running.values())))
        except KeyboardInterrupt:
            self._stop()
            self._console.print("Interrupted: what was trained is kept, the same command goes on from there.")
            return 130
        for jobs, status in self._failed:
            self._console.print(f"FAILED (status {status}): {name_of(jobs)}; its output is in {log(jobs)}")
        failed = sum(not Path(job.out).exists() for jobs, _ in self._failed for job in jobs)
        self._console.print(f"{self._done} recorded, {failed} failed, in {timing.said(time.monotonic() - started)}")
        return 1 if self._failed else 0

    def _start(self, group: Sequence[Job], cores: Sequence[int]) -> None:
        jobs = [dataclasses.replace(job, cores=list(cores)) for job in group]
        log(jobs).parent.mkdir(parents=True, exist_ok=True)
        with log(jobs).open("ab") as output:
            # In its own session: Ctrl-C reaches this process alone, which then stops the runs in order.
            process = subprocess.Popen(
                [*self._worker, json.dumps([dataclasses.asdict(job) for job in jobs])],
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                cwd=machine.ROOT,
                env={**os.environ, **machine.threads(len(cores))},
                start_new_session=True,
            )
        self._running[process] = jobs
        where = f"core{'s' if len(cores) > 1 else ''} {', '.join(map(str, cores))}"
        self._console.print(f"started {name_of(jobs)} on {where} (output in {log(jobs)})")

    def _finish(self, process: subprocess.Popen[bytes]) -> None:
        jobs = self._running.pop(process)
        self._cores.append(jobs[0].cores)
        # Some runs of a population that failed may have ended well.
        recorded = [job for job in jobs if process.returncode == 0 or Path(job.out).exists()]
        self._done += len(recorded)
        if process.returncode == 0:
            self._console.print(f"done {progress(jobs)} -> {', '.join(job.out for job in jobs)}")
        else:
            self._failed.append((jobs, process.returncode))
            self._console.print(f"failed {name_of(jobs)} with status {process.returncode}; going on with the others")

    def _stop(self) -> None:
        """Ask each run to write a checkpoint, wait, and end those that do not."""
        for ask, patience in ((signal.SIGINT, STOP_SECONDS), (signal.SIGKILL, 5.0)):
            for process in self._running:
                if process.poll() is None:
                    process.send_signal(ask)
            deadline = time.monotonic() + patience
            while any(process.poll() is None for process in self._running) and time.monotonic() < deadline:
                time.sleep(0.1)


def log(jobs: Sequence[Job]) -> Path:
    """Return the file of a process's output."""
    run_dir = Path(jobs[0].run_dir)
    return run_dir.with_suffix(".log") if len(jobs) == 1 else run_dir.parent / f"{name_of(jobs)}.log"


def progress(jobs: Sequence[Job]) -> str:
    """Describe the progress of the slowest run of a process, and the mean of the last evaluation that all have."""
    step = min(map(_last_step, jobs))
    by_step = [{each.step: each.returns for each in read_evaluations(Path(job.run_dir))} for job in jobs]
    shown = f"{name_of(jobs)} {100 * step // jobs[0].steps}%"
    if common := set.intersection(*map(set, by_step)):
        returns = [value for each in by_step for value in each[max(common)]]
        shown += f" (evaluation {sum(returns) / len(returns):,.0f} at {max(common):,})"
    return shown


def _last_step(job: Job) -> int:
    """Return the environment step of the run's last line of metrics."""
    try:
        with (Path(job.run_dir) / "metrics.jsonl").open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - 16_384))
            lines = [line for line in file.read().split(b"\n") if line.startswith(b"{") and line.endswith(b"}")]
        return max(int(json.loads(lines[-1])["environment_steps"]), _evaluated(job))
    except (FileNotFoundError, IndexError):
        return _evaluated(job)


def _evaluated(job: Job) -> int:
    """Return the step of the run's last evaluation, 0 before the first."""
    evaluations = read_evaluations(Path(job.run_dir))
    return evaluations[-1].step if evaluations else 0


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
