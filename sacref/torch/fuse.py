"""Around a finished update: draw a batch and its noise, then take the steps; and the ways to run that fast.

`plain` calls the update as it is written. `traced` runs a recording of it (`graph.py`). `cuda_graph` captures draw and step on the device,
so that the host launches once for each gradient step. `torch.compile` is none of them: on the CPU its code for a recording was
measured to take one and a half times as long as the recording, and 20 s to make.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from sacref.config import Execution
from sacref.envs.scaling import to_box
from sacref.spec import bound_log_std, squash
from sacref.torch.graph import Recorded, leaves_of, onednn_available
from sacref.torch.memory import MemoryState, Sampler
from sacref.torch.update import State, Update
from sacref.tree import Tree
from sacref.types import METRICS, Batch, Inputs, Metrics, Noise, Sequences

logger = logging.getLogger(__name__)


class Streams(NamedTuple):
    """The random streams of an agent, apart from each other and from every global generator."""

    noise: torch.Generator
    sampling: torch.Generator
    exploration: torch.Generator


class Bounds(NamedTuple):
    """The Box of actions, `(action,)` each."""

    low: Tensor
    high: Tensor


class Acting(NamedTuple):
    """What acting reads beside the policy's parameters."""

    inputs: Inputs[Tensor]
    """`(envs, ...)`, as the environments gave them."""
    moments: Tree
    """The preprocessors' arrays."""
    carry: Tree
    """The policy's carry, `(envs, ...)` each; () of one without."""


@dataclass(frozen=True)
class Drawing:
    """What an update is given: where its batch comes from, and which random numbers beside the two actions' noise."""

    sample: Sampler
    batch_size: int
    prepare: Callable[[Tree, Any], Any]
    """`(moments, batch)` -> the batch as the models see it."""
    critics: int = 2
    target_subset: int | None = None
    """How many target critics the target is the minimum of; None for all."""
    draws: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Critic -> widths of what its random layers take."""
    generators: tuple[torch.Generator, ...] = ()
    """Of models of a user's own, whose layers draw from them."""


Step = Callable[[State, Any, Noise[Tensor]], Tensor]
"""A gradient step that writes into the state; it returns the metrics as one vector, see `pack`."""
Learn = Callable[[State, MemoryState, Tree, Streams, int], tuple[State, Streams, list[Tensor]]]
"""`(state, memory, moments, streams, steps) -> (state, streams, metrics)`."""
Actor = Callable[[Any, Acting], tuple[Tensor, Tensor, Tree]]
"""A policy for acting: `(parameters, acting) -> (mean, raw log_std, carry)`, `(envs, action)` each."""
Act = Callable[[Any, Streams, Acting], tuple[Tensor, Tensor, Tree, Streams]]


def choose(execution: Execution, device: torch.device, *, own_models: bool, ranks: int = 1) -> Execution:
    """The way to run updates on `device`.

    Args:
        execution: "auto", or the way that is asked for.
        own_models: whether all models are sacref's. A recording keeps what Python code of a model decided once, so that models of a user's
            own are recorded only when asked.
        ranks: processes that learn together. What they tell each other is captured in a CUDA graph only when asked.

    Raises:
        ValueError: if there is no such way on this device.
    """
    if execution == "scan":
        raise ValueError("execution is 'scan', which is JAX's: expected auto, plain, traced or cuda_graph on PyTorch")
    if execution == "cuda_graph" and device.type != "cuda":
        raise ValueError(f"execution is 'cuda_graph' and the device {device}: expected a CUDA device, or execution 'auto'")
    if execution != "auto":
        return execution
    fast: Execution = "traced" if device.type != "cuda" else "cuda_graph" if ranks == 1 else "plain"
    if own_models:
        return fast
    logger.info("models of your own: updates run plain; execution=%r records them once and is faster where they only compute", fast)
    return "plain"


def describe(device: torch.device) -> str:
    """How updates of default models in float32 run on `device` unless told otherwise, and which library multiplies."""
    execution = choose("auto", device, own_models=True)
    return f"{execution}, products by oneDNN" if execution == "traced" and onednn_available() else execution


def stepper(update: Update) -> Update:
    """The update itself, `(state, batch, noise) -> (state, metrics)`."""
    return update


def pack(metrics: Metrics[Tensor]) -> Tensor:
    """The metrics of an update in one vector, in the order of `METRICS`."""
    return torch.cat([metrics[name].reshape(-1) for name in METRICS if name in metrics])


def draw(
    memory: MemoryState, moments: Tree, streams: Streams, drawing: Drawing
) -> tuple[Batch[Tensor] | Sequences[Tensor], Noise[Tensor], Streams]:
    """The batch and the noise of the next gradient step."""
    batch = drawing.prepare(moments, drawing.sample(memory, drawing.batch_size, streams.sampling))
    like = batch.actions

    def numbers(distribution: Callable[..., Tensor], shape: Sequence[int]) -> Tensor:
        return distribution(tuple(shape), generator=streams.noise, dtype=like.dtype, device=like.device)

    def uniform() -> dict[str, tuple[Tensor, ...]]:
        return {
            critic: tuple(numbers(torch.rand, (*like.shape[:-1], width)) for width in widths) for critic, widths in drawing.draws.items()
        }

    first, second = (numbers(torch.randn, like.shape) for _ in range(2))
    subset = None
    if drawing.target_subset is not None:
        subset = numbers(torch.rand, (drawing.critics,)).argsort()[: drawing.target_subset]
    noise = Noise(next_actions=first, actions=second, target_critics=subset, dropout=(uniform(), uniform(), uniform()))
    return batch, noise, streams


def learner(update: Update, drawing: Drawing, *, execution: Execution) -> Learn:
    """Take gradient steps on fresh batches.

    The state is written in place. The metrics are a list of matrices `(step, metric)`, see `pack`.
    """

    def in_place(state: State, batch: Any, noise: Noise[Tensor]) -> Tensor:
        stepped, metrics = update(state, batch, noise)
        with torch.no_grad():
            for old, new in zip(leaves_of(state), leaves_of(stepped), strict=True):
                if new is not old:
                    old.copy_(new)
        return pack(metrics)

    step: Step = Recorded(in_place) if execution == "traced" else in_place

    def draw_and_step(state: State, memory: MemoryState, moments: Tree, streams: Streams) -> Tensor:
        batch, noise, _ = draw(memory, moments, streams, drawing)
        return step(state, batch, noise)

    gradient_step = Captured(draw_and_step, drawing.generators) if execution == "cuda_graph" else draw_and_step

    def learn(state: State, memory: MemoryState, moments: Tree, streams: Streams, steps: int) -> tuple[State, Streams, list[Tensor]]:
        metrics = []
        for _ in range(steps):
            advance_schedules(update, state)
            metrics.append(gradient_step(state, memory, moments, streams))
        return state, streams, [torch.stack(metrics)] if metrics else []

    return learn


def advance_schedules(update: Update, state: State) -> None:
    """Let the schedules that run on the host (torch.optim.lr_scheduler) write the next step's learning rates into the state."""
    update.policy_optimizer.prepare(state.policy_optimizer)
    update.critic_optimizer.prepare(state.critic_optimizer)
    update.temperature_optimizer.prepare(state.temperature_optimizer)


def capture_on_cuda(
    function: Callable[[], Tensor], generators: Sequence[torch.Generator], warm_up: Callable[[], None]
) -> Callable[[], Tensor]:
    """Capture `function` as a CUDA graph, after `warm_up` on the same stream; the result replays it.

    Registered generators go on from replay to replay.
    """
    device = generators[0].device
    graph = torch.cuda.CUDAGraph()
    for generator in generators:
        graph.register_generator_state(generator)
    # A stream of the agent's device: torch's default one for captures lies on the device that was current first.
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch leaves it unannotated.
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        warm_up()
    torch.cuda.current_stream(device).wait_stream(stream)
    with torch.cuda.graph(graph, stream=stream):
        output = function()

    def replay() -> Tensor:
        graph.replay()
        return output

    return replay


class Captured:
    """Draw and step as one graph on the device.

    Args:
        draw_and_step: `(state, memory, moments, streams) -> metrics`. It writes into the state.
        generators: which it draws from beside the streams.
    """

    WARM_UP = 3
    """Calls before the capture, on copies: libraries allocate their workspaces in the first ones."""

    def __init__(
        self, draw_and_step: Callable[[State, MemoryState, Tree, Streams], Tensor], generators: tuple[torch.Generator, ...] = ()
    ) -> None:
        self.draw_and_step = draw_and_step
        self.generators = generators
        self._captured_of: tuple[State, MemoryState, Tree] | None = None
        self._replay: Callable[[], Tensor] | None = None

    def __call__(self, state: State, memory: MemoryState, moments: Tree, streams: Streams) -> Tensor:
        given = state, memory, moments
        if self._replay is None or self._captured_of is None or any(a is not b for a, b in zip(given, self._captured_of, strict=True)):
            self._replay = capture_on_cuda(
                lambda: self.draw_and_step(state, memory, moments, streams),
                (streams.noise, streams.sampling, *self.generators),
                lambda: self._warm_up(state, memory, moments, streams),
            )
            self._captured_of = given
        return self._replay().clone()

    def _warm_up(self, state: State, memory: MemoryState, moments: Tree, streams: Streams) -> None:
        generators = (streams.noise, streams.sampling, *self.generators)
        before = [generator.get_state() for generator in generators]
        copied = pytree.tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, state)
        for _ in range(self.WARM_UP):
            self.draw_and_step(copied, memory, moments, streams)
        for generator, state_before in zip(generators, before, strict=True):
            generator.set_state(state_before)


def actors(actor: Actor, bounds: Bounds, *, execution: Execution) -> dict[str, Act]:
    """Ways to act, `(policy parameters, streams, acting) -> (actions, mean actions, carry, streams)`, actions in the Box's units.

    `greedy` draws nothing, `random` is uniform over the Box, `sampled` is the policy's own.
    """

    def greedy(parameters: Any, acting: Acting) -> tuple[Tensor, Tensor, Tree]:
        mean, _, carry = actor(parameters, acting)
        mean_actions = to_box(torch.tanh(mean), *bounds)
        return mean_actions, mean_actions, carry

    def random(parameters: Any, acting: Acting, uniform: Tensor) -> tuple[Tensor, Tensor, Tree]:
        _, mean_actions, carry = greedy(parameters, acting)
        return to_box(2.0 * uniform - 1.0, *bounds), mean_actions, carry

    def sampled(parameters: Any, acting: Acting, noise: Tensor) -> tuple[Tensor, Tensor, Tree]:
        mean, raw_log_std, carry = actor(parameters, acting)
        actions, _ = squash(mean, bound_log_std(raw_log_std), noise)
        return to_box(actions, *bounds), to_box(torch.tanh(mean), *bounds), carry

    def way(function: Callable[..., tuple[Tensor, Tensor, Tree]], distribution: Callable[..., Tensor] | None) -> Act:
        run = function if execution == "plain" else Recorded(function)

        @torch.no_grad()
        def act(parameters: Any, streams: Streams, acting: Acting) -> tuple[Tensor, Tensor, Tree, Streams]:
            if distribution is None:
                return *run(parameters, acting), streams
            shape = (next(leaves_of(acting.inputs["observations"])).shape[0], *bounds.low.shape)
            numbers = distribution(shape, generator=streams.exploration, dtype=bounds.low.dtype, device=bounds.low.device)
            return *run(parameters, acting, numbers), streams

        return act

    return {"greedy": way(greedy, None), "random": way(random, torch.rand), "sampled": way(sampled, torch.randn)}
