"""Tianshou's SAC, of version 2."""

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode

from sacref.algorithm.data import Batch
from sacref.examine.adapter import Env, Windows
from sacref.examine.adapters import version
from sacref.examine.inject import Places, TorchAdapter, float32_is, torch_dtype, torch_places
from sacref.examine.problem import Problem
from sacref.parity.networks import Floats

MODULES = ("tianshou.utils.net.common", "tianshou.utils.net.continuous")
"""Modules that cast observations to float32."""


class Tianshou(TorchAdapter):
    """Its `update` on a replay buffer that holds one batch of ours, with the networks of its examples."""

    name = "Tianshou"

    def make(self, problem: Problem) -> None:
        torch, sac = importlib.import_module("torch"), importlib.import_module("tianshou.algorithm.modelfree.sac")
        net, continuous = (importlib.import_module(f"tianshou.utils.net.{name}") for name in ("common", "continuous"))
        adam = importlib.import_module("tianshou.algorithm.optim").AdamOptimizerFactory(lr=problem.learning_rate)
        self.problem = problem
        shapes = {"state_shape": (problem.observation,), "hidden_sizes": problem.hidden}
        with torch_dtype(problem.dtype):
            action = {"action_shape": (problem.action,)}
            actor = continuous.ContinuousActorProbabilistic(
                preprocess_net=net.Net(**shapes), **action, unbounded=True, conditioned_sigma=True
            )
            critics = [continuous.ContinuousCritic(preprocess_net=net.Net(**shapes, **action, concat=True)) for _ in range(2)]
            self.algorithm = sac.SAC(
                policy=sac.SACPolicy(actor=actor, action_space=problem.action_space),
                policy_optim=adam,
                critic=critics[0],
                critic_optim=adam,
                critic2=critics[1],
                critic2_optim=adam,
                tau=problem.tau,
                gamma=problem.discount,
                alpha=sac.AutoAlpha(-float(problem.action), float(np.log(problem.alpha)), adam),
            )
        self.algorithm.to(getattr(torch, problem.dtype))

    def places(self) -> Places:
        algorithm = self.algorithm
        models = {"policy": algorithm.policy.actor, "critic_1": algorithm.critic, "critic_2": algorithm.critic2}
        models |= {"target_critic_1": algorithm.critic_old, "target_critic_2": algorithm.critic2_old}
        return torch_places(models, algorithm.alpha._log_alpha)

    def learn_from(self, batch: Batch[Floats]) -> None:
        base, dtype = importlib.import_module("tianshou.algorithm.algorithm_base"), self.problem.dtype
        size = self.problem.batch_size
        buffer = _stored(batch, np.zeros(size, bool), size)
        buffer.sample_indices = lambda _: np.arange(size)
        with float32_is(dtype, *MODULES), base.policy_within_training_step(self.algorithm.policy):
            self.algorithm.update(buffer, size)

    def act(self, observations: Floats, *, deterministic: bool) -> Floats:
        base, data = (importlib.import_module(f"tianshou.{name}") for name in ("algorithm.algorithm_base", "data"))
        chosen = self.algorithm.policy
        with float32_is(self.problem.dtype, *MODULES), base.policy_within_training_step(chosen, enabled=not deterministic):
            acted = chosen(data.Batch(obs=observations, info={})).act.detach().numpy()
        actions: Floats = chosen.map_action(acted)
        return actions

    def save(self, path: Path) -> None:
        importlib.import_module("torch").save(self.algorithm.state_dict(), path)

    def load(self, path: Path) -> None:
        self.algorithm.load_state_dict(importlib.import_module("torch").load(path, weights_only=False))

    def collect(self, make_env: Callable[[], Env], num_envs: int, steps: int, autoreset_mode: AutoresetMode) -> Batch[Floats]:
        data, env = importlib.import_module("tianshou.data"), importlib.import_module("tianshou.env")
        buffer = data.VectorReplayBuffer(2 * num_envs * steps, num_envs)
        collector = data.Collector(self.algorithm.policy, env.DummyVectorEnv([make_env] * num_envs), buffer)
        collector.collect(n_step=num_envs * steps, reset_before_collect=True)
        rows = buffer.sample(0)[0]
        return Batch(rows.obs, None, rows.act, rows.rew, rows.obs_next, None, rows.terminated)

    def windows(self, rows: Batch[Floats], truncated: Floats, capacity: int, n_step: int, discount: float) -> Windows:
        torch, buffer = importlib.import_module("torch"), _stored(rows, truncated, capacity)
        indices, last = np.arange(capacity), list[Floats]()

        def returns(value: float) -> Floats:
            def values(_: object, at: Floats) -> object:
                last.append(at)
                return torch.full((capacity, 1), value, dtype=torch.float64)

            found = self.algorithm.compute_nstep_return(buffer[indices], buffer, indices, values, discount, n_step).returns
            return np.asarray(found).ravel()

        rewards, with_value = returns(0.0), returns(1.0)
        after = buffer[last[0]]
        return Windows(buffer[indices].obs, rewards, after.obs_next, after.terminated, with_value - rewards)

    def versions(self) -> Mapping[str, str]:
        return version("tianshou", "torch")


def _stored(rows: Batch[Floats], truncated: Floats, capacity: int) -> Any:
    """Make a replay buffer of these rows."""
    data = importlib.import_module("tianshou.data")
    buffer = data.ReplayBuffer(capacity)
    columns = (rows.observations, rows.actions, rows.rewards, rows.next_observations, rows.terminated, truncated)
    for now, action, reward, after, end, cut in zip(*columns, strict=True):
        buffer.add(data.Batch(obs=now, act=action, rew=reward, obs_next=after, terminated=bool(end), truncated=bool(cut), info={}))
    return buffer
