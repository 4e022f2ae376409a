"""sacref's own agents, on either backend."""

import importlib
import operator
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal

import numpy as np
from gymnasium.vector import AutoresetMode

from sacref.algorithm.data import Batch, Noise, Transition
from sacref.algorithm.sequences import gather_steps
from sacref.config import ExperimentConfig, SACConfig
from sacref.envs import make
from sacref.envs.interface import Envs
from sacref.examine.adapter import Env, Windows
from sacref.examine.adapters import version
from sacref.examine.inject import patched, tapped, to_numpy
from sacref.examine.problem import Problem
from sacref.parity.networks import Arrays, Floats, Named
from sacref.training import loop

QUIET = ExperimentConfig(write_interval=0, checkpoint_interval=0)
START = 8
"""Transitions of a batch, and steps before it learns, in a run of its own."""


class _Sacref:
    """An agent of one backend, which takes its batch and its noise as arguments."""

    backend: Literal["torch", "jax"]
    name: str
    supports: tuple[str, ...] = ("clip", "schedule")

    def make(self, problem: Problem) -> None:
        self._problem = problem
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
            self.agent, _ = self._made(problem, cfg, hidden=problem.hidden, seed=problem.seed, dtype=problem.dtype)

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

    def act(self, observations: Floats, *, deterministic: bool) -> Floats:
        self.agent.enable_training_mode(not deterministic)
        with self._precision():
            actions, _ = self.agent.act(observations, None, timestep=10**6, timesteps=10**7)
        found: Floats = self.agent.to_numpy(actions)
        return found

    def save(self, path: Path) -> None:
        self.agent.save(path)

    def load(self, path: Path) -> None:
        self.agent.load(path)

    def collect(self, make_env: Callable[[], Env], num_envs: int, steps: int, autoreset_mode: AutoresetMode) -> Batch[Floats]:
        memory = self._run(make(make_env, num_envs, autoreset_mode=autoreset_mode), steps, learning_starts=steps)
        with self._precision():
            rows = memory.rows(np.arange(len(memory)))
        return Batch(rows["observations"], None, rows["actions"], rows["rewards"], rows["next_observations"], None, rows["terminated"])

    def train(self, make_env: Callable[[], Env], num_envs: int, steps: int, gradient_steps: int) -> Sequence[Floats]:
        drawn, agent = list[Floats](), importlib.import_module(f"sacref.{self.backend}.agent")
        sampler, settings = agent.sampler, {"batch_size": START, "gradient_steps": gradient_steps}

        def keep(rows: object) -> None:
            drawn.append(to_numpy(rows))

        def see(batch: Batch[Any]) -> None:
            if self.backend == "torch":
                keep(batch.observations)
            else:
                importlib.import_module("jax").debug.callback(keep, batch.observations, ordered=True)

        with patched([(agent, "sampler", lambda follow: tapped(sampler(follow), see))]):
            self._run(make(make_env, num_envs), steps, learning_starts=START, execution="plain", **settings)
        return drawn

    def windows(self, rows: Batch[Floats], truncated: Floats, capacity: int, n_step: int, discount: float) -> Windows:
        cfg = SACConfig(n_step=n_step, discount_factor=discount, batch_size=START, experiment=QUIET)
        with self._precision():
            _, memory = self._made(self._problem, cfg, (capacity, 1))
            first = np.concatenate([[True], (rows.terminated | truncated)[:-1]])
            now, after = rows.observations, rows.next_observations
            played = Transition(now, None, rows.actions, rows.rewards, after, None, rows.terminated, first)
            for row in np.arange(len(first))[:, None]:
                memory.add(played.map(operator.itemgetter(row)), np.array([True]))
            arrays = importlib.import_module("torch" if self.backend == "torch" else "jax.numpy")
            seen = gather_steps(memory.state, arrays.arange(capacity), memory.settings, arrays.arange(n_step + 1))
        fields = (seen.observations, seen.rewards, seen.next_observations, seen.terminated, seen.discounts)
        return Windows(*(to_numpy(each) for each in fields))

    def _run(self, envs: Envs, steps: int, **settings: Any) -> Any:
        """Run an agent of these settings; give its replay memory."""
        cfg = SACConfig(random_timesteps=steps, experiment=QUIET, **settings)
        with self._precision():
            agent, memory = self._made(self._problem, cfg, (2 * envs.num_envs * steps, envs.num_envs))
            loop.run(agent, envs, timesteps=steps)
        return memory

    def _made(self, problem: Problem, cfg: SACConfig, rows: tuple[int, int] | None = None, **networks: Any) -> tuple[Any, Any]:
        """Make an agent, and its replay memory of so many rows and environments."""
        package = importlib.import_module(f"sacref.{self.backend}")
        spaces = {"observation_space": problem.observation_space, "action_space": problem.action_space}
        memory = None if rows is None else package.ReplayMemory(*rows)
        models = package.default_models(**spaces, **{"hidden": (4,), "seed": 0, **networks})
        return package.SAC(models=models, memory=memory, **spaces, device="cpu", cfg=cfg), memory

    def versions(self) -> Mapping[str, str]:
        return version("sacref", self.backend)

    def _precision(self) -> AbstractContextManager[None]:
        """JAX keeps float64 only where its 64-bit mode is on."""
        jax = self.backend == "jax"
        return importlib.import_module("jax").enable_x64(self._problem.dtype == "float64") if jax else nullcontext()


class Torch(_Sacref):
    """sacref on PyTorch."""

    backend: Literal["torch", "jax"] = "torch"
    name = "sacref torch"


class Jax(_Sacref):
    """sacref on JAX."""

    backend: Literal["torch", "jax"] = "jax"
    name = "sacref jax"
