"""Whether the models that an agent is given can be used: their names, and what they return."""

import difflib
from collections.abc import Mapping
from typing import Any


def split_models(models: Mapping[str, Any], *, learns: bool) -> tuple[list[str], list[str]]:
    """The names of the critics and of the target critics in `models`, in the order of their numbers.

    Args:
        learns: whether critics must be there.

    Raises:
        ValueError: naming the model that is missing, or the one that nobody knows.
    """
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


def check_policy_output(outputs: Any, *, rows: int, action_size: int, dtype: Any) -> None:
    """Refuse a policy that does not return mean and raw log_std, `(rows, action_size)` each, in `dtype`."""
    expected = (rows, action_size)
    if not isinstance(outputs, tuple) or len(outputs) != 2:
        raise ValueError(f"model 'policy' returned {type(outputs).__name__}, expected a tuple (mean, raw log_std)")
    for name, output in zip(("mean", "raw log_std"), outputs, strict=True):
        if tuple(output.shape) != expected or output.dtype != dtype:
            raise ValueError(
                f"model 'policy' returned a {name} of shape {tuple(output.shape)} and dtype {output.dtype}, "
                f"expected (batch, action) = {expected} and {dtype}: make its last layer {action_size} wide for each"
            )


def check_critic_output(name: str, output: Any, *, rows: int, dtype: Any) -> None:
    """Refuse a critic that does not return one value per row, in `dtype`."""
    if tuple(output.shape) != (rows,) or output.dtype != dtype:
        fix = "drop the last axis, values[..., 0]" if tuple(output.shape) == (rows, 1) else "return one value per row"
        raise ValueError(
            f"model {name!r} returned values of shape {tuple(output.shape)} and dtype {output.dtype}, "
            f"expected (batch,) = {(rows,)} and {dtype}: {fix}"
        )
