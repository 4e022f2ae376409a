"""Around a finished update: draw a batch and its noise, then take the step. Eager; what is faster wraps the same update."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sacref.envs.scaling import to_box
from sacref.spec import bound_log_std, squash
from sacref.torch.memory import MemoryState, sample
from sacref.torch.update import Policy, State, Update
from sacref.types import Inputs, Metrics, Noise


class Streams(NamedTuple):
    """The random streams of an agent, apart from each other and from every global generator."""

    noise: torch.Generator
    sampling: torch.Generator
    exploration: torch.Generator


class Bounds(NamedTuple):
    """The Box of actions, `(action,)` each."""

    low: Tensor
    high: Tensor


Learn = Callable[[State, MemoryState, Streams], tuple[State, Streams, Metrics[Tensor]]]
Act = Callable[[Any, Streams, Inputs[Tensor]], tuple[Tensor, Tensor, Streams]]


def stepper(update: Update) -> Update:
    """The update itself, `(state, batch, noise) -> (state, metrics)`."""
    return update


def learner(update: Update, *, batch_size: int) -> Learn:
    """A gradient step on a fresh batch: `(state, memory, streams) -> (state, streams, metrics)`."""

    def learn(state: State, memory: MemoryState, streams: Streams) -> tuple[State, Streams, Metrics[Tensor]]:
        batch = sample(memory, batch_size, streams.sampling)

        def draw() -> Tensor:
            like = batch.actions
            return torch.randn(like.shape, generator=streams.noise, dtype=like.dtype, device=like.device)

        state, metrics = update(state, batch, Noise(next_actions=draw(), actions=draw()))
        return state, streams, metrics

    return learn


def actors(policy: Policy, bounds: Bounds) -> dict[str, Act]:
    """Ways to act, `(policy parameters, streams, inputs) -> (actions, mean actions, streams)`, in the Box's units.

    `greedy` draws nothing, `random` is uniform over the Box, `sampled` is the policy's own.
    """

    def mean_and_std(parameters: Any, inputs: Inputs[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        mean, raw_log_std = policy(parameters, inputs)
        return mean, raw_log_std, to_box(torch.tanh(mean), *bounds)

    @torch.no_grad()
    def greedy(parameters: Any, streams: Streams, inputs: Inputs[Tensor]) -> tuple[Tensor, Tensor, Streams]:
        _, _, mean_actions = mean_and_std(parameters, inputs)
        return mean_actions, mean_actions, streams

    @torch.no_grad()
    def random(parameters: Any, streams: Streams, inputs: Inputs[Tensor]) -> tuple[Tensor, Tensor, Streams]:
        _, _, mean_actions = mean_and_std(parameters, inputs)
        uniform = torch.rand(mean_actions.shape, generator=streams.exploration, dtype=mean_actions.dtype, device=mean_actions.device)
        return to_box(2.0 * uniform - 1.0, *bounds), mean_actions, streams

    @torch.no_grad()
    def sampled(parameters: Any, streams: Streams, inputs: Inputs[Tensor]) -> tuple[Tensor, Tensor, Streams]:
        mean, raw_log_std, mean_actions = mean_and_std(parameters, inputs)
        noise = torch.randn(mean.shape, generator=streams.exploration, dtype=mean.dtype, device=mean.device)
        actions, _ = squash(mean, bound_log_std(raw_log_std), noise)
        return to_box(actions, *bounds), mean_actions, streams

    return {"greedy": greedy, "random": random, "sampled": sampled}
