"""Parity of both backends and the oracle, which `sacref parity` measures, in float64 and in float32."""

from functools import partial
from pathlib import Path

import sacref
from bench.core import machine, stage
from bench.core.stage import Choices, Stage

SECONDS = 90.0
"""For the estimate: a thousand updates."""
UPDATES = {"smoke": 100, "cpu": 1_000, "gpu": 1_000}


def stages(choices: Choices) -> list[Stage]:
    """Return this suite's part of `python -m bench`: a stage for each precision."""
    updates = UPDATES[choices.preset]
    return [
        Stage(
            name=f"parity in {dtype}",
            seconds=0.0 if path.exists() else SECONDS * updates / 1_000,
            run=partial(compare, dtype, path, updates),
        )
        for dtype in ("float64", "float32")
        for path in [record_path(choices.results, dtype)]
    ]


def record_path(results: Path, dtype: str) -> Path:
    """Return the path of the record of this version on this kind of machine."""
    here = machine.slug(machine.hardware(machine.find_accelerator()))
    return results / "parity" / f"{sacref.__version__}-{here}" / f"{dtype}.json"


def compare(dtype: str, path: Path, updates: int) -> int:
    """Record how far the backends and the oracle drift apart; return the exit status of `sacref parity`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return stage.module("sacref", "parity", "--updates", str(updates), "--dtype", dtype, "--json", str(path))
