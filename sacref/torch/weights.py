"""Own names and layout of parameters <-> the common ones, which both backends write and read.

Common: `<layer>.kernel` of shape (in, out) and `<layer>.bias`. PyTorch: `<layer>.weight` of shape (out, in). A norm's weight is its
scale, and a recurrent layer holds what are two dense layers in common: of the input, and of the hidden state.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Parameters = dict[str, Tensor]
"""Parameter name, as in `named_parameters()` -> tensor."""


RECURRENT = {"weight_ih_l0": "input.kernel", "weight_hh_l0": "hidden.kernel", "bias_ih_l0": "input.bias", "bias_hh_l0": "hidden.bias"}
"""Parameter of PyTorch's recurrent layers -> its common name."""


class CommonLayout(nn.Module):
    """A model of dense and recurrent layers and norms whose parameters have common names. Models without this base keep their own."""


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

    cells = [layer for layer in model.modules() if isinstance(layer, nn.RNNBase)]

    def apply(parameters: Parameters, *inputs: Any) -> Any:
        with _left_in_place(cells):
            return torch.func.functional_call(model, parameters, inputs)

    return apply


@contextmanager
def _left_in_place(cells: Sequence[nn.RNNBase]) -> Iterator[None]:
    """Keep recurrent layers from moving the parameters that they are called with.

    On CUDA they see that these are not those of the last call, and move them, side by side, to memory of that moment. In a CUDA graph, each
    replay would copy them there anew, from where they lay at the capture, and what was learned in between would be lost.
    """
    for cell in cells:
        vars(cell)["flatten_parameters"] = _nothing
    try:
        yield
    finally:
        for cell in cells:
            vars(cell).pop("flatten_parameters", None)


def _nothing() -> None:
    """In the place of `flatten_parameters`."""


def generators(model: nn.Module) -> dict[str, torch.Generator]:
    """Dotted path -> generator, of those that the model's own layers draw from: random state that belongs to the agent's."""
    found: dict[str, torch.Generator] = {}
    for path, layer in model.named_modules():
        for name, value in vars(layer).items():
            if isinstance(value, torch.Generator):
                found[f"{path}.{name}" if path else name] = value
    return found


def refuse_hidden_state(name: str, model: nn.Module) -> None:
    """Refuse layers that draw from the global generator or change buffers when they are called.

    Raises:
        ValueError: naming the layer. TypeError: if the model is none of PyTorch's.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model {name!r} is a {type(model).__name__}, expected a torch.nn.Module: sacref.torch.default_models makes such")
    for path, layer in model.named_modules():
        if isinstance(layer, nn.modules.batchnorm._NormBase):
            raise ValueError(
                f"model {name!r} has a {type(layer).__name__} at {path!r}, which changes when it is called: "
                f"use layers whose output depends on inputs and parameters alone, such as LayerNorm"
            )
        if isinstance(layer, nn.modules.dropout._DropoutNd | nn.RReLU) or (
            isinstance(layer, nn.RNNBase | nn.MultiheadAttention) and layer.dropout > 0.0
        ):
            raise ValueError(
                f"model {name!r} has a {type(layer).__name__} at {path!r}, which draws from torch's global generator: "
                f"use sacref.torch.models.Dropout, or a layer that draws from a torch.Generator of its own"
            )


def to_common(model: nn.Module, parameters: Mapping[str, Tensor]) -> dict[str, NDArray[Any]]:
    """Parameters, gradients or moments of `model` under common names, as NumPy copies."""
    arrays = {name: tensor.detach().cpu().numpy().copy() for name, tensor in parameters.items()}
    if not isinstance(model, CommonLayout):
        return arrays
    return {_common_name(name): np.ascontiguousarray(a.T) if _is_matrix(name) else a for name, a in arrays.items()}


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
        array = arrays[name].T if common and _is_matrix(own) else arrays[name]
        if array.shape != tuple(like[own].shape):
            raise ValueError(f"parameter {name} has shape {arrays[name].shape}, the model's has {tuple(like[own].shape)} (own layout)")
        parameters[own] = torch.as_tensor(np.array(array, order="C", copy=True)).to(like[own])
    return parameters


def _common_name(name: str) -> str:
    layer, _, part = name.rpartition(".")
    if part == "weight":
        return f"{layer}.scale" if layer.startswith("norms.") else f"{layer}.kernel"
    return f"{layer}.{RECURRENT.get(part, part)}"


def _is_matrix(name: str) -> bool:
    return _common_name(name).endswith("kernel")
