"""The mixed-precision suite: precisions take turns, errors are against float64, and what does not fit or would take too long is said."""

import os
import signal
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.core import machine, precisions, runner
from bench.core.flops import recurrent_update_flops, update_flops
from bench.core.precisions import PRECISIONS, Precision
from bench.core.samples import Timing
from bench.core.worker import DoesNotFit
from bench.suites.amp import measure as amp
from bench.suites.amp import worker as amp_worker
from bench.suites.amp.measure import PRESETS, Remote, Sizes
from bench.suites.amp.worker import Errors, Judge, Memory, Ready, Size, Worker

SIZES = Sizes(batches=(8,), widths=(8,), gradient_steps=2, call_flops=1e9, rounds=3, round_seconds=0.0, largest_flops=1e12)


class Fake:
    """In the place of a process: it notes what it is asked; float16 does not fit, and bfloat16 takes its time."""

    def __init__(self, log: list[str], make: Any) -> None:
        self.log, self.make = log, make
        self.name = "judge" if make.func is Judge else " ".join(make.args)
        self.log.append(f"{self.name} starts")

    def ask(self, method: str, *arguments: Any) -> Any:
        self.log.append(f"{self.name} {method}")
        if method == "prepare":
            assert arguments == (Size(8, 8), 2)
            assert self.make.keywords == {"stored": 100_000, "round_seconds": 0.0, "seed": 5}
        if method == "errors":
            self.log[-1] += f" {' '.join(arguments[:2])}"
            assert arguments[2] == Size(8, 8)
        if "float16" in self.name.split() and method == "prepare":
            return DoesNotFit()
        return {
            "prepare": Ready("fast", 3.0),
            "round": Timing(count=4, seconds=8.0 if "bfloat16" in self.name else 2.0),
            "memory": Memory(1_000, "device"),
            "errors": Errors(1e-7, None),
        }[method]

    def close(self) -> None:
        self.log.append(f"{self.name} ends")


def test_precisions_take_turns_and_what_cannot_run_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "find_accelerator", lambda: None)
    monkeypatch.setattr(runner, "missing_backends", lambda: {"jax": "no jax"})
    log: list[str] = []
    cells = amp.measure(Size(8, 8), SIZES, 5, partial(Fake, log)).cells
    names = ("torch float32", "torch bfloat16", "torch float16")
    assert log == [
        *(f"{name} starts" for name in names),
        *(f"{name} prepare" for name in names),
        *(f"{name} round" for name in names[:2] * 2),
        # Two rounds of 8 seconds are enough of a precision that is slow.
        "torch float32 round",
        *(f"{name} memory" for name in names[:2]),
        *(f"{name} ends" for name in reversed(names)),
        "judge starts",
        "judge errors torch float32",
        "judge errors torch bfloat16",
        "judge ends",
    ]
    assert [(cell.backend, cell.precision, cell.missing, len(cell.timings)) for cell in cells] == [
        ("torch", "float32", None, 3),
        ("torch", "bfloat16", None, 2),
        ("torch", "float16", "does not fit the memory", 0),
        *(("jax", precision, "no jax", 0) for precision in ("float32", "bfloat16", "float16")),
    ]
    # The first call of two gradient steps took 3 s; four take 2 s.
    assert cells[0].compile_seconds == pytest.approx(2.0)
    assert (cells[0].memory_bytes, cells[0].memory_of, cells[0].loss_error, cells[0].gradient_error) == (1_000, "device", 1e-7, None)


def test_what_would_take_too_long_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "find_accelerator", lambda: None)
    monkeypatch.setattr(runner, "missing_backends", lambda: {"jax": "no jax"})
    log: list[str] = []
    sizes = Sizes(**(SIZES.__dict__ | {"slow": {("torch", "bfloat16"): 100.0}, "largest_truth_flops": 100.0}))
    cells = amp.measure(Size(8, 8), sizes, 5, partial(Fake, log)).cells
    assert [(cell.precision, cell.missing) for cell in cells[:2]] == [
        ("float32", None),
        ("bfloat16", "left out, as a gradient step would take very long"),
    ]
    assert not [line for line in log if "judge" in line or "bfloat16" in line]
    assert cells[0].loss_error is None


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process keeps its own precision."""
    monkeypatch.setattr(precisions, "use", lambda backend, name: None)


def coarse(made: Any, monkeypatch: pytest.MonkeyPatch, factor: float = 1 + 2**-8, overflows: int = 0) -> list[int]:
    """Agents whose batches are scaled by `factor`, and whose first gradients overflow; what is returned counts their steps."""
    steps = [0]

    def make(*arguments: Any, **settings: Any) -> Any:
        agent = made(*arguments, **settings)
        update_on, gradients = agent.update_on, agent.gradients

        def scaled(batch: Any, noise: Any) -> Any:
            steps[0] += 1
            return update_on(batch.map(lambda array: array * factor if array.dtype.kind == "f" else array), noise)

        def overflown() -> Any:
            factor = np.inf if steps[0] <= overflows else 1.0
            return {name: np.asarray(array * factor) for name, array in gradients().items()}

        agent.update_on, agent.gradients = scaled, overflown
        return agent

    monkeypatch.setattr(amp_worker, "make_agent", make)
    return steps


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(
    ("backend", "recurrent"), [("torch", None), ("torch", "gru"), ("jax", None), pytest.param("jax", "gru", marks=pytest.mark.full)]
)
def test_errors_are_those_of_rounding_and_grow_with_a_coarser_product(
    backend: str, recurrent: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(backend)
    size = Size(64, 8, recurrent)
    judge = Judge(seed=0)
    found = judge.errors(backend, "float32", size)
    assert found.loss is not None and found.gradient is not None
    assert 0 < found.loss < 1e-5
    assert 0 < found.gradient < 1e-4
    if recurrent is not None:
        return
    coarse(amp_worker.make_agent, monkeypatch)
    coarser = judge.errors(backend, "float32", size)
    assert coarser.gradient is not None
    assert coarser.gradient > 100 * found.gradient


@pytest.mark.usefixtures("alone")
def test_a_step_that_overflows_is_taken_again_with_the_next_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    monkeypatch.setattr(amp_worker, "MOST_OVERFLOWS", 3)
    made, judge = amp_worker.make_agent, Judge(seed=0)
    with np.errstate(invalid="ignore"):
        steps = coarse(made, monkeypatch, 1.0, overflows=3)
        found = judge.errors("torch", "float32", Size(16, 8))
        assert steps == [4]
        assert found.gradient is not None and 0 < found.gradient < 1e-4
        steps = coarse(made, monkeypatch, 1.0, overflows=4)
        assert judge.errors("torch", "float32", Size(16, 8)).gradient is None
        assert steps == [4]


@pytest.mark.usefixtures("alone")
def test_the_truth_is_computed_once_for_all_backends_of_a_size(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("jax")
    from sacref.parity.drivers import Oracle

    computed: list[int] = []
    update = Oracle.update

    def counted(self: Oracle, batch: Any, noise: Any) -> Any:
        computed.append(len(batch.rewards))
        return update(self, batch, noise)

    monkeypatch.setattr(Oracle, "update", counted)
    judge = Judge(seed=0)
    for backend in ("torch", "jax"):
        judge.errors(backend, "float32", Size(64, 8))  # which JAX has compiled above
    assert computed == [64]
    judge.errors("torch", "float32", Size(24, 8))
    judge.forget()
    judge.errors("torch", "float32", Size(24, 8))
    assert computed == [64, 24, 24]


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("backend", ["torch", pytest.param("jax", marks=pytest.mark.full)])
def test_a_round_is_of_gradient_steps(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(backend)
    worker = Worker(backend, "float32", stored=50, round_seconds=0.0, seed=0)
    ready = worker.prepare(Size(8, 8), 2)
    assert ready.first_seconds > 0
    assert ready.chosen
    assert worker.round().count % 2 == 0
    monkeypatch.setattr(amp_worker, "peak_memory", lambda backend: (100, "process"))
    assert worker.memory() == (100, "process")
    worker.forget()
    with pytest.raises(AssertionError, match="round before prepare"):
        worker.round()


def test_the_settings_of_a_precision_and_a_size_reach_the_agent(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    monkeypatch.setitem(PRECISIONS, "other", Precision(torch_matmul="highest", jax_matmul="highest", settings={"polyak": 0.25}))
    agent = amp_worker.make_agent("torch", "other", Size(8, 8), stored=50, seed=0, gradient_steps=2)
    assert (agent.cfg.polyak, agent.cfg.gradient_steps, agent.cfg.batch_size) == (0.25, 2, 8)
    agent = amp_worker.make_agent("torch", "other", Size(64, 16, "gru"), stored=50, seed=0)
    assert (agent.cfg.polyak, agent.cfg.batch_size, agent.cfg.sequence_length) == (0.25, 2, 32)
    assert agent.memory.arrays()["carry"].shape == (64, 16)


def test_the_low_precisions_are_mixed_and_float32_is_not() -> None:
    assert {name: dict(precision.settings) for name, precision in PRECISIONS.items()} == {
        "float32": {},
        "tf32": {},
        "bfloat16": {"mixed_precision": True, "precision": "bfloat16"},
        "float16": {"mixed_precision": True, "precision": "float16"},
    }


class Answers:
    """In the place of a worker: an echo that dies, or runs out of memory, when told to."""

    def prepare(self, what: str = "") -> int:
        if what == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "full":
            raise MemoryError
        return os.getpid()

    round = prepare

    def forget(self) -> None:
        pass


def test_a_process_that_the_system_killed_is_replaced() -> None:
    remote = Remote(Answers)
    try:
        first = remote.ask("prepare")
        assert isinstance(remote.ask("prepare", "full"), DoesNotFit)
        assert remote.ask("round") == first
        assert isinstance(remote.ask("prepare", "die"), DoesNotFit)
        assert remote.ask("round") != first
        with pytest.raises(RuntimeError, match=r"Answers.* ended at round\('die',\)"):
            remote.ask("round", "die")
    finally:
        remote.close()


@pytest.mark.parametrize(
    ("accelerator", "expected"),
    [(None, ("float32", "bfloat16", "float16")), ("A GPU", ("float32", "tf32", "bfloat16", "float16"))],
)
def test_tf32_is_measured_where_there_is_a_gpu(accelerator: str | None, expected: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "find_accelerator", lambda: accelerator)
    assert amp.precisions() == expected


def test_the_smallest_work_comes_first() -> None:
    sizes: list[Size] = amp.all_sizes(PRESETS["gpu"])
    assert len(sizes) == 40
    assert [size.recurrent for size in sizes] == [None] * 20 + ["gru"] * 20
    assert sizes[0] == Size(256, 256)
    assert sizes[19] == Size(16_384, 4_096)
    assert [amp.flops(size) for size in sizes[20:]] == sorted(amp.flops(size) for size in sizes[20:])
    assert amp.flops(sizes[0]) == update_flops(observation=17, action=6, hidden=(256, 256), batch=256)
    cell = {"size": 256, "gates": 3, "sequence_length": 32}
    assert amp.flops(sizes[20]) == recurrent_update_flops(observation=17, action=6, hidden=(256, 256), **cell, batch=8).total


def test_a_call_takes_fewer_gradient_steps_where_they_are_large() -> None:
    gpu = PRESETS["gpu"]
    assert [gpu.steps(size) for size in (Size(256, 256), Size(4_096, 2_048), Size(16_384, 4_096))] == [16, 7, 2]


def test_the_presets_are_what_they_promise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "find_accelerator", lambda: None)
    assert amp.estimated_seconds("smoke", 2) < 120
    assert 4 * 60 < amp.estimated_seconds("cpu", 2) < 8 * 60
    measured = [size for size in amp.all_sizes(PRESETS["cpu"]) if amp.flops(size) <= PRESETS["cpu"].largest_flops]
    assert {(size.recurrent, size.width) for size in measured} == {
        *((None, width) for width in (256, 1_024)),
        *(("gru", width) for width in (256, 1_024)),
    }
    # Of float16 on the CPU's torch the smallest size alone.
    assert [size for size in measured if amp.flops(size) <= PRESETS["cpu"].slow["torch", "float16"]] == [Size(256, 256)]
    monkeypatch.setattr(machine, "find_accelerator", lambda: "A GPU")
    left_out = [size for size in amp.all_sizes(PRESETS["gpu"]) if amp.flops(size) > PRESETS["gpu"].largest_flops]
    assert left_out == [Size(16_384, 4_096, "gru")]
    # A part at a time, each within ten minutes.
    assert max(piece.seconds for piece in amp.pieces(PRESETS["gpu"], 8, 0)) < 9 * 60
    assert amp.estimated_seconds("gpu", 8) < 2.5 * 3_600


def test_the_plan_says_what_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(runner, "bind", lambda threads: 2)
    monkeypatch.setattr(machine, "find_accelerator", lambda: None)
    assert amp.main(preset="cpu", results=tmp_path, dry_run=True) == 0
    said = capsys.readouterr().out
    assert "left out: GRU, batch 1,024, width 1,024: 157 GFLOP a gradient step" in said
    assert "left out: float16 of torch where a gradient step needs more than 1 GFLOP" in said
    assert not list(tmp_path.iterdir())
