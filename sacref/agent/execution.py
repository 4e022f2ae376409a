"""Common ground of the backends' execution: what learning and acting are given, the modes of acting, and the runner of one agent."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, NamedTuple, Protocol, TypeAlias, TypeVar

import numpy as np

from sacref.algorithm.data import METRICS, Inputs, Metrics, Sampled
from sacref.algorithm.optimizer import Parameters
from sacref.algorithm.packing import Packed
from sacref.algorithm.sequences import MemoryT, StreamT
from sacref.algorithm.tree import Tree, leaves, map_leaves
from sacref.algorithm.update import State
from sacref.envs.scaling import to_box
from sacref.spec import bound_log_std, squash
from sacref.spec.arrays import ArrayT, NumpyArray, namespace


class Streams(NamedTuple, Generic[StreamT]):
    """The random streams of an agent, apart from each other and from every global generator."""

    noise: StreamT
    sampling: StreamT
    exploration: StreamT


AnyStreams: TypeAlias = Streams[Any]


class Bounds(NamedTuple, Generic[ArrayT]):
    """The Box of actions, `(action,)` each."""

    low: ArrayT
    high: ArrayT


class ActInputs(NamedTuple, Generic[ArrayT]):
    """Inputs of acting beside the policy's parameters."""

    inputs: Inputs[ArrayT]
    """`(envs, ...)`, as the environments gave them."""
    moments: Tree
    """The preprocessors' arrays."""
    carry: Tree
    """The policy's carry, `(envs, ...)` each; () of one without."""


@dataclass(frozen=True)
class DrawSpec(Generic[ArrayT, MemoryT, StreamT]):
    """Where the batch of a gradient step comes from, and which random numbers it takes beside the noise of the two actions."""

    sample: Callable[[MemoryT, int, StreamT], Sampled[ArrayT]]
    batch_size: int
    prepare: Callable[[Tree, Sampled[ArrayT]], Sampled[ArrayT]]
    """`(moments, batch)` -> the batch as the models see it."""
    num_critics: int = 2
    target_subset: int | None = None
    """Number of target critics whose minimum is the target; None for all."""
    draw_widths: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Critic -> widths of what its random layers take."""


Learn: TypeAlias = Callable[
    [State[ArrayT], MemoryT, Tree, Streams[StreamT], int],
    tuple[State[ArrayT], Streams[StreamT], list[ArrayT]],
]
"""`(state, memory, moments, streams, steps) -> (state, streams, metrics)`; the metrics are matrices `(step, metric)`, see `pack`."""
Actor: TypeAlias = Callable[[Parameters[ArrayT], ActInputs[ArrayT]], tuple[ArrayT, ArrayT, Tree]]
"""A policy for acting: `(parameters, inputs) -> (mean, raw log_std, carry)`, `(envs, action)` each."""
Act: TypeAlias = Callable[[Parameters[ArrayT], Streams[StreamT], ActInputs[ArrayT]], tuple[ArrayT, ArrayT, Tree, Streams[StreamT]]]
"""`(policy parameters, streams, inputs) -> (actions, mean actions, carry, streams)`."""


FusedT = TypeVar("FusedT", covariant=True)
Acted: TypeAlias = tuple[FusedT, FusedT, Tree]
"""Actions, mean actions and carry, as of `Act`."""


class Fused(Protocol[FusedT, MemoryT, StreamT]):
    """A strict step in one call: rows are written to the memory, gradient steps taken, actions chosen with the new parameters."""

    steps: int
    """Gradient steps that it takes."""

    def __call__(
        self, state: Any, memory: MemoryT, rows: Packed, streams: Streams[StreamT], mode: str, given: ActInputs[Any], /
    ) -> tuple[Any, MemoryT, Streams[StreamT], FusedT, Acted[FusedT]]:
        """Return the state, as the backend's runner holds it, the memory, the streams, packed metrics `(step, metric)`, and the actions.

        Args:
            rows: as of `ReplayMemory.hand_over`. mode: of acting. given: what the actions are chosen on, host arrays.
        """
        ...


class Upload:
    """The arrays of the host that a `Fused` call takes, in one buffer: new rows, and what actions are chosen on.

    Args:
        rows: as of `ReplayMemory.hand_over`. given: of the shapes. dtype: in which floats are uploaded.
    """

    def __init__(self, rows: Packed, given: Tree, dtype: np.dtype[np.generic]) -> None:
        def converted(array: NumpyArray) -> NumpyArray:
            return np.asarray(array, dtype if array.dtype in (np.float32, np.float64) else array.dtype)

        self._rows, self._given = rows, Packed(map_leaves(converted, given))
        self.size: int = rows.buffer.size + self._given.buffer.size
        """Bytes."""

    def takes(self, given: Tree) -> bool:
        """Tell whether arrays have the shapes of those that actions are chosen on."""
        return self._given.holds(given)

    def filled(self, rows: Packed, given: Tree, out: NumpyArray | None = None) -> NumpyArray:
        """Return the buffer, uint8, with these arrays in it."""
        self._given.fill(given)
        return np.concatenate([rows.buffer, self._given.buffer], out=out)

    def unpack(self, buffer: ArrayT, typed: Callable[[ArrayT, np.dtype[np.generic], tuple[int, ...]], ArrayT]) -> tuple[Tree, Tree]:
        """Return rows and inputs of an uploaded buffer; for `typed` see `Packed.unpack`."""
        end = self._rows.buffer.size
        return self._rows.unpack(buffer[:end], typed), self._given.unpack(buffer[end:], typed)


def pack(metrics: Metrics[ArrayT]) -> ArrayT:
    """Concatenate the metrics of an update to one vector, in the order of `METRICS`."""
    xp = namespace(metrics["alpha"])
    packed: ArrayT = xp.concat([xp.reshape(metrics[name], (-1,)) for name in METRICS if name in metrics])
    return packed


class ActionMode(NamedTuple, Generic[ArrayT]):
    """A mode of acting, as a function of the random numbers that it takes."""

    function: Callable[..., tuple[ArrayT, ArrayT, Tree]]
    """`(policy parameters, inputs, *numbers) -> (actions, mean actions, carry)`, actions in the Box's units."""
    distribution: Literal["uniform", "normal"] | None
    """Distribution of the numbers, `(envs, action)`; None where none are taken."""


def action_modes(actor: Actor[ArrayT], bounds: Bounds[ArrayT]) -> dict[str, ActionMode[ArrayT]]:
    """Return the modes of acting: `greedy` draws nothing, `random` is uniform over the Box, `sampled` is the policy's own."""

    def greedy(parameters: Parameters[ArrayT], inputs: ActInputs[ArrayT]) -> tuple[ArrayT, ArrayT, Tree]:
        mean, _, carry = actor(parameters, inputs)
        mean_actions = to_box(namespace(mean).tanh(mean), *bounds)
        return mean_actions, mean_actions, carry

    def random(parameters: Parameters[ArrayT], inputs: ActInputs[ArrayT], uniform: ArrayT) -> tuple[ArrayT, ArrayT, Tree]:
        _, mean_actions, carry = greedy(parameters, inputs)
        return to_box(2.0 * uniform - 1.0, *bounds), mean_actions, carry

    def sampled(parameters: Parameters[ArrayT], inputs: ActInputs[ArrayT], noise: ArrayT) -> tuple[ArrayT, ArrayT, Tree]:
        mean, raw_log_std, carry = actor(parameters, inputs)
        actions, _ = squash(mean, bound_log_std(raw_log_std), noise)
        return to_box(actions, *bounds), to_box(namespace(mean).tanh(mean), *bounds), carry

    return {"greedy": ActionMode(greedy, None), "random": ActionMode(random, "uniform"), "sampled": ActionMode(sampled, "normal")}


def numbers_shape(inputs: ActInputs[ArrayT], bounds: Bounds[ArrayT]) -> tuple[int, ...]:
    """Return the shape of the random numbers of an action mode, `(envs, action)`."""
    return leaves(inputs.inputs["observations"])[0].shape[0], *bounds.low.shape


class AgentRunner(Generic[ArrayT, MemoryT, StreamT]):
    """The state of one agent, its gradient steps and its actions."""

    fused: Fused[ArrayT, MemoryT, StreamT] | None
    """The strict step in one call; None where there is none."""

    def __init__(self, state: State[ArrayT]) -> None:
        self.state: State[ArrayT] = state

    def use(
        self,
        learn: Learn[ArrayT, MemoryT, StreamT],
        acts: Mapping[str, Act[ArrayT, StreamT]],
        fused: Fused[ArrayT, MemoryT, StreamT] | None = None,
    ) -> None:
        """Learn and act by these functions from now on."""
        self._learn, self._acts, self.fused = learn, acts, fused

    def learn(self, memory: MemoryT, moments: Tree, streams: Streams[StreamT], steps: int) -> tuple[Streams[StreamT], list[ArrayT]]:
        """Take gradient steps; return the streams after them and their metrics."""
        self.state, streams, metrics = self._learn(self.state, memory, moments, streams, steps)
        return streams, metrics

    def act(self, mode: str, streams: Streams[StreamT], inputs: ActInputs[ArrayT]) -> tuple[ArrayT, ArrayT, Tree, Streams[StreamT]]:
        """Choose actions; return them with the mean actions, the carry and the streams after them."""
        return self._acts[mode](self.state.policy, streams, inputs)

    def learn_and_act(
        self, memory: MemoryT, rows: Packed, streams: Streams[StreamT], mode: str, given: ActInputs[Any]
    ) -> tuple[MemoryT, Streams[StreamT], ArrayT, Acted[ArrayT]]:
        """Make the call `fused`; return the memory, the streams, packed metrics and actions."""
        assert self.fused is not None
        self.state, memory, streams, metrics, acted = self.fused(self.state, memory, rows, streams, mode, given)
        return memory, streams, metrics, acted
