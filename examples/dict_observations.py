"""Observations with names: a pole on a cart in MuJoCo, whose positions and velocities come as a Dict.

Any (nested) gymnasium.spaces.Dict of Boxes will do, each of its own dtype. The default networks put its arrays side by side; a model of
your own gets the dict, as inputs["observations"]["positions"].
"""

import os

import sacref
from sacref.envs.partial import DictObservation

STEPS = int(os.environ.get("STEPS", 5_000))

result = sacref.train(
    backend="torch",  # or "jax"
    env="InvertedPendulum-v5",
    wrappers=[DictObservation],
    steps=STEPS,
    hidden=(64, 64),
    cfg={"learning_rate": 1e-3, "random_timesteps": STEPS // 10, "learning_starts": STEPS // 10},
    evaluation_interval=max(1, STEPS // 5),
)

print(result.agent.observation_space)
# 1000 is the best, which takes more than this minute: STEPS=20000 python examples/dict_observations.py
for step, evaluation in result.evaluations:
    print(f"after {step} steps: mean return {evaluation.mean:.0f}")
