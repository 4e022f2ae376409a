"""Models as a user writes them in Flax: own names, LayerNorm and SiLU."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array


class Actor(nnx.Module):
    def __init__(self, observations: int, actions: int, rngs: nnx.Rngs) -> None:
        self.dense = nnx.Linear(observations, 8, rngs=rngs)
        self.norm = nnx.LayerNorm(8, rngs=rngs)
        self.mu = nnx.Linear(8, actions, rngs=rngs)
        self.spread = nnx.Param(jnp.zeros(actions, jnp.float32))

    def __call__(self, inputs: Any) -> tuple[Array, Array]:
        mean = self.mu(jax.nn.silu(self.norm(self.dense(inputs["observations"]))))
        return mean, jnp.broadcast_to(self.spread[...], mean.shape)


class Value(nnx.Module):
    def __init__(self, observations: int, actions: int, rngs: nnx.Rngs) -> None:
        self.dense = nnx.Linear(observations + actions, 8, rngs=rngs)
        self.norm = nnx.LayerNorm(8, rngs=rngs)
        self.out = nnx.Linear(8, 1, rngs=rngs)

    def __call__(self, inputs: Any, actions: Array) -> Array:
        x = jnp.concatenate([inputs["observations"], actions], axis=-1)
        return self.out(jax.nn.silu(self.norm(self.dense(x))))[..., 0]


class Flawed(nnx.Module):
    """A critic with one more layer, which draws or changes something."""

    def __init__(self, observations: int, actions: int, layer: str) -> None:
        rngs = nnx.Rngs(0)
        self.value = Value(observations, actions, rngs)
        self.extra: Any = nnx.Dropout(0.1, rngs=rngs) if layer == "dropout" else nnx.BatchNorm(observations, rngs=rngs)

    def __call__(self, inputs: Any, actions: Array) -> Array:
        return self.value({"observations": self.extra(inputs["observations"])}, actions)


class Returns(nnx.Module):
    """Calls another model and returns what `change` makes of its result."""

    def __init__(self, model: Any, change: Any) -> None:
        self.model, self.change = model, change

    def __call__(self, *inputs: Any) -> Any:
        return self.change(self.model(*inputs))


class Encoded(nnx.Module):
    """Another model, that sees the pixels of images in [0, 1]."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def __call__(self, inputs: Any, *actions: Array) -> Any:
        pixels = inputs["observations"]
        return self.model({**inputs, "observations": pixels.reshape(pixels.shape[0], -1).astype(jnp.float32) / 255.0}, *actions)


class Modal(Value):
    """Twice the value in training mode."""

    def __init__(self, observations: int, actions: int, rngs: nnx.Rngs) -> None:
        super().__init__(observations, actions, rngs)
        self.deterministic = False

    def __call__(self, inputs: Any, actions: Array) -> Array:
        return super().__call__(inputs, actions) * (1.0 if self.deterministic else 2.0)


def user_models(observations: int, actions: int, seed: int = 0, critic: type[Value] = Value) -> dict[str, nnx.Module]:
    rngs = nnx.Rngs(seed)
    critics = {f"critic_{i}": critic(observations, actions, rngs) for i in (1, 2)}
    return {"policy": Actor(observations, actions, rngs), **critics}


def arrays_of(model: nnx.Module) -> dict[str, Any]:
    flat = nnx.to_flat_state(nnx.state(model, nnx.Param))
    return {".".join(map(str, path)): np.array(variable[...]) for path, variable in flat}
