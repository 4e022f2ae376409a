"""A few updates beside Stable-Baselines3's SAC, from the same weights, batches and noise: losses, parameters and temperature.

What is adjusted in Stable-Baselines3 so that the two compute the same thing, and nothing else:

- Its squash correction log(1 - a^2 + 1e-6) becomes the softplus form of the same term (TRAPS 5); the 1e-6 alone moves the log-prob.
- Its sampling takes the noise that we hand it: first for the policy's actions, then for the target's (it samples in this order).
- Its batch comes from us and not from its replay buffer.
- Its networks and its log alpha are turned into float64, and its cast of observations to float32 is switched off. In float32 the first
  step of Adam, g / (|g| + 1e-8), turns the rounding of a gradient near 1e-8 into a difference of the parameters beyond the tolerance.

What needs no adjustment although it reads differently: it steps the temperature first, but with the log-prob of the unchanged policy, and
the alpha of its losses is the one before that step; its critic loss is 0.5 * sum of mean squared errors, our sum of mean half squares; it
has an Adam per network group, as we have.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import gymnasium
import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("stable_baselines3")
pytest.importorskip("torch")

import stable_baselines3
import torch
from stable_baselines3.common import distributions, logger, policies, type_aliases

from sacref.algorithm.data import Batch, Noise
from sacref.parity.drivers import BackendAgent, Implementation, Oracle, Problem, installed_backends
from sacref.parity.networks import Arrays

PROBLEM = Problem(
    observation=17, action=6, hidden=(64, 48), batch_size=64, replay_size=512, initial_entropy_value=0.7, learning_rate=(1e-3, 1e-3, 1e-3)
)
UPDATES = 3
EVERY = slice(None)
Read = Callable[[Arrays], NDArray[Any]]


class Still(gymnasium.Env[NDArray[np.float64], NDArray[np.float32]]):
    """Spaces without an environment: nothing is stepped."""

    observation_space = gymnasium.spaces.Box(-math.inf, math.inf, (PROBLEM.observation,), np.float64)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (PROBLEM.action,), np.float32)


def part_of(name: str, outputs: slice, state: Arrays) -> NDArray[Any]:
    """Some of a layer's outputs, the last axis of its kernel and of its bias."""
    return state[name][..., outputs]


def new_model() -> Any:
    """Stable-Baselines3's SAC for `PROBLEM`."""
    return stable_baselines3.SAC(
        "MlpPolicy",
        Still(),
        learning_rate=PROBLEM.learning_rate[0],
        buffer_size=1,
        tau=PROBLEM.polyak,
        gamma=PROBLEM.discount_factor,
        ent_coef=f"auto_{PROBLEM.initial_entropy_value}",
        policy_kwargs={"net_arch": list(PROBLEM.hidden)},
        device="cpu",
        seed=0,
    )


class Peer:
    """Stable-Baselines3's SAC, its weights under the common names."""

    def __init__(self, state: Arrays) -> None:
        self.model = new_model()
        self.model.set_logger(logger.Logger(None, []))
        self.model.policy.double()
        self.model.log_ent_coef.data = torch.as_tensor(state["log_alpha"]).reshape(1).clone()
        with torch.no_grad():
            for tensor, read in self.places().values():
                tensor.copy_(torch.as_tensor(read(state).T))

    def places(self) -> dict[str, tuple[torch.Tensor, Read]]:
        """Parameter -> its tensor, and how to read the transpose of its value from the common state."""
        model, depth = self.model, len(PROBLEM.hidden)
        networks = {"policy": model.actor.latent_pi}
        for number in range(2):
            networks[f"critic_{number + 1}"] = model.critic.q_networks[number]
            networks[f"target_critic_{number + 1}"] = model.critic_target.q_networks[number]
        layers = [(name, f"hidden.{i}", EVERY, network[2 * i]) for name, network in networks.items() for i in range(depth)]
        layers += [(name, "head", EVERY, network[2 * depth]) for name, network in networks.items() if name != "policy"]
        # Its head is two layers, ours is one: mean first.
        layers += [("policy", "head", slice(None, PROBLEM.action), model.actor.mu)]
        layers += [("policy", "head", slice(PROBLEM.action, None), model.actor.log_std)]
        found: dict[str, tuple[torch.Tensor, Read]] = {}
        for name, layer, part, own in layers:
            for kind, tensor in (("kernel", own.weight), ("bias", own.bias)):
                found[f"{name}.{layer}.{kind} {part}"] = (tensor, partial(part_of, f"{name}.{layer}.{kind}", part))
        return found

    def update(self, batch: Batch[NDArray[Any]]) -> dict[str, float]:
        """One update; returns its losses under our names."""
        column = {name: torch.as_tensor(value).double().reshape(-1, 1) for name, value in (("r", batch.rewards), ("t", batch.terminated))}
        samples = type_aliases.ReplayBufferSamples(
            torch.as_tensor(batch.observations),
            torch.as_tensor(batch.actions),
            torch.as_tensor(batch.next_observations),
            column["t"],
            column["r"],
        )
        self.model.replay_buffer.sample = lambda batch_size, env: samples
        self.model.train(gradient_steps=1, batch_size=PROBLEM.batch_size)
        logged = self.model.logger.name_to_value
        names = {"critic_loss": "critic_loss", "policy_loss": "actor_loss", "entropy_loss": "ent_coef_loss", "alpha": "ent_coef"}
        return {ours: float(logged[f"train/{theirs}"]) for ours, theirs in names.items()}


@pytest.fixture
def noises(monkeypatch: pytest.MonkeyPatch) -> list[NDArray[Any]]:
    """Adjust Stable-Baselines3 as the head of this file says. Its next samples use the noise in this list, first in, first out."""
    queue: list[NDArray[Any]] = []

    def sample(self: Any) -> torch.Tensor:
        normal = self.distribution
        self.gaussian_actions = normal.mean + normal.stddev * torch.as_tensor(queue.pop(0))
        return torch.tanh(self.gaussian_actions)

    def log_prob(self: Any, actions: torch.Tensor, gaussian_actions: torch.Tensor) -> torch.Tensor:
        u = gaussian_actions
        correction = 2.0 * (math.log(2.0) - u - torch.nn.functional.softplus(-2.0 * u))
        return torch.sum(self.distribution.log_prob(u) - correction, dim=1)

    squashed = distributions.SquashedDiagGaussianDistribution
    monkeypatch.setattr(squashed, "sample", sample)
    monkeypatch.setattr(squashed, "log_prob", log_prob)
    monkeypatch.setattr(policies, "preprocess_obs", lambda obs, space, normalize_images: obs)
    return queue


def batches() -> Iterator[tuple[Batch[NDArray[Any]], Noise[NDArray[Any]]]]:
    for batch, noise in itertools.islice(PROBLEM.draws(), UPDATES):
        assert isinstance(batch, Batch)
        yield batch, noise


@pytest.mark.parametrize("name", [*installed_backends(), "numpy"])
def test_updates_agree_with_stable_baselines3(name: str, noises: list[NDArray[Any]]) -> None:
    state = PROBLEM.initial_state()
    ours: Implementation = Oracle(PROBLEM, state) if name == "numpy" else BackendAgent(name, PROBLEM, state)
    peer = Peer(state)
    for batch, noise in batches():
        noises[:] = [noise.actions, noise.next_actions]
        losses = peer.update(batch)
        outcome = ours.update(batch, noise)
        assert not noises
        for loss, value in losses.items():
            assert float(outcome.metrics[loss]) == pytest.approx(value, rel=1e-10), loss
        assert float(outcome.state["log_alpha"]) == pytest.approx(float(peer.model.log_ent_coef.detach()), rel=1e-10)
        for parameter, (tensor, read) in peer.places().items():
            theirs = tensor.detach().numpy()
            difference = np.abs(read(outcome.state).T - theirs).max() / np.abs(theirs).max()
            assert difference < 1e-10, (parameter, difference)
            assert np.abs(theirs - read(state).T).max() > 1e-7, f"{parameter} was not trained"
