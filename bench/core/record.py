"""The JSON record of one benchmark run: what every file under results/ holds, but for those of parity.

A record that lacks a field, has one too many, or holds another type is refused on reading, so no table can be drawn from half a record.
"""

import dataclasses
import json
import math
import os
import types
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar, Union, get_args, get_origin, get_type_hints

SCHEMA_VERSION = 6
"""2: a throughput contender says how fresh its policy is, how it was executed and with which libraries. 3: a cell of the mixed-precision
suite says of which networks it is. 4: a cell of environments says what steps them, on how many threads. 5: a session of a training says the
device's energy. Older versions are still read."""


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
    seconds: float | None = None
    """Wall-clock of the run's sessions until it had trained so far, evaluations before this one included. None if it is not known."""


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
    members: int = 1
    """Runs that this process trained together, as a population, in this time."""
    energy_joules: float | None = None
    """What the accelerator drew in the meantime, whoever used it: runs beside each other share it. None on the CPU, and if it does not
    tell."""


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
    waited_seconds: float | None = None
    """How long the contender stood still before, while the others had their turn; None in a record of version 1."""
    waited_cpu_seconds: float | None = None
    """Processor time that it used meanwhile: about 0, or it would have slowed the others down."""


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One implementation in a throughput run."""

    name: str
    rounds: list[Round]
    """In the order in which they were timed, one of each contender in turn. Empty if it could not run."""
    compile_seconds: float | None
    """What the first steps took beyond later ones (in version 1 the first learning steps alone); None if it could not run."""
    missing: str | None
    """Why it could not run, or None."""
    library: str | None = None
    """What computes its updates: torch or jax. This and the next are None in a record of version 1 that did not tell."""
    strictness: str | None = None
    """strict, overlapped (one update old) or chunked (up to K steps old)."""
    execution: str | None = None
    """How its gradient steps were executed; `agent.execution` of sacref's own. This and the next are of its process: None without one."""
    env: str | None = None
    """The environment's id in its Gymnasium."""
    accelerator: str | None = None
    """The device that its process computed on, or None for the CPU."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Where it differs from the configuration of the run."""
    libraries: dict[str, str] = field(default_factory=dict)
    """Name -> version of Python and the libraries, from inside its process."""
    note: str | None = None
    """What a reader of its figures should know."""


@dataclass(frozen=True, kw_only=True)
class ThroughputSamples:
    """Raw samples of one throughput run: every contender in a process of its own (in version 1 in one), timed in turn."""

    contenders: list[Contender]


@dataclass(frozen=True, kw_only=True)
class Timing:
    """One timed stretch, from an idle device to an idle device."""

    count: int
    """How many of what is counted: gradient steps, environment steps, calls, products."""
    seconds: float


@dataclass(frozen=True, kw_only=True)
class UpdateCell:
    """Gradient steps of one backend, in one way, at one size."""

    backend: str
    execution: str
    """What was asked for: "auto" or "plain"."""
    chosen: str | None
    """What `agent.execution` says it became; None if it could not run."""
    batch: int
    width: int
    """Of both hidden layers."""
    stored: int
    """Transitions in the memory."""
    gradient_steps: int
    """Of one call of `agent.update`."""
    flops: int
    """Floating-point operations of the matrix products of one gradient step."""
    timings: list[Timing]
    """Of gradient steps, in the order in which they were timed, one of each way and backend in turn. Empty if it could not run."""
    compile_seconds: float | None
    """What the first call took beyond steady state; None if it could not run."""
    missing: str | None
    """Why it could not run, or None."""


@dataclass(frozen=True, kw_only=True)
class MatmulCell:
    """Products of two square float32 matrices, timed in turn with the gradient steps of one size."""

    backend: str
    size: int
    """Rows and columns of each matrix."""
    batch: int
    width: int
    """The size of update whose rounds these stand beside."""
    timings: list[Timing]
    """Of products."""


@dataclass(frozen=True, kw_only=True)
class UpdateSamples:
    """Raw samples of one run of the update suite."""

    cells: list[UpdateCell]
    """Over batch and width."""
    matmuls: list[MatmulCell]
    stored: list[UpdateCell]
    """Over the number of stored transitions, at one batch and width."""


@dataclass(frozen=True, kw_only=True)
class EnvironmentCell:
    """Steps of a vector environment under random actions."""

    env: str
    num_envs: int
    stepped_by: Literal["sync", "async", "batched", "rollout, closed loop", "rollout, open loop"]
    """The vectorization; or `mujoco.rollout` alone, without observations, rewards and resets: of a control step a call, or of many."""
    threads: int
    """That compute; under async each environment has a process of its own."""
    timings: list[Timing]
    """Of environment steps: `num_envs` a vector step."""
    missing: str | None


@dataclass(frozen=True, kw_only=True)
class ActCell:
    """From an observation on the host to a sampled action on the host."""

    backend: str
    num_envs: int
    """Rows of the observation."""
    timings: list[Timing]
    """Of calls."""
    compile_seconds: float | None
    missing: str | None


@dataclass(frozen=True, kw_only=True)
class LoopCell:
    """The whole training loop of one backend."""

    backend: str
    num_envs: int
    execution: str | None
    """The way of the gradient steps, as `agent.execution` names it."""
    timings: list[Timing]
    """Of environment steps, one gradient step each."""
    compile_seconds: float | None
    missing: str | None


@dataclass(frozen=True, kw_only=True)
class PartCell:
    """A part of the training loop with one environment, the device idle before and after it."""

    backend: str
    part: Literal["act", "environment", "record", "update", "rest"]
    timings: list[Timing]
    """Of environment steps: the seconds of the part in that many steps of the loop."""


@dataclass(frozen=True, kw_only=True)
class RolloutSamples:
    """Raw samples of one run of the rollout suite."""

    environments: list[EnvironmentCell]
    acts: list[ActCell]
    loops: list[LoopCell]
    parts: list[PartCell]


@dataclass(frozen=True, kw_only=True)
class AmpCell:
    """Gradient steps of one backend in one precision, at one size of one kind of networks, in a process of their own."""

    backend: str
    precision: str
    recurrent: str | None
    """Kind of cell, as wide as the hidden layers above it; None for feed-forward networks."""
    sequence_length: int
    """1 for feed-forward networks."""
    batch: int
    """Rows of a gradient step: transitions, or sequences times their steps."""
    width: int
    chosen: str | None
    """The way of the gradient steps, as `agent.execution` names it."""
    gradient_steps: int
    """Of one call of `agent.update`."""
    timings: list[Timing]
    """Of gradient steps, one of each precision in turn; a precision that takes very long sits out the last turns."""
    compile_seconds: float | None
    memory_bytes: int | None
    """Peak memory of the device, of the process where `memory_of` says so."""
    memory_of: Literal["device", "process"] | None
    loss_error: float | None
    """Largest |a - b| / max(|b|, 1) of the losses of one batch, b in float64; None where it is not finite, or was not measured."""
    gradient_error: float | None
    """Largest max|a - b| / max|b| over the gradients' arrays, b in float64; None as above."""
    missing: str | None


@dataclass(frozen=True, kw_only=True)
class AmpSamples:
    """Raw samples of one run of the mixed-precision suite."""

    cells: list[AmpCell]


@dataclass(frozen=True, kw_only=True)
class RecurrentCell:
    """Gradient steps of one backend, in one way, of a recurrent agent or of the feed-forward one beside it."""

    backend: str
    execution: str
    """What was asked for: "auto" or "plain"."""
    chosen: str | None
    """What `agent.execution` says it became; None if it could not run."""
    recurrent: str | None
    """Kind of cell; None for the feed-forward agent."""
    sequence_length: int
    """1 for the feed-forward agent."""
    batch: int
    """Sequences, or transitions."""
    gradient_steps: int
    """Of one call of `agent.update`."""
    flops: int
    """Floating-point operations of the matrix products of one gradient step."""
    recurrence_flops: int
    """Of these, in the products of a hidden state with its weights, one after another; 0 for the feed-forward agent."""
    cell_steps: int
    """How many steps the cells take one after another, forward and backward; 0 for the feed-forward agent."""
    timings: list[Timing]
    """Of gradient steps, in the order in which they were timed, one of each contender in turn. Empty if it could not run."""
    compile_seconds: float | None
    """What the first call took beyond steady state; None if it could not run."""
    missing: str | None
    """Why it could not run, or None."""


@dataclass(frozen=True, kw_only=True)
class ProductCell:
    """Products of float32 matrices, rows x inner by inner x columns and back, timed in turn with the agents."""

    backend: str
    rows: int
    inner: int
    columns: int
    timings: list[Timing]
    """Of products."""


@dataclass(frozen=True, kw_only=True)
class RecurrentSamples:
    """Raw samples of one run of the recurrent suite."""

    cells: list[RecurrentCell]
    products: list[ProductCell]


@dataclass(frozen=True, kw_only=True)
class PopulationCell:
    """Gradient steps of one backend's population of a size, or of an agent alone."""

    backend: str
    members: int
    """1 for an agent alone."""
    width: int
    """Of both hidden layers."""
    batch: int
    """Of each member."""
    chosen: str | None
    """What `agent.execution` says; None if it could not run."""
    gradient_steps: int
    """Of one call, of each member."""
    timings: list[Timing]
    """Of gradient steps that all members take, in the order in which they were timed, one of each contender in turn. Empty if it could not
    run."""
    compile_seconds: float | None
    """What the first call took beyond steady state; None if it could not run."""
    missing: str | None
    """Why it could not run, or None."""


@dataclass(frozen=True, kw_only=True)
class PopulationSamples:
    """Raw samples of one run of the population suite."""

    cells: list[PopulationCell]


@dataclass(frozen=True, kw_only=True)
class ScalingCell:
    """Gradient steps that several ranks of one backend take together."""

    backend: str
    scaling: Literal["weak", "strong"]
    """weak: each rank has as large a batch as one alone; strong: they share one of that size. One rank is both, and stands under weak."""
    ranks: int
    threads: int
    """Cores of each rank."""
    device: str
    """What each rank computes on: "cpu", or "cuda" for a GPU of its own."""
    batch: int
    """Of each rank."""
    width: int
    """Of both hidden layers."""
    chosen: str | None
    """The way of the gradient steps, as `agent.execution` names it; None if it could not run."""
    gradient_steps: int
    """Of one call of `agent.update`."""
    timings: list[Timing]
    """Of gradient steps, until the last rank is done; one of each number of ranks and scaling in turn. Empty if it could not run."""
    compile_seconds: float | None
    """What the first call took beyond steady state; None if it could not run."""
    missing: str | None
    """Why it could not run, or None."""


@dataclass(frozen=True, kw_only=True)
class ScalingSamples:
    """Raw samples of one run of the scaling suite."""

    cells: list[ScalingCell]


@dataclass(frozen=True, kw_only=True)
class SoakSample:
    """A process in the midst of a run."""

    step: int
    """Environment steps trained before it."""
    resident_bytes: int
    """Memory of the process that lies in RAM."""
    open_files: int
    """File descriptors of the process."""
    blocks: int
    """Of memory that Python's objects hold, after a garbage collection: one or more for each object."""


@dataclass(frozen=True, kw_only=True)
class SoakCell:
    """A long run of one backend, in a process of its own."""

    backend: str
    execution: str | None
    """The way of the gradient steps, as `agent.execution` names it; None if it could not run."""
    steps: int
    capacity: int
    """Transitions that the replay memory holds."""
    samples: list[SoakSample]
    """Oldest first. Empty if it could not run."""
    missing: str | None
    """Why it could not run, or None."""


@dataclass(frozen=True, kw_only=True)
class SoakSamples:
    """Raw samples of one run of the soak suite."""

    cells: list[SoakCell]


@dataclass(frozen=True, kw_only=True)
class FaultsCell:
    """Runs of one task that were killed and resumed, until each came to its end."""

    backend: str
    env: str
    what: str
    """How they differ from a feed-forward agent's in float32, in words; empty if they do not."""
    steps: int
    """Environment steps of a run."""
    kills: int
    """SIGKILLs."""
    resumed: int
    """Starts that went on from the midst of a run. The others found no checkpoint yet, or the last one."""
    runs: int
    """That came to their end, and were compared with one that was not killed."""
    seconds: float
    """Of a run that was not killed."""
    differences: list[str]
    """What was not the same, in words."""
    missing: str | None
    """Why it could not run, or None."""


@dataclass(frozen=True, kw_only=True)
class FaultsSamples:
    """Raw samples of one run of the faults suite."""

    cells: list[FaultsCell]


@dataclass(frozen=True, kw_only=True)
class MutantFile:
    """What the tests said of the mutants of one file."""

    file: str
    tests: list[str]
    """Files of tests that each mutant runs, until a test fails."""
    mutants: int
    killed: int
    """A test failed."""
    timed_out: int
    equivalent: int
    """No test failed, and a reason is given why none can."""
    survived: int
    """No test failed."""
    not_run: int
    of_annotations: int
    """Not among the mutants: what they change says nothing at run time."""
    not_compiled: int
    """Not among the mutants: Python refuses them."""
    seconds: float
    """Processor time of those that were run."""
    seconds_as_it_is: float | None
    """Processor time of all tests of the file without a mistake; None if it was not taken."""


@dataclass(frozen=True, kw_only=True)
class MutantRun:
    """One mutant that was run."""

    file: str
    operator: str
    """As cosmic-ray names it."""
    occurrence: int
    """Among the mutants of this operator in the file, from 0."""
    number: int
    """Of the line, from 1."""
    outcome: Literal["killed", "timed out", "equivalent", "survived"]
    by: str | None
    """The first test that failed, or what else ended the tests."""
    seconds: float
    """Processor time."""


@dataclass(frozen=True, kw_only=True)
class Survivor:
    """A mutant that no test has seen, without a reason why none can."""

    file: str
    function: str
    number: int
    """Of the line, from 1."""
    line: str
    """As it is."""
    mutated: str


@dataclass(frozen=True, kw_only=True)
class MutantsSamples:
    """What is known of the mutants of all files."""

    files: list[MutantFile]
    runs: list[MutantRun]
    survivors: list[Survivor]


Samples: TypeAlias = (
    LearningSamples
    | ThroughputSamples
    | UpdateSamples
    | RolloutSamples
    | AmpSamples
    | RecurrentSamples
    | PopulationSamples
    | ScalingSamples
    | SoakSamples
    | FaultsSamples
    | MutantsSamples
)


@dataclass(frozen=True, kw_only=True)
class Record:
    """One run of one suite."""

    schema_version: int
    suite: Literal["learning", "throughput", "update", "rollout", "amp", "recurrent", "population", "scaling", "soak", "faults", "mutants"]
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
    samples: Samples


_SAMPLES: Mapping[str, type[Samples]] = {
    "learning": LearningSamples,
    "throughput": ThroughputSamples,
    "update": UpdateSamples,
    "rollout": RolloutSamples,
    "amp": AmpSamples,
    "recurrent": RecurrentSamples,
    "population": PopulationSamples,
    "scaling": ScalingSamples,
    "soak": SoakSamples,
    "faults": FaultsSamples,
    "mutants": MutantsSamples,
}
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
    suite = value.get("suite")
    if value.get("schema_version") == 1:
        value = _from_version_1(value)
    if value.get("schema_version") == 2:
        value = _from_version_2(value)
    if value.get("schema_version") == 3:
        value = _from_version_3(value)
    if value.get("schema_version") == 4:
        value = _from_version_4(value)
    if value.get("schema_version") == 5:
        value = _from_version_5(value)
    if value.get("schema_version") != SCHEMA_VERSION:
        raise RecordError(f"schema_version is {value.get('schema_version')!r}, expected {SCHEMA_VERSION}, 5, 4, 3, 2 or 1")
    if not isinstance(suite, str) or suite not in _SAMPLES:
        raise RecordError(f"suite is {suite!r}, expected one of {', '.join(_SAMPLES)}")
    return _dataclass(Record, value, "", {"samples": _SAMPLES[suite]})


def _from_version_1(value: Mapping[str, Any]) -> Mapping[str, Any]:
    """What version 1 held, as version 2 says it; a value that is no record of version 1 is passed on, to be refused by its fields."""
    samples = value.get("samples")
    if value.get("suite") != "throughput" or not isinstance(samples, Mapping) or not isinstance(samples.get("contenders"), list):
        return {**value, "schema_version": 2}
    # It had these three contenders, all of them strict.
    libraries = {"sacref torch": "torch", "sacref jax": "jax", "Stable-Baselines3": "torch"}
    of_contender: dict[str, Any] = {"execution": None, "env": None, "accelerator": None, "settings": {}, "libraries": {}, "note": None}
    of_round = {"waited_seconds": None, "waited_cpu_seconds": None}
    migrated = []
    for one in samples["contenders"]:
        if isinstance(one, Mapping):
            library = libraries.get(str(one.get("name")))
            one = {**one, **of_contender, "library": library, "strictness": "strict" if library else None}
            if isinstance(one.get("rounds"), list):
                one["rounds"] = [{**timed, **of_round} if isinstance(timed, Mapping) else timed for timed in one["rounds"]]
        migrated.append(one)
    return {**value, "schema_version": 2, "samples": {**samples, "contenders": migrated}}


def _from_version_2(value: Mapping[str, Any]) -> Mapping[str, Any]:
    """What version 2 held, as version 3 says it: its mixed-precision suite had feed-forward networks alone."""
    samples = value.get("samples")
    if value.get("suite") == "amp" and isinstance(samples, Mapping) and isinstance(samples.get("cells"), list):
        new = {"recurrent": None, "sequence_length": 1}
        cells = [{**new, **cell} if isinstance(cell, Mapping) else cell for cell in samples["cells"]]
        value = {**value, "samples": {**samples, "cells": cells}}
    return {**value, "schema_version": 3}


def _from_version_3(value: Mapping[str, Any]) -> Mapping[str, Any]:
    """What version 3 held, as version 4 says it: its environments were stepped in turn."""
    samples = value.get("samples")
    if value.get("suite") == "rollout" and isinstance(samples, Mapping) and isinstance(samples.get("environments"), list):
        new = {"stepped_by": "sync", "threads": 1}
        cells = [{**new, **cell} if isinstance(cell, Mapping) else cell for cell in samples["environments"]]
        value = {**value, "samples": {**samples, "environments": cells}}
    return {**value, "schema_version": 4}


def _from_version_4(value: Mapping[str, Any]) -> Mapping[str, Any]:
    """What version 4 held, as version 5 says it: nobody had asked for the energy."""
    return {**_with_learning_field(value, "sessions", "energy_joules", None), "schema_version": 5}


def _from_version_5(value: Mapping[str, Any]) -> Mapping[str, Any]:
    """What version 5 held, as version 6 says it: each run had a process of its own, and the times of evaluations were not kept."""
    timed = _with_learning_field(value, "evaluations", "seconds", None)
    return {**_with_learning_field(timed, "sessions", "members", 1), "schema_version": 6}


def _with_learning_field(value: Mapping[str, Any], place: str, name: str, default: Any) -> Mapping[str, Any]:
    samples = value.get("samples")
    if value.get("suite") != "learning" or not isinstance(samples, Mapping) or not isinstance(samples.get(place), list):
        return value
    filled = [{name: default, **one} if isinstance(one, Mapping) else one for one in samples[place]]
    return {**value, "samples": {**samples, place: filled}}


def decode_samples(suite: str, value: Any) -> Samples:
    """The samples of a suite from parsed JSON.

    Raises:
        RecordError: naming the field.
    """
    samples: Samples = _dataclass(_SAMPLES[suite], value, "samples", {})
    return samples


def _dataclass(kind: type[_Decoded], value: Any, path: str, narrowed: Mapping[str, Any]) -> _Decoded:
    if not isinstance(value, Mapping):
        raise RecordError(f"{path or 'the record'} is {type(value).__name__}, expected an object")
    hints = {**get_type_hints(kind), **narrowed}
    for name in hints:
        if name not in value:
            raise RecordError(f"{_join(path, name)} is missing")
    for name in value:
        if name not in hints:
            raise RecordError(f"{_join(path, name)} is no field of schema version {SCHEMA_VERSION}")
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
