"""Stable-Baselines3's SAC."""

import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from sacref.algorithm.data import Batch
from sacref.examine.adapter import Env
from sacref.examine.adapters import version
from sacref.examine.inject import Noise, Places, read, torch_dtype, torch_gradients, torch_noise, torch_places, write
from sacref.examine.problem import Problem, Still
from sacref.parity.networks import Arrays, Floats, Named

STEPS = 128
"""Updates of the run that its schedule believes to be in."""


class StableBaselines3:
    """Its `train` with one gradient step, on a batch of ours; float64 throughout."""

    name = "Stable-Baselines3"
    supports: tuple[str, ...] = ("schedule",)

    def make(self, problem: Problem) -> None:
        sb3 = importlib.import_module("stable_baselines3")
        self._problem, self._noise, self._seen = problem, Noise(), list[Arrays]()
        # It casts observations to float32 before they reach the networks.
        policies: Any = importlib.import_module("stable_baselines3.common.policies")
        policies.preprocess_obs = lambda obs, *_, **__: obs
        self.model: Any = sb3.SAC(
            "MlpPolicy",
            Still(problem),
            # Its schedules are functions of the progress that remains.
            learning_rate=lambda remaining: problem.learning_rate * problem.decay ** (STEPS * (1 - remaining)),
            buffer_size=1,
            tau=problem.tau,
            gamma=problem.discount,
            ent_coef=f"auto_{problem.alpha}",
            policy_kwargs={"net_arch": list(problem.hidden)},
            device="cpu",
            seed=problem.seed,
        )
        self._updates = 0
        self._prepare()

    def _prepare(self) -> None:
        kind = getattr(importlib.import_module("torch"), self._problem.dtype)
        self.model.set_logger(importlib.import_module("stable_baselines3.common.logger").Logger(None, []))
        self.model.policy.to(kind)
        self.model.log_ent_coef.data = self.model.log_ent_coef.data.to(kind)

    def _places(self) -> Places:
        model = self.model
        models = {"policy": model.actor}
        for kind, critics in (("", model.critic), ("target_", model.critic_target)):
            models |= {f"{kind}critic_{i + 1}": network for i, network in enumerate(critics.q_networks)}
        return torch_places(models, model.log_ent_coef)

    def set_weights(self, weights: Named) -> None:
        write(self._places(), weights)

    def update(self, batch: Batch[Floats], draws: Floats) -> None:
        torch = importlib.import_module("torch")
        samples = importlib.import_module("stable_baselines3.common.type_aliases").ReplayBufferSamples
        kind = getattr(torch, self._problem.dtype)
        column = {name: torch.as_tensor(value).to(kind)[:, None] for name, value in (("r", batch.rewards), ("t", batch.terminated))}
        observations, actions, after = (torch.as_tensor(x) for x in (batch.observations, batch.actions, batch.next_observations))
        self.model.replay_buffer.sample = lambda *_, **__: samples(observations, actions, after, column["t"], column["r"])
        self._noise.fill(draws)
        self.model._current_progress_remaining = 1 - self._updates / STEPS
        self._updates += 1
        with torch_dtype(self._problem.dtype), torch_noise(self._noise), torch_gradients(self._places) as self._seen:
            self.model.train(gradient_steps=1, batch_size=self._problem.batch_size)

    def weights(self) -> Arrays:
        return read(self._places())

    def gradients(self) -> Sequence[Named]:
        return self._seen

    def act(self, observations: NDArray[Any], *, deterministic: bool) -> NDArray[Any]:
        actions: NDArray[Any] = self.model.predict(observations.astype(self._problem.dtype), deterministic=deterministic)[0]
        return actions

    def save(self, path: Path) -> None:
        self.model.save(path)

    def load(self, path: Path) -> None:
        self.model = type(self.model).load(path, device="cpu")
        self._prepare()

    def collect(self, make_env: Callable[[], Env], num_envs: int, steps: int) -> Batch[Floats]:
        vector = importlib.import_module("stable_baselines3.common.vec_env").DummyVecEnv([make_env] * num_envs)
        size = num_envs * steps
        model = type(self.model)("MlpPolicy", vector, buffer_size=2 * size, learning_starts=2 * size, device="cpu")
        model.learn(size)
        buffer = model.replay_buffer
        # A timeout is stored as an end, and taken back when a batch is sampled.
        ends = buffer.dones * (1 - buffer.timeouts)
        arrays = [array[: buffer.pos].reshape(size, -1) for array in (buffer.observations, buffer.actions, buffer.next_observations)]
        rewards, terminated = (array[: buffer.pos].reshape(size) for array in (buffer.rewards, ends))
        return Batch(arrays[0], None, arrays[1], rewards, arrays[2], None, terminated)

    def versions(self) -> Mapping[str, str]:
        return version("stable-baselines3", "torch")
