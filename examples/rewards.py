"""Rewards as the agent learns from them: scaled, and then shaped by a function of yours, before they are stored.

Evaluations show the environment's own rewards.
"""

import os

import numpy as np

import sacref

STEPS = int(os.environ.get("STEPS", 5_000))


def bounded(rewards, timestep, timesteps):
    """Called with the scaled rewards, (envs, 1), and the clock of the run."""
    return np.clip(rewards, -1.0, 1.0)


result = sacref.train(
    backend="torch",  # or "jax"
    env="Pendulum-v1",
    steps=STEPS,
    hidden=(64, 64),
    # Pendulum's rewards go down to -16: a tenth of them has the size that the initial entropy coefficient is meant for.
    cfg={
        "reward_scale": 0.1,
        "rewards_shaper": bounded,
        "learning_rate": 1e-3,
        "random_timesteps": STEPS // 10,
        "learning_starts": STEPS // 10,
    },
    evaluation_interval=max(1, STEPS // 5),
)

for step, evaluation in result.evaluations:
    print(f"after {step} steps: mean return {evaluation.mean:.0f}")
