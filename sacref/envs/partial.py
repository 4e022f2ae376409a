"""Wrappers that select what is observed: positions without velocities, the whole observation for the critics alone, or one key for each.

Wrappers are put around each environment, the first one innermost: `wrappers=[PrivilegedState, HideVelocities]` is a policy that sees
positions, and critics that see everything.
"""

import copy
from typing import Any, NamedTuple, TypeAlias

import gymnasium
import numpy as np
from gymnasium.utils import RecordConstructorArgs
from numpy.typing import NDArray

from sacref.algorithm.tree import Tree
from sacref.config.train_config import Environment
from sacref.envs.interface import EnvWrapper, Infos, Space, Step, layers_of
from sacref.spec.arrays import NumpyArray


class _Layout(NamedTuple):
    """Indices of a flat observation."""

    positions: NDArray[np.intp]
    velocities: NDArray[np.intp]
    others: NDArray[np.intp]
    """Forces, inertias and other numbers that depend on both."""


# p: position, or its cosine or sine, or a place in the scene; v: velocity; o: neither.
_FIXED = {
    "pendulum:PendulumEnv": "ppv",
    "continuous_mountain_car:Continuous_MountainCarEnv": "pv",
    "inverted_double_pendulum_v4:InvertedDoublePendulumEnv": "ppppp" + "vvv" + "ooo",
    "inverted_double_pendulum_v5:InvertedDoublePendulumEnv": "ppppp" + "vvv" + "o",
    "reacher_v4:ReacherEnv": "pppppp" + "vv" + "ppp",
    "reacher_v5:ReacherEnv": "pppppp" + "vv" + "pp",
    "pusher_v4:PusherEnv": 7 * "p" + 7 * "v" + 9 * "p",
    "pusher_v5:PusherEnv": 7 * "p" + 7 * "v" + 9 * "p",
}
"""Module and class of an environment -> its entries, one letter each."""

_SKIPPED = {
    "half_cheetah": 1,
    "hopper": 1,
    "walker2d": 1,
    "swimmer": 2,
    "ant": 2,
    "humanoid": 2,
    "humanoidstandup": 2,
    "inverted_pendulum": 0,
}
"""Tasks of MuJoCo that observe all positions, then all velocities, then others -> positions that they leave out unless told otherwise."""

_ObservationWrapper: TypeAlias = gymnasium.ObservationWrapper[Any, Any, Any]


class HideVelocities(_ObservationWrapper, RecordConstructorArgs):
    """Wrapper that observes only positions: no velocities, nor forces and inertias that would tell them.

    It knows Gymnasium's own tasks: those of MuJoCo (v4 and v5), Pendulum-v1 and MountainCarContinuous-v0.

    Args:
        env: one of those, with its own flat observations.

    Raises:
        ValueError: if it is another task, or a wrapper inside has changed its observations.
    """

    def __init__(self, env: Environment) -> None:
        RecordConstructorArgs.__init__(self)
        super().__init__(env)
        self._positions = _layout("HideVelocities", env).positions
        self.observation_space = _part(env.observation_space, self._positions)

    def observation(self, observation: NumpyArray) -> NumpyArray:
        return observation[self._positions]


class DictObservation(_ObservationWrapper, RecordConstructorArgs):
    """Wrapper that observes a dict: "positions", "velocities", and "others" where there are any (forces, inertias).

    Args:
        env: a task that `HideVelocities` knows.

    Raises:
        ValueError: if it is another task, or a wrapper inside has changed its observations.
    """

    def __init__(self, env: Environment) -> None:
        RecordConstructorArgs.__init__(self)
        super().__init__(env)
        layout = _layout("DictObservation", env)._asdict()
        self._parts = {name: entries for name, entries in layout.items() if entries.size}
        # Made from pairs: a Dict space would sort the keys of a dict.
        self.observation_space = gymnasium.spaces.Dict(
            [(name, _part(env.observation_space, entries)) for name, entries in self._parts.items()]
        )

    def observation(self, observation: NumpyArray) -> Tree:
        return {name: observation[entries] for name, entries in self._parts.items()}


class PrivilegedState(EnvWrapper, RecordConstructorArgs):
    """Wrapper that hands over the observation at its place among the wrappers as the critics' state, in `info["state"]`.

    It goes inside of the wrapper that hides something from the policy: `wrappers=[PrivilegedState, HideVelocities]`.

    Args:
        env: any environment that hands over no state of its own.

    Raises:
        ValueError: if it hands over a state already, or `HideVelocities` is inside.
    """

    def __init__(self, env: Environment) -> None:
        RecordConstructorArgs.__init__(self)
        super().__init__(env)
        if env.has_wrapper_attr("state_space"):
            raise ValueError(f"PrivilegedState: {env} has a state_space already, expected none: leave the wrapper out")
        if any(isinstance(layer, HideVelocities) for layer in layers_of(env)):
            raise ValueError(
                f"PrivilegedState: {env} hides the velocities from it, expected the whole observation: name it first, "
                f"wrappers=[PrivilegedState, HideVelocities]"
            )
        self.state_space: Space = env.observation_space

    def reset(self, *, seed: int | None = None, options: Infos | None = None) -> tuple[Tree, Infos]:
        observation, info = self.env.reset(seed=seed, options=options)
        return observation, _with_state(info, observation)

    def step(self, action: object) -> Step:
        observation, reward, terminated, truncated, info = self.env.step(action)
        return observation, reward, terminated, truncated, _with_state(info, observation)


def _with_state(info: Infos, observation: Tree) -> Infos:
    # A copy: the environment may write the next observation into the same array.
    return {**info, "state": copy.deepcopy(observation)}


def _part(space: Space, entries: NDArray[np.intp]) -> gymnasium.spaces.Box:
    assert isinstance(space, gymnasium.spaces.Box)
    return gymnasium.spaces.Box(space.low[entries], space.high[entries], dtype=space.dtype.type)


def _layout(wrapper: str, env: Environment) -> _Layout:
    task = env.unwrapped
    name = f"{type(task).__module__.rpartition('.')[2]}:{type(task).__name__}"
    space = env.observation_space
    shape = space.shape if isinstance(space, gymnasium.spaces.Box) else None
    kinds = _kinds(task, name)
    if kinds is None:
        known = sorted({task.partition(":")[0] for task in _FIXED} | _SKIPPED.keys())
        raise ValueError(
            f"{wrapper}: what {type(task).__module__}:{type(task).__name__} observes is not known, expected one of Gymnasium's own tasks "
            f"({', '.join(known)}): take gymnasium.wrappers.TransformObservation, and choose the entries there"
        )
    if shape != (len(kinds),):
        raise ValueError(
            f"{wrapper}: observation_space is {space}, expected a Box of {len(kinds)} numbers, as the task's own is: "
            f"put the wrapper inside of those that change the observation"
        )
    letters = np.array(list(kinds))
    return _Layout(*(np.flatnonzero(letters == letter) for letter in "pvo"))


def _kinds(task: Any, name: str) -> str | None:
    """Return one letter for each entry of the task's own observation; None if it is not known."""
    if not type(task).__module__.startswith("gymnasium.envs."):
        return None
    if name in _FIXED:
        return _FIXED[name]
    skipped = _SKIPPED.get(name.partition("_v")[0])
    if skipped is None:
        return None
    # v4 says it nowhere else; where there is no choice there is no attribute, and they are left out.
    leaves_out = getattr(task, "_exclude_current_positions_from_observation", True)
    positions, velocities = task.model.nq - skipped * leaves_out, task.model.nv
    kinds: str = positions * "p" + velocities * "v" + (task.observation_space.shape[0] - positions - velocities) * "o"
    return kinds
