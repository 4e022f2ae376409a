"""sacref's own agents, on either backend."""

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sacref.algorithm.data import Batch, Noise
from sacref.config import ExperimentConfig, SACConfig
from sacref.envs import make
from sacref.examine.adapter import Env
from sacref.examine.adapters import version
from sacref.examine.inject import GradientsOfMoments
from sacref.examine.problem import Problem
from sacref.parity.networks import Arrays, Floats, Named
from sacref.training import loop


class _Sacref:
    """An agent of one backend, which takes its batch and its noise as arguments."""

    backend: Literal["torch", "jax"]
    name: str
    supports: tuple[str, ...] = ("clip", "schedule")

    def make(self, problem: Problem) -> None:
        self._problem, self._gradients = problem, GradientsOfMoments()
        package = importlib.import_module(f"sacref.{self.backend}")
        spaces = {"observation_space": problem.observation_space, "action_space": problem.action_space}
        schedule: dict[str, Any] = {}
        if problem.decay < 1:
            schedule = {"learning_rate_scheduler": "exponential", "learning_rate_scheduler_kwargs": {"decay": problem.decay}}
        cfg = SACConfig(
            batch_size=problem.batch_size,
            discount_factor=problem.discount,
            polyak=problem.tau,
            learning_rate=(problem.learning_rate,) * 3,
            initial_entropy_value=problem.alpha,
            grad_norm_clip=problem.clip,
            **schedule,
        )
        with self._precision():
            models = package.default_models(**spaces, hidden=problem.hidden, seed=problem.seed, dtype=problem.dtype)
            self.agent = package.SAC(models=models, **spaces, device="cpu", cfg=cfg)

    def set_weights(self, weights: Named) -> None:
        with self._precision():
            self.agent.set_arrays(self.agent.arrays() | dict(weights))

    def update(self, batch: Batch[Floats], draws: Floats) -> None:
        with self._precision():
            self.agent.update_on(batch, Noise(next_actions=draws[0], actions=draws[1]))

    def weights(self) -> Arrays:
        with self._precision():
            arrays = self.agent.arrays()
        return {name: array for name, array in arrays.items() if "_optimizer." not in name and name != "gradient_steps"}

    def gradients(self) -> Sequence[Named]:
        with self._precision():
            arrays = self.agent.arrays()
        moments: Arrays = {}
        for optimizer, prefix in (("policy_optimizer", "policy."), ("critic_optimizer", "")):
            start = f"{optimizer}.first_moment."
            moments |= {prefix + name.removeprefix(start): array for name, array in arrays.items() if name.startswith(start)}
        return [self._gradients(moments | {"log_alpha": arrays["temperature_optimizer.first_moment"]})]

    def act(self, observations: NDArray[Any], *, deterministic: bool) -> NDArray[Any]:
        self.agent.enable_training_mode(not deterministic)
        with self._precision():
            actions, _ = self.agent.act(observations, None, timestep=10**6, timesteps=10**7)
        found: NDArray[Any] = self.agent.to_numpy(actions)
        return found

    def save(self, path: Path) -> None:
        self.agent.save(path)

    def load(self, path: Path) -> None:
        self.agent.load(path)

    def collect(self, make_env: Callable[[], Env], num_envs: int, steps: int) -> Batch[Floats]:
        package, envs = importlib.import_module(f"sacref.{self.backend}"), make(make_env, num_envs)
        spaces = {"observation_space": envs.single_observation_space, "action_space": envs.single_action_space}
        quiet = ExperimentConfig(write_interval=0, checkpoint_interval=0)
        cfg = SACConfig(random_timesteps=steps, learning_starts=steps, experiment=quiet)
        with self._precision():
            memory = package.ReplayMemory(2 * num_envs * steps, num_envs)
            models = package.default_models(**spaces, hidden=(4,), seed=0)
            agent = package.SAC(models=models, memory=memory, **spaces, device="cpu", cfg=cfg)
            loop.run(agent, envs, timesteps=steps)
            rows = memory.rows(np.arange(len(memory)))
        return Batch(rows["observations"], None, rows["actions"], rows["rewards"], rows["next_observations"], None, rows["terminated"])

    def versions(self) -> Mapping[str, str]:
        return version("sacref", self.backend)

    @contextmanager
    def _precision(self) -> Iterator[None]:
        """JAX keeps float64 only where its 64-bit mode is on."""
        if self.backend == "jax":
            with importlib.import_module("jax").enable_x64(self._problem.dtype == "float64"):
                yield
        else:
            yield


class Torch(_Sacref):
    """sacref on PyTorch."""

    backend: Literal["torch", "jax"] = "torch"
    name = "sacref torch"


class Jax(_Sacref):
    """sacref on JAX."""

    backend: Literal["torch", "jax"] = "jax"
    name = "sacref jax"
