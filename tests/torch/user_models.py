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


class Encoder(nn.Module):
    """A frozen layer, a buffer of random features, and a mask that is not persistent and has infinities."""

    features: Tensor
    mask: Tensor

    def __init__(self, observations: int) -> None:
        super().__init__()
        self.layer = nn.Linear(observations, observations).requires_grad_(False)
        self.register_buffer("features", torch.randn(observations))
        self.register_buffer("mask", torch.tensor([0.0, *[-torch.inf] * (observations - 1)]), persistent=False)

    def forward(self, inputs: Any) -> dict[str, Tensor]:
        return {"observations": self.layer(inputs["observations"]) * self.features + torch.softmax(self.mask, -1)}


class EncodedActor(Actor):
    def __init__(self, observations: int, actions: int) -> None:
        super().__init__(observations, actions)
        self.encoder = Encoder(observations)

    def forward(self, inputs: Any) -> tuple[Tensor, Tensor]:
        return super().forward(self.encoder(inputs))


class EncodedValue(Value):
    def __init__(self, observations: int, actions: int) -> None:
        super().__init__(observations, actions)
        self.encoder = Encoder(observations)

    def forward(self, inputs: Any, actions: Tensor) -> Tensor:
        return super().forward(self.encoder(inputs), actions)


def encoded_models(seed: int = 0) -> dict[str, nn.Module]:
    """Of 3 observations and 2 actions."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return {"policy": EncodedActor(3, 2), "critic_1": EncodedValue(3, 2), "critic_2": EncodedValue(3, 2)}


def share(one: nn.Module, other: nn.Module, part: str) -> None:
    """Let two models have a layer in common."""
    setattr(other, part, getattr(one, part))


class RunningMean:
    """Statistics in an object of the user's own."""

    def __init__(self) -> None:
        self.mean = 0.0


class Changing(Actor):
    """Keeps a running mean of what it sees, in one of three places."""

    mean: Tensor

    def __init__(self, observations: int, actions: int, place: str) -> None:
        super().__init__(observations, actions)
        self.place = place
        self.register_buffer("mean", torch.zeros(observations))
        self.statistics = RunningMean()
        self.calls = 0

    def forward(self, inputs: Any) -> tuple[Tensor, Tensor]:
        x = inputs["observations"]
        if self.place == "mean":
            self.mean = 0.9 * self.mean + 0.1 * x.mean(0)
        elif self.place == "statistics":
            self.statistics.mean += 0.1 * float(x.mean())
        else:
            self.calls += 1
        return super().forward({"observations": x - self.mean - self.statistics.mean})


class Tied(Actor):
    """Its mean is a second pass through its own first layer."""

    def __init__(self, observations: int, actions: int) -> None:
        super().__init__(observations, actions)
        first: Any = self.body[0]
        self.again = nn.Linear(observations, 8)
        self.again.weight = first.weight

    def forward(self, inputs: Any) -> tuple[Tensor, Tensor]:
        mean, spread = super().forward(inputs)
        return mean + self.again(inputs["observations"])[..., : mean.shape[-1]], spread


class Tabular(nn.Module):
    """A policy that looks its observations, integers, up in a table, after `cast`."""

    def __init__(self, actions: int, cast: Any) -> None:
        super().__init__()
        self.table, self.mu, self.cast = nn.Embedding(256, 4), nn.Linear(4, actions), cast

    def forward(self, inputs: Any) -> tuple[Tensor, Tensor]:
        mean = self.mu(self.table(self.cast(inputs["observations"])).sum(-2))
        return mean, torch.zeros_like(mean)
