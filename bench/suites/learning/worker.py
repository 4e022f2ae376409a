"""The process of some training runs of the learning suite: train (or resume), then write the records.

`bench.suites.learning.measure` starts it, with a list of jobs as JSON. Several runs are trained together, as a population.
"""

import bisect
import contextlib
import fcntl
import json
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
from msgspec import structs

from bench.core import entry, machine, record
from bench.suites.learning.samples import Evaluation, LearningSamples, Session

HEARTBEAT_SECONDS = 5.0


@dataclass(frozen=True, kw_only=True)
class Job:
    """One training run, and the paths that it writes to."""

    preset: str
    env: str
    backend: str
    seed: int
    steps: int
    evaluation_interval: int
    evaluation_episodes: int
    run_dir: str
    """The training's own directory, outside results/: `seed=<seed>`, beside those of the other seeds."""
    out: str
    """The record's path."""
    cores: list[int] = field(default_factory=list)
    """The cores that the run's process is bound to."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Differences from the paper's settings."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """Further arguments of `sacref.train`."""

    @property
    def name(self) -> str:
        """Name of the run."""
        return f"{self.preset}-{self.backend}-seed{self.seed}"

    def configuration(self) -> dict[str, Any]:
        """Return all choices: two records with the same configuration and seed repeat each other."""
        chosen = ("preset", "env", "backend", "steps", "evaluation_interval", "evaluation_episodes")
        given = {name: getattr(self, name) for name in ("settings", "arguments") if getattr(self, name)}
        return {name: getattr(self, name) for name in chosen} | given


class IncompleteError(RuntimeError):
    """The training stopped before its last step; the next start resumes it."""


Train = Callable[[Sequence[Job], bool], None]
"""`(jobs, resume)`: train each into its `run_dir`."""


def main(argv: list[str] | None = None) -> int:
    """Run the jobs that the one argument describes; 0 when their records are written, 130 when they were interrupted."""
    takes = "python -m bench.suites.learning.worker JOBS, as JSON"
    jobs = entry.read(takes, "bench learning", sys.argv[1:] if argv is None else argv, _jobs)
    machine.keep_to_cores(jobs[0].cores)
    # A shell starts background jobs with Ctrl-C ignored, which is inherited: the suite's request to stop must arrive.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        execute(jobs, train)
    except (KeyboardInterrupt, IncompleteError) as stopped:
        print(f"{name_of(jobs)}: {stopped or 'interrupted'}", file=sys.stderr)
        return 130
    return 0


def _jobs(arguments: Sequence[str]) -> list[Job]:
    (text,) = arguments
    first, *others = (Job(**each) for each in json.loads(text))
    return [first, *others]


def name_of(jobs: Sequence[Job]) -> str:
    """Name one run, or the runs of a population: of one preset, on one backend."""
    first = jobs[0]
    if len(jobs) == 1:
        return first.name
    return f"{first.preset}-{first.backend}-seeds{','.join(str(job.seed) for job in jobs)}"


def execute(jobs: Sequence[Job], train: Train) -> None:
    """Train, or go on where an earlier session stopped, and write the record of each finished run.

    Raises:
        IncompleteError: if a training ended without an evaluation at the last step.
        RuntimeError: if another process works on a run.
        PopulationError: if members failed; the others are recorded.
    """
    # Loaded now that the process is bound to its cores.
    from sacref.training.population import PopulationError

    failure = None
    with contextlib.ExitStack() as locks:
        for job in jobs:
            run_dir = Path(job.run_dir)
            run_dir.parent.mkdir(parents=True, exist_ok=True)
            locks.enter_context(_locked(run_dir.with_suffix(".lock"), job.name))
        source = machine.source()
        resumed = {_sessions_file(job): resumable(Path(job.run_dir)) for job in jobs}
        compiling = _CompileTime(jobs[0].backend)
        with _timed(resumed, source):
            try:
                train(jobs, any(resumed.values()))
            except PopulationError as error:
                failure = error
        finished = [job for job in jobs if _is_finished(job)]
        for job in finished:
            _write(job, source=source, compile_seconds=compiling.seconds)
    if failure is not None:
        raise failure
    if len(finished) < len(jobs):
        some = "" if len(jobs) == 1 else f"{len(jobs) - len(finished)} of {len(jobs)} runs "
        raise IncompleteError(f"{some}stopped before step {jobs[0].steps}: start it again to resume")


def _is_finished(job: Job) -> bool:
    rows = _read_json(Path(job.run_dir) / "evaluation.json", [])
    # An episode that diverged has no return.
    return bool(rows) and (rows[-1]["step"], len(rows[-1]["returns"]) + rows[-1].get("diverged", 0)) == (job.steps, job.evaluation_episodes)


def _write(job: Job, *, source: tuple[str | None, bool], compile_seconds: float | None) -> None:
    """Write the record of a finished run."""
    sessions = [msgspec.convert(session, Session) for session in _read_json(_sessions_file(job), [])]
    times = [(int(line["environment_steps"]), float(line["wall_time"])) for line in _read_lines(Path(job.run_dir) / "metrics.jsonl")]
    device = machine.accelerator(job.backend)
    if device is None:  # the run did not use the device whose power was measured
        sessions = [structs.replace(session, energy_joules=None) for session in sessions]
    record.write(
        Path(job.out),
        record.make(
            LearningSamples(evaluations=with_times(read_evaluations(Path(job.run_dir)), times, sessions), sessions=sessions),
            run=job.name,
            source=source,
            configuration={**job.configuration(), "run": _run_configuration(Path(job.run_dir))},
            hardware=machine.hardware(device),
            libraries=machine.libraries(),
            seed=job.seed,
            compile_seconds=compile_seconds if len(sessions) == 1 else None,
        ),
    )


def _sessions_file(job: Job) -> Path:
    return Path(job.run_dir).with_suffix(".sessions.json")


def resumable(run_dir: Path) -> bool:
    """Return True if an earlier session left a checkpoint."""
    return (run_dir / "config.json").exists() and any((run_dir / "checkpoints").glob("agent_*"))


def read_evaluations(run_dir: Path) -> list[Evaluation]:
    """Read the evaluations that the training has written so far, oldest first."""
    rows = _read_json(run_dir / "evaluation.json", [])
    return [Evaluation(step=row["step"], returns=[float(value) for value in row["returns"]], seconds=None) for row in rows]


def with_times(evaluations: Sequence[Evaluation], times: Sequence[tuple[int, float]], sessions: Sequence[Session]) -> list[Evaluation]:
    """Add the seconds to evaluations, from the next line of metrics.

    Args:
        times: environment steps and time (seconds since 1970) of each line.
    """
    started = [datetime.fromisoformat(session.started).timestamp() for session in sessions]

    def seconds(step: int) -> float | None:
        written = next((when for reached, when in times if reached >= step), None)
        number = -1 if written is None else bisect.bisect_right(started, written) - 1
        if written is None or number < 0:
            return None
        return sum(session.wall_seconds for session in sessions[:number]) + written - started[number]

    return [structs.replace(evaluation, seconds=seconds(evaluation.step)) for evaluation in evaluations]


def train(jobs: Sequence[Job], resume: bool) -> None:
    """Train with sacref and the paper's settings."""
    # Imported here: `keep_to_cores` must come first.
    from bench.core import precisions
    from sacref.config import callables
    from sacref.training import experiment, population

    job = jobs[0]
    precisions.use(job.backend, "float32")  # mixed precision of the settings adds to it
    arguments: dict[str, Any] = {
        "env": job.env,
        "backend": job.backend,
        "steps": job.steps,
        "evaluation_interval": job.evaluation_interval,
        "evaluation_episodes": job.evaluation_episodes,
        "cfg": job.settings or None,
        **job.arguments,
        "wrappers": [callables.find(name) for name in job.arguments.get("wrappers", ())],
        "resume": resume,
        # The files of a session that ended before its first checkpoint.
        "overwrite": not resume,
    }
    if len(jobs) == 1:
        experiment.train(seed=job.seed, run_dir=job.run_dir, **arguments)
    else:
        population.train_population(seeds=[job.seed for job in jobs], run_dir=Path(job.run_dir).parent, **arguments)


class _CompileTime:
    """Listener to the seconds that JAX compiles; None on a backend that does not tell."""

    def __init__(self, backend: str) -> None:
        self.seconds: float | None = None
        if backend == "jax":
            import jax.monitoring

            self.seconds = 0.0
            jax.monitoring.register_event_duration_secs_listener(self._listen)

    def _listen(self, event: str, duration_secs: float, **_: str | int) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            self.seconds = (self.seconds or 0.0) + duration_secs


@contextlib.contextmanager
def _locked(path: Path, name: str) -> Iterator[None]:
    """Hold a lock that ends with the process: no two processes train one run."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RuntimeError(f"{name} is being trained by another process ({path} is locked): wait for it or stop it") from None
        yield


@contextlib.contextmanager
def _timed(resumed: Mapping[Path, bool], source: tuple[str | None, bool]) -> Iterator[None]:
    """Append a session to each of these files and keep its times and energy current, so that a killed session counts too.

    They are exact to `HEARTBEAT_SECONDS`; the power at a heartbeat stands for the time since the last one.

    Args:
        resumed: file of a run's sessions -> True if it goes on from an earlier one. All of them are trained together.
        source: commit, and True if the code differs from it.
    """
    commit, dirty = source
    earlier: dict[Path, list[dict[str, Any]]] = {path: _read_json(path, []) if again else [] for path, again in resumed.items()}
    started, wall, cpu = _now(), time.perf_counter(), time.process_time()
    stop = threading.Event()
    energy, counted = (None if machine.power_watts() is None else 0.0), wall

    def write() -> None:
        nonlocal energy, counted
        watts = None if energy is None else machine.power_watts()
        seconds = time.perf_counter() - wall
        energy = None if energy is None or watts is None else energy + watts * (wall + seconds - counted)
        counted = wall + seconds
        for path, again in resumed.items():
            now = Session(
                started=started,
                resumed=again,
                wall_seconds=seconds,
                cpu_seconds=time.process_time() - cpu,
                members=len(resumed),
                energy_joules=energy,
                commit=commit,
                dirty=dirty,
            )
            temporary = path.with_suffix(".part")
            temporary.write_text(json.dumps([*earlier[path], msgspec.to_builtins(now)]), encoding="utf-8")
            temporary.replace(path)

    def beat() -> None:
        while not stop.wait(HEARTBEAT_SECONDS):
            write()

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        write()


def _run_configuration(run_dir: Path) -> Any:
    """Read the configuration that the training recorded, without its paths."""
    written: dict[str, Any] = _read_json(run_dir / "config.json", {})
    for path in ("directory", "experiment_name"):
        written.get("cfg", {}).get("experiment", {}).pop(path, None)
    return written


def _read_json(path: Path, default: Any) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else default


def _read_lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


if __name__ == "__main__":
    sys.exit(main())
