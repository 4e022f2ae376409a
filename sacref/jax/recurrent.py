"""The default recurrent networks: a policy and a Q-function, each with a cell of its own."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float

from sacref.agent.networks import GATES, Network, check_carry
from sacref.algorithm.data import Inputs
from sacref.jax.layers import Perceptron, linear


class Recurrent(Perceptron):
    """A cell over the inputs, the previous actions and the previous rewards; above it a perceptron that sees the inputs, too.

    The networks of Ni et al. 2022 (arXiv:2110.05038): each owns its cell, and has a shortcut of the current input.
    """

    def __init__(self, network: Network, dtype: DTypeLike = jnp.float32) -> None:
        super().__init__(network, dtype)
        if network.cell is None:
            raise ValueError("a recurrent network needs a cell: Network(..., cell=Cell(kind, inputs, size))")
        self.kind: str = network.cell.kind
        self.size: int = network.cell.size
        self.cell: RecurrentCell = RecurrentCell(self.kind, network.cell.inputs, self.size, dtype)

    @property
    def first_layer(self) -> Any:
        return self.cell.input

    def initial_carry(self, batch: int) -> Any:
        """Zeros: `(batch, size)`, of an LSTM a tuple of two."""
        zeros = jnp.zeros((batch, self.size), self.head.param_dtype)
        return (zeros, jnp.zeros_like(zeros)) if self.kind == "lstm" else zeros

    def unroll(self, inputs: Inputs[Array], carry: Any) -> tuple[list[Array], Any]:
        """What the perceptron sees at each step, the cell's output first, and the carry after the last step.

        Raises:
            ValueError: if the carry does not fit the inputs.
        """
        seen = self.read(inputs, 2)
        fed = list(seen)
        if "actions" in self.network.feed_previous:
            fed.append(inputs["previous_actions"])
        if "rewards" in self.network.feed_previous:
            fed.append(inputs["previous_rewards"][..., None])
        check_carry(carry, (seen[0].shape[1], self.size), parts=2 if self.kind == "lstm" else 1)
        outputs, carry = self.cell(jnp.concatenate(fed, axis=-1), carry)
        return [outputs, *seen], carry


class RecurrentPolicy(Recurrent):
    """Sequences of observations -> mean and raw log standard deviation of the Gaussians before the squashing."""

    def __call__(
        self, inputs: Inputs[Array], carry: Any
    ) -> tuple[Float[Array, "time batch action"], Float[Array, "time batch action"], Any]:
        """Return mean and raw log_std, each `(time, batch, action)`, and the carry after the last step."""
        parts, carry = self.unroll(inputs, carry)
        mean, raw_log_std = jnp.split(self.perceive(parts), 2, axis=-1)
        return mean, raw_log_std, carry


class RecurrentQFunction(Recurrent):
    """Sequences of observations (or states) and of actions in (-1, 1) -> the soft action values.

    The evaluated actions enter above the cell: the carry knows what was done, not what is asked about, so that one pass serves both.
    """

    def __call__(
        self, inputs: Inputs[Array], actions: Float[Array, "time batch action"], carry: Any, *draws: Array
    ) -> tuple[Float[Array, "time batch"], Any]:
        """Return values, `(time, batch)`, and the carry after the last step.

        `draws` are uniform, `(time, batch, width)`, one for each of `draw_widths`.
        """
        parts, carry = self.unroll(inputs, carry)
        return self.perceive([*parts, actions], draws)[..., 0], carry


class RecurrentCell(nnx.Module):
    """One layer over `(time, batch, inputs)`, by PyTorch's equations.

    Not Flax's cells: they have one bias where PyTorch has two. In `nnx.GRUCell` the recurrent one of the candidate gate, which the
    reset gate scales, is thus missing; elsewhere the sum of two is the same function, but one step of Adam moves it twice as far.
    And they project the input step by step; here it is one product for the whole sequence.
    """

    def __init__(self, kind: str, inputs: int, size: int, dtype: DTypeLike) -> None:
        self.kind = kind
        self.input: nnx.Linear = linear(inputs, GATES[kind] * size, dtype)
        self.hidden: nnx.Linear = linear(size, GATES[kind] * size, dtype)

    def __call__(self, x: Float[Array, "time batch inputs"], carry: Any) -> tuple[Float[Array, "time batch size"], Any]:
        """Return the hidden state after each step, and the carry after the last one."""
        hidden_layer: Any = self.hidden
        kernel, bias = hidden_layer.kernel[...], hidden_layer.bias[...]
        advance = STEPS[self.kind]

        def step(carry: Any, projected: Array) -> tuple[Any, Array]:
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


STEPS: dict[str, Callable[[Array, Array, Any], Any]] = {"rnn": rnn_step, "gru": gru_step, "lstm": lstm_step}
"""Kind of cell -> (projected input, projected hidden state, carry) -> next carry."""
