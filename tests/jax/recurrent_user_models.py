"""Recurrent models as a user writes them in Flax: a cell of their own, and a carry of two parts, the second of which counts steps."""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax import Array

WIDTH = 4
Carry = tuple[Array, Array]


class Cell(nnx.Module):
    def __init__(self, inputs: int, rngs: nnx.Rngs) -> None:
        self.mix = nnx.Linear(inputs + WIDTH, WIDTH, rngs=rngs)

    def __call__(self, sequence: Array, carry: Carry) -> tuple[Array, Carry]:
        hidden, steps = carry
        outputs = []
        for inputs in sequence:
            hidden, steps = jnp.tanh(self.mix(jnp.concatenate([inputs, hidden], -1))), steps + 1
            outputs.append(hidden)
        return jnp.stack(outputs), (hidden, steps)


class Model(nnx.Module):
    def initial_carry(self, batch: int) -> Carry:
        return jnp.zeros((batch, WIDTH), jnp.float32), jnp.zeros((batch, 1), jnp.float32)


class Actor(Model):
    def __init__(self, observations: int, actions: int, rngs: nnx.Rngs) -> None:
        self.cell, self.out = Cell(observations, rngs), nnx.Linear(WIDTH, 2 * actions, rngs=rngs)

    def __call__(self, inputs: Any, carry: Carry) -> Any:
        outputs, carry = self.cell(inputs["observations"], carry)
        return (*jnp.split(self.out(outputs), 2, -1), carry)


class Begins(Actor):
    """An actor whose episodes begin with what `first` holds."""

    def __init__(self, observations: int, actions: int, learns: bool) -> None:
        super().__init__(observations, actions, nnx.Rngs(0))
        self.first: Any = (nnx.Param if learns else nnx.Variable)(jnp.full((WIDTH,), 0.5, jnp.float32))

    def initial_carry(self, batch: int) -> Carry:
        return jnp.broadcast_to(self.first[...], (batch, WIDTH)), jnp.zeros((batch, 1), jnp.int32)


class Value(Model):
    def __init__(self, observations: int, actions: int, rngs: nnx.Rngs) -> None:
        self.cell, self.out = Cell(observations, rngs), nnx.Linear(WIDTH + actions, 1, rngs=rngs)

    def __call__(self, inputs: Any, actions: Array, carry: Carry) -> Any:
        outputs, carry = self.cell(inputs["observations"], carry)
        return self.out(jnp.concatenate([outputs, actions], -1))[..., 0], carry


def returns(model: Any, change: Any) -> Any:
    """`model`, returning what `change` makes of its result."""

    own: Any = type(model)
    model.__class__ = type("Changed", (own,), {"__call__": lambda self, *inputs: change(own.__call__(self, *inputs))})
    return model


def carries(model: Any, change: Any) -> Any:
    """`model`, with an initial carry that `change` makes of its own."""

    own: Any = type(model)
    model.__class__ = type("Changed", (own,), {"initial_carry": lambda self, batch: change(own.initial_carry(self, batch))})
    return model


def user_models(observations: int, actions: int) -> dict[str, nnx.Module]:
    rngs = nnx.Rngs(0)
    return {"policy": Actor(observations, actions, rngs), **{f"critic_{i}": Value(observations, actions, rngs) for i in (1, 2)}}
