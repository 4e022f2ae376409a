"""Transitions, batches, sequences, the noise of an update, and its metrics."""

from collections.abc import Callable, Mapping
from typing import Generic, NamedTuple, NotRequired, TypeAlias, TypedDict, TypeVar

from sacref.algorithm.tree import Tree, map_leaves
from sacref.spec.arrays import Array, ArrayT

OtherT = TypeVar("OtherT", bound=Array)


class Inputs(TypedDict, Generic[ArrayT]):
    """Inputs of a model: arrays, or dicts of arrays where the space is a Dict; `(batch, ...)`, of a sequence `(time, batch, ...)`."""

    observations: Tree
    states: Tree | None
    """The privileged input of asymmetric critics, or None."""
    previous_actions: NotRequired[ArrayT]
    """`(time, batch, action)`, in [-1, 1], of recurrent agents: what was done before; zeros at the start of an episode."""
    previous_rewards: NotRequired[ArrayT]
    """`(time, batch)`, of recurrent agents, as they are stored; zeros at the start of an episode."""


class Transition(NamedTuple, Generic[ArrayT]):
    """One step of all environments, as the replay memory stores it: row i is environment i."""

    observations: Tree
    """`(envs, *observation)`; a dict of those where the space is a Dict."""
    states: Tree | None
    """`(envs, *state)`, or None."""
    actions: ArrayT
    """`(envs, action)`, in [-1, 1]: the Box's units belong to the agent's boundary."""
    rewards: ArrayT
    """`(envs,)`."""
    next_observations: Tree
    """`(envs, *observation)`: the true successor, never the first observation of the next episode."""
    next_states: Tree | None
    """`(envs, *state)`, or None."""
    terminated: ArrayT
    """`(envs,)`, bool. Truncation is not stored: a truncated transition bootstraps like any other."""
    first: ArrayT | None = None
    """`(envs,)`, bool: whether it does not continue the environment's transition before. None where nobody asks for what follows it."""
    previous_actions: ArrayT | None = None
    """`(envs, action)`, in [-1, 1], zeros where `first`; of recurrent agents."""
    previous_rewards: ArrayT | None = None
    """`(envs,)`, as stored, zeros where `first`; of recurrent agents."""
    carry: Tree | None = None
    """`(envs, ...)` each: the policy's carry before it saw `observations`; of recurrent agents."""

    def map(self, function: Callable[[ArrayT], OtherT]) -> "Transition[OtherT]":
        """Apply `function` to each array."""
        mapped: Transition[OtherT] = map_leaves(function, self)
        return mapped


class Batch(NamedTuple, Generic[ArrayT]):
    """Transitions drawn from the memory; the fields of `Transition` with a batch axis instead of the environments'."""

    observations: Tree
    """`(batch, *observation)`; a dict of those where the space is a Dict."""
    states: Tree | None
    """`(batch, *state)`, or None."""
    actions: ArrayT
    """`(batch, action)`, in [-1, 1]."""
    rewards: ArrayT
    """`(batch,)`: of n steps, the discounted sum of theirs."""
    next_observations: Tree
    """`(batch, *observation)`: n steps later."""
    next_states: Tree | None
    """`(batch, *state)`, or None."""
    terminated: ArrayT
    """`(batch,)`, bool: whether the last of the n steps terminated."""
    discounts: ArrayT | None = None
    """`(batch,)`: gamma to the number of steps; None where each is one step."""
    mask: ArrayT | None = None
    """`(batch,)`, bool: which rows count; None where all do."""

    def map(self, function: Callable[[ArrayT], OtherT]) -> "Batch[OtherT]":
        """Apply `function` to each array."""
        mapped: Batch[OtherT] = map_leaves(function, self)
        return mapped

    @property
    def inputs(self) -> Inputs[ArrayT]:
        """Inputs of the models before the action."""
        return {"observations": self.observations, "states": self.states}

    @property
    def next_inputs(self) -> Inputs[ArrayT]:
        """Inputs of the models after the action."""
        return {"observations": self.next_observations, "states": self.next_states}


class Window(NamedTuple, Generic[ArrayT]):
    """Which steps of a sequence a recurrent model is asked for: all but the last, or all but the first."""

    sequence: Inputs[ArrayT]
    """`(time + 1, batch, ...)`."""
    carry: Tree
    """The policy's carry before the sequence, `(batch, ...)` each; critics start from their own."""
    shift: int
    """0 for the steps before the actions, 1 for those after them."""


Seen: TypeAlias = Inputs[ArrayT] | Window[ArrayT]
"""Inputs of a model in an update: a batch's, or a window of sequences."""


class Sequences(NamedTuple, Generic[ArrayT]):
    """Sequences drawn from the memory, instead of a `Batch`. None of them crosses an episode's end.

    Each begins with up to `burn_in` steps that only warm up the carries, goes on with up to `sequence_length` steps that are learned from,
    and is padded at its end. `mask` says which steps are learned from.
    """

    observations: Tree
    """`(time + 1, batch, *observation)`: the last step's successor included."""
    states: Tree | None
    """`(time + 1, batch, *state)`, or None."""
    previous_actions: ArrayT
    """`(time + 1, batch, action)`."""
    previous_rewards: ArrayT
    """`(time + 1, batch)`."""
    actions: ArrayT
    """`(time, batch, action)`."""
    rewards: ArrayT
    """`(time, batch)`."""
    terminated: ArrayT
    """`(time, batch)`, bool."""
    mask: ArrayT
    """`(time, batch)`, bool."""
    carry: Tree
    """The policy's carry before the first step, `(batch, ...)` each."""
    discounts: None = None

    def map(self, function: Callable[[ArrayT], OtherT]) -> "Sequences[OtherT]":
        """Apply `function` to each array."""
        mapped: Sequences[OtherT] = map_leaves(function, self)
        return mapped

    @property
    def inputs(self) -> Window[ArrayT]:
        """Inputs of the models before the actions."""
        return self._window(0)

    @property
    def next_inputs(self) -> Window[ArrayT]:
        """Inputs of the models after the actions."""
        return self._window(1)

    def _window(self, shift: int) -> Window[ArrayT]:
        sequence: Inputs[ArrayT] = {
            "observations": self.observations,
            "states": self.states,
            "previous_actions": self.previous_actions,
            "previous_rewards": self.previous_rewards,
        }
        return Window(sequence, self.carry, shift)


Sampled: TypeAlias = Batch[ArrayT] | Sequences[ArrayT]
"""A draw from the memory for an update."""


Draws: TypeAlias = Mapping[str, tuple[ArrayT, ...]]
"""Critic -> draws for its random layers, one array for each: `(batch, width)`, uniform in [0, 1). Empty for critics without any."""


class Noise(NamedTuple, Generic[ArrayT]):
    """The random numbers of one update. Each enters the update as an argument."""

    next_actions: ArrayT
    """`(batch, action)`, standard normal: for the next action in the critics' target."""
    actions: ArrayT
    """`(batch, action)`, standard normal: for the action that the policy is judged by."""
    target_critics: ArrayT | None = None
    """`(subset,)`, integers: which target critics the target is the minimum of; None for all."""
    dropout: "tuple[Draws[ArrayT], Draws[ArrayT], Draws[ArrayT]]" = ({}, {}, {})
    """For the target critics, the critics, and the critics that judge the policy."""

    def map(self, function: Callable[[ArrayT], OtherT]) -> "Noise[OtherT]":
        """Apply `function` to each array."""
        mapped: Noise[OtherT] = map_leaves(function, self)
        return mapped


Metrics = Mapping[str, ArrayT]
"""Name -> array on the device: the measurements of one update. `()` for scalars, `(critic,)` for what each critic has."""

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
    "policy_gradient_norm",
    "critic_gradient_norm",
    "policy_learning_rate",
    "critic_learning_rate",
    "entropy_learning_rate",
    "policy_loss_scale",
    "critic_loss_scale",
    "entropy_loss_scale",
    "policy_skipped_steps",
    "critic_skipped_steps",
    "entropy_skipped_steps",
)
"""The names, in the order in which they are packed: a compiled function returns a dict in another order than it was made in.

Gradient norms (before clipping) are there where gradients are clipped, learning rates where they have a schedule, loss scales and the
steps that were skipped so far where losses are scaled.
"""
