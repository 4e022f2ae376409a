"""The mixed-precision suite: processes take turns, errors are against float64, and a size that does not fit is said to."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from bench import amp, amp_worker, machine, precisions, sweep
from bench.amp import PRESETS, Processes, Remote, Sizes
from bench.amp_worker import DoesNotFit, Errors, Memory, Ready, Size, Worker
from bench.precisions import PRECISIONS, Precision
from bench.record import Timing

SIZES = Sizes(batches=(8,), widths=(8,), gradient_steps=2, rounds=2, round_seconds=0.0, largest_flops=1e12)


class Fake:
    """A process that notes what it is asked; what it answers to `prepare` can be chosen."""

    def __init__(self, name: str, log: list[str], fits: bool = True) -> None:
        self.name, self.log, self.fits = name, log, fits

    def ask(self, method: str, *arguments: Any) -> Any:
        self.log.append(f"{self.name} {method}")
        if method == "prepare" and not self.fits:
            return DoesNotFit()
        return {
            "prepare": Ready("fast", 3.0),
            "round": Timing(count=4, seconds=2.0),
            "finish": Memory(1_000, "device"),
            "errors": Errors(1e-7, None),
        }[method]


class Fakes(Processes):
    """Fake processes, and a backend that is missing."""

    def __init__(self, log: list[str]) -> None:
        super().__init__(SIZES, 0)
        self.fakes: dict[Any, Any] = {
            ("torch", "float32"): Fake("a", log),
            ("torch", "tf32"): Fake("b", log),
            ("jax", "float32"): Fake("c", log, fits=False),
            ("jax", "tf32"): "no jax",
        }

    def contenders(self, purpose: Any) -> Any:
        return self.fakes


def test_processes_take_turns_and_what_cannot_run_is_named() -> None:
    log: list[str] = []
    cells = amp.measure(Size(8, 8), SIZES, Fakes(log)).cells
    assert log == [
        *(f"{name} prepare" for name in "abc"),
        *(f"{name} round" for name in "abab"),
        *("a finish", "a errors", "b finish", "b errors"),
    ]
    assert [(cell.backend, cell.precision, cell.missing, len(cell.timings)) for cell in cells] == [
        ("torch", "float32", None, 2),
        ("torch", "tf32", None, 2),
        ("jax", "float32", "does not fit the memory", 0),
        ("jax", "tf32", "no jax", 0),
    ]
    # The first call of two gradient steps took 3 s; four take 2 s.
    assert cells[0].compile_seconds == pytest.approx(2.0)
    assert (cells[0].memory_bytes, cells[0].memory_of, cells[0].loss_error, cells[0].gradient_error) == (1_000, "device", 1e-7, None)


@pytest.fixture
def worker(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Worker:
    """A worker in this process, which keeps its own precision."""
    pytest.importorskip(request.param)
    monkeypatch.setattr(precisions, "use", lambda backend, name: None)
    return Worker(request.param, "float32", gradient_steps=2, stored=50, round_seconds=0.0, seed=0)


BOTH = pytest.mark.parametrize("worker", ["torch", "jax"], indirect=True)


@BOTH
def test_errors_are_those_of_rounding_and_grow_with_a_coarser_product(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    found = worker.errors(Size(16, 8))
    assert found.loss is not None and found.gradient is not None
    assert 0 < found.loss < 1e-5
    assert 0 < found.gradient < 1e-4
    made = worker._agent

    def coarse(size: Size, **settings: Any) -> Any:
        agent = made(size, **settings)
        update_on = agent.update_on
        agent.update_on = lambda batch, noise: update_on(
            batch.map(lambda array: array * (1 + 2**-8) if array.dtype.kind == "f" else array), noise
        )
        return agent

    monkeypatch.setattr(worker, "_agent", coarse)
    coarser = worker.errors(Size(16, 8))
    assert coarser.gradient is not None
    assert coarser.gradient > 100 * found.gradient


@BOTH
def test_a_round_is_of_gradient_steps_and_the_peak_is_told_once(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    peaks = iter([(100, "process"), (100, "process"), (300, "process")])
    monkeypatch.setattr(amp_worker, "peak_memory", lambda backend: next(peaks))
    ready = worker.prepare(Size(8, 8))
    assert ready.first_seconds > 0
    assert ready.chosen
    timed = worker.round()
    assert timed.count % 2 == 0
    # The second size needed no more than the first: its own peak is unknown.
    assert [worker.finish() for _ in range(3)] == [(100, "process"), (None, None), (300, "process")]


def test_the_settings_of_a_precision_reach_the_agent(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    monkeypatch.setattr(precisions, "use", lambda backend, name: None)
    monkeypatch.setitem(PRECISIONS, "other", Precision(torch_matmul="highest", jax_matmul="highest", settings={"polyak": 0.25}))
    worker = Worker("torch", "other", gradient_steps=2, stored=50, round_seconds=0.0, seed=0)
    assert worker._agent(Size(8, 8)).cfg.polyak == 0.25
    assert worker._agent(Size(8, 8)).cfg.gradient_steps == 2


def answer(connection: Any, *_: Any) -> None:
    """In the place of `serve`: an echo that dies when told to."""
    while True:
        try:
            method, *arguments = connection.recv()
        except EOFError:
            return
        if "die" in arguments:
            os.kill(os.getpid(), signal.SIGKILL)
        connection.send((method, os.getpid()))


def test_a_process_that_the_system_killed_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(amp, "serve", answer)
    remote = Remote("torch", "float32")
    try:
        _, first = remote.ask("prepare")
        assert isinstance(remote.ask("prepare", "die"), DoesNotFit)
        _, second = remote.ask("round")
        assert first != second
        with pytest.raises(RuntimeError, match=r"\('torch', 'float32'\) ended at round"):
            remote.ask("round", "die")
    finally:
        remote.close()


@pytest.mark.parametrize(("accelerator", "expected"), [(None, ("float32",)), ("A GPU", ("float32", "tf32"))])
def test_tf32_is_measured_where_there_is_a_gpu(accelerator: str | None, expected: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "find_accelerator", lambda: accelerator)
    assert amp.precisions() == expected


def test_the_smallest_work_comes_first() -> None:
    sizes = amp.all_sizes(PRESETS["gpu"])
    assert len(sizes) == 20
    assert sizes[0] == (64, 256)
    assert sizes[-1] == (16_384, 2_048)
    assert [amp.flops(size) for size in sizes] == sorted(amp.flops(size) for size in sizes)


def test_the_plan_says_what_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sweep, "bind", lambda threads: 2)
    monkeypatch.setattr(machine, "find_accelerator", lambda: None)
    assert amp.main(preset="cpu", results=tmp_path, dry_run=True) == 0
    assert "left out: batch 4096, width 1024: " in capsys.readouterr().out
    assert amp.estimated_seconds("smoke", 2) < 60
    assert not list(tmp_path.iterdir())
