"""The one path of a gradient: scale, differentiate, average over the ranks, unscale, clip, step."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jax import Array

from sacref.algorithm import update
from sacref.config import ConfigError, Schedule
from sacref.spec.reduce import masked_mean
from sacref.spec.scaling import INITIAL_SCALE, next_scale
from sacref.spec.schedules import FACTORS, KLAdaptive

Tree = Any
"""An array, or a dict of trees."""
Moments = dict[str, Tree]
"""`count`, and `first_moment` and `second_moment` with the structure of the parameters; the scalars `calls` and `learning_rate`, and
`loss_scale`, `good_steps` and `skipped_steps`, where there are."""
Average = Callable[[Tree], Tree]
"""Of each array over all ranks; every rank gets the same."""
MEASURED = ("gradient_norm", "learning_rate", "loss_scale", "skipped_steps")


def tree_map(function: Callable[..., Any], tree: Tree, *others: Tree) -> Tree:
    """Apply `function` to the arrays that stand at the same place of each tree."""
    return jax.tree.map(function, tree, *others)


def batch_mean(average: Average | None) -> Callable[[Array, Array | None], Array]:
    """`(values, mask) -> mean` of a rank's part of the batch, such that the average over the ranks is the mean of the whole batch.

    Parts are of one size; the rows of theirs that count need not be.
    """

    def mean(values: Array, mask: Array | None) -> Array:
        count: Array | None = None if average is None or mask is None else average(mask.sum().astype(values.dtype))
        return masked_mean(values, mask, count)

    return mean


def value_and_grad(
    objective: Callable[[Tree], tuple[Array, Any]], parameters: Tree, scale: Array | None = None
) -> tuple[tuple[Array, Any], Tree]:
    """Value, auxiliary tree of arrays and gradient of `objective` at `parameters`; everything else it reads is a constant.

    The gradient is that of `scale` times the objective.
    """

    def scaled(variables: Tree) -> tuple[Array, tuple[Array, Any]]:
        value, aux = objective(variables)
        return value if scale is None else scale * value, (value, aux)

    result: tuple[tuple[Array, tuple[Array, Any]], Tree] = jax.value_and_grad(scaled, has_aux=True)(parameters)
    (_, value_and_aux), gradients = result
    return value_and_aux, gradients


class Optimizer:
    """Adam (Kingma & Ba 2015, arXiv:1412.6980), after clipping by the global norm of all gradients it is given.

    The state is optax's where there is no clipping, schedule, delay or scale; else a dict of that, `adam`, and the scalars that they need.

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
        learning_rate: float | Array,
        grad_norm_clip: float = 0.0,
        schedule: Schedule | None = None,
        every: int = 1,
        *,
        scales_losses: bool = False,
        average: Average | None = None,
    ) -> None:
        self.learning_rate = learning_rate
        self.grad_norm_clip = grad_norm_clip
        self.schedule = schedule
        self.every = every
        self.scales_losses = scales_losses
        self.average = average
        self._adaptive = KLAdaptive(**schedule.kwargs) if schedule is not None and schedule.function is KLAdaptive else None
        self._rate_of = _rate_of(schedule, learning_rate)
        self._plain = schedule is None and every == 1 and grad_norm_clip <= 0 and not scales_losses
        clip = optax.clip_by_global_norm(grad_norm_clip) if grad_norm_clip > 0 else optax.identity()
        # Not optax.flatten around it: a call then hands over half as many arrays, 0.1 ms less at width 256, but at width 512 a scan of
        # such steps was measured at a quarter of the speed.
        self.transformation: Any = optax.chain(clip, optax.adam(learning_rate) if schedule is None else optax.scale_by_adam())

    def with_rate(self, learning_rate: Array) -> "Optimizer":
        """This optimizer with another base rate."""
        return Optimizer(
            learning_rate, self.grad_norm_clip, self.schedule, self.every, scales_losses=self.scales_losses, average=self.average
        )

    def init(self, parameters: Tree) -> Any:
        """The optimizer's state before the first step."""
        return self._state(parameters, self.transformation.init(parameters), {})

    def minimise(self, objective: Callable[[Tree], tuple[Array, Any]], parameters: Tree, state: Any) -> tuple[Array, Any, Tree, Any]:
        """One step against the gradient of `objective`, a function of the parameters that returns its value and an auxiliary tree.

        Returns:
            Value and auxiliary tree at the given parameters, then parameters and state after the step.
        """
        (value, aux), gradients = self.value_and_grad(objective, parameters, state)
        return value, aux, *self.step(parameters, gradients, state)

    def value_and_grad(
        self, objective: Callable[[Tree], tuple[Array, Any]], parameters: Tree, state: Any
    ) -> tuple[tuple[Array, Any], Tree]:
        """Value, auxiliary tree of arrays and gradient of `objective`, as `step` takes it: of this rank, scaled."""
        return value_and_grad(objective, parameters, state["loss_scale"] if self.scales_losses else None)

    def received(self, gradients: Tree, state: Any) -> Tree:
        """The gradients of the whole batch: those of `value_and_grad`, averaged over the ranks, unscaled.

        What overflows on one rank is infinite or NaN on all of them, so that all decide alike.
        """
        if self.average is not None:
            gradients = self.average(gradients)
        if self.scales_losses:
            inverse = 1.0 / state["loss_scale"]
            gradients = tree_map(lambda gradient: gradient * inverse, gradients)
        return gradients

    def step(self, parameters: Tree, gradients: Tree, state: Any) -> tuple[Tree, Any]:
        """Parameters and state after one step against what `value_and_grad` gave."""
        gradients = self.received(gradients, state)
        if self._plain:
            updates, state = self.transformation.update(gradients, state, parameters)
            return optax.apply_updates(parameters, updates), state
        scalars: dict[str, Array] = {}
        skips: list[Array] = []
        if self.grad_norm_clip > 0 or self.scales_losses:
            norm = optax.tree.norm(gradients)
        if self.scales_losses:
            overflow = ~jnp.isfinite(norm)
            scalars["loss_scale"], scalars["good_steps"] = next_scale(state["loss_scale"], state["good_steps"], overflow)
            scalars["skipped_steps"] = state["skipped_steps"] + overflow
            skips.append(overflow)
            norm = jnp.where(overflow, state["gradient_norm"], norm) if self.grad_norm_clip > 0 else norm
        if self.grad_norm_clip > 0:
            scalars["gradient_norm"] = norm
        if "calls" in state:
            scalars["calls"] = state["calls"] + 1
        if self.every > 1:
            skips.append(scalars["calls"] % self.every != 0)
        updates, adam = self.transformation.update(gradients, state["adam"], parameters)
        if self.schedule is not None:
            held = state["learning_rate"]
            scalars["learning_rate"] = rate = held if self._rate_of is None else self._rate_of(state["calls"], held)
            updates = tree_map(lambda update: -rate * update, updates)
        stepped = optax.apply_updates(parameters, updates)
        if skips:
            skipped = functools.reduce(jnp.logical_or, skips)
            stepped, adam = tree_map(lambda new, old: jnp.where(skipped, old, new), (stepped, adam), (parameters, state["adam"]))
        return stepped, {"adam": adam, **scalars}

    def adapt(self, state: Any, divergence: Callable[[], Array]) -> Any:
        """The state after an adaptive schedule has seen how far the policy moved.

        Args:
            divergence: -> mean KL divergence of the new policy from the old one, `()`; called only where the schedule is adaptive. At
                calls whose step was not applied the rate stays.
        """
        if self._adaptive is None:
            return state
        moved = divergence()
        rate = self._adaptive.next_rate(state["learning_rate"], moved if self.average is None else self.average(moved))
        if self.every > 1:
            rate = jnp.where(state["calls"] % self.every == 0, rate, state["learning_rate"])
        return {**state, "learning_rate": rate}

    def measured(self, state: Any) -> dict[str, Array]:
        """What the last step measured, `()` each, where there are such: `gradient_norm` before clipping (of the last step whose gradients
        did not overflow), `learning_rate`, `loss_scale` of the next step, and `skipped_steps` so far."""
        if self._plain:
            return {}
        like = jax.tree.leaves(optax.tree.get(state["adam"], "mu"))[0]
        return {name: state[name].astype(like.dtype) for name in MEASURED if name in state}

    def moments(self, parameters: Tree, state: Any) -> Moments | None:
        """What the steps so far have left; zeros before the first one."""
        count, first, second = (optax.tree.get(state if self._plain else state["adam"], key) for key in ("count", "mu", "nu"))
        scalars = {} if self._plain else {name: value for name, value in state.items() if name not in ("adam", "gradient_norm")}
        return {"count": count, "first_moment": first, "second_moment": second, **scalars}

    def with_moments(self, parameters: Tree, moments: Moments) -> Any:
        """A state for `parameters` that goes on from `moments`."""
        count = jnp.asarray(moments["count"], jnp.int32)
        fresh = self.transformation.init(parameters)
        adam = optax.tree.set(fresh, count=count, mu=moments["first_moment"], nu=moments["second_moment"])
        return self._state(parameters, adam, moments)

    def _state(self, parameters: Tree, adam: Any, given: Mapping[str, Any]) -> Any:
        """The state with the scalars that are given, the others as before the first step."""
        like = jax.tree.leaves(parameters)[0]
        state = {"adam": adam}
        if self.schedule is not None or self.every > 1:
            state["calls"] = jnp.asarray(given.get("calls", 0), jnp.int32)
        if self.schedule is not None:
            state["learning_rate"] = jnp.asarray(given.get("learning_rate", self.learning_rate), like.dtype)
        if self.grad_norm_clip > 0:
            state["gradient_norm"] = jnp.zeros((), like.dtype)
        if self.scales_losses:
            state["loss_scale"] = jnp.asarray(given.get("loss_scale", INITIAL_SCALE), like.dtype)
            state |= {name: jnp.asarray(given.get(name, 0), jnp.int32) for name in ("good_steps", "skipped_steps")}
        return _beside(parameters, adam if self._plain else state)


def _rate_of(schedule: Schedule | None, learning_rate: float | Array) -> Callable[[Array, Array], Array] | None:
    """(calls before this one, any array of the rate's dtype) -> rate; None where the state holds the rate.

    Factors multiply the base rate and never each other.
    """
    if schedule is None or schedule.function is KLAdaptive:
        return None
    function, kwargs = schedule
    if function in FACTORS.values():
        return lambda calls, like: learning_rate * function(calls.astype(like.dtype), **kwargs)
    name = getattr(function, "__name__", repr(function))
    try:
        own = function(**kwargs) if kwargs else function
        rate = jax.eval_shape(lambda calls: jnp.asarray(own(calls)), jnp.zeros(()))
    except Exception as error:
        raise ConfigError(
            f"learning_rate_scheduler is {name} with arguments {dict(kwargs)}, which fails as step -> rate on JAX arrays "
            f"({type(error).__name__}: {error}): expected a schedule of sacref.spec.schedules, an optax schedule, "
            f"a function step -> rate, or with arguments a function that makes one"
        ) from error
    if rate.shape != ():
        raise ConfigError(f"learning_rate_scheduler is {name}, which gives a rate of shape {rate.shape}, expected ()")
    return lambda calls, like: jnp.asarray(own(calls.astype(like.dtype)), like.dtype)


def _beside(parameters: Tree, state: Any) -> Any:
    """`state` committed to the parameters' device, as the state of every later step is: else the first step compiles twice."""
    return jax.device_put(state, jax.tree.leaves(parameters)[0].sharding)


class Frozen(Optimizer):
    """Fills the optimizer's slot where nothing is learned: parameters stay what they are."""

    def __init__(self) -> None:
        super().__init__(learning_rate=0.0)

    def init(self, parameters: Tree) -> Any:
        return None

    def step(self, parameters: Tree, gradients: Tree, state: Any) -> tuple[Tree, Any]:
        return parameters, state

    def measured(self, state: Any) -> dict[str, Array]:
        return {}

    def moments(self, parameters: Tree, state: Any) -> Moments | None:
        return None

    def with_moments(self, parameters: Tree, moments: Moments) -> Any:
        return None


class KeepGradients(Optimizer):
    """Wraps an optimizer and keeps, beside its state, the gradient of the last step as it was before clipping."""

    def __init__(self, optimizer: Optimizer) -> None:
        super().__init__(
            optimizer.learning_rate,
            optimizer.grad_norm_clip,
            optimizer.schedule,
            optimizer.every,
            scales_losses=optimizer.scales_losses,
            average=optimizer.average,
        )
        self.optimizer: Optimizer = optimizer

    @staticmethod
    def around(parameters: Tree, state: Any) -> Any:
        """The state of this optimizer, from that of the one it wraps."""
        return state, tree_map(jnp.zeros_like, parameters)

    def init(self, parameters: Tree) -> Any:
        return self.around(parameters, self.optimizer.init(parameters))

    def value_and_grad(
        self, objective: Callable[[Tree], tuple[Array, Any]], parameters: Tree, state: Any
    ) -> tuple[tuple[Array, Any], Tree]:
        return self.optimizer.value_and_grad(objective, parameters, state[0])

    def step(self, parameters: Tree, gradients: Tree, state: Any) -> tuple[Tree, Any]:
        kept = self.optimizer.received(gradients, state[0])
        parameters, inner = self.optimizer.step(parameters, gradients, state[0])
        return parameters, (inner, kept)

    def adapt(self, state: Any, divergence: Callable[[], Array]) -> Any:
        return self.optimizer.adapt(state[0], divergence), state[1]

    def measured(self, state: Any) -> dict[str, Array]:
        return self.optimizer.measured(state[0])

    def moments(self, parameters: Tree, state: Any) -> Moments | None:
        return self.optimizer.moments(parameters, state[0])

    def with_moments(self, parameters: Tree, moments: Moments) -> Any:
        return self.around(parameters, self.optimizer.with_moments(parameters, moments))


State: TypeAlias = update.State[Array]
"""All that a gradient step reads and writes."""
Update: TypeAlias = update.Update[Array, Optimizer]
"""The gradient step, with this backend's arrays and optimizer."""
