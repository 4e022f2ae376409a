"""A record survives the way to its file and back, and a file that is no whole record is refused by the name of what is wrong."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from bench.core import record
from bench.core.record import Hardware, Record, RecordError
from bench.core.samples import Samples
from bench.suites.learning.samples import Evaluation, LearningSamples, Session
from bench.suites.throughput.samples import Contender, Round, ThroughputSamples

LEARNING = Record(
    schema_version=record.SCHEMA_VERSION,
    suite="learning",
    run="smoke-jax-seed0",
    date="2026-01-02T03:04:05+00:00",
    sacref_version="0.1.0",
    commit="0123456789abcdef",
    dirty=False,
    configuration={"env": "HalfCheetah-v5", "steps": 10},
    hardware=Hardware(cpu_model="A CPU", cores=4, threads=1, memory_bytes=8 * 2**30, accelerator=None),
    libraries={"python": "3.12.0"},
    seed=0,
    compile_seconds=1.5,
    samples=LearningSamples(
        evaluations=[Evaluation(step=10, returns=[1.0, 2.5], seconds=None)],
        sessions=[
            Session(started="2026-01-02T03:00:00+00:00", resumed=False, wall_seconds=2.0, cpu_seconds=1.9, members=1, energy_joules=None)
        ],
    ),
)
ABSENT: dict[str, Any] = {"library": None, "strictness": None, "execution": None, "env": None, "accelerator": None, "note": None}
THROUGHPUT = Record(
    **{
        **msgspec.structs.asdict(LEARNING),
        "suite": "throughput",
        "compile_seconds": None,
        "samples": ThroughputSamples(
            contenders=[
                Contender(
                    name="sacref jax",
                    rounds=[Round(steps=100, seconds=0.5, waited_seconds=None, waited_cpu_seconds=None)],
                    compile_seconds=0.25,
                    missing=None,
                    settings={},
                    libraries={},
                    **ABSENT,
                ),
                Contender(name="a peer", rounds=[], compile_seconds=None, missing="not installed", settings={}, libraries={}, **ABSENT),
            ]
        ),
    }
)
KINDS: dict[str, type[Samples]] = {"learning": LearningSamples, "throughput": ThroughputSamples}


def decode(value: Any) -> Record[Samples]:
    return record.decode(json.dumps(value).encode(), KINDS)


@pytest.mark.parametrize("written", [LEARNING, THROUGHPUT], ids=["learning", "throughput"])
def test_a_record_comes_back_as_it_was_written(written: Record[Samples], tmp_path: Path) -> None:
    path = tmp_path / "suite" / "run.json"
    record.write(path, written)
    assert record.read(path, type(written.samples)) == record.read_any(path, KINDS) == written
    assert [found.name for found in path.parent.iterdir()] == ["run.json"]
    assert record.version(path) == "0.1.0"


def _every_field(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths to every key of a record's own fields; what `configuration` and `libraries` hold is free."""
    if isinstance(value, list):
        return [found for i, element in enumerate(value) for found in _every_field(element, (*path, i))]
    if isinstance(value, dict) and path not in (("configuration",), ("libraries",)):
        return [found for key, inner in value.items() for found in [(*path, key), *_every_field(inner, (*path, key))]]
    return []


@pytest.mark.parametrize("written", [LEARNING, THROUGHPUT], ids=["learning", "throughput"])
def test_every_missing_field_is_refused_by_its_name(written: Record[Samples]) -> None:
    whole = msgspec.to_builtins(written)
    paths = _every_field(whole)
    assert len(paths) > 20
    for path in paths:
        broken = json.loads(json.dumps(whole))
        holder = broken
        for step in path[:-1]:
            holder = holder[step]
        del holder[path[-1]]
        with pytest.raises(msgspec.ValidationError, match=str(path[-1])):
            decode(broken)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 5}, "schema_version is 5, expected 6"),
        ({"suite": "parity"}, "suite is 'parity', expected learning or throughput"),
        ({"seed": "0"}, r"Expected `int`, got `str` - at `\$.seed`"),
        ({"seed": True}, r"Expected `int`, got `bool` - at `\$.seed`"),
        ({"dirty": 0}, r"Expected `bool`, got `int` - at `\$.dirty`"),
        ({"commit": 7}, r"Expected `str \| null`, got `int` - at `\$.commit`"),
        ({"compile_seconds": "fast"}, r"Expected `float \| null`, got `str` - at `\$.compile_seconds`"),
        ({"libraries": {"jax": 1}}, r"Expected `str`, got `int` - at `\$.libraries\[...\]`"),
        ({"hostname": "me"}, "Object contains unknown field `hostname`"),
        (
            {"samples": {"evaluations": [{"step": 1, "returns": [None], "seconds": None}], "sessions": []}},
            r"Expected `float`, got `null` - at `\$.samples.evaluations\[0\].returns\[0\]`",
        ),
        ({"samples": {"evaluations": {}, "sessions": []}}, r"Expected `array`, got `object` - at `\$.samples.evaluations`"),
        ({"samples": []}, r"Expected `object`, got `array` - at `\$.samples`"),
    ],
)
def test_a_wrong_field_is_refused_with_what_came_and_what_was_expected(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text(json.dumps(msgspec.to_builtins(LEARNING) | change))
    with pytest.raises(RecordError, match=rf"run\.json: {message}; delete the file or run the benchmark again"):
        record.read_any(path, KINDS)


def test_a_record_of_another_suite_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    record.write(path, LEARNING)
    with pytest.raises(RecordError, match="suite is 'learning', expected throughput"):
        record.read(path, ThroughputSamples)


@pytest.mark.parametrize(
    "text",
    [*("", "[]", "{", '{"schema_version": 1}', '{"schema_version": 6}'), '{"schema_version": NaN, "suite": "learning"}'],
)
def test_a_file_that_is_no_record_is_refused_by_its_path(text: str, tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text(text)
    with pytest.raises(RecordError, match=r"run\.json: .*run the benchmark again"):
        record.read(path, LearningSamples)
    with pytest.raises(RecordError, match=r"run\.json: .*run the benchmark again"):
        record.version(path)


def test_a_number_that_json_lacks_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        record.write(tmp_path / "run.json", replace(LEARNING, compile_seconds=float("nan")))
    assert not list(tmp_path.iterdir())
