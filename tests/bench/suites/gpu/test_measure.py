"""A day on a GPU: the order of its pieces, what an interruption keeps, and the minutes that each may take."""

import io
import json
import time
from pathlib import Path

import pytest
from rich.console import Console

from bench import suites
from bench.core import machine
from bench.suites.amp import measure as amp
from bench.suites.gpu import measure as gpu
from bench.suites.gpu.measure import Day, Outcome, Piece, State
from bench.suites.population import measure as population
from bench.suites.update import measure as update

ORDER = ["parity", "executions", "host", "throughput", "update", "population", "amp", "learning"]


class Machine:
    """Runs commands that take known minutes, on a clock of its own.

    Args:
        minutes: what each command takes in all, however often it is stopped.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **minutes: float) -> None:
        self.now = 0.0
        self.left = {name: 60 * minutes.get(name, 1.0) for name in "abc"}
        self.ran: list[tuple[str, float]] = []
        monkeypatch.setattr(time, "monotonic", lambda: self.now)

    def __call__(self, command: tuple[str, ...], seconds: float) -> Outcome:
        (name,) = command
        self.ran.append((name, seconds / 60))
        done = self.left[name] <= seconds
        took = min(self.left[name], seconds)
        self.now += took
        self.left[name] -= took
        return "done" if done else "stopped"


PIECES = [Piece(name=name, about=name, minutes=3.0, command=(name,)) for name in "abc"]


def day(path: Path, *, minutes: float, piece: float = 8.5, again: bool = False) -> tuple[Day, io.StringIO]:
    said = io.StringIO()
    console = Console(file=said, width=200)
    return Day(PIECES, State(path, again=again), minutes=minutes, piece=piece, console=console), said


def test_the_order_is_that_of_worth_and_every_command_is_a_suite_s() -> None:
    for smoke in (True, False):
        found = gpu.pieces(smoke=smoke)
        assert [piece.name for piece in found] == ORDER
        assert all(suites.find()[piece.command[0]].main is not None for piece in found)
        assert max(piece.minutes for piece in found) < 9
    assert sum(piece.minutes for piece in found[:-1]) < 24
    # Names of pieces of the real plans.
    assert set(gpu.UPDATES) <= {piece.name for piece in update.plan("gpu", 16, 0).pieces}
    assert set(gpu.AMP) <= {piece.name for piece in amp.plan("gpu", 16, 0).pieces}
    assert population.PRESETS["gpu"].members == (1, 2, 5, 10, 20, 50)


def test_a_piece_has_its_budget_and_goes_on_in_what_the_others_leave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = Machine(monkeypatch, a=5.0, b=1.0, c=2.0)
    found, said = day(tmp_path / "state.json", minutes=28.0)
    assert found.run(runs) == 0
    assert runs.ran == [("a", 3.0), ("b", 3.0), ("c", 3.0), ("a", 3.0)]
    assert "a: done, 300 s" in said.getvalue()


def test_what_is_done_is_not_done_again_and_what_was_stopped_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state.json"
    runs = Machine(monkeypatch, a=1.0, b=4.0, c=1.0)
    found, said = day(path, minutes=4.0, piece=2.5)
    assert found.run(runs) == 0
    assert runs.ran == [("a", 2.5), ("b", 2.5)]
    assert "c: skipped: time is up, 30 s of 4 min are left" in said.getvalue()
    assert json.loads(path.read_text()) == {"a": "done", "b": "stopped"}
    found, said = day(path, minutes=4.0)
    found.print_plan()
    assert (
        "1. a (a): done by an earlier start" in said.getvalue() and "2. b (b): at most 3 min, goes on where it stopped" in said.getvalue()
    )
    assert found.run(runs) == 0
    assert [name for name, _ in runs.ran[2:]] == ["b", "c"]
    assert set(json.loads(path.read_text()).values()) == {"done"}
    found, _ = day(path, minutes=4.0)
    assert found.run(runs) == 0 and len(runs.ran) == 4
    found, _ = day(path, minutes=4.0, again=True)
    found.run(runs)
    assert len(runs.ran) == 7


def test_a_piece_that_fails_keeps_no_other_from_running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = Machine(monkeypatch)
    found, said = day(tmp_path / "state.json", minutes=28.0)
    assert found.run(lambda command, seconds: "failed" if command == ("b",) else runs(command, seconds)) == 1
    assert [name for name, _ in runs.ran] == ["a", "c"] and "b: failed" in said.getvalue()
    found, _ = day(tmp_path / "state.json", minutes=28.0)
    assert found.run(runs) == 0 and [name for name, _ in runs.ran] == ["a", "c", "b"]


def test_ctrl_c_keeps_what_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = Machine(monkeypatch)

    def execute(command: tuple[str, ...], seconds: float) -> Outcome:
        if command == ("b",):
            raise KeyboardInterrupt
        return runs(command, seconds)

    found, _ = day(tmp_path / "state.json", minutes=28.0)
    with pytest.raises(KeyboardInterrupt):
        found.run(execute)
    assert json.loads((tmp_path / "state.json").read_text()) == {"a": "done"}


@pytest.mark.parametrize(("minutes", "piece"), [(0.0, 8.5), (28.0, -1.0)])
def test_budgets_are_positive(minutes: float, piece: float, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=f"--minutes is {minutes:g}, --piece {piece:g}, expected positive numbers of minutes"):
        day(tmp_path / "state.json", minutes=minutes, piece=piece)


def test_without_a_gpu_all_is_skipped_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(machine, "find_accelerator", lambda: None)
    monkeypatch.setattr(gpu, "PARTIAL", tmp_path)
    assert gpu.main(results=tmp_path) == 1
    assert "All is skipped: there is no GPU here (nvidia-smi names none). --smoke rehearses" in capsys.readouterr().out


def test_a_command_is_stopped_at_its_end_as_by_ctrl_c(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "bench" / "__main__.py"
    program.parent.mkdir()
    program.write_text(
        "import sys, time\n"
        "try:\n    time.sleep(float(sys.argv[1]))\n"
        "except KeyboardInterrupt:\n    print('kept', file=open(sys.argv[2], 'w')); sys.exit(130)\n"
        "sys.exit(int(sys.argv[3]))\n"
    )
    (tmp_path / "bench" / "__init__.py").touch()
    monkeypatch.setattr(machine, "ROOT", tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(gpu, "STOP_SECONDS", 1.0)
    kept = tmp_path / "kept"
    assert gpu.run(["0", str(kept), "0"], 60.0) == "done"
    assert gpu.run(["0", str(kept), "3"], 60.0) == "failed"
    assert not kept.exists()
    assert gpu.run(["60", str(kept), "0"], 2.0) == "stopped"
    assert kept.read_text() == "kept\n"


def test_another_source_or_machine_begins_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "ROOT", tmp_path)
    (tmp_path / "bench").mkdir()
    code = tmp_path / "bench" / "code.py"
    code.write_text("1")
    first = gpu._state_path("A GPU", smoke=False)
    assert gpu._state_path("A GPU", smoke=False) == first
    assert len({first, gpu._state_path("Another", smoke=False), gpu._state_path("A GPU", smoke=True)}) == 3
    code.write_text("2")
    assert gpu._state_path("A GPU", smoke=False) != first


@pytest.mark.full
def test_a_rehearsal_does_every_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    for needed in ("torch", "jax", "mujoco"):
        pytest.importorskip(needed)
    monkeypatch.setattr(gpu, "PARTIAL", tmp_path / "state")
    results = tmp_path / "results"
    assert gpu.main(smoke=True, results=results, minutes=60.0) == 0
    said = capfd.readouterr().out
    assert {path.relative_to(results).parts[0] for path in results.rglob("*.json")} == set(ORDER)
    assert all(f"  {name}: done" in said for name in ORDER)
    assert gpu.main(smoke=True, results=results) == 0
    assert all(f"  {name}: done by an earlier start" in capfd.readouterr().out for name in ORDER[:1])
