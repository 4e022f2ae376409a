"""A record survives the way to its file and back, and a file that is no whole record is refused by the name of what is wrong."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from bench.core import record
from bench.core.record import (
    AmpCell,
    AmpSamples,
    Contender,
    EnvironmentCell,
    Evaluation,
    Hardware,
    LearningSamples,
    Record,
    RecordError,
    RolloutSamples,
    Round,
    Session,
    ThroughputSamples,
    Timing,
)

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
        evaluations=[Evaluation(step=10, returns=[1.0, 2.5])],
        sessions=[Session(started="2026-01-02T03:00:00+00:00", resumed=False, wall_seconds=2.0, cpu_seconds=1.9)],
    ),
)
THROUGHPUT = dataclasses.replace(
    LEARNING,
    suite="throughput",
    compile_seconds=None,
    samples=ThroughputSamples(
        contenders=[
            Contender(name="sacref jax", rounds=[Round(steps=100, seconds=0.5)], compile_seconds=0.25, missing=None),
            Contender(name="a peer", rounds=[], compile_seconds=None, missing="not installed"),
        ]
    ),
)


@pytest.mark.parametrize("written", [LEARNING, THROUGHPUT], ids=["learning", "throughput"])
def test_a_record_comes_back_as_it_was_written(written: Record, tmp_path: Path) -> None:
    path = tmp_path / "suite" / "run.json"
    record.write(path, written)
    assert record.read(path) == written
    assert [found.name for found in path.parent.iterdir()] == ["run.json"]


def _every_field(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths to every key of a record's own fields; what `configuration` and `libraries` hold is free."""
    if isinstance(value, list):
        return [found for i, element in enumerate(value) for found in _every_field(element, (*path, i))]
    if isinstance(value, dict) and path not in (("configuration",), ("libraries",)):
        return [found for key, inner in value.items() for found in [(*path, key), *_every_field(inner, (*path, key))]]
    return []


@pytest.mark.parametrize("written", [LEARNING, THROUGHPUT], ids=["learning", "throughput"])
def test_every_missing_field_is_refused_by_its_name(written: Record) -> None:
    whole = dataclasses.asdict(written)
    paths = _every_field(whole)
    assert len(paths) > 20
    for path in paths:
        broken = json.loads(json.dumps(whole))
        holder = broken
        for step in path[:-1]:
            holder = holder[step]
        del holder[path[-1]]
        with pytest.raises(RecordError, match=str(path[-1])):
            record.decode(broken)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 7}, "schema_version is 7, expected 6, 5, 4, 3, 2 or 1"),
        ({"suite": "parity"}, "suite is 'parity', expected one of learning, throughput"),
        ({"seed": "0"}, "seed is '0', expected int"),
        ({"seed": True}, "seed is True, expected int"),
        ({"dirty": 0}, "dirty is 0, expected bool"),
        ({"commit": 7}, "commit is 7, expected str"),
        ({"compile_seconds": "fast"}, "compile_seconds is 'fast', expected a finite number"),
        ({"libraries": {"jax": 1}}, "libraries.jax is 1, expected str"),
        ({"hostname": "me"}, "hostname is no field"),
        (
            {"samples": {"evaluations": [{"step": 1, "returns": [None], "seconds": None}], "sessions": []}},
            r"samples.evaluations\[0\].returns\[0\] is None",
        ),
        ({"samples": {"evaluations": {}, "sessions": []}}, "samples.evaluations is {}, expected a list"),
        ({"samples": []}, "samples is list, expected an object"),
    ],
)
def test_a_wrong_field_is_refused_with_what_came_and_what_was_expected(change: dict[str, Any], message: str) -> None:
    with pytest.raises(RecordError, match=message):
        record.decode(dataclasses.asdict(LEARNING) | change)


def test_a_throughput_record_of_version_1_is_read_as_the_newest() -> None:
    old = dataclasses.asdict(THROUGHPUT) | {"schema_version": 1}
    timed = {"steps": 100, "seconds": 0.5}
    old["samples"]["contenders"] = [
        {"name": "sacref jax", "rounds": [timed], "compile_seconds": 0.25, "missing": None},
        {"name": "a peer", "rounds": [], "compile_seconds": None, "missing": "not installed"},
    ]
    found = record.decode(old)
    expected = dataclasses.replace(THROUGHPUT.samples.contenders[0], library="jax", strictness="strict")  # type: ignore[union-attr]  # It is.
    assert found.schema_version == record.SCHEMA_VERSION
    assert isinstance(found.samples, ThroughputSamples)
    assert found.samples.contenders == [expected, THROUGHPUT.samples.contenders[1]]  # type: ignore[union-attr]  # It is.
    assert (found.samples.contenders[0].rounds[0].waited_seconds, found.samples.contenders[1].strictness) == (None, None)
    del old["samples"]["contenders"][0]["rounds"][0]["seconds"]
    with pytest.raises(RecordError, match=r"samples.contenders\[0\].rounds\[0\].seconds is missing"):
        record.decode(old)


@pytest.mark.parametrize(("version", "lacks"), [*((version, ("energy_joules", "members")) for version in (1, 2, 3, 4)), (5, ("members",))])
def test_an_older_learning_record_is_read_as_of_one_run_in_its_process_without_energy(version: int, lacks: tuple[str, ...]) -> None:
    old = dataclasses.asdict(LEARNING)
    for name in lacks:
        del old["samples"]["sessions"][0][name]
    for evaluation in old["samples"]["evaluations"]:
        assert evaluation.pop("seconds") is None
    assert record.decode(old | {"schema_version": version}) == LEARNING
    with pytest.raises(RecordError, match=r"samples.evaluations\[0\].seconds is missing"):
        record.decode(old)
    for evaluation in old["samples"]["evaluations"]:
        evaluation["seconds"] = None
    with pytest.raises(RecordError, match=r"samples.sessions\[0\].members is missing"):  # The first that is, in the order of the fields.
        record.decode(old)


def test_a_precision_record_of_version_2_is_of_feed_forward_networks() -> None:
    cell = AmpCell(
        backend="jax",
        precision="tf32",
        recurrent=None,
        sequence_length=1,
        batch=64,
        width=256,
        chosen=None,
        gradient_steps=16,
        timings=[],
        compile_seconds=None,
        memory_bytes=None,
        memory_of=None,
        loss_error=None,
        gradient_error=None,
        missing="no jax",
    )
    written = dataclasses.replace(LEARNING, suite="amp", samples=AmpSamples(cells=[cell]))
    old = dataclasses.asdict(written) | {"schema_version": 2}
    for name in ("recurrent", "sequence_length"):
        del old["samples"]["cells"][0][name]
    assert record.decode(old) == written
    del old["samples"]["cells"][0]["missing"]
    with pytest.raises(RecordError, match=r"samples.cells\[0\].missing is missing"):
        record.decode(old)
    with pytest.raises(RecordError, match=r"samples.cells\[0\].\w+ is missing"):
        record.decode(old | {"schema_version": 3})


def test_the_environments_of_a_rollout_record_of_version_3_were_stepped_in_turn() -> None:
    cell = EnvironmentCell(env="Ant-v5", num_envs=4, stepped_by="sync", threads=1, timings=[Timing(count=8, seconds=0.5)], missing=None)
    samples = RolloutSamples(environments=[cell], acts=[], loops=[], parts=[])
    written = dataclasses.replace(LEARNING, suite="rollout", samples=samples)
    old = dataclasses.asdict(written)
    for name in ("stepped_by", "threads"):
        del old["samples"]["environments"][0][name]
    for version in (1, 2, 3):
        assert record.decode(old | {"schema_version": version}) == written
    with pytest.raises(RecordError, match=r"samples.environments\[0\].\w+ is missing"):
        record.decode(old)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"schema_version": 1}', '{"schema_version": 3}', '{"schema_version": 5}'])
def test_a_file_that_is_no_record_is_refused_by_its_path(text: str, tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text(text)
    with pytest.raises(RecordError, match=r"run\.json: .*run the benchmark again"):
        record.read(path)


def test_a_number_that_json_lacks_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        record.write(tmp_path / "run.json", dataclasses.replace(LEARNING, compile_seconds=float("nan")))
    assert not list(tmp_path.iterdir())
