"""Gradient steps of several ranks that train one agent together, beside one alone: `python -m bench scaling`.

A rank is a process; ranks average their gradients in every gradient step. Weak scaling: each rank has the batch that one alone has.
Strong scaling: they share it. No environment: every rank's memory is filled with synthetic transitions of HalfCheetah's shapes. The
numbers of ranks take turns, and the others wait. Where there are several GPUs each rank has one; elsewhere the ranks share the cores of
this machine, and show the cost of the division rather than the gain of a further machine.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial

from msgspec.structs import replace

from bench.core import machine, runner, timing
from bench.core.flops import GFLOPS, update_flops
from bench.core.samples import Timing
from bench.core.stage import Preset
from bench.suites.scaling.samples import ScalingCell, ScalingSamples
from bench.suites.scaling.worker import Group, LostGroup, Work, shares

BATCH = 256
"""Batch of one rank alone."""
STORED = 20_000
"""Transitions in the memory of each rank."""
SECONDS_PER_RANK = {"cpu": 5.0, "cuda": 20.0}
"""For the estimate: starting a process, and making and compiling its agents."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """The sizes that a preset measures."""

    ranks: tuple[int, ...]
    """Numbers of ranks, 1 first; each divides `BATCH`."""
    widths: tuple[int, ...]
    gradient_steps: int
    """In one call of `agent.update`."""
    rounds: int
    round_seconds: float
    """A round takes at least so long, and at least one call."""


PRESETS: dict[Preset, Sizes] = {
    "smoke": Sizes(ranks=(1, 2), widths=(64,), gradient_steps=2, rounds=2, round_seconds=0.05),
    "cpu": Sizes(ranks=(1, 2, 4), widths=(256, 1_024), gradient_steps=4, rounds=7, round_seconds=0.5),
    "gpu": Sizes(ranks=(1, 2, 4, 8), widths=(256, 1_024, 4_096), gradient_steps=16, rounds=7, round_seconds=0.5),
}


def plan(preset: Preset, threads: int, seed: int) -> runner.Plan[ScalingSamples]:
    """Plan a preset on so many cores."""
    sizes = PRESETS[preset]
    device, counts = device_and_ranks(sizes)
    each = {str(count): len(shares(range(threads), count)[0]) for count in counts}
    return runner.Plan(
        title=f"Gradient steps per second by ranks ({', '.join(map(str, counts))}) on {device}",
        configuration={
            "ranks": list(counts),
            "device": device,
            "threads_per_rank": each,
            "widths": list(sizes.widths),
            "batch": BATCH,
            "gradient_steps": sizes.gradient_steps,
            "stored": STORED,
            "rounds": sizes.rounds,
            "round_seconds": sizes.round_seconds,
            "dtype": "float32",
            "matmul_precision": "highest",
            "observation": 17,
            "action": 6,
        },
        pieces=list(pieces(sizes, seed)),
        on_cpu=device == "cpu",
    )


def device_and_ranks(sizes: Sizes) -> tuple[str, tuple[int, ...]]:
    """Return the device and the numbers of ranks: a GPU for each rank where there are several, else the CPU, with up to four ranks."""
    gpus = len(machine.find_accelerators())
    device, most = ("cuda", gpus) if gpus > 1 else ("cpu", max(4, len(machine.available_cores())))
    return device, tuple(count for count in sizes.ranks if count <= most)


def pieces(sizes: Sizes, seed: int) -> Iterator[runner.Piece[ScalingSamples]]:
    """Yield a piece for each backend and width, with all numbers of ranks."""
    for backend in runner.BACKENDS:
        for width in sizes.widths:
            yield runner.Piece(
                name=f"{backend}, width {width}", seconds=_seconds(width, sizes), measure=partial(measure, backend, width, sizes, seed)
            )


def _seconds(width: int, sizes: Sizes) -> float:
    device, counts = device_and_ranks(sizes)
    # Cores are shared by all ranks, GPUs are not.
    speed = 1e9 * (GFLOPS["gpu"] if device == "cuda" else GFLOPS["cpu_core"] * len(machine.available_cores()))
    setup = sum(SECONDS_PER_RANK[device] * count for count in counts)
    rounds = 0.0
    for cell in cells("torch", width, device, counts, sizes):
        work = cell.gradient_steps * update_flops(observation=17, action=6, hidden=(width, width), batch=cell.batch)
        rounds += (sizes.rounds + 3) * max(sizes.round_seconds, work * (cell.ranks if device == "cpu" else 1) / speed)
    return setup + rounds


def cells(backend: str, width: int, device: str, counts: tuple[int, ...], sizes: Sizes) -> list[ScalingCell]:
    """Return the cells without timings: one rank, then each number of ranks in weak and strong scaling."""
    cores = machine.available_cores()
    return [
        ScalingCell(
            backend=backend,
            scaling=scaling,
            ranks=count,
            threads=len(shares(cores, count)[0]),
            device=device,
            batch=BATCH if scaling == "weak" else BATCH // count,
            width=width,
            chosen=None,
            gradient_steps=sizes.gradient_steps,
            timings=[],
            compile_seconds=None,
            missing=None,
        )
        for count in counts
        for scaling in (("weak", "strong") if count > 1 else ("weak",))
    ]


Start = Callable[..., Group]
"""Starts the processes of a group, with the arguments of `Group`."""


def measure(backend: str, width: int, sizes: Sizes, seed: int, start: Start = Group) -> ScalingSamples:
    """Measure all numbers of ranks of a backend and a width, in turn. The cells of a lost group say so, and have no timings."""
    device, counts = device_and_ranks(sizes)
    found = cells(backend, width, device, counts, sizes)
    if why := runner.missing_backends().get(backend):
        return ScalingSamples(cells=[replace(cell, missing=why) for cell in found])
    cores = machine.available_cores()
    timings: dict[int, list[Timing]] = {}
    first: dict[int, float] = {}
    calls: dict[int, int] = {}
    with ExitStack() as running:
        groups: Mapping[int, Group] = {
            count: running.enter_context(closing(start(backend, count, cores, device, stored=STORED, seed=seed))) for count in counts
        }
        lost: dict[int, str] = {}

        def attempt(number: int, do: Callable[[Group, Work], None]) -> None:
            cell = found[number]
            if cell.ranks in lost:
                return
            try:
                do(groups[cell.ranks], Work(cell.batch, cell.width, cell.gradient_steps))
            except LostGroup as error:
                lost[cell.ranks] = str(error)

        def prepare(group: Group, work: Work) -> None:
            found[number] = replace(found[number], chosen=group.prepare(work))
            first[number], calls[number] = timing.fill(partial(group.stretch, work), sizes.round_seconds)
            timings[number] = []

        def one_round(group: Group, work: Work) -> None:
            timings[number].append(group.stretch(work, calls[number]))

        for number in range(len(found)):
            attempt(number, prepare)
        for _ in range(sizes.rounds):
            for number in timings:
                attempt(number, one_round)
        for number in timings:
            attempt(number, Group.require_equal)
    for number, cell in enumerate(found):
        if cell.ranks in lost:
            found[number] = replace(cell, chosen=None, missing=lost[cell.ranks])
        else:
            compiling = timing.compile_seconds(first[number], cell.gradient_steps, timings[number])
            found[number] = replace(cell, timings=timings[number], compile_seconds=compiling)
    return ScalingSamples(cells=found)


SWEEP = runner.Sweep(ScalingSamples, plan)
main, stages, estimated_seconds = SWEEP.main, SWEEP.stages, SWEEP.estimated_seconds
