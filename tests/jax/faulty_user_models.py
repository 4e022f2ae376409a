"""Models as a user writes them in Flax, with a root whose gradient is NaN for observations that begin with a 7."""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax import Array

from tests.jax.user_models import Actor, Value, user_models

FLAG = 7.0


def rooted(values: Array, scale: Array, inputs: Any) -> Array:
    """Plus the root of `scale`, which is 1, times the distance to the flag: where that is 0, its derivative is 0 / sqrt(0)."""
    distance = jnp.minimum(jnp.abs(inputs["observations"][..., 0] - FLAG), 1.0)
    return values + jnp.sqrt(scale * distance).reshape(distance.shape + (1,) * (values.ndim - distance.ndim))


class FaultyActor(Actor):
    def __init__(self, observations: int, actions: int, rngs: nnx.Rngs) -> None:
        super().__init__(observations, actions, rngs)
        self.scale = nnx.Param(jnp.ones((), jnp.float32))

    def __call__(self, inputs: Any) -> tuple[Array, Array]:
        mean, raw_log_std = super().__call__(inputs)
        return rooted(mean, self.scale[...], inputs), raw_log_std


class FaultyValue(Value):
    def __init__(self, observations: int, actions: int, rngs: nnx.Rngs) -> None:
        super().__init__(observations, actions, rngs)
        self.scale = nnx.Param(jnp.ones((), jnp.float32))

    def __call__(self, inputs: Any, actions: Array) -> Array:
        return rooted(super().__call__(inputs, actions), self.scale[...], inputs)


def faulty_models(part: str) -> dict[str, nnx.Module]:
    """Of 3 observations and 2 actions; `part` is "policy" or "critics"."""
    models: dict[str, nnx.Module] = user_models(3, 2)
    rngs = nnx.Rngs(0)
    if part == "policy":
        return models | {"policy": FaultyActor(3, 2, rngs)}
    return models | {name: FaultyValue(3, 2, rngs) for name in models if name != "policy"}
