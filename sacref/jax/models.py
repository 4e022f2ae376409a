"""The default networks: a Gaussian policy and a Q-function, both ReLU multilayer perceptrons."""

from collections.abc import Sequence
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float

from sacref.agent.networks import default_networks
from sacref.algorithm.data import Inputs
from sacref.envs.spaces import check_spaces
from sacref.jax.device import local_devices
from sacref.jax.layers import Dropout, Perceptron
from sacref.jax.recurrent import RecurrentPolicy, RecurrentQFunction
from sacref.jax.weights import from_common, parameters_of, with_parameters

__all__ = ["Dropout", "GaussianPolicy", "QFunction", "default_models"]


class GaussianPolicy(Perceptron):
    """Observations -> mean and raw log standard deviation of the Gaussian before the squashing."""

    def __call__(self, inputs: Inputs[Array]) -> tuple[Float[Array, "batch action"], Float[Array, "batch action"]]:
        """Return mean and raw log_std, each `(batch, action)`."""
        mean, raw_log_std = jnp.split(self.perceive(self.read(inputs, 1)), 2, axis=-1)
        return mean, raw_log_std


class QFunction(Perceptron):
    """Observations (or states) and actions in (-1, 1) -> the soft action value."""

    def __call__(self, inputs: Inputs[Array], actions: Float[Array, "batch action"], *draws: Array) -> Float[Array, "batch"]:
        """Return values, `(batch,)`; `draws` are uniform, `(batch, width)`, one for each of `draw_widths`."""
        value: Array = self.perceive([*self.read(inputs, 1), actions], draws)[..., 0]
        return value


def default_models(
    *,
    observation_space: gymnasium.Space[Any],
    state_space: gymnasium.Space[Any] | None = None,
    action_space: gymnasium.Space[Any],
    hidden: Sequence[int] = (256, 256),
    seed: int = 0,
    dtype: DTypeLike = "float32",
    num_critics: int = 2,
    layer_norm: bool = False,
    dropout: float = 0.0,
    recurrent: str | None = None,
    recurrent_size: int = 128,
    feed_previous: Sequence[str] = ("actions",),
) -> dict[str, nnx.Module]:
    """Build the usual ReLU networks: `policy` and `critic_1` ... `critic_<num_critics>`.

    The weights come from one NumPy draw per model (`sacref.agent.networks`), so one seed gives the same networks on both backends.
    Arrays of a Dict space are flattened and put side by side in the space's order.

    Args:
        observation_space: a Box, or a (nested) Dict of Boxes; no images (uint8 with two or more axes). action_space: a Box.
        state_space: what the critics read in the place of the observations, of the same kinds; None for symmetric critics.
        hidden: widths of the hidden layers.
        seed: of the initial weights.
        dtype: "float32" or "float64".
        num_critics: how many critics; the target takes their minimum.
        layer_norm: normalise the hidden layers of the critics.
        dropout: the fraction of the critics' hidden units that is dropped, in [0, 1). With layer_norm: DroQ's critics (Hiraoka et
            al. 2022, arXiv:2110.02034).
        recurrent: None, or the kind of cell that each model owns: "rnn", "gru" or "lstm" (models for SAC_RNN).
        recurrent_size: of the cell's hidden state.
        feed_previous: what of the step before enters the cell beside the inputs: some of "actions" and "rewards".

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
    networks = default_networks(
        spaces,
        hidden=hidden,
        num_critics=num_critics,
        layer_norm=layer_norm,
        dropout=dropout,
        recurrent=recurrent,
        recurrent_size=recurrent_size,
        feed_previous=feed_previous,
    )
    policy, critic = (GaussianPolicy, QFunction) if recurrent is None else (RecurrentPolicy, RecurrentQFunction)
    try:
        place = jax.local_devices(backend="cpu")[0]
    except (RuntimeError, AssertionError):  # JAX_PLATFORMS leaves the CPU out
        place = local_devices()[0]
    models: dict[str, nnx.Module] = {}
    for name, network in networks.items():
        model = (policy if name == "policy" else critic)(network, dtype)
        models[name] = with_parameters(model, from_common(model, network.draw(seed=seed, model=name), like=parameters_of(model, place)))
    return models
