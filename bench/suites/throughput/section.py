"""Throughput: steps per second beside the peers' in the same run."""

import statistics as standard
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from bench.core import record
from bench.core.page import Finding, Section, digest, image, number, place, source, table
from bench.core.pictures import Picture
from bench.core.record import Record
from bench.suites.throughput import plots
from bench.suites.throughput.samples import Contender, ThroughputSamples

INTRODUCTION = (
    "Environment steps per second of the whole loop (act, step the environment, store, one gradient step per environment step; one"
    " environment, batch 256, two hidden layers of 256, float32). Median over rounds that alternate between the contenders, after"
    " warm-up; a round ends when the device is idle. Each contender has its own process, and a peer the libraries of its own"
    " environment. Strict: each action follows the update on the transition before it, and every update may sample the newest"
    " transition; chunked: the policy is up to so many steps old. A ratio is to a peer of the same run. Compiling is the time of the"
    " first steps beyond that of later ones.\n"
)
PEERS = {"SB3": "Stable-Baselines3", "SBX strict": "SBX strict", "SBX scan": "SBX scan"}
"""Heading of a column of ratios -> the contender that they are to, beside the best torch peer."""


def section(results: Path) -> Section:
    """Report the newest run of each kind of machine and number of cores."""
    newest: dict[str, Record[ThroughputSamples]] = {}
    for found in sorted(
        (record.read(path, ThroughputSamples) for path in results.glob("throughput/*/*.json")), key=lambda found: found.date
    ):
        newest[f"{place(found.hardware)}, {found.hardware.threads} of them used"] = found
    if not newest:
        return Section([], {})
    path = results / "throughput" / "throughput.png"
    charts = {where: bars(found) for where, found in newest.items()}
    paragraphs = ["## Throughput\n", INTRODUCTION, image("Environment steps per second of each contender", path, results)]
    for where, found in newest.items():
        paragraphs += _table(where, found)
    drawn = Picture(digest(charts), partial(plots.throughput_bars, machines=charts))
    return Section(paragraphs, {path: drawn}, [finding for where, found in newest.items() for finding in _findings(where, found)])


def speeds(found: Record[ThroughputSamples]) -> dict[str, list[float]]:
    """Return contender -> steps per second of each round, without those that could not run."""
    return {contender.name: [r.steps / r.seconds for r in contender.rounds] for contender in found.samples.contenders if contender.rounds}


def bars(found: Record[ThroughputSamples]) -> dict[str, plots.Bar]:
    """Return the bars of a run."""
    measured = speeds(found)
    return {
        one.name: plots.Bar(
            speeds=measured[one.name],
            backend=one.library if own(one) else None,
            strict=one.strictness in ("strict", None),
        )
        for one in found.samples.contenders
        if one.name in measured
    }


def own(one: Contender) -> bool:
    """Return True if a contender is sacref's."""
    return one.name.startswith("sacref ")


def best_torch_peer(found: Record[ThroughputSamples]) -> str | None:
    """Return the torch peer with the highest median; None if none ran."""
    measured = speeds(found)
    peers = [one.name for one in found.samples.contenders if one.library == "torch" and not own(one) and one.name in measured]
    return max(peers, key=lambda name: standard.median(measured[name]), default=None)


def _findings(where: str, found: Record[ThroughputSamples]) -> list[Finding]:
    """Compare our fastest contender with the fastest peer: strict ones, and all."""
    medians = {name: standard.median(rounds) for name, rounds in speeds(found).items()}
    sentences = []
    for kind, ones in (
        ("strict", [one for one in found.samples.contenders if one.strictness == "strict"]),
        ("any policy", found.samples.contenders),
    ):
        ours, theirs = ([one.name for one in ones if one.name in medians and own(one) is mine] for mine in (True, False))
        if ours and theirs:
            first, second = (max(names, key=medians.__getitem__) for names in (ours, theirs))
            sentences.append(
                f"{kind}: {first} {number(medians[first])}, **{medians[first] / medians[second]:.2f} times** the fastest peer"
                f" ({second}, {number(medians[second])})"
            )
    if not sentences:
        return []
    return [Finding(f"Environment steps per second, {found.configuration['env']}, {where}", "; ".join(sentences))]


def _table(where: str, found: Record[ThroughputSamples]) -> list[str]:
    measured = speeds(found)
    best = best_torch_peer(found)
    references = {f"best torch peer ({best})": best} if best else {}
    references |= {heading: name for heading, name in PEERS.items() if name in measured}
    rows = [_row(one, measured, list(references.values())) for one in found.samples.contenders]
    header = ["", "steps/s", "range of the rounds", *(f"/ {heading}" for heading in references), "policy", "execution", "compiling"]
    paragraphs = [f"### {found.configuration['env']} on {where}\n", table(header, rows)]
    if not references:
        paragraphs.append("No peer ran, so no ratio is given.\n")
    if notes := [f"- {one.name}: {remark}" for one in found.samples.contenders if one.rounds and (remark := _remark(one, found))]:
        paragraphs.append("\n".join(notes) + "\n")
    paragraphs += _versions(found)
    paragraphs.append(f"{source(found.sacref_version, found.commit, found.dirty)}; {found.date[:10]}.\n")
    return paragraphs


def _row(one: Contender, measured: Mapping[str, Sequence[float]], references: Sequence[str]) -> list[str]:
    mine = measured.get(one.name)
    if mine is None:
        return [one.name, f"missing: {one.missing}", "", *("" for _ in references), one.strictness or "", "", ""]
    ratios = [f"{standard.median(mine) / standard.median(measured[name]):.2f}" for name in references]
    compiling = "" if one.compile_seconds is None else f"{one.compile_seconds:.1f} s"
    spread = f"{number(min(mine))} to {number(max(mine))}"
    return [one.name, number(standard.median(mine)), spread, *ratios, one.strictness or "", one.execution or "", compiling]


def _remark(one: Contender, found: Record[ThroughputSamples]) -> str:
    """Describe the differences of a contender's run from the others."""
    remarks = [one.note] if one.note else []
    if one.env and one.env != found.configuration["env"]:
        remarks.append(f"Its Gymnasium has {one.env} in place of {found.configuration['env']}.")
    return " ".join(remarks)


def _versions(found: Record[ThroughputSamples]) -> list[str]:
    """List the libraries, once for all contenders that have the same."""
    named: dict[str, list[str]] = {}
    for one in found.samples.contenders:
        if one.rounds:
            libraries = one.libraries or found.libraries
            named.setdefault(", ".join(f"{name} {version}" for name, version in sorted(libraries.items())), []).append(one.name)
    return ["\n".join(f"- {', '.join(names)}: {libraries}" for libraries, names in named.items()) + "\n"] if named else []
