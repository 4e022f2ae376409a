"""Floating-point operations of a gradient step: its matrix products, counted exactly; a multiplication and an addition are two.

The rest of a step (activations, Adam, targets) is linear in the activations or the parameters, and is left out.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

GFLOPS = {"cpu_core": 40.0, "gpu": 5_000.0}
"""For the estimate: billions of operations in a second of a core, and of an accelerator."""


def update_flops(*, observation: int, action: int, hidden: Sequence[int], batch: int, critics: int = 2) -> int:
    """Count the operations of one gradient step of feed-forward networks; nothing that is not used is computed.

    Forward, a layer of i inputs and o outputs costs 2 i o an element of the batch; backward the same once for its weights' gradient and
    once for its inputs'. Networks' inputs need no gradient, nor do the critics' weights in the actor's pass, whose gradient leaves
    the critics by the action alone.

    Args:
        observation, action: sizes. hidden: widths of every network's hidden layers.
        batch: transitions. critics: how many.
    """
    policy, first_of_policy = _network([observation, *hidden, 2 * action])
    critic, first_of_critic = _network([observation + action, *hidden, 1])
    action_columns = first_of_critic * action // (observation + action)

    target = policy + critics * critic
    critic_step = critics * (critic + 2 * critic - first_of_critic)
    through_critics = critics * (critic + critic - first_of_critic + action_columns)
    actor_step = policy + through_critics + 2 * policy - first_of_policy
    return batch * (target + critic_step + actor_step)


class RecurrentFlops(NamedTuple):
    """Operations of one gradient step of recurrent networks."""

    total: int
    recurrence: int
    """The part of `total` in products of a hidden state with its weights: a step of the sequence at a time, each after the one before."""
    cell_steps: int
    """Number of steps that the cells take one after another: forward, and backward where a gradient is taken."""


def recurrent_update_flops(
    *, observation: int, action: int, hidden: Sequence[int], size: int, gates: int, sequence_length: int, batch: int, critics: int = 2
) -> RecurrentFlops:
    """Count the operations of one gradient step of `default_models(recurrent=...)`; nothing that is not used is computed.

    Each network has a cell over observation and previous action, and a perceptron over the cell's output and the observation (and the
    critics' action). The update asks for the steps before the actions and for those after them: for those, the cell takes a step more.
    Backward, a cell's gradient passes from each step to the one before, and none is needed of its input. The perceptron's is needed of the
    cell's output. In the actor's pass the action enters above the critics' cells, so that no gradient is needed of them.

    Args:
        observation, action: sizes. hidden: widths of every network's hidden layers.
        size: of the cell's hidden state.
        gates: number of gates, 3 for a GRU.
        sequence_length: steps. batch: sequences. critics: how many.
    """
    policy, first_of_policy = _network([size + observation, *hidden, 2 * action])
    critic, first_of_critic = _network([size + observation + action, *hidden, 1])
    policy_from_cell = first_of_policy * size // (size + observation)
    critic_from_cell, critic_from_action = (first_of_critic * width // (size + observation + action) for width in (size, action))
    from_input, from_hidden = (2 * width * gates * size for width in (observation + action, size))

    steps, passes = sequence_length, 1 + critics
    # Forward the policy and the target critics over the successors; the critics, the policy and the critics again over the steps.
    forward = passes * (steps + 1) + (passes + critics) * steps
    # Backward the critics and the policy: the weights of each step, and the hidden states but the first.
    weights, states = passes * steps, passes * (steps - 1)
    cells = from_input * (forward + weights)
    recurrence = from_hidden * (forward + weights + states)
    perceptrons = steps * (
        policy * 3
        - first_of_policy
        + policy_from_cell  # the actor's, forward and backward
        + policy
        + critics * (critic + critic * 3 - first_of_critic + critic_from_cell)  # the targets', the critics'
        + critics * (critic * 2 - first_of_critic + critic_from_action)
    )
    return RecurrentFlops(batch * (cells + recurrence + perceptrons), batch * recurrence, forward + weights)


def product_flops(rows: int, inner: int, columns: int) -> int:
    """Count the operations of the product of a matrix of rows x inner and one of inner x columns."""
    return 2 * rows * inner * columns


def matmul_flops(size: int) -> int:
    """Count the operations of the product of two square matrices."""
    return product_flops(size, size, size)


def _network(widths: Sequence[int]) -> tuple[int, int]:
    """Return the forward operations for each element, of all layers and of the first."""
    layers = [2 * inputs * outputs for inputs, outputs in pairwise(widths)]
    return sum(layers), layers[0]
