"""Acting: the mode in which actions are chosen, and actions chosen ahead of their timestep."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeAlias

import numpy as np

from sacref.agent.backend import Backend
from sacref.agent.carry import AnyCarry
from sacref.agent.execution import Acted
from sacref.agent.learner import Learner
from sacref.agent.transitions import Rows, Transitions
from sacref.algorithm.tree import Tree, map_leaves
from sacref.config import SACConfig
from sacref.envs.spaces import Spaces
from sacref.spec.arrays import Array, ArrayT, namespace
from sacref.storage.values import Like, Maybe

Chosen: TypeAlias = tuple[ArrayT, ArrayT]
"""Actions and mean actions in the Box's units, `(envs, action)` each."""


@dataclass
class NextAction(Generic[ArrayT]):
    """Inputs of the next training timestep's action, and the action once it is chosen."""

    observations: Tree
    """`(envs, *observation)`: as the environments returned them; NumPy arrays, finite."""
    states: Tree | None
    """`(envs, *state)`, or None."""
    chosen: Acted[ArrayT] | None = None
    """The carry is that after the action, and () under `overlap`."""
    mode: str | None = None
    """In which it was chosen; None for any, as of an agent that was restored."""


class Acting(Generic[ArrayT]):
    """Chooses actions: uniform ones before `random_timesteps`, then the policy's; outside of training its deterministic ones.

    The action of the next training timestep is chosen ahead where its observations are known: with the new parameters in the call that
    takes the gradient steps, or before those under `overlap`. `act` returns it where it is asked for these observations; elsewhere, and
    where other parameters have come, what it drew is put back, and the action is chosen when it is asked for.
    """

    def __init__(
        self,
        backend: Backend[ArrayT],
        cfg: SACConfig,
        spaces: Spaces,
        learner: Learner[ArrayT],
        carry: AnyCarry[ArrayT],
        transitions: Transitions[ArrayT],
    ) -> None:
        self._backend, self._action_shape, self._action_size = backend, spaces.action_shape, spaces.action_size
        self._random_timesteps, self._overlap = cfg.random_timesteps, cfg.overlap
        self._learner, self._carry, self._transitions = learner, carry, transitions
        self._next: NextAction[ArrayT] | None = None

    def act(self, observations: Tree, states: Tree, timestep: int, training: bool) -> tuple[ArrayT, ArrayT]:
        """Return actions and mean actions, `(envs, *action)`; for the arguments see `Agent.act`."""
        mode = self._mode(timestep, training)
        chosen = self._chosen_ahead(mode, observations, states) if training else None
        if chosen is None:
            chosen = self.choose(mode, *self._transitions.check_inputs(observations, states), training)
        actions, mean_actions = chosen
        shape = (actions.shape[0], *self._action_shape)
        if tuple(actions.shape) != shape:
            xp = namespace(actions)
            actions, mean_actions = xp.reshape(actions, shape), xp.reshape(mean_actions, shape)
        return self._transitions.narrow(actions), self._transitions.narrow(mean_actions)

    def choose(self, mode: str, observations: Tree, states: Tree | None, training: bool) -> Chosen[ArrayT]:
        """Choose actions in a mode, "greedy", "random" or "sampled", on checked observations and states."""
        inputs, before = self._carry.inputs(observations, states, training)
        convert = self._backend.act_inputs
        actions, mean_actions, after = self._learner.act(mode, convert(inputs), convert(before))
        self._carry.acted(inputs, before, after, training)
        return actions, mean_actions

    def _mode(self, timestep: int, training: bool) -> str:
        return "greedy" if not training else "random" if timestep < self._random_timesteps else "sampled"

    # Chosen ahead.

    def expect(self, rows: Rows[Array]) -> None:
        """Remember what the next action will be chosen on, where it may be chosen ahead and is known: host arrays, finite."""
        self.put_back()
        self._next = None
        if rows.following is not None and (self._overlap or self._learner.fuses(0)):
            # As they were returned: where an episode ended, the next action may be on the next episode's first observation.
            self._next = NextAction(*map_leaves(np.array, rows.following))

    def choose_ahead(self, timestep: int) -> None:
        """Under `overlap`, choose the action of the training timestep after this one now, before the parameters change."""
        ahead = self._next
        if self._overlap and ahead is not None and ahead.chosen is None:
            ahead.chosen = (*self.choose(self._mode(timestep + 1, True), ahead.observations, ahead.states, True), ())

    def learn(self, steps: int, timestep: int) -> Sequence[ArrayT]:
        """Take gradient steps, and choose the action of the training timestep after this one with the new parameters where that can be
        one call; return packed metrics, as of `Learner.take_gradient_steps`."""
        self.put_back()
        ahead = self._next
        if self._overlap or ahead is None or not self._learner.fuses(steps):
            return self._learner.take_gradient_steps(steps)
        ahead.mode = self._mode(timestep + 1, True)
        packed, ahead.chosen = self._learner.learn_and_act(steps, ahead.mode, *self._carry.inputs(ahead.observations, ahead.states, True))
        return packed

    def put_back(self) -> None:
        """Forget an action that was chosen with the new parameters, and put back what it drew."""
        if self._next is not None and not self._overlap:
            self._next.chosen = None
        self._learner.take_back()

    def _chosen_ahead(self, mode: str, observations: Tree, states: Tree | None) -> Chosen[ArrayT] | None:
        ahead, self._next = self._next, None
        if ahead is None or ahead.chosen is None:
            return None
        if not equal_inputs((ahead.observations, ahead.states), (observations, states)) or ahead.mode not in (None, mode):
            self._learner.take_back()
            return None
        self._learner.take()
        actions, mean_actions, after = ahead.chosen
        if not self._overlap:
            inputs, before = self._carry.inputs(ahead.observations, ahead.states, True)
            self._carry.acted(inputs, before, after, True)
        return actions, mean_actions

    def forget_updates(self) -> None:
        """Forget an action that other parameters have chosen."""
        self.put_back()
        self._next = None

    # State.

    def reset(self, training: bool) -> None:
        """Forget the next action in training, as after a reset of all environments; evaluation has none."""
        if training:
            self.forget_updates()

    def state(self) -> dict[str, object]:
        """Return the in-flight state, on the host."""
        ahead = self._next
        known: Tree = None
        if ahead is not None and self._overlap:
            known = ahead.observations, ahead.states, ahead.chosen and ahead.chosen[:2]
        elif ahead is not None and ahead.chosen is not None:
            known = ahead.observations, ahead.states, (*ahead.chosen, self._backend.exploration(self._learner.streams))
        return {"next_action": map_leaves(self._backend.to_numpy, known)}

    def state_like(self, envs: int) -> dict[str, object]:
        """Describe `state`, for `refuse_unlike`."""
        actions = Like((envs, self._action_size), "f")
        after = () if self._overlap else (self._carry.carry_like(envs), Like((None,), "u"))
        return {"next_action": Maybe((*self._transitions.inputs_like(envs), Maybe((actions, actions, *after))))}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave."""
        if state["next_action"] is None:
            return
        observations, states, chosen = state["next_action"]
        if chosen is not None and self._overlap:
            chosen = (*chosen, ())
        elif chosen is not None:
            *chosen, exploration = chosen
            if not self._learner.go_on_from(exploration):
                chosen = None
        self._next = NextAction(observations, states, None if chosen is None else map_leaves(self._backend.upload, tuple(chosen)))


def equal_inputs(known: tuple[Tree, Tree | None], given: tuple[Tree, Tree | None]) -> bool:
    """Tell whether observations are equal, and states where they are given."""
    return _equal(known[0], given[0]) and (given[1] is None or _equal(known[1], given[1]))


def _equal(known: Tree, given: Tree) -> bool:
    """Tell whether trees have equal arrays, all of them NumPy's."""
    if isinstance(known, Mapping):
        return isinstance(given, Mapping) and known.keys() == given.keys() and all(_equal(known[key], given[key]) for key in known)
    return type(given) is np.ndarray and bool(np.array_equal(known, given))
