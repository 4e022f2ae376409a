"""skrl's SAC: what its PyTorch and JAX agents share."""

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from sacref.algorithm.data import Batch
from sacref.examine.adapter import Env
from sacref.examine.inject import tapped, to_numpy
from sacref.examine.problem import Problem
from sacref.parity.networks import Floats

MODELS = ("policy", "critic_1", "critic_2", "target_critic_1", "target_critic_2")
START = 8
"""Transitions of a batch, and steps before it learns, in a run of its own."""


class Skrl(ABC):
    """skrl's `update` on a batch of ours. Its Gaussian is not squashed: actions are cut to the Box, as its examples have it."""

    backend: str
    supports: tuple[str, ...] = ("clip", "schedule")

    def make_with(self, problem: Problem, **settings: object) -> None:
        sac = importlib.import_module(f"skrl.agents.{self.backend}.sac")
        self.problem, self._timestep = problem, 0
        cfg = sac.SAC_CFG(
            batch_size=problem.batch_size,
            discount_factor=problem.discount,
            polyak=problem.tau,
            learning_rate=problem.learning_rate,
            initial_entropy_value=problem.alpha,
            grad_norm_clip=problem.clip,
            **settings,
        )
        spaces = {"observation_space": problem.observation_space, "action_space": problem.action_space}
        memory = importlib.import_module(f"skrl.memories.{self.backend}").RandomMemory(memory_size=1, num_envs=1, device="cpu")
        self.agent, self.models = self._agent(cfg, memory, spaces)
        self.agent.init()

    def _agent(self, cfg: Any, memory: object, spaces: Mapping[str, object]) -> tuple[Any, dict[str, Any]]:
        """Make an agent and its models."""
        cfg.experiment.write_interval = cfg.experiment.checkpoint_interval = 0
        models = {name: self.build_model(name, spaces) for name in MODELS}
        kind = importlib.import_module(f"skrl.agents.{self.backend}.sac").SAC
        return kind(models=models, memory=memory, cfg=cfg, device="cpu", **spaces), models

    @abstractmethod
    def build_model(self, name: str, spaces: Mapping[str, object]) -> object:
        """Make a model of the library."""

    @abstractmethod
    def array(self, value: Floats) -> object:
        """Make an array of the library."""

    def learn_from(self, batch: Batch[Floats]) -> None:
        rows = batch._replace(actions=self.problem.box(batch.actions), rewards=batch.rewards[:, None], terminated=batch.terminated[:, None])
        found = [getattr(rows, name, None) for name in self.agent._tensors_names]
        self.agent.memory.sample = lambda *_, **__: [[None if each is None else self.array(each) for each in found]]
        self._timestep += 1
        self.agent.update(timestep=self._timestep, timesteps=1000)

    def act(self, observations: Floats, *, deterministic: bool) -> Floats:
        actions, outputs = self.agent.act(self.array(observations), None, timestep=1000, timesteps=1000)
        return to_numpy(outputs["mean_actions"] if deterministic else actions)

    def save(self, path: Path) -> None:
        self.agent.save(str(path))

    def load(self, path: Path) -> None:
        self.agent.load(str(path))

    def _run(self, envs: SyncVectorEnv, steps: int, **settings: int) -> tuple[Any, list[Floats]]:
        """Run its trainer; give its memory, and the observations of each batch."""
        agents, wrappers, trainers, memories = (
            importlib.import_module(f"skrl.{name.format(self.backend)}")
            for name in ("agents.{}.sac", "envs.wrappers.{}", "trainers.{}", "memories.{}")
        )
        env = wrappers.wrap_env(envs, wrapper="gymnasium", verbose=False)
        memory = memories.RandomMemory(memory_size=2 * steps, num_envs=envs.num_envs, device="cpu")
        cfg = agents.SAC_CFG(random_timesteps=steps, batch_size=START, **settings)
        agent, _ = self._agent(cfg, memory, {"observation_space": env.observation_space, "action_space": env.action_space})
        drawn = list[Floats]()
        memory.sample = tapped(memory.sample, lambda batch: drawn.append(np.array(batch[0][agent._tensors_names.index("observations")])))
        options = trainers.SequentialTrainerCfg(timesteps=steps, headless=True, disable_progressbar=True)
        trainers.SequentialTrainer(env=env, agents=agent, cfg=options).train()
        return memory, drawn

    def collect(self, make_env: Callable[[], Env], num_envs: int, steps: int, autoreset_mode: AutoresetMode) -> Batch[Floats]:
        envs = SyncVectorEnv([make_env] * num_envs, autoreset_mode=autoreset_mode)
        memory, _ = self._run(envs, steps, learning_starts=steps)
        names = ("observations", "actions", "rewards", "next_observations", "terminated")
        rows = [np.array(memory.get_tensor_by_name(name))[:steps].reshape(steps * num_envs, -1) for name in names]
        return Batch(rows[0], None, rows[1], rows[2][:, 0], rows[3], None, rows[4][:, 0])

    def train(self, make_env: Callable[[], Env], num_envs: int, steps: int, gradient_steps: int) -> Sequence[Floats]:
        return self._run(SyncVectorEnv([make_env] * num_envs), steps, learning_starts=START, gradient_steps=gradient_steps)[1]
