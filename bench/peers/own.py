"""sacref's own agents in sacref's own training loop."""

import importlib
import sys
import tempfile
import threading
from typing import Any

from bench.peers.setting import Setting


class Sacref:
    """The training loop with the agent of one backend. Tracking is on, as in a user's run; checkpoints and evaluations are off.

    One call of the loop, in a thread of its own that waits between two `advance`: to start the loop anew would reset environments and
    prepare the agent again within what is timed.
    """

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
        self._goal = 0
        self._turn = threading.Semaphore(0)
        self._reached = threading.Semaphore(0)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._train, daemon=True)

    def advance(self, steps: int) -> None:
        """Train for `steps` environment steps; return when the device is idle."""
        self._goal += steps
        if self._thread.ident is None:
            self._thread.start()
        else:
            self._turn.release()
        self._reached.acquire()
        if self._error is not None:
            raise self._error
        self.synchronise()

    def _train(self) -> None:
        from sacref import training

        try:
            training.run(self._agent, self._envs, timesteps=sys.maxsize, after_timestep=self._pause)
        except _Closed:
            pass
        except BaseException as error:
            self._error = error
        self._reached.release()

    def _pause(self, finished: int) -> None:
        if finished == self._goal:
            self._reached.release()
            self._turn.acquire()
            if self._goal == finished:
                raise _Closed

    def synchronise(self) -> None:
        """Wait until the device is idle."""
        raise NotImplementedError

    def close(self) -> None:
        """End the loop, close the environment and the files."""
        if self._thread.is_alive():
            self._turn.release()
            self._thread.join()
        self._agent.close()
        self._envs.close()
        self._directory.cleanup()


class _Closed(Exception):
    """Ends the training loop."""


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
