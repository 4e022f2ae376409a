"""Everything that results/ holds, in one command: `python -m bench` (`make bench`).

What is timed first, while nothing else runs; then parity; then the learning runs; then the report. What is recorded is not measured again.
"""

import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import tyro
from rich.console import Console

import sacref
from bench import report
from bench.core import machine, runner, timing
from bench.suites.amp import measure as amp
from bench.suites.learning import measure as learning
from bench.suites.learning.presets import COMPARISONS, PRESETS, SUITES, presets_of
from bench.suites.population import measure as population
from bench.suites.recurrent import measure as recurrent
from bench.suites.rollout import measure as rollout
from bench.suites.scaling import measure as scaling
from bench.suites.throughput import measure as throughput
from bench.suites.update import measure as update

LONGEST_SECONDS = 90 * 60.0
"""A learning preset fits a machine if its runs are estimated to take no longer."""
PARITY_SECONDS = 90.0
"""Of a thousand updates."""
PARITY_UPDATES = {"smoke": 100, "cpu": 1_000, "gpu": 1_000}


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A part of the whole."""

    name: str
    seconds: float
    """Estimated; 0 for what is recorded already."""
    run: Callable[[], int]


def main(
    *, preset: runner.Preset | None = None, learning_preset: str | None = None, results: Path | None = None, dry_run: bool = False
) -> int:
    """Measure what is not recorded yet for this version on this kind of machine, and write the report.

    Args:
        preset: smoke (every suite's, in a few minutes), cpu or gpu; unless given, cpu or gpu, as the machine is.
        learning_preset: a preset or suite of bench.learning; unless given, the longest that fits the machine, and for smoke its smoke.
        results: folder of the records; unless given results, and for smoke runs/smoke, since a smoke run is no result.
        dry_run: say what would be done, and stop.

    Returns:
        Exit status: that of the first stage that failed, else 0.
    """
    console = Console(soft_wrap=True)
    preset = preset or runner.default_preset()
    results = results or (machine.ROOT / "runs" / "smoke" if preset == "smoke" else machine.ROOT / "results")
    if learning_preset is not None and learning_preset not in {*PRESETS, *SUITES}:
        raise SystemExit(f"--learning-preset is {learning_preset!r}, expected one of {', '.join([*PRESETS, *SUITES])}")
    console.print(f"Preset {preset}; records go to {results}")
    todo = stages(preset, learning_preset or ("smoke" if preset == "smoke" else fitting_preset(results)), results)
    for stage in todo:
        console.print(f"{stage.name}: " + (f"about {timing.said(stage.seconds)}" if stage.seconds else "recorded already"))
    left = [stage for stage in todo if stage.seconds]
    console.print(_plan(left, len(todo), dry_run=dry_run))
    if dry_run:
        return 0
    status = 0
    for number, stage in enumerate(left):
        remaining = timing.said(sum(following.seconds for following in left[number:]))
        console.rule(f"{number + 1} of {len(left)}: {stage.name} (about {remaining} to the end of all)")
        outcome = stage.run()
        if outcome == 130:
            return outcome
        status = status or outcome
    reported = report.main(results=results)
    return status or reported


def _plan(left: Sequence[Stage], count: int, *, dry_run: bool) -> str:
    """What will be done, in a sentence or two."""
    if not left:
        return "All is recorded, and nothing is left to measure" + (
            ". Nothing was started." if dry_run else ": only the report is written."
        )
    takes = f"{len(left)} of {count} to measure, one after the other: about {timing.said(sum(stage.seconds for stage in left))} together"
    return takes + (". Nothing was started." if dry_run else ", then the report. Ctrl-C stops; the same command goes on where it stopped.")


def fitting_preset(results: Path) -> str:
    """The longest preset, or the standard suite, whose runs this machine does in `LONGEST_SECONDS` from the start; else the shortest.

    Of those that are there for a comparison none: alone it says little.
    """

    def seconds(name: str) -> float:
        total = 0.0
        for preset in presets_of(name):
            shared = learning.arrange(len(preset.seeds))
            # Both backends; each round of processes takes as long as one of them.
            rounds = -(-2 * -(-len(preset.seeds) // shared.together) // shared.jobs)
            runs = min(shared.together, len(preset.seeds))
            total += preset.steps * runs * rounds / learning.steps_per_second(results / "learning", _slug(), together=shared.together)
        return total

    compared = {
        name
        for comparison in COMPARISONS
        for name in (comparison.preset, comparison.beside)
        # The task as it is, with the paper's settings, says something alone, too.
        if PRESETS[name].settings or PRESETS[name].arguments
    }
    by_length = sorted((name for name in (*PRESETS, "standard") if name not in compared), key=seconds)
    return [name for name in by_length if seconds(name) <= LONGEST_SECONDS or name == by_length[0]][-1]


def stages(preset: runner.Preset, learning_preset: str, results: Path) -> list[Stage]:
    """The stages, in order."""
    cores = len(machine.available_cores())
    runs = [
        learning.plan(chosen, ("torch", "jax"), chosen.seeds, shared.jobs, results / "learning", learning.RUNS, together=shared.together)
        for chosen in presets_of(learning_preset)
        for shared in [learning.arrange(len(chosen.seeds))]
    ]
    updates = PARITY_UPDATES[preset]
    compared = {dtype: parity_file(results, dtype) for dtype in ("float64", "float32")}
    sweeps = {
        "update": update.estimated_seconds(preset, cores),
        "recurrent": recurrent.estimated_seconds(preset),
        "population": population.estimated_seconds(preset),
        "rollout": rollout.estimated_seconds(preset),
        "amp": amp.estimated_seconds(preset, cores),
        "scaling": scaling.estimated_seconds(preset),
    }
    # Ranks compute on the CPU where there is a single GPU.
    places = dict.fromkeys(sweeps, _slug()) | {"scaling": machine.slug(scaling.measured_on())}
    return [
        _throughput(preset, results / "throughput"),
        *(
            Stage(
                name=f"{suite}, preset {preset}",
                seconds=0.0 if runner.recorded(results / suite, runner.run_name(suite, preset, cores), places[suite]) else seconds,
                run=partial(_module, f"bench.{suite}", "--preset", preset, "--results", str(results / suite)),
            )
            for suite, seconds in sweeps.items()
        ),
        *(
            Stage(
                name=f"parity in {dtype}",
                seconds=0.0 if path.exists() else PARITY_SECONDS * updates / 1_000,
                run=partial(compare, dtype, path, updates),
            )
            for dtype, path in compared.items()
        ),
        Stage(
            name=f"learning, preset {learning_preset}",
            seconds=sum(plan.seconds for plan in runs),
            run=partial(_module, "bench.learning", learning_preset, "--results", str(results / "learning")),
        ),
    ]


def _throughput(preset: runner.Preset, results: Path) -> Stage:
    size = "smoke" if preset == "smoke" else "medium"
    counts = throughput.default_threads(len(machine.available_cores()))
    # One record for each: what was cut off between two of them goes on with those that are missing.
    missing = [str(count) for count in counts if not runner.recorded(results, throughput.run_name("HalfCheetah-v5", count), _slug())]
    return Stage(
        name=f"throughput, preset {size}",
        seconds=len(missing) * throughput.estimated_seconds(throughput.PRESETS[size]),
        run=partial(_module, "bench.throughput", "--preset", size, "--threads", *missing, "--results", str(results)),
    )


def parity_file(results: Path, dtype: str) -> Path:
    """Where the parity of this version on this kind of machine is recorded."""
    return results / "parity" / f"{sacref.__version__}-{_slug()}" / f"{dtype}.json"


def compare(dtype: str, path: Path, updates: int) -> int:
    """Record the drift of the backends and the oracle from each other."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return _module("sacref", "parity", "--updates", str(updates), "--dtype", dtype, "--json", str(path))


def _module(*arguments: str) -> int:
    """Run a module in a process of its own: it binds itself to cores, and must load its libraries after that."""
    try:
        return subprocess.run([sys.executable, "-m", *arguments], cwd=machine.ROOT, check=False).returncode
    except KeyboardInterrupt:
        return 130


def _slug() -> str:
    return machine.slug(machine.hardware(machine.find_accelerator()))


if __name__ == "__main__":
    sys.exit(tyro.cli(main, prog="python -m bench"))
