"""Environment steps per second of sacref's two backends beside a peer's: `python -m bench.throughput`.

All contenders run in one process, on the same cores, in rounds that alternate (A B C A B C ...), so that a machine that slows down slows
all of them down. Each starts with random steps and learning steps that are not timed as steady state.
"""

import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path

import tyro
from rich.console import Console

import sacref
from bench import machine, record
from bench.peers import CONTENDERS, Contender
from bench.peers.setting import Setting
from bench.record import Round

RESULTS = machine.ROOT / "results" / "throughput"

FIRST_STEPS = 100
"""Learning steps whose time beyond steady state is taken for compiling."""
UNMEASURED_STEPS_PER_SECOND = 100.0
"""For the estimate, before anything is measured."""


def main(
    *,
    env: str = "HalfCheetah-v5",
    rounds: int = 7,
    steps: int = 1_000,
    warm_up: int = 1_000,
    threads: int | None = None,
    seed: int = 0,
    results: Path = RESULTS,
) -> int:
    """Measure every contender that is installed, and write the record.

    Args:
        env: one environment of this Gymnasium id.
        rounds: timed rounds of each contender.
        steps: environment steps in a round, each with a gradient step.
        warm_up: untimed steps before: as many random ones, then as many that learn.
        threads: cores that the process is bound to; unless told otherwise 1, or all where there is an accelerator.
        seed: of environments and agents.
        results: folder for the record.

    Returns:
        Exit status: 0, or 1 if none of sacref's own backends could run.
    """
    console = Console(soft_wrap=True)
    cores = machine.available_cores()
    found = machine.find_accelerator()
    threads = threads or (len(cores) if found else 1)
    if not (1 <= threads <= len(cores) and rounds >= 1 and steps >= 1 and warm_up >= FIRST_STEPS):
        raise SystemExit(f"expected --threads 1 to {len(cores)}, --rounds and --steps at least 1, --warm-up at least {FIRST_STEPS}")
    commit, dirty = machine.source()
    os.environ.update({**machine.ONE_THREAD, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)})
    machine.keep_to_cores(cores[:threads])
    estimate = estimated_seconds(rounds=rounds, steps=steps, warm_up=warm_up)
    console.print(
        f"Throughput on {env}: {', '.join(CONTENDERS)}; {rounds} rounds of {steps:,} steps each, {threads} core(s): "
        f"about {estimate / 60:.0f} min"
    )
    setting = Setting(env=env, seed=seed, random_steps=warm_up)
    contenders, missing = make(CONTENDERS, setting, console)
    samples = measure(contenders, missing, rounds=rounds, steps=steps, warm_up=warm_up, console=console)
    where = machine.hardware(next((name for backend in ("torch", "jax") if (name := _accelerator(backend, contenders))), None))
    name = f"{env}-{threads}core{'s' if threads > 1 else ''}"
    now = datetime.now(UTC)
    path = results / f"{now:%Y-%m-%d}-{machine.slug(where)}" / f"{name}.json"
    record.write(
        path,
        record.Record(
            schema_version=record.SCHEMA_VERSION,
            suite="throughput",
            run=name,
            date=now.isoformat(timespec="seconds"),
            sacref_version=sacref.__version__,
            commit=commit,
            dirty=dirty,
            configuration={
                "env": env,
                "rounds": rounds,
                "steps": steps,
                "warm_up": warm_up,
                "num_envs": 1,
                "gradient_steps": 1,
                "hidden": [256, 256],
                "dtype": "float32",
                "batch_size": setting.batch_size,
                "learning_rate": setting.learning_rate,
                "memory_capacity": setting.memory_capacity,
            },
            hardware=where,
            libraries=machine.libraries(),
            seed=seed,
            compile_seconds=None,
            samples=samples,
        ),
    )
    console.print(f"-> {path}")
    return 0 if any(name.startswith("sacref") for name in contenders) else 1


def estimated_seconds(*, rounds: int = 7, steps: int = 1_000, warm_up: int = 1_000) -> float:
    """How long the suite will take, at the speed of one core."""
    return len(CONTENDERS) * (rounds * steps + warm_up) / UNMEASURED_STEPS_PER_SECOND


def make(
    makers: Mapping[str, Callable[[Setting], Contender]], setting: Setting, console: Console
) -> tuple[dict[str, Contender], dict[str, str]]:
    """The contenders that are installed, and why the others are not here."""
    contenders, missing = {}, {}
    for name, maker in makers.items():
        try:
            contenders[name] = maker(setting)
        except ImportError as error:
            missing[name] = str(error)
            console.print(f"{name} is missing: {error}")
    return contenders, missing


def measure(
    contenders: Mapping[str, Contender], missing: Mapping[str, str], *, rounds: int, steps: int, warm_up: int, console: Console
) -> record.ThroughputSamples:
    """Warm every contender up, then time them in turn."""
    first = {}
    for name, contender in contenders.items():
        contender.advance(warm_up)
        first[name] = _timed(contender, FIRST_STEPS).seconds
        contender.advance(warm_up - FIRST_STEPS or 1)
        console.print(f"{name} is warm")
    timed: dict[str, list[Round]] = {name: [] for name in contenders}
    for number in range(rounds):
        for name, contender in contenders.items():
            timed[name].append(_timed(contender, steps))
        speeds = "; ".join(f"{name} {measured[-1].steps / measured[-1].seconds:,.0f}" for name, measured in timed.items())
        console.print(f"round {number + 1} of {rounds}, steps per second: {speeds}")
    results = []
    for name, contender in contenders.items():
        steady = statistics.median(measured.seconds / measured.steps for measured in timed[name])
        compiling = max(0.0, first[name] - FIRST_STEPS * steady)
        results.append(record.Contender(name=name, rounds=timed[name], compile_seconds=compiling, missing=None))
        contender.close()
    results += [record.Contender(name=name, rounds=[], compile_seconds=None, missing=why) for name, why in missing.items()]
    return record.ThroughputSamples(contenders=results)


def _timed(contender: Contender, steps: int) -> Round:
    began = time.perf_counter()
    contender.advance(steps)
    return Round(steps=steps, seconds=time.perf_counter() - began)


def _accelerator(backend: str, contenders: Mapping[str, Contender]) -> str | None:
    return machine.accelerator(backend) if f"sacref {backend}" in contenders else None


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
