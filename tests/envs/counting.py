"""An environment that counts, so that every stored number says where it comes from."""

from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray


class CountingEnv(gymnasium.Env[NDArray[np.float64], NDArray[np.float32]]):
    """Observation `(episode, step)`; the reward of the step from t to t+1 of episode e is 100 e + t + 1.

    Args:
        lengths: of the episodes in turn, again from the front when they are used up.
        truncates: whether an episode's end is a truncation.
    """

    def __init__(self, lengths: tuple[int, ...] = (3,), truncates: bool = False, high: float = 1.0) -> None:
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float64)
        self.action_space = gymnasium.spaces.Box(-high, high, (1,), np.float32)
        self.lengths, self.truncates = lengths, truncates
        self.episode, self.step_number = -1, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[NDArray[np.float64], dict[str, Any]]:
        super().reset(seed=seed)
        self.episode, self.step_number = self.episode + 1, 0
        return self._observe(), {}

    def step(self, action: NDArray[np.float32]) -> tuple[NDArray[np.float64], float, bool, bool, dict[str, Any]]:
        self.step_number += 1
        ended = self.step_number >= self.lengths[self.episode % len(self.lengths)]
        return self._observe(), 100.0 * self.episode + self.step_number, ended and not self.truncates, ended and self.truncates, {}

    def _observe(self) -> NDArray[np.float64]:
        return np.array([self.episode, self.step_number], np.float64)
