"""The default recurrent networks: a policy and a Q-function, each with a cell of its own."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float

from sacref.agent.networks import GATES, Network, recurrent_policy, recurrent_q_function
from sacref.algorithm.tree import Tree
from sacref.jax.layers import Perceptron, linear


class Recurrent(Perceptron):
    """A cell below a perceptron (`sacref.agent.networks.RecurrentPerceptron`)."""

    def __init__(self, network: Network, dtype: DTypeLike = jnp.float32) -> None:
        super().__init__(network, dtype)
        self.cell: RecurrentCell = RecurrentCell(*network.recurrent_cell, dtype)

    @property
    def first_layer(self) -> Any:
        return self.cell.input

    def initial_carry(self, batch: int) -> Tree:
        """Return zeros, `(batch, size)`; see `Cell.initial_carry`."""
        cell = self.network.recurrent_cell
        return cell.initial_carry(jnp.zeros((batch, cell.size), self.head.param_dtype))

    def run_cell(self, inputs: list[Array], carry: Tree) -> tuple[Array, Tree]:
        return self.cell(jnp.concatenate(inputs, axis=-1), carry)


class RecurrentPolicy(Recurrent):
    """Sequences of observations -> Gaussians before the squashing, and the carry."""

    __call__ = recurrent_policy


class RecurrentQFunction(Recurrent):
    """Sequences of observations (or states) and of actions in (-1, 1) -> the soft action values, and the carry."""

    __call__ = recurrent_q_function


class RecurrentCell(nnx.Module):
    """One layer over `(time, batch, inputs)`, by PyTorch's equations.

    Not Flax's cells: they have one bias where PyTorch has two. In `nnx.GRUCell` the recurrent one of the candidate gate, which the
    reset gate scales, is thus missing; elsewhere the sum of two is the same function, but one step of Adam moves it twice as far.
    And they project the input step by step; here it is one product for the whole sequence.
    """

    def __init__(self, kind: str, inputs: int, size: int, dtype: DTypeLike) -> None:
        self.kind: str = kind
        self.input: nnx.Linear = linear(inputs, GATES[kind] * size, dtype)
        self.hidden: nnx.Linear = linear(size, GATES[kind] * size, dtype)

    def __call__(self, x: Float[Array, "time batch inputs"], carry: Tree) -> tuple[Float[Array, "time batch size"], Tree]:
        """Return the hidden state after each step, and the carry after the last one."""
        hidden_layer: Any = self.hidden
        kernel, bias = hidden_layer.kernel[...], hidden_layer.bias[...]
        advance = STEPS[self.kind]

        def step(carry: Tree, projected: Array) -> tuple[Tree, Array]:
            hidden = carry[0] if self.kind == "lstm" else carry
            carry = advance(projected, hidden @ kernel + bias[None], carry)
            return carry, carry[0] if self.kind == "lstm" else carry

        carry, outputs = jax.lax.scan(step, carry, self.input(x))
        return outputs, carry


def rnn_step(x: Float[Array, "batch size"], h: Float[Array, "batch size"], carry: Array) -> Array:
    """Elman 1990: h' = tanh(x + h), of the projected input and the projected hidden state."""
    return jnp.tanh(x + h)


def gru_step(x: Float[Array, "batch gates"], h: Float[Array, "batch gates"], carry: Array) -> Array:
    """Cho et al. 2014, with PyTorch's candidate: the reset gate scales the projected hidden state, its bias included."""
    (reset_x, update_x, new_x), (reset_h, update_h, new_h) = jnp.split(x, 3, axis=-1), jnp.split(h, 3, axis=-1)
    reset, update = jax.nn.sigmoid(reset_x + reset_h), jax.nn.sigmoid(update_x + update_h)
    new = jnp.tanh(new_x + reset * new_h)
    return (1.0 - update) * new + update * carry


def lstm_step(x: Float[Array, "batch gates"], h: Float[Array, "batch gates"], carry: tuple[Array, Array]) -> tuple[Array, Array]:
    """Hochreiter & Schmidhuber 1997, with the forget gate of Gers et al. 2000; the carry is (hidden, cell)."""
    admit, forget, new, output = jnp.split(x + h, 4, axis=-1)
    cell = jax.nn.sigmoid(forget) * carry[1] + jax.nn.sigmoid(admit) * jnp.tanh(new)
    return jax.nn.sigmoid(output) * jnp.tanh(cell), cell


STEPS: dict[str, Callable[[Array, Array, Tree], Tree]] = {"rnn": rnn_step, "gru": gru_step, "lstm": lstm_step}
"""Kind of cell -> (projected input, projected hidden state, carry) -> next carry."""
