"""skrl's SAC on PyTorch, with models of its Gaussian and deterministic mixins."""

import importlib
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from sacref.algorithm.data import Batch
from sacref.examine.adapter import Env
from sacref.examine.adapters import version
from sacref.examine.inject import Noise, Places, read, torch_dtype, torch_gradients, torch_noise, torch_places, write
from sacref.examine.problem import Problem
from sacref.parity.networks import Arrays, Floats, Named

MODELS = ("policy", "critic_1", "critic_2", "target_critic_1", "target_critic_2")


class SkrlTorch:
    """Its `update` on a batch of ours. Its Gaussian is not squashed: actions are cut to the Box, as its examples have it."""

    name = "skrl torch"
    supports: tuple[str, ...] = ("clip", "schedule")

    def make(self, problem: Problem) -> None:
        torch, sac = importlib.import_module("torch"), importlib.import_module("skrl.agents.torch.sac")
        self._problem, self._noise, self._seen = problem, Noise(), list[Arrays]()
        self._timestep = 0
        schedule: dict[str, Any] = {}
        if problem.decay < 1:
            exponential = torch.optim.lr_scheduler.ExponentialLR
            schedule = {"learning_rate_scheduler": exponential, "learning_rate_scheduler_kwargs": {"gamma": problem.decay}}
        cfg = sac.SAC_CFG(
            batch_size=problem.batch_size,
            discount_factor=problem.discount,
            polyak=problem.tau,
            learning_rate=problem.learning_rate,
            initial_entropy_value=problem.alpha,
            grad_norm_clip=problem.clip,
            **schedule,
        )
        cfg.experiment.write_interval = cfg.experiment.checkpoint_interval = 0
        spaces = {"observation_space": problem.observation_space, "action_space": problem.action_space, "device": "cpu"}
        self.models: dict[str, Any] = {name: _model(name, problem, spaces).to(getattr(torch, problem.dtype)) for name in MODELS}
        memory = importlib.import_module("skrl.memories.torch").RandomMemory(memory_size=1, num_envs=1, device="cpu")
        self.agent: Any = sac.SAC(models=self.models, memory=memory, cfg=cfg, **spaces)
        self.agent.init()
        alpha = self.agent.log_entropy_coefficient
        alpha.data = alpha.data.to(getattr(torch, problem.dtype))

    def _places(self) -> Places:
        return torch_places(self.models, self.agent.log_entropy_coefficient)

    def set_weights(self, weights: Named) -> None:
        write(self._places(), weights)
        self.agent._entropy_coefficient = self.agent.log_entropy_coefficient.detach().exp()

    def update(self, batch: Batch[Floats], draws: Floats) -> None:
        torch = importlib.import_module("torch")
        arrays = {
            "observations": batch.observations,
            "states": None,
            "actions": self._problem.box(batch.actions),
            "rewards": batch.rewards[:, None],
            "next_observations": batch.next_observations,
            "next_states": None,
            "terminated": batch.terminated[:, None],
        }
        sample = [None if arrays[name] is None else torch.as_tensor(arrays[name]) for name in self.agent._tensors_names]
        self.agent.memory.sample = lambda *_, **__: [sample]
        self._timestep += 1
        self._noise.fill(draws)
        with torch_dtype(self._problem.dtype), torch_noise(self._noise), torch_gradients(self._places) as self._seen:
            self.agent.update(timestep=self._timestep, timesteps=1000)

    def weights(self) -> Arrays:
        return read(self._places())

    def gradients(self) -> Sequence[Named]:
        return self._seen

    def act(self, observations: NDArray[Any], *, deterministic: bool) -> NDArray[Any]:
        actions, outputs = self.agent.act(importlib.import_module("torch").as_tensor(observations), None, timestep=1000, timesteps=1000)
        found: NDArray[Any] = (outputs["mean_actions"] if deterministic else actions).detach().numpy()
        return np.array(found)

    def save(self, path: Path) -> None:
        self.agent.save(str(path))

    def load(self, path: Path) -> None:
        self.agent.load(str(path))

    def collect(self, make_env: Callable[[], Env], num_envs: int, steps: int) -> Batch[Floats]:
        parts = ("agents.torch.sac", "envs.wrappers.torch", "trainers.torch", "memories.torch")
        sac, wrappers, trainers, memories = (importlib.import_module(f"skrl.{name}") for name in parts)
        env = wrappers.wrap_env(gymnasium.vector.SyncVectorEnv([make_env] * num_envs), wrapper="gymnasium", verbose=False)
        memory = memories.RandomMemory(memory_size=2 * steps, num_envs=num_envs, device="cpu")
        cfg = sac.SAC_CFG(random_timesteps=steps, learning_starts=steps)
        cfg.experiment.write_interval = cfg.experiment.checkpoint_interval = 0
        spaces = {"observation_space": env.observation_space, "action_space": env.action_space, "device": "cpu"}
        agent = sac.SAC(models={name: _model(name, self._problem, spaces) for name in MODELS}, memory=memory, cfg=cfg, **spaces)
        options = trainers.SequentialTrainerCfg(timesteps=steps, headless=True, disable_progressbar=True)
        trainers.SequentialTrainer(env=env, agents=agent, cfg=options).train()
        names = ("observations", "actions", "rewards", "next_observations", "terminated")
        rows = [memory.get_tensor_by_name(name)[:steps].reshape(steps * num_envs, -1).numpy() for name in names]
        return Batch(rows[0], None, rows[1], rows[2][:, 0], rows[3], None, rows[4][:, 0])

    def versions(self) -> Mapping[str, str]:
        return version("skrl", "torch")


def _model(name: str, problem: Problem, spaces: Mapping[str, Any]) -> Any:
    """A policy or a critic, as skrl's documentation writes them."""
    torch, skrl = importlib.import_module("torch"), importlib.import_module("skrl.models.torch")
    nn, judges = torch.nn, name != "policy"

    def network(inputs: int, outputs: int) -> Any:
        widths = [inputs, *problem.hidden]
        layers = [part for pair in itertools.pairwise(widths) for part in (nn.Linear(*pair), nn.ReLU())]
        return nn.Sequential(*layers, nn.Linear(widths[-1], outputs))

    # Classes whose bases are known when skrl is there.
    def initialise(self: Any) -> None:
        skrl.Model.__init__(self, **spaces)
        mixin.__init__(self, **({} if judges else {"clip_actions": True}))
        self.net = network(problem.observation + judges * problem.action, 1 if judges else 2 * problem.action)

    def policy(self: Any, inputs: Mapping[str, Any], role: str = "") -> tuple[Any, dict[str, Any]]:
        mean, log_std = self.net(inputs["observations"]).chunk(2, dim=-1)
        return mean, {"log_std": log_std}

    def critic(self: Any, inputs: Mapping[str, Any], role: str = "") -> tuple[Any, dict[str, Any]]:
        return self.net(torch.cat([inputs["observations"], inputs["taken_actions"]], dim=-1)), {}

    mixin, compute = (skrl.DeterministicMixin, critic) if judges else (skrl.GaussianMixin, policy)
    return type("Model", (mixin, skrl.Model), {"__init__": initialise, "compute": compute})()
