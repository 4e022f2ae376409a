"""Interface of an examined SAC, the checks that an adapter keeps to it, and the recording of its updates."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode

from sacref.algorithm.data import Batch
from sacref.examine.observed import Trajectory, Update, steps_by_network
from sacref.examine.problem import Problem, Scene
from sacref.parity.networks import Arrays, Floats, Named

Env = gymnasium.Env[Floats, Floats]


NARROW = 1e-6
"""Relative difference that float32 explains, beside float64."""
KEPT = {"float32": NARROW, "float64": 1e-12}
"""Relative difference up to which a weight is as it was set, by dtype: what is held may be exp(log alpha)."""
SATURATED = (
    "actions saturate in these data, check what the update computes there; log(1 - a^2) is infinite, "
    "2 (log 2 - u - softplus(-2 u)) is the same and finite"
)
"""Fix for weights that are not finite after an update of saturated actions."""


class AdapterError(TypeError):
    """An adapter does not do what the examiner relies on."""


@runtime_checkable
class Adapter(Protocol):
    """Somebody's SAC, as the examiner drives it. Weights are NumPy arrays by common names, kernels `(inputs, outputs)`.

    Common names are `policy.hidden.<i>.kernel`, `policy.hidden.<i>.bias`, `policy.head.kernel` (the mean's columns, then those of the log
    standard deviation), `critic_1.…`, `critic_2.…`, `target_critic_1.…`, `target_critic_2.…` and `log_alpha`, of shape `()`.
    """

    name: str
    """Of the implementation."""

    def make(self, problem: Problem) -> None:
        """Make an agent of these sizes and settings: two hidden ReLU layers or as many as the problem has, and a learned temperature."""
        ...

    def set_weights(self, weights: Named) -> None:
        """Take these weights; optimizers are as new, since every agent that is made is set once, before its first update."""
        ...

    def update(self, batch: Batch[Floats], draws: Floats) -> None:
        """Make one update on this batch, with the arrays of `draws`, `(draws, batch, action)`, as its standard normal noise, in turn.

        Actions are in (-1, 1): hand over `problem.box(actions)` where the implementation's replay memory holds the Box's units.
        """
        ...

    def weights(self) -> Arrays:
        """The weights now."""
        ...

    def versions(self) -> Mapping[str, str]:
        """Library -> version."""
        ...


@runtime_checkable
class Showing(Protocol):
    """An adapter that shows gradients, without which an examination needs float64."""

    def gradients(self) -> Sequence[Named]:
        """The gradient of each optimizer step of the last update, in their order, as the optimizer took it: after clipping.

        `sacref.examine.inject` has helpers: `torch_gradients` sees what torch's optimizers take, `GradientsOfMoments` reads optax's.
        """
        ...


@runtime_checkable
class Acting(Protocol):
    """An adapter whose agent also acts."""

    def act(self, observations: Floats, *, deterministic: bool) -> Floats:
        """Actions in the Box's units, `(batch, action)`, for observations `(batch, observation)`."""
        ...


@runtime_checkable
class Saving(Protocol):
    """An adapter whose agent is saved and loaded as its users do."""

    def save(self, path: Path) -> None:
        """Save the agent."""
        ...

    def load(self, path: Path) -> None:
        """Load what `save` wrote to the same path into a new agent."""
        ...


@runtime_checkable
class Collecting(Protocol):
    """An adapter whose agent collects transitions with the implementation's own loop."""

    def collect(self, make_env: Callable[[], Env], num_envs: int, steps: int, autoreset_mode: AutoresetMode) -> Batch[Floats]:
        """Act in so many environments for so many steps of each, and give the transitions that the replay memory then holds.

        Args:
            make_env: makes one of the environments. num_envs: how many. steps: of each.
            autoreset_mode: of Gymnasium's vector environment; an implementation with vector environments of its own takes those.
        """
        ...


@runtime_checkable
class Training(Protocol):
    """An adapter whose agent learns in the implementation's own loop."""

    def make(self, problem: Problem) -> None:
        """Make an agent, as `Adapter` has it."""
        ...

    def train(self, make_env: Callable[[], Env], num_envs: int, steps: int, gradient_steps: int) -> Sequence[Floats]:
        """Learn in so many environments for so many steps of each, with `gradient_steps` to an update that follows each step.

        Returns:
            The observations of each gradient step's batch, `(batch, observation)`, in turn.
        """
        ...


class Windows(NamedTuple):
    """Transitions of several steps, as a replay memory gives them."""

    observations: Floats
    """`(batch, observation)`"""
    rewards: Floats
    """`(batch,)`: discounted sums."""
    next_observations: Floats
    """`(batch, observation)`"""
    terminated: Floats
    """`(batch,)`"""
    discounts: Floats
    """`(batch,)`: factors of the next observation's value, where it has one."""


@runtime_checkable
class Replaying(Protocol):
    """An adapter whose implementation has a replay memory of transitions of several steps."""

    def windows(self, rows: Batch[Floats], truncated: Floats, capacity: int, n_step: int, discount: float) -> Windows:
        """Store the rows of one environment, in turn, in a new memory of this capacity, and give all windows that it would sample.

        Args:
            rows: with actions in (-1, 1). truncated: `(batch,)`, the rows that end an episode without terminating.
            capacity: less than there are rows. n_step: steps of a window. discount: of rewards and values.
        """
        ...


def record(adapter: Adapter, scene: Scene, *, other_noise: bool = False) -> Trajectory:
    """Make an agent, take it through a scene, and keep what it showed; with the noise arrays the other way round if asked for.

    Raises:
        AdapterError: if weights have other names or shapes, do not stay as they were set, or are not finite.
    """
    problem = scene.problem
    if problem.dtype != "float64" and not isinstance(adapter, Showing):
        raise AdapterError(
            f"{adapter.name}: no gradients(), and weights alone show nothing but their signs in {problem.dtype}, expected one of both: "
            f"show gradients, or compute in float64"
        )
    adapter.make(problem)
    check_shapes(adapter, adapter.weights(), scene.weights)
    adapter.set_weights({name: array.copy() for name, array in scene.weights.items()})
    check_weights(adapter, scene.weights)
    updates: list[Update] = []
    before = _cast(adapter.weights())
    for number, (batch, draws) in enumerate(scene.data()):
        draws = draws[::-1] if other_noise else draws
        adapter.update(batch.map(np.copy), draws.copy())
        after = _cast(adapter.weights())
        check_shapes(adapter, after, scene.weights, SATURATED if scene.saturates else "check the update")
        first = updates[0].draws if updates else draws
        gradients = check_gradients(adapter.name, adapter.gradients(), after) if isinstance(adapter, Showing) else []
        steps = steps_by_network([_cast(step) for step in gradients])
        updates.append(Update(number, batch, draws, first, before, after, steps))
        before = after
    return Trajectory(scene, updates, isinstance(adapter, Showing))


def check_shapes(adapter: Adapter, weights: Named, expected: Named, fix: str = "check the update") -> None:
    """Refuse weights of other names or shapes, and those that are not finite, for which `fix` is what helps.

    Raises:
        AdapterError: naming the first one.
    """
    missing, strange = sorted(set(expected) - set(weights)), sorted(set(weights) - set(expected))
    if missing or strange:
        found = f"lacks {', '.join(missing[:3])}" if missing else f"holds {', '.join(strange[:3])}"
        raise AdapterError(f"{adapter.name}: weights() {found}, expected {', '.join(sorted(expected)[:4])} and so on: name them so")
    for name, array in expected.items():
        got = np.shape(weights[name])
        if got != array.shape:
            other = "transpose it, kernels are (inputs, outputs)" if got == array.shape[::-1] else "make networks of the problem's sizes"
            raise AdapterError(f"{adapter.name}: weights() has {name} of shape {got}, expected {array.shape}: {other}")
        if not np.isfinite(weights[name]).all():
            raise AdapterError(f"{adapter.name}: weights() has a {name} that is not finite, expected numbers: {fix}")


def check_gradients(adapter: str, gradients: Sequence[Named], weights: Named) -> Sequence[Named]:
    """Refuse an update without gradients, and gradients of other names or shapes.

    Raises:
        AdapterError: naming the first one.
    """
    if not any(gradients):
        raise AdapterError(
            f"{adapter}: gradients() is empty after an update, expected those of each optimizer step: "
            f"see torch_gradients and GradientsOfMoments in sacref.examine.inject"
        )
    for name, array in ((name, array) for step in gradients for name, array in step.items()):
        expected = None if name.startswith("target_") or name not in weights else np.shape(weights[name])
        if np.shape(array) != expected:
            raise AdapterError(
                f"{adapter}: gradients() has {name} of shape {np.shape(array)}, expected "
                f"{'no such name' if expected is None else expected}: give gradients by the names of weights(), no target network's"
            )
    return gradients


def check_weights(adapter: Adapter, expected: Named) -> None:
    """Refuse an agent whose weights are not those that were set.

    Raises:
        AdapterError: naming the first one.
    """
    got = adapter.weights()
    check_shapes(adapter, got, expected)
    for name, array in expected.items():
        gap, size = float(np.abs(np.asarray(got[name], np.float64) - array).max()), max(float(np.abs(array).max()), 1e-12)
        if gap > KEPT[str(array.dtype)] * size:
            fix = (
                "make it in problem.dtype, it has the digits of a narrower one (sacref.examine.inject has torch_dtype)"
                if gap <= NARROW * size
                else "write into the arrays that the agent computes with, and not into copies"
            )
            raise AdapterError(f"{adapter.name}: set_weights() leaves {name} {gap:.1e} from what was set, expected it as it was set: {fix}")


def check_noise(adapter: Adapter, seen: Trajectory) -> None:
    """Refuse an adapter whose update does not follow from weights, batch and noise, or does not depend on the noise.

    Args:
        adapter: makes two more agents.
        seen: what its first agent did.

    Raises:
        AdapterError: saying what is wrong, what was expected, and what to do.
    """
    one, again, other = seen.updates[0].after, _after_one(adapter, seen.scene, False), _after_one(adapter, seen.scene, True)
    if any(not np.array_equal(one[name], again[name]) for name in one):
        raise AdapterError(
            f"{adapter.name}: two updates on the same weights, batch and noise differ, expected the same result: "
            f"take every normal array that an update draws from `draws`"
        )
    if all(np.array_equal(one[name], other[name]) for name in one):
        raise AdapterError(
            f"{adapter.name}: update() gives the same weights for other noise, expected others: "
            f"hand `draws` to whatever samples (sacref.examine.inject has helpers)"
        )


def check_acting(adapter: Acting, weights: Callable[[], Named], name: str, observations: Floats) -> tuple[Floats, Floats, Floats]:
    """Act once deterministically and twice with noise, and refuse an agent that changes when it acts.

    Raises:
        AdapterError: naming the weights that changed.
    """
    before = weights()
    mean, one, two = (np.asarray(adapter.act(observations, deterministic=each), np.float64) for each in (True, False, False))
    after = weights()
    changed = [name for name in before if not np.array_equal(before[name], after[name])]
    if changed:
        raise AdapterError(f"{name}: act() changes {changed[0]}, expected weights as they were: act without learning")
    return mean, one, two


def _after_one(adapter: Adapter, scene: Scene, other_noise: bool) -> Arrays:
    """Compute the weights after the first update of a scene."""
    first = replace(scene, updates=1)
    return record(adapter, first, other_noise=other_noise).updates[0].after


def _cast(arrays: Named) -> Arrays:
    # Of float32, too: the oracle starts every stage from what was seen, and adds no rounding of its own.
    return {name: np.array(array, np.float64) for name, array in arrays.items()}
