"""A short run with everything that has a state, for the tests that kill it."""

import os
from typing import Any

from sacref.config import SACConfig

STEPS = {"HalfCheetah-v5": 360, "Ant-v5": 360, "Humanoid-v5": 240}
SETTINGS: dict[str, Any] = {
    "batch_size": 16,
    "learning_rate": 1e-3,
    "random_timesteps": 20,
    "learning_starts": 20,
    "update_to_data": 0.5,
    "grad_norm_clip": 1.0,
    "learning_rate_scheduler": ("cosine", "kl_adaptive", "linear"),
    "learning_rate_scheduler_kwargs": ({"steps": 200}, {"kl_threshold": 1e-3}, {"steps": 200}),
    "observation_preprocessor": "sacref.preprocessing:RunningStandardScaler",
    "n_step": 2,
    "experiment": {"write_interval": 13, "checkpoint_interval": 11},
}


def train(backend: str, env: str, run_dir: str, *, resume: bool, **options: Any) -> None:
    """Train two environments, of episodes of 40 steps, with a ring that is smaller than the run."""
    os.environ["OMP_NUM_THREADS"] = "1"
    if backend == "torch":
        import torch

        torch.set_num_threads(1)
    import sacref

    sacref.train(
        **{
            "backend": backend,
            "env": env,
            "steps": STEPS[env],
            "seed": 3,
            "run_dir": run_dir,
            "num_envs": 2,
            "cfg": SACConfig.from_dict(SETTINGS),
            "hidden": (16,),
            "memory_capacity": 200,
            "evaluation_interval": 120,
            "evaluation_episodes": 1,
            "env_kwargs": {"max_episode_steps": 40},
            "resume": resume,
            "progress": False,
            **options,
        }
    )
