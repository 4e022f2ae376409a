"""Which Gymnasium spaces the agents accept, and what they need to know of them."""

from typing import Any, NamedTuple

import gymnasium
import numpy as np
from numpy.typing import DTypeLike, NDArray


class Spaces(NamedTuple):
    """What the agents need to know of an environment's spaces (those of one environment, without a leading axis)."""

    observation_shape: tuple[int, ...]
    observation_dtype: np.dtype[Any]
    """The Box's own; see `stored_dtype` for what the memory keeps."""
    action_shape: tuple[int, ...]
    """The Box's own. Models and memory see actions flattened to `action_size`; `act` returns `(envs, *action_shape)`."""
    action_size: int
    """The number of action dimensions, dim(A)."""
    action_low: NDArray[np.float64]
    """`(action_size,)`, in the Box's units."""
    action_high: NDArray[np.float64]
    """`(action_size,)`, in the Box's units."""

    def stored_dtype(self, float_dtype: DTypeLike) -> np.dtype[Any]:
        """The dtype in which observations are stored: `float_dtype` for float32 and float64, else the Box's own."""
        own = self.observation_dtype
        return np.dtype(float_dtype) if own in (np.dtype(np.float32), np.dtype(np.float64)) else own


def check_spaces(observation_space: Any, state_space: Any, action_space: Any) -> Spaces:
    """Refuse the spaces that this SAC cannot learn in.

    Args:
        observation_space: of one environment: a Box of any shape, of floats, integers or booleans.
        state_space: None; asymmetric critics are not available in this version.
        action_space: of one environment: a finite Box of floating-point numbers, low < high in every dimension. Any shape: its
            `n` numbers are the `n` dimensions of the action, in C order.

    Returns:
        Shapes, dtype and bounds.

    Raises:
        TypeError: if a space is of another kind. ValueError: if a Box is empty, unbounded, or low is not below high.
    """
    if state_space is not None:
        raise ValueError(
            f"state_space is {state_space}, expected None: asymmetric critics are not available in this version; "
            f"put what the critics shall see into the observations"
        )
    low, high = _check_actions(action_space)
    _check_observations(observation_space)
    return Spaces(
        observation_shape=tuple(observation_space.shape),
        observation_dtype=np.dtype(observation_space.dtype),
        action_shape=tuple(action_space.shape),
        action_size=int(low.size),
        action_low=low,
        action_high=high,
    )


def _check_observations(space: Any) -> None:
    if not isinstance(space, gymnasium.spaces.Box):
        fix = {
            gymnasium.spaces.Dict: "wrap each environment in gymnasium.wrappers.FlattenObservation",
            gymnasium.spaces.Tuple: "wrap each environment in gymnasium.wrappers.FlattenObservation",
            gymnasium.spaces.Discrete: "wrap each environment in gymnasium.wrappers.FlattenObservation, which makes it one-hot",
            gymnasium.spaces.MultiDiscrete: "wrap each environment in gymnasium.wrappers.FlattenObservation, which makes it one-hot",
            gymnasium.spaces.MultiBinary: "wrap each environment in gymnasium.wrappers.FlattenObservation",
        }.get(type(space), "wrap each environment in gymnasium.wrappers.TransformObservation with a Box")
        raise TypeError(f"observation_space is {_describe(space)}, expected a gymnasium.spaces.Box: {fix}")
    if 0 in space.shape:
        raise ValueError(f"observation_space is {space} of shape {space.shape}, expected at least one number: remove the empty axis")


def _check_actions(space: Any) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    if not isinstance(space, gymnasium.spaces.Box):
        raise TypeError(
            f"action_space is {_describe(space)}: SAC here needs a gymnasium.spaces.Box of floating-point numbers; "
            f"choose a task with continuous actions, or another algorithm for discrete ones"
        )
    if not np.issubdtype(space.dtype, np.floating):
        raise TypeError(
            f"action_space is {space}: SAC here needs a Box of floating-point numbers, got dtype {space.dtype}; "
            f"wrap each environment in gymnasium.wrappers.TransformAction with a float32 Box"
        )
    if 0 in space.shape:
        raise ValueError(f"action_space is {space} of shape {space.shape}, expected at least one number: remove the empty axis")
    low, high = np.asarray(space.low, np.float64).reshape(-1), np.asarray(space.high, np.float64).reshape(-1)
    # Bounds such as float32's largest number are "unbounded" in disguise: the width must be a float32 too.
    bounded = np.isfinite(low) & np.isfinite(high)
    bounded[bounded] &= high[bounded] / 2 - low[bounded] / 2 < np.finfo(np.float32).max / 2
    if not bounded.all():
        raise ValueError(
            f"action_space is {space}: SAC here needs finite bounds, got low {low[~bounded]} and high {high[~bounded]} in dimensions "
            f"{np.flatnonzero(~bounded).tolist()}; wrap each environment in gymnasium.wrappers.RescaleAction (unbounded: first in "
            f"gymnasium.wrappers.TransformAction with a finite Box; ClipAction alone does not bound the space)"
        )
    if not (low < high).all():
        wrong = np.flatnonzero(~(low < high))
        raise ValueError(
            f"action_space is {space}: expected low < high, got low {low[wrong]} and high {high[wrong]} in dimensions {wrong.tolist()}; "
            f"remove the dimensions that cannot move, with gymnasium.wrappers.TransformAction"
        )
    return low, high


def _describe(space: Any) -> str:
    if isinstance(space, gymnasium.Space):
        return f"{space}"
    return f"a {type(space).__name__} ({space!r})"
