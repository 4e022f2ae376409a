"""An environment whose pictures say which step they show, drawn without any library."""

from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

WIDTH, HEIGHT = 8, 6


class PaintedEnv(gymnasium.Env[NDArray[np.float64], NDArray[np.float32]]):
    """Observes a number that is drawn at the reset, and the share of the episode that is over; the reward is the action and that number.

    A picture is red by three times the step, and blue by the drawn number.

    Args:
        length: of an episode.
        render_fps: steps per second.
    """

    def __init__(self, length: int = 60, render_fps: int | None = 100, render_mode: str | None = None) -> None:
        self.observation_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float64)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": render_fps}
        self.length, self.render_mode = length, render_mode
        self.drawn, self.step_number = 0.0, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[NDArray[np.float64], dict[str, Any]]:
        super().reset(seed=seed)
        self.drawn, self.step_number = float(self.np_random.uniform()), 0
        return self._observe(), {}

    def step(self, action: NDArray[np.float32]) -> tuple[NDArray[np.float64], float, bool, bool, dict[str, Any]]:
        self.step_number += 1
        return self._observe(), float(action[0]) + self.drawn, False, self.step_number == self.length, {}

    def render(self) -> Any:
        picture = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
        picture[..., 0], picture[..., 2] = 3 * self.step_number, round(255 * self.drawn)
        return picture if self.render_mode == "rgb_array" else None

    def _observe(self) -> NDArray[np.float64]:
        return np.array([self.drawn, self.step_number / self.length])
