"""Models of your own, in PyTorch: a policy with a memory, and critics without.

A model is any torch.nn.Module. With a method `initial_carry` it is recurrent: it is called with sequences, (time, batch, ...), and with the
carry before them, and returns the carry after them. The carry may be an array or a tuple or dict of arrays, (batch, ...) each.
"""

import os

import torch
from torch import nn

from sacref import envs, evaluate, training
from sacref.envs.partial import HideVelocities, PrivilegedState
from sacref.envs.states import state_space_of
from sacref.torch import SAC_RNN, ReplayMemory

STEPS = int(os.environ.get("STEPS", 5_000))


class Policy(nn.Module):
    """Remembers a running mean of what it saw, with a rate for each feature that it learns."""

    def __init__(self, observations, actions, features=32):
        super().__init__()
        self.see = nn.Linear(observations, features)
        self.rate = nn.Parameter(torch.linspace(-2.0, 2.0, features))
        self.decide = nn.Sequential(nn.Linear(2 * features, 64), nn.ReLU(), nn.Linear(64, 2 * actions))

    def initial_carry(self, batch):
        return self.rate.new_zeros(batch, self.rate.shape[0])

    def forward(self, inputs, carry):
        # Beside these there are inputs["previous_actions"], (time, batch, action), and inputs["previous_rewards"], (time, batch).
        seen = torch.tanh(self.see(inputs["observations"]))
        remembered = []
        for now in seen:
            carry = carry + torch.sigmoid(self.rate) * (now - carry)
            remembered.append(carry)
        mean, log_std = self.decide(torch.cat([seen, torch.stack(remembered)], dim=-1)).chunk(2, dim=-1)
        return mean, log_std, carry


class Critic(nn.Module):
    """Without a carry: called with single steps, (batch, ...). Actions are in (-1, 1); one value for each row is returned."""

    def __init__(self, observations, actions):
        super().__init__()
        self.value = nn.Sequential(nn.Linear(observations + actions, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))

    def forward(self, inputs, actions):
        # The critics see the angle and the speed, the policy the angle alone; see asymmetric.py.
        return self.value(torch.cat([inputs["states"], actions], dim=-1))[..., 0]


wrappers = [PrivilegedState, HideVelocities]
pendulum = envs.make("Pendulum-v1", 1, seed=0, wrappers=wrappers)
state_space = state_space_of(pendulum)
torch.manual_seed(0)
agent = SAC_RNN(
    models={"policy": Policy(2, 1), "critic_1": Critic(3, 1), "critic_2": Critic(3, 1)},
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
