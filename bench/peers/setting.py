"""Input and output of every contender."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

ENDLESS = 10**9
"""A number of steps that no run reaches: a contender trains until it is stopped."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """The task: one gradient step for each step of the vector environment, float32 throughout."""

    env: str
    """Gymnasium id. Its steps are counted: see `bench.peers.gate`."""
    seed: int
    random_steps: int
    """Environment steps before the first gradient step."""
    batch_size: int = 256
    learning_rate: float = 3e-4
    memory_capacity: int = 1_000_000
    hidden: Sequence[int] = (256, 256)
    """Widths of the hidden layers. CleanRL's and LeanRL's scripts and skrl's have these, and know one environment."""
    num_envs: int = 1


@dataclass(frozen=True, kw_only=True)
class Trainer:
    """A contender that is ready to train."""

    train: Callable[[], object]
    """Trains for ever."""
    execution: str
    """Execution of its gradient steps."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Differences from the `Setting`."""
    parts: Mapping[str, Sequence[tuple[Any, str]]] = field(default_factory=dict)
    """Part of a timestep -> the calls that do it, each an object (or a class, for all of its objects) and the name of a method. The vector
    environment, which has `num_envs`, steps in the part "environment"."""
