"""Acting: the mode in which actions are chosen, and actions chosen ahead of their timestep."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic

import numpy as np

from sacref.agent.backend import Backend
from sacref.agent.carry import AnyCarry, Chosen
from sacref.agent.learner import Learner
from sacref.agent.transitions import Transitions
from sacref.algorithm.tree import Tree, leaves, map_leaves
from sacref.config import SACConfig
from sacref.envs.spaces import Spaces
from sacref.spec.arrays import ArrayT, namespace
from sacref.storage.values import Like, Maybe


@dataclass
class NextAction(Generic[ArrayT]):
    """Inputs of the next timestep's action, and the action once `overlap` has chosen it."""

    observations: Tree
    """`(envs, *observation)`: as the environments returned them; NumPy arrays."""
    states: Tree | None
    """`(envs, *state)`, or None."""
    chosen: Chosen[ArrayT] | None = None


class Acting(Generic[ArrayT]):
    """Chooses actions: uniform ones before `random_timesteps`, then the policy's; outside of training its deterministic ones."""

    def __init__(
        self,
        backend: Backend[ArrayT],
        cfg: SACConfig,
        spaces: Spaces,
        learner: Learner[ArrayT],
        carry: AnyCarry[ArrayT],
        transitions: Transitions[ArrayT],
    ) -> None:
        self._backend, self._action_shape = backend, spaces.action_shape
        self._random_timesteps, self._overlap = cfg.random_timesteps, cfg.overlap
        self._learner, self._carry, self._transitions = learner, carry, transitions
        self._next: NextAction[ArrayT] | None = None

    def act(self, observations: Tree, states: Tree, timestep: int, training: bool) -> tuple[ArrayT, ArrayT]:
        """Return actions and mean actions, `(envs, *action)`; for the arguments see `Agent.act`."""
        observations, states = self._transitions.check_inputs(observations, states)
        ahead = self._chosen_ahead(observations, states) if training else None
        actions, mean_actions = ahead or self.choose(self._mode(timestep, training), observations, states, training)
        shape = (actions.shape[0], *self._action_shape)
        if tuple(actions.shape) != shape:
            xp = namespace(actions)
            actions, mean_actions = xp.reshape(actions, shape), xp.reshape(mean_actions, shape)
        return self._transitions.narrow(actions), self._transitions.narrow(mean_actions)

    def choose(self, mode: str, observations: Tree, states: Tree | None, training: bool) -> Chosen[ArrayT]:
        """Choose actions in a mode, "greedy", "random" or "sampled", on checked observations and states."""
        return self._carry.act(self._learner.act, mode, observations, states, training)

    def _mode(self, timestep: int, training: bool) -> str:
        return "greedy" if not training else "random" if timestep < self._random_timesteps else "sampled"

    def expect(self, next_observations: Tree, next_states: Tree) -> None:
        """Remember what the next action will be chosen on, where it may be chosen ahead and is known (host arrays)."""
        if self._overlap and not any(map(self._backend.is_array, leaves(next_observations))):
            # As they were returned: where an episode ended, the next action may be on the next episode's first observation.
            checked = self._transitions.check_observations(next_observations), self._transitions.check_states(next_states)
            self._next = NextAction(*(map_leaves(np.array, tree) for tree in checked))

    def choose_ahead(self, timestep: int) -> None:
        """Choose the action of the training timestep after this one now, before the parameters change."""
        ahead = self._next
        if ahead is not None and ahead.chosen is None:
            ahead.chosen = self.choose(self._mode(timestep + 1, True), ahead.observations, ahead.states, True)

    def _chosen_ahead(self, observations: Tree, states: Tree | None) -> Chosen[ArrayT] | None:
        if self._next is None:
            return None
        ahead, self._next = self._next, None
        pairs = zip(leaves((ahead.observations, ahead.states)), leaves((observations, states)), strict=False)
        same = all(not self._backend.is_array(now) and np.array_equal(then, now) for then, now in pairs)
        return ahead.chosen if same else None

    def forget_updates(self) -> None:
        """Forget an action that other parameters have chosen."""
        self._next = None

    # State.

    def reset(self, training: bool) -> None:
        """Forget the next action in training, as after a reset of all environments; evaluation has none."""
        if training:
            self._next = None

    def state(self) -> dict[str, object]:
        """Return the in-flight state, on the host."""
        ahead = self._next
        known = None if ahead is None else (ahead.observations, ahead.states, ahead.chosen)
        return {"next_action": map_leaves(self._backend.to_numpy, known)}

    def state_like(self, envs: int) -> dict[str, object]:
        """Describe `state`, for `refuse_unlike`."""
        actions = Like((envs, *self._action_shape), "f")
        return {"next_action": Maybe((*self._transitions.inputs_like(envs), Maybe((actions, actions))))}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave."""
        if state["next_action"] is not None:
            observations, states, chosen = state["next_action"]
            self._next = NextAction(observations, states, map_leaves(self._backend.upload, chosen))
