"""The default networks: a Gaussian policy and a Q-function, both ReLU multilayer perceptrons."""

from collections.abc import Mapping

import torch
from torch import nn

from sacref.agent.networks import DefaultModels, gaussian_policy, q_function
from sacref.spec.arrays import NumpyArray
from sacref.torch.layers import Dropout, Perceptron
from sacref.torch.recurrent import RecurrentPolicy, RecurrentQFunction
from sacref.torch.weights import from_common, parameters_of, with_parameters

__all__ = ["Dropout", "GaussianPolicy", "QFunction", "default_models"]


class GaussianPolicy(Perceptron):
    """Observations -> mean and raw log standard deviation of the Gaussian before the squashing."""

    forward = gaussian_policy


class QFunction(Perceptron):
    """Observations (or states) and actions in (-1, 1) -> the soft action value."""

    forward = q_function


def _fill(model: nn.Module, weights: Mapping[str, NumpyArray]) -> nn.Module:
    return with_parameters(model, from_common(model, weights, like=parameters_of(model, torch.device("cpu"))))


def _dtype_of(dtype: str | torch.dtype) -> torch.dtype | None:
    return {"float32": torch.float32, "float64": torch.float64}.get(str(dtype).removeprefix("torch."))


default_models: DefaultModels[nn.Module, torch.dtype] = DefaultModels(
    (GaussianPolicy, RecurrentPolicy), (QFunction, RecurrentQFunction), dtype_of=_dtype_of, fill=_fill
)
"""Build the usual ReLU networks; for the arguments see `sacref.agent.networks.DefaultModels`."""
