"""The life cycle that a trainer drives."""

from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray


@runtime_checkable
class Agent(Protocol):
    """The life cycle that any trainer may drive. `timestep` counts calls (vector steps), from 0; arrays have a leading environment axis."""

    training: bool

    def init(self, *, trainer_cfg: object = None) -> None: ...

    def act(self, observations: Any, states: Any, *, timestep: int, timesteps: int) -> tuple[Any, dict[str, Any]]:
        """Choose actions in the Box's units, `(envs, action)`, as the backend's arrays; the extras hold `mean_actions`."""
        ...

    def record_transition(
        self,
        *,
        observations: object,
        states: object,
        actions: object,
        rewards: object,
        next_observations: object,
        next_states: object,
        terminated: object,
        truncated: object,
        infos: object,
        timestep: int,
        timesteps: int,
    ) -> None: ...

    def pre_interaction(self, *, timestep: int, timesteps: int) -> None: ...
    def post_interaction(self, *, timestep: int, timesteps: int) -> None: ...
    def update(self, *, timestep: int, timesteps: int) -> None: ...
    def enable_training_mode(self, enabled: bool = True, *, apply_to_models: bool = False) -> None: ...
    def enable_models_training_mode(self, enabled: bool = True) -> None: ...
    def track_data(self, tag: str, value: float) -> None: ...
    def write_tracking_data(self, *, timestep: int, timesteps: int) -> None: ...
    def write_checkpoint(self, *, timestep: int, timesteps: int) -> None: ...

    def check_numbers(self) -> None:
        """Raise where what was learned is NaN or infinite."""
        ...

    def save(self, path: str | Path) -> None: ...
    def load(self, path: str | Path) -> None: ...

    def upload(self, array: object) -> Any:
        """Copy an array of any library to a backend array."""
        ...

    def to_numpy(self, array: object) -> NDArray[np.generic]:
        """Copy a backend array to the host."""
        ...

    @property
    def recent_returns(self) -> tuple[float, ...]:
        """Returns (undiscounted sums of rewards) of the last finished training episodes, oldest first, at most 100."""
        ...

    @property
    def alpha(self) -> float:
        """The entropy coefficient in force."""
        ...

    def close(self) -> None:
        """Close the files of what is tracked; `write_tracking_data` writes what waits."""
        ...
