"""Environments on the device: 4,096 pendulums as one PyTorch simulation, which the training loop never copies to the host.

A `gymnasium.vector.VectorEnv` whose arrays are tensors. This one is Gymnasium's Pendulum-v1 in a few lines; `autoreset_mode` says what
happens at an episode's end.
"""

import math
import os

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

import sacref

ENVS = int(os.environ.get("ENVS", 4_096))
STEPS = int(os.environ.get("STEPS", 200 * ENVS))


class Pendulums(VectorEnv):
    """Pendulums that swing up; an episode is cut after `episode_steps`."""

    single_observation_space = gymnasium.spaces.Box(-8.0, 8.0, (3,), np.float32)
    single_action_space = gymnasium.spaces.Box(-2.0, 2.0, (1,), np.float32)

    def __init__(self, num_envs, seed=0, episode_steps=200, autoreset_mode=AutoresetMode.SAME_STEP, device=None):
        self.num_envs, self.episode_steps, self.mode = num_envs, episode_steps, autoreset_mode
        self.metadata = {"autoreset_mode": autoreset_mode}
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.generator = torch.Generator(self.device).manual_seed(seed)

    def reset(self, *, seed=None, options=None):
        if seed is not None:
            self.generator.manual_seed(seed)
        everywhere = torch.ones(self.num_envs, dtype=torch.bool, device=self.device)
        mask = (options or {}).get("reset_mask", everywhere)  # (envs,), a tensor of this device
        if not hasattr(self, "state"):
            self.state = torch.zeros(self.num_envs, 2, device=self.device)
            self.steps = torch.zeros(self.num_envs, device=self.device)
        self.ended = ~everywhere
        self.begin(mask)
        return self.observations(), {}

    def begin(self, mask):
        """Begin an episode where `mask` is True. Nothing here asks the device whether it is anywhere."""
        fresh = 2.0 * torch.rand(self.num_envs, 2, generator=self.generator, device=self.device) - 1.0
        fresh = fresh * torch.tensor([math.pi, 1.0], device=self.device)
        self.state = torch.where(mask[:, None], fresh, self.state)
        self.steps = torch.where(mask, 0.0, self.steps)

    def observations(self):
        angle, velocity = self.state.unbind(1)
        return torch.stack([angle.cos(), angle.sin(), velocity], dim=1)

    def step(self, actions):
        resetting = self.ended  # under NEXT_STEP, by this step, which does nothing else there
        angle, velocity = self.state.unbind(1)
        torque = actions[:, 0].clamp(-2.0, 2.0)
        error = torch.remainder(angle + math.pi, 2 * math.pi) - math.pi
        rewards = -(error**2 + 0.1 * velocity**2 + 0.001 * torque**2)
        velocity = (velocity + (15.0 * angle.sin() + 3.0 * torque) * 0.05).clamp(-8.0, 8.0)
        self.state = torch.stack([angle + velocity * 0.05, velocity], dim=1)
        self.steps = self.steps + 1
        truncated, infos = self.steps >= self.episode_steps, {}
        if self.mode == AutoresetMode.NEXT_STEP:
            self.begin(resetting)
            rewards, truncated = torch.where(resetting, 0.0, rewards), truncated & ~resetting
            self.ended = truncated
        elif self.mode == AutoresetMode.SAME_STEP:
            infos = {"final_obs": self.observations(), "_final_obs": truncated}
            self.begin(truncated)
        return self.observations(), rewards, torch.zeros_like(truncated), truncated, infos


if __name__ == "__main__":
    result = sacref.train(
        backend="torch",  # or "jax", which takes tensors through DLPack
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
