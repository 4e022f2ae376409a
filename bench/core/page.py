"""Parts of results/README.md: sections, tables, numbers, pictures."""

import hashlib
import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from bench.core import pictures
from bench.core.pictures import Picture
from bench.core.record import Hardware
from bench.core.statistics import Interval


class Finding(NamedTuple):
    """A line of the summary."""

    what: str
    found: str


class Section(NamedTuple):
    """A part of the page, its pictures, its findings for the summary, and other files that are made of its records."""

    paragraphs: list[str]
    pictures: Mapping[Path, Picture]
    findings: Sequence[Finding] = ()
    files: Mapping[Path, bytes] = MappingProxyType({})


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Format a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines) + "\n"


def image(about: str, path: Path, results: Path) -> str:
    """Show a picture, in the colours of the reader's page.

    Args:
        about: a description for those who do not see it.
        path: the picture for a light page, under `results`.
        results: folder of the page.
    """
    light, dark = (file.relative_to(results).as_posix() for file in (path, pictures.dark(path)))
    return (
        f'<picture>\n  <source media="(prefers-color-scheme: dark)" srcset="{dark}">\n'
        f'  <img alt="{html.escape(about)}" src="{light}">\n</picture>\n'
    )


def folded(summary: str, body: str) -> str:
    """Fold a text behind a click."""
    return f"<details><summary>{html.escape(summary)}</summary>\n\n{body}\n</details>\n"


def digest(*data: Any) -> str:
    """Hash the data of a picture, to six digits: the last digits of a number differ between machines."""
    return hashlib.sha256(json.dumps([pictures.STYLE_VERSION, *_rounded(data)], sort_keys=True).encode()).hexdigest()


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, Mapping):
        return {key: _rounded(each) for key, each in value.items()}
    return [_rounded(each) for each in value] if isinstance(value, list | tuple) else value


def number(value: float | None) -> str:
    """Format a number as an integer; None is empty."""
    return "" if value is None else f"{value:,.0f}"


def signed(value: float) -> str:
    """Format a number as an integer with its sign."""
    return f"{value:+,.0f}"


def interval(value: Interval | None, *, digits: int = 0) -> str:
    """Format both ends with so many decimals; None is empty."""
    return "" if value is None else f"[{value.low:,.{digits}f}, {value.high:,.{digits}f}]"


def source(version: str, commit: str | None, dirty: bool) -> str:
    """Name the source that a record was measured with."""
    return f"sacref {version}, " + (f"commit {commit[:10]}{' with changes' if dirty else ''}" if commit else "outside a Git checkout")


def place(hardware: Hardware) -> str:
    """Name the kind of machine that a record was measured on."""
    where = f"{hardware.cpu_model}, {hardware.cores} cores"
    return f"{hardware.accelerator}, {where}" if hardware.accelerator else where
