"""The runs of a sweep are those that `sacref train` gives one by one, wherever they run; what is finished is skipped, the rest goes on."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sacref import cli, sweep
from sacref.sweep import grid, local, process, record, slurm
from sacref.sweep.grid import SweepError

BACKEND = "torch" if find_spec("torch") else "jax"
SMALL = {
    "backend": BACKEND,
    "steps": 24,
    "hidden": [8],
    "batch_size": 4,
    "random-timesteps": 8,
    "learning-starts": 8,
    "evaluation-interval": 12,
    "evaluation-episodes": 1,
    "execution": "plain",
    "env-kwargs": {"max_episode_steps": 10},
}
GRID = {"env": ["Pendulum-v1", "MountainCarContinuous-v0"], "seed": "0:2"}
NAMES = [f"env={env},seed={seed}" for env in ("Pendulum-v1", "MountainCarContinuous-v0") for seed in (0, 1)]


def written(path: Path, **tables: Any) -> Path:
    path.write_text(json.dumps(tables))
    return path


def evaluations(run_dir: Path) -> Any:
    return json.loads((run_dir / "evaluation.json").read_text())


def states(directory: Path) -> dict[str, str]:
    return {entry["directory"]: entry["state"] for entry in json.loads((directory / "sweep.json").read_text())["runs"]}


def starts(run_dir: Path) -> list[str]:
    """The command lines of a run's attempts."""
    log = run_dir / process.LOG
    return [line for line in log.read_text().splitlines() if line.startswith("$ ")] if log.exists() else []


def wait_for(condition: Callable[[], Any], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


# The same numbers. Each run is a process that imports a backend, so that the sweep is made once.


@pytest.fixture(scope="module")
def one_by_one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs of GRID by `sacref train`, one after the other in one process."""
    directory = tmp_path_factory.mktemp("one-by-one")
    lines = []
    for env in GRID["env"]:
        for seed in (0, 1):
            words = f"train --backend {BACKEND} --env {env} --seed {seed} --steps 24 --hidden 8 --batch-size 4 --random-timesteps 8".split()
            words += "--learning-starts 8 --evaluation-interval 12 --evaluation-episodes 1 --execution plain --no-progress".split()
            lines.append([*words, "--env-kwargs", '{"max_episode_steps": 10}', "--run-dir", str(directory / f"env={env},seed={seed}")])
    program = "import json, sys; from sacref.cli import main; sys.exit(max(main(line) for line in json.loads(sys.argv[1])))"
    subprocess.run([sys.executable, "-c", program, json.dumps(lines)], check=True, capture_output=True)
    return directory


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same runs by a sweep, two at a time."""
    directory = tmp_path_factory.mktemp("swept") / "sweep"
    file = written(directory.parent / "sweep.json", train=SMALL, grid=GRID)
    assert cli.main(["train", "--sweep", str(file), "--sweep-jobs", "2", "--run-dir", str(directory), "--no-progress"]) == 0
    return directory


def test_a_sweep_gives_the_numbers_of_its_runs_made_one_by_one(one_by_one: Path, swept: Path) -> None:
    assert sorted(path.name for path in swept.glob("env=*")) == sorted(NAMES)
    for name in NAMES:
        assert [entry["step"] for entry in evaluations(swept / name)] == [12, 24]
        assert evaluations(swept / name) == evaluations(one_by_one / name)
    assert evaluations(swept / NAMES[0]) != evaluations(swept / NAMES[1])
    stored = json.loads((swept / "sweep.json").read_text())
    assert [(entry["directory"], entry["state"], entry["error"]) for entry in stored["runs"]] == [(name, "done", None) for name in NAMES]
    for group, names in zip(stored["returns"], (NAMES[:2], NAMES[2:]), strict=True):
        finals = [evaluations(one_by_one / name)[-1]["mean"] for name in names]
        assert group["seeds"] == [0, 1]
        np.testing.assert_allclose([group["mean"], group["std"]], [sum(finals) / 2, abs(finals[0] - finals[1]) / 2**0.5], rtol=1e-12)
    assert [group["values"]["env"] for group in stored["returns"]] == GRID["env"]


def test_finished_runs_are_skipped_and_a_single_job_gives_the_same(swept: Path, one_by_one: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = Path("copy").absolute()
    shutil.copytree(swept, copy)
    shutil.rmtree(copy / NAMES[2])
    file = written(Path("sweep.json"), train=SMALL, grid=GRID)
    assert cli.main(["train", "--sweep", str(file), "--run-dir", "copy"]) == 0
    assert [len(starts(copy / name)) for name in NAMES] == [1, 1, 1, 1]
    assert evaluations(copy / NAMES[2]) == evaluations(one_by_one / NAMES[2])
    shown = capsys.readouterr()
    assert "3 of 4 runs are finished already" in shown.err
    assert f"[4/4] {NAMES[2]} done: mean return" in shown.err
    assert "4 of 4 runs are done, 0 failed" in shown.out
    assert f"sacref plot {copy}/*/ --output" in shown.out


def test_a_run_that_was_cut_off_goes_on_from_its_checkpoint() -> None:
    """The process of the sweep is asked to end while its run is in the middle, and called again."""
    train = SMALL | {"env": "Pendulum-v1", "steps": 4000, "evaluation-interval": 100}
    written(Path("long.json"), train=train, grid={"seed": [5]})
    command = [sys.executable, "-m", "sacref", "train", "--sweep", "long.json"]
    first = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    run_dir = Path("runs/long/seed=5")
    wait_for((run_dir / "evaluation.json").exists)
    first.send_signal(signal.SIGTERM)
    assert "to go on: the same command" in first.communicate()[0]
    assert first.returncode == 130
    assert states(Path("runs/long")) == {"seed=5": "waiting"}
    before = evaluations(run_dir)
    assert 0 < len(before) < 40

    assert cli.main(command[3:]) == 0
    assert evaluations(run_dir)[: len(before)] == before
    assert [entry["step"] for entry in evaluations(run_dir)] == list(range(100, 4100, 100))
    first_start, second_start = starts(run_dir)
    assert ("--overwrite" in first_start, "--resume" in first_start) == (True, False)
    assert ("--overwrite" in second_start, "--resume" in second_start) == (False, True)


# A cluster: the commands of Slurm that submitit calls, as far as it needs them.

FAKE_SLURM = """
import os, pathlib, subprocess, sys, threading
name, arguments, state = pathlib.Path(sys.argv[0]).name, sys.argv[1:], pathlib.Path(os.environ["FAKE_SLURM"])

def work(script, variables, task):
    while True:
        (state / f"{task}.state").write_text("RUNNING")
        code = subprocess.run(["bash", script], env=os.environ | variables, stdin=subprocess.DEVNULL).returncode
        if not (state / f"{task}.requeue").exists():
            break
        (state / f"{task}.requeue").unlink()
    (state / f"{task}.state").write_text("COMPLETED" if code == 0 else "FAILED")

if name == "sbatch" and arguments[0] == "--work":
    script, job = arguments[1:]
    array = [line for line in open(script) if line.startswith("#SBATCH --array=")]
    count = int(array[0].split("=0-")[1].split("%")[0]) + 1 if array else 1
    threads = []
    for index in range(count):
        variables = {"SLURM_JOB_ID": str(1000 + index)}
        variables |= {"SLURM_ARRAY_JOB_ID": job, "SLURM_ARRAY_TASK_ID": str(index)} if array else {"SLURM_JOB_ID": job}
        threads.append(threading.Thread(target=work, args=(script, variables, f"{job}_{index}" if array else job)))
        threads[-1].start()
elif name == "sbatch":
    job = str(100 + len(list(state.glob("*.sh"))))
    (state / f"{job}.sh").write_text(open(arguments[0]).read())
    subprocess.Popen([sys.executable, sys.argv[0], "--work", str(state / f"{job}.sh"), job], start_new_session=True,
                     stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    print(f"Submitted batch job {job}")
elif name == "srun":
    task = "_".join(os.environ[key] for key in ("SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"))
    os.setsid()
    (state / f"{task}.group").write_text(str(os.getpid()))
    command = arguments[arguments.index("--error") + 2 :]
    with open(state / f"{task}.log", "a") as log:
        os.dup2(log.fileno(), 1), os.dup2(log.fileno(), 2)
    os.execvp(command[0], command)
elif name == "sacct":
    print("JobID|State|NodeList")
    for path in state.glob("*.state"):
        print(f"{path.stem}|{path.read_text()}|node")
elif name == "scontrol":
    (state / f"{arguments[1]}.requeue").touch()
"""


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cluster of this machine; the directory in which its jobs are known."""
    pytest.importorskip("submitit")
    commands, state = tmp_path / "commands", tmp_path / "state"
    state.mkdir()
    commands.mkdir()
    for name in ("sbatch", "srun", "sacct", "scontrol"):
        (commands / name).write_text(f"#!{sys.executable} -S\n{FAKE_SLURM}")
        (commands / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(commands), prepend=os.pathsep)
    monkeypatch.setenv("FAKE_SLURM", str(state))
    monkeypatch.setattr(slurm.OnSlurm, "poll_seconds", 0.1)
    return state


def test_a_cluster_gives_the_same_numbers_and_its_jobs_outlive_the_watcher(
    cluster: Path, one_by_one: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Two jobs: the watching process is stopped and called again, and one job is preempted in between."""
    grid_of_two = {"env": ["Pendulum-v1"], "seed": [1, 7], "steps": [24]}
    written(Path("two.json"), train={**SMALL, "steps": 24} | {"steps": 24}, grid={"env": ["Pendulum-v1"], "seed": [1]})
    del grid_of_two
    limits = {"time": 30, "partition": "short", "cpus-per-task": 2, "setup": ["export FROM_SETUP=1"]}
    train = {name: value for name, value in SMALL.items() if name != "steps"}
    written(Path("sweep.json"), train=train | {"env": "Pendulum-v1", "seed": 1}, grid={"steps": [24, 4000]}, slurm=limits)
    command = ["train", "--sweep", "sweep.json", "--sweep-on", "slurm", "--sweep-jobs", "2"]
    short, long = Path("runs/sweep/steps=24"), Path("runs/sweep/steps=4000")

    watcher = threading.Thread(target=lambda: (wait_for((cluster / "100.sh").exists), os.kill(os.getpid(), signal.SIGINT)))
    watcher.start()
    assert cli.main(command) == 130
    watcher.join()
    assert "the jobs go on" in (shown := capfd.readouterr().out)
    assert "scancel 100_0 100_1" in shown
    script = (cluster / "100.sh").read_text()
    for line in ("--array=0-1%2", "--partition=short", "--cpus-per-task=2", "--time=30", "--job-name=sacref"):
        assert f"#SBATCH {line}\n" in script
    assert "export FROM_SETUP=1" in script

    assert cli.main(["train", "--sweep", "sweep.json"]) == 2
    assert "2 runs of" in (refused := capfd.readouterr().err)
    assert "are in Slurm's queue" in refused

    wait_for((long / "evaluation.json").exists)
    group = int((cluster / "100_1.group").read_text())
    # As Slurm preempts: every process of the job gets both.
    os.killpg(group, signal.SIGTERM)
    os.killpg(group, signal.SIGUSR2)
    assert cli.main(command) == 0
    assert list(cluster.glob("*.sh")) == [cluster / "100.sh"], "nothing was submitted twice"
    assert evaluations(short) == evaluations(one_by_one / NAMES[1])
    assert [entry["step"] for entry in evaluations(long)] == list(range(12, 4000, 12)) + [4000]
    assert ["--resume" in line for line in starts(long)] == [False, True]
    assert states(Path("runs/sweep")) == {"steps=24": "done", "steps=4000": "done"}
    assert cli.main(command) == 0
    assert list(cluster.glob("*.sh")) == [cluster / "100.sh"]
