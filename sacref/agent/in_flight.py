"""What an agent is in the middle of between two timesteps: episodes that run, what is not written yet, an action chosen ahead."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from sacref.agent.health import Sound
from sacref.algorithm.tree import Tree, leaves, map_leaves
from sacref.envs.spaces import rows_like
from sacref.spec.arrays import ArrayT
from sacref.storage.values import Like, Maybe, refuse_unlike


@dataclass
class NextAction:
    """What `overlap` chooses before an update, for the timestep after it."""

    observations: Tree
    """`(envs, *observation)`: as the environments returned them; NumPy arrays."""
    states: Tree | None
    """`(envs, *state)`, or None."""
    chosen: tuple[Any, Any] | None = None
    """Actions and mean actions."""


class Live(Sound[ArrayT]):
    """What an agent that is stopped and goes on has to know beside what it saves."""

    def __init__(self) -> None:
        super().__init__()
        self._next_action: NextAction | None = None

    # What a backend provides.

    @abstractmethod
    def _act(self, way: str, observations: Tree, states: Tree | None) -> tuple[Any, Any]:
        """Actions and mean actions in the Box's units, `(envs, action)`; `way` is "greedy", "random" or "sampled"."""

    # Actions that are chosen ahead.

    def _way(self, timestep: int) -> str:
        return "greedy" if not self.training else "random" if timestep < self.cfg.random_timesteps else "sampled"

    def _choose_ahead(self, timestep: int) -> None:
        """Choose the next timestep's actions now, where the next observations are known (host arrays)."""
        ahead = self._next_action
        if ahead is not None and ahead.chosen is None:
            ahead.chosen = self._act(self._way(timestep + 1), ahead.observations, ahead.states)

    def _chosen_before(self, observations: Tree, states: Tree | None) -> tuple[Any, Any] | None:
        if not self.training or self._next_action is None:
            return None
        ahead, self._next_action = self._next_action, None
        pairs = zip(leaves((ahead.observations, ahead.states)), leaves((observations, states)), strict=False)
        return ahead.chosen if all(not self._is_device_array(now) and np.array_equal(then, now) for then, now in pairs) else None

    def _forget_former(self) -> None:
        super()._forget_former()
        self._next_action = None  # other parameters chose it

    # What a run is in the middle of.

    def live_state(self) -> dict[str, Any]:
        """What is in the air between two timesteps, beyond what `save` writes: what is tracked and not written yet, the episodes that run.

        Numbers, text, NumPy arrays, and lists, tuples and dicts of those. With it, and with the environments as they were, a run goes on
        as if it had never stopped.
        """
        ahead = self._next_action
        return {
            "tracked": {tag: np.array(values, np.float64) for tag, values in self._tracked.items()},
            "metrics": self._fetch(self._metrics) if self._metrics else None,
            "boundaries": self._watches[True].boundaries.state(self.to_numpy),
            "statistics": [self._watches[training].statistics.state(self.to_numpy) for training in (True, False)],
            "next_action": None if ahead is None else map_leaves(self.to_numpy, (ahead.observations, ahead.states, ahead.chosen)),
        }

    def live_like(self) -> dict[str, Any]:
        """What `live_state` gives, for `refuse_unlike`."""
        envs = self._num_envs
        observations, states = (rows_like(space, envs) for space in (self.observation_space, self.state_space))
        flags, actions = Like((envs,), "b"), Like((envs, *self.spaces.action_shape), "f")

        def statistics(envs: int | None) -> dict[str, Any]:
            rows = Like((None, envs), "f")
            masks = Like((None, envs), "b")
            return {
                "recent_returns": [float],
                "running": Maybe((Like((envs,), "f"),) * 2),
                "rows": Maybe((rows, masks, masks, rows, rows)),
            }

        return {
            "tracked": {...: Like((None,), "f")},
            "metrics": Maybe(Like((None, len(self._metric_names())), "f")),
            "boundaries": {"expects_reset": Maybe(flags), "last_observations": Maybe(observations), "starts": Maybe(flags)},
            "statistics": (statistics(envs), statistics(None)),
            "next_action": Maybe((observations, states, Maybe((actions, actions)))),
        }

    def set_live_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what `live_state` gave; after `init`, and with the environments as they were.

        Raises:
            ValueError: if it is of another agent, or of other environments. Nothing is changed then.
        """
        refuse_unlike("what the agent was in the middle of", state, self.live_like())
        self._tracked.clear()
        self._tracked.update({tag: values.tolist() for tag, values in state["tracked"].items()})
        self._metrics = [] if state["metrics"] is None else [self._upload(state["metrics"])]
        self._watches[True].boundaries.set_state(state["boundaries"])
        for training, statistics in zip((True, False), state["statistics"], strict=True):
            self._watches[training].statistics.set_state(statistics)
        if state["next_action"] is not None:
            observations, states, chosen = state["next_action"]
            self._next_action = NextAction(observations, states, None if chosen is None else map_leaves(self._upload, chosen))
