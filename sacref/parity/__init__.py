"""Parity: PyTorch against JAX against a NumPy oracle written by hand, on the same weights, batches and noise."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from sacref.parity.compare import side_by_side
from sacref.parity.drivers import BACKENDS, Problem, implementations, installed_backends
from sacref.parity.report import Report

__all__ = ["Problem", "Report", "run"]


def run(
    *,
    updates: int = 1000,
    dtype: str = "float64",
    seed: int = 0,
    json: str | Path | None = None,
    problem: Problem | None = None,
    backends: Sequence[str] | None = None,
    on_update: Callable[[], None] = lambda: None,
) -> Report:
    """Drive the implementations side by side and compare losses, gradients, parameters and moments after every update.

    Args:
        updates: how many gradient steps.
        dtype: "float64", in which they must agree to rounding, or "float32", whose drift is recorded.
        seed: for weights, batches and noise.
        json: file to write the record to; the drift plot goes beside it.
        problem: sizes and settings; a 256-256 network on a task of HalfCheetah's size unless given. Its dtype and seed are set here.
        backends: "torch", "jax" or both; those that are installed unless given. The NumPy oracle is always there.
        on_update: called after each update, for a progress bar.

    Raises:
        ValueError: if `updates`, `dtype`, `seed`, `json` or a backend's name is not one of those above, or there is no pair to compare.
        ModuleNotFoundError: if a backend is named that is not installed.
    """
    if updates < 1:
        raise ValueError(f"parity: updates is {updates}, expected at least 1")
    if seed < 0:
        raise ValueError(f"parity: seed is {seed}, expected at least 0")
    if dtype not in ("float32", "float64"):
        raise ValueError(f"parity: dtype is {dtype!r}, expected 'float32' or 'float64'")
    chosen = installed_backends() if backends is None else list(backends)
    for backend in chosen:
        if backend not in BACKENDS:
            raise ValueError(f"parity: backend is {backend!r}, expected one of {', '.join(BACKENDS)}")
        if backend not in installed_backends():
            raise ModuleNotFoundError(f"parity: {backend} is not installed: pip install 'sacref[{backend}]'")
    if json is not None and Path(json).suffix == ".png":
        raise ValueError(f"parity: json is {str(json)!r}, where the plot goes: name a .json file")
    problem = replace(problem or Problem(), dtype=dtype, seed=seed)
    found = implementations(problem, chosen)
    if len(found) < 2:
        raise ValueError("parity: nothing to compare the NumPy oracle with: pip install 'sacref[torch]' or 'sacref[jax]'")
    traces = side_by_side(found, itertools.islice(problem.draws(), updates), on_update=lambda outcomes: on_update())
    report = Report(problem, updates, traces)
    if json is not None:
        report.write(Path(json).expanduser())
    return report
