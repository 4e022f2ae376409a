"""What the learning suite starts, skips and resumes, and that a run which fails or is stopped does no harm."""

import dataclasses
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args, get_type_hints

import gymnasium
import pytest
from msgspec.structs import replace
from rich.console import Console

import sacref
from bench.core import machine, record
from bench.core.record import Hardware, Record, RecordError
from bench.suites.learning import measure as learning
from bench.suites.learning.measure import Plan, Pool, plan
from bench.suites.learning.presets import COMPARISONS, PRESETS, SUITES, TASKS, Preset, presets_of
from bench.suites.learning.published import published, settings_of
from bench.suites.learning.samples import Evaluation, LearningSamples, Session
from bench.suites.learning.worker import Job
from sacref import envs

PRESET = Preset(name="tiny", title="A task", env="Task-v0", steps=1_000, evaluation_interval=500, seeds=(0, 1))
MACHINE = "a-cpu-2core"


@pytest.fixture(autouse=True)
def one_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "slug", lambda where: MACHINE)
    monkeypatch.setattr(machine, "find_accelerator", lambda: None)


def recorded(job: Job, **changes: object) -> Record[LearningSamples]:
    written = Record(
        schema_version=record.SCHEMA_VERSION,
        suite="learning",
        run=job.name,
        date="2026-01-02T03:04:05+00:00",
        sacref_version=sacref.__version__,
        commit=None,
        dirty=True,
        configuration=job.configuration() | {"run": {}},
        hardware=Hardware(cpu_model="A CPU", cores=2, threads=1, memory_bytes=1, accelerator=None),
        libraries={},
        seed=job.seed,
        compile_seconds=None,
        samples=LearningSamples(
            evaluations=[Evaluation(step=job.steps, returns=[1.0], seconds=None)],
            sessions=[Session(started="", resumed=False, wall_seconds=100.0, cpu_seconds=100.0, members=1, energy_joules=None)],
        ),
    )
    return replace(written, **changes)


def planned(tmp_path: Path, jobs: int = 2, *, seeds: tuple[int, ...] = PRESET.seeds, together: int = 1) -> Plan:
    return plan(PRESET, ("torch", "jax"), seeds, jobs, tmp_path / "results", tmp_path / "runs", together=together)


def names(found: Plan) -> list[str]:
    return [job.name for job in found.jobs]


def test_all_runs_are_planned_seed_by_seed(tmp_path: Path) -> None:
    found = planned(tmp_path)
    assert names(found) == ["tiny-torch-seed0", "tiny-jax-seed0", "tiny-torch-seed1", "tiny-jax-seed1"]
    assert len({job.out for job in found.jobs} | {job.run_dir for job in found.jobs}) == 8
    assert found.seconds == pytest.approx(4 * 1_000 / 2 / learning.UNMEASURED_STEPS_PER_SECOND)


def test_a_recorded_run_is_skipped_whatever_its_date_and_tells_the_speed(tmp_path: Path) -> None:
    first = planned(tmp_path).jobs[0]
    path = tmp_path / "results" / f"2020-01-01-{MACHINE}" / f"{first.name}.json"
    record.write(path, recorded(first))
    found = planned(tmp_path)
    assert names(found) == ["tiny-jax-seed0", "tiny-torch-seed1", "tiny-jax-seed1"]
    assert found.skipped == [path]
    assert found.seconds == pytest.approx(3 * 1_000 / 2 / 10)  # The record's 1,000 steps in 100 seconds.


def test_the_speed_is_that_of_the_presets_own_records_else_of_the_papers_networks(tmp_path: Path) -> None:
    results, first = tmp_path / "results", planned(tmp_path).jobs[0]
    small = dataclasses.replace(first, preset="small", arguments={"hidden": [8]})
    one = LearningSamples(
        evaluations=[Evaluation(step=1_000, returns=[1.0], seconds=None)],
        sessions=[Session(started="", resumed=False, wall_seconds=2.0, cpu_seconds=2.0, members=1, energy_joules=None)],
    )
    record.write(results / f"2020-01-01-{MACHINE}" / "small-torch-seed0.json", recorded(small, samples=one))
    assert learning.steps_per_second(results, MACHINE, "small") == 500.0
    assert learning.steps_per_second(results, MACHINE, "tiny") == learning.UNMEASURED_STEPS_PER_SECOND
    record.write(results / f"2020-01-01-{MACHINE}" / "tiny-torch-seed0.json", recorded(first))
    assert learning.steps_per_second(results, MACHINE) == 10.0
    assert learning.steps_per_second(results, MACHINE, "small") == 500.0


def test_the_seeds_of_a_backend_are_trained_together(tmp_path: Path) -> None:
    found = planned(tmp_path, 1, seeds=tuple(range(5)), together=2)
    by_name = [[job.name.removeprefix("tiny-") for job in group] for group in found.groups]
    assert by_name == [
        ["torch-seed0", "torch-seed1"],
        ["jax-seed0", "jax-seed1"],
        ["torch-seed2", "torch-seed3"],
        ["jax-seed2", "jax-seed3"],
        ["torch-seed4"],
        ["jax-seed4"],
    ]
    # Where `train_population` trains them: what was begun alone goes on together, and the other way round.
    assert {Path(job.run_dir).name for job in found.jobs} == {f"seed={seed}" for seed in range(5)}
    assert len({Path(job.run_dir).parent for group in found.groups for job in group if job.backend == "jax"}) == 1
    assert [job.run_dir for job in planned(tmp_path, seeds=tuple(range(5))).jobs] == [job.run_dir for job in found.jobs]


def test_the_speed_of_runs_together_is_that_of_such_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results, first = tmp_path / "results", planned(tmp_path).jobs[0]
    assert learning.steps_per_second(results, MACHINE, "tiny", together=2) == learning.UNMEASURED_STEPS_PER_SECOND
    monkeypatch.setattr(machine, "find_accelerator", lambda: "A GPU")
    assert learning.steps_per_second(results, MACHINE, "tiny", together=2) == learning.UNMEASURED_STEPS_PER_SECOND_TOGETHER
    together = LearningSamples(
        evaluations=[Evaluation(step=1_000, returns=[1.0], seconds=None)],
        sessions=[Session(started="", resumed=False, wall_seconds=20.0, cpu_seconds=20.0, members=4, energy_joules=None)],
    )
    record.write(results / f"2020-01-01-{MACHINE}" / f"{first.name}.json", recorded(first, samples=together))
    assert learning.steps_per_second(results, MACHINE, "tiny", together=2) == 200.0  # Four runs of 1,000 steps in 20 seconds.
    assert learning.steps_per_second(results, MACHINE, "tiny") == learning.UNMEASURED_STEPS_PER_SECOND
    assert planned(tmp_path, 1, together=2).seconds == pytest.approx(3 * 1_000 / 200)


def test_runs_share_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    def arranged(*arguments: Any) -> tuple[int, int, list[list[int]]]:
        found = learning.arrange(*arguments)
        return found.jobs, found.together, found.cores

    monkeypatch.setattr(machine, "available_cores", lambda: [0, 1, 2, 3, 4])
    assert arranged(10) == (5, 1, [[0], [1], [2], [3], [4]])
    assert arranged(10, 2) == (2, 1, [[0], [2]])
    assert arranged(10, None, 10) == (1, 10, [[0, 1, 2, 3, 4]])
    assert arranged(10, 2, 5) == (2, 5, [[0, 1], [2, 3]])
    monkeypatch.setattr(machine, "find_accelerator", lambda: "A GPU")
    assert arranged(10) == (1, 10, [[0, 1, 2, 3, 4]])
    assert arranged(10, None, 1) == (1, 1, [[0]])
    with pytest.raises(SystemExit, match="--jobs is 6, expected 1 to 5"):
        learning.arrange(10, 6)
    with pytest.raises(SystemExit, match="--together is 0, expected an integer >= 1"):
        learning.arrange(10, None, 0)


def test_a_record_of_another_version_or_machine_is_not_skipped(tmp_path: Path) -> None:
    first = planned(tmp_path).jobs[0]
    record.write(tmp_path / "results" / f"2020-01-01-{MACHINE}" / f"{first.name}.json", recorded(first, sacref_version="0.0.1"))
    record.write(tmp_path / "results" / "2020-01-01-other" / f"{first.name}.json", recorded(first))
    assert len(planned(tmp_path).jobs) == 4


def test_a_record_of_another_configuration_stops_the_suite(tmp_path: Path) -> None:
    first = planned(tmp_path).jobs[0]
    path = tmp_path / "results" / f"2020-01-01-{MACHINE}" / f"{first.name}.json"
    record.write(path, recorded(first, configuration=first.configuration() | {"steps": 7}))
    with pytest.raises(SystemExit, match="another configuration"):
        planned(tmp_path)


def test_a_record_that_cannot_be_read_stops_the_suite(tmp_path: Path) -> None:
    path = tmp_path / "results" / f"2020-01-01-{MACHINE}" / "tiny-torch-seed0.json"
    path.parent.mkdir(parents=True)
    path.write_text("{}")
    with pytest.raises(RecordError, match="schema_version"):
        planned(tmp_path)


def test_the_estimate_leaves_out_what_is_trained_already(tmp_path: Path) -> None:
    first = planned(tmp_path).jobs[0]
    Path(first.run_dir).mkdir(parents=True)
    (Path(first.run_dir) / "evaluation.json").write_text(json.dumps([{"step": 500, "returns": [1.0]}]))
    assert planned(tmp_path).seconds == pytest.approx(3_500 / 2 / learning.UNMEASURED_STEPS_PER_SECOND)


def test_the_presets_end_with_an_evaluation() -> None:
    for preset in PRESETS.values():
        assert preset.steps % preset.evaluation_interval == 0
        assert preset.evaluation_episodes == 10
    headline = PRESETS["halfcheetah-100k"]
    assert (headline.env, headline.steps, headline.seeds) == ("HalfCheetah-v5", 100_000, (0, 1, 2))


def test_every_preset_can_be_asked_for() -> None:
    (offered,) = get_args(get_type_hints(learning.main, include_extras=True)["preset"])[:1]
    assert set(get_args(offered)) == {*PRESETS, *SUITES}


def test_the_standard_suite_is_what_the_field_reports() -> None:
    presets = presets_of("standard")
    assert [preset.env for preset in presets] == ["HalfCheetah-v5", "Hopper-v5", "Walker2d-v5", "Ant-v5", "Humanoid-v5"]
    assert {(preset.steps, preset.seeds) for preset in presets} == {(1_000_000, tuple(range(10)))}
    assert all(not preset.settings and not preset.arguments for preset in presets)


def test_the_agreement_suite_has_jaxrls_settings() -> None:
    presets = presets_of("agreement")
    assert [preset.env for preset in presets] == ["HalfCheetah-v4", "Hopper-v4", "Walker2d-v4"]
    assert {(preset.steps, preset.seeds) for preset in presets} == {(1_000_000, tuple(range(10)))}
    for preset in presets:
        of_jaxrl = [point for point in published(preset.env, preset.steps) if point.name == "jaxrl"]
        assert of_jaxrl
        assert all(point.comparable(preset.env) for point in of_jaxrl)
        assert settings_of(preset.env, preset.settings).differences(of_jaxrl[0].settings) == []
        spec = gymnasium.spec(preset.env)
        assert spec.max_episode_steps == 1_000
        assert {**preset.settings, "target_entropy": 0} == {"target_entropy": 0, "random_timesteps": 10_000, "learning_starts": 10_000}
    assert [preset.settings["target_entropy"] for preset in presets] == [-3.0, -1.5, -3.0]


@pytest.mark.skipif(find_spec("mujoco") is None, reason="mujoco is not installed")
@pytest.mark.parametrize("preset", [preset for suite in SUITES for preset in presets_of(suite)], ids=lambda preset: preset.name)
@pytest.mark.filterwarnings("ignore:.*out of date.*:DeprecationWarning")
def test_the_tasks_of_the_suites_are_there_and_have_so_many_actions(preset: Preset) -> None:
    env = envs.make(preset.env, 1)
    try:
        (dimensions,) = env.single_action_space.shape or ()
    finally:
        env.close()
    assert TASKS[preset.env.rpartition("-")[0]] == dimensions


def test_a_suite_trains_its_presets_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started: list[str] = []

    def run(pool: Pool) -> int:
        started.extend(job.name for group in pool._waiting for job in group)
        return 0

    monkeypatch.setattr(Pool, "run", run)
    monkeypatch.setattr(machine, "available_cores", lambda: [0, 1])
    arguments: dict[str, Any] = {"backends": ("jax",), "seeds": (3, 4), "results": tmp_path / "results", "runs": tmp_path / "runs"}
    first = plan(PRESETS["halfcheetah-1m"], ("jax",), (3,), 2, tmp_path / "results", tmp_path / "runs").jobs[0]
    record.write(tmp_path / "results" / f"2020-01-01-{MACHINE}" / f"{first.name}.json", recorded(first))
    assert learning.main("standard", **arguments, dry_run=True) == 0
    assert started == []
    assert learning.main("standard", **arguments) == 0
    assert started == [
        "halfcheetah-1m-jax-seed4",
        *(f"{task}-1m-jax-seed{seed}" for task in ("hopper", "walker2d", "ant", "humanoid") for seed in (3, 4)),
    ]
    # One run of a million steps on one core, eight on two, at the record's million steps in 100 seconds.
    assert capsys.readouterr().out.splitlines()[-1] == "Together 9 runs: about 8 min"


def test_a_comparison_is_of_two_presets_that_differ_in_what_is_asked() -> None:
    by_name = {comparison.name: (PRESETS[comparison.preset], PRESETS[comparison.beside]) for comparison in COMPARISONS}
    assert len(by_name) == len(COMPARISONS) == 5
    assert not by_name.keys() & PRESETS.keys()  # Their pictures lie beside each other.
    for one, other in by_name.values():
        assert (one.env, one.seeds, one.evaluation_interval) == (other.env, other.seeds, other.evaluation_interval)
        differing = {
            name
            for kind in ("settings", "arguments")
            for name in getattr(one, kind).keys() | getattr(other, kind).keys()
            if getattr(one, kind).get(name) != getattr(other, kind).get(name)
        }
        assert differing in (
            {"batch_size", "sequence_length", "recurrent", "recurrent_size"},
            {"wrappers"},
            {"mixed_precision"},
            {"network", "hidden"},
        )
        # They share the end of the shorter one.
        assert one.steps == other.steps or "mixed_precision" in differing
        assert one.steps <= other.steps and one.steps % other.evaluation_interval == 0
    gru = PRESETS["pendulum-hidden-gru"].settings
    assert gru["batch_size"] * gru["sequence_length"] == 256  # As many rows as beside.
    mixed = PRESETS["halfcheetah-50k-bfloat16"]
    assert (mixed.steps, dict(mixed.settings)) == (50_000, {"mixed_precision": True})
    assert by_name["halfcheetah-precision"] == (mixed, PRESETS["halfcheetah-100k"])


def pool(tmp_path: Path, worker: str, *, count: int = 3, cores: tuple[int, ...] = (0, 1)) -> tuple[Pool, list[Job], io.StringIO]:
    """A pool whose runs execute the Python text `worker` with the job as `job`."""
    jobs = planned(tmp_path).jobs[:count]
    output = io.StringIO()
    command = [sys.executable, "-c", f"import json, os, signal, sys, time\n(job,) = json.loads(sys.argv[1])\n{worker}"]
    shares, console = [[core] for core in cores], Console(file=output, soft_wrap=True)
    return Pool([[job] for job in jobs], shares, console, worker=command, interval=0.0), jobs, output


def test_a_run_that_fails_does_not_stop_the_others_and_is_reported(tmp_path: Path) -> None:
    worker = "print('what went wrong')\nsys.exit(7) if job['backend'] == 'jax' else open(job['run_dir'] + '.ran', 'w').write('x')"
    started, jobs, output = pool(tmp_path, worker)
    assert started.run() == 1
    assert [Path(job.run_dir + ".ran").exists() for job in jobs] == [True, False, True]
    said = output.getvalue()
    assert "FAILED (status 7): tiny-jax-seed0" in said
    assert "2 recorded, 1 failed" in said
    assert "what went wrong" in learning.log([jobs[1]]).read_text()


def test_all_recorded_is_success(tmp_path: Path) -> None:
    assert pool(tmp_path, "")[0].run() == 0


def test_runs_beside_each_other_have_different_cores_and_one_thread(tmp_path: Path) -> None:
    worker = """
import pathlib
here = pathlib.Path(job['run_dir'])
pathlib.Path(str(here) + '.begun').touch()
end = time.monotonic() + 60
while len(list(here.parent.parent.glob('*/*.begun'))) < 2 and time.monotonic() < end: time.sleep(0.02)
json.dump([job['cores'], os.environ['OMP_NUM_THREADS'], time.monotonic() < end], open(job['run_dir'] + '.core', 'w'))
"""
    started, jobs, _ = pool(tmp_path, worker, count=2, cores=(4, 5))
    assert started.run() == 0
    first, second = (json.loads(Path(job.run_dir + ".core").read_text()) for job in jobs)
    assert (first[:2], second[:2]) == ([[4], "1"], [[5], "1"])
    assert first[2] and second[2], "each waits until the other has begun"


def test_runs_together_are_one_process_on_all_its_cores(tmp_path: Path) -> None:
    worker = """
import pathlib
jobs = json.loads(sys.argv[1])
for job in jobs:
    pathlib.Path(job['out']).parent.mkdir(parents=True, exist_ok=True)
    if job['seed'] != 2:
        open(job['out'], 'w').write(json.dumps([job['cores'], os.environ['OMP_NUM_THREADS']]))
sys.exit(0 if len(jobs) == 2 else 1)
"""
    groups = planned(tmp_path, 1, seeds=(0, 1, 2, 3, 4), together=3).groups
    output = io.StringIO()
    command = [sys.executable, "-c", f"import json, os, sys\n{worker}"]
    started = Pool(groups, [[4, 5]], Console(file=output, soft_wrap=True), worker=command, interval=0.0)
    assert started.run() == 1
    assert {json.dumps(json.loads(Path(job.out).read_text())) for group in groups for job in group if job.seed != 2} == {'[[4, 5], "2"]'}
    said = output.getvalue()
    assert "started tiny-torch-seeds0,1,2 on cores 4, 5 (output in " in said
    assert "done tiny-jax-seeds3,4 0% -> " in said
    # Of those that failed, one run of each backend has no record.
    assert "FAILED (status 1): tiny-jax-seeds0,1,2; its output is in " in said
    assert "8 recorded, 2 failed" in said


def test_ctrl_c_lets_the_runs_write_what_they_have(tmp_path: Path) -> None:
    # By touch: a file that is closed as it is freed swallows a Ctrl-C of that moment.
    worker = """
import pathlib
try:
    pathlib.Path(job['run_dir'] + '.started').touch()
    time.sleep(60)
except KeyboardInterrupt:
    pathlib.Path(job['run_dir'] + '.written').touch()
    sys.exit(130)
"""
    started, jobs, output = pool(tmp_path, worker)

    def interrupt() -> None:
        while not all(Path(job.run_dir + ".started").exists() for job in jobs[:2]) or len(started._running) < 2:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    assert started.run() == 130
    assert [Path(job.run_dir + ".written").exists() for job in jobs] == [True, True, False]
    assert "the same command goes on from there" in output.getvalue()


def test_progress_shows_the_last_step_written_and_the_last_evaluation(tmp_path: Path) -> None:
    job = planned(tmp_path).jobs[0]
    run_dir = Path(job.run_dir)
    run_dir.mkdir(parents=True)
    assert learning.progress([job]) == "tiny-torch-seed0 0%"
    (run_dir / "evaluation.json").write_text(json.dumps([{"step": 500, "returns": [1000.0, 2000.0]}]))
    (run_dir / "metrics.jsonl").write_text('{"environment_steps": 500}\n{"environment_steps": 730}\n{"environment_st')
    assert learning.progress([job]) == "tiny-torch-seed0 73% (evaluation 1,500 at 500)"


def test_progress_of_runs_together_is_the_slowest_ones_and_their_mean_evaluation(tmp_path: Path) -> None:
    jobs = planned(tmp_path, together=2).groups[0]
    for job, steps in zip(jobs, ([500], [500, 1_000]), strict=True):
        Path(job.run_dir).mkdir(parents=True)
        rows = [{"step": step, "returns": [float(step), 10.0 * job.seed]} for step in steps]
        (Path(job.run_dir) / "evaluation.json").write_text(json.dumps(rows))
    # The mean of 500, 0, 500 and 10.
    assert learning.progress(jobs) == "tiny-torch-seeds0,1 50% (evaluation 252 at 500)"


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="only Linux binds processes to cores")
def test_jax_keeps_to_the_core_that_it_is_bound_to() -> None:
    pytest.importorskip("jax")
    program = """
from bench.core import machine
machine.keep_to_cores(machine.available_cores()[:1])
import resource, time
import jax, jax.numpy as jnp
multiply = jax.jit(lambda a: a @ a / 1000)
a = multiply(jnp.ones((1000, 1000))).block_until_ready()
used = lambda: sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
began, before = time.perf_counter(), used()
for _ in range(20):
    a = multiply(a)
a.block_until_ready()
print((used() - before) / (time.perf_counter() - began))
"""
    answer = subprocess.run(
        [sys.executable, "-c", program],
        check=True,
        capture_output=True,
        text=True,
        cwd=machine.ROOT,
        env={**os.environ, **machine.ONE_THREAD},
    )
    assert float(answer.stdout) < 1.1


def test_what_will_be_done_is_said_beforehand(tmp_path: Path) -> None:
    first, second = planned(tmp_path).jobs[:2]
    record.write(tmp_path / "results" / f"2020-01-01-{MACHINE}" / f"{first.name}.json", recorded(first))
    (Path(second.run_dir) / "checkpoints" / "agent_500").mkdir(parents=True)
    (Path(second.run_dir) / "config.json").write_text("{}")
    (Path(second.run_dir) / "evaluation.json").write_text(json.dumps([{"step": 500, "returns": [1.0]}]))
    output = io.StringIO()
    learning.describe(Console(file=output, soft_wrap=True), PRESET, planned(tmp_path), 2)
    said = output.getvalue()
    assert "skipped, recorded in " in said
    assert "tiny-jax-seed0: resumed (evaluated at step 500), in " in said
    assert "tiny-torch-seed1: new, in " in said
    assert "3 runs, 2 beside each other on one core each: about 2 min" in said  # 2,500 steps on two cores at 10 a second.
    learning.describe(Console(file=output, soft_wrap=True), PRESET, planned(tmp_path, 1, together=2), 1)
    assert "3 runs, up to 2 together in a process, 1 beside each other: about 31 s" in output.getvalue()  # 2,500 steps at a guessed 80.
