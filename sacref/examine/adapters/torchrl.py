"""TorchRL's SACLoss in the loop of its own example: all losses in one backward pass, then all optimizers."""

import importlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from sacref.algorithm.data import Batch
from sacref.examine.adapters import version
from sacref.examine.inject import Places, TorchAdapter, torch_dtype, torch_places
from sacref.examine.problem import Problem
from sacref.parity.networks import Floats


class TorchRL(TorchAdapter):
    """Its loss with its defaults, a TanhNormal policy on the action's Box, and SoftUpdate."""

    name = "TorchRL"

    def make(self, problem: Problem) -> None:
        torch, nn, rl, specs = (importlib.import_module(name) for name in ("torch", "tensordict.nn", "torchrl.modules", "torchrl.data"))
        objectives, dtype = importlib.import_module("torchrl.objectives"), getattr(torch, problem.dtype)
        self.problem = problem
        layers = {"num_cells": list(problem.hidden), "activation_class": torch.nn.ReLU}
        with torch_dtype(problem.dtype):
            body = rl.MLP(in_features=problem.observation, out_features=2 * problem.action, **layers)
            outputs = torch.nn.Sequential(body, nn.NormalParamExtractor())
            bounds = {"low": -problem.bound, "high": problem.bound}
            self._actor = rl.ProbabilisticActor(
                nn.TensorDictModule(outputs, in_keys=["observation"], out_keys=["loc", "scale"]),
                in_keys=["loc", "scale"],
                spec=specs.Bounded(**bounds, shape=(problem.action,), dtype=dtype),
                distribution_class=rl.TanhNormal,
                distribution_kwargs=bounds,
            )
            critic = rl.ValueOperator(
                rl.MLP(in_features=problem.observation + problem.action, out_features=1, **layers), in_keys=["observation", "action"]
            )
            self.loss: Any = objectives.SACLoss(self._actor, critic, alpha_init=problem.alpha)
            self.loss.make_value_estimator(gamma=problem.discount)
        self.loss.to(dtype)
        self._targets = objectives.SoftUpdate(self.loss, tau=problem.tau)
        groups = [list(each.flatten_keys().values()) for each in (self.loss.qvalue_network_params, self.loss.actor_network_params)]
        self._optimizers = [torch.optim.Adam(group, lr=problem.learning_rate) for group in (*groups, [self.loss.log_alpha])]

    def places(self) -> Places:
        loss, models = self.loss, {"policy": list(self.loss.actor_network_params.flatten_keys().values())}
        for kind, stacked in (("", loss.qvalue_network_params), ("target_", loss.target_qvalue_network_params)):
            models |= {f"{kind}critic_{i + 1}": [each[i] for each in stacked.flatten_keys().values()] for i in range(2)}
        return torch_places(models, loss.log_alpha)

    def learn_from(self, batch: Batch[Floats]) -> None:
        torch, tensordict = importlib.import_module("torch"), importlib.import_module("tensordict")
        rows = batch._replace(actions=self.problem.box(batch.actions)).map(torch.as_tensor)
        ends = rows.terminated[:, None]
        after = {"observation": rows.next_observations, "reward": rows.rewards[:, None], "terminated": ends, "done": ends}
        given = {"observation": rows.observations, "action": rows.actions, "next": after}
        losses = self.loss(tensordict.TensorDict(given, [self.problem.batch_size]))
        (losses["loss_actor"] + losses["loss_qvalue"] + losses["loss_alpha"]).backward()
        for optimizer in self._optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self._targets.step()

    def act(self, observations: Floats, *, deterministic: bool) -> Floats:
        torch, tensordict, envs = (importlib.import_module(name) for name in ("torch", "tensordict", "torchrl.envs.utils"))
        kind = envs.ExplorationType.DETERMINISTIC if deterministic else envs.ExplorationType.RANDOM
        rows = tensordict.TensorDict({"observation": torch.as_tensor(observations)}, [len(observations)])
        with torch_dtype(self.problem.dtype), envs.set_exploration_type(kind), torch.no_grad():
            return np.array(self._actor(rows)["action"])

    def versions(self) -> Mapping[str, str]:
        return version("torchrl", "tensordict", "torch")
