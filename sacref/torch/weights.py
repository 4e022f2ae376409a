"""Own names and layout of parameters <-> the common ones, which both backends write and read.

Common: `<layer>.kernel` of shape (in, out) and `<layer>.bias`. PyTorch: `<layer>.weight` of shape (out, in).
"""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Parameters = dict[str, Tensor]
"""Parameter name, as in `named_parameters()` -> tensor."""


class CommonLayout(nn.Module):
    """A model of dense layers whose parameters have common names. Models without this base keep their own names."""


def parameters_of(model: nn.Module, device: torch.device) -> Parameters:
    """A copy of the model's parameters on `device`, contiguous: the optimizer walks through parameters and gradients side by side."""
    return {name: p.detach().to(device=device, copy=True).contiguous() for name, p in model.named_parameters()}


def with_parameters(model: nn.Module, parameters: Mapping[str, Tensor]) -> nn.Module:
    """A copy of `model` that owns a copy of `parameters`."""
    copied = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in copied.named_parameters():
            parameter.data = parameters[name].detach().clone()
    return copied


def functional(model: nn.Module) -> Callable[..., Any]:
    """`model` as a function of its parameters: `(parameters, *inputs) -> outputs`."""

    def apply(parameters: Parameters, *inputs: Any) -> Any:
        return torch.func.functional_call(model, parameters, inputs)

    return apply


def refuse_hidden_state(name: str, model: nn.Module) -> None:
    """Refuse layers that draw random numbers or change buffers when they are called: an update is a function of its arguments.

    Raises:
        ValueError: naming the layer.
    """
    for path, layer in model.named_modules():
        if isinstance(layer, nn.modules.dropout._DropoutNd | nn.modules.batchnorm._NormBase):
            raise ValueError(
                f"model {name!r} has a {type(layer).__name__} at {path!r}, which is random or changes when it is called: "
                f"use layers whose output depends on inputs and parameters alone, such as LayerNorm"
            )


def to_common(model: nn.Module, parameters: Mapping[str, Tensor]) -> dict[str, NDArray[Any]]:
    """Parameters, gradients or moments of `model` under common names, as NumPy copies."""
    arrays = {name: tensor.detach().cpu().numpy().copy() for name, tensor in parameters.items()}
    if not isinstance(model, CommonLayout):
        return arrays
    return {_common_name(name): np.ascontiguousarray(a.T) if name.endswith("weight") else a for name, a in arrays.items()}


def from_common(model: nn.Module, arrays: Mapping[str, NDArray[Any]], *, like: Mapping[str, Tensor]) -> Parameters:
    """The inverse of `to_common`, in the dtypes and on the devices of `like`.

    Raises:
        ValueError: if names or shapes are not those of `like`.
    """
    common = isinstance(model, CommonLayout)
    expected = {(_common_name(name) if common else name): name for name in like}
    if set(expected) != set(arrays):
        missing, unknown = sorted(set(expected) - set(arrays)), sorted(set(arrays) - set(expected))
        raise ValueError(f"parameters do not fit the model: missing {missing}, unknown {unknown}: build the model as it was when saved")
    parameters: Parameters = {}
    for name, own in expected.items():
        array = arrays[name].T if common and own.endswith("weight") else arrays[name]
        if array.shape != tuple(like[own].shape):
            raise ValueError(f"parameter {name} has shape {arrays[name].shape}, the model's has {tuple(like[own].shape)} (own layout)")
        parameters[own] = torch.as_tensor(np.array(array, order="C", copy=True)).to(like[own])
    return parameters


def _common_name(name: str) -> str:
    return name.removesuffix("weight") + "kernel" if name.endswith("weight") else name
