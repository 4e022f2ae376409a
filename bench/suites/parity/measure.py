"""Parity of both backends and the oracle, which `sacref parity` measures, in float64 and in float32."""

from functools import partial
from pathlib import Path

import sacref
from bench.core import machine, runner, stage
from bench.core.stage import Choices, Preset, Stage

SECONDS = 90.0
"""For the estimate: a thousand updates."""
UPDATES = {"smoke": 100, "cpu": 1_000, "gpu": 1_000}


def main(*, preset: Preset | None = None, results: Path | None = None) -> int:
    """Record the parity of both precisions that this version has not recorded on this kind of machine.

    Args:
        preset: smoke (100 updates), cpu or gpu (1,000); None for cpu or gpu, as the machine is.
        results: folder for the records; None for results/parity, and for runs/smoke/parity with the preset smoke.

    Returns:
        Exit status: that of the first precision that failed, else 0.
    """
    preset = preset or runner.default_preset()
    for each in _stages((results or runner.default_results("parity", preset)).absolute(), preset):
        if each.seconds and (status := each.run()):
            return status
    return 0


def stages(choices: Choices) -> list[Stage]:
    """Return this suite's part of `python -m bench`: a stage for each precision."""
    return _stages(choices.results / "parity", choices.preset)


def _stages(folder: Path, preset: Preset) -> list[Stage]:
    updates = UPDATES[preset]
    return [
        Stage(
            name=f"parity in {dtype}",
            seconds=0.0 if path.exists() else SECONDS * updates / 1_000,
            run=partial(compare, dtype, path, updates),
        )
        for dtype in ("float64", "float32")
        for path in [_path(folder, dtype)]
    ]


def record_path(results: Path, dtype: str) -> Path:
    """Return the path of the record of this version on this kind of machine."""
    return _path(results / "parity", dtype)


def _path(folder: Path, dtype: str) -> Path:
    here = machine.slug(machine.hardware(machine.find_accelerator()))
    return folder / f"{sacref.__version__}-{here}" / f"{dtype}.json"


def compare(dtype: str, path: Path, updates: int) -> int:
    """Record how far the backends and the oracle drift apart; return the exit status of `sacref parity`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return stage.module("sacref", "parity", "--updates", str(updates), "--dtype", dtype, "--json", str(path))
