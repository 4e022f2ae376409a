"""What the default networks are made of."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sacref.agent.networks import Network
from sacref.algorithm.data import Inputs
from sacref.torch.weights import CommonLayout


class Dropout(nn.Module):
    """Dropout whose random numbers are an argument, so that an update with it is a function of its arguments.

    A model of your own with such layers says in `draw_widths: tuple[int, ...]` how wide each of them is, and is called with one
    uniform array for each. In evaluation mode (`model.eval()`) nothing is dropped and the draws may be left out.

    Args:
        rate: the fraction of units that is dropped, in [0, 1).

    Raises:
        ValueError: if the rate is not in [0, 1).
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        if not 0.0 <= rate < 1.0:
            raise ValueError(f"Dropout: rate is {rate}, expected at least 0 and less than 1: it is the fraction that is dropped")
        self.rate = rate

    def forward(self, x: Float[Tensor, "*batch width"], draws: Tensor | None = None) -> Float[Tensor, "*batch width"]:
        """Keep a unit where its draw is at least the rate, scaled by 1 / (1 - rate).

        Args:
            x: activations. draws: of the same shape, uniform in [0, 1).

        Raises:
            ValueError: if draws are missing or have another shape.
        """
        if not self.training:
            return x
        if draws is None or draws.shape != x.shape:
            raise ValueError(
                f"Dropout: draws are {None if draws is None else tuple(draws.shape)}, expected an array {tuple(x.shape)} of uniform "
                f"numbers: call the model with one of them per Dropout layer (its draw_widths), or after model.eval() without"
            )
        return torch.where(draws >= self.rate, x * (1.0 / (1.0 - self.rate)), 0.0)


class Perceptron(CommonLayout):
    """What the default networks share: hidden blocks of Linear -> [Dropout] -> [LayerNorm] -> ReLU, and a linear head.

    The order of the block is DroQ's (Hiraoka et al. 2022, arXiv:2110.02034).
    """

    def __init__(self, network: Network, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.network = network
        self.draw_widths: tuple[int, ...] = network.hidden if network.dropout else ()
        widths = [network.inputs, *network.hidden]
        self.hidden: nn.ModuleList = nn.ModuleList(linear(i, o, dtype) for i, o in pairwise(widths))
        self.dropouts: nn.ModuleList = nn.ModuleList(Dropout(network.dropout) for _ in self.draw_widths)
        self.norms: nn.ModuleList = nn.ModuleList(
            nn.LayerNorm(width, eps=1e-5, dtype=dtype) for width in network.hidden if network.layer_norm
        )
        self.head: nn.Linear = linear(widths[-1], network.outputs, dtype)

    def read(self, inputs: Inputs[Tensor], axes: int) -> list[Tensor]:
        """The arrays of the space that the network reads, in its order, each `(*batch, n)` where `axes` counts the batch axes."""
        tree = inputs["states"] if self.network.reads == "states" else inputs["observations"]
        arrays = self.network.leaves(tree)
        return [(array.flatten(axes) if array.ndim > axes else array[..., None]).to(self.head.weight.dtype) for array in arrays]

    def perceive(self, parts: Sequence[Tensor], draws: Sequence[Tensor] = ()) -> Float[Tensor, "*batch outputs"]:
        """The head's output for `parts` side by side, `(*batch, n)` each."""
        if draws and len(draws) != len(self.draw_widths):
            raise ValueError(f"got {len(draws)} draws, expected uniform arrays of the widths {self.draw_widths}: one per Dropout layer")
        x = torch.cat(list(parts), dim=-1) if len(parts) > 1 else parts[0]
        for i, layer in enumerate(self.hidden):
            x = layer(x)
            if self.draw_widths:
                x = self.dropouts[i](x, draws[i] if draws else None)
            if self.network.layer_norm:
                x = self.norms[i](x)
            x = torch.relu(x)
        outputs: Tensor = self.head(x)
        return outputs


def linear(inputs: int, outputs: int, dtype: torch.dtype) -> nn.Linear:
    """A dense layer of zeros: the weights are drawn by default_models."""
    layer = nn.Linear(inputs, outputs, dtype=dtype, device="meta")  # torch's own draw would move the global generator
    layer = layer.to_empty(device="cpu")
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
