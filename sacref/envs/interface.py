"""The calls between a training loop and environments: return values are checked, and arrays that either side may write into are copied."""

import copy
import inspect
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, TypeAlias, TypeVar

import gymnasium
import numpy as np
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv, VectorEnv, VectorWrapper
from numpy.typing import NDArray

from sacref.algorithm.tree import Tree, map_named
from sacref.config.train_config import Environment
from sacref.envs.spaces import exactly
from sacref.spec.arrays import NumpyArray, as_numpy

Envs: TypeAlias = VectorEnv[Any, Any, Any]
Space: TypeAlias = gymnasium.Space[Any]
EnvWrapper: TypeAlias = gymnasium.Wrapper[Any, Any, Any, Any]
Infos: TypeAlias = dict[str, Any]
Step: TypeAlias = tuple[Tree, Any, Any, Any, Infos]
"""Observation, reward, terminated, truncated and info."""
EnvT = TypeVar("EnvT", Environment, Envs)

_NUMBERS = (float, np.float64, np.float32)
_OF_VECTORS = ("final_obs", "_final_obs", "final_info", "_final_info")
"""Infos that a vector environment gives where it has reset an episode."""
_STEP = "return observation, reward, terminated, truncated, info from step()"
_RESET = "return observation, info from reset()"


def layers_of(env: EnvT) -> Iterator[EnvT]:
    """Yield the wrappers around an environment or a vector environment, the outermost first, and what they are around."""
    yield env
    while isinstance(env, gymnasium.Wrapper | VectorWrapper):
        env = env.env
        yield env


def step(envs: Envs, actions: object) -> Step:
    """Step a vector environment.

    Args:
        envs: of any kind. actions: `(envs, *action)`, which environments may scale or clip in place.

    Returns:
        Observations, rewards, terminated, truncated and infos, as the environments returned them.

    Raises:
        TypeError, ValueError: if they returned something else than five values, the last one a dict.
    """
    returned = envs.step(actions)
    _require_parts(type(envs).__name__, "step", returned, 5, _STEP)
    return returned


def check_interface(env: Environment) -> None:
    """Let an environment refuse to return what breaks Gymnasium's interface, and return copies of its observations.

    A vector environment would end in an error of its own there, which does not say what the environment did. The environment stays the
    object that it is: its methods `reset` and `step` are replaced. Infos named as those of a vector environment, `final_obs` and
    `final_info`, are left out.

    Args:
        env: an environment or a wrapper. Observations are checked where its space is a Box, or a Dict of such.

    Raises:
        TypeError: if its `reset` does not take `seed` and `options`.
    """
    checked = _Checked(env)
    vars(env).update(reset=checked.reset, step=checked.step)


class _Checked:
    def __init__(self, env: Environment) -> None:
        self._reset, self._step = env.reset, env.step
        self._name = type(env).__name__
        self._space = env.observation_space
        self._checks = {call: (partial(self._check, call), partial(self._require_keys, call)) for call in ("reset", "step")}
        self._has_states = env.has_wrapper_attr("state_space")
        taken = inspect.signature(env.reset).parameters
        missing = [name for name in ("seed", "options") if name not in taken]
        if missing and not any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values()):
            raise TypeError(
                f"{self._name}.reset takes ({', '.join(taken)}), expected the keywords seed and options: define it as "
                f"reset(self, *, seed=None, options=None), and call super().reset(seed=seed) in it"
            )

    def reset(self, *, seed: int | None = None, options: Infos | None = None) -> tuple[Tree, Infos]:
        returned = self._reset(seed=seed, options=options)
        _require_parts(self._name, "reset", returned, 2, _RESET)
        observation, info = returned
        return self._observation("reset", observation), self._info(info)

    def step(self, action: object) -> Step:
        returned: tuple[Any, ...] = self._step(action)
        _require_parts(self._name, "step", returned, 5, _STEP)
        observation, reward, terminated, truncated, info = returned
        if type(reward) not in _NUMBERS:
            self._require_scalar("reward", reward, "fiub", "a number: float(reward)")
        for name, ended in (("terminated", terminated), ("truncated", truncated)):
            if type(ended) is not bool:
                self._require_scalar(name, ended, "bfiu", f"True or False: bool({name})")
        return self._observation("step", observation), reward, terminated, truncated, self._info(info)

    def _info(self, info: Infos) -> Infos:
        if any(name in info for name in _OF_VECTORS):  # of one environment's own, they would be taken for the vector environment's
            info = {name: value for name, value in info.items() if name not in _OF_VECTORS}
        # The last state of an episode is read after the reset, which may write into it.
        return {**info, "state": copy.deepcopy(info["state"])} if self._has_states and "state" in info else info

    def _require_scalar(self, name: str, value: object, kinds: str, expected: str) -> None:
        array = as_numpy(value, name)
        if array.shape != () or array.dtype.kind not in kinds:
            got = f"an array of shape {array.shape}" if array.shape else f"{value!r:.80}"
            raise ValueError(f"{self._name}.step returned a {name} that is {got}, expected {expected}")

    def _observation(self, call: str, observation: Tree) -> Tree:
        check, require_keys = self._checks[call]
        return map_named(check, "an observation", self._space, observation, require=require_keys)

    def _check(self, call: str, name: str, space: Space, values: Tree) -> Tree:
        """Return a copy: the environment may write every step into the same array."""
        if not isinstance(space, gymnasium.spaces.Box):
            return values
        array = np.array(as_numpy(values, name))
        if array.shape != space.shape:
            raise ValueError(
                f"{self._name}.{call} returned {name} of shape {array.shape}, expected {space.shape} as its observation_space says: "
                f"reshape it, or give the space this shape"
            )
        if not np.can_cast(array.dtype, space.dtype, "same_kind"):
            raise TypeError(
                f"{self._name}.{call} returned {name} of dtype {array.dtype}, expected {space.dtype} as its observation_space says: "
                f"convert it, or give the space this dtype"
            )
        if array.dtype != space.dtype and np.issubdtype(space.dtype, np.integer):  # a vector environment casts into its buffer
            exactly(array, np.dtype(space.dtype), f"{self._name}.{call} returned {name} whose entries")
        return array

    def _require_keys(self, call: str, name: str, space: gymnasium.spaces.Dict, values: Tree) -> None:
        if not isinstance(values, Mapping) or space.spaces.keys() - values.keys():
            got = f"the keys {sorted(values, key=str)}" if isinstance(values, Mapping) else f"a {type(values).__name__}"
            raise ValueError(
                f"{self._name}.{call} returned {name} with {got}, expected the keys {sorted(space.spaces)} as its observation_space says: "
                f"give all of them"
            )


def _require_parts(name: str, call: str, returned: object, expected: int, fix: str) -> None:
    """Refuse other return values than `expected` many, the last one a dict."""
    if not isinstance(returned, tuple) or len(returned) != expected:
        got = f"{len(returned)} values" if isinstance(returned, tuple) else f"a {type(returned).__name__}"
        older = ", as Gymnasium 0.26 and later do" if isinstance(returned, tuple) and len(returned) == expected - 1 else ""
        raise ValueError(f"{name}.{call} returned {got}, expected {expected}: {fix}{older}")
    if not isinstance(returned[-1], Mapping):
        raise TypeError(f"{name}.{call} returned an info that is {returned[-1]!r:.80}, expected a dict: {fix}, with {{}} for no info")


class _UnequalInfos(Envs):
    """Vector environments that gather infos which fit into no array, as those of several lengths, in arrays of objects."""

    def _add_info(self, vector_infos: Infos, env_info: Infos, env_num: int) -> Infos:
        for key, value in env_info.items():
            gathered = vector_infos.get(key)
            if gathered is None or _is_like(gathered, value):
                try:
                    super()._add_info(vector_infos, {key: value}, env_num)
                    continue
                except (OverflowError, TypeError, ValueError):
                    pass
            mask = vector_infos.get(f"_{key}", np.zeros(self.num_envs, np.bool_))
            entries = _entries(gathered, mask)
            entries[env_num] = value
            mask[env_num] = True
            vector_infos[key], vector_infos[f"_{key}"] = entries, mask
        return vector_infos


def _is_like(gathered: NumpyArray | Infos, value: object) -> bool:
    """Tell whether a value may join those of other copies. NumPy would broadcast another shape, and round a number to the array's dtype."""
    if isinstance(gathered, Mapping) or isinstance(value, dict):
        return isinstance(gathered, Mapping) and isinstance(value, dict)
    if gathered.dtype == object:
        return True
    if not isinstance(value, np.ndarray | np.generic | bool | int | float):
        return False
    array = value if isinstance(value, np.ndarray | np.generic) else np.asarray(value)
    return bool(gathered.shape[1:] == array.shape and (gathered.dtype == array.dtype or np.can_cast(array.dtype, gathered.dtype)))


def _entries(gathered: Any, mask: NDArray[np.bool_]) -> NDArray[np.object_]:
    """Return the infos of the copies in `mask`, `(envs,)`, as an array of objects, None for the others."""
    entries = np.full(mask.shape, None, object)
    for index in np.flatnonzero(mask):
        if isinstance(gathered, Mapping):
            entries[index] = {key: values[index] for key, values in gathered.items() if not (key[:1] == "_" and key[1:] in gathered)}
        else:
            entries[index] = gathered[index]
    return entries


class SyncEnvs(_UnequalInfos, SyncVectorEnv[Any, Any]):
    """Gymnasium's `SyncVectorEnv`, for infos of any kind."""


class AsyncEnvs(_UnequalInfos, AsyncVectorEnv[Any, Any]):
    """Gymnasium's `AsyncVectorEnv`, for infos of any kind."""
