"""Execution of updates and actions: a batch and its noise are drawn, then the steps are taken, plain or fast.

`plain` calls the update as it is written. `traced` runs a recording of it (`graph.py`). `cuda_graph` captures draw and step on the device
(`capture.py`), so that the host launches once for each gradient step. `torch.compile` is none of them: on the CPU its code for a recording
was measured to take one and a half times as long as the recording, and 20 s to make.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor

from sacref.agent import execution as shared
from sacref.agent.execution import ActInputs, Actor, Bounds, action_modes, numbers_shape, pack
from sacref.algorithm.data import Noise, Sampled
from sacref.algorithm.optimizer import Parameters
from sacref.algorithm.tree import Tree
from sacref.config import Execution
from sacref.torch.capture import Captured
from sacref.torch.graph import Recorded, detects_anomalies, leaves_of, onednn_available
from sacref.torch.memory import MemoryState
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
