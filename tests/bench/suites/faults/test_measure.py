"""Killed runs: every kind of difference is found, and told in the report."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

import sacref
from bench.compare import figures
from bench.core import record, runner
from bench.core.plots import NAMES
from bench.core.record import Hardware, Record
from bench.suites.faults import measure as faults
from bench.suites.faults import section
from bench.suites.faults import worker as faults_worker
from bench.suites.faults.measure import TASKS, compare
from bench.suites.faults.samples import FaultsCell, FaultsSamples
from sacref.storage import checkpoint
from tests.backends import BACKENDS

CELL = FaultsCell(
    backend="torch", env="Ant-v5", what="GRU", steps=360, kills=10, resumed=7, runs=2, seconds=3.0, differences=[], missing=None
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("runs") / "whole"
    result = sacref.train(
        backend="torch" if "torch" in BACKENDS else "jax",
        env="Pendulum-v1",
        steps=60,
        run_dir=directory,
        cfg={"batch_size": 8, "random_timesteps": 5, "learning_starts": 5, "experiment": {"write_interval": 10, "checkpoint_interval": 20}},
        hidden=(8,),
        evaluation_interval=30,
        evaluation_episodes=1,
        device="cpu",
        progress=False,
    )
    agent: Any = result.agent
    np.savez(directory / faults_worker.MEMORY, **agent.memory.arrays())
    return directory


def test_what_differs_is_found(whole: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(whole, other)
    assert compare(other, whole) == []
    lines = [json.loads(line) for line in (other / "metrics.jsonl").read_text().splitlines()]
    # The clock may differ, nothing else.
    lines[0]["wall_time"] += 1.0
    (other / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert compare(other, whole) == []
    tag = next(tag for tag in lines[0] if tag.startswith("Loss"))
    lines[0][tag] += 1e-9
    (other / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert compare(other, whole) == ["other metrics"]
    (other / "evaluation.json").write_text("[]")
    next(other.glob("events.out.*")).unlink()
    assert compare(other, whole) == ["other evaluations", "other metrics", "other events"]


def test_a_bit_of_a_checkpoint_or_of_the_memory_is_found(whole: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(whole, other)
    newest = other / "checkpoints" / "agent_60"
    groups, metadata = checkpoint.read(newest)
    group, name = next((group, name) for group, arrays in groups.items() for name, array in arrays.items() if array.dtype == np.float32)
    flat = groups[group][name].reshape(-1).view(np.uint32)
    flat[0] ^= 1
    checkpoint.write(newest, groups, metadata)
    memory = dict(np.load(other / faults_worker.MEMORY))
    memory["rewards"].reshape(-1).view(np.uint32)[0] ^= 1
    np.savez(other / faults_worker.MEMORY, **memory)
    shutil.rmtree(other / "checkpoints" / "agent_20")
    found = compare(other, whole)
    assert f"agent_60/{group}/{name} differs" in found and "memory/rewards differs" in found
    assert any(words.startswith("agent_20/") and words.endswith("is in one of the two alone") for words in found)


def test_a_process_that_fails_is_no_kill(tmp_path: Path) -> None:
    if not BACKENDS:
        pytest.skip("no backend is installed")
    task = faults.Task(backend=BACKENDS[0], env="NoSuchTask-v5", steps=10, what="")
    with pytest.raises(RuntimeError, match=r"NoSuchTask-v5: the process ended with 1$"):
        faults._run(task, tmp_path / "run")


def test_a_backend_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "missing_backends", lambda: {"torch": "no torch", "jax": "no jax"})
    assert [faults.measure(task, 5, "0").cells[0].missing for task in TASKS] == ["no torch", "no jax", "no torch", "no torch"]


def test_the_record_adds_up_and_the_report_tells_differences(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(runner, "bind", lambda threads: 1)
    monkeypatch.setattr(runner, "PARTIAL", tmp_path / "partial")
    monkeypatch.setattr(runner, "release", lambda: None)  # of twenty pieces that hold nothing
    asked = []

    def measure(task: faults.Task, kills: int, seed: str) -> FaultsSamples:
        asked.append((task.backend, kills))
        words = ["run 1: other metrics"] if task.env == "Ant-v5" and len(asked) == 6 else []
        cell = FaultsCell(
            backend=task.backend,
            env=task.env,
            what=task.what,
            steps=task.steps,
            kills=kills,
            resumed=kills - 3,
            runs=2,
            seconds=1.0,
            differences=words,
            missing=None,
        )
        return FaultsSamples(cells=[cell])

    monkeypatch.setattr(faults, "measure", measure)
    assert faults.main(results=tmp_path / "faults", threads=1) == 1
    assert asked == [(task.backend, 10) for task in TASKS for _ in range(5)]
    assert "  jax, Ant-v5: run 1: other metrics" in capsys.readouterr().out
    (path,) = (tmp_path / "faults").glob("*/*.json")
    assert path.name == "faults-cpu-1core.json"
    differences = figures([record.read(path, FaultsSamples)])
    assert {name: figure.values for name, figure in differences.items() if "Ant" in name} == {
        "jax, Ant-v5, float16, differences of killed runs": [1.0, 0.0, 0.0, 0.0, 0.0]
    }
    text = "\n".join(section.section(tmp_path).paragraphs)
    assert f"| {NAMES['torch']} | HalfCheetah-v5 | 360 | 50 | 35 | 10 | none |" in text
    assert f"| {NAMES['jax']} | Ant-v5, float16 | 360 | 50 | 35 | 10 | run 1: other metrics |" in text


def test_what_could_not_run_is_told(tmp_path: Path) -> None:
    assert section.section(tmp_path).paragraphs == []
    missing = FaultsSamples(cells=[replace(CELL, missing="no torch", kills=0)])
    found = Record(
        schema_version=record.SCHEMA_VERSION,
        suite="faults",
        run="faults-cpu-1core",
        date="2026-01-01T00:00:00+00:00",
        sacref_version="0.1.0",
        commit=None,
        dirty=True,
        configuration={"preset": "cpu", "threads": 1},
        hardware=Hardware(cpu_model="A CPU", cores=2, threads=2, memory_bytes=2**30, accelerator=None),
        libraries={},
        seed=0,
        compile_seconds=None,
        samples=missing,
    )
    record.write(tmp_path / "faults" / "2026-01-01-a" / "faults-cpu-1core.json", found)
    assert "missing: no torch" in "\n".join(section.section(tmp_path).paragraphs)
