"""Layers of the default networks."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sacref.agent.networks import EXPANSION, NORM_EPSILON, Network, check_dropout, drop
from sacref.torch.weights import CommonLayout


class Dropout(nn.Module):
    """Dropout whose random numbers are an argument; see `sacref.agent.networks.drop`."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate: float = check_dropout(rate)

    def forward(self, x: Float[Tensor, "*batch width"], draws: Tensor | None = None) -> Float[Tensor, "*batch width"]:
        return drop(x, draws, self.rate) if self.training else x


class Perceptron(CommonLayout):
    """The layers of a default network (`sacref.agent.networks.Perceptron`)."""

    relu: Callable[[Tensor], Tensor] = staticmethod(torch.relu)
    halves: Callable[[Tensor], Sequence[Tensor]] = staticmethod(partial(torch.chunk, chunks=2, dim=-1))

    def __init__(self, network: Network, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.network: Network = network
        self.draw_widths: tuple[int, ...] = network.draw_widths
        widths = [network.inputs, *network.dense_widths]
        self.hidden: nn.ModuleList = nn.ModuleList(linear(i, o, dtype) for i, o in pairwise(widths))
        self.dropouts: nn.ModuleList = nn.ModuleList(Dropout(network.dropout) for _ in self.draw_widths)
        epsilon = NORM_EPSILON[network.kind]
        self.norms: nn.ModuleList = nn.ModuleList(nn.LayerNorm(width, eps=epsilon, dtype=dtype) for width in network.norm_widths)
        self.expand: nn.ModuleList = nn.ModuleList(linear(width, EXPANSION * width, dtype) for width in network.block_widths)
        self.contract: nn.ModuleList = nn.ModuleList(linear(EXPANSION * width, width, dtype) for width in network.block_widths)
        self.head: nn.Linear = linear(widths[-1], network.outputs, dtype)

    @property
    def dtype(self) -> torch.dtype:
        return self.head.weight.dtype


def linear(inputs: int, outputs: int, dtype: torch.dtype) -> nn.Linear:
    """Make a dense layer of zeros: the weights are drawn by default_models."""
    layer = nn.Linear(inputs, outputs, dtype=dtype, device="meta")  # torch's own draw would move the global generator
    layer = layer.to_empty(device="cpu")
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
