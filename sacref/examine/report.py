"""An examination as a table for the terminal, as Markdown, and as JSON."""

import datetime
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

import sacref
from sacref.examine.choices import ABOUT, VALUES
from sacref.examine.examination import Examination

SCHEMA_VERSION = 1


def summary(examination: Examination) -> str:
    """Say in one or two sentences what was found."""
    versions = ", ".join(f"{name} {version}" for name, version in examination.versions.items())
    if examination.left is None:
        number = len(examination.combinations)
        which = (
            "One combination of choices reproduces"
            if number == 1
            else f"{number} combinations of choices, which the data cannot tell apart, reproduce"
        )
        largest = max(examination.differences.values(), default=0.0)
        found = f"{which} {examination.updates} updates in {examination.dtype} to {largest:.1e} relative"
    else:
        left = examination.left
        nearest = f" (nearest, {left.difference:.1e} away: {left.nearest})" if math.isfinite(left.difference) else ""
        found = f"None of the known variants: update {left.update + 1} of the {left.scene} data leaves them at the {left.quantity}{nearest}"
    count = len(examination.mistakes)
    return f"{examination.name} ({versions}): {found}. {'No known mistake' if not count else f'{count} known mistake' + 's' * (count > 1)}."


def choice_rows(examination: Examination) -> Iterator[tuple[str, str, str]]:
    """Yield a row for each choice: its title, the implementation's value, and sacref's where it differs."""
    for name, values in examination.choices.items():
        said = " or ".join(values) if values else f"not checkable: {examination.unseen.get(name, '')}"
        own = VALUES[name][0]
        yield ABOUT[name], said, "" if not values or own in values else own


def table(examination: Examination) -> Group:
    """Make tables for a rich console."""
    choices = Table(title="Choices", title_justify="left")
    for heading in ("choice", "this implementation", "sacref, where it differs"):
        choices.add_column(heading, overflow="fold")
    for row in choice_rows(examination):
        choices.add_row(*row)
    mistakes = Table(title="Known mistakes", title_justify="left")
    for heading in ("mistake", "", "got", "expected", "what follows, or why not"):
        mistakes.add_column(heading, overflow="fold")
    styles = {"present": "bold red", "absent": "green", "not checkable": "dim"}
    for finding in examination.findings:
        mistakes.add_row(finding.mistake, Text(finding.status, styles[finding.status]), finding.got, finding.expected, finding.why)
    return Group(choices, mistakes, Text(summary(examination)))


def markdown(examination: Examination) -> str:
    """Write the examination as a page of Markdown."""
    parts = [f"# {examination.name}\n", f"{summary(examination)}\n", "## Choices\n"]
    parts.append(_rows(("choice", "this implementation", "sacref, where it differs"), choice_rows(examination)))
    parts.append("\n## Known mistakes\n")
    parts.append(_rows(("mistake", "", "got", "expected", "what follows, or why not"), examination.findings))
    return "\n".join(parts) + "\n"


def record(examination: Examination) -> dict[str, Any]:
    """Convert the examination to values that JSON can hold; differences that are not finite are None."""
    left = examination.left
    return {
        "schema_version": SCHEMA_VERSION,
        "suite": "examined",
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "sacref_version": sacref.__version__,
        "name": examination.name,
        "libraries": dict(examination.versions),
        "dtype": examination.dtype,
        "updates": examination.updates,
        "seconds": round(examination.seconds, 1),
        "identified": examination.identified,
        "left": None if left is None else left._asdict() | {"difference": _finite(left.difference)},
        "combinations": [dict(each.differences()) for each in examination.combinations],
        "choices": {name: list(values) for name, values in examination.choices.items()},
        "unseen": dict(examination.unseen),
        "differences": {kind: _finite(float(f"{value:.2e}")) for kind, value in examination.differences.items()},
        "findings": [finding._asdict() for finding in examination.findings],
    }


def write(value: Mapping[str, object], path: Path) -> None:
    """Write a record as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None


def _rows(header: tuple[str, ...], rows: Any) -> str:
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join(f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in line)} |" for line in lines)
