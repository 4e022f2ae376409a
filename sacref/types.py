"""What crosses the borders between the parts: transitions, batches, noise, metrics, and the life cycle of an agent."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Generic, NamedTuple, Protocol, TypedDict, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from sacref.spec.arrays import Array, ArrayT

OtherT = TypeVar("OtherT", bound=Array)


class Inputs(TypedDict, Generic[ArrayT]):
    """What a model sees. `states` is the privileged input of asymmetric critics, or None."""

    observations: ArrayT
    states: ArrayT | None


class Transition(NamedTuple, Generic[ArrayT]):
    """One step of all environments, as the replay memory stores it: row i is environment i."""

    observations: ArrayT
    """`(envs, *observation)`."""
    states: ArrayT | None
    """`(envs, *state)`, or None."""
    actions: ArrayT
    """`(envs, action)`, in [-1, 1]: the Box's units belong to the agent's boundary."""
    rewards: ArrayT
    """`(envs,)`."""
    next_observations: ArrayT
    """`(envs, *observation)`: the true successor, never the first observation of the next episode."""
    next_states: ArrayT | None
    """`(envs, *state)`, or None."""
    terminated: ArrayT
    """`(envs,)`, bool. Truncation is not stored: a truncated transition bootstraps like any other."""

    def map(self, function: Callable[[ArrayT], OtherT]) -> "Transition[OtherT]":
        """The transition with `function` applied to each array."""
        fields: list[Any] = [None if field is None else function(field) for field in self]
        return Transition(*fields)


class Batch(NamedTuple, Generic[ArrayT]):
    """Transitions drawn from the memory; the fields of `Transition` with a batch axis in the place of the environments'."""

    observations: ArrayT
    """`(batch, *observation)`."""
    states: ArrayT | None
    """`(batch, *state)`, or None."""
    actions: ArrayT
    """`(batch, action)`, in [-1, 1]."""
    rewards: ArrayT
    """`(batch,)`."""
    next_observations: ArrayT
    """`(batch, *observation)`."""
    next_states: ArrayT | None
    """`(batch, *state)`, or None."""
    terminated: ArrayT
    """`(batch,)`, bool."""

    def map(self, function: Callable[[ArrayT], OtherT]) -> "Batch[OtherT]":
        """The batch with `function` applied to each array."""
        fields: list[Any] = [None if field is None else function(field) for field in self]
        return Batch(*fields)

    @property
    def inputs(self) -> Inputs[ArrayT]:
        """What the models see before the action."""
        return {"observations": self.observations, "states": self.states}

    @property
    def next_inputs(self) -> Inputs[ArrayT]:
        """What the models see after the action."""
        return {"observations": self.next_observations, "states": self.next_states}


class Noise(NamedTuple, Generic[ArrayT]):
    """The standard normal draws of one update. Every random number enters the update as an argument."""

    next_actions: ArrayT
    """`(batch, action)`: for the next action in the critics' target."""
    actions: ArrayT
    """`(batch, action)`: for the action that the policy is judged by."""


Metrics = Mapping[str, ArrayT]
"""Name -> array on the device: what one update measured. `()` for scalars, `(critic,)` for what each critic has."""

METRICS = (
    "critic_loss",
    "policy_loss",
    "entropy_loss",
    "alpha",
    "entropy",
    "q_max",
    "q_min",
    "q_mean",
    "target_max",
    "target_min",
    "target_mean",
)
"""The names, in the order in which they are packed: a compiled function returns a dict in another order than it was made in."""

NumpyArrays = Mapping[str, NDArray[Any]]
"""Common name (DESIGN: weights) -> NumPy array."""


@runtime_checkable
class Agent(Protocol):
    """The life cycle that any trainer may drive. `timestep` counts calls (vector steps), from 0; arrays have a leading environment axis."""

    training: bool

    def init(self, *, trainer_cfg: Any = None) -> None: ...

    def act(self, observations: Any, states: Any, *, timestep: int, timesteps: int) -> tuple[Any, dict[str, Any]]:
        """Actions in the Box's units, `(envs, action)`, as the backend's arrays; the extras hold `mean_actions`."""
        ...

    def record_transition(
        self,
        *,
        observations: Any,
        states: Any,
        actions: Any,
        rewards: Any,
        next_observations: Any,
        next_states: Any,
        terminated: Any,
        truncated: Any,
        infos: Any,
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
    def save(self, path: str | Path) -> None: ...
    def load(self, path: str | Path) -> None: ...

    def to_numpy(self, array: Any) -> NDArray[np.generic]:
        """A backend array on the host."""
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
        """Write what is tracked and close the files."""
        ...
