"""One run of the learning suite: what is recorded, when it is resumed, when it is refused. A stand-in trains."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import sacref
from bench import learning_run, machine, record
from bench.learning_run import IncompleteError, Job, Train
from bench.record import LearningSamples


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(
        preset="tiny",
        env="Task-v0",
        backend="torch",
        seed=3,
        steps=20,
        evaluation_interval=10,
        evaluation_episodes=2,
        run_dir=str(tmp_path / "runs" / "tiny-torch-seed3"),
        out=str(tmp_path / "results" / "tiny-torch-seed3.json"),
        core=0,
    )


def trainer(until: int, calls: list[bool], during: Callable[[], None] = lambda: None) -> Train:
    """Trains to step `until` at most, as `sacref.experiment.train` leaves a run directory behind."""

    def train(job: Job, resume: bool) -> None:
        calls.append(resume)
        run_dir = Path(job.run_dir)
        (run_dir / "checkpoints" / f"agent_{until}").mkdir(parents=True)
        config = {"seed": job.seed, "cfg": {"batch_size": 256, "experiment": {"directory": "/home/me", "experiment_name": "x"}}}
        (run_dir / "config.json").write_text(json.dumps(config))
        during()
        rows = [{"step": step, "returns": [step, step + 1], "mean": 0, "std": 0} for step in range(10, until + 1, 10)]
        (run_dir / "evaluation.json").write_text(json.dumps(rows))

    return train


def samples(path: str) -> LearningSamples:
    found = record.read(Path(path)).samples
    assert isinstance(found, LearningSamples)
    return found


def test_a_finished_run_is_recorded_with_its_raw_returns(job: Job) -> None:
    calls: list[bool] = []
    learning_run.execute(job, trainer(20, calls, lambda: time.sleep(0.2)))
    written = record.read(Path(job.out))
    assert calls == [False]
    assert (written.suite, written.run, written.seed) == ("learning", "tiny-torch-seed3", 3)
    assert written.sacref_version == sacref.__version__
    assert written.configuration["steps"] == 20
    # No path of the machine is recorded.
    assert written.configuration["run"] == {"seed": 3, "cfg": {"batch_size": 256, "experiment": {}}}
    found = samples(job.out)
    assert [(evaluation.step, evaluation.returns) for evaluation in found.evaluations] == [(10, [10.0, 11.0]), (20, [20.0, 21.0])]
    (session,) = found.sessions
    assert not session.resumed
    assert 0.2 <= session.wall_seconds < 5
    assert session.cpu_seconds < session.wall_seconds - 0.1  # It slept.


def test_energy_is_that_of_the_device_that_the_run_computes_on(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learning_run, "HEARTBEAT_SECONDS", 0.05)
    monkeypatch.setattr(machine, "power_watts", lambda: 200.0)
    monkeypatch.setattr(machine, "accelerator", lambda backend: "A GPU")
    learning_run.execute(job, trainer(20, [], lambda: time.sleep(0.3)))
    (session,) = samples(job.out).sessions
    assert session.wall_seconds >= 0.3
    assert session.energy_joules == pytest.approx(200.0 * session.wall_seconds)


@pytest.mark.parametrize(("device", "watts"), [(None, 200.0), ("A GPU", None)])
def test_no_energy_on_the_cpu_nor_of_a_device_that_does_not_tell(
    device: str | None, watts: float | None, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "power_watts", lambda: watts)
    monkeypatch.setattr(machine, "accelerator", lambda backend: device)
    learning_run.execute(job, trainer(20, []))
    assert [session.energy_joules for session in samples(job.out).sessions] == [None]


@pytest.mark.parametrize(("answer", "watts"), [("echo 312.45", 312.45), ("echo '[N/A]'", None), ("exit 9", None)])
def test_the_device_is_asked_for_its_power(answer: str, watts: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{answer}\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    assert machine.power_watts() == watts


def test_a_run_that_stopped_half_way_is_not_recorded_and_then_resumed(job: Job) -> None:
    calls: list[bool] = []
    with pytest.raises(IncompleteError, match="before step 20"):
        learning_run.execute(job, trainer(10, calls))
    assert not Path(job.out).exists()
    learning_run.execute(job, trainer(20, calls))
    assert calls == [False, True]
    assert [session.resumed for session in samples(job.out).sessions] == [False, True]
    assert record.read(Path(job.out)).compile_seconds is None


def test_a_run_without_a_checkpoint_starts_anew(job: Job) -> None:
    Path(job.run_dir).mkdir(parents=True)
    (Path(job.run_dir) / "config.json").write_text("{}")
    calls: list[bool] = []
    learning_run.execute(job, trainer(20, calls))
    assert calls == [False]
    assert len(samples(job.out).sessions) == 1


def test_the_time_of_a_session_that_was_killed_is_kept(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learning_run, "HEARTBEAT_SECONDS", 0.02)
    sessions = Path(job.run_dir).with_suffix(".sessions.json")
    seen: list[float] = []

    def look() -> None:
        time.sleep(0.3)
        seen.extend(session["wall_seconds"] for session in json.loads(sessions.read_text()))

    learning_run.execute(job, trainer(20, [], look))
    assert len(seen) == 1
    assert 0.1 < seen[0] < 5


def test_an_evaluation_with_too_few_episodes_is_not_final(job: Job) -> None:
    def train(job: Job, resume: bool) -> None:
        Path(job.run_dir).mkdir(parents=True)
        (Path(job.run_dir) / "evaluation.json").write_text(json.dumps([{"step": 20, "returns": [1.0]}]))

    with pytest.raises(IncompleteError):
        learning_run.execute(job, train)
    assert not Path(job.out).exists()


def test_two_processes_do_not_train_one_run(job: Job) -> None:
    def train(job: Job, resume: bool) -> None:
        learning_run.execute(job, trainer(20, []))

    with pytest.raises(RuntimeError, match="tiny-torch-seed3 is being trained by another process"):
        learning_run.execute(job, train)
