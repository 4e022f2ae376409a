"""TorchRL's SACLoss in the loop of its own example: all losses in one backward pass, then all optimizers."""

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sacref.algorithm.data import Batch
from sacref.examine.adapters import version
from sacref.examine.inject import Noise, torch_dtype, torch_noise
from sacref.examine.problem import Problem
from sacref.parity.networks import Arrays, Floats, Named
from sacref.spec.arrays import NumpyArray


class TorchRL:
    """Its loss with its defaults, a TanhNormal policy on the action's Box, and SoftUpdate."""

    name = "TorchRL"

    def make(self, problem: Problem) -> None:
        torch, nn, rl, specs = (importlib.import_module(name) for name in ("torch", "tensordict.nn", "torchrl.modules", "torchrl.data"))
        objectives = importlib.import_module("torchrl.objectives")
        self._problem, self._noise = problem, Noise()
        layers = {"num_cells": list(problem.hidden), "activation_class": torch.nn.ReLU}
        with torch_dtype(problem.dtype):
            body = rl.MLP(in_features=problem.observation, out_features=2 * problem.action, **layers)
            module = nn.TensorDictModule(
                torch.nn.Sequential(body, nn.NormalParamExtractor()), in_keys=["observation"], out_keys=["loc", "scale"]
            )
            bounds = {"low": -problem.bound, "high": problem.bound}
            actor = rl.ProbabilisticActor(
                module,
                in_keys=["loc", "scale"],
                spec=specs.Bounded(**bounds, shape=(problem.action,), dtype=getattr(torch, problem.dtype)),
                distribution_class=rl.TanhNormal,
                distribution_kwargs=bounds,
            )
            critic = rl.ValueOperator(
                rl.MLP(in_features=problem.observation + problem.action, out_features=1, **layers), in_keys=["observation", "action"]
            )
            self._actor = actor
            self.loss: Any = objectives.SACLoss(actor, critic, alpha_init=problem.alpha)
            self.loss.make_value_estimator(gamma=problem.discount)
        self.loss.to(getattr(torch, problem.dtype))
        self._targets = objectives.SoftUpdate(self.loss, tau=problem.tau)
        groups = {
            "critics": self.loss.qvalue_network_params,
            "policy": self.loss.actor_network_params,
        }
        parameters = {name: list(group.flatten_keys().values()) for name, group in groups.items()}
        parameters["temperature"] = [self.loss.log_alpha]
        self._optimizers = {name: torch.optim.Adam(group, lr=problem.learning_rate) for name, group in parameters.items()}

    def _tensors(self) -> dict[str, tuple[Any, int | None]]:
        """Common name -> its tensor, and which of the critics that are stacked in it."""
        loss = self.loss
        found: dict[str, tuple[Any, int | None]] = {"log_alpha": (loss.log_alpha, None)}
        stacked = {"critic_": loss.qvalue_network_params, "target_critic_": loss.target_qvalue_network_params}
        for prefix, group in {"policy": loss.actor_network_params, **stacked}.items():
            flat = {name: value for name, value in group.flatten_keys(".").items() if name.endswith(("weight", "bias"))}
            numbers = sorted({int(name.split(".")[-2]) for name in flat})
            for name, tensor in flat.items():
                *_, number, kind = name.split(".")
                place = numbers.index(int(number))
                layer = "head" if place == len(numbers) - 1 else f"hidden.{place}"
                common = f"{layer}.{'kernel' if kind == 'weight' else 'bias'}"
                for i in [None] if prefix == "policy" else [0, 1]:
                    found[f"{prefix}{'' if i is None else i + 1}.{common}"] = (tensor, i)
        return found

    def set_weights(self, weights: Named) -> None:
        torch = importlib.import_module("torch")
        with torch.no_grad():
            for name, (tensor, i) in self._tensors().items():
                place = tensor.data if i is None else tensor.data[i]
                place.copy_(torch.as_tensor(np.ascontiguousarray(weights[name].T)).reshape(place.shape))

    def update(self, batch: Batch[Floats], draws: Floats) -> None:
        torch, tensordict = importlib.import_module("torch"), importlib.import_module("tensordict")
        column = {name: torch.as_tensor(value)[:, None] for name, value in (("reward", batch.rewards), ("terminated", batch.terminated))}
        after = {"observation": torch.as_tensor(batch.next_observations), **column, "done": column["terminated"]}
        rows = {
            "observation": torch.as_tensor(batch.observations),
            "action": torch.as_tensor(self._problem.box(batch.actions)),
            "next": after,
        }
        self._noise.fill(draws)
        with torch_dtype(self._problem.dtype), torch_noise(self._noise):
            losses = self.loss(tensordict.TensorDict(rows, [self._problem.batch_size]))
            (losses["loss_actor"] + losses["loss_qvalue"] + losses["loss_alpha"]).backward()
            self._seen = self._read(lambda tensor: tensor.grad, targets=False)
            for optimizer in self._optimizers.values():
                optimizer.step()
                optimizer.zero_grad()
            self._targets.step()

    def _read(self, of: Any, *, targets: bool) -> Arrays:
        found: Arrays = {}
        for name, (tensor, i) in self._tensors().items():
            if targets or not name.startswith("target_"):
                array: NumpyArray = (of(tensor) if i is None else of(tensor)[i]).detach().numpy()
                found[name] = np.array(array.T if array.ndim == 2 else array)
        return found

    def weights(self) -> Arrays:
        return self._read(lambda tensor: tensor, targets=True)

    def gradients(self) -> Sequence[Named]:
        return [self._seen]

    def act(self, observations: Floats, *, deterministic: bool) -> Floats:
        torch, tensordict, envs = (importlib.import_module(name) for name in ("torch", "tensordict", "torchrl.envs.utils"))
        kind = envs.ExplorationType.DETERMINISTIC if deterministic else envs.ExplorationType.RANDOM
        rows = tensordict.TensorDict({"observation": torch.as_tensor(observations)}, [len(observations)])
        with torch_dtype(self._problem.dtype), envs.set_exploration_type(kind), torch.no_grad():
            return np.array(self._actor(rows)["action"])

    def versions(self) -> Mapping[str, str]:
        return version("torchrl", "tensordict", "torch")
