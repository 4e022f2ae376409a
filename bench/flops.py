"""How many floating-point operations a gradient step needs: its matrix products, counted exactly; a multiplication and an addition are two.

What else a step does (activations, Adam, targets) is linear in the activations or the parameters, and is left out.
"""

from collections.abc import Sequence
from itertools import pairwise


def update_flops(*, observation: int, action: int, hidden: Sequence[int], batch: int, critics: int = 2) -> int:
    """Operations of one gradient step of feed-forward networks, if nothing is computed that is not used.

    Forward, a layer of i inputs and o outputs costs 2 i o an element of the batch; backward the same once for its weights' gradient and
    once for its inputs'. No gradient is needed of a network's input, nor of the critics' weights in the actor's pass, whose gradient
    leaves the critics by the action alone.

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


def matmul_flops(size: int) -> int:
    """Operations of the product of two square matrices."""
    return 2 * size**3


def _network(widths: Sequence[int]) -> tuple[int, int]:
    """Forward operations an element, of all layers and of the first."""
    layers = [2 * inputs * outputs for inputs, outputs in pairwise(widths)]
    return sum(layers), layers[0]
