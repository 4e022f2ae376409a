"""The sections of results/README.md, and what they share: a table, a number, a picture that is due."""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bench import plots
from bench.record import Record
from bench.statistics import Interval


class Picture(NamedTuple):
    """A picture that the report needs."""

    digest: str
    """Of what it is drawn from."""
    draw: Callable[[Path, str], None]
    """Draws it to a path, with the digest."""


class Section(NamedTuple):
    """A part of the page, and the pictures that it shows."""

    paragraphs: list[str]
    pictures: dict[Path, Picture]


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines) + "\n"


def digest(*data: Any) -> str:
    """What a picture is drawn from, in one word."""
    return hashlib.sha256(json.dumps([plots.STYLE_VERSION, *data], sort_keys=True).encode()).hexdigest()


def number(value: float | None) -> str:
    """Rounded to an integer, or empty."""
    return "" if value is None else f"{value:,.0f}"


def interval(value: Interval | None) -> str:
    """Both ends, or empty."""
    return "" if value is None else f"[{number(value.low)}, {number(value.high)}]"


def source(version: str, commit: str | None, dirty: bool) -> str:
    """The source that a record was measured with."""
    return f"sacref {version}, " + (f"commit {commit[:10]}{' with changes' if dirty else ''}" if commit else "outside a Git checkout")


def place(found: Record) -> str:
    """The kind of machine that a record was measured on."""
    where = f"{found.hardware.cpu_model}, {found.hardware.cores} cores"
    return f"{found.hardware.accelerator}, {where}" if found.hardware.accelerator else where
