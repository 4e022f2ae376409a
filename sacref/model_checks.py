"""Whether the models that an agent is given can be used: their names, and what they return."""

import difflib
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sacref.envs.spaces import Field, Spaces
from sacref.tree import Tree, leaves, map_leaves


def split_models(models: Mapping[str, Any], *, learns: bool) -> tuple[list[str], list[str]]:
    """The names of the critics and of the target critics in `models`, in the order of their numbers.

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


def check_targets(parameters: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse target critics that are not built like their critics: they take the critics' place in the same function."""
    for name in parameters:
        if name.startswith("target_"):
            critic = name.removeprefix("target_")
            got, expected = ({key: tuple(p.shape) for key, p in parameters[model].items()} for model in (name, critic))
            if got != expected:
                raise ValueError(
                    f"model {name!r} has parameters {got}, expected {expected} as {critic!r}: build it like {critic!r}, or leave it out"
                )


def draw_widths(model: Any) -> tuple[int, ...]:
    """Widths of what the random layers of a critic take, one array for each; () of one without."""
    return tuple(getattr(model, "draw_widths", ()))


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
    """Observations and states of the right shapes and dtypes, `(rows, ...)`, to try models on; NumPy."""
    generator = np.random.default_rng(seed)

    def example(field: Field) -> NDArray[Any]:
        values = generator.standard_normal((rows, *field.shape))
        return values.astype(field.kept) if field.dtype.kind == "f" else (values > 0).astype(field.kept)

    return {"observations": map_leaves(example, spaces.observations), "states": map_leaves(example, spaces.states)}


def check_reads_states(values: Mapping[str, NDArray[Any]], others: Mapping[str, NDArray[Any]]) -> None:
    """Refuse a state_space whose states no critic reads.

    Args:
        values, others: critic -> its values of inputs that differ in their states alone.
    """
    if values and all(np.array_equal(values[name], others[name]) for name in values):
        raise ValueError(
            f"state_space is given, and the values of {sorted(values)} do not depend on inputs['states']: "
            f"build critics that read them, default_models(state_space=...), or leave state_space out"
        )


def check_parts(name: str, outputs: Any, expected: int) -> tuple[Any, ...]:
    """Refuse a model with a carry that does not return a tuple of so many parts, the carry last."""
    if not isinstance(outputs, tuple) or len(outputs) != expected:
        got = f"a tuple of {len(outputs)}" if isinstance(outputs, tuple) else type(outputs).__name__
        wanted = "(mean, raw log_std, carry)" if expected == 3 else "(values, carry)"
        raise ValueError(f"model {name!r} has initial_carry and returned {got}, expected a tuple {wanted}")
    return outputs


def check_carry_output(name: str, carry: Tree, after: Tree) -> None:
    """Refuse a recurrent model whose carry changes its shape on the way."""
    before, got = ([tuple(leaf.shape) for leaf in leaves(tree)] for tree in (carry, after))
    if before != got:
        raise ValueError(
            f"model {name!r} returned a carry of shapes {got}, expected {before} as initial_carry gives: "
            f"return the carry after the last step"
        )


def check_policy_output(outputs: Any, *, rows: tuple[int, ...], action_size: int, dtype: Any) -> None:
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


def check_critic_output(name: str, output: Any, *, rows: tuple[int, ...], dtype: Any) -> None:
    """Refuse a critic that does not return one value per row, in `dtype`."""
    if tuple(output.shape) != rows or output.dtype != dtype:
        fix = "drop the last axis, values[..., 0]" if tuple(output.shape) == (*rows, 1) else "return one value per row"
        axes = "(batch,)" if len(rows) == 1 else "(time, batch)"
        raise ValueError(
            f"model {name!r} returned values of shape {tuple(output.shape)} and dtype {output.dtype}, "
            f"expected {axes} = {rows} and {dtype}: {fix}"
        )
