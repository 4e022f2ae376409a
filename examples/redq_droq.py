"""More learning from each step: returns of several steps, REDQ's ensemble of critics, and DroQ's critics with Dropout and LayerNorm."""

import os

import sacref

STEPS = int(os.environ.get("STEPS", 1_500))

common = {"learning_rate": 1e-3, "random_timesteps": STEPS // 5, "learning_starts": STEPS // 5}

variants = {
    # Targets sum the rewards of three steps before they bootstrap. Here the entropy coefficient is fixed, not learned.
    "3-step": {"cfg": {"n_step": 3, "learn_entropy": False, "initial_entropy_value": 0.1}},
    # REDQ (Chen et al. 2021): many critics, of which two at a time, drawn anew, make the target; the policy sees their mean; several
    # gradient steps for each environment step, of which every one steps the critics and every fourth the policy.
    "REDQ": {
        "num_critics": 5,
        "cfg": {"target_subset": 2, "policy_value": "mean", "update_to_data": 4, "policy_delay": 4},
    },
    # DroQ (Hiraoka et al. 2022): two critics that drop units and normalise do the ensemble's work.
    "DroQ": {
        "dropout": 0.01,
        "layer_norm": True,
        "cfg": {"policy_value": "mean", "update_to_data": 4, "policy_delay": 4},
    },
}

for name, variant in variants.items():
    result = sacref.train(
        backend="torch",  # or "jax"
        env="Pendulum-v1",
        steps=STEPS,
        hidden=(64, 64),
        evaluation_interval=STEPS,
        progress=False,
        **{**variant, "cfg": {**common, **variant["cfg"]}},
    )
    print(f"{name}: mean return {result.evaluations[-1][1].mean:.0f} after {STEPS} steps")
