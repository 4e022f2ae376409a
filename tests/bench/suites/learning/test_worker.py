"""One run of the learning suite: what is recorded, when it is resumed, when it is refused. A stand-in trains."""

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

import sacref
from bench.core import machine, precisions, record
from bench.suites.learning import worker as learning_run
from bench.suites.learning.samples import Evaluation, LearningSamples, Session
from bench.suites.learning.worker import IncompleteError, Job, Train
from sacref.training.population import PopulationError


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
        run_dir=str(tmp_path / "runs" / "tiny-torch" / "seed=3"),
        out=str(tmp_path / "results" / "tiny-torch-seed3.json"),
    )


def leave_behind(job: Job, until: int) -> None:
    """What a training to step `until` leaves in its run directory."""
    run_dir = Path(job.run_dir)
    (run_dir / "checkpoints" / f"agent_{until}").mkdir(parents=True, exist_ok=True)
    config = {"seed": job.seed, "cfg": {"batch_size": 256, "experiment": {"directory": "/home/me", "experiment_name": "x"}}}
    (run_dir / "config.json").write_text(json.dumps(config))
    rows = [{"step": step, "returns": [step, step + 1], "mean": 0, "std": 0} for step in range(10, until + 1, 10)]
    (run_dir / "evaluation.json").write_text(json.dumps(rows))


def beside(job: Job, number: int) -> list[Job]:
    """Jobs of as many seeds, as a plan has them."""
    return [
        replace(job, seed=seed, run_dir=str(Path(job.run_dir).parent / f"seed={seed}"), out=job.out.replace("seed3", f"seed{seed}"))
        for seed in range(job.seed, job.seed + number)
    ]


def trainer(until: int, calls: list[bool], during: Callable[[], None] = lambda: None) -> Train:
    """Trains to step `until` at most, as `sacref.training.experiment.train` leaves a run directory behind."""

    def train(jobs: Sequence[Job], resume: bool) -> None:
        calls.append(resume)
        during()
        for job in jobs:
            leave_behind(job, until)

    return train


def samples(path: str) -> LearningSamples:
    found = record.read(Path(path), LearningSamples).samples
    assert isinstance(found, LearningSamples)
    return found


def test_a_finished_run_is_recorded_with_its_raw_returns(job: Job) -> None:
    calls: list[bool] = []
    learning_run.execute([job], trainer(20, calls, lambda: time.sleep(0.2)))
    written = record.read(Path(job.out), LearningSamples)
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
    assert session.wall_seconds >= 0.2
    assert session.cpu_seconds < session.wall_seconds - 0.1  # It slept.


def test_energy_is_that_of_the_device_that_the_run_computes_on(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learning_run, "HEARTBEAT_SECONDS", 0.05)
    monkeypatch.setattr(machine, "power_watts", lambda: 200.0)
    monkeypatch.setattr(machine, "accelerator", lambda backend: "A GPU")
    learning_run.execute([job], trainer(20, [], lambda: time.sleep(0.3)))
    (session,) = samples(job.out).sessions
    assert session.wall_seconds >= 0.3
    assert session.energy_joules == pytest.approx(200.0 * session.wall_seconds)


@pytest.mark.parametrize(("device", "watts"), [(None, 200.0), ("A GPU", None)])
def test_no_energy_on_the_cpu_nor_of_a_device_that_does_not_tell(
    device: str | None, watts: float | None, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "power_watts", lambda: watts)
    monkeypatch.setattr(machine, "accelerator", lambda backend: device)
    learning_run.execute([job], trainer(20, []))
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
        learning_run.execute([job], trainer(10, calls))
    assert not Path(job.out).exists()
    learning_run.execute([job], trainer(20, calls))
    assert calls == [False, True]
    assert [session.resumed for session in samples(job.out).sessions] == [False, True]
    assert record.read(Path(job.out), LearningSamples).compile_seconds is None


def test_each_session_names_the_commit_that_it_trained_with(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "source", lambda: ("a" * 40, True))
    with pytest.raises(IncompleteError):
        learning_run.execute([job], trainer(10, []))
    monkeypatch.setattr(machine, "source", lambda: ("b" * 40, False))
    learning_run.execute([job], trainer(20, []))
    written = record.read(Path(job.out), LearningSamples)
    assert [(session.commit, session.dirty) for session in samples(job.out).sessions] == [("a" * 40, True), ("b" * 40, False)]
    assert (written.commit, written.dirty) == ("b" * 40, False)


def test_a_run_goes_on_from_sessions_that_name_no_commit(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(IncompleteError):
        learning_run.execute([job], trainer(10, []))
    sessions = Path(job.run_dir).with_suffix(".sessions.json")
    (older,) = json.loads(sessions.read_text())
    del older["commit"], older["dirty"]
    sessions.write_text(json.dumps([older]))
    monkeypatch.setattr(machine, "source", lambda: ("b" * 40, False))
    learning_run.execute([job], trainer(20, []))
    assert [(session.commit, session.dirty) for session in samples(job.out).sessions] == [(None, None), ("b" * 40, False)]


def test_a_run_without_a_checkpoint_starts_anew(job: Job) -> None:
    Path(job.run_dir).mkdir(parents=True)
    (Path(job.run_dir) / "config.json").write_text("{}")
    calls: list[bool] = []
    learning_run.execute([job], trainer(20, calls))
    assert calls == [False]
    assert len(samples(job.out).sessions) == 1


def test_the_time_of_a_session_that_was_killed_is_kept(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learning_run, "HEARTBEAT_SECONDS", 0.02)
    sessions = Path(job.run_dir).with_suffix(".sessions.json")
    seen: list[float] = []

    def look() -> None:
        end = time.monotonic() + 60
        while (not sessions.exists() or written() < 0.1) and time.monotonic() < end:
            time.sleep(0.02)
        seen.append(written())

    def written() -> float:
        (session,) = json.loads(sessions.read_text())
        return float(session["wall_seconds"])

    learning_run.execute([job], trainer(20, [], look))
    assert len(seen) == 1
    assert 0.1 <= seen[0] < samples(job.out).sessions[0].wall_seconds


def test_an_evaluation_with_too_few_episodes_is_not_final(job: Job) -> None:
    def train(jobs: Sequence[Job], resume: bool) -> None:
        Path(job.run_dir).mkdir(parents=True)
        (Path(job.run_dir) / "evaluation.json").write_text(json.dumps([{"step": 20, "returns": [1.0]}]))

    with pytest.raises(IncompleteError):
        learning_run.execute([job], train)
    assert not Path(job.out).exists()


def test_an_evaluation_is_timed_by_the_line_of_metrics_of_its_step_over_all_sessions() -> None:
    sessions = [
        Session(started="1970-01-01T00:01:40.500+00:00", resumed=False, wall_seconds=60.0, cpu_seconds=1.0, members=1, energy_joules=None),
        Session(started="1970-01-01T01:00:00.000+00:00", resumed=True, wall_seconds=90.0, cpu_seconds=1.0, members=1, energy_joules=None),
    ]
    evaluations = [Evaluation(step=step, returns=[1.0], seconds=None) for step in (10, 20, 30, 40)]
    times = [(5, 101.0), (10, 110.5), (15, 120.0), (25, 3_620.0), (30, 3_650.0)]
    found = learning_run.with_times(evaluations, times, sessions)
    # Of step 20 the first line after it: 20 s after the second session began, and 60 of the first one. Of 40 there is none.
    assert [each.seconds for each in found] == [10.0, 80.0, 110.0, None]
    assert [each.returns for each in found] == [[1.0]] * 4
    # Before any session: a clock that was set back.
    assert [each.seconds for each in learning_run.with_times(evaluations[:1], [(10, 3.0)], sessions)] == [None]


def test_runs_together_are_recorded_each_with_the_time_of_all(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "power_watts", lambda: 200.0)
    monkeypatch.setattr(machine, "accelerator", lambda backend: "A GPU")
    jobs = beside(job, 3)
    learning_run.execute(jobs, trainer(20, [], lambda: time.sleep(0.3)))
    found = [record.read(Path(each.out), LearningSamples) for each in jobs]
    assert [(each.run, each.seed) for each in found] == [(f"tiny-torch-seed{seed}", seed) for seed in (3, 4, 5)]
    sessions = [session for each in jobs for session in samples(each.out).sessions]
    assert [session.members for session in sessions] == [3, 3, 3]
    assert min(session.wall_seconds for session in sessions) >= 0.3
    assert len({(session.wall_seconds, session.energy_joules) for session in sessions}) == 1


def test_of_runs_together_those_that_ended_well_are_recorded(job: Job) -> None:
    jobs = beside(job, 3)

    def train(jobs: Sequence[Job], resume: bool) -> None:
        for each, until in zip(jobs, (20, 10, 20), strict=True):
            leave_behind(each, until)
        raise PopulationError("1 of 3 members failed")

    with pytest.raises(PopulationError, match="1 of 3 members failed"):
        learning_run.execute(jobs, train)
    assert [Path(each.out).exists() for each in jobs] == [True, False, True]


def test_runs_together_that_were_stopped_go_on(job: Job) -> None:
    jobs = beside(job, 2)
    calls: list[bool] = []
    with pytest.raises(IncompleteError, match=r"^2 of 2 runs stopped before step 20: start it again"):
        learning_run.execute(jobs, trainer(10, calls))
    learning_run.execute(jobs[1:], trainer(20, calls))  # alone
    learning_run.execute(jobs, trainer(20, calls))
    assert calls == [False, True, True]
    of_sessions = [[(session.members, session.resumed) for session in samples(each.out).sessions] for each in jobs]
    assert of_sessions == [[(2, False), (2, True)], [(2, False), (1, True), (2, True)]]


# tests/training/test_population has JAX's runs go on alone, too.
@pytest.mark.parametrize("backend", ["torch", pytest.param("jax", marks=pytest.mark.full)])
def test_runs_that_are_really_trained_together_go_on_alone(backend: str, job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(backend)
    used: list[tuple[str, str]] = []
    monkeypatch.setattr(precisions, "use", lambda *asked: used.append(asked))
    settings = {"batch_size": 4, "random_timesteps": 6, "learning_starts": 6}
    arguments = {"hidden": [8], "env_kwargs": {"max_episode_steps": 10}}
    jobs = beside(replace(job, env="Pendulum-v1", backend=backend, settings=settings, arguments=arguments), 2)
    learning_run.execute([replace(each, steps=10) for each in jobs], learning_run.train)
    learning_run.execute(jobs[:1], learning_run.train)
    learning_run.execute(jobs, learning_run.train)
    assert used == [(backend, "float32")] * 3
    found = [samples(each.out) for each in jobs]
    assert [[evaluation.step for evaluation in each.evaluations] for each in found] == [[10, 20], [10, 20]]
    assert [[session.members for session in each.sessions] for each in found] == [[2, 1, 2], [2, 2]]
    assert found[0].evaluations != found[1].evaluations
    for each in found:
        first, last = (evaluation.seconds for evaluation in each.evaluations)
        assert first is not None and last is not None
        assert 0 < first < last < sum(session.wall_seconds for session in each.sessions) + 0.1


def test_two_processes_do_not_train_one_run(job: Job) -> None:
    def train(jobs: Sequence[Job], resume: bool) -> None:
        learning_run.execute([job], trainer(20, []))

    with pytest.raises(RuntimeError, match="tiny-torch-seed3 is being trained by another process"):
        learning_run.execute([job], train)
