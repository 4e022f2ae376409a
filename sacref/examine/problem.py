"""Problem that every examined agent is made for: sizes and settings that are nobody's defaults, starting weights, batches and noise."""

import math
import operator
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import gymnasium
import numpy as np

import sacref.parity.data as data
from sacref.algorithm.data import Batch
from sacref.parity.compare import kind_of
from sacref.parity.networks import Arrays, Floats
from sacref.spec.arrays import NumpyArray

DRAWS = 8
"""Noise arrays that an update may draw."""
NOISE = 1.0
"""Largest noise, in standard deviations."""
HEAD = 0.2
"""Scale of the kernel of the policy's last layer, which leaves its outputs near the bias: there 1 - a^2 has digits in float32."""
TERMINATED_SHARE = 0.25
REWARDS = 0.4
"""Scale of rewards at which some errors of the critics are below 1 and some above, as a Huber loss asks for."""
COOL = 0.02
"""Temperature at which log-densities of many nats leave errors of that size."""
FAST = 4.0
"""Learning rate of `fast`."""
NARROWEST = {"float32": -7.0, "float64": -12.0}
"""Log standard deviation of `wide` that is below bounds, by dtype."""
PERTURBATION = 0.1
"""How far target networks begin from their critics, relative: equal ones could not be told apart."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Sizes and settings. An implementation that ignores one of them leaves every variant."""

    observation: int = 5
    action: int = 3
    hidden: tuple[int, ...] = (20, 16)
    batch_size: int = 24
    bound: float = 0.375
    """Actions lie in a Box from -bound to bound; a number that float32 holds exactly."""
    discount: float = 0.97
    tau: float = 0.02
    learning_rate: float = 2e-3
    """Of the policy, the critics and the temperature."""
    alpha: float = 0.3
    """Initial temperature, which is learned."""
    clip: float = 0.0
    """Norm that gradients are asked to be clipped to; 0 for none."""
    decay: float = 1.0
    """Learning-rate factor: the t-th update, from 0, is asked to be taken at decay^t of the rate."""
    dtype: str = "float64"
    seed: int = 0

    @property
    def observation_space(self) -> gymnasium.spaces.Box:
        """Box of the observations, without bounds."""
        return gymnasium.spaces.Box(-math.inf, math.inf, (self.observation,), np.float32)

    @property
    def action_space(self) -> gymnasium.spaces.Box:
        """Box of the actions, in float32 as environments have it."""
        return gymnasium.spaces.Box(-self.bound, self.bound, (self.action,), np.float32)

    def box(self, actions: NumpyArray) -> NumpyArray:
        """Convert actions of (-1, 1) to the Box's units."""
        return actions * self.bound

    def cast(self, array: object) -> NumpyArray:
        """Copy an array to the problem's dtype."""
        return np.array(array, dtype=self.dtype)


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Problem with the weights to start from and a number of updates."""

    name: str
    problem: Problem
    weights: Arrays
    """Parameters and log alpha by their common names; of shape `()` and `(inputs, outputs)`."""
    updates: int
    rewards_scale: float = 1.0
    saturates: bool = False
    """Mark of actions so near the Box's bounds that 1 - a^2 is 0."""

    def data(self) -> Iterator[tuple[Batch[Floats], Floats]]:
        """Yield a batch and its noise, `(draws, batch, action)`, for each update."""
        problem = self.problem
        rows, drawn = np.random.default_rng([problem.seed, 3]).spawn(2)
        replay = data.synthetic_replay(
            64 * problem.batch_size, observation=problem.observation, action=problem.action, seed=problem.seed, dtype=problem.dtype
        )
        for _ in range(self.updates):
            # Rows that are drawn twice share one error.
            batch = replay.map(operator.itemgetter(rows.choice(len(replay.rewards), problem.batch_size, replace=False)))
            terminated = rows.random(problem.batch_size) < TERMINATED_SHARE
            rewards = problem.cast(batch.rewards * self.rewards_scale)
            noise = problem.cast(drawn.uniform(-NOISE, NOISE, (DRAWS, problem.batch_size, problem.action)))
            yield batch._replace(terminated=terminated, rewards=rewards), noise


def scenes(problem: Problem) -> tuple[Scene, ...]:
    """Make the scenes of an examination; in float32 small steps show too little of the optimizer."""
    return (ordinary(problem), wide(problem), *([fast(problem)] if problem.dtype == "float32" else []))


def ordinary(problem: Problem, updates: int = 4) -> Scene:
    """Make a scene of default weights, of target networks beside their critics, and of deviations that a bound by tanh keeps from 0."""
    weights = _weights(problem)
    weights["policy.head.bias"] = problem.cast(np.concatenate([np.zeros(problem.action), np.full(problem.action, 0.7)]))
    return Scene(name="ordinary", problem=problem, weights=weights, updates=updates, rewards_scale=REWARDS)


def wide(problem: Problem, updates: int = 2) -> Scene:
    """Make a scene of standard deviations beyond the usual bounds, and of actions that saturate beyond every rounding.

    A smaller deviation would leave u - mean, and what is learned from it, too few digits.
    """
    weights = _weights(problem)
    spread = np.resize([1.0, NARROWEST[problem.dtype], 3.0], problem.action)
    weights["policy.head.bias"] = problem.cast(np.concatenate([np.resize([40.0, 0.0, -80.0], problem.action), spread]))
    weights["log_alpha"] = problem.cast(math.log(COOL))
    return Scene(name="wide", problem=problem, weights=weights, updates=updates, rewards_scale=REWARDS, saturates=True)


def fast(problem: Problem) -> Scene:
    """Make a scene of one update whose steps are larger than the weights: a small weight decay is rounded away in small ones."""
    return replace(ordinary(replace(problem, learning_rate=FAST), updates=1), name="fast")


def _weights(problem: Problem) -> Arrays:
    """Make starting weights, without the state of optimizers."""
    state = data.initial_state(
        observation=problem.observation,
        action=problem.action,
        hidden=problem.hidden,
        alpha=problem.alpha,
        seed=problem.seed,
        dtype=problem.dtype,
    )
    generator = np.random.default_rng([problem.seed, 4])
    found = {}
    for name, array in state.items():
        if kind_of(name) != "moments":
            moved = 1 + PERTURBATION * generator.standard_normal(array.shape) if name.startswith("target_") else 1.0
            moved = HEAD if name == "policy.head.kernel" else moved
            found[name] = problem.cast(array * moved)
    return found


class Still(gymnasium.Env[NumpyArray, NumpyArray]):
    """Environment of a problem's spaces in which nothing happens, for libraries that read the spaces off one."""

    def __init__(self, problem: Problem) -> None:
        self.observation_space: gymnasium.spaces.Box[Any] = problem.observation_space
        self.action_space: gymnasium.spaces.Box[Any] = problem.action_space

    def reset(self, *, seed: int | None = None, options: dict[str, object] | None = None) -> tuple[NumpyArray, dict[str, Any]]:
        return np.zeros(self.observation_space.shape or (), np.float32), {}

    def step(self, action: NumpyArray) -> tuple[NumpyArray, float, bool, bool, dict[str, Any]]:
        return self.reset()[0], 0.0, False, False, {}
