"""A run that was stopped goes on where it was; its record holds what was measured, in the order of the plan."""

import io
import json
from functools import partial
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from bench.core import machine, record, runner
from bench.core.newest import newest
from bench.core.runner import Piece, Plan, Run, Sweep
from bench.core.samples import Timing
from bench.core.stage import Preset
from bench.suites.amp.samples import AmpCell, AmpSamples
from bench.suites.update.samples import MatmulCell, UpdateSamples


@pytest.fixture(autouse=True)
def one_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "source", lambda: ("abc", False))
    monkeypatch.setattr(machine, "find_accelerator", lambda: None)
    monkeypatch.setattr(runner, "missing_backends", lambda: {"torch": "absent", "jax": "absent"})


def run(tmp_path: Path, **configuration: object) -> Run:
    return Run(name="update-test", configuration={"preset": "test", **configuration}, seed=3, results=tmp_path / "results")


def samples(size: int) -> UpdateSamples:
    cell = MatmulCell(backend="torch", size=size, batch=1, width=1, timings=[Timing(count=2, seconds=0.5)])
    return UpdateSamples(cells=[], matmuls=[cell], stored=[])


def execute(run: Run, pieces: list[Piece[UpdateSamples]], tmp_path: Path, *, dry_run: bool = False) -> tuple[int, str]:
    console = Console(file=io.StringIO(), width=200)
    status = runner.execute(run, pieces, UpdateSamples, console=console, dry_run=dry_run, unfinished=tmp_path / "partial")
    assert isinstance(console.file, io.StringIO)
    return status, console.file.getvalue()


def pieces(measured: list[int], *, stop_at: int | None = None) -> list[Piece[UpdateSamples]]:
    def measure(size: int) -> UpdateSamples:
        if size == stop_at:
            raise KeyboardInterrupt
        measured.append(size)
        return samples(size)

    return [Piece(name=f"size {size}", seconds=60.0 * size, measure=partial(measure, size)) for size in (1, 2, 3)]


def test_the_plan_says_what_it_will_take_and_a_dry_run_measures_nothing(tmp_path: Path) -> None:
    measured: list[int] = []
    status, said = execute(run(tmp_path), pieces(measured), tmp_path, dry_run=True)
    assert (status, measured) == (0, [])
    assert "size 1: about 60 s" in said
    assert "update-test: 3 of 3 to do, together about 6 min" in said
    assert not list(tmp_path.rglob("*.json"))


def test_a_run_that_was_stopped_goes_on_where_it_was(tmp_path: Path) -> None:
    measured: list[int] = []
    assert execute(run(tmp_path), pieces(measured, stop_at=2), tmp_path)[0] == 130
    assert not (tmp_path / "results").exists()
    status, said = execute(run(tmp_path), pieces(measured), tmp_path)
    assert (status, measured) == (0, [1, 2, 3])
    assert "size 1: measured by an earlier start" in said
    (path,) = (tmp_path / "results").rglob("*.json")
    found = record.read(path, UpdateSamples)
    assert [cell.size for cell in found.samples.matmuls] == [1, 2, 3]
    assert (found.suite, found.run, found.seed, found.commit, found.configuration) == (
        "update",
        "update-test",
        3,
        "abc",
        {"preset": "test"},
    )
    # What is recorded is kept once; the same run measures anew.
    assert not list((tmp_path / "partial").rglob("*.json"))


@pytest.mark.parametrize("change", ["configuration", "source"])
def test_samples_of_another_configuration_or_source_are_not_taken_up(change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[int] = []
    execute(run(tmp_path), pieces(measured, stop_at=2), tmp_path)
    if change == "source":
        monkeypatch.setattr(machine, "source", lambda: ("def", False))
    execute(run(tmp_path, **({"rounds": 9} if change == "configuration" else {})), pieces(measured), tmp_path)
    assert measured == [1, 1, 2, 3]


def test_a_record_of_this_version_and_machine_is_found(tmp_path: Path) -> None:
    execute(run(tmp_path), pieces([]), tmp_path)
    here = machine.slug(machine.hardware(None))
    found = runner.recorded(tmp_path / "results", "update-test", here)
    assert found is not None
    assert runner.recorded(tmp_path / "results", "update-other", here) is None
    assert runner.recorded(tmp_path / "results", "update-test", "another-machine") is None
    older = json.loads(found.read_text()) | {"sacref_version": "0.0.1"}
    found.write_text(json.dumps(older))
    assert runner.recorded(tmp_path / "results", "update-test", here) is None


def test_samples_of_every_suite_come_back_from_json() -> None:
    cell = AmpCell(
        backend="jax",
        precision="tf32",
        recurrent="gru",
        sequence_length=32,
        batch=64,
        width=256,
        chosen="scan",
        gradient_steps=16,
        timings=[Timing(count=16, seconds=0.25)],
        compile_seconds=1.5,
        memory_bytes=None,
        memory_of=None,
        loss_error=1e-7,
        gradient_error=None,
        missing=None,
    )
    written = AmpSamples(cells=[cell])
    assert msgspec.convert(json.loads(json.dumps(msgspec.to_builtins(written))), AmpSamples) == written
    with pytest.raises(msgspec.ValidationError, match=r"Invalid enum value 'disk' - at `\$.cells\[0\].memory_of`"):
        msgspec.convert({"cells": [msgspec.to_builtins(cell) | {"memory_of": "disk"}]}, AmpSamples)


@pytest.mark.parametrize(
    ("error", "fits"),
    [
        (MemoryError(), False),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), False),
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes"), False),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"), False),
        (RuntimeError("shapes differ"), True),
    ],
)
def test_an_allocation_that_failed_is_told_from_other_errors(error: Exception, fits: bool) -> None:
    assert runner.does_not_fit(error) is not fits


def test_threads_that_the_machine_lacks_are_refused() -> None:
    with pytest.raises(SystemExit, match="--threads is 100000, expected 1 to"):
        runner.bind(100_000)


def test_some_pieces_make_a_record_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[int] = []
    bound: list[int | None] = []

    def bind(threads: int | None) -> int:
        bound.append(threads)
        return 2

    monkeypatch.setattr(runner, "bind", bind)

    def plan(preset: Preset, threads: int, seed: int) -> Plan[UpdateSamples]:
        return Plan(title="Sizes", configuration={}, pieces=pieces(measured))

    sweep = Sweep(UpdateSamples, plan, threads=1)
    with pytest.raises(SystemExit, match="--only names size 7, expected some of: size 1; size 2; size 3"):
        sweep.main(preset="cpu", only=("size 1", "size 7"))
    assert sweep.main(preset="cpu", only=("size 3", "size 1"), results=tmp_path / "update") == 0
    assert measured == [3, 1] and bound == [1, 1]
    (path,) = tmp_path.glob("update/*/update-cpu-2cores-part.json")
    assert record.read(path, UpdateSamples).configuration["only"] == ["size 3", "size 1"]
    assert runner.recorded(tmp_path / "update", "update-cpu-2cores", path.parent.name[11:]) is None
    assert [found.heading.rpartition("; ")[2] for found in newest(tmp_path, UpdateSamples)] == ["preset cpu, in part"]
    assert runner.default_results("update", "cpu", ("size 1",)).parts[-2:] == ("part", "update")
