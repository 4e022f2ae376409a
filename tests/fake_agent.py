"""An agent without a backend: it writes down what a loop does with it."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


class FakeAgent:
    """Keeps the life cycle's calls in `calls`. Its action is the number of updates so far, scaled, negative in evaluation."""

    def __init__(self, scale: float = 1e-3) -> None:
        self.training = False
        self.calls: list[tuple[str, int]] = []
        self.rows: list[dict[str, Any]] = []
        self.acted: list[tuple[bool, int, NDArray[Any]]] = []
        self.modes: list[tuple[bool, bool]] = []
        self.tracked: dict[str, list[float]] = {}
        self.trainer_cfg: Any = None
        self.scale, self.updates, self.fails = scale, 0, False

    def init(self, *, trainer_cfg: Any = None) -> None:
        self.trainer_cfg = trainer_cfg

    def act(self, observations: Any, states: Any, *, timestep: int, timesteps: int) -> tuple[Any, dict[str, Any]]:
        if self.fails:
            raise RuntimeError("the agent fails")
        self.acted.append((self.training, timestep, np.array(observations)))
        if self.training:
            self.calls.append(("act", timestep))
        actions = np.full((len(observations), 1), self.scale * self.updates * (1 if self.training else -1), np.float32)
        return actions, {"mean_actions": actions}

    def record_transition(self, *, timestep: int, timesteps: int, **row: Any) -> None:
        self.calls.append(("record_transition", timestep))
        self.rows.append(row)

    def pre_interaction(self, *, timestep: int, timesteps: int) -> None:
        self.calls.append(("pre_interaction", timestep))

    def post_interaction(self, *, timestep: int, timesteps: int) -> None:
        self.calls.append(("post_interaction", timestep))
        self.updates += 1

    def update(self, *, timestep: int, timesteps: int) -> None:
        raise AssertionError("a loop leaves the update to post_interaction")

    def enable_training_mode(self, enabled: bool = True, *, apply_to_models: bool = False) -> None:
        self.training = enabled
        self.modes.append((enabled, apply_to_models))

    def enable_models_training_mode(self, enabled: bool = True) -> None: ...

    def track_data(self, tag: str, value: float) -> None:
        self.tracked.setdefault(tag, []).append(value)

    def write_tracking_data(self, *, timestep: int, timesteps: int) -> None: ...

    def write_checkpoint(self, *, timestep: int, timesteps: int) -> None: ...

    def check_numbers(self) -> None: ...

    def save(self, path: str | Path) -> None: ...

    def load(self, path: str | Path) -> None: ...

    def upload(self, array: Any) -> NDArray[np.generic]:
        return np.array(array)

    def to_numpy(self, array: Any) -> NDArray[np.generic]:
        return np.asarray(array)

    recent_returns: tuple[float, ...] = (1.0, 2.0, 6.0)
    alpha: float = 0.25

    def close(self) -> None: ...
