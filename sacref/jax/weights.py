"""Flax's parameters under the names and in the layout that both backends write and read.

Common: `<layer>.kernel` of shape (in, out) and `<layer>.bias`. Flax has the same, so that here only paths become names.
"""

from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from sacref.agent.model_checks import HiddenStateError, changes, check_constants, require_names
from sacref.algorithm import optimizer
from sacref.jax.device import Device
from sacref.spec.arrays import NumpyArray

Parameters = optimizer.Parameters[Array]


class CommonLayout(nnx.Module):
    """A model of dense and recurrent layers and norms, all named by the common names; one without this base keeps its own."""


def parameters_of(model: nnx.Module, device: Device, names: Collection[str] | None = None) -> Parameters:
    """Copy the model's parameters, which are its nnx.Param, or the variables that are named, to `device`."""
    variables = _named(model, nnx.Param) if names is None else {name: v for name, v in _named(model).items() if name in names}
    return {name: jax.device_put(np.array(variable[...]), device) for name, variable in variables.items()}


def constants_of(model: nnx.Module, names: Collection[str]) -> Parameters:
    """Return all that the model computes with but the parameters that are named: its other variables and arrays.

    Those are nnx's way of saying that something does not learn. Random state, and values that were only looked at (`sow`), are none.
    """
    held = _named(model, nnx.Not(nnx.Any(nnx.RngState, nnx.Intermediate)))
    return {name: jnp.asarray(variable[...]) for name, variable in held.items() if name not in names}


def identities_of(model: nnx.Module) -> dict[str, Hashable]:
    """Identify each parameter, equally where it is shared."""
    return {name: id(variable) for name, variable in _named(model, nnx.Param).items()}


def own_copies(models: Mapping[str, nnx.Module]) -> dict[str, nnx.Module]:
    """Copy the models; their constants are on no device in particular: a compiled call takes them to its own."""
    return {name: set_constants(model, constants_of(model, identities_of(model))) for name, model in models.items()}


def set_constants(model: nnx.Module, constants: Mapping[str, object]) -> nnx.Module:
    """Copy the model with these values for its own."""
    graph, variables, rest = _split(model)
    held = [(path, _replaced(variable, constants.get(name_of(path)))) for path, variable in nnx.to_flat_state(rest)]
    merged: nnx.Module = nnx.merge(graph, variables, nnx.from_flat_state(held), copy=True)
    return merged


def _replaced(variable: object, value: object) -> object:
    """Return a variable, or a plain array, with another value; where that is None, as it is."""
    if value is None:
        return variable
    array = jnp.asarray(np.asarray(value))
    return variable.replace(array) if isinstance(variable, nnx.Variable) else array


def _named(model: nnx.Module, kept: nnx.filterlib.Filter = ...) -> dict[str, Any]:
    """Return the model's variables and plain arrays that the filter `kept` lets through, by name."""
    return {name_of(path): variable for path, variable in nnx.to_flat_state(nnx.state(model, kept))}


def with_parameters(model: nnx.Module, parameters: Mapping[str, Array]) -> nnx.Module:
    """Copy `model`, with a copy of `parameters`."""
    graph, variables, rest = _split(model)
    copied = {name: jnp.array(array, copy=True) for name, array in parameters.items()}
    merged: nnx.Module = nnx.merge(graph, _fill(variables, copied), nnx.clone(rest))
    return merged


def functional(model: nnx.Module) -> Callable[..., Any]:
    """Return `model` as a function of its parameters: `(parameters, *inputs) -> outputs`.

    A model with random state (`random_state`) takes one input more, at the end: the key that all its streams start from in this call,
    uint32 `(2,)`, as `jax.random.key_data` of a threefry key.

    Raises:
        HiddenStateError: by the function, if a call changes other variables than parameters and random state.
    """
    graph, variables, rest = _split(model)

    def call(parameters: Parameters, rest: object, inputs: Sequence[object]) -> object:
        called = nnx.merge(graph, _fill(variables, parameters), rest, copy=True)
        before = _held(called)
        outputs = called(*inputs)
        for path, value in _held(called).items():
            if path in before and value is not before[path]:
                raise HiddenStateError(changes(path))
        return outputs

    def apply(parameters: Parameters, *inputs: object) -> object:
        return call(parameters, rest, inputs)

    def apply_random(parameters: Parameters, *inputs_and_key: Array) -> object:
        *inputs, key = inputs_and_key
        return call(parameters, _reseed(rest, key), inputs)

    return apply_random if random_state(model) else apply


def _held(model: nnx.Module) -> dict[str, object]:
    """Return the variables that no call may change, by name. A parameter may change: the next call starts from the agent's again."""
    held = _named(model, nnx.Not(nnx.Any(nnx.Param, nnx.RngState, nnx.Intermediate)))
    return {name: each.get_value() if isinstance(each, nnx.Variable) else each for name, each in held.items()}


def fingerprint(value: object) -> Hashable:
    """Return "" for variables and arrays of JAX, whose changes `functional` finds in its copy; None for everything else."""
    return "" if isinstance(value, nnx.Variable | Array) else None


def random_state(model: nnx.Module) -> bool:
    """Return whether layers of the model draw random numbers, as `nnx.Dropout` does."""
    return bool(nnx.to_flat_state(nnx.state(model, nnx.RngState)))


def _reseed(rest: Any, key: Array) -> object:
    """Return the variables with a new key for each stream, `key` folded with the stream's number, and all counts 0."""
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


def _split(model: nnx.Module) -> tuple[nnx.GraphDef[nnx.Module], Any, Any]:
    """Return the module's structure, its parameters, and its other variables, which are constants here."""
    parts: Any = nnx.split(model, nnx.Param, ...)
    return parts[0], parts[1], parts[2]


def _fill(variables: Any, parameters: Mapping[str, Array]) -> Any:
    filled = [(path, variable.replace(parameters[name_of(path)])) for path, variable in nnx.to_flat_state(variables)]
    return nnx.from_flat_state(filled)


def name_of(path: tuple[object, ...]) -> str:
    """Return the name of a path in the module: `hidden.0.kernel` for `("hidden", 0, "kernel")`."""
    return ".".join(str(part) for part in path)


def refuse_hidden_state(name: str, model: nnx.Module) -> None:
    """Refuse layers that change variables when they are called; random ones are seeded in each call.

    Raises:
        ValueError: naming the variable. TypeError: if the model is none of Flax's nnx.
    """
    if not isinstance(model, nnx.Module):
        raise TypeError(f"model {name!r} is a {type(model).__name__}, expected a flax.nnx.Module: sacref.jax.default_models makes such")
    if name == "policy" and random_state(model):
        raise ValueError(
            "model 'policy' has random layers (nnx.RngState), expected them in critics alone: an update's own noise makes the policy "
            "stochastic. Leave them out of it"
        )
    check_constants(name, {key: str(array.dtype) for key, array in constants_of(model, identities_of(model)).items()})
    for path, variable in nnx.to_flat_state(nnx.state(model)):
        if isinstance(variable, nnx.BatchStat):
            raise ValueError(
                f"model {name!r} has a {type(variable).__name__} at {name_of(path)!r}, which changes when it is called: "
                f"use layers whose output depends on inputs and parameters alone, such as LayerNorm"
            )


def to_common(model: nnx.Module, parameters: Mapping[str, Array]) -> dict[str, NumpyArray]:
    """Copy parameters, gradients or moments of `model`, under common names, to the host."""
    return {name: np.array(array) for name, array in parameters.items()}


def from_common(model: nnx.Module, arrays: Mapping[str, NumpyArray], *, like: Mapping[str, Array]) -> Parameters:
    """Invert `to_common`, in the dtypes and on the devices of `like`.

    Raises:
        ValueError: if names or shapes are not those of `like`.
    """
    require_names(like, arrays)
    for name, own in like.items():
        if arrays[name].shape != own.shape:
            raise ValueError(f"parameter {name} has shape {arrays[name].shape}, the model's has {own.shape}")
    return {name: jax.device_put(jnp.array(arrays[name], dtype=own.dtype), own.sharding) for name, own in like.items()}
