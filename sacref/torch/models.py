"""The default networks: a Gaussian policy and a Q-function, both ReLU multilayer perceptrons."""

import math
from collections.abc import Sequence
from itertools import pairwise

import gymnasium
import torch
from jaxtyping import Float
from torch import Tensor, nn

from sacref.envs.spaces import check_spaces
from sacref.initialisation import dense_layers
from sacref.torch.weights import CommonLayout, from_common, parameters_of, with_parameters
from sacref.types import Inputs


class GaussianPolicy(CommonLayout):
    """Observations -> mean and raw log standard deviation of the Gaussian before the squashing."""

    def __init__(self, observation_size: int, action_size: int, hidden: Sequence[int], dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        widths = [observation_size, *hidden]
        self.hidden = nn.ModuleList(_linear(i, o, dtype) for i, o in pairwise(widths))
        self.head = _linear(widths[-1], 2 * action_size, dtype)

    def forward(self, inputs: Inputs[Tensor]) -> tuple[Float[Tensor, "*batch action"], Float[Tensor, "*batch action"]]:
        """Return mean and raw log_std, each `(batch, action)`."""
        x = inputs["observations"].flatten(1).to(self.head.weight.dtype)
        for layer in self.hidden:
            x = torch.relu(layer(x))
        mean, raw_log_std = self.head(x).chunk(2, dim=-1)
        return mean, raw_log_std


class QFunction(CommonLayout):
    """Observations and actions in (-1, 1) -> the soft action value."""

    def __init__(self, observation_size: int, action_size: int, hidden: Sequence[int], dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        widths = [observation_size + action_size, *hidden]
        self.hidden = nn.ModuleList(_linear(i, o, dtype) for i, o in pairwise(widths))
        self.head = _linear(widths[-1], 1, dtype)

    def forward(self, inputs: Inputs[Tensor], actions: Float[Tensor, "*batch action"]) -> Float[Tensor, "*batch"]:
        """Return values, `(batch,)`."""
        x = torch.cat([inputs["observations"].flatten(1).to(actions.dtype), actions], dim=-1)
        for layer in self.hidden:
            x = torch.relu(layer(x))
        value: Tensor = self.head(x)[..., 0]
        return value


def _linear(inputs: int, outputs: int, dtype: torch.dtype) -> nn.Linear:
    layer = nn.Linear(inputs, outputs, dtype=dtype, device="meta")  # torch's own draw would move the global generator
    layer = layer.to_empty(device="cpu")
    nn.init.zeros_(layer.weight)  # the weights are drawn by default_models
    nn.init.zeros_(layer.bias)
    return layer


def default_models(
    *,
    observation_space: gymnasium.Space[object],
    state_space: gymnasium.Space[object] | None = None,
    action_space: gymnasium.Space[object],
    hidden: Sequence[int] = (256, 256),
    seed: int = 0,
    dtype: str | torch.dtype = "float32",
    num_critics: int = 2,
) -> dict[str, nn.Module]:
    """Build the usual ReLU networks: `policy` and `critic_1` ... `critic_<num_critics>`.

    The weights come from one NumPy draw per model (`sacref.initialisation`), so one seed gives the same networks on both backends.

    Args:
        observation_space, action_space: Boxes. state_space: must be None.
        hidden: widths of the hidden layers.
        seed: of the initial weights.
        dtype: "float32" or "float64".
        num_critics: how many critics; the target takes their minimum.

    Returns:
        Model name -> `torch.nn.Module`. Target critics are made by the agent, by copying.

    Raises:
        ValueError, TypeError: if a space or an argument is not supported.
    """
    spaces = check_spaces(observation_space, state_space, action_space)
    dtypes: dict[object, torch.dtype] = {"float32": torch.float32, "float64": torch.float64}
    kind = dtypes.get(str(dtype).removeprefix("torch."))
    if kind is None:
        raise ValueError(f"default_models: dtype is {dtype}, expected float32 or float64")
    if num_critics < 1:
        raise ValueError(f"default_models: num_critics is {num_critics}, expected at least 1 (2 is usual)")
    observations, actions = math.prod(spaces.observation_shape), spaces.action_size
    models: dict[str, nn.Module] = {"policy": GaussianPolicy(observations, actions, hidden, kind)}
    draws = {"policy": dense_layers(inputs=observations, hidden=hidden, outputs=2 * actions, seed=seed, model="policy")}
    for name in (f"critic_{i + 1}" for i in range(num_critics)):
        models[name] = QFunction(observations, actions, hidden, kind)
        draws[name] = dense_layers(inputs=observations + actions, hidden=hidden, outputs=1, seed=seed, model=name)
    cpu = torch.device("cpu")
    return {name: with_parameters(model, from_common(model, draws[name], like=parameters_of(model, cpu))) for name, model in models.items()}
