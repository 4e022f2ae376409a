"""The executions suite: what an agent chooses is held against plain, and a difference is seen."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.core import precisions, record
from bench.core.record import Hardware
from bench.suites.executions import measure as executions
from bench.suites.executions import section
from bench.suites.executions.samples import ExecutionCell, ExecutionsSamples


@pytest.fixture(autouse=True)
def process_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precisions, "use", lambda backend, name: None)


# tests/agent/test_fused_step holds JAX's to plain as well.
@pytest.mark.parametrize("backend", ["torch", pytest.param("jax", marks=pytest.mark.full)])
def test_an_agent_that_chooses_agrees_with_plain_in_float64(backend: str) -> None:
    pytest.importorskip(backend)
    (cell,) = executions.measure(backend, "SAC", 10, 0).cells
    assert cell.execution not in (None, "plain") and cell.dtype == "float64"
    assert cell.difference is not None and cell.difference < 1e-9


@pytest.mark.full
@pytest.mark.parametrize("backend", ["torch", "jax"])
@pytest.mark.parametrize(("case", "most"), [("SAC_RNN", 1e-9), ("AMP", 0.1), ("population", 1e-2)])
def test_the_other_cases_agree_too(backend: str, case: Any, most: float) -> None:
    pytest.importorskip(backend)
    (cell,) = executions.measure(backend, case, 20, 0).cells
    assert cell.difference is not None and cell.difference < most


def test_the_largest_difference_is_relative_to_its_array() -> None:
    beside = {"a": np.array([1.0, -4.0]), "b": np.array([0.0]), "c": np.zeros(0)}
    assert executions.largest_difference(beside, beside) == 0.0
    assert executions.largest_difference({**beside, "a": np.array([1.0, -3.0])}, beside) == 0.25
    assert executions.largest_difference({**beside, "b": np.array([0.5])}, beside) == 0.5
    assert math.isnan(executions.largest_difference({**beside, "a": np.array([1.0, np.nan])}, beside))
    with pytest.raises(ValueError, match=r"arrays \['c'\] are on one side alone, expected the same on both"):
        executions.largest_difference({"a": beside["a"], "b": beside["b"]}, beside)


def test_the_report_names_the_largest_difference_of_float64(tmp_path: Path) -> None:
    def cell(case: Any, dtype: str, difference: float | None, missing: str | None = None) -> ExecutionCell:
        return ExecutionCell(backend="jax", case=case, execution="scan", dtype=dtype, updates=100, difference=difference, missing=missing)

    cells = [
        cell("SAC", "float64", 2e-13),
        cell("SAC_RNN", "float64", 3e-12),
        cell("AMP", "float32", 0.01),
        cell("population", "float32", None),
    ]
    found = record.make(
        ExecutionsSamples(cells=cells),
        run="executions-gpu-4cores",
        source=(None, True),
        configuration={"preset": "gpu"},
        hardware=Hardware(cpu_model="A CPU", cores=4, threads=4, memory_bytes=2**30, accelerator="A GPU"),
        libraries={},
        seed=0,
    )
    record.write_new(tmp_path / "executions", found)
    made = section.section(tmp_path)
    page = "\n".join(made.paragraphs)
    assert "| jax | AMP | scan | float32 | 100 | 1.0e-02 |" in page and "| jax | population | scan | float32 | 100 | not finite |" in page
    assert [finding.found for finding in made.findings] == ["largest relative difference 3.0e-12"]
