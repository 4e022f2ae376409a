"""The NumPy oracle itself: with choices and mistakes put in, what the examiner's own tests hold it to."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from sacref.algorithm.data import Batch
from sacref.examine.adapter import Env
from sacref.examine.choices import Choices
from sacref.examine.oracle import Moments, Oracle, draw
from sacref.examine.problem import Problem, ordinary
from sacref.parity.networks import Arrays, Floats, Named


class OracleAdapter:
    """A NumPy SAC that does what `choices` say.

    Args:
        name: of the implementation.
        choices: fields of `Choices`.
    """

    supports: tuple[str, ...] = ("clip", "schedule")

    def __init__(self, name: str = "NumPy oracle", **choices: str) -> None:
        self.name = name
        self.choices: Choices = Choices(**choices)

    def make(self, problem: Problem) -> None:
        self._problem, self._acted = problem, np.random.default_rng(problem.seed)
        weights = dict(ordinary(problem).weights)
        copies = {f"target_{name}": array for name, array in weights.items() if name.startswith("critic_")}
        self.set_weights(weights | copies)

    def set_weights(self, weights: Named) -> None:
        self.agent: Oracle = Oracle(self._problem, dict(weights), self.choices)

    def update(self, batch: Batch[Floats], draws: Floats) -> None:
        self.agent.update(batch, draws)

    def weights(self) -> Arrays:
        return dict(self.agent.weights)

    def gradients(self) -> Sequence[Named]:
        return self.agent.gradients

    def act(self, observations: Floats, *, deterministic: bool) -> Floats:
        noise = self._acted.standard_normal((len(observations), self._problem.action))
        in_box = self.choices.critic_actions == "in the Box's units"
        drawn, _ = draw(self.agent.weights, observations, noise * (not deterministic), self.choices, self._problem.bound)
        return drawn.action if in_box else self._problem.box(drawn.action)

    def save(self, path: Path) -> None:
        arrays = {**self.agent.weights, "updates": np.array(self.agent.updates)}
        if self.agent.first_noise is not None:
            arrays["first_noise"] = self.agent.first_noise
        for name, each in self.agent.moments.items():
            arrays |= {f"first.{name}": each.first, f"second.{name}": each.second, f"steps.{name}": np.array(each.steps)}
        save_file({name: np.array(array, order="C") for name, array in arrays.items()}, path)

    def load(self, path: Path) -> None:
        found = load_file(path)
        self.set_weights({name: found[name] for name in self.agent.weights})
        self.agent.updates, self.agent.first_noise = int(found["updates"]), found.get("first_noise")
        self.agent.moments = {
            name: Moments(found[f"first.{name}"], found[f"second.{name}"], int(found[f"steps.{name}"])) for name in self.agent.weights
        }

    def train(self, make_env: Callable[[], Env], num_envs: int, steps: int, gradient_steps: int) -> Sequence[Floats]:
        rows, drawn = np.arange(num_envs * steps * self._problem.observation, dtype=float).reshape(-1, self._problem.observation), []
        for step in range(1, steps):
            stored, batch = rows[: step * num_envs], None
            for _ in range(gradient_steps * (num_envs if self.choices.update_ratio == "for each transition" else 1)):
                if batch is None or self.choices.batches == "its own":
                    batch = stored[self._acted.integers(len(stored), size=self._problem.batch_size)]
                drawn.append(batch)
        return drawn

    def versions(self) -> Mapping[str, str]:
        return {"numpy": np.__version__}
