"""Parity: the largest relative differences that `sacref parity` recorded, and its plots of the drift."""

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from bench.core.page import Finding, Section, digest, image, source, table
from bench.core.pictures import Picture
from bench.core.record import RecordError
from bench.suites.parity import plots

INTRODUCTION = (
    "Same weights, batches and noise: the largest difference over all updates and arrays, max\\|a-b\\| / max\\|b\\| for arrays and"
    " \\|a-b\\| / max(\\|b\\|, 1) for scalars, of the first of a pair from the second. `numpy` is the float64 oracle with a backward pass"
    " written by hand.\n"
)
BACKENDS = "torch - jax"
"""The pair of the summary."""
ROUNDING = "numpy_float32 - numpy"
"""What rounding alone does."""


@dataclass(frozen=True, kw_only=True)
class Parity:
    """What the page says of a parity record."""

    path: Path
    date: str
    source: str
    place: str
    updates: int
    dtype: str
    differences: dict[str, dict[str, float]]
    """Pair -> kind (losses, gradients, ...) -> largest relative difference."""
    traces: dict[str, dict[str, list[float]]]
    """As `differences`, after each update."""


def section(results: Path) -> Section:
    """The newest record per precision, number of updates and kind of machine."""
    newest: dict[tuple[str, int, str], Parity] = {}
    for found in sorted((read(path) for path in results.glob("parity/**/*.json")), key=lambda found: found.date):
        newest[found.dtype, found.updates, found.place] = found
    paragraphs = ["## Parity\n", INTRODUCTION] if newest else []
    pictures = {}
    findings = []
    for _, found in sorted(newest.items(), reverse=True):
        kinds = list(dict.fromkeys(kind for differences in found.differences.values() for kind in differences))
        rows = [
            [pair, *(f"{differences[kind]:.1e}" if kind in differences else "" for kind in kinds)]
            for pair, differences in found.differences.items()
        ]
        paragraphs.append(f"### {found.updates:,} updates in {found.dtype}\n")
        path = found.path.with_suffix(".png")
        pictures[path] = Picture(digest(found.dtype, found.traces), partial(plots.drift, dtype=found.dtype, pairs=found.traces))
        paragraphs.append(image(f"Drift over {found.updates:,} updates in {found.dtype}, per pair", path, results))
        if (apart := found.differences.get(BACKENDS, {}).get("parameters")) is not None:
            said = f"largest relative difference of the parameters {apart:.1e}"
            if (rounding := found.differences.get(ROUNDING, {}).get("parameters")) is not None:
                said += f"; of the oracle in {found.dtype} from itself in float64: {rounding:.1e}"
            findings.append(Finding(f"PyTorch beside JAX, {found.updates:,} updates in {found.dtype}", said))
        paragraphs.append(table(["pair", *kinds], rows))
        paragraphs.append(f"{found.source} on {found.place}; {found.date[:10]}.\n")
    return Section(paragraphs, pictures, findings)


def read(path: Path) -> Parity:
    """Read what the page needs of a parity record.

    Raises:
        RecordError: naming the file, if it is no such record.
    """
    try:
        value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if value["suite"] != "parity":
            raise RecordError(f"{path}: suite is {value['suite']!r}, expected 'parity': move the file")
        return Parity(
            path=path,
            date=str(value["date"]),
            source=source(value["sacref_version"], value["commit"], value["dirty"]),
            place=f"{value['hardware']['cpu_model']}, {value['hardware']['cores']} cores",
            updates=int(value["configuration"]["updates"]),
            dtype=str(value["configuration"]["dtype"]),
            differences={
                pair: {kind: float(largest["relative"]["value"]) for kind, largest in kinds.items()}
                for pair, kinds in value["largest"].items()
            },
            traces={
                pair: {kind: [float(each) for each in samples["relative"]] for kind, samples in kinds.items()}
                for pair, kinds in value["samples"]["differences"].items()
            },
        )
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise RecordError(f"{path}: {type(error).__name__}: {error}; run `sacref parity --json {path.name}` again") from error
