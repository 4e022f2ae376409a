"""sacref's own agents in sacref's own training loop."""

import importlib
import tempfile
from typing import Any

from bench.peers.setting import Setting


class Sacref:
    """The training loop with the agent of one backend. Tracking is on, as in a user's run; checkpoints and evaluations are off."""

    backend: str

    def __init__(self, setting: Setting) -> None:
        library = importlib.import_module(f"sacref.{self.backend}")
        from sacref.config import paper_config
        from sacref.envs import make

        self._directory = tempfile.TemporaryDirectory()
        cfg = paper_config()
        cfg.batch_size = setting.batch_size
        cfg.learning_rate = setting.learning_rate
        cfg.random_timesteps = cfg.learning_starts = setting.random_steps
        cfg.seed = setting.seed
        cfg.experiment.directory = self._directory.name
        cfg.experiment.write_interval = 1_000
        cfg.experiment.checkpoint_interval = 0
        self._envs = make(setting.env, 1, seed=setting.seed)
        spaces = {"observation_space": self._envs.single_observation_space, "action_space": self._envs.single_action_space}
        self._agent: Any = library.SAC(
            models=library.default_models(**spaces, hidden=(256, 256), seed=setting.seed),
            memory=library.ReplayMemory(setting.memory_capacity, 1),
            cfg=cfg,
            **spaces,
        )
        self._steps = 0

    def advance(self, steps: int) -> None:
        """Train for `steps` environment steps; return when the device is idle."""
        from sacref import training

        training.run(self._agent, self._envs, timesteps=self._steps + steps, start=self._steps)
        self._steps += steps
        self.synchronise()

    def synchronise(self) -> None:
        """Wait until the device is idle."""
        raise NotImplementedError

    def close(self) -> None:
        """Close the environment and the files."""
        self._agent.close()
        self._envs.close()
        self._directory.cleanup()


class Torch(Sacref):
    """The PyTorch agent."""

    backend = "torch"

    def synchronise(self) -> None:
        """Wait until the device is idle."""
        import torch

        if torch.cuda.is_available():
            torch.cuda.synchronize()


class Jax(Sacref):
    """The JAX agent."""

    backend = "jax"

    def synchronise(self) -> None:
        """Wait until every array that is alive has its value."""
        import jax

        for array in jax.live_arrays():  # type: ignore[no-untyped-call]  # JAX leaves it unannotated.
            array.block_until_ready()
