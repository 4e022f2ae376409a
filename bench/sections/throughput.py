"""Throughput: steps per second beside the peer's in the same run."""

import statistics as standard
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from bench import plots, record
from bench.record import Contender, Record, ThroughputSamples
from bench.sections import Picture, Section, digest, number, place, source, table

INTRODUCTION = (
    "Environment steps per second of the whole loop (act, step the environment, store, one gradient step per environment step; one"
    " environment, batch 256, two hidden layers of 256, float32). Median over rounds that alternate between the contenders in one process,"
    " after warm-up; a round ends when the device is idle. Compiling is what the first learning steps took beyond steady state.\n"
)


def section(results: Path) -> Section:
    """The newest run per kind of machine and number of cores."""
    newest: dict[str, Record] = {}
    for found in sorted((record.read(path) for path in results.glob("throughput/*/*.json")), key=lambda found: found.date):
        newest[f"{place(found)}, {found.hardware.threads} of them used"] = found
    if not newest:
        return Section([], {})
    path = results / "throughput" / "throughput.png"
    bars = {where: speeds(found) for where, found in newest.items()}
    paragraphs = ["## Throughput\n", INTRODUCTION, f"![Environment steps per second of each contender](throughput/{path.name})\n"]
    for where, found in newest.items():
        paragraphs += _table(where, found)
    return Section(paragraphs, {path: Picture(digest(bars), partial(plots.throughput_bars, machines=bars))})


def speeds(found: Record) -> dict[str, list[float]]:
    """Contender -> steps per second of each round; contenders that could not run are left out."""
    return {contender.name: [r.steps / r.seconds for r in contender.rounds] for contender in _contenders(found) if contender.rounds}


def peer_of(measured: Mapping[str, Sequence[float]]) -> str | None:
    """The first contender that is not sacref's."""
    return next((name for name in measured if not name.startswith("sacref")), None)


def _table(where: str, found: Record) -> list[str]:
    measured = speeds(found)
    peer = peer_of(measured)
    rows = []
    for contender in _contenders(found):
        mine = measured.get(contender.name)
        if mine is None:
            rows.append([contender.name, f"missing: {contender.missing}", "", "", ""])
            continue
        ratio = f"{standard.median(mine) / standard.median(measured[peer]):.2f}" if peer else "no peer in this run"
        compiling = "" if contender.compile_seconds is None else f"{contender.compile_seconds:.1f} s"
        rows.append([contender.name, number(standard.median(mine)), f"{number(min(mine))} to {number(max(mine))}", ratio, compiling])
    libraries = ", ".join(f"{name} {version}" for name, version in sorted(found.libraries.items()))
    return [
        f"### {found.configuration['env']} on {where}\n",
        table(["", "steps/s", "range of the rounds", f"ratio to {peer or 'the peer'}", "compiling"], rows),
        f"{source(found.sacref_version, found.commit, found.dirty)}; {found.date[:10]}; {libraries}.\n",
    ]


def _contenders(found: Record) -> list[Contender]:
    assert isinstance(found.samples, ThroughputSamples)
    return found.samples.contenders
