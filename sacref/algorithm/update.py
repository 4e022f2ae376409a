"""One gradient step of Soft Actor-Critic: critics, actor, temperature, target networks (Haarnoja et al. 2018b, algorithm 1)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Generic, NamedTuple, Protocol

from jaxtyping import Float

from sacref.algorithm.data import Draws, Metrics, Noise, Sampled, Seen
from sacref.algorithm.optimizer import OptimizerT, Parameters
from sacref.algorithm.tree import Tree, map_leaves
from sacref.spec import actor_loss, bound_log_std, critic_loss, kl_divergence, polyak, squash, td_target, temperature_loss
from sacref.spec.arrays import ArrayT, namespace
from sacref.spec.reduce import REDUCTIONS


class Policy(Protocol[ArrayT]):
    """A policy network as a function of its parameters -> mean and raw log_std, each `(*batch, action)`."""

    def __call__(self, parameters: Parameters[ArrayT], inputs: Seen[ArrayT], /) -> tuple[ArrayT, ArrayT]: ...


class Critic(Protocol[ArrayT]):
    """A critic network as a function of its parameters, and of draws for its random layers -> values `(*batch,)`."""

    def __call__(self, parameters: Parameters[ArrayT], inputs: Seen[ArrayT], actions: ArrayT, /, *draws: ArrayT) -> ArrayT: ...


class State(NamedTuple, Generic[ArrayT]):
    """All that a gradient step reads and writes."""

    policy: Parameters[ArrayT]
    critics: dict[str, Parameters[ArrayT]]
    target_critics: dict[str, Parameters[ArrayT]]
    log_alpha: ArrayT
    policy_optimizer: Tree
    critic_optimizer: Tree
    temperature_optimizer: Tree


@dataclass(frozen=True, eq=False)
class Update(Generic[ArrayT, OptimizerT]):
    """The update as a function of (state, batch, noise); deterministic, since every random number is an argument."""

    policy: Policy[ArrayT]
    critics: Mapping[str, Critic[ArrayT]]
    policy_optimizer: OptimizerT
    critic_optimizer: OptimizerT
    temperature_optimizer: OptimizerT
    discount_factor: float | ArrayT
    polyak: float
    target_entropy: float | ArrayT
    mean: Callable[[ArrayT, ArrayT | None], ArrayT]
    """Mean of a loss, `(*leading, *batch)`, over the rows that count (`mask`); `batch_mean`."""
    policy_value: Callable[[ArrayT], ArrayT]
    """The actor's view of the critics, `(critic, *batch)`, of which it takes the minimum: all of them, or their mean alone."""

    def __call__(self, state: State[ArrayT], batch: Sampled[ArrayT], noise: Noise[ArrayT]) -> tuple[State[ArrayT], Metrics[ArrayT]]:
        """Return the state after one gradient step, on transitions with actions in (-1, 1), and what was measured on the way."""
        xp = namespace(batch.rewards)
        alpha = xp.exp(state.log_alpha)  # of this whole update: the one before its temperature step
        gamma = self.discount_factor if batch.discounts is None else batch.discounts
        discount = gamma * xp.astype(~batch.terminated, batch.rewards.dtype)

        # Critics: towards the soft Bellman target, which is a constant of their objective.
        next_actions, next_log_prob = squash(*self.distribution(state.policy, batch.next_inputs), noise.next_actions)
        next_q = self.evaluate(state.target_critics, batch.next_inputs, next_actions, noise.dropout[0])
        next_q = next_q if noise.target_critics is None else next_q[noise.target_critics]
        target = td_target(batch.rewards, discount, next_q, next_log_prob, alpha)

        def critic_objective(critics: dict[str, Parameters[ArrayT]]) -> tuple[ArrayT, ArrayT]:
            q = self.evaluate(critics, batch.inputs, batch.actions, noise.dropout[1])
            return xp.sum(self.mean(critic_loss(q, target), batch.mask)), q

        critic_value, q, critics, critic_optimizer = self.critic_optimizer.minimise(critic_objective, state.critics, state.critic_optimizer)

        # Actor: sees the new critics (Brax's sees the old ones).
        def actor_objective(policy: Parameters[ArrayT]) -> tuple[ArrayT, tuple[ArrayT, ArrayT, ArrayT]]:
            mean, log_std = self.distribution(policy, batch.inputs)
            actions, log_prob = squash(mean, log_std, noise.actions)
            q = self.policy_value(self.evaluate(critics, batch.inputs, actions, noise.dropout[2]))
            return self.mean(actor_loss(q, log_prob, alpha), batch.mask), (log_prob, mean, log_std)

        actor_value, aux, policy, policy_optimizer = self.policy_optimizer.minimise(actor_objective, state.policy, state.policy_optimizer)
        log_prob, mean, log_std = aux

        # Temperature: judged by the entropy of the policy before its step.
        def temperature_objective(log_alpha: ArrayT) -> tuple[ArrayT, ArrayT]:
            return self.mean(temperature_loss(log_alpha, log_prob, self.target_entropy), batch.mask), log_alpha

        temperature_value, _, log_alpha, temperature_optimizer = self.temperature_optimizer.minimise(
            temperature_objective, state.log_alpha, state.temperature_optimizer
        )

        # Target networks: follow the new critics.
        target_critics = map_leaves(lambda t, c: polyak(t, c, self.polyak), state.target_critics, critics)

        metrics = {
            "critic_loss": critic_value,
            "policy_loss": actor_value,
            "entropy_loss": temperature_value,
            "alpha": alpha,
            "entropy": -self.mean(log_prob, batch.mask),
            **{f"q_{kind}": reduce(q, batch.mask) for kind, reduce in REDUCTIONS.items()},
            **{f"target_{kind}": reduce(target, batch.mask) for kind, reduce in REDUCTIONS.items()},
            **{f"policy_{name}": value for name, value in self.policy_optimizer.measured(policy_optimizer).items()},
            **{f"critic_{name}": value for name, value in self.critic_optimizer.measured(critic_optimizer).items()},
            **{f"entropy_{name}": value for name, value in self.temperature_optimizer.measured(temperature_optimizer).items()},
        }

        # Schedules: an adaptive one asks how far the policy has moved on this batch.
        def divergence() -> ArrayT:
            return self.mean(kl_divergence(mean, log_std, *self.distribution(policy, batch.inputs)), batch.mask)

        policy_optimizer = self.policy_optimizer.adapt(policy_optimizer, divergence)
        critic_optimizer = self.critic_optimizer.adapt(critic_optimizer, divergence)
        temperature_optimizer = self.temperature_optimizer.adapt(temperature_optimizer, divergence)
        return State(policy, critics, target_critics, log_alpha, policy_optimizer, critic_optimizer, temperature_optimizer), metrics

    def distribution(
        self, policy: Parameters[ArrayT], inputs: Seen[ArrayT]
    ) -> tuple[Float[ArrayT, "*batch action"], Float[ArrayT, "*batch action"]]:
        """Return mean and log standard deviation of the policy's Gaussian, before the tanh."""
        mean, raw_log_std = self.policy(policy, inputs)
        return mean, bound_log_std(raw_log_std)

    def evaluate(
        self, critics: dict[str, Parameters[ArrayT]], inputs: Seen[ArrayT], actions: Float[ArrayT, "*batch action"], draws: Draws[ArrayT]
    ) -> Float[ArrayT, "critic *batch"]:
        """Return the values of all critics."""
        return namespace(actions).stack([run(critics[name], inputs, actions, *draws.get(name, ())) for name, run in self.critics.items()])
