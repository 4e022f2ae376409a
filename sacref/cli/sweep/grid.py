"""The file of a sweep: a table of flags that all runs share, and a grid of those that vary. Each combination becomes a `sacref train`."""

import contextlib
import hashlib
import io
import itertools
import json
import math
import re
import tomllib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sacref.cli.flags import SweepError, Train, parse
from sacref.storage.checkpoint import CheckpointError, one_line, read_json, short

TABLES = ("train", "grid", "slurm")

RESERVED: Mapping[str, str] = {
    **dict.fromkeys(("run-dir", "experiment.directory", "experiment.experiment-name"), "a run's directory follows from its grid values"),
    **dict.fromkeys(("resume", "overwrite"), "a sweep resumes what was cut off and starts the rest by itself"),
    "seeds": "a grid of seed trains each in a process of its own",
    **dict.fromkeys(("sweep", "sweep-on", "sweep-jobs", "progress"), "it belongs on the command line"),
}
"""Flag of `sacref train` -> why a file may not set it."""

FILE = "sweep.json"
"""In the directory of a sweep: its record."""
LARGEST_FILE = 2**20
"""Bytes."""
MOST_RUNS = 10_000
LONGEST_NAME = 200
"""Letters of a run directory's name; file systems take 255 bytes."""

Slurm = Mapping[str, object]


@dataclass(frozen=True)
class Run:
    """One `sacref train` of a sweep."""

    directory: Path
    """Its run directory, absolute."""
    values: Mapping[str, object]
    """Flag of the grid -> this run's value."""
    flags: Mapping[str, tuple[str, ...]]
    """Flag -> the words on the command line that set it."""
    backend: str
    env: str
    seed: int
    steps: int
    """Environment steps, rounded up to whole vector steps."""

    @property
    def name(self) -> str:
        return self.directory.name

    @property
    def arguments(self) -> list[str]:
        """Return the command line after `sacref train`, without the directory."""
        return [word for words in self.flags.values() for word in words]


@dataclass(frozen=True)
class Plan:
    """The content of a sweep's file."""

    runs: tuple[Run, ...]
    slurm: Slurm


def read(file: Path, directory: Path) -> Plan:
    """Read the file of a sweep and check every run's command line with the parser of `sacref train`.

    Args:
        file: TOML or JSON, by its suffix.
        directory: of the sweep; each run's is inside.

    Raises:
        SweepError: if the file cannot be read, or the parser refuses a run.
    """
    tables = _tables(file)
    fixed = _flat(tables["train"])
    alternatives = {name: _alternatives(file, name, values) for name, values in _flat(tables["grid"]).items()}
    if not alternatives:
        raise SweepError(
            f"{file}: [grid] is empty or missing, expected the flags that vary: for one run, call sacref train without --sweep"
        )
    for table, names in (("train", fixed.keys()), ("grid", alternatives.keys())):
        for name in names:
            if name in RESERVED:
                raise SweepError(f"{file}: [{table}] has {name}: leave it out, as {RESERVED[name]}")
    if twice := sorted(fixed.keys() & alternatives.keys()):
        raise SweepError(f"{file}: {', '.join(twice)} stands in [train] and in [grid]: leave one of them out")
    if (count := math.prod(map(len, alternatives.values()))) > MOST_RUNS:
        raise SweepError(f"{file}: [grid] makes {count} runs, expected at most {MOST_RUNS}: name fewer values, or make several sweeps")
    labels = {name: _labels(name, _texts(file, name, values)) for name, values in alternatives.items()}
    before = _directories(directory / FILE)
    runs: dict[str, Run] = {}
    for combination in itertools.product(*alternatives.values()):
        run = _run(file, directory, fixed, dict(zip(alternatives, combination, strict=True)), labels, before)
        if run.name in runs:
            raise SweepError(f"{file}: two runs of [grid] would both be written to {run.directory}: name each value once")
        runs[run.name] = run
    return Plan(tuple(runs.values()), tables["slurm"])


def _tables(file: Path) -> dict[str, dict[str, object]]:
    if not file.is_file():
        raise SweepError(f"--sweep: {file} is no file: name a TOML or JSON file with the tables [train] and [grid]")
    if (size := file.stat().st_size) > LARGEST_FILE:
        raise SweepError(f"--sweep: {file} has {size} bytes, expected at most {LARGEST_FILE}: name the file of a sweep")
    try:
        if file.suffix == ".toml":
            content: object = tomllib.loads(file.read_text())
        elif file.suffix == ".json":
            content = read_json(file)
        else:
            raise SweepError(f"--sweep: {file} has suffix {file.suffix!r}, expected .toml or .json")
    except (ValueError, RecursionError) as error:
        if isinstance(error, SweepError | CheckpointError):
            raise
        raise SweepError(f"{file} is no TOML ({one_line(error)}): mend it") from error
    if not isinstance(content, dict) or set(content) - set(TABLES):
        found = one_line(", ".join(sorted(content))) if isinstance(content, dict) else type(content).__name__
        raise SweepError(f"{file} holds {found}, expected the tables {', '.join(TABLES)} and nothing beside them")
    tables = {name: content.get(name, {}) for name in TABLES}
    for name, table in tables.items():
        if not isinstance(table, dict):
            raise SweepError(f"{file}: {name} is {_said(table)}, expected a table")
        for flag in _flat(table):
            if not re.fullmatch(r"[A-Za-z0-9.-]{1,100}", flag):
                raise SweepError(f"{file}: [{name}] has {short.repr(flag)}, expected the name of a flag")
    return tables


def _flat(table: Mapping[str, object]) -> dict[str, object]:
    """Spell flags as the command line does."""
    flat: dict[str, object] = {}
    for key, value in table.items():
        # The one part of the configuration whose flags have a prefix; any other table is a flag's JSON object.
        inner = {f"experiment.{name}": entry for name, entry in value.items()} if key == "experiment" and isinstance(value, dict) else None
        flat |= {name.replace("_", "-"): entry for name, entry in (inner or {key: value}).items()}
    return flat


def _alternatives(file: Path, name: str, values: object) -> list[object]:
    span = re.fullmatch(r"([0-9]{1,18}):([0-9]{1,18})", values) if isinstance(values, str) else None
    found = list(range(int(span[1]), min(int(span[2]), int(span[1]) + MOST_RUNS + 1))) if span else values
    if not isinstance(found, list) or not found:
        raise SweepError(
            f"{file}: [grid] {name} = {_said(values)}, expected a list of values or a range such as "
            f'"0:5" (0, 1, 2, 3, 4): a flag of one value belongs into [train]'
        )
    return found


def _run(
    file: Path,
    directory: Path,
    fixed: Mapping[str, object],
    values: Mapping[str, object],
    labels: Mapping[str, Mapping[str, str]],
    before: Mapping[str, str],
) -> Run:
    places = {name: ("train", value) for name, value in fixed.items()} | {name: ("grid", value) for name, value in values.items()}
    flags = {name: _words(f"{file}: [{table}] {name}", name, value) for name, (table, value) in places.items()}
    try:
        train = _parse([word for words in flags.values() for word in words])
    except _Refused as refused:
        raise SweepError(
            f"{file}: {_blamed(places, flags, str(refused)) or _combination(values)} is refused: {one_line(refused)}"
        ) from refused
    environments = train.num_envs * train.ranks
    # Always given: a resumed run would take its old number, where the file leaves it to the default.
    steps = {"steps": ("--steps", str(train.steps))}
    return Run(
        directory=directory / _name(values, [labels[name][_text(values[name], flags[name])] for name in values], before),
        values=values,
        flags=flags | steps,
        backend=train.backend,
        env=train.env,
        seed=train.cfg.seed,
        steps=math.ceil(train.steps / environments) * environments,
    )


def _words(where: str, name: str, value: object) -> tuple[str, ...]:
    """Return the words that set a flag. A string is the text of the command line."""
    if isinstance(value, bool):
        prefix, dot, last = name.rpartition(".")
        return (f"--{name}" if value else f"--{prefix}{dot}no-{last}",)
    if isinstance(value, dict) or (isinstance(value, list) and any(isinstance(element, dict) for element in value)):
        return (f"--{name}", json.dumps(value))
    elements = value if isinstance(value, list) else [value]
    for element in elements:
        if isinstance(element, bool) or not isinstance(element, str | int | float | None):
            raise SweepError(f"{where} = {_said(value)}, expected a number, a string, true, false, a list or a table of those")
    return (f"--{name}", *(str(element) for element in elements))


class _Refused(Exception):
    """A message of the parser."""


def _parse(arguments: list[str]) -> Train:
    """Parse the command of a run.

    Raises:
        _Refused: with the parser's message on one line.
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            command = parse(["train", *arguments])
            if isinstance(command, Train):
                # Fields that exclude each other, which the agent would refuse only when it is built.
                command.cfg.validate()
    except SystemExit as stopped:
        raise _Refused(_unboxed(said.getvalue())) from stopped
    except (ValueError, TypeError, ImportError) as error:
        raise _Refused(str(error)) from error
    if not isinstance(command, Train):
        raise _Refused(f"{arguments} is another command than train")
    return command


def _unboxed(text: str) -> str:
    """Return the text between the line under tyro's title and the next, behind which it gives advice; ASCII where stdout is not UTF-8."""
    parts = re.split(r"^[ │]*(?:╭.*|╰.*|[─-]{5,}[ │]*)$", text, maxsplit=2, flags=re.MULTILINE)
    return " ".join(parts[min(1, len(parts) - 1)].replace("│", " ").split())


def _blamed(places: Mapping[str, tuple[str, object]], flags: Mapping[str, tuple[str, ...]], message: str) -> str | None:
    """Find the line of the file that is refused with the same message also by itself."""
    for name, (table, value) in places.items():
        try:
            _parse(list(flags[name]))
        except _Refused as refused:
            if str(refused) == message:
                return f"[{table}] {name} = {_said(value)}"
    return None


def _combination(values: Mapping[str, object]) -> str:
    return "the combination of [train] with [grid] " + ", ".join(f"{name} = {_said(value)}" for name, value in values.items())


def _said(value: object) -> str:
    return one_line(json.dumps(value, default=str))


def _text(value: object, words: tuple[str, ...]) -> str:
    return json.dumps(value) if isinstance(value, bool) else " ".join(words[1:])


def _texts(file: Path, name: str, values: list[object]) -> list[str]:
    return [_text(value, _words(f"{file}: [grid] {name}", name, value)) for value in values]


def _labels(name: str, texts: list[str]) -> dict[str, str]:
    """Map the text of each value of a flag to its part of a directory's name, which no other value of the flag shares."""
    slugs = {text: _slug(text) for text in texts}
    shared = Counter(slugs.values())
    # A checksum only where letters that a name cannot hold would tell values apart, so that most names can be read, and old ones stay.
    return {text: f"{name}={slug if shared[slug] == 1 or text == slug else f'{slug}@{_digest(text)}'}" for text, slug in slugs.items()}


def _slug(text: str) -> str:
    """Replace what a directory's name should not hold by a dash; the sign of a number stays."""
    return "-" * text.startswith("-") + re.sub(r"[^A-Za-z0-9._+]+", "-", text).strip("-")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _directories(record: Path) -> dict[str, str]:
    """Map the grid values of the recorded runs to their directories' names; a damaged record is refused by `Record`."""
    try:
        found = {_key(entry["values"]): str(entry["directory"]) for entry in read_json(record)["runs"]}
    except (OSError, ValueError, LookupError, TypeError):
        return {}
    return {key: name for key, name in found.items() if name == Path(name).name}


def _key(values: Mapping[str, object]) -> str:
    return json.dumps(dict(values), sort_keys=True)


def _name(values: Mapping[str, object], labels: list[str], before: Mapping[str, str]) -> str:
    """Name the directory of a run: the one that it has, or its grid values, as far as a directory's name can hold them."""
    if _key(values) in before:
        return before[_key(values)]
    joined, digest = ",".join(labels), _digest(json.dumps(dict(values)))
    if len(joined) > LONGEST_NAME:
        return f"{joined[:LONGEST_NAME]}-{digest}"
    return f"{joined}@{digest}" if joined in before.values() else joined
