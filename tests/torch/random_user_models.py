"""A critic with a random layer as a user writes it in PyTorch: it draws from a generator of its own."""

import torch
from torch import Tensor, nn

from tests.torch.user_models import Value


class Dropout(nn.Module):
    """Half of the units, drawn anew at each call."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(seed)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        return x * 2.0 * (torch.rand(x.shape, generator=self.generator, dtype=x.dtype) < 0.5)


class RandomValue(Value):
    def __init__(self, observations: int, actions: int) -> None:
        super().__init__(observations, actions)
        self.body.append(Dropout(seed=observations))
