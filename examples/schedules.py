"""Learning rates that change: one schedule for the policy, the critics and the entropy coefficient, or one for each of them.

constant, linear, cosine, exponential, warm_up and piecewise follow the gradient steps. kl_adaptive follows the policy: it lowers the rate
where an update changed it too much, and raises it where an update hardly changed it. A torch.optim.lr_scheduler class, or an optax
schedule, will do as well.
"""

import json
import os

import sacref

STEPS = int(os.environ.get("STEPS", 5_000))

result = sacref.train(
    backend="torch",  # or "jax"
    env="Pendulum-v1",
    steps=STEPS,
    hidden=(64, 64),
    cfg={
        # In the order policy, critics, entropy coefficient.
        "learning_rate": (3e-4, 1e-3, 1e-3),
        "learning_rate_scheduler": ("kl_adaptive", "linear", "warm_up"),
        "learning_rate_scheduler_kwargs": ({"kl_threshold": 1e-3, "max_lr": 1e-3}, {"steps": STEPS, "end": 0.1}, {"steps": STEPS // 10}),
        # Gradients are clipped by their global norm, those of the policy and those of all critics.
        "grad_norm_clip": 10.0,
        "random_timesteps": STEPS // 10,
        "learning_starts": STEPS // 10,
    },
    evaluation_interval=max(1, STEPS // 5),
)

# The rates in force, and the norms of the gradients before clipping, are tracked as everything else is.
lines = [json.loads(line) for line in (result.run_dir / "metrics.jsonl").read_text().splitlines()]
learning = [line for line in lines if "Learning / Policy learning rate" in line]
for line in learning[:: max(1, len(learning) // 5)]:
    tracked = {tag: f"{value:.1e}" for tag, value in line.items() if tag.startswith(("Learning", "Gradient"))}
    print(line["timestep"], tracked)
for step, evaluation in result.evaluations:
    print(f"after {step} steps: mean return {evaluation.mean:.0f}")
