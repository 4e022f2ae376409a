"""Tianshou's SAC, of version 2."""

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sacref.algorithm.data import Batch
from sacref.examine.adapters import version
from sacref.examine.inject import Noise, Places, float32_is, read, torch_dtype, torch_gradients, torch_noise, torch_places, write
from sacref.examine.problem import Problem
from sacref.parity.networks import Arrays, Floats, Named


class Tianshou:
    """Its `update` on a replay buffer that holds one batch of ours, with the networks of its examples."""

    name = "Tianshou"

    def make(self, problem: Problem) -> None:
        torch, sac = importlib.import_module("torch"), importlib.import_module("tianshou.algorithm.modelfree.sac")
        net, continuous = (importlib.import_module(f"tianshou.utils.net.{name}") for name in ("common", "continuous"))
        adam = importlib.import_module("tianshou.algorithm.optim").AdamOptimizerFactory(lr=problem.learning_rate)
        self._problem, self._noise, self._seen = problem, Noise(), list[Arrays]()
        shapes = {"state_shape": (problem.observation,), "hidden_sizes": problem.hidden}

        def critic() -> Any:
            body = net.Net(**shapes, action_shape=(problem.action,), concat=True)
            return continuous.ContinuousCritic(preprocess_net=body)

        with torch_dtype(problem.dtype):
            actor = continuous.ContinuousActorProbabilistic(
                preprocess_net=net.Net(**shapes), action_shape=(problem.action,), unbounded=True, conditioned_sigma=True
            )
            policy = sac.SACPolicy(actor=actor, action_space=problem.action_space)
            alpha = sac.AutoAlpha(-float(problem.action), float(np.log(problem.alpha)), adam)
            self.algorithm: Any = sac.SAC(
                policy=policy,
                policy_optim=adam,
                critic=critic(),
                critic_optim=adam,
                critic2=critic(),
                tau=problem.tau,
                gamma=problem.discount,
                alpha=alpha,
            )
        self.algorithm.to(getattr(torch, problem.dtype))

    def _places(self) -> Places:
        algorithm = self.algorithm
        models = {"policy": algorithm.policy.actor, "critic_1": algorithm.critic, "critic_2": algorithm.critic2}
        models |= {"target_critic_1": algorithm.critic_old, "target_critic_2": algorithm.critic2_old}
        return torch_places(models, algorithm.alpha._log_alpha)

    def set_weights(self, weights: Named) -> None:
        write(self._places(), weights)

    def update(self, batch: Batch[Floats], draws: Floats) -> None:
        data, base = importlib.import_module("tianshou.data"), importlib.import_module("tianshou.algorithm.algorithm_base")
        size = self._problem.batch_size
        buffer = data.ReplayBuffer(size)
        for i in range(size):
            row = {"obs": batch.observations[i], "act": batch.actions[i], "rew": batch.rewards[i], "obs_next": batch.next_observations[i]}
            buffer.add(data.Batch(**row, terminated=bool(batch.terminated[i]), truncated=False, info={}))
        buffer.sample_indices = lambda _: np.arange(size)
        self._noise.fill(draws)
        dtype = self._problem.dtype
        with (
            float32_is(dtype, "tianshou.utils.net.common", "tianshou.utils.net.continuous"),
            torch_dtype(dtype),
            torch_noise(self._noise),
            torch_gradients(self._places) as self._seen,
            base.policy_within_training_step(self.algorithm.policy),
        ):
            self.algorithm.update(buffer, size)

    def weights(self) -> Arrays:
        return read(self._places())

    def gradients(self) -> Sequence[Named]:
        return self._seen

    def versions(self) -> Mapping[str, str]:
        return version("tianshou", "torch")
