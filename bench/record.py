"""The JSON record of one benchmark run: what every file under results/learning and results/throughput holds.

A record that lacks a field, has one too many, or holds another type is refused on reading, so no table can be drawn from half a record.
"""

import dataclasses
import json
import math
import os
import types
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

SCHEMA_VERSION = 1


class RecordError(ValueError):
    """A JSON file that is no record of this schema; the message names the file, the field and the fix."""


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """What the run ran on. No host names: a record is public."""

    cpu_model: str
    cores: int
    """Logical cores of the machine."""
    threads: int
    """Cores that the run was allowed to use."""
    memory_bytes: int
    accelerator: str | None
    """The device that the agent computed on, or None for the CPU."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Deterministic episodes at one point of the training."""

    step: int
    """Environment steps trained before it."""
    returns: list[float]
    """Undiscounted sum of rewards of each episode."""


@dataclass(frozen=True, kw_only=True)
class Session:
    """One uninterrupted stretch of a run; a run that was resumed has several."""

    started: str
    """UTC, ISO 8601."""
    resumed: bool
    wall_seconds: float
    """The whole session: environments, updates, evaluations and, on JAX, compiling."""
    cpu_seconds: float
    """Processor time of the same; about `wall_seconds` for a run that keeps to one thread."""


@dataclass(frozen=True, kw_only=True)
class LearningSamples:
    """Raw samples of one training run."""

    evaluations: list[Evaluation]
    """At every evaluation interval, oldest first; the last is the final one."""
    sessions: list[Session]


@dataclass(frozen=True, kw_only=True)
class Round:
    """One timed stretch of one contender."""

    steps: int
    """Environment steps, each with its gradient steps."""
    seconds: float
    """From before the first step until the device is idle after the last."""


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One implementation in a throughput run."""

    name: str
    rounds: list[Round]
    """In the order in which they were timed, one of each contender in turn. Empty if it could not run."""
    compile_seconds: float | None
    """What the first learning steps took beyond steady state; None if it could not run."""
    missing: str | None
    """Why it could not run, or None."""


@dataclass(frozen=True, kw_only=True)
class ThroughputSamples:
    """Raw samples of one throughput run: every contender, timed in interleaved rounds in one process."""

    contenders: list[Contender]


@dataclass(frozen=True, kw_only=True)
class Record:
    """One run of one suite."""

    schema_version: int
    suite: Literal["learning", "throughput"]
    run: str
    """Name of the run, and of its file."""
    date: str
    """When the record was written: UTC, ISO 8601."""
    sacref_version: str
    commit: str | None
    """Of the source tree, or None outside a Git checkout."""
    dirty: bool
    """Whether the code (not results/) differed from that commit, or there was no commit."""
    configuration: dict[str, Any]
    """Everything that was chosen: task, backend, steps, the agent's configuration."""
    hardware: Hardware
    libraries: dict[str, str]
    """Name -> version of Python and the libraries that the run used."""
    seed: int
    compile_seconds: float | None
    """Compiling, apart from steady state; None where the suite records it per contender, or the backend does not tell."""
    samples: LearningSamples | ThroughputSamples


_SAMPLES = {"learning": LearningSamples, "throughput": ThroughputSamples}
_Decoded = TypeVar("_Decoded")


def write(path: Path, record: Record) -> None:
    """Write `record` to `path` in one move, so that a file that exists is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(dataclasses.asdict(record), indent=1, allow_nan=False) + "\n"
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def read(path: Path) -> Record:
    """Read and check a record.

    Raises:
        RecordError: naming the file and the field, if the file is no JSON, lacks or adds a field, or holds another type.
    """
    try:
        return decode(json.loads(path.read_text(encoding="utf-8")))
    except (RecordError, ValueError) as error:
        raise RecordError(f"{path}: {error}; delete the file or run the benchmark again") from error


def decode(value: Any) -> Record:
    """A record from parsed JSON.

    Raises:
        RecordError: naming the field.
    """
    if not isinstance(value, Mapping):
        raise RecordError(f"the record is {type(value).__name__}, expected an object")
    if value.get("schema_version") != SCHEMA_VERSION:
        raise RecordError(f"schema_version is {value.get('schema_version')!r}, expected {SCHEMA_VERSION}")
    suite = value.get("suite")
    if not isinstance(suite, str) or suite not in _SAMPLES:
        raise RecordError(f"suite is {suite!r}, expected one of {', '.join(_SAMPLES)}")
    return _dataclass(Record, value, "", {"samples": _SAMPLES[suite]})


def _dataclass(kind: type[_Decoded], value: Any, path: str, narrowed: Mapping[str, Any]) -> _Decoded:
    if not isinstance(value, Mapping):
        raise RecordError(f"{path or 'the record'} is {type(value).__name__}, expected an object")
    hints = {**get_type_hints(kind), **narrowed}
    for missing in hints.keys() - value.keys():
        raise RecordError(f"{_join(path, missing)} is missing")
    for unknown in value.keys() - hints.keys():
        raise RecordError(f"{_join(path, unknown)} is no field of schema version {SCHEMA_VERSION}")
    return kind(**{name: _decode(hint, value[name], _join(path, name)) for name, hint in hints.items()})


def _decode(hint: Any, value: Any, path: str) -> Any:
    origin = get_origin(hint)
    if hint is Any:
        return value
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return _dataclass(hint, value, path, {})
    if origin in (types.UnionType, Union):
        kinds = [kind for kind in get_args(hint) if kind is not type(None)]
        return None if value is None and len(kinds) < len(get_args(hint)) else _decode(kinds[0], value, path)
    if origin is Literal:
        if value not in get_args(hint):
            raise RecordError(f"{path} is {value!r}, expected one of {get_args(hint)}")
        return value
    if origin is list:
        _require(isinstance(value, list), path, value, "a list")
        return [_decode(get_args(hint)[0], element, f"{path}[{i}]") for i, element in enumerate(value)]
    if origin is dict:
        _require(isinstance(value, dict), path, value, "an object")
        return {key: _decode(get_args(hint)[1], element, _join(path, key)) for key, element in value.items()}
    if hint is float:
        _require(isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value), path, value, "a finite number")
        return float(value)
    _require(type(value) is hint, path, value, hint.__name__)
    return value


def _require(right: bool, path: str, value: Any, wanted: str) -> None:
    if not right:
        raise RecordError(f"{path} is {value!r}, expected {wanted}")


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
