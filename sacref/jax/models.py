"""The default networks: a Gaussian policy and a Q-function, both ReLU multilayer perceptrons."""

import math
from collections.abc import Sequence
from itertools import pairwise

import gymnasium
import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float

from sacref.envs.spaces import check_spaces
from sacref.initialisation import dense_layers
from sacref.jax.weights import CommonLayout, from_common, parameters_of, with_parameters
from sacref.types import Inputs


class GaussianPolicy(CommonLayout):
    """Observations -> mean and raw log standard deviation of the Gaussian before the squashing."""

    def __init__(self, observation_size: int, action_size: int, hidden: Sequence[int], dtype: DTypeLike = jnp.float32) -> None:
        widths = [observation_size, *hidden]
        self.hidden = nnx.List([_linear(i, o, dtype) for i, o in pairwise(widths)])
        self.head = _linear(widths[-1], 2 * action_size, dtype)

    def __call__(self, inputs: Inputs[Array]) -> tuple[Float[Array, "*batch action"], Float[Array, "*batch action"]]:
        """Return mean and raw log_std, each `(batch, action)`."""
        observations = inputs["observations"]
        x = observations.reshape(observations.shape[0], -1).astype(self.head.param_dtype)
        for layer in self.hidden:
            x = jax.nn.relu(layer(x))
        mean, raw_log_std = jnp.split(self.head(x), 2, axis=-1)
        return mean, raw_log_std


class QFunction(CommonLayout):
    """Observations and actions in (-1, 1) -> the soft action value."""

    def __init__(self, observation_size: int, action_size: int, hidden: Sequence[int], dtype: DTypeLike = jnp.float32) -> None:
        widths = [observation_size + action_size, *hidden]
        self.hidden = nnx.List([_linear(i, o, dtype) for i, o in pairwise(widths)])
        self.head = _linear(widths[-1], 1, dtype)

    def __call__(self, inputs: Inputs[Array], actions: Float[Array, "*batch action"]) -> Float[Array, "*batch"]:
        """Return values, `(batch,)`."""
        observations = inputs["observations"]
        x = jnp.concatenate([observations.reshape(observations.shape[0], -1).astype(actions.dtype), actions], axis=-1)
        for layer in self.hidden:
            x = jax.nn.relu(layer(x))
        value: Array = self.head(x)[..., 0]
        return value


def _linear(inputs: int, outputs: int, dtype: DTypeLike) -> nnx.Linear:
    return nnx.Linear(
        inputs, outputs, dtype=dtype, param_dtype=dtype, kernel_init=nnx.initializers.zeros_init(), rngs=nnx.Rngs(0)
    )  # the weights are drawn by default_models


def default_models(
    *,
    observation_space: gymnasium.Space[object],
    state_space: gymnasium.Space[object] | None = None,
    action_space: gymnasium.Space[object],
    hidden: Sequence[int] = (256, 256),
    seed: int = 0,
    dtype: DTypeLike = "float32",
    num_critics: int = 2,
) -> dict[str, nnx.Module]:
    """Build the usual ReLU networks: `policy` and `critic_1` ... `critic_<num_critics>`.

    The weights come from one NumPy draw per model (`sacref.initialisation`), so one seed gives the same networks on both backends.

    Args:
        observation_space, action_space: Boxes. state_space: must be None.
        hidden: widths of the hidden layers.
        seed: of the initial weights.
        dtype: "float32" or "float64".
        num_critics: how many critics; the target takes their minimum.

    Returns:
        Model name -> `flax.nnx.Module`. Target critics are made by the agent, by copying.

    Raises:
        ValueError, TypeError: if a space or an argument is not supported.
    """
    spaces = check_spaces(observation_space, state_space, action_space)
    if jnp.dtype(dtype) not in (jnp.float32, jnp.float64):
        raise ValueError(f"default_models: dtype is {dtype}, expected float32 or float64")
    if jax.dtypes.canonicalize_dtype(dtype) != jnp.dtype(dtype):
        raise ValueError("default_models: dtype float64 needs JAX's 64-bit mode: jax.config.update('jax_enable_x64', True), or float32")
    if num_critics < 1:
        raise ValueError(f"default_models: num_critics is {num_critics}, expected at least 1 (2 is usual)")
    observations, actions = math.prod(spaces.observation_shape), spaces.action_size
    models: dict[str, nnx.Module] = {"policy": GaussianPolicy(observations, actions, hidden, dtype)}
    draws = {"policy": dense_layers(inputs=observations, hidden=hidden, outputs=2 * actions, seed=seed, model="policy")}
    for name in (f"critic_{i + 1}" for i in range(num_critics)):
        models[name] = QFunction(observations, actions, hidden, dtype)
        draws[name] = dense_layers(inputs=observations + actions, hidden=hidden, outputs=1, seed=seed, model=name)
    cpu = jax.local_devices(backend="cpu")[0]
    return {name: with_parameters(model, from_common(model, draws[name], like=parameters_of(model, cpu))) for name, model in models.items()}
