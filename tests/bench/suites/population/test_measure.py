"""The population suite: what takes turns, and that members learn together."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.core import machine, precisions, runner, synthetic
from bench.suites.population import measure as population
from bench.suites.population.measure import PRESETS, Sizes, Together

SIZES = Sizes(members=(1, 3), widths=(8,), gradient_steps=2, rounds=2, round_seconds=0.0)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precisions, "use", lambda backend, name: None)
    monkeypatch.setattr(population, "STORED", 40)
    monkeypatch.setattr(population, "BATCH", 4)


def test_an_agent_alone_and_populations_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    monkeypatch.setattr(runner, "missing_backends", lambda: {"jax": "no jax"})
    made: list[Any] = []
    make = synthetic.agent

    def agent(*arguments: Any, **settings: Any) -> Any:
        made.append(make(*arguments, **settings))
        return made[-1]

    monkeypatch.setattr(synthetic, "agent", agent)
    found = population.measure(SIZES, 8, seed=5).cells
    assert [(cell.backend, cell.members, cell.missing, len(cell.timings)) for cell in found] == [
        ("torch", 1, None, 2),
        ("jax", 1, "no jax", 0),
        ("torch", 3, None, 2),
        ("jax", 3, "no jax", 0),
    ]
    # A round of a call of two gradient steps: of each member.
    assert [cell.timings[0].count for cell in found if cell.timings] == [2, 2]
    assert [agent.cfg.seed for agent in made] == [5, 5, 6, 7]
    assert [agent.cfg.batch_size for agent in made] == [4] * 4
    taken = [agent.gradient_step_count for agent in made]
    assert taken[1] == taken[2] == taken[3] > 0


# tests/training/test_population has JAX's members, too.
@pytest.mark.parametrize("backend", ["torch", pytest.param("jax", marks=pytest.mark.full)])
def test_members_learn_what_each_learns_alone(backend: str) -> None:
    pytest.importorskip(backend)
    (cell,) = (cell for cell in population.cells(SIZES, 8) if (cell.backend, cell.members) == (backend, 3))
    alone = population._agent(cell, 1)
    alone.update(timestep=0, timesteps=1)
    together = Together(cell, 0)
    together.update(timestep=0, timesteps=1)
    together.synchronise()
    assert together.execution == alone.execution
    found = together.agents[1].arrays()
    for name, array in alone.arrays().items():
        np.testing.assert_allclose(found[name], array, rtol=1e-3, atol=1e-6, err_msg=name)


def test_the_presets_are_what_they_promise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "find_accelerator", lambda: None)
    assert PRESETS["gpu"].members == (1, 2, 5, 10, 20, 50)
    assert all(sizes.members[0] == 1 for sizes in PRESETS.values())
    assert population.estimated_seconds("smoke", 2) < 60
    assert population.estimated_seconds("cpu", 2) < 300


def test_the_plan_is_printed_and_nothing_measured_in_a_dry_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(runner, "bind", lambda threads: 2)
    monkeypatch.setattr(machine, "find_accelerator", lambda: None)
    assert population.main(preset="cpu", results=tmp_path, dry_run=True) == 0
    said = capsys.readouterr().out
    assert "networks of 64: about" in said
    assert "population-cpu-2cores: 2 of 2 to do, together about" in said
    assert not list(tmp_path.iterdir())
