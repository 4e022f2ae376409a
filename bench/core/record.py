"""The JSON record of one benchmark run: every file under results/ but those of parity and of examined implementations.

msgspec reads and checks them: it refuses a wrong type by default (cattrs converts it), names its path in the file, passes mypy --strict
without a plugin, and is one wheel of 230 kB without dependencies (pydantic brings four packages).
"""

import functools
import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Generic, TypeVar

import msgspec

import sacref
from bench.core import machine
from bench.core.samples import Samples, Strict

SCHEMA_VERSION = 6

SamplesT = TypeVar("SamplesT", bound=Samples)
SamplesT_co = TypeVar("SamplesT_co", bound=Samples, covariant=True)


class RecordError(ValueError):
    """A JSON file that is no record of this schema; the message names the file, the field and the fix."""


class Hardware(Strict, frozen=True, kw_only=True):
    """The machine of a run. It has no host name: a record is public."""

    cpu_model: str
    cores: int
    """Logical cores of the machine."""
    threads: int
    """Cores that the run was allowed to use."""
    memory_bytes: int
    accelerator: str | None
    """The device that the agent computed on, or None for the CPU."""


class Record(Strict, Generic[SamplesT_co], frozen=True, kw_only=True):
    """One run of one suite."""

    schema_version: int
    suite: str
    run: str
    """Name of the run, and of its file."""
    date: str
    """When the record was written: UTC, ISO 8601."""
    sacref_version: str
    commit: str | None
    """Commit of the source tree, or None outside a Git checkout."""
    dirty: bool
    """True if the code (not results/) differed from that commit, or there was no commit."""
    configuration: dict[str, Any]
    """Everything that was chosen: task, backend, steps, the agent's configuration."""
    hardware: Hardware
    libraries: dict[str, str]
    """Name -> version of Python and the libraries that the run used."""
    seed: int
    compile_seconds: float | None
    """Compiling, apart from steady state; None where the suite records it per contender, or the backend does not tell."""
    samples: SamplesT_co


class _Header(msgspec.Struct):
    """The fields that say how a record is to be read."""

    schema_version: int
    suite: str
    sacref_version: str


def make(
    samples: SamplesT,
    *,
    run: str,
    source: tuple[str | None, bool],
    configuration: dict[str, Any],
    hardware: Hardware,
    libraries: dict[str, str],
    seed: int,
    compile_seconds: float | None = None,
) -> Record[SamplesT]:
    """Make the record of a run that ends now, by this version of sacref.

    Args:
        source: commit, and True if the code differs from it, as `machine.source` returns them.
    """
    commit, dirty = source
    return Record(
        schema_version=SCHEMA_VERSION,
        suite=samples.suite,
        run=run,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        sacref_version=sacref.__version__,
        commit=commit,
        dirty=dirty,
        configuration=configuration,
        hardware=hardware,
        libraries=libraries,
        seed=seed,
        compile_seconds=compile_seconds,
        samples=samples,
    )


def write(path: Path, record: Record[Any]) -> None:
    """Write `record` to `path` in one move, so that a file that exists is whole.

    Raises:
        ValueError: if a number is NaN or infinite.
    """
    # Not with msgspec, which would write null for such a number.
    text = json.dumps(msgspec.to_builtins(record), indent=1, allow_nan=False) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def write_new(results: Path, record: Record[Any]) -> Path:
    """Write `record` into the folder of its suite, under its date, kind of machine and run, and return the path."""
    path = results / f"{record.date[:10]}-{machine.slug(record.hardware)}" / f"{record.run}.json"
    write(path, record)
    return path


def version(path: Path) -> str:
    """Return the version of sacref that wrote a record, without a check of the rest.

    Raises:
        RecordError: if the file is no record.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=_Header).sacref_version
    except msgspec.DecodeError as error:
        raise _refused(path, error) from error


def read(path: Path, samples: type[SamplesT]) -> Record[SamplesT]:
    """Read and check a record of one suite.

    Raises:
        RecordError: naming the file and the field, if the file is no JSON, lacks or adds a field, or holds another type.
    """
    return read_any(path, {samples.suite: samples})


def read_any(path: Path, kinds: Mapping[str, type[SamplesT]]) -> Record[SamplesT]:
    """Read and check a record of any of some suites, given as name -> type of samples.

    Raises:
        RecordError: as `read`.
    """
    try:
        return decode(path.read_bytes(), kinds)
    except (RecordError, msgspec.DecodeError) as error:
        raise _refused(path, error) from error


def decode(text: bytes, kinds: Mapping[str, type[SamplesT]]) -> Record[SamplesT]:
    """Return the record in a JSON text.

    Raises:
        RecordError: for another schema version or suite.
        msgspec.DecodeError: for everything else; its message ends with the path of the field, such as `$.samples.cells[0].batch`.
    """
    header = msgspec.json.decode(text, type=_Header)
    if header.schema_version != SCHEMA_VERSION:
        raise RecordError(f"schema_version is {header.schema_version}, expected {SCHEMA_VERSION}")
    if header.suite not in kinds:
        raise RecordError(f"suite is {header.suite!r}, expected {' or '.join(kinds)}")
    found: Record[SamplesT] = _decoder(kinds[header.suite]).decode(text)
    return found


def _refused(path: Path, error: Exception) -> RecordError:
    return RecordError(f"{path}: {error}; delete the file or run the benchmark again")


@functools.cache
def _decoder(samples: type[Samples]) -> msgspec.json.Decoder[Any]:
    record: Any = Record
    return msgspec.json.Decoder(record[samples])
