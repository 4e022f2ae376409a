"""Rows that a trainer hands over: they are checked, converted and cleared of resets before they are stored."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Generic, NamedTuple, cast

import gymnasium
import numpy as np
from numpy.typing import NDArray

from sacref.agent.backend import Backend
from sacref.agent.execution import Bounds
from sacref.algorithm.data import Transition
from sacref.algorithm.tree import Tree, leaves, map_leaves, named_leaves
from sacref.config import SACConfig
from sacref.envs.episodes import EpisodeBoundaries, dropped_rows, has_entries
from sacref.envs.interface import Space
from sacref.envs.scaling import action_bounds, from_box
from sacref.envs.spaces import DType, Spaces, check_values, exactly, rows_like
from sacref.envs.states import final_states
from sacref.spec.arrays import Array, ArrayT, NumpyArray, as_numpy, largest_finite, namespace
from sacref.storage.values import Like, Maybe


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
    """`(envs,)`, bool: True where the row does not continue the environment's row before."""
    starts: ArrayT
    """`(envs,)`, bool: True where the next row will not continue this one."""
    dropped: ArrayT | None
    """`(envs,)`, bool: True where the episode counts for nothing; None for no environment's."""
    on_device: bool
    """True where the arrays are the backend's, not NumPy's."""
    following: tuple[Tree, Tree | None] | None
    """Observations and states after the step as the environments returned them, where those are NumPy arrays, and finite."""


class Transitions(Generic[ArrayT]):
    """Checks, converts and clears of resets what a trainer hands over. It never waits for device arrays.

    Args:
        cfg: of the agent. observation_space, state_space, action_space: of one environment.
        memory_envs: environments that the memory was made for; None without a memory.
        check_numbers: called before values are refused that the agent itself may have spoilt; raises if it has.

    Raises:
        ValueError: if there are too few numbers between the bounds of the actions.
    """

    def __init__(
        self,
        backend: Backend[ArrayT],
        cfg: SACConfig,
        spaces: Spaces,
        *,
        observation_space: Space,
        state_space: Space | None,
        action_space: gymnasium.spaces.Box,
        memory_envs: int | None,
        check_numbers: Callable[[], None],
    ) -> None:
        self._backend, self._cfg, self._spaces = backend, cfg, spaces
        self._is_array, self._check_numbers = backend.is_array, check_numbers
        self._observation_space, self._state_space = observation_space, state_space
        self._memory_envs = memory_envs
        self.num_envs: int = 1 if memory_envs is None else memory_envs
        """Environments of this rank; without a memory those of the last row."""
        self._boundaries: dict[bool, EpisodeBoundaries[Array]] = {True: EpisodeBoundaries(), False: EpisodeBoundaries()}
        self._dtype = np.dtype(str(backend.dtype).removeprefix("torch."))
        self.float_limit: float = largest_finite(self._dtype)
        """The largest number that is finite in the dtype of the parameters."""
        low, high = action_bounds(action_space, self._dtype)
        self._host_bounds = low, high
        self.bounds: Bounds[ArrayT] = Bounds(backend.upload(low), backend.upload(high))
        """Low and high of the actions on the device, `(action,)` each, in the agent's dtype."""
        own: DType = np.dtype(action_space.dtype)
        self._acts_in: str | None = own.name if np.finfo(own).bits < np.finfo(self._dtype).bits else None
        self.bad_rows: ArrayT | None = None
        """`(envs,)`: which environments had device rows that were not finite; None before the first."""

    # Checks.

    def check_observations(self, observations: Tree, name: str = "observations") -> Tree:
        """Return `observations` as arrays of `(envs, *observation)`: NumPy, unless they are the backend's own."""
        return check_values(observations, self._spaces.observations, name, self._is_array)

    def check_states(self, states: Tree, name: str = "states") -> Tree | None:
        """Return `states` as arrays of `(envs, *state)`; None where there is no state_space.

        Raises:
            ValueError: if they are there without a state_space, or missing with one.
        """
        if self._spaces.states is None:
            if states is not None:
                raise ValueError(f"{name} were given, but this agent has no state_space: pass {name}=None, or construct it with one")
            return None
        if states is None:
            raise ValueError(
                f"{name} are None, expected arrays as the state_space says: pass what the environment hands over in infos['state'] "
                f"(sacref.envs.states.states_of)"
            )
        return check_values(states, self._spaces.states, name, self._is_array)

    def check_inputs(self, observations: Tree, states: Tree) -> tuple[Tree, Tree | None]:
        """Return what actions are chosen on, checked; states may be left out.

        Raises:
            ValueError: if a shape is wrong, or a host array holds NaN or infinity.
        """
        observations = self.check_observations(observations)
        states = None if states is None else self.check_states(states)
        arrays = {**named_leaves(observations, "observations"), **named_leaves(states, "states")}
        if not any(map(self._is_array, arrays.values())):
            self._refuse_not_finite(arrays, np.ones(int(leaves(observations)[0].shape[0]), np.bool_), device=False)
        return observations, states

    def check(
        self,
        *,
        observations: Tree,
        states: Tree | None,
        actions: object,
        rewards: object,
        next_observations: Tree,
        next_states: Tree | None,
        terminated: object,
        truncated: object,
        infos: object,
        timestep: int,
        timesteps: int,
        training: bool,
        shapes_rewards: bool,
    ) -> Rows[Array]:
        """Return the rows of one step of all environments; for arguments and errors see `Agent.record_transition`.

        Args:
            shapes_rewards: whether rewards are scaled and shaped.
        """
        boundaries = self._boundaries[training]
        # Not the actions: they may be the policy's own arrays where the environments are on the host.
        arrays = (observations, states, rewards, next_observations, next_states, terminated, truncated)
        # Asked of NumPy's first: of JAX's it takes longer.
        device = not {type(array) for array in arrays} <= {np.ndarray, type(None)} and any(
            type(leaf) is not np.ndarray and self._is_array(leaf) for value in arrays for leaf in leaves(value)
        )
        observations, states = self.check_observations(observations), self.check_states(states)
        next_observations = self.check_observations(next_observations, "next_observations")
        next_states = self.check_states(next_states, "next_states")
        if device:
            uploaded = map_leaves(self._backend.upload, (observations, states, next_observations, next_states))
            observations, states, next_observations, next_states = uploaded
        envs = int(leaves(observations)[0].shape[0])
        for name, tree in {"states": states, "next_observations": next_observations, "next_states": next_states}.items():
            if tree is not None and leaves(tree)[0].shape[0] != envs:
                raise ValueError(f"{name} have {leaves(tree)[0].shape[0]} rows, expected {envs} as observations")
        if training and envs != self._memory_envs is not None:
            raise ValueError(
                f"record_transition: {envs} environments came, the memory was made for {self._memory_envs}: "
                f"make it with ReplayMemory(num_envs={envs})"
            )
        terminations = self._column(terminated, "terminated", envs, device, bool)
        truncations = self._column(truncated, "truncated", envs, device, bool)
        box_actions = self._floats(actions, "actions", device)
        if tuple(box_actions.shape) != (envs, *self._spaces.action_shape):
            raise ValueError(
                f"actions have shape {tuple(box_actions.shape)}, expected {(envs, *self._spaces.action_shape)}: "
                f"pass what `act` returned, in the Box's own units"
            )
        box_actions = box_actions.reshape(envs, -1)
        if boundaries.latest is not None and self._is_array(boundaries.latest) != device:
            # A trainer may hand over NumPy arrays now and the backend's then.
            boundaries.set_state(boundaries.state(self._backend.upload if device else self._backend.to_numpy))
        first = boundaries.starts
        if first is None or first.shape != terminations.shape:
            first = terminations | ~terminations
        if isinstance(infos, Mapping) and (final := infos.get("final_obs")) is not None and not has_entries(final):
            convert = self._backend.upload if device else partial(as_numpy, name="infos['final_obs']")
            infos = {**infos, "final_obs": map_leaves(convert, final)}
        returned = next_observations, next_states
        next_observations, keep = boundaries.resolve(
            observations=observations, next_observations=next_observations, terminated=terminations, truncated=truncations, infos=infos
        )
        # Until this row is known to be stored, or left out: a row that is refused below is followed by none.
        boundaries.starts = None
        ended = terminations | truncations
        if next_states is not None:
            next_states = final_states(infos, next_states, ended)
        reward = self._column(rewards, "rewards", envs, device)
        shaped = self._shaped(rewards, reward, device, timestep=timestep, timesteps=timesteps) if shapes_rewards else reward
        named = {
            **named_leaves(observations, "observations"),
            **named_leaves(states, "states"),
            "actions": box_actions,
            "rewards": reward,
            **named_leaves(next_observations, "next_observations"),
            **named_leaves(next_states, "next_states"),
            **({} if shaped is reward else {"shaped rewards": shaped}),
        }
        keep = self._refuse_not_finite(named, keep, device)
        boundaries.starts = ended | ~keep
        low, high = self.bounds if device else self._host_bounds
        transition = Transition(
            observations, states, from_box(box_actions, low, high), shaped, next_observations, next_states, terminations
        )
        if self._memory_envs is None:
            self.num_envs = envs
        looked_at = next_observations is returned[0] and next_states is returned[1] and not device and np.count_nonzero(keep) == envs
        following = returned if looked_at or (not device and self.are_finite(returned)) else None
        dropped = dropped_rows(infos, terminations)
        return Rows(transition, reward, ended, keep, first, boundaries.starts, dropped, device, following)

    def narrow(self, actions: ArrayT) -> ArrayT:
        """Convert device actions to the Box's dtype where that has fewer digits, or it would not contain them."""
        if self._acts_in is None:
            return actions
        xp = namespace(actions)
        narrowed: ArrayT = xp.astype(actions, getattr(xp, self._acts_in))
        return narrowed

    def unscaled(self, actions: NumpyArray) -> NumpyArray:
        """Return host actions in the Box's units, `(envs, *action)`, as the models see them: in [-1, 1], `(envs, action)`."""
        return from_box(self._floats(actions, "actions", False).reshape(len(actions), -1), *self._host_bounds)

    def are_finite(self, tree: Tree) -> bool:
        """Tell whether all numbers of host arrays are finite in the agent's dtype."""
        return all(array.dtype.kind != "f" or bool(self._finite(array).all()) for array in leaves(tree))

    def shape_rewards(self, rewards: object, envs: int, *, timestep: int = 0, timesteps: int = 1) -> NumpyArray:
        """Return host rewards, `(envs,)`, scaled and shaped.

        Raises:
            ValueError: if they have another shape, or are not finite then. Whatever the shaper raises.
        """
        reward = self._column(rewards, "rewards", envs, False)
        shaped: NumpyArray = self._shaped(rewards, reward, False, timestep=timestep, timesteps=timesteps)
        self._refuse_not_finite({"shaped rewards": shaped}, np.ones(envs, np.bool_), False)
        return shaped

    def raise_for_bad_rows(self) -> None:
        """Raise for device rows that were not finite since the last call."""
        if self.bad_rows is None:
            return
        bad = self._backend.to_numpy(self.bad_rows)
        if bad.any():
            self._check_numbers()  # whose actions may be why
        self.bad_rows = None
        if bad.any():
            raise ValueError(
                f"transitions of environment {', '.join(map(str, np.flatnonzero(bad)))} were not finite (NaN or infinity) in "
                f"{self._dtype} since the last write interval: they were not stored. Find out what made the simulation diverge"
            )

    # State.

    def reset(self, training: bool) -> None:
        """Forget the row before in this mode: the next one comes from freshly reset environments."""
        self._boundaries[training].reset()

    def state(self) -> dict[str, object]:
        """Return the in-flight state, on the host."""
        return {"boundaries": self._boundaries[True].state(self._backend.to_numpy)}

    def state_like(self, envs: int) -> dict[str, object]:
        """Describe `state`, for `refuse_unlike`."""
        flags, observations = Maybe(Like((envs,), "b")), Maybe(self.inputs_like(envs)[0])
        return {"boundaries": {"expects_reset": flags, "last_observations": observations, "starts": flags}}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave."""
        self._boundaries[True].set_state(state["boundaries"])

    def inputs_like(self, envs: int) -> tuple[Tree, Tree]:
        """Describe observations and states of so many environments, for `refuse_unlike`."""
        return rows_like(self._observation_space, envs), rows_like(self._state_space, envs)

    # Conversions.

    def _shaped(self, rewards: object, reward: Any, device: bool, *, timestep: int, timesteps: int) -> Any:
        """Scale, then shape rewards, `(envs,)`."""
        scaled = reward
        if self._cfg.reward_scale != 1.0:
            with np.errstate(over="ignore"):  # what is infinite then is refused later
                scaled = reward * self._cfg.reward_scale
        if self._cfg.rewards_shaper is None:
            return scaled
        if scaled is reward:
            # A shaper sees what the environment gave, integers too, where nothing is scaled; as a copy, for it may write into it.
            given = self._array(rewards, "rewards", device)
            scaled = self._backend.upload(given, copy=True) if device else np.array(given)
        shaped = self._cfg.rewards_shaper(scaled.reshape(-1, 1), timestep, timesteps)
        return self._column(shaped, "the rewards_shaper's result", reward.shape[0], device)

    def _column(self, values: object, name: str, envs: int, device: bool, dtype: type | None = None) -> Any:
        """Return a `(envs, 1)` or `(envs,)` input as `(envs,)`; a copy, as the caller may write into its own."""
        array = self._array(values, name, device)
        if device:
            array = self._backend.upload(array, copy=dtype is None)
        if tuple(array.shape) not in ((envs, 1), (envs,)):
            raise ValueError(f"{name} have shape {tuple(array.shape)}, expected ({envs}, 1): one row per environment")
        array = array.reshape(envs)
        if dtype is bool:
            if not device and array.dtype.kind != "b" and not (array.dtype.kind in "fiu" and np.isin(array, (0, 1)).all()):
                raise ValueError(f"{name} are {array.tolist()}, expected True or False for each environment")
            return array != 0 if device else array.astype(np.bool_)
        return self._floats(array if device else array.copy(), name, device)

    def _array(self, values: object, name: str, device: bool) -> Any:
        """Return an array of NumPy; in rows on the device the backend's own are left as they are."""
        if not (device and self._is_array(values)):
            return as_numpy(values, name)
        array = cast(ArrayT, values)
        if not namespace(array).isdtype(array.dtype, ("bool", "integral", "real floating")):
            raise TypeError(f"{name} have dtype {array.dtype}, expected real numbers: convert them")
        return array

    def _floats(self, values: object, name: str, device: bool) -> Any:
        """Return actions or rewards, which may be integers, as floating-point numbers."""
        array = self._array(values, name, device)
        if device:
            return self._backend.as_floats(self._backend.upload(array))
        if array.dtype.kind not in "fiub":
            raise TypeError(f"{name} have dtype {array.dtype}, expected numbers: convert them, np.asarray({name}, np.float32)")
        known = array.dtype.kind == "f" and array.dtype.itemsize <= 8 and array.dtype.isnative  # and no long double
        return array if known else exactly(array, np.dtype(np.float64), name)

    def _refuse_not_finite(self, named: Mapping[str, Any], keep: Any, device: bool) -> Any:
        """Raise for host rows with NaN or infinity; leave such device rows out, and note them in `bad_rows`."""
        if device:
            finite = keep
            for array in named.values():
                if namespace(array).isdtype(array.dtype, "real floating"):
                    finite = finite & ((array - array) == 0).reshape(keep.shape[0], -1).all(1)
            bad = keep & ~finite
            self.bad_rows = bad if self.bad_rows is None or self.bad_rows.shape != bad.shape else self.bad_rows | bad
            return finite
        for name, array in named.items():
            # Counted: it takes a tenth of the time of `all`.
            if array.dtype.kind == "f" and np.count_nonzero(finite := self._finite(array)) < array.size:
                bad_rows = np.flatnonzero(~finite.reshape(array.shape[0], -1).all(axis=1) & keep)
                if bad_rows.size:
                    if name == "actions" and not np.isfinite(array).all():
                        self._check_numbers()  # which the policy's come from
                    raise ValueError(self._describe_not_finite(name, array, bad_rows))
        return keep

    def _finite(self, array: NumpyArray) -> NDArray[np.bool_]:
        """Tell which numbers of a host array are finite in the agent's dtype."""
        narrowed = array.dtype.itemsize > self._dtype.itemsize
        finite: NDArray[np.bool_] = np.abs(array) <= self.float_limit if narrowed else np.isfinite(array)
        return finite

    def _describe_not_finite(self, name: str, array: NumpyArray, bad_rows: NumpyArray) -> str:
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
            f"{self._dtype}: nothing of this step was stored. Find out what made the simulation diverge, {fix}, "
            f'or take models of float64 (default_models(dtype="float64"))'
        )
