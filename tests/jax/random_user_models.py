"""Models with random layers as a user writes them in Flax: nnx.Dropout."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from tests.jax import recurrent_user_models
from tests.jax.user_models import Actor, Value


class RandomValue(Value):
    def __init__(self, observations: int, actions: int, rngs: nnx.Rngs) -> None:
        super().__init__(observations, actions, rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, inputs: Any, actions: Array) -> Array:
        x = jnp.concatenate([inputs["observations"], actions], axis=-1)
        return self.out(self.dropout(jax.nn.silu(self.norm(self.dense(x)))))[..., 0]


class RandomRecurrentValue(recurrent_user_models.Value):
    def __init__(self, observations: int, actions: int, rngs: nnx.Rngs) -> None:
        super().__init__(observations, actions, rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, inputs: Any, actions: Array, carry: Any) -> Any:
        outputs, carry = self.cell(inputs["observations"], carry)
        return self.out(jnp.concatenate([self.dropout(outputs), actions], -1))[..., 0], carry


class RandomActor(Actor):
    def __init__(self, observations: int, actions: int, rngs: nnx.Rngs) -> None:
        super().__init__(observations, actions, rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
