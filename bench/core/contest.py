"""Interleaved timing of agents that take gradient steps and of matrix products."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from msgspec.structs import replace

from bench.core import runner, timing
from bench.core.samples import TimedCell, Timing
from bench.core.timing import Timed

CellT = TypeVar("CellT", bound=TimedCell)
KeyT = TypeVar("KeyT", bound=Hashable)


def measure(
    cells: Sequence[CellT],
    agent_of: Callable[[CellT], Any],
    products: Mapping[KeyT, Callable[[], Timed]],
    rounds: int,
    round_seconds: float,
) -> tuple[list[CellT], dict[KeyT, list[Timing]]]:
    """Time cells and products in turn. A cell that does not fit the memory says so, and has no timings.

    Args:
        cells: without timings.
        agent_of: makes the agent of a cell, ready to learn.
        products: makes each product.
        rounds: number of rounds of each contender.
        round_seconds: least duration of a round of more than one call.
    """
    found = list(cells)
    missing = runner.missing_backends()
    contenders: dict[int | KeyT, tuple[Timed, int]] = {}
    first: dict[int, float] = {}
    for number, cell in enumerate(found):
        if why := missing.get(cell.backend):
            found[number] = replace(cell, missing=why)
            continue
        try:
            agent = agent_of(cell)
            timed = Timed(call=partial(agent.update, timestep=0, timesteps=1), synchronise=agent.synchronise, count=cell.gradient_steps)
            first[number], calls = timing.warm(timed, round_seconds)
            contenders[number] = timed, calls
            found[number] = replace(cell, chosen=agent.execution)
        except Exception as error:
            if not runner.does_not_fit(error):
                raise
            found[number] = replace(cell, missing="does not fit the memory")
    for key, make in products.items():
        timed = make()
        contenders[key] = timed, timing.warm(timed, round_seconds)[1]
    timings = timing.interleave(contenders, rounds)
    for number, before in first.items():
        compiling = timing.compile_seconds(before, found[number].gradient_steps, timings[number])
        found[number] = replace(found[number], timings=timings[number], compile_seconds=compiling)
    return found, {key: timings[key] for key in products}


def product(backend: str, rows: int, inner: int, columns: int) -> Timed:
    """Make products of two float32 matrices, many in a call, so that the cost of a call does not count."""
    from bench.core import precisions, products

    precisions.use(backend, "float32")
    return (products.TorchProducts if backend == "torch" else products.JaxProducts)(products.Shape(rows, inner, columns)).timed
