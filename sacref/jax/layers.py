"""What the default networks are made of."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float

from sacref.agent.networks import Network
from sacref.algorithm.data import Inputs
from sacref.jax.weights import CommonLayout


class Dropout(nnx.Module):
    """Dropout whose random numbers are an argument, so that an update with it is a function of its arguments.

    A model of your own with such layers says in `draw_widths: tuple[int, ...]` how wide each of them is, and is called with one
    uniform array for each. In evaluation mode (`model.eval()`) nothing is dropped and the draws may be left out.

    Args:
        rate: the fraction of units that is dropped, in [0, 1).

    Raises:
        ValueError: if the rate is not in [0, 1).
    """

    def __init__(self, rate: float) -> None:
        if not 0.0 <= rate < 1.0:
            raise ValueError(f"Dropout: rate is {rate}, expected at least 0 and less than 1: it is the fraction that is dropped")
        self.rate = rate
        self.deterministic = False

    def __call__(self, x: Float[Array, "*batch width"], draws: Array | None = None) -> Float[Array, "*batch width"]:
        """Keep a unit where its draw is at least the rate, scaled by 1 / (1 - rate).

        Args:
            x: activations. draws: of the same shape, uniform in [0, 1).

        Raises:
            ValueError: if draws are missing or have another shape.
        """
        if self.deterministic:
            return x
        if draws is None or draws.shape != x.shape:
            raise ValueError(
                f"Dropout: draws are {None if draws is None else tuple(draws.shape)}, expected an array {tuple(x.shape)} of uniform "
                f"numbers: call the model with one of them per Dropout layer (its draw_widths), or after model.eval() without"
            )
        return jnp.where(draws >= self.rate, x * (1.0 / (1.0 - self.rate)), 0.0)


class Perceptron(CommonLayout):
    """What the default networks share: hidden blocks of Linear -> [Dropout] -> [LayerNorm] -> ReLU, and a linear head.

    The order of the block is DroQ's (Hiraoka et al. 2022, arXiv:2110.02034).
    """

    def __init__(self, network: Network, dtype: DTypeLike = jnp.float32) -> None:
        self.network = network
        self.draw_widths: tuple[int, ...] = network.hidden if network.dropout else ()
        widths = [network.inputs, *network.hidden]
        self.hidden: nnx.List[nnx.Linear] = nnx.List([linear(i, o, dtype) for i, o in pairwise(widths)])
        self.dropouts: nnx.List[Dropout] = nnx.List([Dropout(network.dropout) for _ in self.draw_widths])
        self.norms: nnx.List[nnx.LayerNorm] = nnx.List([layer_norm(width, dtype) for width in network.hidden if network.layer_norm])
        self.head: nnx.Linear = linear(widths[-1], network.outputs, dtype)

    def read(self, inputs: Inputs[Array], axes: int) -> list[Array]:
        """The arrays of the space that the network reads, in its order, each `(*batch, n)` where `axes` counts the batch axes."""
        tree = inputs["states"] if self.network.reads == "states" else inputs["observations"]
        arrays = self.network.leaves(tree)
        dtype = self.first_layer.kernel[...].dtype  # its own, or the one that it was cast to
        return [array.reshape(*array.shape[:axes], math.prod(array.shape[axes:])).astype(dtype) for array in arrays]

    @property
    def first_layer(self) -> Any:
        """The layer that the inputs enter."""
        return self.hidden[0] if len(self.hidden) else self.head

    def perceive(self, parts: Sequence[Array], draws: Sequence[Array] = ()) -> Float[Array, "*batch outputs"]:
        """The head's output for `parts` side by side, `(*batch, n)` each."""
        if draws and len(draws) != len(self.draw_widths):
            raise ValueError(f"got {len(draws)} draws, expected uniform arrays of the widths {self.draw_widths}: one per Dropout layer")
        x = jnp.concatenate(parts, axis=-1) if len(parts) > 1 else parts[0]
        for i, layer in enumerate(self.hidden):
            x = layer(x)
            if self.draw_widths:
                x = self.dropouts[i](x, draws[i] if draws else None)
            if self.network.layer_norm:
                x = self.norms[i](x)
            x = jax.nn.relu(x)
        return self.head(x)


def linear(inputs: int, outputs: int, dtype: DTypeLike) -> nnx.Linear:
    """A dense layer of zeros: the weights are drawn by default_models. It computes in what parameters and inputs promote to."""
    return nnx.Linear(inputs, outputs, param_dtype=dtype, kernel_init=nnx.initializers.zeros_init(), rngs=nnx.Rngs(0))


def layer_norm(width: int, dtype: DTypeLike) -> nnx.LayerNorm:
    """PyTorch's: Flax's epsilon is 1e-6, and its fast variance loses digits to the mean."""
    return nnx.LayerNorm(width, epsilon=1e-5, use_fast_variance=False, param_dtype=dtype, rngs=nnx.Rngs(0))
