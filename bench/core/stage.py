"""The stages of `python -m bench`: what each suite has left to measure, how long it takes, and the process that measures it."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from bench.core import machine

Preset = Literal["smoke", "cpu", "gpu"]


class Choices(NamedTuple):
    """The choices that every suite makes its stages from."""

    preset: Preset
    results: Path
    """Folder of all records, with a folder for each suite."""
    learning_preset: str | None = None
    """Training runs of the learning suite; None for those that fit the machine."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A part of the whole."""

    name: str
    seconds: float
    """Estimated; 0 for what is recorded already."""
    run: Callable[[], int]
    """Measures and writes the record; returns the exit status."""


def module(*arguments: str) -> int:
    """Run `python -m` with these arguments in its own process, which binds itself to cores before it loads its libraries."""
    try:
        return subprocess.run([sys.executable, "-m", *arguments], cwd=machine.ROOT, check=False).returncode
    except KeyboardInterrupt:
        return 130
