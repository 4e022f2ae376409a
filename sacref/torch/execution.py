"""Execution of updates and actions: a batch and its noise are drawn, then the steps are taken, plain or fast.

`plain` calls the update as it is written. `traced` runs a recording of it (`graph.py`). `cuda_graph` captures draw and step on the device
(`capture.py`): the host launches once for each gradient step, or for a strict step as a whole (`Fused`). `torch.compile` is none of
them: on the CPU its code for a recording was measured to take one and a half times as long as the recording, and 20 s to make.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeAlias, TypeVar

import numpy as np
import torch
from torch import Tensor

from sacref.agent import execution as shared
from sacref.agent.execution import ActInputs, Actor, Bounds, Upload, action_modes, numbers_shape, pack
from sacref.algorithm.data import Noise, Sampled, Transition
from sacref.algorithm.optimizer import Parameters
from sacref.algorithm.packing import Packed
from sacref.algorithm.tree import Tree
from sacref.config import Execution
from sacref.torch.capture import Captured
from sacref.torch.graph import Recorded, detects_anomalies, leaves_of, onednn_available
from sacref.torch.memory import MemoryState, write
from sacref.torch.optim import State, Update

logger: logging.Logger = logging.getLogger(__name__)

Learn: TypeAlias = shared.Learn[Tensor, MemoryState, torch.Generator]
Act: TypeAlias = shared.Act[Tensor, torch.Generator]
Streams: TypeAlias = shared.Streams[torch.Generator]

DISTRIBUTIONS: dict[str, Callable[..., Tensor]] = {"uniform": torch.rand, "normal": torch.randn}


@dataclass(frozen=True)
class DrawSpec(shared.DrawSpec[Tensor, MemoryState, torch.Generator]):
    """The specification of a draw, with PyTorch's own generators."""

    generators: tuple[torch.Generator, ...] = ()
    """Those of models of a user's own, whose layers draw from them."""


Step = Callable[[State, Any, Noise[Tensor]], Tensor]
"""A gradient step that writes into the state; it returns the metrics as one vector, see `pack`."""


def choose(execution: Execution, device: torch.device, *, own_models: bool, ranks: int = 1) -> Execution:
    """Choose the execution of updates on `device`.

    Args:
        execution: "auto", or the one that is asked for.
        own_models: whether all models are sacref's. A recording keeps what Python code of a model decided once, so that models of a user's
            own are recorded only when asked.
        ranks: processes that learn together. Their messages are captured in a CUDA graph only when asked.

    Raises:
        ValueError: if the device has no such execution.
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
    """Say how updates of default models in float32 run on `device` unless told otherwise, and which library multiplies."""
    execution = choose("auto", device, own_models=True)
    return f"{execution}, products by oneDNN" if execution == "traced" and onednn_available() else execution


def stepper(update: Update) -> Update:
    """Return the update itself, `(state, batch, noise) -> (state, metrics)`."""
    return update


def draw(memory: MemoryState, moments: Tree, streams: Streams, spec: DrawSpec) -> tuple[Sampled[Tensor], Noise[Tensor], Streams]:
    """Draw the batch and the noise of the next gradient step."""
    batch = spec.prepare(moments, spec.sample(memory, spec.batch_size, streams.sampling))
    like = batch.actions

    def numbers(distribution: Callable[..., Tensor], shape: Sequence[int]) -> Tensor:
        return distribution(tuple(shape), generator=streams.noise, dtype=like.dtype, device=like.device)

    def uniform() -> dict[str, tuple[Tensor, ...]]:
        return {
            critic: tuple(numbers(torch.rand, (*like.shape[:-1], width)) for width in widths) for critic, widths in spec.draw_widths.items()
        }

    first, second = (numbers(torch.randn, like.shape) for _ in range(2))
    subset = None
    if spec.target_subset is not None:
        subset = numbers(torch.rand, (spec.num_critics,)).argsort()[: spec.target_subset]
    noise = Noise(next_actions=first, actions=second, target_critics=subset, dropout=(uniform(), uniform(), uniform()))
    return batch, noise, streams


def in_place(update: Update, state: State, batch: Any, noise: Noise[Tensor]) -> Tensor:
    """Take a gradient step and write it into the state; return the metrics as one vector, see `pack`."""
    stepped, metrics = update(state, batch, noise)
    with torch.no_grad():
        for old, new in zip(leaves_of(state), leaves_of(stepped), strict=True):
            if new is not old:
                old.copy_(new)
    return pack(metrics)


def learner(update: Update, spec: DrawSpec, *, execution: Execution) -> Learn:
    """Return the function that takes gradient steps on fresh batches. The state is written in place."""
    take = partial(in_place, update)

    def draw_and(step: Step) -> Callable[[State, MemoryState, Tree, Streams], Tensor]:
        def draw_and_step(state: State, memory: MemoryState, moments: Tree, streams: Streams) -> Tensor:
            batch, noise, _ = draw(memory, moments, streams, spec)
            return step(state, batch, noise)

        return draw_and_step

    plain = fast = draw_and(take)
    if execution == "traced":
        fast = draw_and(Recorded(take))
    elif execution == "cuda_graph":
        fast = Captured(plain, spec.generators)

    def learn(state: State, memory: MemoryState, moments: Tree, streams: Streams, steps: int) -> tuple[State, Streams, list[Tensor]]:
        gradient_step = plain if fast is not plain and detects_anomalies() else fast
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


def numbers(distribution: str | None, streams: Streams, inputs: ActInputs[Tensor], bounds: Bounds[Tensor]) -> tuple[Tensor, ...]:
    """Draw the random numbers of an action mode."""
    if distribution is None:
        return ()
    shape, like = numbers_shape(inputs, bounds), bounds.low
    return (DISTRIBUTIONS[distribution](shape, generator=streams.exploration, dtype=like.dtype, device=like.device),)


def actors(actor: Actor[Tensor], bounds: Bounds[Tensor], *, execution: Execution) -> dict[str, Act]:
    """Return the functions that act, by mode (`action_modes`)."""

    def act_by(function: Callable[..., tuple[Tensor, Tensor, Tree]], distribution: str | None) -> Act:
        run = function if execution == "plain" else Recorded(function)

        @torch.no_grad()
        def act(parameters: Parameters[Tensor], streams: Streams, inputs: ActInputs[Tensor]) -> tuple[Tensor, Tensor, Tree, Streams]:
            return *run(parameters, inputs, *numbers(distribution, streams, inputs, bounds)), streams

        return act

    return {name: act_by(*mode) for name, mode in action_modes(actor, bounds).items()}


StreamsT = TypeVar("StreamsT")
"""Streams of an agent, or a tuple of those of each member of a population."""


class Fused(Generic[StreamsT]):
    """A strict step in one call (`sacref.agent.execution.Fused`): one upload, and then recordings or, captured, one CUDA graph.

    Args:
        learn, acts: its parts, as `Learn` and `Act`. steps: gradient steps that it takes.
        like: an array on the agent's device, in the parameters' dtype.
        captures: whether the parts are captured together. generators: as of `DrawSpec`.
    """

    def __init__(
        self,
        learn: Callable[[State, MemoryState, Tree, StreamsT, int], tuple[State, StreamsT, list[Tensor]]],
        acts: Mapping[str, Callable[[Parameters[Tensor], StreamsT, ActInputs[Tensor]], tuple[Tensor, Tensor, Tree, StreamsT]]],
        *,
        steps: int,
        like: Tensor,
        captures: bool,
        generators: tuple[torch.Generator, ...],
    ) -> None:
        self.steps = steps
        self._learn, self._acts, self._captures, self._generators = learn, acts, captures, generators
        self._write = _write if captures else Recorded(_write)
        self._device, self._dtype = like.device, like.cpu().numpy().dtype
        self._upload: Upload | None = None
        self._captured: dict[str, Captured] = {}

    def __call__(
        self, state: State, memory: MemoryState, rows: Packed, streams: StreamsT, mode: str, given: ActInputs[Any]
    ) -> tuple[State, MemoryState, StreamsT, Tensor, shared.Acted[Tensor]]:
        moments, given = given.moments, given._replace(moments=None)
        if self._upload is None or not self._upload.takes(given):
            self._upload, self._captured = Upload(rows, given, self._dtype), {}
            self._buffer = torch.zeros(self._upload.size, dtype=torch.uint8, device=self._device)
            self._host = self._buffer.numpy() if self._device.type == "cpu" else np.empty(self._upload.size, np.uint8)
            self._uploaded = self._upload.unpack(self._buffer, typed)
        run: Callable[..., tuple[Tensor, Tensor, Tensor, Tree]] = partial(self._step, mode)
        if self._captures and not detects_anomalies():
            run = self._captured.setdefault(mode, Captured(run, self._generators, shared.Streams._fields))
            run.prepare(state, memory, moments, streams)  # before the upload, so that its calls write no rows
        self._upload.filled(rows, given, self._host)
        if self._device.type != "cpu":
            self._buffer.copy_(torch.from_numpy(self._host), non_blocking=True)  # which has read the host's array when it returns
        metrics, *acted = run(state, memory, moments, streams)
        return state, memory, streams, metrics, (acted[0], acted[1], acted[2])

    @torch.no_grad()
    def _step(self, mode: str, state: State, memory: MemoryState, moments: Tree, streams: StreamsT) -> tuple[Tensor, Tensor, Tensor, Tree]:
        rows, given = self._uploaded
        self._write(memory, *rows)
        _, _, (metrics,) = self._learn(state, memory, moments, streams, self.steps)
        actions, mean_actions, carry, _ = self._acts[mode](state.policy, streams, given._replace(moments=moments))
        return metrics, actions, mean_actions, carry


def fuse(
    update: Update,
    spec: DrawSpec,
    actor: Actor[Tensor],
    bounds: Bounds[Tensor],
    learn: Learn,
    acts: Mapping[str, Act],
    *,
    execution: Execution,
    steps: int,
) -> Fused[Streams] | None:
    """Return the strict step in one call; None where the parts are plain, or a schedule runs on the host between captured steps."""
    captures = execution == "cuda_graph"
    if execution == "plain" or (captures and update.scheduled_on_host):
        return None
    if captures:
        learn, acts = learner(update, spec, execution="plain"), actors(actor, bounds, execution="plain")
    return Fused(learn, acts, steps=steps, like=bounds.low, captures=captures, generators=spec.generators)


def _write(memory: MemoryState, transition: Transition[Tensor], keep: Tensor) -> None:
    """Write rows, once."""
    write(memory, transition, keep)
    keep.zero_()


def typed(data: Tensor, dtype: np.dtype[np.generic], shape: Sequence[int]) -> Tensor:
    """Return a view of bytes as a tensor of a dtype and shape."""
    return data.view(torch.from_numpy(np.empty(0, dtype)).dtype).view(tuple(shape))
