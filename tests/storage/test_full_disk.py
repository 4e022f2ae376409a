"""A disk that is full, a folder that cannot be written or is gone: training goes on or stops cleanly, and what was good stays good."""

import json
import logging
import os
import resource
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import gymnasium
import numpy as np
import pytest

import sacref
from bench.suites.faults import measure as faults
from sacref.ranks import Ranks
from sacref.storage import checkpoint
from sacref.storage.checkpoint import CheckpointError
from sacref.storage.metric_files import JsonLines, Origin, Sinks, TensorBoard
from sacref.storage.replay_log import ReplayLog
from sacref.training import experiment
from sacref.training.checkpoints import finished_checkpoints, newest_whole
from tests.backends import BACKENDS, Backend, assert_same_arrays, fill
from tests.storage.test_replay_log import filled, write

SMALL: dict[str, Any] = {
    "env": "Pendulum-v1",
    "env_kwargs": {"max_episode_steps": 20},
    "steps": 120,
    "hidden": (8,),
    "evaluation_interval": 30,
    "evaluation_episodes": 1,
    "cfg": {
        "batch_size": 8,
        "random_timesteps": 10,
        "learning_starts": 10,
        "experiment": {"write_interval": 10, "checkpoint_interval": 20},
    },
    "progress": False,
}


class At(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Lets something happen behind a step of the first environment, that of training."""

    what: ClassVar[Mapping[int, Callable[[], Any]]] = {}
    first: ClassVar["At | None"] = None

    def __init__(self, env: Any) -> None:
        super().__init__(env)
        self.steps = 0
        At.first = At.first or self

    def step(self, action: Any) -> Any:
        result = super().step(action)
        self.steps += 1
        if At.first is self:
            At.what.get(self.steps, lambda: None)()
        return result

    def get_state(self) -> Any:
        return self.steps

    def set_state(self, state: Any) -> None:
        self.steps = state


def train(run_dir: Path, what: Mapping[int, Callable[[], Any]] | None = None, **changed: Any) -> experiment.TrainingResult:
    At.what, At.first = what or {}, None
    return experiment.train(**{**SMALL, "wrappers": [At], "run_dir": run_dir, **changed})


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run that nothing happened to."""
    pytest.importorskip("torch", reason="torch is not installed")
    return train(tmp_path_factory.mktemp("whole") / "run")


def assert_same_run(run_dir: Path, whole: Path) -> None:
    """Metrics, events, evaluations and the last checkpoint."""
    assert faults._lines(run_dir) == faults._lines(whole)
    assert faults._events(run_dir) == faults._events(whole)
    assert json.loads((run_dir / "evaluation.json").read_text()) == json.loads((whole / "evaluation.json").read_text())
    found, wanted = (checkpoint.read(path / "checkpoints" / "agent_120").groups["agent"] for path in (run_dir, whole))
    assert_same_arrays(found, wanted)
    assert newest_whole(Ranks(), run_dir) == 120


def limit(size: int = resource.RLIM_INFINITY) -> None:
    """No file may grow beyond so many bytes: what the kernel then says is what it says of a disk that is full, but for the number."""
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard if size == resource.RLIM_INFINITY else size, hard))


@pytest.fixture(autouse=True)
def unlimited() -> Iterator[None]:
    yield
    limit()


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name.startswith("sacref") and record.levelno >= logging.WARNING]


@pytest.mark.parametrize("size", [0, 3_000, "half a line"])
def test_a_disk_that_is_full_for_a_while(size: int | str, whole: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """From step 45 to 75: the checkpoint of 60, the evaluation of 60 and lines 50 to 70 cannot be written, whole or in part."""
    run_dir = tmp_path / "run"
    metrics = run_dir / "metrics.jsonl"
    result = train(run_dir, {45: lambda: limit(size if isinstance(size, int) else metrics.stat().st_size + 100), 75: limit})
    assert (result.steps, result.interrupted) == (120, False)
    messages = said(caplog)
    assert sum("no checkpoint at timestep 60: " in message and "agent_40 is the last one" in message for message in messages) == 1
    lost = [message for message in messages if "what was measured up to timestep" in message and "File too large" in message]
    assert sorted(message.partition(":")[0] for message in lost) == ["JsonLines", "TensorBoard"]  # each says so once
    assert [line["timestep"] for line in faults._lines(run_dir)] == [10, 20, 30, 40, 80, 90, 100, 110, 120]
    # A sink fails by itself: where half a line fits into metrics.jsonl, the events of 50 fit into their own, shorter file.
    fitted = {50} if size == "half a line" else set()
    assert {step for step, _, _ in faults._events(run_dir)} == {10, 20, 30, 40, 80, 90, 100, 110, 120} | fitted
    # The evaluation of 60 was kept in mind, and what was learned is what it would have been.
    assert json.loads((run_dir / "evaluation.json").read_text()) == json.loads((whole.run_dir / "evaluation.json").read_text())
    assert_same_arrays(result.agent.arrays(), whole.agent.arrays())
    names = sorted(path.name for path in (run_dir / "checkpoints").iterdir())
    assert names == ["agent_100", "agent_120", "agent_80", "best", "replay"]
    for path in finished_checkpoints(run_dir).values():
        checkpoint.verify(path)
    assert not [path for path in run_dir.rglob("*") if path.name.startswith(".")]
    assert newest_whole(Ranks(), run_dir) == 120


@pytest.mark.parametrize("size", [0, 2_500])
def test_a_disk_that_stays_full(size: int, whole: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The end cannot be written: one error says so. The last good checkpoint is good, and the run that goes on from it is the whole one."""
    run_dir = tmp_path / "run"
    with pytest.raises((OSError, CheckpointError), match=r"File too large|cannot be written"):
        train(run_dir, {45: lambda: limit(size)})
    limit()
    assert any("agent_40 is the last one" in message for message in said(caplog))
    assert newest_whole(Ranks(), run_dir) == 40
    assert [line["timestep"] for line in faults._lines(run_dir)] == [10, 20, 30, 40]
    assert max(step for step, _, _ in faults._events(run_dir)) == 40
    assert not [path for path in run_dir.rglob("*") if path.name.endswith(".tmp")]
    train(run_dir, resume=True)
    assert_same_run(run_dir, whole.run_dir)


@contextmanager
def as_nobody(whole: Path) -> Iterator[Path]:
    """A folder, with a copy of a run, of the user who is nobody, who runs what is within: root may write everywhere."""
    folder = Path(tempfile.mkdtemp())
    shutil.copytree(whole, folder / "whole")
    before = os.geteuid()
    try:
        if before == 0:
            folder.chmod(0o777)
            os.seteuid(65534)
        yield folder
    finally:
        os.seteuid(before)
        for path in [folder, *folder.rglob("*")]:
            if path.is_dir():
                path.chmod(0o777)
        shutil.rmtree(folder)


def test_a_folder_that_cannot_be_written(whole: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    with as_nobody(whole.run_dir) as folder:
        monkeypatch.chdir(folder)
        run_dir = folder / "run"
        folders = [run_dir, run_dir / "checkpoints", run_dir / "checkpoints" / "replay"]

        def allow(mode: int) -> None:
            for path in folders:
                path.chmod(mode)

        with pytest.raises(PermissionError, match=r"Permission denied: .*run"):
            train(run_dir, {45: lambda: allow(0o555)})
        assert any("no checkpoint at timestep 60: [Errno 13] Permission denied" in message for message in said(caplog))
        assert newest_whole(Ranks(), run_dir) == 40
        with pytest.raises(PermissionError, match="Permission denied"):
            train(run_dir, resume=True)
        allow(0o755)
        train(run_dir, resume=True)
        assert_same_run(run_dir, folder / "whole")
        allow(0o555)
        with pytest.raises(PermissionError, match="Permission denied"):
            train(run_dir / "new")


def test_a_folder_that_is_gone(whole: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What comes after is written anew, and is whole: the memory's rows of before, too."""
    run_dir = tmp_path / "run"
    result = train(run_dir, {45: lambda: shutil.rmtree(run_dir)})
    assert [message for message in said(caplog) if "config.json" not in message] == []
    assert newest_whole(Ranks(), run_dir) == 120
    assert sacref.load(run_dir) is not None
    assert_same_arrays(result.agent.arrays(), whole.agent.arrays())
    assert [line["timestep"] for line in faults._lines(run_dir)] == [50, 60, 70, 80, 90, 100, 110, 120]
    assert {step for step, _, _ in faults._events(run_dir)} == {50, 60, 70, 80, 90, 100, 110, 120}
    assert train(run_dir, steps=130, resume=True).steps == 130


def test_a_line_that_was_not_written_whole_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take back a half-written line, and go on in the other file."""
    from tensorboard.summary.writer import record_writer

    class Full(record_writer.RecordWriter):  # type: ignore[misc]  # tensorboard has no types.
        def write(self, data: bytes) -> None:
            super().write(data[:10])
            raise OSError(28, "No space left on device")

    tracker = Sinks([TensorBoard(), JsonLines()], Origin(tmp_path / "run", int, {}))
    for timestep, full in ((10, True), (20, False), (30, True), (40, False)):
        with monkeypatch.context() as patched:
            if full:
                patched.setattr(record_writer, "RecordWriter", Full)
            tracker.write(timestep, {"tag": timestep})
    assert [line["tag"] for line in faults._lines(tmp_path / "run")] == [10, 20, 30, 40]
    assert faults._events(tmp_path / "run") == [(20, "tag", 20.0), (40, "tag", 40.0)]


def test_segments_that_are_gone_are_written_again(tmp_path: Path) -> None:
    memory, log = filled(8, timesteps=3), ReplayLog(tmp_path)
    write(log, memory)
    memory.add([True])
    write(log, memory)
    shutil.rmtree(tmp_path / "segment_0")
    memory.add([True])
    assert [segment["count"] for segment in write(log, memory)["segments"]] == [[5]]
    memory.add([True])
    assert [segment["count"] for segment in write(log, memory)["segments"]] == [[5], [1]]


@pytest.mark.parametrize("name", BACKENDS)
def test_what_a_checkpoint_costs_does_not_grow_with_the_memory(name: str, tmp_path: Path) -> None:
    """Bytes of a second checkpoint, 50 timesteps after the first, with a full memory, and with one 40 times as large."""
    pytest.importorskip(name, reason=f"{name} is not installed")
    costs = {}
    for capacity in (500, 20_000):
        agent, folder = Backend(name).agent(capacity=capacity), tmp_path / str(capacity)
        rows = {key: np.zeros((capacity, *row.shape[1:]), row.dtype) for key, row in agent.memory.rows(np.zeros(1, np.int64)).items()}
        agent.memory.set_arrays({**rows, "head": np.array([7]), "size": np.array([capacity])})
        log = ReplayLog(folder / "replay")
        agent.save(folder / "agent_1", replay=log)
        first = bytes_in(folder)
        assert first > capacity * sum(row.nbytes for row in agent.memory.rows(np.zeros(1, np.int64)).values())
        fill(agent, 50)
        agent.save(folder / "agent_2", replay=log)
        costs[capacity] = bytes_in(folder) - first
    assert costs[500] < 40_000
    assert abs(costs[20_000] - costs[500]) < 50  # digits of numbers


def bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
