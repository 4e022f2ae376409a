"""The update suite: what it plans, how it times, and what it says of a size that does not fit."""

from pathlib import Path
from typing import Any

import pytest

from bench.core import machine, precisions, runner, synthetic
from bench.suites.update import measure as update
from bench.suites.update.measure import PRESETS, Sizes
from bench.suites.update.samples import UpdateCell

SIZES = Sizes(batches=(8,), widths=(8,), stored=(20, 50), rounds=2, round_seconds=0.0, largest_flops=1e12, call_flops=1e9)


class Fake:
    """An agent that counts its calls."""

    execution = "fast"

    def __init__(self, backend: str, log: list[str], **settings: Any) -> None:
        self.name = f"{backend} {settings['execution']} {settings['stored']}"
        self.log = log

    def update(self, *, timestep: int, timesteps: int) -> None:
        self.log.append(self.name)

    def synchronise(self) -> None:
        pass


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Agents that only note their calls, JAX missing."""
    log: list[str] = []

    def agent(backend: str, **settings: Any) -> Fake:
        if settings["batch_size"] > 100:
            raise RuntimeError("CUDA out of memory")
        return Fake(backend, log, **settings)

    monkeypatch.setattr(synthetic, "agent", agent)
    monkeypatch.setattr(runner, "missing_backends", lambda: {"jax": "no jax"})
    monkeypatch.setattr(update, "PRODUCTS", (16,))
    return log


def test_ways_take_turns_and_a_missing_backend_is_named(log: list[str]) -> None:
    pytest.importorskip("torch")
    found = update.measure_size(8, 8, SIZES, seed=0)
    # Two calls of each to warm up, then rounds of one call each in turn.
    assert [name.split()[1] for name in log[-4:]] == ["auto", "plain"] * 2
    assert [(cell.backend, cell.execution, cell.chosen, cell.missing, len(cell.timings)) for cell in found.cells] == [
        ("torch", "auto", "fast", None, 2),
        ("torch", "plain", "fast", None, 2),
        ("jax", "auto", None, "no jax", 0),
        ("jax", "plain", None, "no jax", 0),
    ]
    assert [cell.timings[0].count % cell.gradient_steps for cell in found.cells[:2]] == [0, 0]
    assert [cell.gradient_steps for cell in found.cells[:2]] == [16, 1]
    assert [(matmul.backend, matmul.size, len(matmul.timings)) for matmul in found.matmuls] == [("torch", 16, 2)]


def test_a_size_that_does_not_fit_is_said_to_and_the_products_are_timed(log: list[str]) -> None:
    pytest.importorskip("torch")
    found = update.measure_size(101, 8, SIZES, seed=0)
    assert [cell.missing for cell in found.cells[:2]] == ["does not fit the memory"] * 2
    assert len(found.matmuls[0].timings) == 2


def test_any_other_error_stops_the_suite(log: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(backend: str, **settings: Any) -> Fake:
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(synthetic, "agent", broken)
    with pytest.raises(RuntimeError, match="shapes differ"):
        update.measure_size(8, 8, SIZES, seed=0)


def test_stored_transitions_are_varied_in_memories_of_one_capacity(log: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    capacities: list[int] = []

    def agent(backend: str, **settings: Any) -> Fake:
        capacities.append(settings["capacity"])
        return Fake(backend, log, **settings)

    monkeypatch.setattr(synthetic, "agent", agent)
    found = update.measure_stored(SIZES, seed=0).stored
    assert capacities == [50, 50]
    assert log[-4:] == ["torch auto 20", "torch auto 50"] * 2
    assert [(cell.stored, len(cell.timings)) for cell in found if cell.backend == "torch"] == [(20, 2), (50, 2)]


def test_a_fused_call_holds_what_fits_and_at_least_two_steps() -> None:
    assert update.gradient_steps(256, 256, PRESETS["cpu"]) == 16
    # 34.0 GFLOP, and 40 to a call.
    assert update.gradient_steps(4_096, 512, PRESETS["cpu"]) == 2
    assert update.gradient_steps(1_024, 512, PRESETS["cpu"]) == 4
    assert update.gradient_steps(16_384, 2_048, PRESETS["gpu"]) == 16


def test_the_presets_plan_what_they_promise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "find_accelerator", lambda: None)
    names = {preset: [piece.name for piece in update.pieces(PRESETS[preset], 2, 0)] for preset in PRESETS}
    assert len(names["gpu"]) == 21
    assert set(names["gpu"]) - set(names["cpu"]) == {f"batch {b}, width {w}" for b, w in ((4096, 2048), (16384, 1024), (16384, 2048))}
    assert update.estimated_seconds("smoke", 2) < 60
    assert update.estimated_seconds("cpu", 2) < 20 * 60
    assert update.estimated_seconds("cpu", 1) > update.estimated_seconds("cpu", 2)


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_the_agent_of_a_cell_takes_its_gradient_steps(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(backend)
    used: list[tuple[str, str]] = []
    monkeypatch.setattr(precisions, "use", lambda backend, name: used.append((backend, name)))
    cell = UpdateCell(
        backend=backend,
        execution="plain",
        chosen=None,
        batch=8,
        width=8,
        stored=30,
        gradient_steps=3,
        flops=1,
        timings=[],
        compile_seconds=None,
        missing=None,
    )
    agent = update._agent(cell, capacity=40, seed=0)
    assert used == [(backend, "float32")]
    assert len(agent.memory) == 30
    assert agent.memory.capacity == 40
    agent.update(timestep=0, timesteps=1)
    agent.synchronise()
    assert agent.execution == "plain"
    assert int(agent.arrays()["gradient_steps"]) == 3


def test_the_plan_is_printed_and_nothing_measured_in_a_dry_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(runner, "bind", lambda threads: 2)
    monkeypatch.setattr(machine, "find_accelerator", lambda: None)
    assert update.main(preset="cpu", results=tmp_path, dry_run=True) == 0
    said = capsys.readouterr().out
    assert "left out: batch 4096, width 2048: 555 GFLOP a gradient step" in said
    assert "batch 256, width 256: about" in said
    assert not list(tmp_path.iterdir())
