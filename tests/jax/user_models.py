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


class Frozen(nnx.Variable[Array]):
    """A variable that does not learn."""


class Encoder(nnx.Module):
    """A frozen layer, a plain array of random features, and a mask that has infinities."""

    def __init__(self, observations: int, rngs: nnx.Rngs) -> None:
        self.layer = nnx.Linear(observations, observations, rngs=rngs)
        frozen: Any = self.layer
        frozen.kernel, frozen.bias = Frozen(self.layer.kernel[...]), Frozen(jnp.ones(observations, jnp.float32))
        self.features = jax.random.normal(rngs.params(), (observations,), jnp.float32)
        self.mask = nnx.Variable(jnp.array([0.0, *[-jnp.inf] * (observations - 1)], jnp.float32))

    def __call__(self, inputs: Any) -> dict[str, Array]:
        return {"observations": self.layer(inputs["observations"]) * self.features[None] + jax.nn.softmax(self.mask[...])[None]}


class EncodedActor(Actor):
    def __init__(self, observations: int, actions: int, rngs: nnx.Rngs) -> None:
        super().__init__(observations, actions, rngs)
        self.encoder = Encoder(observations, rngs)

    def __call__(self, inputs: Any) -> tuple[Array, Array]:
        return super().__call__(self.encoder(inputs))


class EncodedValue(Value):
    def __init__(self, observations: int, actions: int, rngs: nnx.Rngs) -> None:
        super().__init__(observations, actions, rngs)
        self.encoder = Encoder(observations, rngs)

    def __call__(self, inputs: Any, actions: Array) -> Array:
        return super().__call__(self.encoder(inputs), actions)


def encoded_models(seed: int = 0) -> dict[str, nnx.Module]:
    """Of 3 observations and 2 actions."""
    rngs = nnx.Rngs(seed)
    return {"policy": EncodedActor(3, 2, rngs), "critic_1": EncodedValue(3, 2, rngs), "critic_2": EncodedValue(3, 2, rngs)}


def share(one: Any, other: Any, part: str) -> None:
    """Let two models have a layer in common."""
    setattr(other, part, getattr(one, part))


class RunningMean:
    """Random numbers in an object of the user's own."""

    def __init__(self) -> None:
        self.generator = np.random.default_rng(0)


class Changing(Actor):
    """Keeps a running mean of what it sees in a variable, counts in a plain array, or draws from a generator, after `place`."""

    def __init__(self, observations: int, actions: int, place: str) -> None:
        super().__init__(observations, actions, nnx.Rngs(0))
        self.place = place
        self.mean = nnx.Variable(jnp.zeros(observations, jnp.float32))
        self.calls = jnp.zeros((), jnp.float32)
        self.statistics = RunningMean()

    def __call__(self, inputs: Any) -> tuple[Array, Array]:
        x, noise = inputs["observations"], 0.0
        if self.place == "mean":
            self.mean[...] = 0.9 * self.mean[...] + 0.1 * x.mean(0)
        elif self.place == "statistics":
            noise = float(self.statistics.generator.normal())
        else:
            self.calls = self.calls + 1.0
        return super().__call__({"observations": x - self.mean[...][None] + noise})


class Tied(Actor):
    """Its mean is a second pass through its own first layer."""

    def __init__(self, observations: int, actions: int, rngs: nnx.Rngs | None = None) -> None:
        super().__init__(observations, actions, rngs or nnx.Rngs(0))
        self.again = nnx.Linear(observations, 8, rngs=nnx.Rngs(1))
        self.again.kernel = self.dense.kernel

    def __call__(self, inputs: Any) -> tuple[Array, Array]:
        mean, spread = super().__call__(inputs)
        return mean + self.again(inputs["observations"])[..., : mean.shape[-1]], spread


class Tabular(nnx.Module):
    """A policy that looks its observations, integers, up in a table, after `cast`."""

    def __init__(self, actions: int, cast: Any) -> None:
        self.table, self.mu = nnx.Embed(256, 4, rngs=nnx.Rngs(0)), nnx.Linear(4, actions, rngs=nnx.Rngs(1))
        self.cast = cast

    def __call__(self, inputs: Any) -> tuple[Array, Array]:
        mean = self.mu(self.table(self.cast(inputs["observations"])).sum(-2))
        return mean, jnp.zeros_like(mean)
