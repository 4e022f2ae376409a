"""The whole update once more, by PyTorch's own parts and its automatic differentiation: what the NumPy oracle is held against.

Cells are torch.nn's, the log-density torch.distributions', the steps and rates torch.optim's; none of `sacref.spec` or `sacref.torch`.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.distributions import Normal, TanhTransform, TransformedDistribution, kl_divergence

from sacref.algorithm.data import Noise, Sequences
from sacref.parity.drivers import Problem
from sacref.parity.networks import Arrays
from sacref.parity.oracle import Data, Settings

CELLS = {"rnn": torch.nn.RNN, "gru": torch.nn.GRU, "lstm": torch.nn.LSTM}
GROUPS = ("policy", "critic", "temperature")


def tensor(array: NDArray[Any]) -> Tensor:
    return torch.as_tensor(np.ascontiguousarray(array))


def flat(tree: Any) -> Tensor:
    """The leaves side by side: what is "positions" before what is "velocities"."""
    return torch.cat([tensor(tree["positions"]), tensor(tree["velocities"])], -1) if isinstance(tree, dict) else tensor(tree)


def scheduler(name: str | None, kwargs: dict[str, Any], optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler | None:
    """The schedule of torch.optim that the name stands for, within its first `steps` updates."""
    make = torch.optim.lr_scheduler
    if name == "linear":
        return make.LinearLR(optimizer, 1.0, kwargs["end"], kwargs["steps"])
    if name == "cosine":
        return make.CosineAnnealingLR(optimizer, kwargs["steps"], kwargs["end"] * optimizer.param_groups[0]["lr"])
    if name == "exponential":
        return make.ExponentialLR(optimizer, kwargs["decay"])
    if name == "warm_up":
        return make.LinearLR(optimizer, 1 / kwargs["steps"], 1.0, kwargs["steps"] - 1)
    if name == "piecewise":
        return make.LambdaLR(optimizer, lambda done: kwargs["factors"][np.searchsorted(kwargs["boundaries"], done, side="right")])
    return None


class Reference:
    """Starts where the oracle starts and is fed what it is fed."""

    def __init__(self, problem: Problem, state: Arrays) -> None:
        self.problem = problem
        self.settings: Settings = problem.settings()
        names = [name for name in state if "_optimizer." not in name and name != "gradient_steps"]
        self.leaves = {name: torch.tensor(state[name], requires_grad=True) for name in names}
        online = [name for name in names if not name.startswith("target_")]
        self.groups = {
            "policy": [name for name in online if name.startswith("policy.")],
            "critic": [name for name in online if name.startswith("critic_")],
            "temperature": ["log_alpha"],
        }
        self.optimizers = {
            group: torch.optim.Adam([self.leaves[name] for name in self.groups[group]], lr=rate)
            for group, rate in zip(GROUPS, problem.learning_rate, strict=True)
        }
        self.schedulers = {
            group: scheduler(name, kwargs, self.optimizers[group])
            for group, name, kwargs in zip(GROUPS, problem.schedule, problem.schedule_kwargs, strict=True)
        }
        self.updates = 0

    def update(self, batch: Data, noise: Noise[NDArray[Any]]) -> tuple[Arrays, Arrays]:
        """One update: what was measured, and the gradients."""
        self.updates += 1
        actions, rewards = tensor(batch.actions), tensor(batch.rewards)
        mask = torch.ones_like(rewards, dtype=torch.bool) if batch.mask is None else tensor(batch.mask)
        alpha = self.leaves["log_alpha"].detach().exp()
        number = self.problem.critics

        next_action, next_log_prob = self.sample(batch, 1, noise.next_actions)
        chosen = range(number) if noise.target_critics is None else noise.target_critics.tolist()
        next_q = torch.stack([self.q(f"target_critic_{i + 1}", batch, 1, next_action, noise.dropout[0]) for i in chosen])
        discount = torch.full_like(rewards, self.problem.discount_factor) if batch.discounts is None else tensor(batch.discounts)
        discount = discount * (1 - tensor(batch.terminated).double())
        target = (rewards + discount * (next_q.amin(0) - alpha * next_log_prob)).detach()
        q = torch.stack([self.q(f"critic_{i + 1}", batch, 0, actions, noise.dropout[1]) for i in range(number)])
        critic_loss = sum((torch.nn.functional.mse_loss(each[mask], target[mask]) / 2 for each in q), torch.zeros(()))
        gradients = self.step("critic", critic_loss, True)

        with torch.no_grad():
            before = self.gaussian(batch, 0)
        action, log_prob = self.sample(batch, 0, noise.actions)
        judged = torch.stack([self.q(f"critic_{i + 1}", batch, 0, action, noise.dropout[2]) for i in range(number)])
        value = judged.mean(0) if self.problem.policy_value == "mean" else judged.amin(0)
        policy_loss = (alpha * log_prob - value)[mask].mean()
        due = self.updates % self.problem.policy_delay == 0
        gradients |= self.step("policy", policy_loss, due)
        entropy_loss = (-self.leaves["log_alpha"] * (log_prob.detach() + self.settings.target_entropy))[mask].mean()
        gradients |= self.step("temperature", entropy_loss, due and self.problem.learn_entropy)

        with torch.no_grad():
            for name, leaf in self.leaves.items():
                if name.startswith("target_"):
                    leaf.lerp_(self.leaves[name.removeprefix("target_")], self.problem.polyak)
            divergence = kl_divergence(before, self.gaussian(batch, 0)).sum(-1)[mask].mean()
        self.reschedule(float(divergence), due)
        metrics = {"critic_loss": critic_loss, "policy_loss": policy_loss, "entropy_loss": entropy_loss, "entropy": -log_prob[mask].mean()}
        metrics |= {"target_max": target[mask].max(), "target_min": target[mask].min(), "target_mean": target[mask].mean()}
        metrics |= {"q_max": q[:, mask].amax(1), "q_min": q[:, mask].amin(1), "q_mean": q[:, mask].mean(1), "alpha": alpha}
        return _numpy(metrics), _numpy(gradients)

    def parameters(self) -> Arrays:
        """All that is learned, with the target networks."""
        return _numpy(self.leaves)

    def step(self, group: str, loss: Tensor, due: bool) -> dict[str, Tensor]:
        """Differentiate, clip as configured, and take the step if it is due; returns the gradients before clipping."""
        leaves = [self.leaves[name] for name in self.groups[group]]
        gradients = torch.autograd.grad(loss, leaves, retain_graph=True)
        if due:
            # Not clip_grad_norm_, which adds 1e-6 to the norm.
            clipped = group != "temperature" and self.problem.grad_norm_clip > 0
            norm = torch.nn.utils.get_total_norm(gradients)
            for leaf, gradient in zip(leaves, gradients, strict=True):
                leaf.grad = gradient * (self.problem.grad_norm_clip / norm).clamp(max=1) if clipped else gradient
            self.optimizers[group].step()
        else:
            # PyTorch's schedules warn where no step was ever taken before them.
            vars(self.optimizers[group])["_opt_called"] = True
        return dict(zip(self.groups[group], gradients, strict=True))

    def reschedule(self, divergence: float, due: bool) -> None:
        for group, name, kwargs in zip(GROUPS, self.problem.schedule, self.problem.schedule_kwargs, strict=True):
            entry = self.optimizers[group].param_groups[0]
            if name == "kl_adaptive" and due:
                if divergence > 2 * kwargs["kl_threshold"]:
                    entry["lr"] = np.clip(entry["lr"] / 1.5, 1e-6, 1e-2)
                if divergence < kwargs["kl_threshold"] / 2:
                    entry["lr"] = np.clip(entry["lr"] * 1.5, 1e-6, 1e-2)
            elif (following := self.schedulers[group]) is not None:
                following.step()

    def sample(self, batch: Data, shift: int, noise: NDArray[Any]) -> tuple[Tensor, Tensor]:
        gaussian = self.gaussian(batch, shift)
        tanh = TanhTransform(cache_size=1)
        action = tanh(gaussian.mean + gaussian.stddev * tensor(noise))
        distribution: Any = TransformedDistribution(gaussian, [tanh])
        return action, distribution.log_prob(action).sum(-1)

    def gaussian(self, batch: Data, shift: int) -> Normal:
        mean, log_std = self.network("policy", batch, shift, None, ()).chunk(2, -1)
        return Normal(mean, log_std.clamp(-20, 2).exp())

    def q(self, model: str, batch: Data, shift: int, action: Tensor, draws: Any) -> Tensor:
        return self.network(model, batch, shift, action, draws.get(model.removeprefix("target_"), ())).squeeze(-1)

    def network(self, model: str, batch: Data, shift: int, action: Tensor | None, draws: tuple[NDArray[Any], ...]) -> Tensor:
        """Output before (shift 0) or after (1) the actions of the batch."""

        def layer(name: str) -> Tensor:
            return self.leaves[f"{model}.{name}"]

        privileged = model != "policy" and batch.states is not None
        if isinstance(batch, Sequences):
            seen = flat(batch.states if privileged else batch.observations)
            parts = [self.cell(model, seen, batch)[shift:][: len(batch.rewards)], seen[shift:][: len(batch.rewards)]]
        elif shift:
            parts = [flat(batch.next_states if privileged else batch.next_observations)]
        else:
            parts = [flat(batch.states if privileged else batch.observations)]
        x = torch.cat(parts if action is None else [*parts, action], -1)
        widths = self.problem.hidden if model == "policy" or self.problem.critic_hidden is None else self.problem.critic_hidden
        if self.problem.network == "simba":
            return self.simba(len(widths), x, layer)
        for i in range(len(widths)):
            x = torch.nn.functional.linear(x, layer(f"hidden.{i}.kernel").T, layer(f"hidden.{i}.bias"))
            if draws:
                x = torch.where(tensor(draws[i]) >= self.problem.dropout, x, 0) / (1 - self.problem.dropout)
            if self.problem.layer_norm and model != "policy":
                x = torch.nn.functional.layer_norm(x, x.shape[-1:], layer(f"norms.{i}.scale"), layer(f"norms.{i}.bias"))
            x = torch.relu(x)
        return torch.nn.functional.linear(x, layer("head.kernel").T, layer("head.bias"))

    def simba(self, blocks: int, x: Tensor, layer: Callable[[str], Tensor]) -> Tensor:
        def linear(x: Tensor, name: str) -> Tensor:
            return torch.nn.functional.linear(x, layer(f"{name}.kernel").T, layer(f"{name}.bias"))

        def norm(x: Tensor, i: int) -> Tensor:
            return torch.nn.functional.layer_norm(x, x.shape[-1:], layer(f"norms.{i}.scale"), layer(f"norms.{i}.bias"), 1e-6)

        x = linear(x, "hidden.0")
        for i in range(blocks):
            x = x + linear(torch.relu(linear(norm(x, i), f"expand.{i}")), f"contract.{i}")
        return linear(norm(x, blocks), "head")

    def cell(self, model: str, seen: Tensor, batch: Sequences[NDArray[Any]]) -> Tensor:
        """The cell's output after each of the time + 1 steps."""
        fed = {"actions": tensor(batch.previous_actions), "rewards": tensor(batch.previous_rewards).unsqueeze(-1)}
        x = torch.cat([seen, *(fed[name] for name in self.problem.feed_previous)], -1)
        kind, size = str(self.problem.recurrent), self.problem.recurrent_size
        torch_names = {
            "weight_ih_l0": "input.kernel",
            "bias_ih_l0": "input.bias",
            "weight_hh_l0": "hidden.kernel",
            "bias_hh_l0": "hidden.bias",
        }
        parameters = {name: self.leaves[f"{model}.cell.{ours}"].T for name, ours in torch_names.items() if "weight" in name}
        parameters |= {name: self.leaves[f"{model}.cell.{ours}"] for name, ours in torch_names.items() if "bias" in name}
        carry = batch.carry if isinstance(batch.carry, tuple) else (batch.carry,)
        first = tuple(tensor(array)[None] if model == "policy" else torch.zeros_like(tensor(array))[None] for array in carry)
        module = CELLS[kind](x.shape[-1], size, dtype=torch.float64)
        output, _ = torch.func.functional_call(module, parameters, (x, first if kind == "lstm" else first[0]))
        outputs: Tensor = output
        return outputs


def _numpy(tensors: dict[str, Tensor]) -> Arrays:
    return {name: each.detach().numpy() for name, each in tensors.items()}
