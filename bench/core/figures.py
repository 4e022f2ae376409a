"""The figures that records hold, each with its raw samples and which way is better."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from bench.core import statistics
from bench.core.record import (
    AmpSamples,
    FaultsSamples,
    LearningSamples,
    MutantsSamples,
    PopulationSamples,
    Record,
    RecurrentSamples,
    RolloutSamples,
    ScalingSamples,
    SoakSamples,
    ThroughputSamples,
    Timing,
    UpdateSamples,
)

BYTES = 2**20


class Figure(NamedTuple):
    """A figure: what a round, a seed or a run gave, each."""

    values: list[float]
    unit: str
    higher_is_better: bool = True
    reference: bool = False
    """Whether it tells of the machine or of a peer, and not of sacref."""


def figures(records: Sequence[Record]) -> dict[str, Figure]:
    """The figures of the records of one suite, by name. The seeds of a training are samples of one figure; every other run is its own."""
    found: dict[str, Figure] = {}
    for one in records:
        for name, figure in _figures(one):
            if isinstance(one.samples, LearningSamples):
                name = f"{one.run.removesuffix(f'-seed{one.seed}')}: {name}"
            elif len(records) > 1:
                name = f"{one.run}: {name}"
            before = found[name].values if name in found else []
            found[name] = figure._replace(values=[*before, *figure.values])
    return found


def _figures(one: Record) -> Iterator[tuple[str, Figure]]:
    samples = one.samples
    if isinstance(samples, LearningSamples):
        last = samples.evaluations[-1]
        yield "final return", Figure([statistics.mean(last.returns)], "return")
        yield "speed", Figure([last.step / sum(session.wall_seconds for session in samples.sessions)], "steps/s")
    elif isinstance(samples, ThroughputSamples):
        for contender in samples.contenders:
            values = [timed.steps / timed.seconds for timed in contender.rounds]
            if values:
                yield contender.name, Figure(values, "steps/s", reference=not contender.name.startswith("sacref"))
    elif isinstance(samples, SoakSamples):
        for run in samples.cells:
            if run.samples:
                yield f"{run.backend}, memory at the end", Figure([run.samples[-1].resident_bytes / BYTES], "MiB", higher_is_better=False)
    elif isinstance(samples, FaultsSamples):
        for of in samples.cells:
            if of.missing is None:
                name = f"{of.backend}, {of.env}{of.what and f', {of.what}'}, differences of killed runs"
                yield name, Figure([float(len(of.differences))], "", higher_is_better=False)
    elif isinstance(samples, MutantsSamples):
        for file in samples.files:
            if file.survived + file.killed + file.timed_out:
                yield f"{file.file}, mutants that survived", Figure([float(file.survived)], "", higher_is_better=False)
    else:
        yield from _by_suite(samples)


def _by_suite(
    samples: UpdateSamples | RolloutSamples | AmpSamples | RecurrentSamples | PopulationSamples | ScalingSamples,
) -> Iterator[tuple[str, Figure]]:
    def rates(name: str, timings: Sequence[Timing], unit: str, *, reference: bool = False) -> Iterator[tuple[str, Figure]]:
        if timings:
            yield name, Figure([timing.count / timing.seconds for timing in timings], unit, reference=reference)

    if isinstance(samples, UpdateSamples):
        for cell in samples.cells:
            yield from rates(f"{cell.backend} {cell.execution}, batch {cell.batch}, width {cell.width}", cell.timings, "updates/s")
        for cell in samples.stored:
            yield from rates(f"{cell.backend}, {cell.stored:,} stored", cell.timings, "updates/s")
        for size in dict.fromkeys((matmul.backend, matmul.size) for matmul in samples.matmuls):
            timings = [timing for matmul in samples.matmuls if (matmul.backend, matmul.size) == size for timing in matmul.timings]
            yield from rates(f"{size[0]}, product of {size[1]}", timings, "products/s", reference=True)
    elif isinstance(samples, RecurrentSamples):
        for one in samples.cells:
            kind = "feed-forward" if one.recurrent is None else f"{one.recurrent}, sequence {one.sequence_length}"
            yield from rates(f"{one.backend} {one.execution}, {kind}, batch {one.batch}", one.timings, "updates/s")
        for product in samples.products:
            name = f"{product.backend}, product of {product.rows} x {product.inner} and {product.inner} x {product.columns}"
            yield from rates(name, product.timings, "products/s", reference=True)
    elif isinstance(samples, PopulationSamples):
        for population in samples.cells:
            name = f"{population.backend}, {population.members} together, width {population.width}"
            yield from rates(name, population.timings, "updates/s of each")
    elif isinstance(samples, ScalingSamples):
        for several in samples.cells:
            kind = "one rank" if several.ranks == 1 else f"{several.ranks} ranks, {several.scaling}"
            yield from rates(f"{several.backend}, {kind}, width {several.width} on {several.device}", several.timings, "updates/s")
    elif isinstance(samples, RolloutSamples):
        for environment in samples.environments:
            name = f"{environment.env}, {environment.num_envs} environments"
            yield from rates(name, environment.timings, "steps/s", reference=True)
        for act in samples.acts:
            yield from rates(f"{act.backend}, acting, {act.num_envs} environments", act.timings, "calls/s")
        for loop in samples.loops:
            yield from rates(f"{loop.backend}, loop, {loop.num_envs} environments", loop.timings, "steps/s")
        for part in samples.parts:
            milliseconds = [1e3 * timing.seconds / timing.count for timing in part.timings]
            if milliseconds:
                yield f"{part.backend}, part {part.part}", Figure(milliseconds, "ms", higher_is_better=False)
    else:
        for amp in samples.cells:
            kind = "" if amp.recurrent is None else f"{amp.recurrent}, "
            name = f"{amp.backend} {amp.precision}, {kind}batch {amp.batch}, width {amp.width}"
            yield from rates(name, amp.timings, "updates/s")
            single: Mapping[str, tuple[float | None, str]] = {
                "memory": (None if amp.memory_bytes is None else amp.memory_bytes / BYTES, "MiB"),
                "loss error": (amp.loss_error, ""),
                "gradient error": (amp.gradient_error, ""),
            }
            for what, (value, unit) in single.items():
                if value is not None:
                    yield f"{name}: {what}", Figure([value], unit, higher_is_better=False)
