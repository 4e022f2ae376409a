"""Spaces as JSON, and differences between an agent's spaces and an environment's."""

import math
from typing import Any, Protocol, TypeAlias, runtime_checkable

import gymnasium
import numpy as np

from sacref.envs.interface import Envs, Space
from sacref.envs.spaces import AGENT_FLOATS, DType
from sacref.spec.arrays import NumpyArray
from sacref.storage.checkpoint import DTYPES, short

Record: TypeAlias = dict[str, Any]
"""JSON: `low`, `high`, `shape` and `dtype` of a Box, or `spaces` of a Dict: key -> record."""

LARGEST_SPACE = 10_000_000
"""Numbers of one Box that a run's configuration may ask for."""
SPACES = ("observation_space", "state_space", "action_space")
"""Attributes of an agent, and arguments of its constructor."""


@runtime_checkable
class HasSpaces(Protocol):
    """An agent that says which spaces it was made for."""

    observation_space: Space
    state_space: Space | None
    action_space: Space


def write_space(space: Space) -> Record:
    """Describe a Box, or a Dict of such, in JSON; infinity is a string there."""
    if isinstance(space, gymnasium.spaces.Dict):
        return {"spaces": {key: write_space(inner) for key, inner in space.spaces.items()}}
    assert isinstance(space, gymnasium.spaces.Box)
    bounds = {"low": _write_bound(space.low), "high": _write_bound(space.high)}
    return {**bounds, "shape": list(space.shape), "dtype": np.dtype(space.dtype).name}


def _write_bound(bound: NumpyArray) -> object:
    numbers = [number if math.isfinite(number) else str(number) for number in bound.reshape(-1).tolist()]
    return numbers[0] if len(set(numbers)) == 1 else numbers


def read_space(stored: Record) -> Space:
    """Return the space that `write_space` was given.

    Raises:
        KeyError, TypeError, ValueError: if it is no record of one.
    """
    if "spaces" in stored:
        return gymnasium.spaces.Dict([(key, read_space(inner)) for key, inner in stored["spaces"].items()])
    shape = tuple(int(size) for size in stored["shape"])
    if stored["dtype"] not in list(DTYPES) or not 0 <= math.prod(shape) <= LARGEST_SPACE or min(shape, default=0) < 0:
        raise ValueError(f"a space has shape {shape} and dtype {stored['dtype']}, expected at most {LARGEST_SPACE} numbers")
    dtype = np.dtype(stored["dtype"])
    with np.errstate(over="raise"):
        low, high = (
            _numbers(bound if isinstance(bound, list) else [bound] * math.prod(shape), dtype).reshape(shape)
            for bound in (stored["low"], stored["high"])
        )
    return gymnasium.spaces.Box(low, high, shape, dtype.type)


def _numbers(numbers: list[object], dtype: DType) -> NumpyArray:
    return np.array([float(number) if isinstance(number, str) else number for number in numbers], dtype)


def records_of(agent: HasSpaces) -> dict[str, Record | None]:
    """Return the records of an agent's spaces, by name."""
    return {name: None if (space := getattr(agent, name)) is None else write_space(space) for name in SPACES}


def refuse_other_environments(agent: object, envs: Envs, state_space: Space | None) -> None:
    """Refuse environments whose spaces mean something else than the agent's. An agent that does not say what its spaces are takes any.

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


def differences(got: Any, expected: Record | None, name: str, *, ordered: bool = False) -> list[str]:
    """List differences for which an agent that was made for one space would misread another.

    Args:
        got: a record, or what a stranger's file says; None for no space. expected: the record of the agent's own space.
        name: of the space. ordered: whether the keys of a Dict must come in the same order, in which networks read its arrays.

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
        with np.errstate(over="ignore"):
            arrays = [
                _numbers(record[bound] if isinstance(record[bound], list) else [record[bound]], coarser) for record in (got, expected)
            ]
        theirs, ours = (np.broadcast_to(array, (math.prod(expected["shape"]),)) for array in arrays)
        # An infinite bound says nothing. A finite one says the units: numbers from 0 to 255 are not those from 0 to 1.
        other = np.flatnonzero((theirs != ours) & np.isfinite(theirs) & np.isfinite(ours))
        if other.size:
            found.append(f"{name}.{bound} is {theirs[other[0]]} at {other[0]}, expected {ours[other[0]]}")
    return found


def _described(record: Record | None) -> str:
    if record is None:
        return "None"
    if "spaces" in record:
        return f"a Dict with the keys {short.repr(list(record['spaces']))}"
    return f"a Box of shape {short.repr(record['shape'])} and dtype {short.repr(record['dtype'])}"
