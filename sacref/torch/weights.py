"""PyTorch's parameters under the names and in the layout that both backends write and read.

Common: `<layer>.kernel` of shape (in, out) and `<layer>.bias`. PyTorch: `<layer>.weight` of shape (out, in). A norm's weight is its
scale, and a recurrent layer holds what are two dense layers in common: of the input, and of the hidden state.
"""

import copy
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from sacref.agent.model_checks import HiddenStateError, check_constants, require_names
from sacref.algorithm import optimizer
from sacref.spec.arrays import NumpyArray

Parameters = optimizer.Parameters[Tensor]
RECURRENT = {"weight_ih_l0": "input.kernel", "weight_hh_l0": "hidden.kernel", "bias_ih_l0": "input.bias", "bias_hh_l0": "hidden.bias"}
"""Parameter of PyTorch's recurrent layers -> its common name."""


class CommonLayout(nn.Module):
    """A model whose parameters have common names. Models without this base keep their own."""


def parameters_of(model: nn.Module, device: torch.device, names: Collection[str] | None = None) -> Parameters:
    """Copy the model's parameters that learn, or those that are named, to `device`.

    Contiguous: the optimizer walks through parameters and gradients side by side.
    """
    learning = {name for name, p in model.named_parameters() if p.requires_grad} if names is None else names
    return {name: p.detach().to(device=device, copy=True).contiguous() for name, p in model.named_parameters() if name in learning}


def constants_of(model: nn.Module, names: Collection[str]) -> Parameters:
    """Return all that the model computes with but the parameters that are named: its frozen parameters and its buffers, themselves."""
    held = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {name: tensor.detach() for name, tensor in held.items() if name not in names}


def identities_of(model: nn.Module) -> dict[str, Hashable]:
    """Return the place in memory of each parameter that learns."""
    return {name: (str(p.device), p.data_ptr()) for name, p in model.named_parameters() if p.requires_grad and p.numel() > 0}


def own_copies(models: Mapping[str, nn.Module], device: torch.device) -> dict[str, nn.Module]:
    """Copy the models to `device`. Frozen parts and generators that they share stay shared.

    Raises:
        ValueError: if one cannot be copied.
    """
    try:
        copied = copy.deepcopy(dict(models))
    except Exception as error:
        raise ValueError(
            f"models {sorted(models)} cannot be copied ({type(error).__name__}: {error}), expected ones that copy.deepcopy takes: keep "
            f"locks, files, environments and tensors with a history out of their attributes"
        ) from error
    for model in copied.values():
        model.to(device)
        for layer in model.modules():
            # Contiguous, so that each can be written in place: a captured graph reads it there.
            vars(layer)["_buffers"].update({name: b.contiguous() for name, b in vars(layer)["_buffers"].items() if b is not None})
    return copied


def set_constants(model: nn.Module, constants: Mapping[str, Tensor]) -> nn.Module:
    """Write these values where the model's frozen parameters and buffers are; return the model."""
    held = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    with torch.no_grad():
        for name, tensor in constants.items():
            held[name].copy_(tensor)
    return model


def with_parameters(model: nn.Module, parameters: Mapping[str, Tensor]) -> nn.Module:
    """Copy `model`, with a copy of `parameters`."""
    copied = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in copied.named_parameters():
            if name in parameters:
                parameter.data = parameters[name].detach().clone()
    return copied


def functional(model: nn.Module) -> Callable[..., Any]:
    """Return `model` as a function `(parameters that learn, *inputs) -> outputs`; the other parameters, and buffers, it has itself."""

    cells = [layer for layer in model.modules() if isinstance(layer, nn.RNNBase)]

    def apply(parameters: Parameters, *inputs: object) -> object:
        with _left_in_place(cells):
            return torch.func.functional_call(model, parameters, inputs)

    return apply


@contextmanager
def _left_in_place(cells: Sequence[nn.RNNBase]) -> Iterator[None]:
    """Keep recurrent layers from moving the parameters that they are called with.

    On CUDA they see that these are not those of the last call, and move them, side by side, to memory of that moment. In a CUDA graph, each
    replay would copy them there again, from where they lay at the capture, and what was learned in between would be lost.
    """
    for cell in cells:
        vars(cell)["flatten_parameters"] = _nothing
    try:
        yield
    finally:
        for cell in cells:
            vars(cell).pop("flatten_parameters", None)


def _nothing() -> None:
    """Stand in for `flatten_parameters`."""


def generators(model: nn.Module) -> dict[str, torch.Generator]:
    """Return the generators that the model's own layers draw from, by dotted path: random state that belongs to the agent's."""
    found: dict[str, torch.Generator] = {}
    for path, layer in model.named_modules():
        for name, value in vars(layer).items():
            if isinstance(value, torch.Generator):
                found[f"{path}.{name}" if path else name] = value
    return found


def refuse_hidden_state(name: str, model: nn.Module) -> None:
    """Refuse layers that draw from the global generator, change buffers when they are called, or have no parameters before they are called,
    and arrays that PyTorch does not know of.

    Raises:
        ValueError: naming the layer, or the array. TypeError: if the model is none of PyTorch's.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model {name!r} is a {type(model).__name__}, expected a torch.nn.Module: sacref.torch.default_models makes such")
    for path, layer in model.named_modules():
        if any(map(nn.parameter.is_lazy, layer.parameters(recurse=False))):
            raise ValueError(
                f"model {name!r} has a {type(layer).__name__} at {path!r}, whose parameters have no shapes yet: call the model once, "
                f"or take a layer that is told its widths"
            )
    check_constants(name, {key: str(tensor.dtype).removeprefix("torch.") for key, tensor in constants_of(model, ()).items()})
    parameters = {id(parameter) for parameter in model.parameters()}
    for path, layer in model.named_modules():
        for key, value in vars(layer).items():
            if key not in ("_parameters", "_buffers", "_modules"):
                for leaf in pytree.tree_leaves(value):
                    if isinstance(leaf, Tensor | np.ndarray) and id(leaf) not in parameters:
                        kind = "plain tensor" if isinstance(leaf, Tensor) else "NumPy array"
                        place = f"{path}.{key}" if path else key
                        raise ValueError(
                            f"model {name!r} has a {kind} at {place!r}, expected arrays to be buffers or parameters: others are neither "
                            f"saved nor moved to the agent's device. Register it, self.register_buffer({key!r}, torch.as_tensor(...))"
                        )
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


def refuse_draws() -> AbstractContextManager[object]:
    """Let operations of this thread that draw from torch's global generators raise a HiddenStateError that names them, meanwhile."""
    mode = type("RefusedDraws", (TorchDispatchMode,), {"__torch_dispatch__": _run_without_draws})
    context: AbstractContextManager[object] = mode()
    return context


def _run_without_draws(_: object, operation: Any, types: object, arguments: Any = (), keywords: Any = None) -> object:
    """Run an operation of PyTorch's, unless it draws."""
    if torch.Tag.nondeterministic_seeded in operation.tags:
        names = [argument.name for argument in operation._schema.arguments]
        given = {**dict(zip(names, arguments, strict=False)), **(keywords or {})}
        # Attention and recurrent layers draw only where they drop something.
        if given.get("generator") is None and all(given.get(name, 0.0) for name in ("dropout", "dropout_p") if name in names):
            raise HiddenStateError(
                f"calls {operation}, which draws from torch's global generator, expected draws from generators of its own alone: use "
                f"sacref.torch.models.Dropout, or a layer that draws from a torch.Generator of its own"
            )
    return operation(*arguments, **(keywords or {}))


def fingerprint(value: object) -> Hashable:
    """Return what a tensor holds, and how often it was written; None for everything else."""
    if not isinstance(value, Tensor):
        return None
    return (
        value._version,
        tuple(value.shape),
        str(value.dtype),
        value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes(),
    )


def to_common(model: nn.Module, parameters: Mapping[str, Tensor]) -> dict[str, NumpyArray]:
    """Return parameters, gradients or moments of `model` under common names, as NumPy copies."""
    arrays = {name: tensor.detach().cpu().numpy().copy() for name, tensor in parameters.items()}
    if not isinstance(model, CommonLayout):
        return arrays
    return {_common_name(name): np.ascontiguousarray(a.T) if _is_matrix(name) else a for name, a in arrays.items()}


def from_common(model: nn.Module, arrays: Mapping[str, NumpyArray], *, like: Mapping[str, Tensor]) -> Parameters:
    """Return the model's own parameters for arrays under common names, in the dtypes and on the devices of `like`.

    Raises:
        ValueError: if names or shapes are not those of `like`.
    """
    common = isinstance(model, CommonLayout)
    expected = {(_common_name(name) if common else name): name for name in like}
    require_names(expected, arrays)
    parameters: Parameters = {}
    for name, own in expected.items():
        array = arrays[name].T if common and _is_matrix(own) else arrays[name]
        if array.shape != tuple(like[own].shape):
            raise ValueError(f"parameter {name} has shape {arrays[name].shape}, the model's has {tuple(like[own].shape)} (own layout)")
        parameters[own] = torch.from_numpy(np.array(array, order="C", copy=True)).to(like[own])
    return parameters


def _common_name(name: str) -> str:
    layer, _, part = name.rpartition(".")
    if part == "weight":
        return f"{layer}.scale" if layer.startswith("norms.") else f"{layer}.kernel"
    return f"{layer}.{RECURRENT.get(part, part)}"


def _is_matrix(name: str) -> bool:
    return _common_name(name).endswith("kernel")
