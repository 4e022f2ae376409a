"""The recurrent suite: who takes turns, that a gradient step has as many rows everywhere, and that the agents are those of the cells."""

from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from bench.core import machine, precisions, runner, synthetic
from bench.core.flops import update_flops
from bench.suites.recurrent import measure as recurrent
from bench.suites.recurrent.measure import PRESETS, Sizes

SIZES = Sizes(lengths=(4, 16), gradient_steps=3, rounds=2, round_seconds=0.0)


class Fake:
    """An agent that notes its calls."""

    execution = "fast"

    def __init__(self, backend: str, log: list[str], **settings: Any) -> None:
        self.name = f"{backend} {settings['execution']} {settings['recurrent']} {settings['batch_size']}"
        self.log = log

    def update(self, *, timestep: int, timesteps: int) -> None:
        self.log.append(self.name)

    def synchronise(self) -> None:
        pass


def test_agents_take_turns_and_products_are_of_the_recurrence(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    log: list[str] = []
    monkeypatch.setattr(synthetic, "agent", lambda backend, **settings: Fake(backend, log, **settings))
    monkeypatch.setattr(runner, "missing_backends", lambda: {"jax": "no jax"})
    monkeypatch.setattr(recurrent, "SQUARE", 16)
    found = recurrent.measure(SIZES, seed=0)
    turn = [f"torch {way} {agent}" for agent in ("None 1024", "gru 256", "gru 64") for way in ("auto", "plain")]
    assert log[-12:] == turn * 2
    assert [(cell.backend, cell.missing) for cell in found.cells if not cell.timings] == [("jax", "no jax")] * 6
    assert {cell.timings[0].count for cell in found.cells if cell.execution == "auto" and cell.timings} == {3}
    shapes = [(one.backend, one.rows, one.inner, one.columns, len(one.timings)) for one in found.products]
    assert shapes == [("torch", 256, 128, 384, 2), ("torch", 64, 128, 384, 2), ("torch", 16, 16, 16, 2)]


def test_a_gradient_step_has_as_many_rows_everywhere() -> None:
    cells = recurrent.cells(SIZES)
    assert {cell.batch * cell.sequence_length for cell in cells} == {1_024}
    plain = next(cell for cell in cells if cell.recurrent is None)
    assert plain.flops == update_flops(observation=17, action=6, hidden=(128, 128), batch=1_024)
    assert (plain.recurrence_flops, plain.cell_steps) == (0, 0)
    short, long = (next(cell for cell in cells if cell.sequence_length == length) for length in (4, 16))
    # Forward the policy and two targets over a step more; two critics, the policy, two critics; backward two critics and the policy.
    assert (short.cell_steps, long.cell_steps) == (3 * 5 + 8 * 4, 3 * 17 + 8 * 16)
    assert plain.flops < long.flops < short.flops  # The step more weighs less in long sequences.


def test_the_presets_are_what_they_promise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "find_accelerator", lambda: None)
    assert all(recurrent.ROWS % length == 0 for sizes in PRESETS.values() for length in sizes.lengths)
    assert 32 in PRESETS["cpu"].lengths
    assert 32 in PRESETS["gpu"].lengths
    assert recurrent.estimated_seconds("smoke", 2) < 60
    assert recurrent.estimated_seconds("cpu", 2) < 150


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_the_agent_of_a_cell_is_as_the_cell_says(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(backend)
    used: list[tuple[str, str]] = []
    monkeypatch.setattr(precisions, "use", lambda backend, name: used.append((backend, name)))
    monkeypatch.setattr(recurrent, "STORED", 40)
    cell = next(cell for cell in recurrent.cells(SIZES) if (cell.backend, cell.execution, cell.sequence_length) == (backend, "auto", 4))
    agent = recurrent._agent(replace(cell, batch=2), seed=0)
    assert used == [(backend, "float32")]
    assert (agent.cfg.sequence_length, agent.cfg.batch_size, agent.cfg.gradient_steps) == (4, 2, 3)
    assert agent.memory.arrays()["carry"].shape == (40, 128)
    assert agent.execution != "plain"


def test_an_agent_takes_its_gradient_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    monkeypatch.setattr(precisions, "use", lambda backend, name: None)
    monkeypatch.setattr(recurrent, "STORED", 40)
    cell = next(cell for cell in recurrent.cells(SIZES) if (cell.backend, cell.execution, cell.sequence_length) == ("torch", "plain", 4))
    agent = recurrent._agent(replace(cell, batch=2, gradient_steps=2), seed=0)
    agent.update(timestep=0, timesteps=1)
    agent.synchronise()
    assert int(agent.arrays()["gradient_steps"]) == 2
    assert agent.execution == "plain"


def test_the_plan_is_printed_and_nothing_measured_in_a_dry_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(runner, "bind", lambda threads: 2)
    monkeypatch.setattr(machine, "find_accelerator", lambda: None)
    assert recurrent.main(preset="cpu", results=tmp_path, dry_run=True) == 0
    assert "recurrent-cpu-2cores: 1 of 1 to do, together about" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())
