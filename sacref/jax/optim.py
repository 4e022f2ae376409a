"""JAX's part of a gradient step: differentiation, Adam of optax, schedules of optax."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jax import Array

from sacref.algorithm import optimizer, update
from sacref.algorithm.optimizer import Moments, Objective, Rate, Step, rate_function
from sacref.algorithm.tree import Tree, leaves, map_leaves
from sacref.config import Schedule
from sacref.spec.schedules import KLAdaptive


def value_and_grad(objective: Objective[Array], parameters: Tree, scale: Array | None = None) -> tuple[tuple[Array, Tree], Tree]:
    """Return value and auxiliary tree of `objective` at `parameters`, and the gradient of `scale` times it."""

    def scaled(variables: Tree) -> tuple[Array, tuple[Array, Tree]]:
        value, aux = objective(variables)
        return value if scale is None else scale * value, (value, aux)

    differentiated: Callable[[Tree], tuple[tuple[Array, tuple[Array, Tree]], Tree]] = jax.value_and_grad(scaled, has_aux=True)
    (_, value_and_aux), gradients = differentiated(parameters)
    return value_and_aux, gradients


class Optimizer(optimizer.Adam[Array]):
    """Adam of optax. The state is optax's where a step is plain; else a dict of that, `adam`, and the scalars."""

    differentiate: optimizer.Differentiate[Array] = staticmethod(value_and_grad)

    def rate_of(self, schedule: Schedule | None) -> Rate[Array] | None:
        clip = optax.clip_by_global_norm(self.grad_norm_clip) if self.grad_norm_clip > 0 else optax.identity()
        # Not optax.flatten around it: a call then hands over half as many arrays, 0.1 ms less at width 256, but at width 512 a scan of
        # such steps was measured at a quarter of the speed.
        self._transformation = optax.chain(clip, optax.adam(self.learning_rate) if schedule is None else optax.scale_by_adam())
        return _rate_of(schedule, self.learning_rate)

    def with_rate(self, learning_rate: Array) -> "Optimizer":
        """Return this optimizer with another base rate."""
        return Optimizer(
            learning_rate, self.grad_norm_clip, self.schedule, self.every, scales_losses=self.scales_losses, average=self.average
        )

    def init(self, parameters: Tree) -> Tree:
        return self._state(parameters, self._transformation.init(parameters), {})

    def norm(self, gradients: Tree) -> Array:
        norm: Array = optax.tree.norm(gradients)
        return norm

    def apply(self, parameters: Tree, gradients: Tree, state: Tree, step: Step[Array]) -> tuple[Tree, Tree]:
        rate, scalars, skipped = step
        held = self._adam(state)
        updates, adam = self._transformation.update(gradients, held, parameters)
        if self.schedule is not None:
            updates = map_leaves(lambda update: -rate * update, updates)
        stepped = optax.apply_updates(parameters, updates)
        if skipped is not None:
            stepped, adam = map_leaves(lambda new, old: jnp.where(skipped, old, new), (stepped, adam), (parameters, held))
        return stepped, adam if self.plain else {"adam": adam, **scalars}

    def scalar(self, value: float | Array, like: Array, *, integer: bool = False) -> Array:
        return jnp.asarray(value, jnp.int32 if integer else like.dtype)

    def moments(self, parameters: Tree, state: Tree) -> Moments:
        count, first, second = (optax.tree.get(self._adam(state), key) for key in ("count", "mu", "nu"))
        scalars = {} if self.plain else {name: value for name, value in state.items() if name not in ("adam", "gradient_norm")}
        return {"count": count, "first_moment": first, "second_moment": second, **scalars}

    def with_moments(self, parameters: Tree, moments: Moments) -> Tree:
        count = jnp.asarray(moments["count"], jnp.int32)
        fresh = self._transformation.init(parameters)
        adam = optax.tree.set(fresh, count=count, mu=moments["first_moment"], nu=moments["second_moment"])
        return self._state(parameters, adam, moments)

    def _adam(self, state: Tree) -> Tree:
        return state if self.plain else state["adam"]

    def _state(self, parameters: Tree, adam: Tree, given: Mapping[str, object]) -> Tree:
        # Committed to the parameters' device, as the state of every later step is: else the first step compiles twice.
        state = adam if self.plain else {"adam": adam, **self.scalars(parameters, given)}
        return jax.device_put(state, leaves(parameters)[0].sharding)


def _rate_of(schedule: Schedule | None, learning_rate: float | Array) -> Rate[Array] | None:
    if schedule is None or schedule.function is KLAdaptive:
        return None
    return rate_function(
        schedule,
        learning_rate,
        lambda own: jax.eval_shape(lambda calls: jnp.asarray(own(calls)), jnp.zeros(())).shape,
        lambda found, like: jnp.asarray(found, like.dtype),
        "JAX arrays",
        "an optax schedule",
    )


Frozen: Callable[[], optimizer.Frozen[Array]] = partial(optimizer.Frozen[Array], value_and_grad)
State: TypeAlias = update.State[Array]
Update: TypeAlias = update.Update[Array, Any]
