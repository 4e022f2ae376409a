"""All curves as tables for other programs: `curves.csv`, which `sacref plot` draws, and `curves.npz`, whose scores have rliable's axes."""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.core import statistics
from bench.core.page import place
from bench.suites.learning import runs
from bench.suites.learning.runs import Group

COLUMNS = ("preset", "env", "backend", "seed", "step", "return", "std", "episodes", "settings", "sacref_version", "machine")


def files(groups: Sequence[Group], folder: Path) -> dict[Path, bytes]:
    """Return the tables of the groups, one of each preset, by path; none without groups."""
    if not groups:
        return {}
    return {folder / "curves.csv": _csv(groups), folder / "curves.npz": _npz(groups)}


def _csv(groups: Sequence[Group]) -> bytes:
    """Write a row for each evaluation of each seed; `return` is the mean of its episodes, `std` their standard deviation."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for group in groups:
        settings = json.dumps({**group.settings, **group.arguments})
        for backend, members in group.runs.items():
            for run in members:
                for each in run.samples.evaluations:
                    drawn = f"{statistics.mean(each.returns):.6g}", f"{np.std(each.returns):.6g}", len(each.returns)
                    where = group.preset, group.env, backend, run.seed, each.step
                    writer.writerow([*where, *drawn, settings, group.version, place(run.hardware)])
    return text.getvalue().encode()


def _npz(groups: Sequence[Group]) -> bytes:
    """Write, for each preset and backend, the scores `(runs, tasks, evaluations)`, of one task, and the steps and seeds beside them."""
    arrays: dict[str, Any] = {}
    for group in groups:
        for backend, members in group.runs.items():
            steps, name = runs.steps(members), f"{group.preset}/{backend}"
            arrays[f"{name}/scores"] = np.array([[[runs.after(run, step) for step in steps]] for run in members])
            arrays[f"{name}/steps"] = np.array(steps)
            arrays[f"{name}/seeds"] = np.array([run.seed for run in members])
    content = io.BytesIO()
    np.savez(content, **arrays)
    return content.getvalue()
