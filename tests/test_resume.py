"""A run that is killed at any moment and resumed ends as the run that was never killed: bit for bit but for wall-clock times."""

import json
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from numpy.typing import NDArray

from sacref import checkpoint, resumption
from tests.backends import BACKENDS, assert_same_arrays
from tests.resume_worker import train

KILLS = int(os.environ.get("SACREF_KILLS", "21"))
"""SIGKILLs of all runs together."""
RUNS = [("torch", "HalfCheetah-v5"), ("jax", "Ant-v5"), ("torch", "Humanoid-v5")]
TOO_LONG = 120.0

processes: Any = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(
    ["tests.resume_worker", "sacref.experiment", "gymnasium.envs.mujoco", *(f"sacref.{name}" for name in BACKENDS)]
)


def run(backend: str, env: str, directory: Path, *, resume: bool, seconds: float | None = None, **options: Any) -> int | None:
    """Train in a process of its own, which is killed after so many seconds; its exit status, negative for a signal."""
    process = processes.Process(target=train, args=(backend, env, str(directory)), kwargs={"resume": resume, **options})
    process.start()
    process.join(TOO_LONG if seconds is None else seconds)
    if seconds is not None and process.is_alive():
        os.kill(process.pid, signal.SIGKILL)
    process.join(TOO_LONG)
    status: int | None = process.exitcode
    process.close()
    return status


def lines_of(directory: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what the clock says."""
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [{tag: value for tag, value in line.items() if tag != "wall_time" and not tag.startswith("Stats / ")} for line in lines]


def events_of(directory: Path) -> list[tuple[int, str, float]]:
    """Step, tag and value of all TensorBoard events, without what the clock says."""
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    found: list[tuple[int, str, float]] = []
    for path in sorted(directory.glob(resumption.EVENTS)):
        for event in LegacyEventFileLoader(str(path)).Load():
            found += [(event.step, value.tag, value.simple_value) for value in event.summary.value if not value.tag.startswith("Stats / ")]
    return sorted(found, key=lambda each: each[:2])


def arrays_of(directory: Path) -> Iterator[tuple[str, dict[str, NDArray[Any]]]]:
    """Group and arrays of each checkpoint that was kept, and of the segments of its memory."""
    for path in [*sorted(directory.glob("checkpoints/agent_*")), directory / "checkpoints" / "best"]:
        for group, arrays in checkpoint.read(path).groups.items():
            if group == "live":  # the times that are tracked and not written yet
                arrays = {name: array for name, array in arrays.items() if "Stats / " not in name}
            yield f"{path.name}/{group}", arrays


def memory_of(directory: Path) -> dict[str, NDArray[Any]]:
    from sacref import replay_log

    path = sorted(directory.glob("checkpoints/agent_*"), key=lambda each: int(each.name.removeprefix("agent_")))[-1]
    entry = resumption.entry_of(path)
    assert entry is not None

    class Room:
        slots, num_envs = entry["slots"], entry["envs"]

    room: Any = Room()
    return replay_log.read(directory / "checkpoints" / "replay", entry, room)


def assert_same_runs(killed: Path, whole: Path) -> None:
    assert json.loads((killed / "evaluation.json").read_text()) == json.loads((whole / "evaluation.json").read_text())
    assert lines_of(killed) == lines_of(whole)
    assert events_of(killed) == events_of(whole)
    found, wanted = dict(arrays_of(killed)), dict(arrays_of(whole))
    assert found.keys() == wanted.keys()
    for name, arrays in wanted.items():
        assert_same_arrays(found[name], arrays)
    assert_same_arrays(memory_of(killed), memory_of(whole))


@pytest.mark.parametrize(("backend", "env"), RUNS)
def test_trap_20_a_killed_run_ends_as_one_that_was_not(backend: str, env: str, tmp_path: Path) -> None:
    pytest.importorskip(backend, reason=f"{backend} is not installed")
    whole = tmp_path / "whole"
    began = time.monotonic()
    assert run(backend, env, whole, resume=False) == 0
    seconds = time.monotonic() - began
    moments = random.Random(f"{backend} {env} {KILLS}")
    kills, resumed, number = 0, 0, 0
    while kills < KILLS // len(RUNS) or resumed < 2:
        killed = tmp_path / f"killed-{number}"
        while True:
            resume = bool(resumption.finished_checkpoints(killed))
            resumed += resume
            status = run(backend, env, killed, resume=resume, overwrite=not resume, seconds=moments.uniform(0.0, seconds))
            if status == 0:
                break
            assert status == -signal.SIGKILL
            kills += 1
        assert_same_runs(killed, whole)
        number += 1
