"""Stable-Baselines3's SAC, and what SBX shares with it."""

import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode

from sacref.algorithm.data import Batch
from sacref.examine.adapter import Env, Windows
from sacref.examine.adapters import version
from sacref.examine.inject import Places, TorchAdapter, tapped, torch_places
from sacref.examine.problem import Problem, Still
from sacref.parity.networks import Floats

STEPS = 128
"""Updates of the run that its schedule believes to be in."""
START = 8
"""Transitions before it learns in a run of its own."""


class Family:
    """A SAC with the interface of Stable-Baselines3: its `train` with one gradient step, on a batch of ours."""

    package: str
    supports: tuple[str, ...] = ("schedule",)

    def make(self, problem: Problem) -> None:
        self.problem, self._updates = problem, 0
        # It casts observations to float32 before they reach the networks.
        policies: Any = importlib.import_module("stable_baselines3.common.policies")
        policies.preprocess_obs = lambda obs, *_, **__: obs
        self.model = self._agent(
            [lambda: Still(problem)],
            # Its schedules are functions of the progress that remains.
            learning_rate=lambda remaining: problem.learning_rate * problem.decay ** (STEPS * (1 - remaining)),
            buffer_size=1,
            tau=problem.tau,
            gamma=problem.discount,
            ent_coef=f"auto_{problem.alpha}",
            policy_kwargs={"net_arch": list(problem.hidden)},
            seed=problem.seed,
        )
        self.prepare()

    def _agent(self, make_envs: Sequence[Callable[[], Env]], **settings: object) -> Any:
        vector = importlib.import_module("stable_baselines3.common.vec_env").DummyVecEnv(make_envs)
        return importlib.import_module(self.package).SAC("MlpPolicy", vector, device="cpu", **settings)

    def prepare(self) -> None:
        self.model.set_logger(importlib.import_module("stable_baselines3.common.logger").Logger(None, []))

    def learn_from(self, batch: Batch[Floats]) -> None:
        torch, problem = importlib.import_module("torch"), self.problem
        samples = importlib.import_module("stable_baselines3.common.type_aliases").ReplayBufferSamples
        columns = (batch.terminated, batch.rewards, np.full(problem.batch_size, problem.discount))
        arrays = (batch.observations, batch.actions, batch.next_observations, *(problem.cast(each)[:, None] for each in columns))
        self.model.replay_buffer.sample = lambda *_, **__: samples(*map(torch.as_tensor, arrays))
        self.model._current_progress_remaining = 1 - self._updates / STEPS
        self._updates += 1
        self.model.train(gradient_steps=1, batch_size=problem.batch_size)

    def act(self, observations: Floats, *, deterministic: bool) -> Floats:
        actions: Floats = self.model.predict(observations.astype(self.problem.dtype), deterministic=deterministic)[0]
        return actions

    def save(self, path: Path) -> None:
        self.model.save(path)

    def load(self, path: Path) -> None:
        self.model = type(self.model).load(path, device="cpu")
        self.prepare()

    def collect(self, make_env: Callable[[], Env], num_envs: int, steps: int, autoreset_mode: AutoresetMode) -> Batch[Floats]:
        size = num_envs * steps
        agent = self._agent([make_env] * num_envs, buffer_size=2 * size, learning_starts=2 * size).learn(size)
        buffer = agent.replay_buffer
        # A timeout is stored as an end, and taken back when a batch is sampled.
        ends = buffer.dones * (1 - buffer.timeouts)
        arrays = [array[: buffer.pos].reshape(size, -1) for array in (buffer.observations, buffer.actions, buffer.next_observations)]
        rewards, terminated = (array[: buffer.pos].reshape(size) for array in (buffer.rewards, ends))
        return Batch(arrays[0], None, arrays[1], rewards, arrays[2], None, terminated)

    def train(self, make_env: Callable[[], Env], num_envs: int, steps: int, gradient_steps: int) -> Sequence[Floats]:
        agent = self._agent([make_env] * num_envs, learning_starts=START, batch_size=START, gradient_steps=gradient_steps)
        drawn, buffer = list[Floats](), agent.replay_buffer
        # SBX draws the rows of all gradient steps at once.
        buffer.sample = tapped(
            buffer.sample, lambda rows: drawn.extend(rows.observations.numpy().reshape(-1, START, self.problem.observation))
        )
        agent.learn(num_envs * steps)
        return drawn

    def windows(self, rows: Batch[Floats], truncated: Floats, capacity: int, n_step: int, discount: float) -> Windows:
        agent = self._agent([lambda: Still(self.problem)], buffer_size=capacity, n_steps=n_step, gamma=discount)
        buffer, columns = agent.replay_buffer, zip(*(rows.observations, rows.next_observations, rows.actions, rows.rewards), strict=True)
        for (now, after, action, reward), end, cut in zip(columns, rows.terminated, truncated, strict=True):
            buffer.add(
                now[None], after[None], action[None], np.array([reward]), np.array([end or cut]), [{"TimeLimit.truncated": bool(cut)}]
            )
        seen = buffer._get_samples(np.arange(capacity))
        names = ("observations", "rewards", "next_observations", "dones", "discounts")
        return Windows(*(getattr(seen, name).numpy() for name in names))


class StableBaselines3(Family, TorchAdapter):
    """Stable-Baselines3's SAC, in float64 throughout."""

    name = "Stable-Baselines3"
    package: str = "stable_baselines3"

    def prepare(self) -> None:
        super().prepare()
        kind = getattr(importlib.import_module("torch"), self.problem.dtype)
        self.model.policy.to(kind)
        self.model.log_ent_coef.data = self.model.log_ent_coef.data.to(kind)

    def places(self) -> Places:
        models = {"policy": self.model.actor}
        for kind, critics in (("", self.model.critic), ("target_", self.model.critic_target)):
            models |= {f"{kind}critic_{i + 1}": network for i, network in enumerate(critics.q_networks)}
        return torch_places(models, self.model.log_ent_coef)

    def versions(self) -> Mapping[str, str]:
        return version("stable-baselines3", "torch")
