"""One gradient step of Soft Actor-Critic: critics, actor, temperature, target networks (Haarnoja et al. 2018b, algorithm 1)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from jaxtyping import Float
from torch import Tensor as Array

from sacref.spec import actor_loss, bound_log_std, critic_loss, polyak, squash, td_target, temperature_loss
from sacref.spec.arrays import namespace
from sacref.torch.optim import Optimizer, tree_map, value_and_grad
from sacref.torch.weights import Parameters
from sacref.types import Batch, Inputs, Metrics, Noise


class Policy(Protocol):
    """A policy network as a function of its parameters: -> mean and raw log_std, each `(batch, action)`."""

    def __call__(self, parameters: Parameters, inputs: Inputs[Array], /) -> tuple[Array, Array]: ...


class Critic(Protocol):
    """A critic network as a function of its parameters: -> values `(batch,)`."""

    def __call__(self, parameters: Parameters, inputs: Inputs[Array], actions: Array, /) -> Array: ...


class State(NamedTuple):
    """All that a gradient step reads and writes."""

    policy: Parameters
    critics: dict[str, Parameters]
    target_critics: dict[str, Parameters]
    log_alpha: Array
    policy_optimizer: Any
    critic_optimizer: Any
    temperature_optimizer: Any


@dataclass(frozen=True, eq=False)
class Update:
    """The update as a function of (state, batch, noise); deterministic, since every random number is an argument."""

    policy: Policy
    critics: Mapping[str, Critic]
    policy_optimizer: Optimizer
    critic_optimizer: Optimizer
    temperature_optimizer: Optimizer
    discount_factor: float
    polyak: float
    target_entropy: float

    @torch.no_grad()
    def __call__(self, state: State, batch: Batch[Array], noise: Noise[Array]) -> tuple[State, Metrics[Array]]:
        """Return the state after one gradient step, and what was measured on the way.

        Args:
            state: before the step. batch: transitions, actions in (-1, 1). noise: standard normal, `(batch, action)` each.
        """
        xp = namespace(batch.rewards)
        # The alpha of this whole update is the one before its temperature step.
        alpha = xp.exp(state.log_alpha)
        discount = self.discount_factor * xp.astype(~batch.terminated, batch.rewards.dtype)

        # Critics: towards the soft Bellman target, which is a constant of their objective.
        next_actions, next_log_prob = self.sample(state.policy, batch.next_inputs, noise.next_actions)
        next_q = self.evaluate(state.target_critics, batch.next_inputs, next_actions)
        target = td_target(batch.rewards, discount, next_q, next_log_prob, alpha)

        def critic_objective(critics: dict[str, Parameters]) -> tuple[Array, Array]:
            q = self.evaluate(critics, batch.inputs, batch.actions)
            return critic_loss(q, target).mean(-1).sum(), q

        (critic_value, q), gradients = value_and_grad(critic_objective, state.critics)
        critics, critic_optimizer = self.critic_optimizer.step(state.critics, gradients, state.critic_optimizer)

        # Actor: sees the new critics (Brax's sees the old ones).
        def actor_objective(policy: Parameters) -> tuple[Array, Array]:
            actions, log_prob = self.sample(policy, batch.inputs, noise.actions)
            q = self.evaluate(critics, batch.inputs, actions)
            return actor_loss(q, log_prob, alpha).mean(), log_prob

        (actor_value, log_prob), gradients = value_and_grad(actor_objective, state.policy)
        policy, policy_optimizer = self.policy_optimizer.step(state.policy, gradients, state.policy_optimizer)

        # Temperature: judged by the entropy of the policy before its step.
        def temperature_objective(log_alpha: Array) -> tuple[Array, Array]:
            return temperature_loss(log_alpha, log_prob, self.target_entropy).mean(), log_alpha

        (temperature_value, _), gradients = value_and_grad(temperature_objective, state.log_alpha)
        log_alpha, temperature_optimizer = self.temperature_optimizer.step(state.log_alpha, gradients, state.temperature_optimizer)

        # Target networks: follow the new critics.
        target_critics = tree_map(lambda t, c: polyak(t, c, self.polyak), state.target_critics, critics)

        metrics = {
            "critic_loss": critic_value,
            "policy_loss": actor_value,
            "entropy_loss": temperature_value,
            "alpha": alpha,
            "entropy": -log_prob.mean(),
            "q_max": xp.max(q, axis=-1),
            "q_min": xp.min(q, axis=-1),
            "q_mean": q.mean(-1),
            "target_max": target.max(),
            "target_min": target.min(),
            "target_mean": target.mean(),
        }
        return State(policy, critics, target_critics, log_alpha, policy_optimizer, critic_optimizer, temperature_optimizer), metrics

    def sample(
        self, policy: Parameters, inputs: Inputs[Array], noise: Float[Array, "*batch action"]
    ) -> tuple[Float[Array, "*batch action"], Float[Array, "*batch"]]:
        """An action in (-1, 1) and its log-density."""
        mean, raw_log_std = self.policy(policy, inputs)
        return squash(mean, bound_log_std(raw_log_std), noise)

    def evaluate(
        self, critics: dict[str, Parameters], inputs: Inputs[Array], actions: Float[Array, "*batch action"]
    ) -> Float[Array, "critic *batch"]:
        """The values of all critics."""
        xp = namespace(actions)
        return xp.stack([critic(critics[name], inputs, actions) for name, critic in self.critics.items()])
