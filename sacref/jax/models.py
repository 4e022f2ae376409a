"""The default networks: a Gaussian policy and a Q-function, both ReLU multilayer perceptrons."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from sacref.agent.networks import DefaultModels, gaussian_policy, q_function
from sacref.jax.device import local_devices
from sacref.jax.layers import Dropout, Perceptron
from sacref.jax.recurrent import RecurrentPolicy, RecurrentQFunction
from sacref.jax.weights import from_common, parameters_of, with_parameters
from sacref.spec.arrays import NumpyArray

__all__ = ["Dropout", "GaussianPolicy", "QFunction", "default_models"]


class GaussianPolicy(Perceptron):
    """Observations -> mean and raw log standard deviation of the Gaussian before the squashing."""

    __call__ = gaussian_policy


class QFunction(Perceptron):
    """Observations (or states) and actions in (-1, 1) -> the soft action value."""

    __call__ = q_function


def _fill(model: nnx.Module, weights: Mapping[str, NumpyArray]) -> nnx.Module:
    try:
        place = jax.local_devices(backend="cpu")[0]
    except (RuntimeError, AssertionError):  # JAX_PLATFORMS leaves the CPU out
        place = local_devices()[0]
    return with_parameters(model, from_common(model, weights, like=parameters_of(model, place)))


def _dtype_of(dtype: DTypeLike) -> DTypeLike | None:
    if jnp.dtype(dtype) not in (jnp.float32, jnp.float64):
        return None
    if jax.dtypes.canonicalize_dtype(dtype) != jnp.dtype(dtype):
        raise ValueError("default_models: dtype float64 needs JAX's 64-bit mode: jax.config.update('jax_enable_x64', True), or float32")
    return dtype


default_models: DefaultModels[nnx.Module, DTypeLike] = DefaultModels(
    (GaussianPolicy, RecurrentPolicy), (QFunction, RecurrentQFunction), dtype_of=_dtype_of, fill=_fill
)
"""Build the usual ReLU networks; for the arguments see `sacref.agent.networks.DefaultModels`."""
