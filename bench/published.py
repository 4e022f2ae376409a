"""Published points of SAC's learning curves, the yardstick of ours."""

import csv
from pathlib import Path
from typing import NamedTuple

REFERENCE = Path(__file__).parent / "reference" / "published_curves.csv"


class Published(NamedTuple):
    """A point of a published learning curve."""

    source: str
    env: str
    env_version: str
    steps: int
    mean: float
    std: float
    seeds: int
    metric: str
    citation: str


def published(env: str, steps: int) -> list[Published]:
    """The published points of a task of any version, up to `steps` (by a hundredth beyond: some count from another start)."""
    name = env.rpartition("-v")[0]
    with REFERENCE.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["env"] == name and int(row["steps"]) <= steps * 1.01]
    return [
        Published(
            source=row["source"],
            env=row["env"],
            env_version=row["env_version"],
            steps=int(row["steps"]),
            mean=float(row["mean"]),
            std=float(row["std"]),
            seeds=int(row["seeds"]),
            metric=row["metric"],
            citation=row["citation"],
        )
        for row in rows
    ]
