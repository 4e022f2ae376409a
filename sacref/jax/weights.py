"""Own names and layout of parameters <-> the common ones, which both backends write and read.

Common: `<layer>.kernel` of shape (in, out) and `<layer>.bias`. Flax has the same, so that here only paths become names.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from numpy.typing import NDArray

Parameters = dict[str, Array]
"""Parameter name, the path in the module joined by dots -> array."""


class CommonLayout(nnx.Module):
    """A model of dense and recurrent layers and norms whose parameters have common names. Models without this base keep their own."""


def parameters_of(model: nnx.Module, device: jax.Device) -> Parameters:
    """A copy of the model's parameters on `device`."""
    variables = nnx.to_flat_state(nnx.state(model, nnx.Param))
    return {name_of(path): jax.device_put(np.array(variable[...]), device) for path, variable in variables}


def with_parameters(model: nnx.Module, parameters: Mapping[str, Array]) -> nnx.Module:
    """A copy of `model` that owns a copy of `parameters`."""
    graph, variables, rest = _split(model)
    copied = {name: jnp.array(array, copy=True) for name, array in parameters.items()}
    merged: nnx.Module = nnx.merge(graph, _fill(variables, copied), nnx.clone(rest))
    return merged


def functional(model: nnx.Module) -> Callable[..., Any]:
    """`model` as a function of its parameters: `(parameters, *inputs) -> outputs`.

    A model with random state (`random_state`) takes one input more, at the end: the key that all its streams start from in this call,
    uint32 `(2,)`, as `jax.random.key_data` of a threefry key.
    """
    graph, variables, rest = _split(model)

    def apply(parameters: Parameters, *inputs: Any) -> Any:
        return nnx.merge(graph, _fill(variables, parameters), rest)(*inputs)

    def apply_random(parameters: Parameters, *inputs_and_key: Any) -> Any:
        *inputs, key = inputs_and_key
        return nnx.merge(graph, _fill(variables, parameters), _reseed(rest, key))(*inputs)

    return apply_random if random_state(model) else apply


def random_state(model: nnx.Module) -> bool:
    """Whether layers of the model draw random numbers, as `nnx.Dropout` does."""
    return bool(nnx.to_flat_state(nnx.state(model, nnx.RngState)))


def _reseed(rest: Any, key: Array) -> Any:
    """The variables with a new key for each stream, `key` folded with the stream's number, and all counts 0."""
    base = jax.random.wrap_key_data(key, impl="threefry2x32")
    filled = []
    for number, (path, variable) in enumerate(nnx.to_flat_state(rest)):
        if isinstance(variable, nnx.RngKey):
            own, shape = jax.random.fold_in(base, number), variable[...].shape
            variable = variable.replace(jax.random.split(own, shape) if shape else own)
        elif isinstance(variable, nnx.RngCount):
            variable = variable.replace(jnp.zeros_like(variable[...]))
        filled.append((path, variable))
    return nnx.from_flat_state(filled)


def _split(model: nnx.Module) -> tuple[Any, Any, Any]:
    """The module's structure, its parameters, and its other variables, which are constants here."""
    parts: Any = nnx.split(model, nnx.Param, ...)
    return parts[0], parts[1], parts[2]


def _fill(variables: Any, parameters: Mapping[str, Array]) -> Any:
    filled = [(path, variable.replace(parameters[name_of(path)])) for path, variable in nnx.to_flat_state(variables)]
    return nnx.from_flat_state(filled)


def name_of(path: tuple[Any, ...]) -> str:
    """A path in the module, `("hidden", 0, "kernel")`, as a name, `hidden.0.kernel`."""
    return ".".join(str(part) for part in path)


def refuse_hidden_state(name: str, model: nnx.Module) -> None:
    """Refuse layers that change variables when they are called; random ones are seeded anew in each call.

    Raises:
        ValueError: naming the variable. TypeError: if the model is none of Flax's nnx.
    """
    if not isinstance(model, nnx.Module):
        raise TypeError(f"model {name!r} is a {type(model).__name__}, expected a flax.nnx.Module: sacref.jax.default_models makes such")
    for path, variable in nnx.to_flat_state(nnx.state(model)):
        if isinstance(variable, nnx.BatchStat):
            raise ValueError(
                f"model {name!r} has a {type(variable).__name__} at {name_of(path)!r}, which changes when it is called: "
                f"use layers whose output depends on inputs and parameters alone, such as LayerNorm"
            )


def to_common(model: nnx.Module, parameters: Mapping[str, Array]) -> dict[str, NDArray[Any]]:
    """Parameters, gradients or moments of `model` under common names, as NumPy copies."""
    return {name: np.array(array) for name, array in parameters.items()}


def from_common(model: nnx.Module, arrays: Mapping[str, NDArray[Any]], *, like: Mapping[str, Array]) -> Parameters:
    """The inverse of `to_common`, in the dtypes and on the devices of `like`.

    Raises:
        ValueError: if names or shapes are not those of `like`.
    """
    if set(like) != set(arrays):
        missing, unknown = sorted(set(like) - set(arrays)), sorted(set(arrays) - set(like))
        raise ValueError(f"parameters do not fit the model: missing {missing}, unknown {unknown}: build the model as it was when saved")
    parameters: Parameters = {}
    for name, own in like.items():
        if arrays[name].shape != own.shape:
            raise ValueError(f"parameter {name} has shape {arrays[name].shape}, the model's has {own.shape}")
        parameters[name] = jax.device_put(jnp.array(arrays[name], dtype=own.dtype), own.sharding)
    return parameters
