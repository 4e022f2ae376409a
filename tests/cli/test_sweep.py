"""The runs of a sweep are those that `sacref train` gives one by one, wherever they run; what is finished is skipped, the rest goes on."""

import errno
import fcntl
import json
import os
import re
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

import sacref
from sacref.cli import flags, sweep
from sacref.cli import main as cli
from sacref.cli.flags import SweepError
from sacref.cli.sweep import grid, local, process, slurm
from sacref.storage import checkpoint

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
GRID: dict[str, Any] = {"env": ["Pendulum-v1", "MountainCarContinuous-v0"], "seed": [1]}
NAMES = [f"env={env},seed=1" for env in GRID["env"]]


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


def wait_for(condition: Callable[[], Any], seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


def press(when: Callable[[], Any]) -> threading.Thread:
    """Press Ctrl-C once."""

    def wait() -> None:
        wait_for(when)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


# The same numbers. Each run is a process that imports a backend, so that the sweep is made once.


@pytest.fixture(scope="module")
def one_by_one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs of GRID by `sacref train`, one after the other in one process."""
    directory = tmp_path_factory.mktemp("one-by-one")
    lines = []
    for env, name in zip(GRID["env"], NAMES, strict=True):
        words = f"train --backend {BACKEND} --env {env} --seed 1 --steps 24 --hidden 8 --batch-size 4 --random-timesteps 8".split()
        words += "--learning-starts 8 --evaluation-interval 12 --evaluation-episodes 1 --execution plain --no-progress".split()
        lines.append([*words, "--env-kwargs", '{"max_episode_steps": 10}', "--run-dir", str(directory / name)])
    program = "import json, sys; from sacref.cli.main import main; sys.exit(max(main(line) for line in json.loads(sys.argv[1])))"
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
    for group, name in zip(stored["returns"], NAMES, strict=True):
        assert (group["seeds"], group["mean"], group["std"]) == ([1], evaluations(one_by_one / name)[-1]["mean"], None)
    assert [group["values"]["env"] for group in stored["returns"]] == GRID["env"]


def test_finished_runs_are_skipped_and_a_single_job_gives_the_same(
    swept: Path, one_by_one: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Path("copy").absolute()
    shutil.copytree(swept, copy)
    shutil.rmtree(copy / NAMES[1])
    file = written(Path("sweep.json"), train=SMALL, grid=GRID)
    assert cli.main(["train", "--sweep", str(file), "--run-dir", "copy"]) == 0
    assert [len(starts(copy / name)) for name in NAMES] == [1, 1]
    assert evaluations(copy / NAMES[1]) == evaluations(one_by_one / NAMES[1])
    shown = capsys.readouterr()
    assert "1 of 2 runs are finished already" in shown.err
    assert f"[2/2] {NAMES[1]} done: mean return" in shown.err
    assert "2 of 2 runs are done, 0 failed" in shown.out
    assert f"sacref plot {copy} --output {copy}/returns.png" in shown.out


def test_a_run_that_was_cut_off_goes_on_from_its_checkpoint() -> None:
    """The process of the sweep is asked to end while its run is in the middle, and called again."""
    train = SMALL | {"env": "Pendulum-v1", "steps": 800, "evaluation-interval": 50}
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
    assert 0 < len(before) < 16

    assert cli.main(command[3:]) == 0
    assert evaluations(run_dir)[: len(before)] == before
    assert [entry["step"] for entry in evaluations(run_dir)] == list(range(50, 850, 50))
    first_start, second_start = starts(run_dir)
    assert ("--overwrite" in first_start, "--resume" in first_start) == (True, False)
    assert ("--overwrite" in second_start, "--resume" in second_start) == (False, True)


# A cluster: the commands of Slurm that submitit calls, as far as it needs them.

FAKE_SLURM = """
import os, pathlib, subprocess, sys, threading, time
name, arguments, state = pathlib.Path(sys.argv[0]).name, sys.argv[1:], pathlib.Path(os.environ["FAKE_SLURM"])

def work(script, variables, task):
    (state / f"{task}.state").write_text("PENDING")
    end = time.monotonic() + 120
    while not (state / "free").exists():
        if time.monotonic() > end:
            return
        time.sleep(0.02)
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
    """A cluster of this machine; the directory in which its jobs are known. They wait until there is a file `free`."""
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
    limits = {"time": 30, "partition": "short", "cpus-per-task": 2, "setup": ["export FROM_SETUP=1"]}
    train = {name: value for name, value in SMALL.items() if name != "steps"}
    written(Path("sweep.json"), train=train | {"env": "Pendulum-v1", "seed": 1}, grid={"steps": [24, 1500]}, slurm=limits)
    command = ["train", "--sweep", "sweep.json", "--sweep-on", "slurm", "--sweep-jobs", "2"]
    short, long = Path("runs/sweep/steps=24"), Path("runs/sweep/steps=1500")

    thread = press((cluster / "100.sh").exists)
    assert cli.main(command) == 130
    thread.join()
    assert "the jobs go on" in (shown := capfd.readouterr().out)
    assert "scancel 100_0 100_1" in shown
    script = (cluster / "100.sh").read_text()
    for line in ("--array=0-1%2", "--partition=short", "--cpus-per-task=2", "--time=30", "--job-name=sacref"):
        assert f"#SBATCH {line}\n" in script
    assert "export FROM_SETUP=1" in script
    assert (short / process.LOG).read_text().startswith(f"{process.SUBMITTED}, whose own output is in ")

    assert cli.main(["train", "--sweep", "sweep.json"]) == 2
    assert "2 runs of" in (refused := capfd.readouterr().err)
    assert "are in Slurm's queue" in refused
    (cluster / "free").touch()

    wait_for((long / "evaluation.json").exists)
    group = int((cluster / "100_1.group").read_text())
    # As Slurm preempts: every process of the job gets both.
    os.killpg(group, signal.SIGTERM)
    os.killpg(group, signal.SIGUSR2)
    assert cli.main(command) == 0
    assert list(cluster.glob("*.sh")) == [cluster / "100.sh"], "nothing was submitted twice"
    assert evaluations(short) == evaluations(one_by_one / NAMES[0])
    assert [entry["step"] for entry in evaluations(long)] == list(range(12, 1501, 12))
    assert ["--resume" in line for line in starts(long)] == [False, True]
    assert states(Path("runs/sweep")) == {"steps=24": "done", "steps=1500": "done"}
    assert cli.main(command) == 0
    assert list(cluster.glob("*.sh")) == [cluster / "100.sh"]


# What a sweep does around its runs: a program of a few lines stands in for `sacref train`.

PROGRAM = """
import json, os, pathlib, signal, sys, time
flags = dict(zip(sys.argv[1::2], sys.argv[2::2]))
flags = {word: sys.argv[index + 1] for index, word in enumerate(sys.argv[:-1]) if word.startswith("--")}
run_dir, seed, steps = pathlib.Path(flags["--run-dir"]), int(flags["--seed"]), int(flags["--steps"])
(run_dir / "config.json").write_text("{}")
began = time.monotonic()
if flags["--env"] == "broken" and seed == 1:
    sys.exit("sacref: it broke\\n(why)")
if flags["--env"] == "killed" and seed == 1:
    os.kill(os.getpid(), signal.SIGKILL)
if flags["--env"] == "endless" and "--resume" not in sys.argv:
    held = [os.readlink(link) for link in pathlib.Path("/proc/self/fd").glob("*") if link.exists()]
    (run_dir / "held").write_text(json.dumps(held))
    try:
        (run_dir / "checkpoints" / "agent_1").mkdir(parents=True)
        time.sleep(60)
    except KeyboardInterrupt:
        sys.exit(130)
if flags["--env"] == "timed":
    (run_dir / "here").touch()
    while len(list(run_dir.parent.glob("*/here"))) < int(os.environ["TOGETHER"]) and time.monotonic() < began + 60:
        time.sleep(0.01)
    (run_dir / "times").write_text(f"{began} {time.monotonic()} {os.environ.get('CUDA_VISIBLE_DEVICES')} {os.environ['OMP_NUM_THREADS']}")
if flags["--env"] == "stopping":
    steps //= 2
    print(f"stopped by a:Callback after {steps} steps")
(run_dir / "evaluation.json").write_text(json.dumps([{"step": steps, "mean": 10.0 * seed}]))
"""


@pytest.fixture
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    monkeypatch.setattr(process, "PROGRAM", (sys.executable, "-I", "-S", str(program)))
    monkeypatch.setattr(local.Local, "poll_seconds", 0.02)


def begin(*flags: str, env: str = "fine", seeds: Any = "0:3", steps: int = 10, **train: Any) -> int:
    written(Path("s.json"), train={"env": env, "steps": steps, **train}, grid={"seed": seeds})
    return cli.main(["train", "--sweep", "s.json", *flags])


def test_returns_are_of_the_seeds_of_each_task(quick: None) -> None:
    written(Path("s.json"), train={"steps": 10}, grid={"env": ["fine", "other"], "seed": "0:2"})
    assert cli.main(["train", "--sweep", "s.json"]) == 0
    found = json.loads(Path("runs/s/sweep.json").read_text())["returns"]
    assert [(group["values"]["env"], group["seeds"], group["mean"]) for group in found] == [("fine", [0, 1], 5.0), ("other", [0, 1], 5.0)]
    np.testing.assert_allclose([group["std"] for group in found], [50**0.5] * 2, rtol=1e-12)


@pytest.mark.parametrize(
    ("env", "error"), [("broken", "exit status 1: sacref: it broke"), ("killed", "killed by SIGKILL: it printed nothing")]
)
def test_a_failed_run_stops_no_other_and_is_tried_again(env: str, error: str, quick: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert begin(env=env) == 1
    assert states(Path("runs/s")) == {"seed=0": "done", "seed=1": "failed", "seed=2": "done"}
    shown = capsys.readouterr()
    assert f"failed: seed=1: {error}" in shown.out
    assert "2 of 3 runs are done, 1 failed" in shown.out
    assert "sacref plot" not in shown.out
    assert f"{error} (see {Path('runs/s/seed=1/train.log').absolute()})" in shown.err
    stored = json.loads(Path("runs/s/sweep.json").read_text())
    assert stored["returns"] == [{"values": {"env": env, "backend": "torch"}, "seeds": [0, 2], "mean": 10.0, "std": 200**0.5}]

    assert begin(env=env) == 1
    assert [len(starts(Path(f"runs/s/seed={seed}"))) for seed in range(3)] == [1, 2, 1]


def test_a_full_disk_ends_neither_the_sweep_nor_its_runs(
    quick: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    written_well, failing, started, full = (
        checkpoint.write_json,
        [3],
        process.Process.start,
        OSError(errno.ENOSPC, "No space left on device"),
    )

    def write(path: Path, value: object) -> None:
        failing[0] -= 1
        if failing[0] in (1, 0):  # not the first one, with which the sweep begins
            raise full
        written_well(path, value)

    def start(self: process.Process, **options: Any) -> Any:
        if self.directory.name == "seed=1":
            raise full
        return started(self, **options)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_json", write)
        patch.setattr(process.Process, "start", start)
        assert begin() == 1
    assert caplog.text.count("sweep.json is not written: [Errno 28] No space left on device. The sweep goes on") == 2
    assert states(Path("runs/s")) == {"seed=0": "done", "seed=1": "failed", "seed=2": "done"}
    assert "failed: seed=1: not started ([Errno 28] No space left on device)" in capsys.readouterr().out
    assert begin() == 0


def test_as_many_runs_at_a_time_as_asked_each_on_one_thread_and_a_gpu_of_its_own(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-x")

    def measured(jobs: int, **train: Any) -> tuple[int, set[str], set[str]]:
        shutil.rmtree("runs", ignore_errors=True)
        monkeypatch.setenv("TOGETHER", str(jobs))  # a run ends when so many have begun
        assert begin("--sweep-jobs", str(jobs), env="timed", seeds="0:4", **train) == 0
        lines = [path.read_text().split() for path in Path("runs/s").glob("*/times")]
        spans = [(float(line[0]), float(line[1])) for line in lines]
        # The most that are within their time at the moment when one begins.
        together = max(sum(low <= moment < high for low, high in spans) for moment, _ in spans)
        return together, {line[2] for line in lines}, {line[3] for line in lines}

    assert measured(2) == (2, {"4", "GPU-x"}, {"1"})
    assert measured(1) == (1, {"4,GPU-x"}, {"1"})
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert measured(4, device="cpu") == (4, {"4,GPU-x"}, {"3"})


def test_ctrl_c_stops_the_runs_cleanly_and_the_next_call_goes_on(quick: None, capsys: pytest.CaptureFixture[str]) -> None:
    thread = press(lambda: all(Path(f"runs/s/seed={seed}/checkpoints/agent_1").exists() for seed in (0, 1)))
    assert begin("--sweep-jobs", "2", env="endless") == 130
    thread.join()
    shown = capsys.readouterr()
    assert "stopping cleanly" in shown.err
    assert "to go on: the same command" in shown.out
    assert states(Path("runs/s")) == dict.fromkeys(("seed=0", "seed=1", "seed=2"), "waiting")
    assert not Path("runs/s/seed=2").exists(), "nothing new is started after Ctrl-C"
    Path("runs/s/seed=2/checkpoints/agent_1").mkdir(parents=True)
    assert begin("--sweep-jobs", "2", env="endless") == 0
    assert ["--resume" in starts(Path(f"runs/s/seed={seed}"))[-1] for seed in range(3)] == [True, True, True]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_directory_is_held_as_long_as_one_of_its_runs(quick: None, capsys: pytest.CaptureFixture[str]) -> None:
    """Also when the sweep was killed and left a run behind: two processes in one run directory would spoil it."""
    assert begin() == 0
    with open("runs/s/.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        orphan = subprocess.Popen([sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE, pass_fds=(lock.fileno(),))
    assert begin() == 2
    assert "is in use by another sweep, or by a run that one left behind" in capsys.readouterr().err
    orphan.communicate()
    assert begin() == 0


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="open files are looked up in /proc")
def test_the_runs_inherit_the_lock(quick: None) -> None:
    thread = press(Path("runs/s/seed=0/checkpoints/agent_1").exists)
    assert begin(env="endless", seeds=[0]) == 130
    thread.join()
    held = json.loads(Path("runs/s/seed=0/held").read_text())
    assert held.count(str(Path("runs/s/.lock").absolute())) == 1


def test_a_run_that_a_callback_ended_is_done_until_more_is_asked_of_it(quick: None) -> None:
    assert begin(env="stopping") == 0
    assert set(states(Path("runs/s")).values()) == {"done"}
    assert begin(env="stopping") == 0
    assert [len(starts(Path(f"runs/s/seed={seed}"))) for seed in range(3)] == [1, 1, 1]
    assert begin(env="stopping", steps=20) == 0
    assert [len(starts(Path(f"runs/s/seed={seed}"))) for seed in range(3)] == [2, 2, 2]
    # As a watcher leaves it that was interrupted while the jobs went on.
    record = Path("runs/s/sweep.json")
    record.write_text(record.read_text().replace('"done"', '"running"'))
    assert begin(env="stopping", steps=20) == 0
    assert [len(starts(Path(f"runs/s/seed={seed}"))) for seed in range(3)] == [2, 2, 2]


def test_a_job_that_ends_before_its_run_begins_is_not_judged_by_an_earlier_attempt(quick: None) -> None:
    assert begin(env="stopping", seeds=[1]) == 0
    run_dir = Path("runs/s/seed=1")
    assert (process.stopped_by_a_callback(run_dir), process.reason(run_dir)) == (True, "stopped by a:Callback after 5 steps")
    process.Process(run_dir, [], {}).announce(f"{process.SUBMITTED}, whose own output is elsewhere")
    assert (process.stopped_by_a_callback(run_dir), process.reason(run_dir)) == (False, "it printed nothing")


def test_a_run_of_ranks_that_was_killed_in_its_first_checkpoint_begins_anew(tmp_path: Path) -> None:
    started = process.Process(tmp_path, [], {})
    (tmp_path / "checkpoints" / "agent_5.rank_1").mkdir(parents=True)
    assert "--overwrite" in started.command()
    (tmp_path / "checkpoints" / "agent_5").mkdir()
    assert "--resume" in started.command()


def test_a_grid_may_grow_and_runs_may_be_made_longer(quick: None) -> None:
    assert begin(seeds=[0, 1]) == 0
    assert begin(seeds=[2]) == 0
    assert states(Path("runs/s")) == dict.fromkeys(("seed=2", "seed=0", "seed=1"), "done")
    assert begin(seeds="0:3") == 0
    assert [len(starts(Path(f"runs/s/seed={seed}"))) for seed in range(3)] == [1, 1, 1]
    assert begin(seeds="0:3", steps=20) == 0
    assert [len(starts(Path(f"runs/s/seed={seed}"))) for seed in range(3)] == [2, 2, 2]
    assert all("--steps 20" in starts(Path(f"runs/s/seed={seed}"))[-1] for seed in range(3))


def test_what_was_made_with_other_settings_is_not_passed_off(quick: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert begin(polyak=0.1, device="cpu") == 0
    assert begin(env="broken", device="cpu") == 2
    error = capsys.readouterr().err
    assert "seed=0 was made with other flags: choose another --run-dir, or delete that directory" in error
    assert "\n  env: it has --env fine, the file says --env broken\n" in error
    assert "\n  polyak: it has --polyak 0.1, the file says the default\n" in error
    assert begin(polyak=0.1) == 2, "a resumed run would stay on its device"
    assert "device: it has --device cpu, the file says the default" in capsys.readouterr().err
    assert begin(polyak=0.1, device="cuda") == 0
    assert begin(polyak=0.1, device="cpu", steps=5) == 2
    assert "has 10 steps already, the file says 5" in capsys.readouterr().err
    Path("runs/s/sweep.json").unlink()
    assert begin(polyak=0.1, device="cpu") == 2
    assert "holds a run that this sweep did not make" in capsys.readouterr().err


def test_a_table_follows_the_runs_on_a_terminal(quick: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    assert begin() == 0
    shown = capsys.readouterr().err
    assert "2 waiting, 1 running, 0 done, 0 failed" in shown
    assert "0 waiting, 0 running, 3 done, 0 failed" in shown
    assert "[3/3] seed=2 done: mean return 20.0 at step 10" in shown


# The file.


def plan(file: Path | str) -> grid.Plan:
    return grid.read(Path(file), Path("/sweep"))


def test_a_file_becomes_command_lines() -> None:
    Path("all.toml").write_text(
        """
        [train]
        env = "Pendulum-v1"
        hidden = [8, 9]
        num_envs = 3
        overlap = true
        learn-entropy = false
        target_entropy = "None"
        env-kwargs = {g = 9.0}
        experiment.write-interval = 50
        wrappers = []
        steps = 100
        [train.experiment]
        store_separately = false
        [grid]
        seed = "3:5"
        learning-rate = [1e-4, [1e-4, 2e-4, 3e-4]]
        layer-norm = [true]
        [slurm]
        time = 5
        """.replace("        experiment.write-interval = 50\n", "")
    )
    found = plan("all.toml")
    assert found.slurm == {"time": 5}
    assert [run.name for run in found.runs] == [
        f"seed={seed},learning-rate={rate},layer-norm=true" for seed in (3, 4) for rate in ("0.0001", "0.0001-0.0002-0.0003")
    ]
    run = found.runs[1]
    fixed = "--env Pendulum-v1 --hidden 8 9 --num-envs 3 --overlap --no-learn-entropy --target-entropy None --env-kwargs".split()
    fixed += ['{"g": 9.0}', *"--wrappers --steps 100 --experiment.no-store-separately".split()]
    assert run.arguments == [*fixed, *"--seed 3 --learning-rate 0.0001 0.0002 0.0003 --layer-norm".split()]
    assert run.directory == Path("/sweep/seed=3,learning-rate=0.0001-0.0002-0.0003,layer-norm=true")
    assert (run.env, run.backend, run.seed, run.steps) == ("Pendulum-v1", "torch", 3, 102)
    several = written(Path("ranks.json"), train={"num-envs": 3, "steps": 100}, grid={"ranks": [1, 2, 4]})
    assert [run.steps for run in plan(several).runs] == [102, 102, 108]
    assert plan(written(Path("default.json"), grid={"seed": [0]})).runs[0].arguments == ["--seed", "0", "--steps", "1000000"]


def test_names_of_directories_stay_short_and_apart() -> None:
    values = [{"note": "x" * 300 + end} for end in ("a", "b")]
    names = [run.name for run in plan(written(Path("s.json"), grid={"env-kwargs": values})).runs]
    assert len(set(names)) == 2
    assert all(len(name) < 255 for name in names)
    (run,) = plan(written(Path("s.json"), grid={"env": ["some/where:Task-v1"]})).runs
    assert run.name == "env=some-where-Task-v1"


@pytest.mark.parametrize(
    ("flag", "values", "names"),
    [
        ("target-entropy", [-1, 1, -0.5], ["-1", "1", "-0.5"]),
        ("env", ["lab/Reach-v0", "lab-Reach-v0"], ["lab-Reach-v0@", "lab-Reach-v0"]),
        ("env", ["lab/Reach-v0", "lab:Reach-v0"], ["lab-Reach-v0@", "lab-Reach-v0@"]),
        ("env-kwargs", [{"g": -9}, {"g": 9}, {"g": "9"}], ["g-9@", "g-9@", "g-9@"]),
        ("hidden", [[8, 8], [8]], ["8-8", "8"]),
    ],
    ids=str,
)
def test_each_run_has_a_directory_of_its_own_that_shows_its_value(flag: str, values: list[Any], names: list[str]) -> None:
    found = [run.name.removeprefix(f"{flag}=") for run in plan(written(Path("s.json"), grid={flag: values})).runs]
    assert [re.sub("@[0-9a-f]{8}$", "@", name) for name in found] == names
    assert len(set(found)) == len(values)


def test_runs_that_were_named_otherwise_stay_where_they_are() -> None:
    runs = [{"directory": name, "values": {"env": env}} for env, name in (("lab/Reach-v0", "env=lab-Reach-v0"), ("A", "../A"))]
    written(Path("sweep.json"), runs=runs)
    file = written(Path("s.json"), grid={"env": ["lab-Reach-v0", "lab/Reach-v0", "A"]})
    names = [run.name for run in grid.read(file, Path.cwd()).runs]
    assert re.fullmatch("env=lab-Reach-v0@[0-9a-f]{8}", names[0])
    assert names[1:] == ["env=lab-Reach-v0", "env=A"]


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"train": {"sed": 3}, "grid": {"env": ["A"]}}, "s.json: [train] sed = 3 is refused: Unrecognized options: --sed, 3"),
        ({"grid": {"seed": [0, "two"]}}, 's.json: [grid] seed = "two" is refused: '),
        ({"grid": {"batch-size": [8, 0]}}, "s.json: [grid] batch-size = 0 is refused: SACConfig.batch_size is 0"),
        ({"grid": {"backend": ["tensorflow"]}}, '[grid] backend = "tensorflow" is refused: '),
        (
            {"train": {"learning_rate_scheduler_kwargs": {"stepz": 5}}, "grid": {"learning-rate-scheduler": ["linear"]}},
            'the combination of [train] with [grid] learning-rate-scheduler = "linear" is refused: SACConfig',
        ),
        (
            {"train": {"rewards-shaper": "sacref.nowhere:f"}, "grid": {"seed": [0]}},
            '[train] rewards-shaper = "sacref.nowhere:f" is refused',
        ),
        ({"train": {"seed": 3}}, "[grid] is empty or missing"),
        ({"grid": {"seed": 3}}, "[grid] seed = 3, expected a list of values or a range"),
        ({"grid": {"seed": "3:3"}}, '[grid] seed = "3:3", expected a list of values or a range'),
        ({"grid": {"seed": []}}, "[grid] seed = [], expected a list"),
        ({"grid": {"seed": [1, 1]}}, "two runs of [grid] would both be written to"),
        ({"train": {"learning_rate": 1}, "grid": {"learning-rate": [1]}}, "learning-rate stands in [train] and in [grid]"),
        ({"train": {"run_dir": "x"}, "grid": {"seed": [0]}}, "[train] has run-dir: leave it out, as a run's directory follows"),
        ({"grid": {"resume": [True]}}, "[grid] has resume: leave it out"),
        ({"train": {"experiment": {"directory": "x"}}, "grid": {"seed": [0]}}, "[train] has experiment.directory"),
        ({"train": {"hidden": [[8]]}, "grid": {"seed": [0]}}, "[train] hidden = [[8]], expected a number, a string"),
        ({"grid": {"seed": [0]}, "steps": 3}, "holds grid, steps, expected the tables train, grid, slurm"),
        ({"grid": [3]}, "grid is [3], expected a table"),
        ({"grid": {"seed": [0]}, "slurm": {"tiem": 3}}, "[slurm] has tiem, expected some of account, "),
        ({"grid": {"seed": [0]}, "slurm": {"time": "1:00"}}, "[slurm] time = '1:00', expected a whole number of at least 1 (minutes)"),
        ({"grid": {"seed": [0]}, "slurm": {"setup": [1]}}, "[slurm] setup = [1], expected a list of shell lines"),
        ({"grid": {"seed": [0]}, "slurm": {"cpus_per_task": True}}, "[slurm] cpus_per_task = True, expected a whole number"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_a_bad_file_is_refused_before_anything_starts(tables: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    written(Path("s.json"), **tables)
    assert cli.main(["train", "--sweep", "s.json"]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not Path("runs").exists()


def test_a_file_that_cannot_be_read_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for name, content, message in (
        ("s.toml", "[train\n", "s.toml is no TOML (Expected ']'"),
        ("s.json", "[]", "s.json holds list, expected the tables"),
        ("s.json", '{"grid": {}, "grid": {}}', "a key comes twice"),
        ("s.yaml", "", "has suffix '.yaml', expected .toml or .json"),
    ):
        Path(name).write_text(content)
        with pytest.raises(ValueError) as raised:
            plan(name)
        assert message in str(raised.value)
    with pytest.raises(SweepError, match=r"--sweep: absent\.toml is no file"):
        plan("absent.toml")
    Path("dates.toml").write_text("[grid]\nseed = [2020-01-01]")
    with pytest.raises(SweepError, match=r'seed = "2020-01-01", expected a number'):
        plan("dates.toml")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sweep", "s.json", "--steps", "1000000"], "--steps beside --sweep: write flags of the runs into the file"),
        (["--sweep=s.json", "--batch_size=256", "--no-overlap"], "--batch-size, --no-overlap beside --sweep"),
        (["--sweep", "s.json", "--sweep-jobs", "0"], "--sweep-jobs is 0, expected at least 1"),
        (["--sweep-on", "slurm"], "--sweep-on or --sweep-jobs is given without --sweep"),
        (["--sweep-jobs", "1"], "--sweep-on or --sweep-jobs is given without --sweep"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    written(Path("s.json"), grid={"seed": [0]})
    assert cli.main(["train", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_sweep_starts_its_ranks_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "9"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SweepError, match="under torchrun"):
        flags.parse(["train", "--sweep", "s.json"])


def test_what_a_cluster_needs_is_named(cluster: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = written(Path("s.json"), grid={"seed": [0]}, slurm={"partition": "short"})
    with pytest.raises(SweepError, match="\\[slurm\\] has no time: say how many minutes"):
        sweep.run(file, on="slurm")
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(SweepError, match="there is no sbatch and srun here"):
        sweep.run(file, on="slurm")


def test_where_submitit_is_missing_its_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(SweepError, match=r'needs submitit, which is not installed .*: pip install "sacref\[cluster\]"'):
        sweep.run(written(Path("s.json"), grid={"seed": [0]}), on="slurm")


def test_the_documentations_file_is_one() -> None:
    text = (Path(sacref.__file__).parents[1] / "docs" / "seeds.md").read_text()
    (block,) = re.findall(r"```toml\n(# halfcheetah\.toml\n.*?)```", text, re.DOTALL)
    Path("halfcheetah.toml").write_text(block)
    found = plan("halfcheetah.toml")
    assert len(found.runs) == 2 * 5 * 2
    assert found.runs[0].name in text
    assert slurm.settings(Path("halfcheetah.toml"), found.slurm)["time"] == 240
