"""Published points of SAC's learning curves, the yardstick of ours."""

import csv
import math
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
    """Of the population: the sum of squares over n."""
    seeds: int
    metric: str
    citation: str

    @property
    def name(self) -> str:
        """Of the source, as a reader knows it."""
        name = self.source.partition("@")[0].rpartition("/")[2]
        return {"tianshou": "Tianshou", "SimbaV2": "SimbaV2's SAC"}.get(name, name)

    @property
    def sample_std(self) -> float:
        """Over n - 1, as ours."""
        return self.std * math.sqrt(self.seeds / (self.seeds - 1))

    def comparable(self, env: str) -> bool:
        """Whether a task pays the reward of this one: it is of the same version, or HalfCheetah, whose reward never changed."""
        return env == f"{self.env}-{self.env_version}" or (self.env == "HalfCheetah" and env.startswith("HalfCheetah-"))


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
