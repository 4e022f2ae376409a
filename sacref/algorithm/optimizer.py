"""The one path of a gradient: scale, differentiate, average over the ranks, unscale, clip, step. A backend adds the library's part."""

import functools
import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, NamedTuple, Protocol, TypeAlias, TypeVar

from sacref.algorithm.tree import Tree, leaves, map_leaves
from sacref.config import ConfigError, Schedule
from sacref.spec.arrays import ArrayT, namespace
from sacref.spec.reduce import masked_mean
from sacref.spec.scaling import INITIAL_SCALE, next_scale
from sacref.spec.schedules import FACTORS, KLAdaptive

Parameters: TypeAlias = dict[str, ArrayT]
"""Name of a parameter -> array."""
Objective: TypeAlias = Callable[[Tree], tuple[ArrayT, Tree]]
"""Function of the parameters that returns its value, `()`, and an auxiliary tree. All else that it reads is a constant of it."""
Moments: TypeAlias = dict[str, Tree]
"""`count`, and `first_moment` and `second_moment` with the structure of the parameters; the scalars `calls`, `learning_rate`, `loss_scale`,
`good_steps` and `skipped_steps`, where there are such."""
Average: TypeAlias = Callable[[Tree], Tree]
"""Average of each array over all ranks; every rank gets the same."""
Differentiate: TypeAlias = Callable[[Objective[ArrayT], Tree, ArrayT | None], tuple[tuple[ArrayT, Tree], Tree]]
"""`(objective, parameters, scale) -> (value, auxiliary tree), gradient of scale times the objective`."""
Rate: TypeAlias = Callable[[ArrayT, ArrayT], ArrayT]
"""`(calls before this one, any array of the rate's dtype) -> rate`."""

MEASURED = ("gradient_norm", "learning_rate", "loss_scale", "skipped_steps")


class Optimizer(Protocol[ArrayT]):
    """One step against the gradient of an objective. Its state is a tree of the backend's arrays, which it alone reads."""

    def init(self, parameters: Tree, /) -> Tree:
        """Return the state before the first step."""
        ...

    def minimise(self, objective: Objective[ArrayT], parameters: Tree, state: Tree, /) -> tuple[ArrayT, Tree, Tree, Tree]:
        """Step against the gradient of `objective`.

        Returns:
            Value and auxiliary tree at the given parameters, then parameters and state after the step.
        """
        ...

    def adapt(self, state: Tree, divergence: Callable[[], ArrayT], /) -> Tree:
        """Return the state after an adaptive schedule has seen how far the policy moved: `divergence()`, the mean KL divergence, `()`."""
        ...

    def measured(self, state: Tree, /) -> dict[str, ArrayT]:
        """Return what the last step measured, `()` each, by the endings of the metrics' names."""
        ...


class Step(NamedTuple, Generic[ArrayT]):
    """A step of Adam."""

    rate: float | ArrayT
    scalars: Mapping[str, ArrayT]
    """Scalars of the state after it."""
    skipped: ArrayT | None = None
    """`()`, bool: True to leave parameters and moments as they are; None for never."""


OptimizerT = TypeVar("OptimizerT", bound=Optimizer[Any])


class Adam(ABC, Generic[ArrayT]):
    """Adam (Kingma & Ba 2015, arXiv:1412.6980), after clipping by the global norm of all gradients that it is given.

    The state holds nothing for clipping, schedule, delay and scale where there are none.

    Args:
        learning_rate: the base rate. grad_norm_clip: largest global norm; <= 0 is off.
        schedule: of the rate, by the number of calls.
        every: n to apply the step at calls n, 2n, ... only; at the others nothing moves.
        scales_losses: scale the objective dynamically (`sacref.spec.scaling`), and skip a step whose gradients overflow.
        average: of gradients over the ranks; None for one rank.

    Raises:
        ConfigError: if the schedule is none that can run here.
    """

    def __init__(
        self,
        learning_rate: float | ArrayT,
        grad_norm_clip: float = 0.0,
        schedule: Schedule | None = None,
        every: int = 1,
        *,
        scales_losses: bool = False,
        average: Average | None = None,
    ) -> None:
        self.learning_rate: float | ArrayT = learning_rate
        self.grad_norm_clip: float = grad_norm_clip
        self.schedule: Schedule | None = schedule
        self.every: int = every
        self.scales_losses: bool = scales_losses
        self.average: Average | None = average
        self.plain: bool = schedule is None and every == 1 and grad_norm_clip <= 0 and not scales_losses
        """True where each call is a step of Adam at the base rate, and nothing else."""
        self._adaptive = KLAdaptive(**schedule.kwargs) if schedule is not None and schedule.function is KLAdaptive else None
        self._rate = self.rate_of(schedule)

    differentiate: Differentiate[ArrayT]
    """The backend's, a static method."""

    @abstractmethod
    def rate_of(self, schedule: Schedule | None) -> Rate[ArrayT] | None:
        """Return the rate as a function of the calls; None where the state holds it."""

    @abstractmethod
    def init(self, parameters: Tree) -> Tree:
        """Return the state before the first step."""

    @abstractmethod
    def norm(self, gradients: Tree) -> ArrayT:
        """Return the global norm, `()`."""

    @abstractmethod
    def apply(self, parameters: Tree, gradients: Tree, state: Tree, step: Step[ArrayT]) -> tuple[Tree, Tree]:
        """Clip, and take Adam's step; return parameters and state."""

    @abstractmethod
    def scalar(self, value: float | ArrayT, like: ArrayT, *, integer: bool = False) -> ArrayT:
        """Return an array `()` on the device of `like`, an integer or of its dtype."""

    @abstractmethod
    def moments(self, parameters: Tree, state: Tree) -> Moments:
        """Return what the steps so far have left; zeros before the first one."""

    @abstractmethod
    def with_moments(self, parameters: Tree, moments: Moments) -> Tree:
        """Return a state for `parameters` that goes on from `moments`."""

    def prepare(self, state: Tree) -> None:
        """Write the rate of the next call into the state, if its schedule runs on the host.

        To be called once before each `step`, outside of what is recorded or captured. Nothing is read from the device.
        """

    def minimise(self, objective: Objective[ArrayT], parameters: Tree, state: Tree) -> tuple[ArrayT, Tree, Tree, Tree]:
        """Step against the gradient of `objective`; see `Optimizer`."""
        (value, aux), gradients = self.value_and_grad(objective, parameters, state)
        return value, aux, *self.step(parameters, gradients, state)

    def value_and_grad(self, objective: Objective[ArrayT], parameters: Tree, state: Tree) -> tuple[tuple[ArrayT, Tree], Tree]:
        """Return value, auxiliary tree and gradient of `objective`, as `step` takes it: this rank's, scaled."""
        return self.differentiate(objective, parameters, state["loss_scale"] if self.scales_losses else None)

    def received(self, gradients: Tree, state: Tree) -> Tree:
        """Return the gradients of the whole batch: those of `value_and_grad`, averaged over the ranks, unscaled.

        What overflows on one rank is infinite or NaN on all of them, so that all decide alike.
        """
        if self.average is not None:
            gradients = self.average(gradients)
        if self.scales_losses:
            inverse = 1.0 / state["loss_scale"]
            gradients = map_leaves(lambda gradient: gradient * inverse, gradients)
        return gradients

    def step(self, parameters: Tree, gradients: Tree, state: Tree) -> tuple[Tree, Tree]:
        """Return parameters and state after one step against what `value_and_grad` gave. PyTorch writes them in place."""
        gradients = self.received(gradients, state)
        if self.plain:
            return self.apply(parameters, gradients, state, Step(self.learning_rate, {}))
        clips = self.grad_norm_clip > 0
        scalars: dict[str, Any] = {}
        skips = []
        norm: Any = self.norm(gradients) if clips or self.scales_losses else None
        if self.scales_losses:
            xp = namespace(norm)
            overflow = ~xp.isfinite(norm)
            scalars["loss_scale"], scalars["good_steps"] = next_scale(state["loss_scale"], state["good_steps"], overflow)
            scalars["skipped_steps"] = state["skipped_steps"] + overflow
            skips.append(overflow)
            norm = xp.where(overflow, state["gradient_norm"], norm) if clips else norm
        if clips:
            scalars["gradient_norm"] = norm
        if "calls" in state:
            scalars["calls"] = state["calls"] + 1
        if self.every > 1:
            skips.append(scalars["calls"] % self.every != 0)
        rate = self.learning_rate
        if self.schedule is not None:
            held = state["learning_rate"]
            scalars["learning_rate"] = rate = held if self._rate is None else self._rate(state["calls"], held)
        skipped = functools.reduce(operator.or_, skips) if skips else None
        return self.apply(parameters, gradients, state, Step(rate, scalars, skipped))

    def adapt(self, state: Tree, divergence: Callable[[], ArrayT]) -> Tree:
        """Return the state after an adaptive schedule has seen how far the policy moved.

        Args:
            divergence: -> mean KL divergence of the new policy from the old one, `()`; called only where the schedule is adaptive. At
                calls whose step was not applied the rate stays.
        """
        if self._adaptive is None:
            return state
        moved = divergence()
        held = state["learning_rate"]
        rate = self._adaptive.next_rate(held, moved if self.average is None else self.average(moved))
        if self.every > 1:
            rate = namespace(rate).where(state["calls"] % self.every == 0, rate, held)
        return {**state, "learning_rate": rate}

    def measured(self, state: Tree) -> dict[str, ArrayT]:
        """Return what the last step measured, `()` each, where there are such.

        `gradient_norm` before clipping (of the last step whose gradients did not overflow), `learning_rate`, `loss_scale` of the next step,
        and `skipped_steps` so far.
        """
        found = {} if self.plain else {name: state[name] for name in MEASURED if name in state}
        return {
            name: namespace(value).astype(value, found["loss_scale" if name == "skipped_steps" else name].dtype)
            for name, value in found.items()
        }

    def scalars(self, parameters: Tree, given: Mapping[str, Any]) -> dict[str, ArrayT]:
        """Return the state's scalars: those that are given, the others as before the first step."""
        like = leaves(parameters)[0]
        scalars = {}
        if self.schedule is not None or self.every > 1:
            scalars["calls"] = self.scalar(given.get("calls", 0), like, integer=True)
        if self.schedule is not None:
            scalars["learning_rate"] = self.scalar(given.get("learning_rate", self.learning_rate), like)
        if self.grad_norm_clip > 0:
            scalars["gradient_norm"] = self.scalar(0.0, like)
        if self.scales_losses:
            scalars["loss_scale"] = self.scalar(given.get("loss_scale", INITIAL_SCALE), like)
            scalars |= {name: self.scalar(given.get(name, 0), like, integer=True) for name in ("good_steps", "skipped_steps")}
        return scalars


class Frozen(Generic[ArrayT]):
    """Fills an optimizer's slot where nothing is learned: parameters stay what they are.

    Args:
        differentiate: the backend's `Adam.differentiate`.
    """

    learning_rate: float = 0.0

    def __init__(self, differentiate: Differentiate[ArrayT]) -> None:
        self._differentiate = differentiate

    def init(self, parameters: Tree) -> Tree:
        return None

    def prepare(self, state: Tree) -> None:
        pass

    def minimise(self, objective: Objective[ArrayT], parameters: Tree, state: Tree) -> tuple[ArrayT, Tree, Tree, Tree]:
        """Evaluate `objective`, without its gradient."""
        value, aux = objective(parameters)
        return value, aux, parameters, state

    def value_and_grad(self, objective: Objective[ArrayT], parameters: Tree, state: Tree) -> tuple[tuple[ArrayT, Tree], Tree]:
        return self._differentiate(objective, parameters, None)

    def received(self, gradients: Tree, state: Tree) -> Tree:
        return gradients

    def step(self, parameters: Tree, gradients: Tree, state: Tree) -> tuple[Tree, Tree]:
        return parameters, state

    def adapt(self, state: Tree, divergence: Callable[[], ArrayT]) -> Tree:
        return state

    def measured(self, state: Tree) -> dict[str, ArrayT]:
        return {}

    def moments(self, parameters: Tree, state: Tree) -> Moments | None:
        return None

    def with_moments(self, parameters: Tree, moments: Moments) -> Tree:
        return None


class KeepGradients(Generic[ArrayT]):
    """Wraps an optimizer and keeps, beside its state, the gradient of the last step as it was before clipping."""

    def __init__(self, optimizer: Adam[ArrayT] | Frozen[ArrayT]) -> None:
        self.optimizer: Adam[ArrayT] | Frozen[ArrayT] = optimizer

    def __getattr__(self, name: str) -> object:
        return getattr(self.optimizer, name)

    @staticmethod
    def around(parameters: Tree, state: Tree) -> Tree:
        """Return the state of this optimizer, from that of the one it wraps."""
        return state, map_leaves(lambda leaf: namespace(leaf).zeros_like(leaf), parameters)

    def init(self, parameters: Tree) -> Tree:
        return self.around(parameters, self.optimizer.init(parameters))

    def prepare(self, state: Tree) -> None:
        self.optimizer.prepare(state[0])

    def minimise(self, objective: Objective[ArrayT], parameters: Tree, state: Tree) -> tuple[ArrayT, Tree, Tree, Tree]:
        (value, aux), gradients = self.optimizer.value_and_grad(objective, parameters, state[0])
        return value, aux, *self.step(parameters, gradients, state)

    def step(self, parameters: Tree, gradients: Tree, state: Tree) -> tuple[Tree, Tree]:
        kept = self.optimizer.received(gradients, state[0])
        parameters, inner = self.optimizer.step(parameters, gradients, state[0])
        return parameters, (inner, kept)

    def adapt(self, state: Tree, divergence: Callable[[], ArrayT]) -> Tree:
        return self.optimizer.adapt(state[0], divergence), state[1]

    def measured(self, state: Tree) -> dict[str, ArrayT]:
        return self.optimizer.measured(state[0])

    def moments(self, parameters: Tree, state: Tree) -> Tree:
        return self.optimizer.moments(parameters, state[0])

    def with_moments(self, parameters: Tree, moments: Moments) -> Tree:
        return self.around(parameters, self.optimizer.with_moments(parameters, moments))


def batch_mean(average: Average | None) -> Callable[[ArrayT, ArrayT | None], ArrayT]:
    """Return `(values, mask) -> mean` of a rank's share of the batch, such that the average over the ranks is the mean of the whole batch.

    Shares are of one size; the rows of theirs that count need not be.
    """

    def mean(values: ArrayT, mask: ArrayT | None) -> ArrayT:
        xp = namespace(values)
        count: ArrayT | None = None if average is None or mask is None else average(xp.astype(xp.sum(mask), values.dtype))
        return masked_mean(values, mask, count)

    return mean


def rate_function(
    schedule: Schedule,
    learning_rate: float | ArrayT,
    shape_of: Callable[[Callable[[ArrayT], object]], Sequence[int]],
    as_rate: Callable[[object, ArrayT], ArrayT],
    arrays: str,
    others: str,
) -> Rate[ArrayT]:
    """Return the rate that a factor of `sacref.spec.schedules`, or a function of the user's, gives.

    Factors multiply the base rate and never each other.

    Args:
        shape_of: -> the shape of what a function gives for a step.
        as_rate: `(given, like) -> rate`, as an array.
        arrays: what the backend calls its arrays. others: schedules of the backend's own, for the message.

    Raises:
        ConfigError: if it is no function step -> rate.
    """
    function, kwargs = schedule
    if function in FACTORS.values():
        return lambda calls, like: learning_rate * function(namespace(calls).astype(calls, like.dtype), **kwargs)
    name = getattr(function, "__name__", repr(function))
    try:
        own = function(**kwargs) if kwargs else function
        shape = tuple(shape_of(own))
    except Exception as error:
        raise ConfigError(
            f"learning_rate_scheduler is {name} with arguments {dict(kwargs)}, which fails as step -> rate on {arrays} "
            f"({type(error).__name__}: {error}): expected a schedule of sacref.spec.schedules, {others}, "
            f"a function step -> rate that computes with arrays (where in place of if), or with arguments a function that makes one"
        ) from error
    if shape != ():
        raise ConfigError(f"learning_rate_scheduler is {name}, which gives a rate of shape {shape}, expected ()")
    return lambda calls, like: as_rate(own(namespace(calls).astype(calls, like.dtype)), like)
