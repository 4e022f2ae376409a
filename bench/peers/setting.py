"""What every contender is given."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One environment, one gradient step per environment step; the networks are two layers of 256 and float32 throughout."""

    env: str
    seed: int
    random_steps: int
    """Environment steps before the first gradient step."""
    batch_size: int = 256
    learning_rate: float = 3e-4
    memory_capacity: int = 1_000_000
