"""Several vector environments as one, whose parts may wait or fail while the others go on."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import gymnasium
import numpy as np
from gymnasium.vector import VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from sacref.algorithm.tree import Tree, concatenate, leaves, map_leaves
from sacref.envs.batched import merged
from sacref.envs.divergence import REPORT, Divergences
from sacref.envs.interface import Envs, Infos, Space, step
from sacref.envs.states import states_of
from sacref.spec.arrays import NumpyArray

Outcome: TypeAlias = tuple[NumpyArray, NDArray[np.bool_], NDArray[np.bool_], dict[int, str]]
"""Rewards, terminated, truncated, `(envs,)`, and reports of divergence by copy."""


class JoinedEnvs(VectorEnv[Any, Any, Any]):
    """Vector environments as one: its copies are those of the first part, then those of the second, ...

    Infos hold what training reads of them: states, and reports of divergence. Copies of a part that is not stepped stay as they are: their
    rows repeat the last observations, and their rewards are 0. A part that raises is written to `failures`, and is not stepped any more.

    Copies of MuJoCo tasks that are stepped in batches (`sacref.envs.batched`) step in one call for all parts, with the same numbers.

    Args:
        parts: of one kind, of the same spaces and as many copies; which have been reset. None for one that is not there.
        state_space: of the privileged states that they hand over; None for none.
    """

    def __init__(self, parts: Sequence[Envs | None], state_space: Space | None) -> None:
        super().__init__()
        first = next(part for part in parts if part is not None)
        self._parts, self._state_space = parts, state_space
        self.part_envs: int = first.num_envs
        """Copies of each part."""
        self.num_envs: int = len(parts) * first.num_envs
        self.metadata = first.metadata
        self.single_observation_space: Space = first.single_observation_space
        self.single_action_space: Space = first.single_action_space
        self.observation_space: Space = batch_space(first.single_observation_space, self.num_envs)
        self.action_space: Space = batch_space(first.single_action_space, self.num_envs)
        self.active: NDArray[np.bool_] = np.array([part is not None for part in parts])
        """`(parts,)`: which are stepped."""
        self.failures: dict[int, Exception] = {}
        """Number of a part -> what it raised."""
        self._whole = merged(parts)
        """All copies in one, where the parts are stepped in batches and are made alike."""
        self._simulations = [None if part is None or self._whole is not None else Divergences(part) for part in parts]
        self._observations: Tree = None
        self._states: Tree = None

    def begin(self, observations: Sequence[Tree | None], states: Sequence[Tree | None]) -> tuple[Tree, Tree]:
        """Take the parts as they are, with their last observations and states; None for one that is not there."""
        self._observations, self._states = concatenate(observations), concatenate(states)
        return self._copies()

    def _copies(self) -> tuple[Tree, Tree]:
        copies: tuple[Tree, Tree] = map_leaves(np.array, (self._observations, self._states))
        return copies

    def forget(self, number: int) -> None:
        """Step a part no more, and let its rows be 0."""
        self.active[number] = False
        for held in leaves((self._observations, self._states)):
            held[self.rows(number)] = 0

    def rows(self, number: int) -> slice:
        """Return the rows of a part."""
        return slice(number * self.part_envs, (number + 1) * self.part_envs)

    def step(self, actions: NumpyArray) -> tuple[Tree, NumpyArray, NDArray[np.bool_], NDArray[np.bool_], Infos]:
        """Step the parts that are active."""
        rewards, terminated, truncated, reports = self._step_whole(actions) or self._step_parts(actions)
        observations, states = self._copies()
        told: Infos = {} if states is None else {"state": states}
        if reports:
            said = np.array([reports.get(index) for index in range(self.num_envs)], object)
            told |= {REPORT: said, f"_{REPORT}": np.isin(np.arange(self.num_envs), list(reports))}
        return observations, rewards, terminated, truncated, told

    def _step_whole(self, actions: NumpyArray) -> Outcome | None:
        """Step the parts in one call; None, and nothing has changed, where there is none, or where a part would refuse to be stepped."""
        numbers = np.flatnonzero(self.active).tolist()
        if self._whole is None or any(part.closed for number in numbers if (part := self._parts[number]) is not None):
            return None
        try:
            (observations, rewards, terminated, truncated, _), failed = self._whole.step_some(actions, self._active_rows())
        except gymnasium.error.Error:
            return None
        for copy, error in failed.items():
            self._fail(copy // self.part_envs, error)
        rows = self._active_rows()
        np.copyto(self._observations, observations, where=rows[:, None])
        return np.where(rows, rewards, 0.0), terminated & rows, truncated & rows, {}

    def _active_rows(self) -> NDArray[np.bool_]:
        return np.repeat(self.active, self.part_envs)

    def _step_parts(self, actions: NumpyArray) -> Outcome:
        """Step the parts one by one."""
        rewards = np.zeros(self.num_envs)
        terminated, truncated = np.zeros(self.num_envs, np.bool_), np.zeros(self.num_envs, np.bool_)
        reports: dict[int, str] = {}
        numbers = np.flatnonzero(self.active).tolist()
        # Parts that step in processes or threads of their own all begin before the first is waited for.
        begun = {
            number: self._try(number, lambda part, own: part.step_async(own.copy()), actions)
            for number in numbers
            if hasattr(self._parts[number], "step_async")
        }
        for number in numbers:
            call = (lambda part, _: part.step_wait()) if number in begun else step
            returned = self._try(number, call, actions)
            if returned is None:
                continue
            rows = self.rows(number)
            observations, rewards[rows], terminated[rows], truncated[rows], infos = returned
            self._take(number, observations, infos, None)
            if REPORT in infos:
                reports |= {rows.start + int(index): str(infos[REPORT][index]) for index in np.flatnonzero(infos[f"_{REPORT}"])}
        return rewards, terminated, truncated, reports

    def _fail(self, number: int, error: Exception) -> None:
        self.failures[number], self.active[number] = error, False

    def _try(self, number: int, call: Any, actions: NumpyArray) -> Any:
        if not self.active[number]:
            return None
        try:
            return call(self._parts[number], actions[self.rows(number)])
        except Exception as error:
            self._fail(number, error)
            return None

    def _take(self, number: int, observations: Tree, infos: object, mask: NDArray[np.bool_] | None) -> None:
        part, rows = self._parts[number], self.rows(number)
        if part is None:
            return
        try:
            previous = map_leaves(lambda leaf: leaf[rows], self._states)
            states = states_of(part, infos, self._state_space, previous=previous, reset_mask=mask)
        except Exception as error:
            self._fail(number, error)
            return
        for held, new in zip(leaves((self._observations, self._states)), leaves((observations, states)), strict=True):
            held[rows] = new

    def reset(self, *, seed: Any = None, options: Mapping[str, Any] | None = None) -> tuple[Tree, Infos]:
        """Reset the copies of active parts that `options["reset_mask"]` names, `(envs,)`."""
        mask = (options or {})["reset_mask"]
        for number in np.flatnonzero(self.active).tolist():
            own = mask[self.rows(number)]
            if own.any():
                returned = self._try(number, lambda part, _, own=own: part.reset(options={"reset_mask": own.copy()}), mask)
                if returned is not None:
                    observations, infos = returned
                    self._take(number, observations, infos, own)
        observations, states = self._copies()
        return observations, {} if states is None else {"state": states}

    def complaints(self) -> dict[int, str]:
        """Return MuJoCo's warnings for the copies that have diverged since their last reset, once. See `sacref.envs.divergence`."""
        if self._whole is not None:
            return {index: words for index, words in self._whole.complaints().items() if self.active[index // self.part_envs]}
        return {
            number * self.part_envs + index: words
            for number, simulations in enumerate(self._simulations)
            if simulations is not None and self.active[number]
            for index, words in simulations.complaints().items()
        }

    def close_extras(self, **kwargs: object) -> None:
        """End the threads that step all parts in one call; the parts stay open."""
        if self._whole is not None:
            self._whole.close()
