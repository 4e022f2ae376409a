"""Microseconds of host work of a training step, by part: `python -m bench host`.

The networks are so small (width 8, batch 8) that arithmetic costs next to nothing: the work of the host is left, which decides the speed
where the device is fast. HalfCheetah-v5, one core for each contender, one gradient step a timestep, tracking on. Each contender trains in
its own process by its own loop, a peer by the interpreter of its environment (`make bench-peers`); the rounds alternate. The calls of the
loop are timed one by one, in wall-clock time and in processor time; the rest of the loop is the time in none of them. Uploads, launches and
downloads are counted in a separate stretch (`counts.py`). The last piece times callbacks and loggers that do nothing (`hooks.py`).
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import msgspec
from msgspec.structs import replace

from bench.core import machine, runner
from bench.core.stage import Preset
from bench.peers import CONTENDERS, Peer, environments
from bench.peers.process import MissingError, Process, open_process
from bench.peers.setting import Setting
from bench.suites.host.samples import Counts, HostCell, HostSamples, Round
from bench.suites.host.worker import COUNT

Backend = Literal["torch", "jax"]
BACKENDS: tuple[Backend, ...] = get_args(Backend)
ENV = "HalfCheetah-v5"
WIDTH, BATCH = 8, 8
CAPACITY = 50_000
RANDOM_STEPS = 200
"""Environment steps before the first gradient step."""
ENVS = 10
"""Environments of one agent, or members with one environment each, in the second comparison."""
STRETCH = 100
"""Timesteps of a stretch with callbacks and loggers that do nothing."""
OVERHEAD_ENVS = (None, ENV)
"""Environments whose timesteps are timed with them; None for one that does nothing."""
SECONDS_PER_START = 8.0
SECONDS_PER_TIMESTEP = {1: 0.003, ENVS: 0.012}
"""For the estimate: of a contender, by the number of its environments together."""
SECONDS_PER_AGENT = 5.0
SECONDS_PER_BARE_TIMESTEP = 0.0005
"""For the estimate, in a process that runs already and where no part is timed."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """The sizes that a preset measures."""

    rounds: int
    timesteps: int
    """In a round."""
    warm: int
    """Timesteps after the random ones that are not measured."""
    counted: int
    """Timesteps whose uploads, launches and downloads are counted."""
    stretches: int
    """Stretches with callbacks and loggers that do nothing."""
    overhead_envs: tuple[str | None, ...] = OVERHEAD_ENVS


PRESETS: dict[Preset, Sizes] = {
    "smoke": Sizes(rounds=2, timesteps=20, warm=20, counted=5, stretches=2, overhead_envs=(None,)),
    "cpu": Sizes(rounds=7, timesteps=250, warm=150, counted=20, stretches=51),
    "gpu": Sizes(rounds=7, timesteps=500, warm=150, counted=20, stretches=51),
}


@dataclass(frozen=True, kw_only=True)
class Contender:
    """An implementation, with its number of agents and of environments of each."""

    peer: Peer
    num_envs: int = 1
    members: int = 1


def own(backend: Backend, execution: str, num_envs: int) -> Contender:
    """Return sacref's agent with an execution."""
    peer = Peer(
        name=f"sacref {backend} {execution}",
        module="own",
        library=backend,
        environment=None,
        needs=("sacref", backend, "mujoco"),
        options={"backend": backend, "execution": execution},
    )
    return Contender(peer=peer, num_envs=num_envs)


def population(backend: Backend) -> Contender:
    """Return a population of sacref's agents, with one environment each, which step in one call."""
    peer = Peer(
        name=f"sacref {backend} population",
        module="population",
        library=backend,
        environment=None,
        needs=("sacref", backend, "mujoco"),
        options={"backend": backend, "members": ENVS},
    )
    return Contender(peer=peer, members=ENVS)


def contenders(num_envs: int) -> list[Contender]:
    """Return all implementations with so many environments; with several, the populations of as many members too."""
    ours = [own(backend, execution, num_envs) for backend in BACKENDS for execution in ("auto", "plain")]
    together = [population(backend) for backend in BACKENDS] if num_envs > 1 else []
    peers = [Contender(peer=CONTENDERS[name], num_envs=num_envs) for name in ("Stable-Baselines3", "SBX strict")]
    return [*ours, *together, *peers]


def plan(preset: Preset, threads: int, seed: int) -> runner.Plan[HostSamples]:
    """Plan a preset; each contender has one core, however many there are."""
    sizes = PRESETS[preset]
    return runner.Plan(
        title=f"Host work of a training step on {ENV}",
        configuration={
            "env": ENV,
            "num_envs": [1, ENVS],
            "members": ENVS,
            "hidden": [WIDTH, WIDTH],
            "batch_size": BATCH,
            "memory_capacity": CAPACITY,
            "gradient_steps": 1,
            "rounds": sizes.rounds,
            "timesteps": sizes.timesteps,
            "counted": sizes.counted,
            "stretches": sizes.stretches,
            "stretch_timesteps": STRETCH,
            "dtype": "float32",
        },
        pieces=[
            runner.Piece(
                name=f"{num_envs} environment{'s' if num_envs > 1 else ''}",
                seconds=_seconds(sizes, num_envs),
                measure=partial(measure, contenders(num_envs), sizes, seed),
            )
            for num_envs in (1, ENVS)
        ]
        + [
            runner.Piece(
                name="callbacks and loggers",
                seconds=len(sizes.overhead_envs)
                * len(BACKENDS)
                * (SECONDS_PER_AGENT + sizes.stretches * STRETCH * SECONDS_PER_BARE_TIMESTEP),
                measure=partial(overheads, sizes, seed),
            )
        ],
    )


def _seconds(sizes: Sizes, num_envs: int) -> float:
    timesteps = sizes.rounds * sizes.timesteps + sizes.warm + sizes.counted
    return len(contenders(num_envs)) * (SECONDS_PER_START + timesteps * SECONDS_PER_TIMESTEP[num_envs])


Start = Callable[[Contender, int], Process]
"""Starts the process of a contender, with a seed."""


def start_process(contender: Contender, seed: int) -> Process:
    """Start the process of a contender on the first core.

    Raises:
        MissingError: if it has no interpreter.
    """
    setting = Setting(
        env=ENV,
        seed=seed,
        random_steps=RANDOM_STEPS,
        batch_size=BATCH,
        memory_capacity=CAPACITY,
        hidden=(WIDTH, WIDTH),
        num_envs=contender.num_envs,
    )
    cores = machine.available_cores()[:1]
    return open_process(contender.peer, setting, cores=cores, folder=environments.FOLDER, scripts={}, worker="bench.suites.host.worker")


def measure(which: Sequence[Contender], sizes: Sizes, seed: int, start: Start = start_process) -> HostSamples:
    """Time the contenders in turn, then count. One that cannot run, or stops, is missing with its reason."""
    cells = [
        HostCell(
            name=one.peer.name,
            library=one.peer.library,
            members=one.members,
            num_envs=one.num_envs,
            execution=None,
            accelerator=None,
            libraries={},
            rounds=[],
            counts=None,
            missing=None,
        )
        for one in which
    ]
    processes: dict[int, Process] = {}

    def attempt(number: int, do: Callable[[], HostCell]) -> None:
        if cells[number].missing is None:
            try:
                cells[number] = do()
            except MissingError as error:
                cells[number] = replace(cells[number], rounds=[], counts=None, missing=str(error))

    def advance(number: int, timesteps: int, words: str = "") -> dict[str, Any]:
        steps = timesteps * which[number].num_envs * which[number].members
        return processes[number].ask(f"advance {steps} {words}".strip())

    def warm(number: int) -> HostCell:
        processes[number] = running.enter_context(closing(start(which[number], seed)))
        about = processes[number].start()
        # The random steps are of each member.
        advance(number, RANDOM_STEPS // which[number].num_envs + sizes.warm)
        return replace(cells[number], execution=about.execution, accelerator=about.accelerator, libraries=about.libraries)

    def one_round(number: int) -> HostCell:
        answer = advance(number, sizes.timesteps)
        timed = {name: answer[name] for name in ("seconds", "processor_seconds", "parts")}
        found = msgspec.convert({"timesteps": sizes.timesteps, **timed}, Round)
        return replace(cells[number], rounds=[*cells[number].rounds, found])

    def count(number: int) -> HostCell:
        answer = advance(number, sizes.counted, COUNT)
        counted = {name: answer[name] for name in ("uploads", "launches", "downloads")}
        each = {name: None if total is None else total / sizes.counted for name, total in counted.items()}
        found = msgspec.convert({"timesteps": sizes.counted, "unit": answer["unit"], **each}, Counts)
        return replace(cells[number], counts=found)

    with ExitStack() as running:
        for number in range(len(which)):
            attempt(number, partial(warm, number))
        for _ in range(sizes.rounds):
            for number in range(len(which)):
                attempt(number, partial(one_round, number))
        for number in range(len(which)):
            attempt(number, partial(count, number))
    return HostSamples(cells=cells)


def overheads(sizes: Sizes, seed: int) -> HostSamples:
    """Time callbacks and loggers that do nothing."""
    from bench.suites.host import hooks  # which imports NumPy: the process must be bound to its core first

    settings = {
        "seed": seed,
        "hidden": (WIDTH, WIDTH),
        "memory_capacity": CAPACITY,
        "cfg": {
            "batch_size": BATCH,
            "random_timesteps": RANDOM_STEPS,
            "learning_starts": RANDOM_STEPS,
            "experiment": {"write_interval": STRETCH, "checkpoint_interval": 0},
        },
    }
    sized = {"warm": RANDOM_STEPS + sizes.warm, "timesteps": STRETCH, "stretches": sizes.stretches}
    return HostSamples(
        cells=[], overheads=[hooks.measure(backend, env, settings=settings, **sized) for env in sizes.overhead_envs for backend in BACKENDS]
    )


SWEEP = runner.Sweep(HostSamples, plan, threads=1)
main, stages, estimated_seconds = SWEEP.main, SWEEP.stages, SWEEP.estimated_seconds
