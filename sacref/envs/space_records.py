"""Spaces as JSON holds them, and what tells an agent's from others."""

import math
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import gymnasium
import numpy as np
from numpy.typing import NDArray

from sacref.envs.spaces import AGENT_FLOATS
from sacref.storage.checkpoint import DTYPES, short

LARGEST_SPACE = 10_000_000
"""Numbers of one Box that a run's configuration may ask for."""
SPACES = ("observation_space", "state_space", "action_space")
"""Of an agent, by the names of its arguments."""


@runtime_checkable
class HasSpaces(Protocol):
    """An agent that says which spaces it was made for."""

    observation_space: Any
    state_space: Any
    action_space: Any


def write_space(space: Any) -> dict[str, Any]:
    """A Box, or a Dict of such, as JSON can hold it; infinity is a string there."""
    if isinstance(space, gymnasium.spaces.Dict):
        return {"spaces": {key: write_space(inner) for key, inner in space.spaces.items()}}
    return {
        "low": _write_bound(space.low),
        "high": _write_bound(space.high),
        "shape": list(space.shape),
        "dtype": np.dtype(space.dtype).name,
    }


def _write_bound(bound: NDArray[Any]) -> Any:
    numbers = [number if math.isfinite(number) else str(number) for number in bound.reshape(-1).tolist()]
    return numbers[0] if len(set(numbers)) == 1 else numbers


def read_space(stored: Mapping[str, Any]) -> gymnasium.Space[Any]:
    """The space that `write_space` was given.

    Raises:
        KeyError, TypeError, ValueError: if it is no record of one.
    """
    if "spaces" in stored:
        return gymnasium.spaces.Dict([(key, read_space(inner)) for key, inner in stored["spaces"].items()])
    shape = tuple(int(size) for size in stored["shape"])
    if stored["dtype"] not in list(DTYPES) or not 0 <= math.prod(shape) <= LARGEST_SPACE or min(shape, default=0) < 0:
        raise ValueError(f"a space has shape {shape} and dtype {stored['dtype']}, expected at most {LARGEST_SPACE} numbers")
    dtype = np.dtype(stored["dtype"])
    bounds = []
    for name in ("low", "high"):
        numbers = stored[name] if isinstance(stored[name], list) else [stored[name]] * math.prod(shape)
        with np.errstate(over="raise"):
            bounds.append(np.array([float(number) if isinstance(number, str) else number for number in numbers], dtype).reshape(shape))
    return gymnasium.spaces.Box(bounds[0], bounds[1], shape, dtype.type)


def records_of(agent: HasSpaces) -> dict[str, Any]:
    """The spaces of an agent, by name, as JSON can hold them."""
    return {name: None if (space := getattr(agent, name)) is None else write_space(space) for name in SPACES}


def refuse_other_environments(agent: object, envs: gymnasium.vector.VectorEnv[Any, Any, Any], state_space: Any) -> None:
    """Refuse environments whose spaces mean something else than the agent's. One that does not say what its spaces are takes any.

    Args:
        state_space: of the privileged states that the environments hand over; None for none.

    Raises:
        ValueError: naming what differs.
    """
    if not isinstance(agent, HasSpaces):
        return
    given = {
        "observation_space": getattr(envs, "single_observation_space", agent.observation_space),
        "state_space": state_space,
        "action_space": getattr(envs, "single_action_space", agent.action_space),
    }
    found = []
    for name, own in records_of(agent).items():
        space = given[name]
        if space is None or isinstance(space, gymnasium.spaces.Box | gymnasium.spaces.Dict):
            found += differences(None if space is None else write_space(space), own, name)
        else:
            found.append(f"{name} is {space}, expected {_described(own)}")
    if found:
        raise ValueError(
            f"the environments are not those that the agent was made for: {'; '.join(found)}: make them as it was trained, with the same "
            f"arguments and wrappers, or wrap them in gymnasium.wrappers.RescaleAction, TransformObservation or TransformAction"
        )


def differences(got: Any, expected: Any, name: str, *, ordered: bool = False) -> list[str]:
    """Say in which an agent that was made for one space would take another wrongly.

    Args:
        got: as `write_space` gives it, or a stranger's file; None for no space. expected: the agent's own.
        name: of the space. ordered: whether the keys of a Dict must come in the same order, in which networks read its arrays.

    Returns:
        A text for each difference.

    Raises:
        KeyError, TypeError, ValueError: if `got` is no record of a space.
    """
    if got is None or expected is None or ("spaces" in got) != ("spaces" in expected):
        return [] if got is expected else [f"{name} is {_described(got)}, expected {_described(expected)}"]
    if "spaces" in expected:
        keys, own = list(got["spaces"]), list(expected["spaces"])
        if keys != own if ordered else set(keys) != set(own):
            return [f"{name} has the keys {short.repr(keys)}, expected {own}"]
        inner = [differences(got["spaces"][key], expected["spaces"][key], f"{name}[{key!r}]", ordered=ordered) for key in own]
        return [text for texts in inner for text in texts]
    if got["shape"] != expected["shape"]:
        return [f"{name} has shape {short.repr(got['shape'])}, expected {expected['shape']}"]
    dtypes = (got["dtype"], expected["dtype"])
    # Those become the agent's floats, whichever they are; others are stored as they are.
    floats = {dtype.name for dtype in AGENT_FLOATS}
    if dtypes[0] != dtypes[1] and not floats.issuperset(dtypes):
        return [f"{name} has dtype {short.repr(dtypes[0])}, expected {dtypes[1]}"]
    coarser = min(map(np.dtype, dtypes), key=lambda dtype: dtype.itemsize)
    found = []
    for bound in ("low", "high"):
        theirs, ours = (_read_bound(record[bound], math.prod(expected["shape"]), coarser) for record in (got, expected))
        # An infinite bound says nothing. A finite one says the units: numbers from 0 to 255 are not those from 0 to 1.
        other = np.flatnonzero((theirs != ours) & np.isfinite(theirs) & np.isfinite(ours))
        if other.size:
            found.append(f"{name}.{bound} is {theirs[other[0]]} at {other[0]}, expected {ours[other[0]]}")
    return found


def _read_bound(bound: Any, size: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    """The numbers of a bound, `(size,)`."""
    numbers = bound if isinstance(bound, list) else [bound]
    with np.errstate(over="ignore"):
        array = np.array([float(number) if isinstance(number, str) else number for number in numbers], dtype)
    return np.broadcast_to(array, (size,))


def _described(record: Any) -> str:
    if record is None:
        return "None"
    if "spaces" in record:
        return f"a Dict with the keys {short.repr(list(record['spaces']))}"
    return f"a Box of shape {short.repr(record['shape'])} and dtype {short.repr(record['dtype'])}"
