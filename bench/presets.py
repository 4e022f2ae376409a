"""The training runs that results/learning holds. All use the paper's settings: batch 256, learning rate 3e-4, two layers of 256."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Preset:
    """One task, trained with every backend and seed."""

    name: str
    env: str
    steps: int
    """Environment steps."""
    evaluation_interval: int
    """Environment steps between two evaluations; divides `steps`, so that the last evaluation is of the finished agent."""
    seeds: tuple[int, ...]
    evaluation_episodes: int = 10


PRESETS = {
    preset.name: preset
    for preset in (
        Preset(name="smoke", env="HalfCheetah-v5", steps=10_000, evaluation_interval=5_000, seeds=(0,)),
        Preset(name="invertedpendulum", env="InvertedPendulum-v5", steps=15_000, evaluation_interval=1_000, seeds=(0, 1, 2)),
        Preset(name="halfcheetah-100k", env="HalfCheetah-v5", steps=100_000, evaluation_interval=10_000, seeds=(0, 1, 2)),
    )
}
