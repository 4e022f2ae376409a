"""Critics that see more than the policy: they learn from the whole state of a robot, the policy acts on its positions alone.

An environment hands over its state in info["state"], on every reset and step, and says its space in an attribute `state_space`. Here the
wrapper PrivilegedState does both, with the observation as it is before the velocities are hidden: the first wrapper is the innermost.
"""

import os

import sacref
from sacref.envs.partial import HideVelocities, PrivilegedState

STEPS = int(os.environ.get("STEPS", 5_000))

result = sacref.train(
    backend="torch",  # or "jax"
    env="InvertedPendulum-v5",
    wrappers=[PrivilegedState, HideVelocities],
    steps=STEPS,
    hidden=(64, 64),
    cfg={"learning_rate": 1e-3, "random_timesteps": STEPS // 10, "learning_starts": STEPS // 10},
    evaluation_interval=max(1, STEPS // 5),
)

print("the policy sees", result.agent.observation_space)
print("the critics see", result.agent.state_space)
for step, evaluation in result.evaluations:
    print(f"after {step} steps: mean return {evaluation.mean:.0f}")
