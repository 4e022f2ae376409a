"""Environment steps per second of sacref's two backends beside their peers: `python -m bench throughput`.

Every contender trains in its own process, a peer by the interpreter of its own environment (`make bench-peers`), and only one works at a
time: the rounds alternate (A B C A B C ...), so that a machine that slows down slows all of them down. A round is a number of whole cycles
(step the environment, store, update, act), timed inside the process from an idle device to an idle device. Start-up, compiling and the
first learning steps are not in the rounds. A peer that cannot run is recorded as missing, with the reason.
"""

import dataclasses
import hashlib
import json
import os
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
import tyro
from msgspec.structs import replace
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

import sacref
from bench.core import machine, record, runner, stage, timing
from bench.core.stage import Choices, Stage
from bench.peers import CHUNK, CONTENDERS, Peer, environments
from bench.peers.process import Description, MissingError, Process, open_process
from bench.peers.setting import Setting
from bench.suites.throughput.samples import Contender, Round, ThroughputSamples

PARTIAL = machine.ROOT / "runs" / "bench" / "throughput"
"""Folder of the rounds of unfinished runs."""

UNMEASURED_STEPS_PER_SECOND = 100.0
UNMEASURED_SECONDS_TO_START = 8.0
"""For the estimate, before anything is measured: of one contender, compiling included."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """The sizes that a preset measures."""

    rounds: int
    steps: int
    """Environment steps in a round, each with a gradient step; a multiple of `CHUNK`."""
    random_steps: int
    """Environment steps before the first gradient step."""
    first_steps: int
    """First random and first learning steps, whose time beyond further ones is taken for compiling."""
    warm_steps: int
    """Further learning steps that are not measured."""
    start_within: float | None = None
    """Seconds after which no further contender is started."""

    @property
    def estimated_seconds(self) -> float:
        """Estimated seconds of one contender."""
        learning = self.first_steps + self.warm_steps + self.rounds * self.steps
        return UNMEASURED_SECONDS_TO_START + learning / UNMEASURED_STEPS_PER_SECOND


PRESETS = {
    "smoke": Size(rounds=1, steps=64, random_steps=256, first_steps=64, warm_steps=64, start_within=35.0),
    "medium": Size(rounds=7, steps=512, random_steps=1_024, first_steps=128, warm_steps=384),
}


def main(
    *,
    preset: Literal["smoke", "medium"] = "medium",
    env: str = "HalfCheetah-v5",
    only: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME...")] = (),
    threads: Annotated[tuple[int, ...], tyro.conf.arg(metavar="N...")] = (),
    rounds: int | None = None,
    steps: int | None = None,
    cleanrl: Path | None = None,
    leanrl: Path | None = None,
    environments_folder: Annotated[Path, tyro.conf.arg(name="environments")] = environments.FOLDER,
    seed: int = 0,
    results: Path | None = None,
    dry_run: bool = False,
) -> int:
    """Measure every contender that can be run, and write a record per number of threads. A run that was stopped goes on where it was.

    Args:
        preset: medium (7 rounds of 512 steps; a quarter of an hour for each number of threads) or smoke (one round of 64 steps, within a
            minute; what is not started in time is left out).
        env: one environment of this Gymnasium id.
        only: names of contenders, as in the plan; all, unless given.
        threads: cores that each contender is bound to, one record for each number; unless given 1 and 2, with an accelerator all of them.
        rounds: timed rounds of each contender, in place of the preset's.
        steps: environment steps in a round, in place of the preset's; a multiple of 64.
        cleanrl: path of CleanRL's sac_continuous_action.py; else that in CLEANRL_SAC.
        leanrl: path of LeanRL's sac_continuous_action_torchcompile.py; else that in LEANRL_SAC.
        environments_folder: folder of the peers' environments, which `make bench-peers` makes.
        seed: of environments and agents.
        results: folder for the records; unless told otherwise results/throughput, but runs/smoke/throughput for smoke and
            runs/part/throughput with --only, whose records stay out of the report.
        dry_run: print the plan, and stop.

    Returns:
        Exit status: 0; 1 if none of sacref's own contenders that were to run could; 130 after Ctrl-C.
    """
    console = Console(soft_wrap=True)
    size = PRESETS[preset]
    size = dataclasses.replace(size, rounds=size.rounds if rounds is None else rounds, steps=size.steps if steps is None else steps)
    if size.rounds < 1 or size.steps < CHUNK or size.steps % CHUNK:
        raise SystemExit(f"--rounds is {size.rounds}, --steps {size.steps}, expected at least 1 and a positive multiple of {CHUNK}")
    if unknown := [name for name in only if name not in CONTENDERS]:
        raise SystemExit(f"--only names {', '.join(unknown)}, expected some of: {', '.join(CONTENDERS)}")
    available = machine.available_cores()
    threads = threads or default_threads(len(available))
    if not all(1 <= count <= len(available) for count in threads):
        raise SystemExit(f"--threads is {' '.join(map(str, threads))}, expected numbers from 1 to {len(available)}")
    run = Run(
        preset=preset,
        size=size,
        setting=Setting(env=env, seed=seed, random_steps=size.random_steps),
        peers=[CONTENDERS[name] for name in only] or list(CONTENDERS.values()),
        folder=environments_folder.absolute(),
        scripts=find_scripts({"CLEANRL_SAC": cleanrl, "LEANRL_SAC": leanrl}),
        results=results or default_results(preset, only),
    )
    takes = timing.said(estimated_seconds(size, len(run.peers)))
    names = ", ".join(peer.name for peer in run.peers)
    console.print(f"Throughput on {env}, preset {preset}: {size.rounds} round(s) of {size.steps} steps of each of {names}")
    for count in threads:
        console.print(f"  {count} thread(s): about {takes}")
    if dry_run:
        return 0
    try:
        return max([one(run, available[:count], console) for count in threads])
    except KeyboardInterrupt:
        console.print("Interrupted: the whole rounds are kept; the same command goes on from there.")
        return 130


@dataclass(frozen=True, kw_only=True)
class Run:
    """The options of a run but for the number of threads."""

    preset: str
    size: Size
    setting: Setting
    peers: Sequence[Peer]
    folder: Path
    scripts: Mapping[str, Path]
    results: Path


def stages(choices: Choices) -> list[Stage]:
    """Return this suite's part of `python -m bench`: the numbers of threads that have no record yet."""
    size, results = "smoke" if choices.preset == "smoke" else "medium", choices.results / "throughput"
    here = machine.slug(machine.hardware(machine.find_accelerator()))
    counts = default_threads(len(machine.available_cores()))
    missing = [str(count) for count in counts if not runner.recorded(results, run_name("HalfCheetah-v5", count), here)]
    return [
        Stage(
            name=f"throughput, preset {size}",
            seconds=len(missing) * estimated_seconds(PRESETS[size]),
            run=partial(stage.module, "bench", "throughput", "--preset", size, "--threads", *missing, "--results", str(results)),
        )
    ]


def default_threads(available: int) -> tuple[int, ...]:
    """Return the default numbers of threads."""
    return (available,) if machine.find_accelerator() else tuple(sorted({1, min(2, available)}))


def default_results(preset: str, only: Sequence[str]) -> Path:
    """Return the folder of the records; a smoke run, or one without its peers, is no result, and stays out of the report."""
    runs = machine.ROOT / "runs"
    return (runs / "smoke" if preset == "smoke" else runs / "part" if only else machine.ROOT / "results") / "throughput"


def estimated_seconds(size: Size | None = None, contenders: int = len(CONTENDERS)) -> float:
    """Estimate the seconds of one number of threads, at the speed of one core; without a size, those of the default run."""
    if size is None:
        return len(default_threads(len(machine.available_cores()))) * estimated_seconds(PRESETS["medium"])
    seconds = contenders * size.estimated_seconds
    return seconds if size.start_within is None else min(seconds, 2 * size.start_within)


def run_name(env: str, threads: int) -> str:
    """Return the name of the record of a number of threads."""
    return f"{env}-{threads}core{'s' if threads > 1 else ''}"


def find_scripts(given: Mapping[str, Path | None]) -> dict[str, Path]:
    """Return environment variable -> path of a peer's script, from the command line, else from the variable."""
    found = {}
    for name, path in given.items():
        if path is None and name in os.environ:
            path = Path(os.environ[name])
        if path is None:
            continue
        if not path.is_file():
            raise SystemExit(f"{name}: {path} is no file, expected the path of the script")
        found[name] = path.absolute()
    return found


def one(run: Run, cores: Sequence[int], console: Console) -> int:
    """Measure at one number of threads, and write the record."""
    commit, dirty = machine.source()
    began = datetime.now(UTC)

    def start(peer: Peer) -> Process:
        late = run.size.start_within
        if late is not None and (datetime.now(UTC) - began).total_seconds() > late:
            raise MissingError(f"not started within the {late:.0f} s of the preset {run.preset}")
        return open_process(peer, run.setting, cores=cores, folder=run.folder, scripts=run.scripts)

    name = run_name(run.setting.env, len(cores))
    configuration = {
        "preset": run.preset,
        **dataclasses.asdict(run.size),
        "env": run.setting.env,
        "num_envs": 1,
        "gradient_steps": 1,
        "hidden": [256, 256],
        "dtype": "float32",
        "batch_size": run.setting.batch_size,
        "learning_rate": run.setting.learning_rate,
        "memory_capacity": run.setting.memory_capacity,
        "contenders": [peer.name for peer in run.peers],
    }
    circumstances = [sacref.__version__, name, configuration, run.setting.seed, commit, dirty, machine.slug(machine.hardware(None))]
    with processes(run.peers, start, run.size, console) as (running, missing):
        described = {name: dataclasses.asdict(warm.description) for name, warm in running.items()}
        kept = Kept(PARTIAL, name, [circumstances, described, sorted(missing)])
        timed, stopped = rounds_of({name: warm.process for name, warm in running.items()}, run.size, kept, console)
    samples = ThroughputSamples(
        contenders=[contender(peer, running.get(peer.name), timed.get(peer.name), {**missing, **stopped}) for peer in run.peers]
    )
    measured = [one for one in samples.contenders if one.missing is None]
    accelerator = next((one.accelerator for one in measured if one.accelerator), None)
    where = replace(machine.hardware(accelerator), threads=len(cores))
    path = record.write_new(
        run.results,
        record.make(
            samples,
            run=name,
            source=(commit, dirty),
            configuration=configuration,
            hardware=where,
            libraries=machine.libraries(),
            seed=run.setting.seed,
        ),
    )
    kept.path.unlink(missing_ok=True)
    console.print(f"-> {path}")
    wanted = {peer.name for peer in run.peers if peer.own}
    return 1 if wanted and not wanted & {one.name for one in measured} else 0


class Warm(NamedTuple):
    """A contender that has learned for a while, and waits."""

    process: Process
    description: Description
    first_random: Round
    """Its first steps: what storing compiles is in them."""
    random: Round
    """Further random ones."""
    first: Round
    """The last `CHUNK` random steps and the first learning ones: what the policy and learning compile is in them."""

    def compile_seconds(self, steady: float) -> float:
        """Return the time of its first steps beyond that of later ones.

        Args:
            steady: seconds of a learning step later on.
        """
        random = self.random.seconds / self.random.steps
        storing = self.first_random.seconds - self.first_random.steps * random
        learning = self.first.seconds - CHUNK * random - (self.first.steps - CHUNK) * steady
        return max(0.0, storing) + max(0.0, learning)


@contextmanager
def processes(
    peers: Sequence[Peer], start: Callable[[Peer], Process], size: Size, console: Console
) -> Iterator[tuple[dict[str, Warm], dict[str, str]]]:
    """Start the contenders one after the other, let each learn for a while, and end them all afterwards.

    Yields:
        The contenders that run, and the reasons of the others.
    """
    running: dict[str, Warm] = {}
    missing: dict[str, str] = {}
    opened: list[Process] = []
    try:
        for peer in peers:
            try:
                process = start(peer)
                opened.append(process)
                description = process.start()
                first_random = process.advance(size.first_steps)
                # The action of the first step after the random ones is chosen within the stretch of the last random one.
                random = process.advance(size.random_steps - size.first_steps - CHUNK)
                warm = Warm(process, description, first_random, random, first=process.advance(CHUNK + size.first_steps))
                process.advance(size.warm_steps)
                running[peer.name] = warm
                console.print(f"{peer.name} is warm ({description.execution})", markup=False)
            except MissingError as error:
                missing[peer.name] = str(error)
                console.print(f"{peer.name} is missing: {error}", markup=False)
        yield running, missing
    finally:
        for process in opened:
            process.close()


def rounds_of(running: Mapping[str, Process], size: Size, kept: "Kept", console: Console) -> tuple[dict[str, list[Round]], dict[str, str]]:
    """Time the contenders in turn.

    Returns:
        Each contender's rounds, those of an earlier start included; and the reasons of contenders that stopped.
    """
    stopped: dict[str, str] = {}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    # Drawn between stretches: a thread that draws would slow down the measurement.
    with Progress(*columns, console=console, auto_refresh=False) as progress:
        if kept.rounds:
            console.print(f"{len(kept.rounds)} round(s) were measured by an earlier start")
        task = progress.add_task("rounds", total=size.rounds * len(running), completed=len(kept.rounds) * len(running))
        for number in range(len(kept.rounds), size.rounds):
            measured: dict[str, Round] = {}
            for name, process in running.items():
                if name in stopped:
                    continue
                progress.update(task, description=f"round {number + 1}: {name}", refresh=True)
                try:
                    measured[name] = process.advance(size.steps)
                except MissingError as error:
                    stopped[name] = str(error)
                    console.print(f"{name} stopped: {error}", markup=False)
                progress.advance(task)
            kept.add(measured)
            speeds = "; ".join(f"{name} {timed.steps / timed.seconds:,.0f}" for name, timed in measured.items())
            console.print(f"round {number + 1} of {size.rounds}, steps per second: {speeds}", markup=False)
        progress.refresh()
    return {name: [measured[name] for measured in kept.rounds if name in measured] for name in running}, stopped


def contender(peer: Peer, warm: Warm | None, rounds: Sequence[Round] | None, missing: Mapping[str, str]) -> Contender:
    """Describe a contender for the record; one that stopped is missing, and its rounds are dropped."""
    about: dict[str, Any] = {"name": peer.name, "library": peer.library, "strictness": peer.strictness, "note": peer.note}
    if warm is None or not rounds or peer.name in missing:
        of_process: dict[str, Any] = {"execution": None, "env": None, "accelerator": None, "settings": {}, "libraries": {}}
        return Contender(**about, **of_process, rounds=[], compile_seconds=None, missing=missing[peer.name])
    steady = statistics.median(timed.seconds / timed.steps for timed in rounds)
    return Contender(
        **about,
        rounds=list(rounds),
        compile_seconds=warm.compile_seconds(steady),
        missing=None,
        execution=warm.description.execution,
        env=warm.description.env,
        accelerator=warm.description.accelerator,
        settings=warm.description.settings,
        libraries=warm.description.libraries,
    )


class Kept:
    """The rounds of an unfinished run, a line each, in a file that is named after the configuration, source and machine."""

    def __init__(self, folder: Path, name: str, circumstances: Any) -> None:
        key = hashlib.sha256(json.dumps(circumstances, sort_keys=True).encode()).hexdigest()[:16]
        self.path = folder / f"{name}-{key}.jsonl"
        text = self.path.read_text(encoding="utf-8") if self.path.exists() else ""
        lines = text[: text.rfind("\n") + 1].splitlines()
        if self.path.exists():  # without the line that a kill cut short
            self.path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        self.rounds: list[dict[str, Round]] = [msgspec.json.decode(line, type=dict[str, Round]) for line in lines]

    def add(self, measured: Mapping[str, Round]) -> None:
        """Keep the timings of a round."""
        self.rounds.append(dict(measured))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as file:
            file.write(msgspec.json.encode(measured) + b"\n")
