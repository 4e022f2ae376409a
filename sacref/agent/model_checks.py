"""Checks of the models that an agent is given: their names, what they share, and what they return."""

import difflib
import random
import sys
import warnings
from collections import deque
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from types import FunctionType, ModuleType
from typing import Any

import numpy as np

from sacref.algorithm.tree import Tree, leaves, map_leaves
from sacref.envs.spaces import Field, Spaces
from sacref.spec.arrays import NumpyArray
from sacref.storage.checkpoint import DTYPES, one_line


def split_models(models: Mapping[str, object], *, learns: bool) -> tuple[list[str], list[str]]:
    """Return the names of the critics and of the target critics in `models`, in the order of their numbers.

    Args:
        learns: whether critics must be there.

    Raises:
        TypeError: if they are no dict. ValueError: naming the model that is missing, or the one that nobody knows.
    """
    if not isinstance(models, Mapping):
        raise TypeError(f"models is a {type(models).__name__}, expected a dict with 'policy', 'critic_1', 'critic_2', ... (default_models)")
    critics = [f"critic_{i + 1}" for i in range(sum(name.startswith("critic_") for name in models))]
    required = ["policy", *(critics or (["critic_1"] if learns else []))]
    targets = [f"target_{name}" for name in critics]
    present = {name for name, model in models.items() if model is not None}
    for name in required:
        if name not in present:
            raise ValueError(
                f"models has no {name!r}: got {sorted(models)}, expected 'policy', 'critic_1', 'critic_2', ... (default_models)"
            )
    unknown = sorted(set(models) - {*required, *targets})
    if unknown:
        known = [*required, *targets]
        near = difflib.get_close_matches(unknown[0], known, n=1)
        raise ValueError(f"models has {unknown[0]!r}, expected some of {known}" + (f": did you mean {near[0]!r}?" if near else ""))
    given = [name for name in targets if name in present]
    if given and given != targets:
        raise ValueError(f"models has {given} but not {sorted(set(targets) - set(given))}: give all target critics, or none to copy them")
    return critics, given


class HiddenStateError(ValueError):
    """A model's call changes the model; the message is what `call_on_trial` puts behind the model's name."""


def refuse_shared(models: Mapping[str, object], parameters: Mapping[str, Mapping[str, Hashable]]) -> None:
    """Refuse models that are one module, or that share parameters which learn.

    Args:
        models: name -> module.
        parameters: model -> name of each parameter that learns -> what identifies it, equal for one that is shared.

    Raises:
        ValueError: naming both models.
    """
    apart = (
        "the agent copies each model, so that they would part with the first gradient step: build one for each (and leave target critics "
        "out to have them copied)"
    )
    owners: dict[Hashable, str] = {}
    for name, model in models.items():
        if (other := owners.setdefault(id(model), name)) != name:
            raise ValueError(f"models {other!r} and {name!r} are one module, expected one for each: {apart}")
    places: dict[Hashable, tuple[str, str]] = {}
    for name, identities in parameters.items():
        for parameter, identity in identities.items():
            other, place = places.setdefault(identity, (name, parameter))
            if other != name:
                raise ValueError(
                    f"models {other!r} and {name!r} share a parameter that learns, {place!r} in the first and {parameter!r} in the second, "
                    f"expected each to have its own: {apart}; a part that is frozen may be shared"
                )
            if place != parameter:
                raise ValueError(
                    f"model {name!r} has {place!r} and {parameter!r}, two parameters in the same memory, which would part with the first "
                    f"gradient step: tie them by assigning one parameter to both layers, or copy one"
                )


def check_targets(parameters: Mapping[str, Mapping[str, Any]], constants: Mapping[str, Mapping[str, NumpyArray]]) -> None:
    """Refuse target critics that are not built like their critics: they take the critics' place in the same function.

    Args:
        parameters: model -> its parameters, of a target those that learn in its critic.
        constants: model -> all else that it computes with, which a target shares with its critic.
    """
    for name in parameters:
        if name.startswith("target_"):
            critic = name.removeprefix("target_")
            got, expected = ({key: tuple(p.shape) for key, p in parameters[model].items()} for model in (name, critic))
            if got != expected:
                raise ValueError(
                    f"model {name!r} has parameters {got}, expected {expected} as {critic!r}: build it like {critic!r}, or leave it out"
                )
            own, shared = constants[name], constants[critic]
            for key in sorted({*own, *shared}):
                if key not in own or key not in shared or not np.array_equal(own[key], shared[key]):
                    raise ValueError(
                        f"model {name!r} has another {key!r} than {critic!r}, expected the same, as it does not learn (a buffer, or "
                        f"frozen): copy the target from {critic!r}, or leave it out"
                    )


def require_names(expected: Collection[str], given: Collection[str]) -> None:
    """Refuse arrays of other names than a model's parameters.

    Raises:
        ValueError: naming those that are missing, and those that are unknown.
    """
    if set(expected) != set(given):
        missing, unknown = sorted(set(expected) - set(given)), sorted(set(given) - set(expected))
        raise ValueError(f"parameters do not fit the model: missing {missing}, unknown {unknown}: build the model as it was when saved")


def require_learning(parameters: Mapping[str, Collection[str]], critics: Sequence[str]) -> None:
    """Refuse critics beside a policy, or a policy beside critics, that have no parameter to learn."""
    if critics and not (parameters["policy"] and any(parameters[name] for name in critics)):
        name = "policy" if not parameters["policy"] else critics[0]
        raise ValueError(
            f"model {name!r} has no parameter that learns, expected some of the policy's and of the critics' not to be frozen: unfreeze "
            f"some, or give the policy alone to an agent that only acts"
        )


def check_constants(name: str, dtypes: Mapping[str, str]) -> None:
    """Refuse buffers and frozen parameters that no checkpoint can hold.

    Args:
        dtypes: name of each -> its dtype's name in NumPy.
    """
    for key, dtype in dtypes.items():
        if dtype not in DTYPES:
            raise ValueError(
                f"model {name!r} has {key!r} of dtype {dtype}, expected one that a checkpoint holds, {', '.join(DTYPES)}: keep it in "
                f"one of them and cast it in the call"
            )


def call_on_trial(name: str, function: Callable[..., object], parameters: object, inputs: object, *others: object) -> object:
    """Call a model on example inputs.

    Raises:
        ValueError: saying what it was called with, if the call fails or changes the model.
    """
    try:
        return function(parameters, inputs, *others)
    except HiddenStateError as error:
        raise ValueError(f"model {name!r} {error}") from None
    except Exception as error:
        given = ", ".join(_described(each) for each in (inputs, *others))
        call = "policy(inputs)" if name == "policy" else "critic(inputs, actions)"
        raise ValueError(
            f"model {name!r} fails on inputs of its spaces: it was called with ({given}) and raised {type(error).__name__}: "
            f"{one_line(str(error).partition(_JAX_NOTE)[0])}; expected a model for {call}: "
            f"read inputs['observations'] (a dict where the space is a Dict), and cast "
            f"what a layer does not take, such as integers to floats, or to int32 for an embedding"
        ) from error


_JAX_NOTE = "\n--------------------\n"
"""Behind it JAX says in an error that its own frames are left out."""


def _described(tree: Tree) -> str:
    if isinstance(tree, Mapping):
        return "{" + ", ".join(f"{key!r}: {_described(branch)}" for key, branch in tree.items()) + "}"
    if isinstance(tree, tuple):
        return "(" + ", ".join(map(_described, tree)) + ")"
    return "None" if tree is None else f"{str(tree.dtype).removeprefix('torch.')} {tuple(tree.shape)}"


def held_values(model: object, fingerprint: Callable[[object], Hashable]) -> dict[str, Hashable]:
    """Return all in a model that its call could change, by path: arrays, numbers, text and generators, in nested objects too.

    Args:
        fingerprint: of an array of the backend's, whose value decides; None of everything else.
    """
    return {".".join(path): value for path, value in _walk(model, (), set(), fingerprint)}


def _walk(
    value: object, path: tuple[str, ...], seen: set[int], fingerprint: Callable[[object], Hashable]
) -> Iterator[tuple[tuple[str, ...], Hashable]]:
    if (found := fingerprint(value)) is not None:
        yield path, found
    elif isinstance(value, np.ndarray):
        yield path, (value.shape, value.tobytes())
    elif value is None or isinstance(value, bool | int | float | complex | str | bytes | np.generic):
        yield path, repr(value)
    elif isinstance(value, np.random.Generator):
        yield path, repr(value.bit_generator.state)
    elif isinstance(value, random.Random):
        yield path, value.getstate()
    elif id(value) not in seen and not isinstance(value, type | FunctionType | ModuleType):
        seen.add(id(value))
        for key, branch in _branches(value):
            yield from _walk(branch, path if key in _CONTAINERS else (*path, key), seen, fingerprint)


_CONTAINERS = ("_modules", "_buffers")
"""Attributes of a torch.nn.Module whose entries its user knows by their own names."""
_OPAQUE = {*sys.stdlib_module_names, "torch", "jax", "jaxlib", "flax", "numpy", "gymnasium"}
"""Packages into whose objects nobody looks, but for modules."""


def _branches(value: object) -> Iterator[tuple[str, object]]:
    if isinstance(value, Mapping):
        yield from ((str(key), branch) for key, branch in value.items())
    elif isinstance(value, list | tuple | set | frozenset | deque):
        yield from ((str(i), branch) for i, branch in enumerate(value))
    elif hasattr(value, "__dict__") and (hasattr(value, "train") or type(value).__module__.partition(".")[0] not in _OPAQUE):
        yield from ((key, branch) for key, branch in vars(value).items() if key != "_parameters")


def refuse_changed(name: str, before: Mapping[str, Hashable], after: Mapping[str, Hashable]) -> None:
    """Refuse a model in which a call has changed something, other than its parameters and generators of its own."""
    changed = sorted(path for path in {*before, *after} if before.get(path) != after.get(path))
    if changed:
        raise ValueError(f"model {name!r} {changes(changed[0])}")


def changes(path: str) -> str:
    """Say of a model that its call changes what is at `path`."""
    return (
        f"has {path!r}, which changes when it is called, expected a model whose outputs depend on inputs and parameters alone: an update "
        f"calls models more often than an environment steps. Make it a constant, normalise with LayerNorm or RMSNorm, and let a running "
        f"mean of observations be the agent's, observation_preprocessor"
    )


def draw_widths(model: object) -> tuple[int, ...]:
    """Return the widths of what the random layers of a critic take, one array for each; () for one without."""
    return tuple(getattr(model, "draw_widths", ()))


def has_head(model: object) -> bool:
    """Return whether a model says which layer is its last one, by a module `head`."""
    return hasattr(getattr(model, "head", None), "train")


def warn_of_quantisation(models: Sequence[str], precision: str) -> None:
    """Warn of models without a `head`, whose values have no more digits than `precision` has: "bfloat16" or "float16"."""
    if models:
        apart = {"bfloat16": "4", "float16": "0.5"}[precision]
        warnings.warn(
            f"models {list(models)} have no `head`, so that their last layers are computed in {precision} and what they return is "
            f"quantised: Q-values near 1,000 are {apart} apart. Name the last layer `head`: it is then computed in float32",
            UserWarning,
            stacklevel=3,
        )


def example_inputs(spaces: Spaces, rows: int, seed: int) -> dict[str, Tree]:
    """Make observations and states within their spaces, `(rows, ...)`, to try models on; NumPy."""
    generator = np.random.default_rng(seed)

    def example(field: Field) -> NumpyArray:
        values = generator.standard_normal((rows, *field.shape))
        low, high = (-np.inf, np.inf) if field.bounds is None else field.bounds
        if field.dtype.kind == "f":
            return np.clip(values, low, high).astype(field.kept)
        # Two integers that are next to each other: of those within the bounds, the nearest to 0. In Python's, which have no bounds.
        low, high = np.asarray(low, object), np.asarray(high, object)
        first = np.clip(0, low, high)
        second = np.where(first + 1 <= high, first + 1, np.maximum(first - 1, low))
        near_zero: NumpyArray = np.where(values > 0, second, first)
        return near_zero.astype(np.int64).astype(field.kept)  # a Box beyond the backend's integers is refused at its first row

    return {"observations": map_leaves(example, spaces.observations), "states": map_leaves(example, spaces.states)}


def check_reads_states(values: Mapping[str, NumpyArray], others: Mapping[str, NumpyArray]) -> None:
    """Refuse a state_space whose states no critic reads.

    Args:
        values, others: critic -> its values of inputs that differ in their states alone.
    """
    telling = {name for name, own in values.items() if np.ptp(own)}  # not of a last layer of zeros, which gives one number for all rows
    if telling and all(np.array_equal(values[name], others[name]) for name in values):
        raise ValueError(
            f"state_space is given, and the values of {sorted(values)} do not depend on inputs['states']: "
            f"build critics that read them, default_models(state_space=...), or leave state_space out"
        )


def check_parts(name: str, outputs: object, expected: int) -> tuple[object, ...]:
    """Refuse a model with a carry that does not return a tuple of so many parts, the carry last."""
    if not isinstance(outputs, tuple) or len(outputs) != expected:
        got = f"a tuple of {len(outputs)}" if isinstance(outputs, tuple) else type(outputs).__name__
        wanted = "(mean, raw log_std, carry)" if expected == 3 else "(values, carry)"
        raise ValueError(f"model {name!r} has initial_carry and returned {got}, expected a tuple {wanted}")
    return outputs


def check_carry_output(name: str, carry: Tree, after: Tree) -> None:
    """Refuse a recurrent model whose carry changes its shape."""
    before, got = ([tuple(leaf.shape) for leaf in leaves(tree)] for tree in (carry, after))
    if before != got:
        raise ValueError(
            f"model {name!r} returned a carry of shapes {got}, expected {before} as initial_carry gives: "
            f"return the carry after the last step"
        )


def check_policy_output(outputs: object, *, rows: tuple[int, ...], action_size: int, dtype: object) -> None:
    """Refuse a policy that does not return mean and raw log_std, `(*rows, action_size)` each, in `dtype`."""
    expected = (*rows, action_size)
    if not isinstance(outputs, tuple) or len(outputs) != 2:
        raise ValueError(f"model 'policy' returned {type(outputs).__name__}, expected a tuple (mean, raw log_std)")
    for name, output in zip(("mean", "raw log_std"), outputs, strict=True):
        if tuple(output.shape) != expected or output.dtype != dtype:
            axes = "(batch, action)" if len(rows) == 1 else "(time, batch, action)"
            raise ValueError(
                f"model 'policy' returned a {name} of shape {tuple(output.shape)} and dtype {output.dtype}, "
                f"expected {axes} = {expected} and {dtype}: make its last layer {action_size} wide for each"
            )


def check_critic_output(name: str, output: Any, *, rows: tuple[int, ...], dtype: object) -> None:
    """Refuse a critic that does not return one value per row, in `dtype`."""
    if tuple(output.shape) != rows or output.dtype != dtype:
        fix = "drop the last axis, values[..., 0]" if tuple(output.shape) == (*rows, 1) else "return one value per row"
        axes = "(batch,)" if len(rows) == 1 else "(time, batch)"
        raise ValueError(
            f"model {name!r} returned values of shape {tuple(output.shape)} and dtype {output.dtype}, "
            f"expected {axes} = {rows} and {dtype}: {fix}"
        )
