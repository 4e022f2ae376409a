"""Models as a user writes them in PyTorch: own names, LayerNorm and SiLU."""

from typing import Any

import torch
from torch import Tensor, nn


class Actor(nn.Module):
    def __init__(self, observations: int, actions: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(observations, 8), nn.LayerNorm(8), nn.SiLU())
        self.mu = nn.Linear(8, actions)
        self.spread = nn.Parameter(torch.zeros(actions))

    def forward(self, inputs: Any) -> tuple[Tensor, Tensor]:
        mean = self.mu(self.body(inputs["observations"]))
        return mean, self.spread.expand_as(mean)


class Value(nn.Module):
    def __init__(self, observations: int, actions: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(observations + actions, 8), nn.LayerNorm(8), nn.SiLU())
        self.out = nn.Linear(8, 1)

    def forward(self, inputs: Any, actions: Tensor) -> Tensor:
        values: Tensor = self.out(self.body(torch.cat([inputs["observations"], actions], dim=-1))).squeeze(-1)
        return values


class Flawed(nn.Module):
    """A critic with one more layer, which draws or changes something."""

    def __init__(self, observations: int, actions: int, layer: str) -> None:
        super().__init__()
        self.value = Value(observations, actions)
        self.extra = {"dropout": nn.Dropout(0.1), "batch norm": nn.BatchNorm1d(observations)}[layer]

    def forward(self, inputs: Any, actions: Tensor) -> Tensor:
        values: Tensor = self.value({"observations": self.extra(inputs["observations"])}, actions)
        return values


class Returns(nn.Module):
    """Calls another model and returns what `change` makes of its result."""

    def __init__(self, model: nn.Module, change: Any) -> None:
        super().__init__()
        self.model, self.change = model, change

    def forward(self, *inputs: Any) -> Any:
        return self.change(self.model(*inputs))


class Encoded(nn.Module):
    """Another model, that sees the pixels of images in [0, 1]."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Any, *actions: Tensor) -> Any:
        return self.model({**inputs, "observations": inputs["observations"].flatten(1) / 255.0}, *actions)


class Modal(Value):
    """Twice the value in training mode."""

    def forward(self, inputs: Any, actions: Tensor) -> Tensor:
        return super().forward(inputs, actions) * (2.0 if self.training else 1.0)


def user_models(observations: int, actions: int, seed: int = 0, critic: type[Value] = Value) -> dict[str, nn.Module]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        critics = {f"critic_{i}": critic(observations, actions) for i in (1, 2)}
        return {"policy": Actor(observations, actions), **critics}


def arrays_of(model: nn.Module) -> dict[str, Any]:
    return {name: parameter.detach().numpy().copy() for name, parameter in model.named_parameters()}
