"""Gradient steps of populations by their size, beside one agent alone: `python -m bench population`.

No environment: the memories are filled with synthetic transitions of HalfCheetah's shapes. As in a training, the gradient steps of all
members are one call. All contenders (torch and JAX, each width and size) take turns, so that a
machine that slows down slows all of them down.
"""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from bench.core import contest, machine, runner
from bench.core.stage import Preset
from bench.suites.population.samples import PopulationCell, PopulationSamples

BATCH = 256
STORED = 20_000
"""Transitions in each member's memory."""

STEPS_PER_SECOND = {"cpu": 100.0, "gpu": 1_000.0}
"""For the estimate: gradient steps of all members together, of networks of 256."""
SECONDS_PER_SETUP = {"cpu": 3.0, "gpu": 5.0}
"""For the estimate: making and compiling a contender."""
SECONDS_PER_MEMBER = 1.0
"""Further seconds for each further member."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """The sizes that a preset measures."""

    members: tuple[int, ...]
    """The first is 1: an agent alone."""
    widths: tuple[int, ...]
    gradient_steps: int
    """In a call."""
    rounds: int
    round_seconds: float
    """A round takes at least so long, and at least one call."""


PRESETS: dict[Preset, Sizes] = {
    "smoke": Sizes(members=(1, 2), widths=(32,), gradient_steps=2, rounds=2, round_seconds=0.05),
    "cpu": Sizes(members=(1, 2, 5, 10), widths=(64, 256), gradient_steps=2, rounds=7, round_seconds=0.3),
    "gpu": Sizes(members=(1, 2, 5, 10, 20, 50), widths=(256,), gradient_steps=8, rounds=7, round_seconds=0.3),
}


def plan(preset: Preset, threads: int, seed: int) -> runner.Plan[PopulationSamples]:
    """Plan a preset on so many cores."""
    sizes = PRESETS[preset]
    return runner.Plan(
        title=f"Gradient steps per second of populations of {', '.join(map(str, sizes.members))}",
        configuration={
            "members": list(sizes.members),
            "widths": list(sizes.widths),
            "batch": BATCH,
            "stored": STORED,
            "rounds": sizes.rounds,
            "round_seconds": sizes.round_seconds,
            "dtype": "float32",
            "matmul_precision": "highest",
            "observation": 17,
            "action": 6,
        },
        pieces=[
            runner.Piece(name=f"networks of {width}", seconds=_seconds(sizes, width), measure=partial(measure, sizes, width, seed))
            for width in sizes.widths
        ],
    )


def _seconds(sizes: Sizes, width: int) -> float:
    kind = "gpu" if machine.find_accelerator() else "cpu"
    steps_per_second = STEPS_PER_SECOND[kind] * max(1.0, 256 / width)
    rounds = [max(sizes.round_seconds, members * sizes.gradient_steps / steps_per_second) for members in sizes.members]
    setup = sum(SECONDS_PER_SETUP[kind] + SECONDS_PER_MEMBER * (members - 1) for members in sizes.members)
    return len(runner.BACKENDS) * (setup + (sizes.rounds + 2) * sum(rounds))


def measure(sizes: Sizes, width: int, seed: int) -> PopulationSamples:
    """Measure all contenders of a width, in turn."""

    def contender(cell: PopulationCell) -> Any:
        return _agent(cell, seed) if cell.members == 1 else Together(cell, seed)

    measured, _ = contest.measure(cells(sizes, width), contender, {}, sizes.rounds, sizes.round_seconds)
    return PopulationSamples(cells=measured)


def cells(sizes: Sizes, width: int) -> Sequence[PopulationCell]:
    """Return the cells of a width, without timings."""
    return [
        PopulationCell(
            backend=backend,
            members=members,
            width=width,
            batch=BATCH,
            chosen=None,
            gradient_steps=sizes.gradient_steps,
            timings=[],
            compile_seconds=None,
            missing=None,
        )
        for members in sizes.members
        for backend in runner.BACKENDS
    ]


class Together:
    """Agents that learn as a population, with the methods of one agent that `contest.measure` calls.

    Args:
        cell: which population. seed: of the first member; the next ones have the next seeds.
    """

    def __init__(self, cell: PopulationCell, seed: int) -> None:
        memory = importlib.import_module(f"sacref.{cell.backend}").ReplayMemory(cell.members * STORED, cell.members)
        self.agents: list[Any] = [_agent(cell, seed + number, memory.part(number, cell.members)) for number in range(cell.members)]
        self.execution: str = self.agents[0].execution
        self._gradient_steps = cell.gradient_steps
        populate = importlib.import_module(f"sacref.{cell.backend}.population").populate
        self._population = populate(self.agents, memory, [1] * cell.members)

    def update(self, *, timestep: int, timesteps: int) -> None:
        """Take gradient steps of every member."""
        self._population.learn(range(len(self.agents)), self._gradient_steps)

    def synchronise(self) -> None:
        """Wait until the device is idle."""
        self._population.synchronise()


def _agent(cell: PopulationCell, seed: int, memory: Any = None) -> Any:
    # Imported here, as the process must be bound to its cores first.
    from bench.core import precisions, synthetic

    precisions.use(cell.backend, "float32")
    return synthetic.agent(
        cell.backend, batch_size=cell.batch, width=cell.width, stored=STORED, gradient_steps=cell.gradient_steps, seed=seed, memory=memory
    )


SWEEP = runner.Sweep(PopulationSamples, plan)
main, stages, estimated_seconds = SWEEP.main, SWEEP.stages, SWEEP.estimated_seconds
