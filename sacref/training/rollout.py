"""One step of an agent in its environments, for training and evaluation: act, step, record.

Environments whose arrays are PyTorch's or JAX's keep them on their device in training: nothing here reads a value of theirs. In an
evaluation, which counts episodes one by one, they are brought to the host.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from array_api_compat import device, is_torch_array
from gymnasium.vector import AutoresetMode

from sacref.agent.numerics import require_finite_actions
from sacref.agent.protocol import Agent
from sacref.algorithm.tree import Tree, leaves, map_leaves
from sacref.envs.device import is_on_device, transferred
from sacref.envs.episodes import DROPPED, NO_RESET_ROWS
from sacref.envs.interface import Envs, Infos, Space, step
from sacref.envs.scaling import as_box
from sacref.envs.states import states_of
from sacref.envs.vector import EnvError
from sacref.spec.arrays import Array, as_numpy, namespace

READ = ("final_obs", "_final_obs", "final_info", "_final_info", "state", "_state")
"""Infos that are arrays, `(envs, ...)`, or trees of such, where they are of environments on a device."""


@dataclass
class Step:
    """The outcome of one step of all environments: NumPy arrays, or in training the agent's where the environments' are on a device."""

    actions: Any
    """`(envs, action)`: those taken, in the Box's units, and in its dtype where they are on the host."""
    observations: Tree
    """`(envs, *observation)` after the step."""
    states: Tree | None
    """`(envs, *state)` after the step, or None."""
    rewards: Any
    """`(envs,)`."""
    terminated: Any
    """`(envs,)`, bool."""
    truncated: Any
    """`(envs,)`, bool."""
    infos: Infos
    acted: float
    """Time when the actions were there, in seconds of `time.perf_counter`."""
    stepped: float
    """Time when the environments had stepped."""

    @property
    def ended(self) -> Any:
        """Return which environments have terminated or truncated, `(envs,)`."""
        return self.terminated | self.truncated


class Rollout:
    """An agent in its environments, with the observations and states that its next actions are chosen on.

    Args:
        agent: what acts and records.
        envs: the environments; `reset` comes first, unless `observations` and `states` are set.
        state_space: of the privileged states that the environments hand over; None for none.
        stays_on_device: whether arrays of environments on a device stay there.
    """

    observations: Tree
    """`(envs, *observation)`."""
    states: Tree | None
    """`(envs, *state)`, or None."""

    def __init__(self, agent: Agent, envs: Envs, state_space: Space | None, *, stays_on_device: bool = False) -> None:
        self._agent, self._envs, self._state_space = agent, envs, state_space
        self._stays_on_device = stays_on_device
        self._autoreset_mode = envs.metadata.get("autoreset_mode", AutoresetMode.NEXT_STEP)
        self._like: Array | None = None
        """An array that the environments have returned, where theirs are on a device."""

    @property
    def on_device(self) -> bool:
        """True where what the environments return stays on their device."""
        return self._stays_on_device and self._like is not None

    def reset(self, seed: int | None = None) -> None:
        """Begin an episode in each environment."""
        observations, infos = self._envs.reset(seed=seed)
        self._like = next(filter(is_on_device, leaves(observations)), None)
        self.observations = self._taken(observations)
        self.states = self._taken(states_of(self._envs, self._infos(infos), self._state_space))

    def reset_some(self, which: Any) -> None:
        """Begin an episode in these environments, `(envs,)`; the others stay as they are."""
        observations, infos = self._envs.reset(options={"reset_mask": self._given(which)})
        self.observations = self._taken(observations)
        states = states_of(self._envs, self._infos(infos), self._state_space, previous=self.states, reset_mask=which)
        self.states = self._taken(states)

    def step(self, *, timestep: int, timesteps: int) -> Step:
        """Act and step the environments. `record` goes on from there."""
        actions, _ = self._agent.act(self.observations, self.states, timestep=timestep, timesteps=timesteps)
        if not self.on_device:
            actions = as_box(require_finite_actions(self._agent, self._agent.to_numpy(actions)), self._envs.single_action_space)
        given = self._given(actions)
        acted = time.perf_counter()
        returned, rewards, terminated, truncated, infos = step(self._envs, given)
        stepped = time.perf_counter()
        observations, infos = self._taken(returned), self._infos(infos)
        states = self._taken(states_of(self._envs, infos, self._state_space))
        rewards, terminated, truncated = map(self._read, (rewards, terminated, truncated))
        for name, array in (("rewards", rewards), ("terminated", terminated), ("truncated", truncated)):
            if (shape := tuple(array.shape)) != (self._envs.num_envs,):
                fix = "drop the last axis" if shape == (self._envs.num_envs, 1) else "return one of each environment"
                raise EnvError(f"{name} have shape {shape}, expected ({self._envs.num_envs},): {fix}")
        terminated, truncated = terminated != 0, truncated != 0  # Some environments give numbers.
        same_step = self._autoreset_mode == AutoresetMode.SAME_STEP
        if same_step and not self.on_device and np.any(truncated) and "final_obs" not in infos:
            raise EnvError(
                "an episode was truncated by environments whose autoreset_mode is SAME_STEP, and infos have no 'final_obs', expected the "
                "observation that it ended in, behind which its value goes on: put it there, or take NEXT_STEP"
            )
        return Step(actions, observations, states, rewards, terminated, truncated, infos, acted, stepped)

    def record(self, taken: Step, diverged: Any, *, timestep: int, timesteps: int) -> None:
        """Record a step, without the rows of environments that have diverged in it, `(envs,)`; None for none."""
        rewards, infos = taken.rewards, taken.infos
        if diverged is not None and (self.on_device or diverged.any()):
            rewards, infos = namespace(rewards).where(diverged, 0.0, rewards), {**infos, DROPPED: diverged}
        if self._autoreset_mode != AutoresetMode.NEXT_STEP:
            infos = {**infos, NO_RESET_ROWS: np.True_}
        self._agent.record_transition(
            observations=self.observations,
            states=self.states,
            actions=taken.actions,
            rewards=rewards.reshape(-1, 1),
            next_observations=taken.observations,
            next_states=taken.states,
            terminated=taken.terminated.reshape(-1, 1),
            truncated=taken.truncated.reshape(-1, 1),
            infos=infos,
            timestep=timestep,
            timesteps=timesteps,
        )
        self.observations, self.states = taken.observations, taken.states

    def _taken(self, tree: Tree) -> Tree:
        # Copied: a vector environment may write every step into the same buffer.
        return map_leaves(np.array if self._like is None else self._read, tree)

    def _read(self, array: Any) -> Any:
        """Return an array of the environments' as it is handed on: a copy, where it is on a device."""
        if self._like is None or not is_on_device(array):
            return np.asarray(array) if self._like is None else np.array(array)
        return self._agent.upload(array) if self._stays_on_device else np.array(as_numpy(array, "the environments' array"))

    def _infos(self, infos: Infos) -> Infos:
        if self._like is None:
            return infos
        return {**infos, **{name: _map_arrays(self._read, infos[name]) for name in READ if name in infos}}

    def _given(self, array: Any) -> Any:
        """Return an array for the environments, which they may write into: of their library, where theirs are on a device."""
        like = self._like
        if like is None:
            return array.copy()
        library = namespace(like)
        if type(array) is np.ndarray or is_torch_array(array) or is_torch_array(like):
            array = namespace(array).asarray(array, copy=True)
        if type(array) is np.ndarray:
            array = library.asarray(array, device=device(like))
        return array if namespace(array) is library else transferred(array, library, device(like))


def _map_arrays(read: Any, value: object) -> object:
    """Read the arrays on a device in an info; all else stays as it is, as entries of single environments."""
    if isinstance(value, Mapping):
        return {key: _map_arrays(read, branch) for key, branch in value.items()}
    return read(value) if is_on_device(value) else value
