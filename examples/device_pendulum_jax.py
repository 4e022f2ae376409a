"""Environments on the device: 4,096 pendulums as one JAX simulation, which the training loop never copies to the host.

A `gymnasium.vector.VectorEnv` whose arrays are JAX's. This one is Gymnasium's Pendulum-v1 in a few lines, its step one compiled call;
`autoreset_mode` says what happens at an episode's end.
"""

import os
from functools import partial

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

import sacref

ENVS = int(os.environ.get("ENVS", 4_096))
STEPS = int(os.environ.get("STEPS", 200 * ENVS))


def observe(state):
    angle, velocity = state.T
    return jnp.stack([jnp.cos(angle), jnp.sin(angle), velocity], axis=1)


@jax.jit
def begin(key, state, steps, mask):
    """Begin an episode where `mask`, (envs,), is True."""
    key, drawn = jax.random.split(key)
    fresh = jax.random.uniform(drawn, state.shape, state.dtype, -1.0, 1.0) * jnp.array([[jnp.pi, 1.0]], state.dtype)
    return key, jnp.where(mask[:, None], fresh, state), jnp.where(mask, 0, steps)


@partial(jax.jit, static_argnums=(5, 6))
def advance(key, state, steps, ended, actions, episode_steps, mode):
    """Return key, state, steps and ended after a step, and what the step returns."""
    angle, velocity = state.T
    torque = jnp.clip(actions[:, 0], -2.0, 2.0)
    error = jnp.remainder(angle + jnp.pi, 2 * jnp.pi) - jnp.pi
    rewards = -(error**2 + 0.1 * velocity**2 + 0.001 * torque**2)
    velocity = jnp.clip(velocity + (15.0 * jnp.sin(angle) + 3.0 * torque) * 0.05, -8.0, 8.0)
    state, steps = jnp.stack([angle + velocity * 0.05, velocity], axis=1), steps + 1
    truncated, infos = steps >= episode_steps, {}
    if mode == AutoresetMode.NEXT_STEP:  # `ended` are reset by this step, which does nothing else there
        key, state, steps = begin(key, state, steps, ended)
        rewards, truncated = jnp.where(ended, 0.0, rewards), truncated & ~ended
    elif mode == AutoresetMode.SAME_STEP:
        infos = {"final_obs": observe(state), "_final_obs": truncated}
        key, state, steps = begin(key, state, steps, truncated)
    return (key, state, steps, truncated), (observe(state), rewards, jnp.zeros_like(truncated), truncated, infos)


class Pendulums(VectorEnv):
    """Pendulums that swing up; an episode is cut after `episode_steps`."""

    single_observation_space = gymnasium.spaces.Box(-8.0, 8.0, (3,), np.float32)
    single_action_space = gymnasium.spaces.Box(-2.0, 2.0, (1,), np.float32)

    def __init__(self, num_envs, seed=0, episode_steps=200, autoreset_mode=AutoresetMode.SAME_STEP):
        self.num_envs, self.episode_steps, self.mode = num_envs, episode_steps, autoreset_mode
        self.metadata = {"autoreset_mode": autoreset_mode}
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.key = jax.random.key(seed)
        self.state, self.steps = jnp.zeros((num_envs, 2)), jnp.zeros(num_envs, jnp.int32)

    def reset(self, *, seed=None, options=None):
        if seed is not None:
            self.key = jax.random.key(seed)
        mask = (options or {}).get("reset_mask", jnp.ones(self.num_envs, bool))  # (envs,), an array of JAX
        self.key, self.state, self.steps = begin(self.key, self.state, self.steps, mask)
        self.ended = jnp.zeros(self.num_envs, bool)
        return observe(self.state), {}

    def step(self, actions):
        now = self.key, self.state, self.steps, self.ended
        (self.key, self.state, self.steps, self.ended), returned = advance(*now, actions, self.episode_steps, self.mode)
        return returned


if __name__ == "__main__":
    result = sacref.train(
        backend="jax",  # or "torch", which takes arrays of JAX through DLPack
        vector_env=Pendulums,
        num_envs=ENVS,
        steps=STEPS,
        memory_capacity=100 * ENVS,
        hidden=(64, 64),
        # One gradient step for each environment step would be 4,096 between two steps of the simulation.
        cfg={"gradient_steps": 8, "batch_size": min(ENVS, 1_024), "learning_rate": 1e-3, "random_timesteps": 20, "learning_starts": 20},
        evaluation_interval=max(1, STEPS // 2),
    )
    for step, evaluation in result.evaluations:
        print(f"after {step} steps: mean return {evaluation.mean:.0f}")
