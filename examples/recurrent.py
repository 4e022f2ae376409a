"""A policy with a memory: Pendulum-v1 shows its angle but not its speed, which a GRU can tell from what it saw before."""

import os

import sacref
from sacref.envs.partial import HideVelocities

STEPS = int(os.environ.get("STEPS", 3_000))

result = sacref.train(
    backend="jax",  # or "torch"
    env="Pendulum-v1",
    wrappers=[HideVelocities],
    steps=STEPS,
    # The policy and each critic get a cell of their own, between the inputs and the hidden layers: "rnn", "gru" or "lstm".
    recurrent="gru",
    recurrent_size=64,
    hidden=(64, 64),
    cfg={
        # A batch holds so many sequences, each of so many steps to learn from, after so many that only warm up the cells. None of
        # them crosses an episode's end.
        "batch_size": 32,
        "sequence_length": 16,
        "burn_in": 4,
        "learning_rate": 1e-3,
        "random_timesteps": STEPS // 10,
        "learning_starts": STEPS // 10,
    },
    evaluation_interval=max(1, STEPS // 5),
)

# Around -1200 is what not knowing how to swing up gives; the best is around -150.
for step, evaluation in result.evaluations:
    print(f"after {step} steps: mean return {evaluation.mean:.0f}")
