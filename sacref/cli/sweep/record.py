"""`sweep.json`: the runs of a sweep, how far each is, and their returns."""

import logging
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import sacref
from sacref.cli.flags import SweepError
from sacref.cli.sweep.grid import FILE, Run
from sacref.cli.sweep.process import last_evaluation, stopped_by_a_callback
from sacref.storage import checkpoint

logger: logging.Logger = logging.getLogger(__name__)

FREE = ("steps", "device", "vectorization")
"""Flags that may change between two calls of a sweep: those that a run can be resumed with, and that leave a finished one as it is."""


class Record:
    """Record of a sweep's runs; every change is written at once, or with the next one where it cannot be.

    Args:
        directory: of the sweep.
        file: of the sweep.
        on: where the runs run, "local" or "slurm".
        runs: of this call. Those of earlier calls that are not among them stay in the record as they are.

    Raises:
        SweepError: if one of the runs' directories holds another run.
    """

    def __init__(self, directory: Path, file: Path, on: str, runs: Sequence[Run]) -> None:
        self._path = directory / FILE
        self._head = {"sacref": sacref.__version__, "file": str(file), "on": on}
        self._runs = runs
        before = _read(self._path)
        for run in runs:
            _refuse_another(run, before.get(run.name))
        self._entries: dict[str, dict[str, object]] = {
            run.name: {
                "directory": run.name,
                "values": dict(run.values),
                "flags": _flags(run),
                "state": "waiting",
                "evaluation": last_evaluation(run.directory),
                "job": before.get(run.name, {}).get("job"),
                "error": None,
            }
            for run in runs
        }
        self._others = [entry for name, entry in before.items() if name not in self._entries]
        for run in runs:
            was = before.get(run.name, {})
            # A callback's end counts while the flags stay the same: others ask for another run.
            ended = was.get("flags") == _flags(run) and stopped_by_a_callback(run.directory)
            if finished(run) or (ended and self._entries[run.name]["evaluation"] is not None):
                self._entries[run.name] |= {"state": "done", "job": None}
        self.write()

    def __getitem__(self, run: Run) -> dict[str, Any]:
        return self._entries[run.name]

    def named(self, state: str) -> list[Run]:
        """Return the runs in a state: "waiting", "running", "done" or "failed"."""
        return [run for run in self._runs if self[run]["state"] == state]

    def update(self, changes: Mapping[str, Mapping[str, object]]) -> None:
        """Set fields of runs by the runs' names."""
        changed = False
        for name, fields in changes.items():
            changed |= any(self._entries[name][key] != value for key, value in fields.items())
            self._entries[name] |= fields
        if changed:
            try:
                self.write()
            except (OSError, checkpoint.CheckpointError) as error:
                # The runs go on by themselves, and are to be watched: the next change writes this one, too.
                logger.warning("%s is not written: %s. The sweep goes on", self._path, error)

    def write(self) -> None:
        entries = [*self._entries.values(), *self._others]
        checkpoint.write_json(self._path, {**self._head, "runs": entries, "returns": self.returns()})

    def returns(self) -> list[dict[str, object]]:
        """Return mean and sample standard deviation over the seeds that are done, for each other combination of the grid."""
        groups: dict[str, dict[str, Any]] = {}
        for run in self.named("done"):
            values = {"env": run.env, "backend": run.backend, **{name: value for name, value in run.values.items() if name != "seed"}}
            group = groups.setdefault(repr(values), {"values": values, "seeds": [], "means": []})
            group["seeds"].append(run.seed)
            group["means"].append(self[run]["evaluation"]["mean"])
        return [
            {
                "values": group["values"],
                "seeds": group["seeds"],
                "mean": float(np.mean(group["means"])),
                "std": float(np.std(group["means"], ddof=1)) if len(group["means"]) > 1 else None,
            }
            for group in groups.values()
        ]


def finished(run: Run) -> bool:
    """Return whether a run has been evaluated after its last step."""
    evaluation = last_evaluation(run.directory)
    return evaluation is not None and evaluation["step"] >= run.steps


def _read(path: Path) -> dict[str, dict[str, object]]:
    if not path.exists():
        return {}
    try:
        return {str(entry["directory"]): dict(entry) for entry in checkpoint.read_json(path)["runs"]}
    except (ValueError, KeyError, TypeError) as error:
        raise SweepError(f"{path} is damaged ({error}): choose another --run-dir, or restore it") from error


def _refuse_another(run: Run, before: Mapping[str, Any] | None) -> None:
    """Refuse a directory whose run was made with other settings."""
    if not (run.directory / "config.json").exists():
        return
    fix = "choose another --run-dir, or delete that directory"
    if before is None:
        raise SweepError(f"{run.directory} holds a run that this sweep did not make: {fix}")
    wanted, stored = _flags(run), before["flags"]
    differing = [name for name in sorted(wanted.keys() | stored.keys()) if wanted.get(name) != stored.get(name)]
    # A free one that the file leaves out would be taken from the run.
    changed = [name for name in differing if name not in FREE or name not in wanted]
    if changed:
        default = "the default"
        lines = [f"  {name}: it has {stored.get(name, default)}, the file says {wanted.get(name, default)}" for name in changed]
        raise SweepError("\n".join([f"{run.directory} was made with other flags: {fix}", *lines]))
    evaluation = last_evaluation(run.directory)
    if evaluation is not None and evaluation["step"] > run.steps:
        raise SweepError(f"{run.directory} has {evaluation['step']:,} steps already, the file says {run.steps:,}: {fix}")


def _flags(run: Run) -> dict[str, str]:
    return {name: shlex.join(words) for name, words in run.flags.items()}
