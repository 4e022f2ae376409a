"""sacref's own agents in sacref's own training loop."""

import importlib
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

from bench.peers.setting import Setting, Trainer

if TYPE_CHECKING:
    from sacref.config import Execution, SACConfig


def make(setting: Setting, *, backend: str, chunk: int = 1, overlap: bool = False, execution: "Execution" = "auto") -> Trainer:
    """Make the training loop of one backend. Tracking is on, as in a user's run; checkpoints and evaluations are off.

    Args:
        setting: the task.
        backend: "torch" or "jax".
        chunk: environment steps between two calls of the learner; 1 is strict.
        overlap: True to choose an action before the update that precedes it.
        execution: the option of that name.
    """
    library = importlib.import_module(f"sacref.{backend}")
    from sacref import training
    from sacref.envs import make as make_envs

    cfg = configuration(setting)
    cfg.chunk = chunk
    cfg.overlap = overlap
    cfg.execution = execution
    envs: Any = make_envs(setting.env, setting.num_envs, seed=setting.seed)
    spaces = {"observation_space": envs.single_observation_space, "action_space": envs.single_action_space}
    agent: Any = library.SAC(
        models=library.default_models(**spaces, hidden=tuple(setting.hidden), seed=setting.seed),
        memory=library.ReplayMemory(setting.memory_capacity, setting.num_envs),
        cfg=cfg,
        **spaces,
    )
    return Trainer(
        train=partial(training.run, agent, envs, timesteps=sys.maxsize),
        execution=agent.execution,
        settings={**({} if chunk == 1 else {"chunk": chunk}), **({"overlap": True} if overlap else {})},
        parts={
            "pre": [(agent, "pre_interaction")],
            "act": [(agent, "act")],
            "to_numpy": [(agent, "to_numpy")],
            "environment": [(envs, "step")],
            "record": [(agent, "record_transition")],
            "learn": [(agent, "post_interaction")],
        },
    )


def configuration(setting: Setting) -> "SACConfig":
    """Return the paper's settings with those of the task."""
    from sacref.config import paper_config

    cfg = paper_config()
    cfg.batch_size = setting.batch_size
    cfg.learning_rate = setting.learning_rate
    cfg.random_timesteps = cfg.learning_starts = setting.random_steps // setting.num_envs
    cfg.seed = setting.seed
    cfg.experiment.write_interval = 1_000
    cfg.experiment.checkpoint_interval = 0
    return cfg
