"""The launcher's promises, kept with small programs in the place of a training: who is told what, and how a run ends."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sacref.cli import launch

SHOW = """
import json, os, pathlib, sys
names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS", "SACREF_LAUNCHED")
pathlib.Path(sys.argv[1] + os.environ["RANK"]).write_text(json.dumps({name: os.environ[name] for name in names}))
print("from rank", os.environ["RANK"], flush=True)
"""

# What each rank does: its number -> lines of Python.
ENDS = """
import os, signal, sys, time
rank = int(os.environ["RANK"])
signal.signal(signal.SIGTERM, signal.SIG_DFL)
print("line of rank", rank, flush=True)
{}
"""


def end(lines: str, capfd: pytest.CaptureFixture[str], ranks: int = 2) -> tuple[int, str, str, float]:
    """Status, standard output, standard error and seconds of ranks that do `lines`."""
    began = time.monotonic()
    status = launch.supervise([sys.executable, "-c", ENDS.format(lines)], ranks, run_dir="runs/x")
    shown = capfd.readouterr()
    return status, shown.out, shown.err, time.monotonic() - began


def test_each_rank_is_told_its_place_and_only_the_first_is_heard(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert launch.supervise([sys.executable, "-c", SHOW, str(tmp_path / "rank")], 3) == 0
    told = [json.loads((tmp_path / f"rank{rank}").read_text()) for rank in range(3)]
    assert [(seen["RANK"], seen["LOCAL_RANK"]) for seen in told] == [("0", "0"), ("1", "1"), ("2", "2")]
    assert {(seen["WORLD_SIZE"], seen["LOCAL_WORLD_SIZE"], seen["MASTER_ADDR"], seen["SACREF_LAUNCHED"]) for seen in told} == {
        ("3", "3", "127.0.0.1", "1")
    }
    assert len({seen["MASTER_PORT"] for seen in told}) == 1
    assert told[0]["OMP_NUM_THREADS"] == str(max(1, len(os.sched_getaffinity(0)) // 3))
    assert capfd.readouterr().out == "from rank 0\n"


def test_a_killed_rank_ends_the_others_and_is_named(capfd: pytest.CaptureFixture[str]) -> None:
    status, _, err, seconds = end("if rank == 1: os.kill(os.getpid(), signal.SIGKILL)\ntime.sleep(60)", capfd, ranks=3)
    assert status == 128 + signal.SIGKILL
    assert seconds < launch.GRACE_SECONDS + 10
    assert err.splitlines() == [
        "[rank 1] line of rank 1",
        "sacref: rank 1 was ended by SIGKILL, and all ranks have ended. To go on from the last checkpoint, if there is one: "
        "sacref train --resume --run-dir runs/x",
    ]


def test_a_rank_that_ignores_the_end_is_killed(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "GRACE_SECONDS", 0.5)
    lines = "if rank == 1: time.sleep(0.5); sys.exit(7)\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\ntime.sleep(60)"
    status, _, err, seconds = end(lines, capfd)
    assert (status, seconds < 15) == (7, True)
    assert "sacref: rank 1 ended with status 7, and all ranks have ended." in err


def test_the_cause_is_the_rank_that_failed_and_not_the_one_that_noticed(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "GRACE_SECONDS", 60.0)  # none is kept waiting: however late rank 1 starts, it ends by itself
    lines = f"if rank == 0: sys.exit({launch.LOST_STATUS})\ntime.sleep(0.5)\nprint('the reason')\nsys.exit(2)"
    status, _, err, _ = end(lines, capfd)
    assert status == 2
    assert "[rank 1] the reason" in err
    assert "rank 1 ended with status 2" in err


def test_what_all_ranks_refuse_is_said_once(capfd: pytest.CaptureFixture[str]) -> None:
    status, _, err, _ = end("print('refused', file=sys.stderr)\nsys.exit(2)", capfd)
    assert status == 2
    assert err.count("refused") == 1


@pytest.mark.parametrize("second", [False, True], ids=["noted", "noted, then at once"])
def test_ctrl_c_reaches_every_rank_once_each_time(second: bool, tmp_path: Path) -> None:
    lines = """
import pathlib
pressed = []
def press(*_):
    pressed.append(1)
    pathlib.Path(f"pressed{len(pressed)}_{rank}").touch()
signal.signal(signal.SIGINT, press)
pathlib.Path(f"ready_{rank}").touch()
deadline = time.monotonic() + 60
while len(pressed) < int(sys.argv[1]) and time.monotonic() < deadline: time.sleep(0.01)
time.sleep(0.3)
sys.exit(130 if len(pressed) == int(sys.argv[1]) else 9)
"""
    program = "import sys; from sacref.cli import launch; sys.exit(launch.supervise(sys.argv[1:], 2))"
    command = [sys.executable, "-c", ENDS.format(lines), "2" if second else "1"]
    launcher = subprocess.Popen([sys.executable, "-c", program, *command], stderr=subprocess.PIPE, text=True)

    def wait_for_both(what: str) -> None:
        end = time.monotonic() + 60
        while len(list(tmp_path.glob(f"{what}_*"))) < 2:
            assert time.monotonic() < end, what
            time.sleep(0.02)

    try:
        wait_for_both("ready")
        launcher.send_signal(signal.SIGINT)
        if second:
            # Two that wait to be taken up are one.
            wait_for_both("pressed1")
            launcher.send_signal(signal.SIGINT)
        _, err = launcher.communicate(timeout=120)
    finally:
        launcher.kill()
    assert (launcher.returncode, err) == (130, "")


def test_ctrl_c_while_the_ranks_are_started_ends_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = launch._environment

    def press(rank: int, ranks: int, port: int) -> dict[str, str]:
        if rank == 1:
            signal.raise_signal(signal.SIGINT)
        return environment(rank, ranks, port)

    monkeypatch.setattr(launch, "_environment", press)
    assert launch.supervise(["sleep", "60"], 3) == 130
