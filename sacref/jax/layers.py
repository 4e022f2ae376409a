"""Layers of the default networks."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float

from sacref.agent.networks import EXPANSION, NORM_EPSILON, Network, check_dropout, drop
from sacref.jax.weights import CommonLayout


class Dropout(nnx.Module):
    """Dropout whose random numbers are an argument; see `sacref.agent.networks.drop`."""

    def __init__(self, rate: float) -> None:
        self.rate: float = check_dropout(rate)
        self.deterministic = False

    def __call__(self, x: Float[Array, "*batch width"], draws: Array | None = None) -> Float[Array, "*batch width"]:
        return x if self.deterministic else drop(x, draws, self.rate)


class Perceptron(CommonLayout):
    """The layers of a default network (`sacref.agent.networks.Perceptron`)."""

    relu: Callable[[Array], Array] = staticmethod(jax.nn.relu)
    halves: Callable[[Array], Sequence[Array]] = staticmethod(partial(jnp.split, indices_or_sections=2, axis=-1))

    def __init__(self, network: Network, dtype: DTypeLike = jnp.float32) -> None:
        self.network: Network = network
        self.draw_widths: tuple[int, ...] = network.draw_widths
        widths = [network.inputs, *network.dense_widths]
        self.hidden: nnx.List[nnx.Linear] = nnx.List([linear(i, o, dtype) for i, o in pairwise(widths)])
        self.dropouts: nnx.List[Dropout] = nnx.List([Dropout(network.dropout) for _ in self.draw_widths])
        self.norms: nnx.List[nnx.LayerNorm] = nnx.List(
            [layer_norm(width, NORM_EPSILON[network.kind], dtype) for width in network.norm_widths]
        )
        self.expand: nnx.List[nnx.Linear] = nnx.List([linear(width, EXPANSION * width, dtype) for width in network.block_widths])
        self.contract: nnx.List[nnx.Linear] = nnx.List([linear(EXPANSION * width, width, dtype) for width in network.block_widths])
        self.head: nnx.Linear = linear(widths[-1], network.outputs, dtype)

    @property
    def first_layer(self) -> Any:
        """The layer that the inputs enter."""
        return self.hidden[0] if len(self.hidden) else self.head

    @property
    def dtype(self) -> DTypeLike:
        dtype: DTypeLike = self.first_layer.kernel[...].dtype  # its own, or the one that it was cast to
        return dtype


def linear(inputs: int, outputs: int, dtype: DTypeLike) -> nnx.Linear:
    """Make a dense layer of zeros: the weights are drawn by default_models. It computes in what parameters and inputs promote to."""
    return nnx.Linear(inputs, outputs, param_dtype=dtype, kernel_init=nnx.initializers.zeros_init(), rngs=nnx.Rngs(0))


def layer_norm(width: int, epsilon: float, dtype: DTypeLike) -> nnx.LayerNorm:
    """Make PyTorch's layer: Flax's fast variance loses digits to the mean."""
    return nnx.LayerNorm(width, epsilon=epsilon, use_fast_variance=False, param_dtype=dtype, rngs=nnx.Rngs(0))
