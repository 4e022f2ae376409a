"""A short run in which every part has state, in a process that may be killed."""

import os
from pathlib import Path
from typing import Any

import numpy as np

from bench.core import entry

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
MEMORY = "memory.npz"
"""File of the replay memory at the end, in the run's directory."""


def train(
    backend: str, env: str, steps: int, run_dir: str, compilations: str, settings: dict[str, Any], options: dict[str, Any], resume: bool
) -> None:
    """Train on two environments, with episodes of 40 steps and a replay memory smaller than the run.

    Args:
        compilations: folder of JAX's compilation cache.
        settings: of the configuration.
        options: further arguments of `sacref.train`.
    """
    os.environ["XDG_CACHE_HOME"] = compilations
    if backend == "torch":
        import torch

        torch.set_num_threads(1)
    import sacref
    from sacref.training.plan import prepare_process

    prepare_process("torch" if backend == "torch" else "jax")
    result = sacref.train(
        **{
            "backend": backend,
            "env": env,
            "steps": steps,
            "seed": 3,
            "run_dir": run_dir,
            "num_envs": 2,
            "cfg": SETTINGS | settings,
            "hidden": (16,),
            "memory_capacity": 200,
            "evaluation_interval": 120,
            "evaluation_episodes": 1,
            "device": "cpu",
            "env_kwargs": {"max_episode_steps": 40},
            "resume": resume,
            "overwrite": not resume,
            "progress": False,
            **options,
        }
    )
    agent: Any = result.agent
    np.savez(Path(run_dir) / MEMORY, **agent.memory.arrays())


if __name__ == "__main__":
    entry.refuse("bench.suites.faults.worker", "bench faults")
