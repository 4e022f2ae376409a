"""Models of your own, in Flax NNX: a policy with a memory, and critics without.

A model is any flax.nnx.Module. With a method `initial_carry` it is recurrent: it is called with sequences, (time, batch, ...), and with the
carry before them, and returns the carry after them. The carry may be an array or a tuple or dict of arrays, (batch, ...) each.
"""

import os

import jax
import jax.numpy as jnp
from flax import nnx

from sacref import envs, evaluate, training
from sacref.envs.partial import HideVelocities, PrivilegedState
from sacref.envs.states import state_space_of
from sacref.jax import SAC_RNN, ReplayMemory

STEPS = int(os.environ.get("STEPS", 5_000))


class Policy(nnx.Module):
    """Remembers a running mean of what it saw, with a rate for each feature that it learns."""

    def __init__(self, observations, actions, rngs, features=32):
        self.see = nnx.Linear(observations, features, rngs=rngs)
        self.rate = nnx.Param(jnp.linspace(-2.0, 2.0, features))
        self.inner = nnx.Linear(2 * features, 64, rngs=rngs)
        self.outer = nnx.Linear(64, 2 * actions, rngs=rngs)

    def initial_carry(self, batch):
        return jnp.zeros((batch, self.rate.shape[0]))

    def __call__(self, inputs, carry):
        # Beside these there are inputs["previous_actions"], (time, batch, action), and inputs["previous_rewards"], (time, batch).
        seen = jnp.tanh(self.see(inputs["observations"]))
        rate = jax.nn.sigmoid(self.rate[...])[None]

        def remember(carry, now):
            carry = carry + rate * (now - carry)
            return carry, carry

        carry, remembered = jax.lax.scan(remember, carry, seen)
        decided = self.outer(nnx.relu(self.inner(jnp.concatenate([seen, remembered], axis=-1))))
        mean, log_std = jnp.split(decided, 2, axis=-1)
        return mean, log_std, carry


class Critic(nnx.Module):
    """Without a carry: called with single steps, (batch, ...). Actions are in (-1, 1); one value for each row is returned."""

    def __init__(self, observations, actions, rngs):
        self.first = nnx.Linear(observations + actions, 64, rngs=rngs)
        self.second = nnx.Linear(64, 64, rngs=rngs)
        self.third = nnx.Linear(64, 1, rngs=rngs)

    def __call__(self, inputs, actions):
        # The critics see the angle and the speed, the policy the angle alone; see asymmetric.py.
        seen = jnp.concatenate([inputs["states"], actions], axis=-1)
        return self.third(nnx.relu(self.second(nnx.relu(self.first(seen)))))[..., 0]


wrappers = [PrivilegedState, HideVelocities]
pendulum = envs.make("Pendulum-v1", 1, seed=0, wrappers=wrappers)
state_space = state_space_of(pendulum)
rngs = nnx.Rngs(0)
agent = SAC_RNN(
    models={"policy": Policy(2, 1, rngs), "critic_1": Critic(3, 1, rngs), "critic_2": Critic(3, 1, rngs)},
    memory=ReplayMemory(STEPS, num_envs=1),
    observation_space=pendulum.single_observation_space,
    state_space=state_space,
    action_space=pendulum.single_action_space,
    cfg={
        "batch_size": 32,
        "sequence_length": 16,
        "learning_rate": 1e-3,
        "initial_entropy_value": 1.0,
        "random_timesteps": STEPS // 10,
        "learning_starts": STEPS // 10,
    },
)
training.run(agent, pendulum, timesteps=STEPS, seed=0, state_space=state_space)
evaluation = evaluate(agent, envs.make("Pendulum-v1", 10, wrappers=wrappers), episodes=10, state_space=state_space)
print(f"mean return {evaluation.mean:.0f} after {STEPS} steps")
