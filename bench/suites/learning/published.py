"""Published points of SAC's learning curves, which ours are compared with, and their settings."""

import csv
import math
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bench.suites.learning.presets import ALIKE, TASKS
from sacref.config import SACConfig, paper_config

REFERENCE = Path(__file__).parent / "reference"
UNKNOWN = "unknown"
NAMES = {
    "tianshou": "Tianshou",
    "SimbaV2": "SimbaV2's SAC",
    "simba": "SimBa's SAC",
    "rl-trained-agents": "SB3's zoo",
    "gymnasium-mujuco-v5-envs-validation": "SB3",
}
"""Repository -> the name that a reader knows it by; else its own."""
MILESTONES = (50_000, 100_000, 200_000, 500_000, 1_000_000)
"""Environment steps at which a curve that is published seed by seed is compared."""
DRAWN = "learned from exp(N(0, 1))"
"""Temperature that starts at random in each run; the median is 1, where the paper's settings start here."""


class Settings(NamedTuple):
    """Choices that move a return, as text; "unknown" where no file of a source says them."""

    policy_learning_rate: str
    critic_learning_rate: str
    entropy_learning_rate: str
    target_entropy: str
    """Multiple of the number of action dimensions."""
    temperature: str
    """Either "learned from" its start or "fixed at" a value."""
    batch_size: str
    random_steps: str
    """Environment steps with uniform actions, after which learning starts."""
    updates_per_step: str
    action_repeat: str
    """Steps of the task for which an action acts: one step of the agent."""
    hidden: str
    """Widths of the hidden layers."""
    first_std: str
    """Standard deviation of the policy's Gaussian before it learns, about."""
    others: tuple[str, ...] = ()
    """Settings of ours beyond these that differ from plain SAC, each as "name value"."""

    def differences(self, theirs: "Settings") -> list[str]:
        """List the settings in which a source differs from these, or may differ; the starts that `remark` tells of are none."""
        values = {name: (getattr(theirs, name), getattr(self, name)) for name in SETTINGS}
        if all(published == UNKNOWN for published, _ in values.values()):
            return [UNKNOWN]
        del values["first_std"]
        if self._draws_around(theirs):
            del values["temperature"]
        different = {name: pair for name, pair in values.items() if pair[0] != pair[1]}
        said = [f"{name.replace('_', ' ')} {published} (here {own})" for name, (published, own) in different.items()]
        return [*said, *(f"{other} here" for other in self.others)]

    def remark(self, theirs: "Settings") -> str:
        """Say what starts elsewhere at a source: a temperature drawn around this one's, the policy's deviation; empty if nothing."""
        said = [f"its temperature is {DRAWN}, ours from 1"] if self._draws_around(theirs) else []
        if theirs.first_std not in (UNKNOWN, self.first_std):
            said.append(f"its policy's standard deviation starts at {theirs.first_std}, ours at {self.first_std}")
        return "; ".join(said)

    def _draws_around(self, theirs: "Settings") -> bool:
        """Tell whether a source draws the start of its temperature around this one's."""
        return theirs.temperature == DRAWN and self.temperature == "learned from 1"


SETTINGS = tuple(name for name in Settings._fields if name != "others")
"""Fields that a published source and a run of ours both have."""


class Published(NamedTuple):
    """A point of a published learning curve."""

    source: str
    env: str
    env_version: str
    steps: int
    mean: float
    std: float
    """Population standard deviation: the sum of squares over n."""
    seeds: int
    metric: str
    citation: str
    settings: Settings
    curves: tuple[Mapping[int, float], ...] = ()
    """Return of each seed after each number of environment steps up to `steps`; empty where only mean and deviation are known."""

    @property
    def name(self) -> str:
        """Name of the source, as a reader knows it."""
        name = self.source.partition("@")[0].rpartition("/")[2]
        return NAMES.get(name, name)

    @property
    def sample_std(self) -> float:
        """Standard deviation over n - 1, as ours; 0 for a single seed."""
        return self.std * math.sqrt(self.seeds / (self.seeds - 1)) if self.seeds > 1 else 0.0

    def comparable(self, env: str) -> bool:
        """Return True if a task is this one: the same version, or one of `ALIKE`."""
        name, _, version = env.rpartition("-")
        return name == self.env and (version == self.env_version or {version, self.env_version} <= set(ALIKE.get(name, ())))


def published(env: str, steps: int) -> list[Published]:
    """Read the published points of a task of any version, up to `steps` (by a hundredth beyond: some count from another start).

    Curves that are published seed by seed give a point at each of `MILESTONES`.
    """
    name = env.rpartition("-v")[0]
    settings = _settings()
    found = [
        Published(
            source=row["source"],
            env=name,
            env_version=row["env_version"],
            steps=int(row["steps"]),
            mean=float(row["mean"]),
            std=float(row["std"]),
            seeds=int(row["seeds"]),
            metric=row["metric"],
            citation=row["citation"],
            settings=settings[row["source"]],
        )
        for row in _rows("published_curves.csv")
        if row["env"] == name
    ]
    return [point for point in (*found, *_by_seed(name)) if point.steps <= steps * 1.01]


def settings_of(env: str, changed: Mapping[str, Any], *, repeated: bool = False) -> Settings:
    """Describe runs of ours in the terms of the published ones.

    Args:
        env: name of the task.
        changed: fields of `SACConfig` that differ from the paper's settings.
        repeated: whether an action acts for two steps (`presets.REPEATED`).
    """
    cfg = SACConfig.from_dict({**paper_config().to_dict(), **changed})
    policy, critic, entropy = (f"{rate:g}" for rate in cfg.learning_rates)
    named = {"learning_rate", "learn_entropy", "initial_entropy_value", "target_entropy"}
    named |= {"batch_size", "random_timesteps", "learning_starts", "update_to_data", "gradient_steps"}
    others = [f"{name.replace('_', ' ')} {value}" for name, value in changed.items() if name not in named]
    if cfg.learning_starts != cfg.random_timesteps:
        others.append(f"learning starts {cfg.learning_starts}")
    return Settings(
        policy_learning_rate=policy,
        critic_learning_rate=critic,
        entropy_learning_rate=entropy if cfg.learn_entropy else "none",
        target_entropy=_multiple(cfg.target_entropy, env) if cfg.learn_entropy else "none",
        temperature=f"{'learned from' if cfg.learn_entropy else 'fixed at'} {cfg.initial_entropy_value:g}",
        batch_size=f"{cfg.batch_size}",
        random_steps=f"{cfg.random_timesteps}",
        updates_per_step=f"{cfg.gradient_steps_per_timestep(1):g}",
        action_repeat="2" if repeated else "1",
        hidden="256x256",
        first_std="1",
        others=tuple(others),
    )


def _multiple(target_entropy: float | None, env: str) -> str:
    """Format a target entropy as a multiple of the task's action dimensions."""
    dimensions = TASKS.get(env.rpartition("-v")[0])
    if target_entropy is None:
        return "-dim(A)"
    shares = {-1.0: "-dim(A)", -0.5: "-dim(A)/2"}
    return shares.get(target_entropy / dimensions, f"{target_entropy:g}") if dimensions else f"{target_entropy:g}"


def _by_seed(name: str) -> Iterator[Published]:
    curves: dict[tuple[str, str], dict[str, dict[int, float]]] = {}
    about: dict[tuple[str, str], tuple[str, str]] = {}
    for row in _rows("per_seed_curves.csv"):
        if row["env"] == name:
            key = row["source"], row["env_version"]
            curves.setdefault(key, {}).setdefault(row["seed"], {})[int(row["steps"])] = float(row["return"])
            about.setdefault(key, (row["metric"], row["citation"]))
    for (source, version), seeds in curves.items():
        common = set.intersection(*(set(curve) for curve in seeds.values()))
        for steps in sorted(common.intersection(MILESTONES)):
            returns = [curve[steps] for curve in seeds.values()]
            metric, citation = about[source, version]
            yield Published(
                source=source,
                env=name,
                env_version=version,
                steps=steps,
                mean=float(np.mean(returns)),
                std=float(np.std(returns)),
                seeds=len(returns),
                metric=metric,
                citation=citation,
                settings=_settings()[source],
                curves=tuple({step: value for step, value in curve.items() if step <= steps} for curve in seeds.values()),
            )


@cache
def _settings() -> dict[str, Settings]:
    return {row["source"]: Settings._make((*(row[name] for name in SETTINGS), ())) for row in _rows("settings.csv")}


@cache
def _rows(file: str) -> list[dict[str, str]]:
    with (REFERENCE / file).open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))
