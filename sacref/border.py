"""The border of an agent: what a trainer hands over is checked, converted and cleared of resets before it is stored."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Generic, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sacref.config import SACConfig
from sacref.envs.episodes import EpisodeBoundaries
from sacref.envs.scaling import from_box
from sacref.envs.spaces import Spaces
from sacref.spec.arrays import ArrayT, namespace
from sacref.types import Transition


class Rows(NamedTuple, Generic[ArrayT]):
    """A checked row per environment."""

    transition: Transition[ArrayT]
    """As it is stored: rewards shaped, actions in [-1, 1]."""
    rewards: ArrayT
    """`(envs,)`, as the environments gave them."""
    ended: ArrayT
    """`(envs,)`, bool: terminated or truncated."""
    keep: ArrayT
    """`(envs,)`, bool: False where the row is no transition."""


class Border(ABC, Generic[ArrayT]):
    """The checks of an agent. NumPy arrays are judged on the host; device arrays are never waited for."""

    spaces: Spaces
    cfg: SACConfig
    memory: Any
    training: bool
    _bad_rows: Any = None
    """`(envs,)` on the device: which environments had rows that were not finite; None before the first."""

    # What a backend provides.

    @abstractmethod
    def to_numpy(self, array: Any) -> NDArray[Any]:
        """A backend array on the host."""

    @abstractmethod
    def _is_device_array(self, value: Any) -> bool: ...

    @abstractmethod
    def _upload(self, array: Any) -> Any:
        """Put an array on the device; floats in the agent's dtype, except float16, all else in its own."""

    @abstractmethod
    def _as_floats(self, array: Any) -> Any:
        """A device array in the agent's dtype."""

    # The checks.

    def _check_observations(self, observations: Any, name: str = "observations") -> Any:
        """`observations` as an array of `(envs, *observation)`: NumPy, unless it is the backend's own."""
        array = observations if self._is_device_array(observations) else np.asarray(observations)
        expected = self.spaces.observation_shape
        if array.ndim != len(expected) + 1 or tuple(array.shape[1:]) != expected:
            raise ValueError(
                f"{name} have shape {tuple(array.shape)}, expected (envs, *{expected}) as the observation space says: "
                f"{'add the leading environment axis' if tuple(array.shape) == expected else 'check the environment and its wrappers'}"
            )
        return array

    def _check_rows(
        self,
        boundaries: EpisodeBoundaries[Any],
        *,
        observations: Any,
        states: Any,
        actions: Any,
        rewards: Any,
        next_observations: Any,
        next_states: Any,
        terminated: Any,
        truncated: Any,
        infos: Any,
        timestep: int,
        timesteps: int,
    ) -> Rows[Any]:
        if states is not None or next_states is not None:
            raise ValueError("record_transition: states were given, but this agent has no state_space: pass states=None, next_states=None")
        device = any(self._is_device_array(value) for value in (observations, actions, rewards, next_observations, terminated, truncated))
        if device:
            observations, next_observations = self._upload(observations), self._upload(next_observations)
        observations = self._check_observations(observations)
        next_observations = self._check_observations(next_observations, "next_observations")
        envs = int(observations.shape[0])
        if next_observations.shape[0] != envs:
            raise ValueError(f"next_observations have {next_observations.shape[0]} rows, expected {envs} as observations")
        if self.training and self.memory is not None and envs != self.memory.num_envs:
            raise ValueError(
                f"record_transition: {envs} environments came, the memory was made for {self.memory.num_envs}: "
                f"make it with ReplayMemory(num_envs={envs})"
            )
        terminated = self._column(terminated, "terminated", envs, device, bool)
        truncated = self._column(truncated, "truncated", envs, device, bool)
        actions = self._floats(actions, device)
        if tuple(actions.shape) != (envs, *self.spaces.action_shape):
            raise ValueError(
                f"actions have shape {tuple(actions.shape)}, expected {(envs, *self.spaces.action_shape)}: "
                f"pass what `act` returned, in the Box's own units"
            )
        actions = actions.reshape(envs, -1)
        next_observations, keep = boundaries.resolve(
            observations=observations, next_observations=next_observations, terminated=terminated, truncated=truncated, infos=infos
        )
        reward = self._column(rewards, "rewards", envs, device)
        if self.training and self.cfg.rewards_shaper is not None:
            column = self._upload(rewards) if device else np.asarray(rewards)
            shaped = self.cfg.rewards_shaper(column.reshape(envs, 1), timestep, timesteps)
            shaped = self._column(shaped, "the rewards_shaper's result", envs, device)
        else:
            shaped = reward
        parts = {"observations": observations, "actions": actions, "rewards": reward, "next_observations": next_observations}
        keep = self._refuse_not_finite({**parts, "shaped rewards": shaped}, keep, device)
        low, high = (np.asarray(bound, actions.dtype) if not device else self._upload(bound) for bound in self._bounds)
        transition = Transition(observations, None, from_box(actions, low, high), shaped, next_observations, None, terminated)
        xp = namespace(terminated)
        return Rows(transition, reward, xp.where(terminated, terminated, truncated), keep)

    @property
    def _bounds(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        return self.spaces.action_low, self.spaces.action_high

    def _column(self, values: Any, name: str, envs: int, device: bool, dtype: type | None = None) -> Any:
        """A `(envs, 1)` or `(envs,)` input as `(envs,)`."""
        array = self._upload(values) if device else np.asarray(values)
        if tuple(array.shape) not in ((envs, 1), (envs,)):
            raise ValueError(f"{name} have shape {tuple(array.shape)}, expected ({envs}, 1): one row per environment")
        array = array.reshape(envs)
        if dtype is bool:
            return array != 0 if device else array.astype(np.bool_)
        return self._floats(array, device)

    def _floats(self, values: Any, device: bool) -> Any:
        """Actions or rewards, which may be integers, as floating-point numbers."""
        if device:
            return self._as_floats(self._upload(values))
        array = np.asarray(values)
        return array if array.dtype.kind == "f" else array.astype(np.float64)

    def _refuse_not_finite(self, parts: Mapping[str, Any], keep: Any, device: bool) -> Any:
        """On the host, raise for rows with NaN or infinity. On the device, leave them out and count them."""
        if device:
            finite = keep
            for array in parts.values():
                finite = finite & ((array - array) == 0).reshape(keep.shape[0], -1).all(1)
            bad = keep & ~finite
            self._bad_rows = bad if self._bad_rows is None or self._bad_rows.shape != bad.shape else self._bad_rows | bad
            return finite
        for name, array in parts.items():
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                finite = np.isfinite(array).reshape(array.shape[0], -1).all(axis=1)
                bad_rows = np.flatnonzero(~finite & keep)
                if bad_rows.size:
                    raise ValueError(
                        f"{name} of environment {', '.join(map(str, bad_rows))} are not finite (NaN or infinity): nothing of this step was "
                        f"stored. Reset the environment, or find out what made the simulation diverge"
                    )
        return keep

    def _raise_for_bad_rows(self) -> None:
        if self._bad_rows is not None:
            bad, self._bad_rows = self.to_numpy(self._bad_rows), None
            if bad.any():
                raise ValueError(
                    f"transitions of environment {', '.join(map(str, np.flatnonzero(bad)))} were not finite (NaN or infinity) since "
                    f"the last write interval: they were not stored. Find out what made the simulation diverge"
                )
