"""Parity: the largest relative differences that `sacref parity` recorded, and plots of the drift."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Literal, TypeAlias

import msgspec

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
"""The pair that differs by rounding alone."""


class Machine(msgspec.Struct):
    """The part of the hardware that the page shows."""

    cpu_model: str
    cores: int


class Configuration(msgspec.Struct):
    """The part of the configuration that the page shows."""

    updates: int
    dtype: str


class Largest(msgspec.Struct):
    """A difference, and where it is."""

    value: float


class Difference(msgspec.Struct):
    """The largest difference of all updates."""

    relative: Largest


class Trace(msgspec.Struct):
    """The largest difference after each update."""

    relative: list[float]


class Samples(msgspec.Struct):
    """The raw samples."""

    differences: dict[str, dict[str, Trace]]
    """Pair -> kind -> trace."""


class Parity(msgspec.Struct):
    """The part of a parity record that the page shows; its other fields are not read."""

    suite: Literal["parity"]
    date: str
    sacref_version: str
    commit: str | None
    dirty: bool
    hardware: Machine
    configuration: Configuration
    largest: dict[str, dict[str, Difference]]
    """Pair -> kind (losses, gradients, ...) -> difference."""
    samples: Samples

    @property
    def place(self) -> str:
        """The kind of machine."""
        return f"{self.hardware.cpu_model}, {self.hardware.cores} cores"

    def relative(self, pair: str, kind: str) -> float | None:
        """Return the largest relative difference of a pair; None if it was not compared."""
        found = self.largest.get(pair, {}).get(kind)
        return None if found is None else found.relative.value


Traces: TypeAlias = Mapping[str, Mapping[str, list[float]]]


def section(results: Path) -> Section:
    """Report the newest record of each precision, number of updates and kind of machine."""
    newest: dict[tuple[str, int, str], tuple[Path, Parity]] = {}
    for path, found in sorted(((path, read(path)) for path in results.glob("parity/**/*.json")), key=lambda each: each[1].date):
        newest[found.configuration.dtype, found.configuration.updates, found.place] = path, found
    paragraphs = ["## Parity\n", INTRODUCTION] if newest else []
    pictures = {}
    findings = []
    for (dtype, updates, place), (path, found) in sorted(newest.items(), key=lambda each: each[0], reverse=True):
        kinds = list(dict.fromkeys(kind for differences in found.largest.values() for kind in differences))
        rows = [
            [pair, *("" if (value := found.relative(pair, kind)) is None else f"{value:.1e}" for kind in kinds)] for pair in found.largest
        ]
        paragraphs.append(f"### {updates:,} updates in {dtype}\n")
        picture = path.with_suffix(".png")
        traces: Traces = {
            pair: {kind: trace.relative for kind, trace in of_kind.items()} for pair, of_kind in found.samples.differences.items()
        }
        pictures[picture] = Picture(digest(dtype, traces), partial(plots.drift, dtype=dtype, pairs=traces))
        paragraphs.append(image(f"Drift over {updates:,} updates in {dtype}, per pair", picture, results))
        if (apart := found.relative(BACKENDS, "parameters")) is not None:
            said = f"largest relative difference of the parameters {apart:.1e}"
            if (rounding := found.relative(ROUNDING, "parameters")) is not None:
                said += f"; of the oracle in {dtype} from itself in float64: {rounding:.1e}"
            findings.append(Finding(f"PyTorch beside JAX, {updates:,} updates in {dtype}", said))
        paragraphs.append(table(["pair", *kinds], rows))
        paragraphs.append(f"{source(found.sacref_version, found.commit, found.dirty)} on {place}; {found.date[:10]}.\n")
    return Section(paragraphs, pictures, findings)


def read(path: Path) -> Parity:
    """Read the part of a parity record that the page shows.

    Raises:
        RecordError: naming the file and the field, if it is no such record.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=Parity)
    except msgspec.DecodeError as error:
        raise RecordError(f"{path}: {error}; run `sacref parity --json {path.name}` again") from error
