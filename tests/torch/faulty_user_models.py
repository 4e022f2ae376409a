"""Models as a user writes them in PyTorch, with a root whose gradient is NaN for observations that begin with a 7."""

from typing import Any

import torch
from torch import Tensor, nn

from tests.torch.user_models import Actor, Value, user_models

FLAG = 7.0


def rooted(values: Tensor, scale: Tensor, inputs: Any) -> Tensor:
    """Plus the root of `scale`, which is 1, times the distance to the flag: where that is 0, its derivative is 0 / sqrt(0)."""
    distance = (inputs["observations"][..., 0] - FLAG).abs().clamp(max=1.0)
    return values + torch.sqrt(scale * distance).reshape(distance.shape + (1,) * (values.ndim - distance.ndim))


class FaultyActor(Actor):
    def __init__(self, observations: int, actions: int) -> None:
        super().__init__(observations, actions)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, inputs: Any) -> tuple[Tensor, Tensor]:
        mean, raw_log_std = super().forward(inputs)
        return rooted(mean, self.scale, inputs), raw_log_std


class FaultyValue(Value):
    def __init__(self, observations: int, actions: int) -> None:
        super().__init__(observations, actions)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, inputs: Any, actions: Tensor) -> Tensor:
        return rooted(super().forward(inputs, actions), self.scale, inputs)


def faulty_models(part: str) -> dict[str, nn.Module]:
    """Of 3 observations and 2 actions; `part` is "policy" or "critics"."""
    models: dict[str, nn.Module] = user_models(3, 2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if part == "policy":
            return models | {"policy": FaultyActor(3, 2)}
        return models | {name: FaultyValue(3, 2) for name in models if name != "policy"}
