"""One run of a sweep: a `sacref train` in a process of its own, the same here and on a cluster's node."""

import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sacref.storage.checkpoint import read_json

PROGRAM: Sequence[str] = (sys.executable, "-m", "sacref", "train")
LOG = "train.log"
"""In the run directory: what the process printed, all attempts."""
SUBMITTED = "# submitted to Slurm"
BEGINNINGS = ("$ ", SUBMITTED)
"""Beginnings of the lines that part one attempt in the log from the next: its command, and where it waits for a node."""


@dataclass(frozen=True)
class Process:
    """Command and variables that start a run, or go on with it."""

    directory: Path
    arguments: Sequence[str]
    environment: Mapping[str, str]
    """Variables that are set beside those that the machine has."""

    def command(self) -> list[str]:
        """Return the command that goes on from the last checkpoint, or begins; decided when the process starts, not when it is planned."""
        begun = any(path.name.removeprefix("agent_").isdecimal() for path in (self.directory / "checkpoints").glob("agent_*"))
        how = ["--resume"] if begun else ["--overwrite"]
        return [*PROGRAM, *self.arguments, *how, "--run-dir", str(self.directory)]

    def announce(self, line: str) -> None:
        """Begin an attempt in the log: what was printed before is that of another one."""
        self.directory.mkdir(parents=True, exist_ok=True)
        with open(self.directory / LOG, "ab") as log:
            log.write(f"{line}\n".encode())

    def start(self, **options: Any) -> "subprocess.Popen[bytes]":
        """Start it; `options` are those of `subprocess.Popen`."""
        command = self.command()
        self.announce(f"$ {shlex.join(command)}")
        with open(self.directory / LOG, "ab") as log:
            environment = {**os.environ, **self.environment}
            return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, **options)


def threads() -> dict[str, str]:
    """Return the variables that give each run one thread, unless OMP_NUM_THREADS says otherwise.

    Torch splits a sum among its threads, so that their number is in the numbers: with as many threads as a machine has cores, two machines
    would give two results. And runs beside each other would fight for the cores. PJRT_NPROC is how XLA is told.
    """
    count = os.environ.get("OMP_NUM_THREADS", "1")
    return {"OMP_NUM_THREADS": count, "PJRT_NPROC": os.environ.get("PJRT_NPROC", count)}


def last_evaluation(directory: Path) -> dict[str, Any] | None:
    """Read step and mean return of a run's last evaluation; None before the first."""
    try:
        entries = read_json(directory / "evaluation.json")
        return {"step": int(entries[-1]["step"]), "mean": float(entries[-1]["mean"])}
    except (OSError, ValueError, LookupError, TypeError):
        return None


def stopped_by_a_callback(directory: Path) -> bool:
    """Tell whether a callback ended the last attempt of a run, before its last step."""
    return any(line.startswith("stopped by ") for line in _last_attempt(directory))


def _last_attempt(directory: Path) -> list[str]:
    """Return what the last attempt of a run printed, the last line first."""
    try:
        lines = (directory / LOG).read_text(errors="replace").splitlines()
    except OSError:
        return []
    attempt: list[str] = []
    for line in reversed(lines):
        if line.startswith(BEGINNINGS):
            break
        if line.strip():
            attempt.append(line.strip())
    return attempt


def reason(directory: Path) -> str:
    """Return why a run failed: the last line of its last attempt."""
    attempt = _last_attempt(directory)
    errors = [line for line in attempt if line.startswith("sacref: ")]
    return (errors or attempt or ["it printed nothing"])[0]
