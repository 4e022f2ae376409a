"""Input and output of every contender."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

ENDLESS = 10**9
"""A number of steps that no run reaches: a contender trains until it is stopped."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One environment, one gradient step per environment step; the networks are two layers of 256 and float32 throughout."""

    env: str
    """Gymnasium id. Its steps are counted: see `bench.peers.gate`."""
    seed: int
    random_steps: int
    """Environment steps before the first gradient step."""
    batch_size: int = 256
    learning_rate: float = 3e-4
    memory_capacity: int = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Trainer:
    """A contender that is ready to train."""

    train: Callable[[], object]
    """Trains for ever."""
    execution: str
    """Execution of its gradient steps."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Differences from the `Setting`."""
