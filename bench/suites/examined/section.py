"""Examined implementations of SAC: their choices where they differ, and the known mistakes that they make."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.core.page import Finding, Section, table
from bench.core.record import RecordError
from sacref.examine.choices import ABOUT, VALUES
from sacref.examine.report import SCHEMA_VERSION

INTRODUCTION = (
    "`sacref examine` holds an implementation's updates, on given weights, batches and noise, against a NumPy oracle whose choices have"
    " names, and finds the combination that reproduces its numbers ([how](../docs/examine.md)). The networks are small, the arithmetic is"
    " float64, and the settings are the same for all; what follows is of the update alone.\n"
)
READING = (
    "Comparisons of returns say something about the implementation where the choices agree, and something about the choices where they do"
    " not. A factor in the critics' loss hardly matters under Adam, which divides it out again; a Huber loss does. A log-density"
    " with an epsilon is the exact one until actions saturate. A log-density in the Box's units moves by the sum of log(bound) over the"
    " dimensions, so that the same target entropy asks for another policy; nothing changes where the bounds are 1. A policy that is not"
    " squashed, another standard deviation, and critics that see the policy of another moment make another algorithm, with curves of its"
    " own.\n"
)
WEAK = {
    "log_prob": ("exact, from u", "log(1 - a^2 + 1e-6)", "log(1 - a^2 + 1.2e-7)", "log(max(1 - a^2, 1e-6))"),
    "critic_loss": ("1/2 (Q - y)^2, summed over critics", "(Q - y)^2, summed over critics", "1/2 (Q - y)^2, mean over critics"),
}
"""Values of a choice that hardly change a run where actions do not saturate: Adam divides a factor of the loss out again."""
ASKED = ("clipping", "schedule", "temperature_schedule", "update_ratio", "batches")
"""Choices that are no part of the plain update."""


def section(results: Path) -> Section:
    """Report the record of each implementation, sacref's first."""
    records = [read(path) for path in results.glob("examined/*.json")]
    if not records:
        return Section([], {})
    records.sort(key=lambda record: (not record["name"].startswith("sacref"), record["name"]))
    choices = [name for name in VALUES if any(record["choices"][name] not in ([VALUES[name][0]], []) for record in records)]
    rows = [[ABOUT[name], *(_choice(record, name) for record in records)] for name in choices]
    mistakes = list(dict.fromkeys(finding["mistake"] for record in records for finding in record["findings"]))
    found = [[_status(record, mistake) for record in records] for mistake in mistakes]
    shown = [[mistake, *statuses] for mistake, statuses in zip(mistakes, found, strict=True) if any("**" in status for status in statuses)]
    absent: dict[int, list[str]] = {}
    for mistake, statuses in zip(mistakes, found, strict=True):
        if not any("**" in status for status in statuses):
            absent.setdefault(statuses.count(""), []).append(mistake)
    names = [record["name"] for record in records]
    paragraphs = [
        "## Which SAC is this\n",
        INTRODUCTION,
        "Choices that are not the same everywhere; empty where it is sacref's:\n",
        table(["choice", *names], rows),
        READING,
        "\n".join(comparable(records)) + "\n",
        "Known mistakes that some of them make:\n",
        table(["mistake", *names], shown),
        "Known mistakes that none of them makes:\n",
        "\n".join(f"- {_checked(number, len(records))}: {'; '.join(absent[number])}." for number in sorted(absent, reverse=True)) + "\n",
        "\n".join(_line(record) for record in records) + "\n",
    ]
    counts = []
    for whose, mine in (("others", False), ("sacref", True)):
        found_of = [record["identified"] for record in records if record["name"].startswith("sacref") is mine]
        counts += [f"{sum(found_of)} of {len(found_of)} updates of {whose}"] if found_of else []
    said = f"{' and '.join(counts)} reproduced to rounding, choice by choice"
    return Section(paragraphs, {}, [Finding("Which SAC implementations are", said)])


def comparable(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Say which implementations can be compared with which, and what makes another algorithm of the others."""
    known = [record for record in records if record["identified"]]
    groups: dict[tuple[tuple[str, ...], ...], list[Mapping[str, Any]]] = {}
    for record in known:
        alike = [_weakened(name, record["choices"][name]) for name in VALUES if name not in ASKED]
        groups.setdefault(tuple(tuple(values) for values in alike), []).append(record)
    lines = []
    for members in groups.values():
        names = [record["name"] for record in members]
        apart = [ABOUT[name] for name in VALUES if name not in ASKED and len({tuple(record["choices"][name]) for record in members}) > 1]
        strong = [
            f"{ABOUT[name]} ({' or '.join(members[0]['choices'][name])})"
            for name, values in VALUES.items()
            if name not in ASKED and values[0] not in _weakened(name, members[0]["choices"][name])
        ]
        if len(names) > 1:
            said = f"{', '.join(names[:-1])} and {names[-1]} can be compared with each other"
            said += f"; they differ in what hardly changes a run: {'; '.join(apart)}" if apart else ": they make the same update"
        else:
            said = f"{names[0]} can be compared with none of the others"
        lines.append(f"- {said}" + (f"; unlike in sacref: {'; '.join(strong)}." if strong else "."))
    return lines


def _weakened(name: str, values: Sequence[str]) -> list[str]:
    """Replace values that hardly differ from the first of their choice by it."""
    return [WEAK[name][0] if value in WEAK.get(name, ()) else value for value in values]


def read(path: Path) -> dict[str, Any]:
    """Read a record.

    Raises:
        RecordError: if the file holds something else.
    """
    try:
        value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if (value["suite"], value["schema_version"]) != ("examined", SCHEMA_VERSION):
            raise ValueError(f"suite {value['suite']!r} of schema {value['schema_version']}")
        value["choices"] = {name: [] for name in VALUES} | value["choices"]  # Records of an examiner that saw less are read, too.
    except (ValueError, KeyError, TypeError) as error:
        raise RecordError(f"{path}: {type(error).__name__}: {error}; run `sacref examine {path.stem} --json {path.name}` again") from error
    return value


def _choice(record: Mapping[str, Any], name: str) -> str:
    values: Sequence[str] = record["choices"][name]
    return "not checkable" if not values else "" if VALUES[name][0] in values else " or ".join(values)


def _status(record: Mapping[str, Any], mistake: str) -> str:
    finding = next((each for each in record["findings"] if each["mistake"] == mistake), None)
    if finding is None or finding["status"] == "not checkable":
        return "not checkable"
    return f"**{finding['got'] or 'present'}**" if finding["status"] == "present" else ""


def _checked(number: int, of: int) -> str:
    if number == 0:
        return "Not checkable in any"
    return "Absent in all" if number == of else f"Absent in the {number} in which it can be checked"


def _line(record: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in record["libraries"].items())
    if record["left"] is not None:
        found = f"leaves every variant at the {record['left']['quantity']}"
    else:
        largest = max(record["differences"].values(), default=0.0)
        found = f"{record['updates']} updates reproduced to {largest:.1e} relative in {record['dtype']}"
    return f"- {record['name']} ({versions}): {found}."
