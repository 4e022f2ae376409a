"""Observations in units of their spread: a running mean and variance of every number, updated once with each fresh observation.

The moments are saved with the agent, and stay as they are in evaluation. A class of your own with the methods of
sacref.preprocessing.Preprocessor can take the scaler's place; states have a `state_preprocessor` beside this one.
"""

import os

import sacref
from sacref.preprocessing import RunningStandardScaler

STEPS = int(os.environ.get("STEPS", 5_000))

result = sacref.train(
    backend="torch",  # or "jax"
    env="HalfCheetah-v5",
    steps=STEPS,
    hidden=(64, 64),
    cfg={
        "observation_preprocessor": RunningStandardScaler,
        # What the networks see is cut at ten standard deviations.
        "observation_preprocessor_kwargs": {"clip": 10.0},
        "random_timesteps": STEPS // 10,
        "learning_starts": STEPS // 10,
    },
    evaluation_interval=STEPS,
    evaluation_episodes=1,
)

arrays = result.agent.arrays()
for name in ("count", "mean", "variance"):
    print(name, arrays[f"preprocessor.observations.{name}"].round(2))
# The loaded agent has the same moments, and acts on them.
loaded = sacref.load(result.run_dir).arrays()
print("the same after loading:", all((loaded[name] == arrays[name]).all() for name in arrays if name.startswith("preprocessor")))
