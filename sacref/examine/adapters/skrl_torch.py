"""skrl's SAC on PyTorch, with models of its Gaussian and deterministic mixins."""

import importlib
import itertools
from collections.abc import Mapping
from typing import Any

from sacref.examine.adapters import version
from sacref.examine.adapters.skrl import Skrl
from sacref.examine.inject import Places, TorchAdapter, torch_places
from sacref.examine.problem import Problem
from sacref.parity.networks import Floats, Named


class SkrlTorch(Skrl, TorchAdapter):
    """skrl's SAC on PyTorch."""

    name = "skrl torch"
    backend: str = "torch"

    def make(self, problem: Problem) -> None:
        torch, schedule = importlib.import_module("torch"), dict[str, object]()
        if problem.decay < 1:
            exponential = torch.optim.lr_scheduler.ExponentialLR
            schedule = {"learning_rate_scheduler": exponential, "learning_rate_scheduler_kwargs": {"gamma": problem.decay}}
        self.make_with(problem, **schedule)
        alpha = self.agent.log_entropy_coefficient
        alpha.data = alpha.data.to(getattr(torch, problem.dtype))

    def places(self) -> Places:
        return torch_places(self.models, self.agent.log_entropy_coefficient)

    def set_weights(self, weights: Named) -> None:
        super().set_weights(weights)
        self.agent._entropy_coefficient = self.agent.log_entropy_coefficient.detach().exp()

    def array(self, value: Floats) -> object:
        return importlib.import_module("torch").as_tensor(value)

    def versions(self) -> Mapping[str, str]:
        return version("skrl", "torch")

    def build_model(self, name: str, spaces: Mapping[str, object]) -> object:
        """Make a policy or a critic, as skrl's documentation writes them."""
        torch, skrl = importlib.import_module("torch"), importlib.import_module("skrl.models.torch")
        nn, problem, judges = torch.nn, self.problem, name != "policy"
        widths = [problem.observation + judges * problem.action, *problem.hidden]
        layers = [part for pair in itertools.pairwise(widths) for part in (nn.Linear(*pair), nn.ReLU())]

        # Classes whose bases are known when skrl is there.
        def initialise(model: Any) -> None:
            skrl.Model.__init__(model, **spaces, device="cpu")
            mixin.__init__(model, **({} if judges else {"clip_actions": True}))
            model.net = nn.Sequential(*layers, nn.Linear(widths[-1], 1 if judges else 2 * problem.action))

        def policy(model: Any, inputs: Mapping[str, Any], role: str = "") -> tuple[object, dict[str, object]]:
            mean, log_std = model.net(inputs["observations"]).chunk(2, dim=-1)
            return mean, {"log_std": log_std}

        def critic(model: Any, inputs: Mapping[str, Any], role: str = "") -> tuple[object, dict[str, object]]:
            return model.net(torch.cat([inputs["observations"], inputs["taken_actions"]], dim=-1)), {}

        mixin, compute = (skrl.DeterministicMixin, critic) if judges else (skrl.GaussianMixin, policy)
        return type("Model", (mixin, skrl.Model), {"__init__": initialise, "compute": compute})().to(getattr(torch, problem.dtype))
