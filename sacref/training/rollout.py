"""One step of an agent in its environments, for training and evaluation: act, step, record."""

import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sacref.agent.numerics import require_finite_actions
from sacref.agent.protocol import Agent
from sacref.algorithm.tree import Tree, map_leaves
from sacref.envs.episodes import DROPPED
from sacref.envs.interface import Envs, Space, step
from sacref.envs.scaling import as_box
from sacref.envs.states import states_of
from sacref.spec.arrays import NumpyArray


@dataclass
class Step:
    """The outcome of one step of all environments."""

    actions: NumpyArray
    """`(envs, action)`: those taken, in the Box's units and dtype."""
    observations: Tree
    """`(envs, *observation)` after the step."""
    states: Tree | None
    """`(envs, *state)` after the step, or None."""
    rewards: NumpyArray
    """`(envs,)`."""
    terminated: NDArray[np.bool_]
    """`(envs,)`."""
    truncated: NDArray[np.bool_]
    """`(envs,)`."""
    infos: dict[str, object]
    acted: float
    """Time when the actions were there, in seconds of `time.perf_counter`."""
    stepped: float
    """Time when the environments had stepped."""

    @property
    def ended(self) -> NDArray[np.bool_]:
        """Return which environments have terminated or truncated, `(envs,)`."""
        return self.terminated | self.truncated


class Rollout:
    """An agent in its environments, with the observations and states that its next actions are chosen on.

    Args:
        agent: what acts and records.
        envs: the environments; `reset` comes first, unless `observations` and `states` are set.
        state_space: of the privileged states that the environments hand over; None for none.
    """

    observations: Tree
    """`(envs, *observation)`."""
    states: Tree | None
    """`(envs, *state)`, or None."""

    def __init__(self, agent: Agent, envs: Envs, state_space: Space | None) -> None:
        self._agent, self._envs, self._state_space = agent, envs, state_space

    def reset(self, seed: int | None = None) -> None:
        """Begin an episode in each environment."""
        observations, infos = self._envs.reset(seed=seed)
        # Copied, here and below: a vector environment may write every step into the same buffer.
        self.observations = map_leaves(np.array, observations)
        self.states = map_leaves(np.array, states_of(self._envs, infos, self._state_space))

    def reset_some(self, which: NDArray[np.bool_]) -> None:
        """Begin an episode in these environments, `(envs,)`; the others stay as they are."""
        observations, infos = self._envs.reset(options={"reset_mask": which.copy()})
        self.observations = map_leaves(np.array, observations)
        states = states_of(self._envs, infos, self._state_space, previous=self.states, reset_mask=which)
        self.states = map_leaves(np.array, states)

    def step(self, *, timestep: int, timesteps: int) -> Step:
        """Act and step the environments. `record` goes on from there."""
        chosen, _ = self._agent.act(self.observations, self.states, timestep=timestep, timesteps=timesteps)
        actions = as_box(require_finite_actions(self._agent, self._agent.to_numpy(chosen)), self._envs.single_action_space)
        acted = time.perf_counter()
        returned, rewards, terminated, truncated, infos = step(self._envs, actions)
        stepped = time.perf_counter()
        observations = map_leaves(np.array, returned)
        states = map_leaves(np.array, states_of(self._envs, infos, self._state_space))
        arrays = np.asarray(rewards), np.asarray(terminated), np.asarray(truncated)
        return Step(actions, observations, states, *arrays, infos, acted, stepped)

    def record(self, taken: Step, diverged: NDArray[np.bool_], *, timestep: int, timesteps: int) -> None:
        """Record a step, without the rows of environments that have diverged in it, `(envs,)`."""
        rewards, infos = taken.rewards, taken.infos
        if diverged.any():
            rewards, infos = np.where(diverged, 0.0, rewards), {**infos, DROPPED: diverged}
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
