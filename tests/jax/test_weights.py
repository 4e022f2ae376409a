"""Random state of models on JAX: each call of the functional form is seeded by its key."""

import pytest

pytest.importorskip("jax")

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from numpy.typing import NDArray

from sacref.jax.weights import functional, parameters_of, random_state, refuse_hidden_state


class Noisy(nnx.Module):
    """Two dropout layers side by side, and a parameter that scales them."""

    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.scale = nnx.Param(jnp.ones((), jnp.float32))
        self.first, self.second = nnx.Dropout(0.5, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x: Array) -> tuple[Array, Array, Array]:
        return self.scale * self.first(x), self.scale * self.second(x), self.scale * self.first(x)


def call(model: nnx.Module, seed: int) -> list[NDArray[np.float32]]:
    parameters = parameters_of(model, jax.local_devices(backend="cpu")[0])
    outputs = jax.jit(functional(model))(parameters, jnp.ones(200, jnp.float32), jax.random.key_data(jax.random.key(seed)))
    return [np.asarray(output) for output in outputs]


def test_random_models_are_known() -> None:
    assert random_state(Noisy())
    assert not random_state(nnx.Linear(2, 2, rngs=nnx.Rngs(0)))
    refuse_hidden_state("critic_1", Noisy())


def test_a_key_decides_what_a_call_draws() -> None:
    model = Noisy()
    first, second, again = call(model, 0)
    assert set(np.unique(first)) == {0.0, 2.0}
    assert 60 < np.count_nonzero(first) < 140
    # Each layer has a stream of its own, and a stream goes on within a call.
    for a, b in ((first, second), (first, again), (second, again)):
        assert 60 < np.count_nonzero(a != b) < 140
    # The model's own state is neither read nor moved.
    model.first(jnp.ones(3))
    for a, b in zip(call(model, 0), (first, second, again), strict=True):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(call(model, 1), (first, second, again), strict=True):
        assert 60 < np.count_nonzero(a != b) < 140


def test_streams_that_are_split_keep_their_shape() -> None:
    @nnx.split_rngs(splits=3)
    @nnx.vmap(in_axes=0)
    def make(rngs: nnx.Rngs) -> nnx.Dropout:
        return nnx.Dropout(0.5, rngs=rngs)

    class Members(nnx.Module):
        def __init__(self) -> None:
            self.scale = nnx.Param(jnp.ones((), jnp.float32))
            self.layers = make(nnx.Rngs(0))

        def __call__(self, x: Array) -> tuple[Array, ...]:
            applied: Array = nnx.vmap(lambda layer, x: layer(x), in_axes=(0, None))(self.layers, x)
            return tuple(applied)

    members = call(Members(), 0)
    assert len(members) == 3
    for i in range(3):
        assert 60 < np.count_nonzero(members[i] != members[i - 1]) < 140
