"""The border of an agent: what a trainer hands over is checked, converted and cleared of resets before it is stored."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import partial
from typing import Any, Generic, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from sacref.algorithm.data import Transition
from sacref.algorithm.tree import Tree, leaves, map_leaves, named_leaves
from sacref.config import SACConfig
from sacref.envs.episodes import EpisodeBoundaries, dropped_rows, has_entries
from sacref.envs.scaling import action_bounds, from_box
from sacref.envs.spaces import Spaces, check_values, exactly
from sacref.envs.states import final_states
from sacref.spec.arrays import ArrayT, as_numpy, largest_finite, namespace


class Rows(NamedTuple, Generic[ArrayT]):
    """A checked row per environment."""

    transition: Transition[ArrayT]
    """As it is stored: rewards scaled and shaped, actions in [-1, 1]."""
    rewards: ArrayT
    """`(envs,)`, as the environments gave them."""
    ended: ArrayT
    """`(envs,)`, bool: terminated or truncated."""
    keep: ArrayT
    """`(envs,)`, bool: False where the row is no transition."""
    first: ArrayT
    """`(envs,)`, bool: whether it does not continue the environment's row before."""
    starts: ArrayT
    """`(envs,)`, bool: whether the next row will not continue this one."""
    dropped: ArrayT | None = None
    """`(envs,)`, bool: whether the episode at hand counts for nothing; None for no environment's."""


class Border(ABC, Generic[ArrayT]):
    """The checks of an agent. NumPy arrays are judged on the host; device arrays are never waited for."""

    spaces: Spaces
    action_space: Any
    cfg: SACConfig
    memory: Any
    training: bool
    _largest: float | None = None
    """The largest number that is finite in the agent's dtype; None before it was asked for."""
    _host_bounds: tuple[NDArray[Any], NDArray[Any]]
    """Low and high of the actions, `(action,)` each, in the agent's dtype."""
    _bad_rows: Any = None
    """`(envs,)` on the device: which environments had rows that were not finite; None before the first."""

    # What a backend provides.

    _action_bounds: Any
    """The same on the device."""
    _acts_in: str | None = None
    """The Box's dtype where it has fewer digits than the agent's."""

    @abstractmethod
    def to_numpy(self, array: Any) -> NDArray[Any]:
        """A backend array on the host."""

    @staticmethod
    @abstractmethod
    def _longest_integer() -> np.dtype[Any]:
        """The dtype of the longest integers that the backend has."""

    @abstractmethod
    def _is_device_array(self, value: Any) -> bool: ...

    dtype: Any
    """Of the parameters: float32 or float64, as the backend names it."""

    @abstractmethod
    def _upload(self, array: Any, *, copy: bool = False) -> Any:
        """Put an array of the backend's, or NumPy's, on the device; floats in the agent's dtype, except float16, all else in its own.

        The result has no gradients. With `copy` it shares nothing with the array.
        """

    @abstractmethod
    def _as_floats(self, array: Any) -> Any:
        """A device array in the agent's dtype."""

    # The checks.

    def _check_observations(self, observations: Any, name: str = "observations") -> Tree:
        """`observations` as arrays of `(envs, *observation)`: NumPy, unless they are the backend's own."""
        return check_values(observations, self.spaces.observations, name, self._is_device_array)

    def _check_states(self, states: Any, name: str = "states") -> Tree | None:
        """`states` as arrays of `(envs, *state)`; None where there is no state_space.

        Raises:
            ValueError: if they are there without a state_space, or missing with one.
        """
        if self.spaces.states is None:
            if states is not None:
                raise ValueError(f"{name} were given, but this agent has no state_space: pass {name}=None, or construct it with one")
            return None
        if states is None:
            raise ValueError(
                f"{name} are None, expected arrays as the state_space says: pass what the environment hands over in infos['state'] "
                f"(sacref.envs.states_of)"
            )
        return check_values(states, self.spaces.states, name, self._is_device_array)

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
        arrays = (observations, states, actions, rewards, next_observations, next_states, terminated, truncated)
        # Asked of NumPy's first: of JAX's it takes longer.
        device = any(type(leaf) is not np.ndarray and self._is_device_array(leaf) for value in arrays for leaf in leaves(value))
        observations, states = self._check_observations(observations), self._check_states(states)
        next_observations = self._check_observations(next_observations, "next_observations")
        next_states = self._check_states(next_states, "next_states")
        if device:
            upload = self._upload_tree
            observations, states, next_observations, next_states = map(upload, (observations, states, next_observations, next_states))
        envs = int(leaves(observations)[0].shape[0])
        for name, tree in {"states": states, "next_observations": next_observations, "next_states": next_states}.items():
            if tree is not None and leaves(tree)[0].shape[0] != envs:
                raise ValueError(f"{name} have {leaves(tree)[0].shape[0]} rows, expected {envs} as observations")
        if self.training and self.memory is not None and envs != self.memory.num_envs:
            raise ValueError(
                f"record_transition: {envs} environments came, the memory was made for {self.memory.num_envs}: "
                f"make it with ReplayMemory(num_envs={envs})"
            )
        terminated = self._column(terminated, "terminated", envs, device, bool)
        truncated = self._column(truncated, "truncated", envs, device, bool)
        actions = self._floats(actions, "actions", device)
        if tuple(actions.shape) != (envs, *self.spaces.action_shape):
            raise ValueError(
                f"actions have shape {tuple(actions.shape)}, expected {(envs, *self.spaces.action_shape)}: "
                f"pass what `act` returned, in the Box's own units"
            )
        actions = actions.reshape(envs, -1)
        if boundaries.latest is not None and self._is_device_array(boundaries.latest) != device:
            # A trainer may hand over NumPy arrays now and the backend's then.
            boundaries.set_state(boundaries.state(self._upload if device else self.to_numpy))
        first = boundaries.starts
        if first is None or first.shape != terminated.shape:
            first = terminated | ~terminated
        if isinstance(infos, Mapping) and (final := infos.get("final_obs")) is not None and not has_entries(final):
            convert = self._upload if device else partial(as_numpy, name="infos['final_obs']")
            infos = {**infos, "final_obs": map_leaves(convert, final)}
        next_observations, keep = boundaries.resolve(
            observations=observations, next_observations=next_observations, terminated=terminated, truncated=truncated, infos=infos
        )
        # Until this row is known to be stored, or left out: a row that is refused below is followed by none.
        boundaries.starts = None
        if next_states is not None:
            next_states = final_states(infos, next_states)
        reward = self._column(rewards, "rewards", envs, device)
        shaped = self._shaped(rewards, reward, device, timestep=timestep, timesteps=timesteps) if self._shapes_rewards else reward
        parts = {
            **named_leaves(observations, "observations"),
            **named_leaves(states, "states"),
            "actions": actions,
            "rewards": reward,
            **named_leaves(next_observations, "next_observations"),
            **named_leaves(next_states, "next_states"),
        }
        keep = self._refuse_not_finite({**parts, "shaped rewards": shaped}, keep, device)
        ended = terminated | truncated
        boundaries.starts = ended | ~keep
        low, high = self._action_bounds if device else self._host_bounds
        transition = Transition(observations, states, from_box(actions, low, high), shaped, next_observations, next_states, terminated)
        return Rows(transition, reward, ended, keep, first, boundaries.starts, dropped_rows(infos, terminated))

    @property
    def _shapes_rewards(self) -> bool:
        """Whether rewards are scaled and shaped: where they are stored."""
        return self.training

    def _shaped(self, rewards: Any, reward: Any, device: bool, *, timestep: int, timesteps: int) -> Any:
        """Rewards as they are stored, `(envs,)`: scaled, then shaped."""
        scaled = reward
        if self.cfg.reward_scale != 1.0:
            with np.errstate(over="ignore"):  # what is infinite then is refused below
                scaled = reward * self.cfg.reward_scale
        if self.cfg.rewards_shaper is None:
            return scaled
        if scaled is reward:
            # A shaper sees what the environment gave, integers too, where nothing is scaled; as a copy, for it may write into it.
            given = self._array(rewards, "rewards", device)
            scaled = self._upload(given, copy=True) if device else np.array(given)
        shaped = self.cfg.rewards_shaper(scaled.reshape(-1, 1), timestep, timesteps)
        return self._column(shaped, "the rewards_shaper's result", reward.shape[0], device)

    def _upload_tree(self, tree: Any) -> Any:
        return map_leaves(self._upload, tree)

    def _take_bounds(self, dtype: DTypeLike) -> tuple[NDArray[Any], NDArray[Any]]:
        """Judge the bounds of the actions in the agent's dtype, and keep them.

        Raises:
            ValueError: if there is too little between them.
        """
        self._host_bounds = action_bounds(self.action_space, dtype)
        own = self.action_space.dtype
        self._acts_in = own.name if np.finfo(own).bits < np.finfo(np.dtype(dtype)).bits else None
        return self._host_bounds

    def _narrowed(self, actions: Any) -> Any:
        """Device actions in the Box's dtype where that has fewer digits, or it would not contain them. None is rounded past a bound."""
        if self._acts_in is None:
            return actions
        xp: Any = namespace(actions)
        return xp.astype(actions, getattr(xp, self._acts_in))

    def _column(self, values: Any, name: str, envs: int, device: bool, dtype: type | None = None) -> Any:
        """A `(envs, 1)` or `(envs,)` input as `(envs,)`, as a copy: the caller may write into its own."""
        array = self._array(values, name, device)
        if device:
            array = self._upload(array, copy=dtype is None)
        if tuple(array.shape) not in ((envs, 1), (envs,)):
            raise ValueError(f"{name} have shape {tuple(array.shape)}, expected ({envs}, 1): one row per environment")
        array = array.reshape(envs)
        if dtype is bool:
            if not device and array.dtype.kind != "b" and not (array.dtype.kind in "fiu" and np.isin(array, (0, 1)).all()):
                raise ValueError(f"{name} are {array.tolist()}, expected True or False for each environment")
            return array != 0 if device else array.astype(np.bool_)
        return self._floats(array if device else array.copy(), name, device)

    def _array(self, values: Any, name: str, device: bool) -> Any:
        """NumPy's arrays; of rows on the device the backend's own as they are."""
        if not (device and self._is_device_array(values)):
            return as_numpy(values, name)
        xp: Any = namespace(values)
        if not xp.isdtype(values.dtype, ("bool", "integral", "real floating")):
            raise TypeError(f"{name} have dtype {values.dtype}, expected real numbers: convert them")
        return values

    def _floats(self, values: Any, name: str, device: bool) -> Any:
        """Actions or rewards, which may be integers, as floating-point numbers.

        Raises:
            TypeError: if they are no numbers.
        """
        array = self._array(values, name, device)
        if device:
            return self._as_floats(self._upload(array))
        if array.dtype.kind not in "fiub":
            raise TypeError(f"{name} have dtype {array.dtype}, expected numbers: convert them, np.asarray({name}, np.float32)")
        known = array.dtype.kind == "f" and array.dtype.itemsize <= 8 and array.dtype.isnative  # and no long double
        return array if known else exactly(array, np.dtype(np.float64), name)

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
            # Counted: it takes a tenth of the time of `all`.
            if array.dtype.kind == "f" and np.count_nonzero(finite := self._finite(array)) < array.size:
                bad_rows = np.flatnonzero(~finite.reshape(array.shape[0], -1).all(axis=1) & keep)
                if bad_rows.size:
                    raise ValueError(self._describe_not_finite(name, array, bad_rows))
        return keep

    @property
    def float_limit(self) -> float:
        """The largest number that is finite in the dtype of the parameters; larger ones are refused wherever they are handed over."""
        if self._largest is None:
            self._largest = largest_finite(str(self.dtype).removeprefix("torch."))
        return self._largest

    def _finite(self, array: NDArray[Any]) -> NDArray[np.bool_]:
        """Which numbers of a host array are finite in the agent's dtype."""
        narrowed: bool = array.dtype.itemsize > self.dtype.itemsize
        finite: NDArray[np.bool_] = np.abs(array) <= self.float_limit if narrowed else np.isfinite(array)
        return finite

    def _describe_not_finite(self, name: str, array: NDArray[Any], bad_rows: NDArray[Any]) -> str:
        where = f"{name} of environment {', '.join(map(str, bad_rows))} are"
        rows = array[bad_rows]
        if not np.isfinite(rows).all():
            return (
                f"{where} not finite (NaN or infinity): nothing of this step was stored. Reset the environment, or find out what made the "
                f"simulation diverge"
            )
        fix = "lower reward_scale or mend the rewards_shaper" if name == "shaped rewards" else "scale them down in a wrapper"
        return (
            f"{where} as large as {np.abs(rows).max():g}, expected at most {self.float_limit:.4g}, as this agent computes in "
            f"{str(self.dtype).removeprefix('torch.')}: nothing of this step was stored. Find out what made the simulation diverge, {fix}, "
            f'or take models of float64 (default_models(dtype="float64"))'
        )

    def _raise_for_bad_rows(self) -> None:
        if self._bad_rows is not None:
            bad, self._bad_rows = self.to_numpy(self._bad_rows), None
            if bad.any():
                raise ValueError(
                    f"transitions of environment {', '.join(map(str, np.flatnonzero(bad)))} were not finite (NaN or infinity) in "
                    f"{str(self.dtype).removeprefix('torch.')} since the last write interval: they were not stored. Find out what made the "
                    f"simulation diverge"
                )
