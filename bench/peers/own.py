"""sacref's own agents in sacref's own training loop."""

import importlib
import sys
from functools import partial
from typing import Any

from bench.peers.setting import Setting, Trainer


def make(setting: Setting, *, backend: str, chunk: int, overlap: bool) -> Trainer:
    """Make the training loop of one backend. Tracking is on, as in a user's run; checkpoints and evaluations are off.

    Args:
        setting: the task.
        backend: "torch" or "jax".
        chunk: environment steps between two calls of the learner; 1 is strict.
        overlap: True to choose an action before the update that precedes it.
    """
    library = importlib.import_module(f"sacref.{backend}")
    from sacref import training
    from sacref.config import paper_config
    from sacref.envs import make as make_envs

    cfg = paper_config()
    cfg.batch_size = setting.batch_size
    cfg.learning_rate = setting.learning_rate
    cfg.random_timesteps = cfg.learning_starts = setting.random_steps
    cfg.seed = setting.seed
    cfg.chunk = chunk
    cfg.overlap = overlap
    cfg.experiment.write_interval = 1_000
    cfg.experiment.checkpoint_interval = 0
    envs = make_envs(setting.env, 1, seed=setting.seed)
    spaces = {"observation_space": envs.single_observation_space, "action_space": envs.single_action_space}
    agent: Any = library.SAC(
        models=library.default_models(**spaces, hidden=(256, 256), seed=setting.seed),
        memory=library.ReplayMemory(setting.memory_capacity, 1),
        cfg=cfg,
        **spaces,
    )
    return Trainer(
        train=partial(training.run, agent, envs, timesteps=sys.maxsize),
        execution=agent.execution,
        settings={**({} if chunk == 1 else {"chunk": chunk}), **({"overlap": True} if overlap else {})},
    )
