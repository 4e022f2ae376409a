"""A contender's process: what it answers, why it is missing, that it stands still between its turns and is gone at the end."""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from bench.core import machine
from bench.peers import CHUNK, CONTENDERS, Peer, environments, process
from bench.peers.process import MissingError, Process
from bench.peers.setting import Setting

DESCRIPTION: dict[str, Any] = {"env": "Toy-v0", "execution": "by hand", "settings": {}, "accelerator": None, "libraries": {}, "threads": 1}


def program(body: str) -> list[str]:
    """A program that says what it is, and then does `body` for each request."""
    head = f"import json, os, sys, time\nprint('''{json.dumps(DESCRIPTION)}''', flush=True)\nfor line in sys.stdin:\n"
    return [sys.executable, "-c", head + body]


ECHO = " print(json.dumps({'steps': int(line.split()[1]), 'seconds': 0.5}), flush=True)"


def test_a_contender_says_what_it_is_and_answers_each_request() -> None:
    started = Process(program(ECHO), threads=1)
    try:
        description = started.start()
        assert (description.env, description.execution) == ("Toy-v0", "by hand")
        assert [started.advance(steps).steps for steps in (64, 128)] == [64, 128]
    finally:
        started.close()


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (" print(json.dumps({'error': 'ValueError: no'}), flush=True)", "ValueError: no"),
        (" print('words', file=sys.stderr); sys.exit(3)", "its process ended with status 3: words"),
        (" print('no json', flush=True)", "answered b'no json', expected a line of JSON"),
    ],
)
def test_a_contender_that_fails_is_missing_with_its_reason(body: str, reason: str) -> None:
    started = Process(program(body), threads=1)
    try:
        started.start()
        with pytest.raises(MissingError, match=reason):
            started.advance(64)
    finally:
        started.close()


def test_a_contender_that_ended_before_a_request_is_missing_with_its_last_words() -> None:
    started = Process([sys.executable, "-c", "import sys; sys.exit('cannot go on')"], threads=1)
    try:
        with pytest.raises(MissingError, match="status 1: cannot go on"):
            started.start()
    finally:
        started.close()


def test_a_contender_that_hangs_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "ANSWER_SECONDS", 0.2)
    started = Process([sys.executable, "-c", "import time; time.sleep(60)"], threads=1)
    try:
        with pytest.raises(MissingError, match="no answer within 0 s"):
            started.start()
    finally:
        monkeypatch.setattr(process, "CLOSE_SECONDS", 0.1)
        started.close()


def test_closing_ends_what_ignores_the_end_of_the_requests_and_what_it_started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(process, "CLOSE_SECONDS", 0.2)
    pids = tmp_path / "pids"
    body = f""" pass
import subprocess
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
open({str(pids)!r}, "w").write(f"{{os.getpid()}} {{child.pid}}")
time.sleep(60)"""
    started = Process(program(body), threads=1)
    started.start()
    assert started._process.stdin is not None
    started._process.stdin.close()
    until = time.monotonic() + 30  # half of what they sleep
    while not (pids.exists() and len(pids.read_text().split()) == 2):
        assert time.monotonic() < until
        time.sleep(0.02)
    started.close()
    for pid in map(int, pids.read_text().split()):
        while _runs(pid):
            assert time.monotonic() < until
            time.sleep(0.02)


def _runs(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] if Path("/proc").exists() else "R"
        os.kill(pid, 0)
    except (OSError, ProcessLookupError):
        return False
    return state != "Z"


def peer(**changes: Any) -> Peer:
    known: dict[str, Any] = {"name": "A peer", "module": "own", "library": "torch", "environment": "a-peer", "needs": ("json",), **changes}
    return Peer(**known)


def test_the_environment_of_a_peer_comes_before_this_interpreter(tmp_path: Path) -> None:
    assert process.interpreter(peer(), tmp_path) == Path(sys.executable)
    python = environments.python(tmp_path / "a-peer")
    python.parent.mkdir(parents=True)
    python.touch()
    assert process.interpreter(peer(), tmp_path) == python
    (tmp_path / "a-peer" / environments.FAILED).write_text("pip failed: no such version")
    with pytest.raises(MissingError, match=r"^pip failed: no such version$"):
        process.interpreter(peer(), tmp_path)


def test_a_peer_that_is_nowhere_is_missing_with_what_it_lacks(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"^nothing_of_the_kind not installed; no environment a-peer: run `make bench-peers`$"):
        process.interpreter(peer(needs=("json", "nothing_of_the_kind")), tmp_path)


def test_a_script_without_a_path_is_missing_and_says_how_to_give_it(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="set CLEANRL_SAC, or pass --cleanrl"):
        process.script_of(CONTENDERS["CleanRL"], {})
    assert process.script_of(CONTENDERS["CleanRL"], {"CLEANRL_SAC": tmp_path}) == {"script": str(tmp_path)}
    assert process.script_of(CONTENDERS["Stable-Baselines3"], {}) == {}


def test_a_contender_gets_its_threads_the_package_and_empty_caches(tmp_path: Path) -> None:
    found = process.variables({"PYTHONPATH": "there", "OMP_NUM_THREADS": "7", "HOME": "home"}, 2, tmp_path)
    assert found["OMP_NUM_THREADS"] == found["MKL_NUM_THREADS"] == found["OPENBLAS_NUM_THREADS"] == "2"
    assert found["PYTHONPATH"] == f"{machine.ROOT}{os.pathsep}there"
    assert found["HOME"] == "home"
    assert found["TORCHINDUCTOR_CACHE_DIR"].startswith(str(tmp_path))
    assert found["XDG_CACHE_HOME"].startswith(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "library"),
    [
        ("sacref torch strict", "torch"),
        pytest.param("sacref jax chunked", "jax", marks=pytest.mark.full),
        ("Stable-Baselines3", "stable_baselines3"),
    ],
)
def test_a_contender_trains_within_its_cores_and_stands_still_between_its_turns(name: str, library: str, tmp_path: Path) -> None:
    pytest.importorskip(library)
    pytest.importorskip("mujoco")
    setting = Setting(env="InvertedPendulum-v5", seed=0, random_steps=5 * CHUNK, batch_size=8, memory_capacity=1_000)
    started = process.open_process(CONTENDERS[name], setting, cores=machine.available_cores()[:1], folder=tmp_path, scripts={})
    try:
        description = started.start()
        assert description.env == "InvertedPendulum-v5"
        assert description.execution
        assert description.threads == (1 if hasattr(os, "sched_getaffinity") else os.cpu_count())
        assert library.removesuffix("_baselines3") in " ".join(description.libraries)
        started.advance(CHUNK)
        # Of three each, as the machine may do other things beside one of them.
        random = min(started.advance(CHUNK).seconds for _ in range(3))
        started.advance(2 * CHUNK)
        learning = max(started.advance(CHUNK).seconds for _ in range(3))
        time.sleep(0.3)
        waited = started.advance(CHUNK)
        # Learning costs more than a random step; compiling is over.
        assert learning > random
        assert waited.waited_seconds is not None
        assert waited.waited_seconds >= 0.2
        assert waited.waited_cpu_seconds is not None
        assert waited.waited_cpu_seconds < 0.1
    finally:
        started.close()
