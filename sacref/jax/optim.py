"""The one path of a gradient: differentiate, clip, step."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

Tree = Any
"""An array, or a dict of trees."""
Moments = dict[str, Tree]
"""`count`, and `first_moment` and `second_moment` with the structure of the parameters."""


def tree_map(function: Callable[..., Any], tree: Tree, *others: Tree) -> Tree:
    """Apply `function` to the arrays that stand at the same place of each tree."""
    return jax.tree.map(function, tree, *others)


def value_and_grad(objective: Callable[[Tree], tuple[Array, Tree]], parameters: Tree) -> tuple[tuple[Array, Tree], Tree]:
    """Value, auxiliary array and gradient of `objective` at `parameters`; everything else it reads is a constant."""
    result: tuple[tuple[Array, Tree], Tree] = jax.value_and_grad(objective, has_aux=True)(parameters)
    return result


class Optimizer:
    """Adam (Kingma & Ba 2015, arXiv:1412.6980), after clipping by the global norm of all gradients it is given."""

    def __init__(self, learning_rate: float, grad_norm_clip: float = 0.0, schedule=None, every=1) -> None:
        self.learning_rate = learning_rate
        self.grad_norm_clip = grad_norm_clip
        clip = optax.clip_by_global_norm(grad_norm_clip) if grad_norm_clip > 0 else optax.identity()
        # Not optax.flatten around it: a call then hands over half as many arrays, 0.1 ms less at width 256, but at width 512 a scan of
        # such steps was measured at a quarter of the speed.
        self.transformation = optax.chain(clip, optax.adam(learning_rate))

    def init(self, parameters: Tree) -> Any:
        """The optimizer's state: optax's, for `parameters`."""
        return _beside(parameters, self.transformation.init(parameters))

    def step(self, parameters: Tree, gradients: Tree, state: Any) -> tuple[Tree, Any]:
        """Parameters and state after one step against `gradients`."""
        updates, state = self.transformation.update(gradients, state, parameters)
        return optax.apply_updates(parameters, updates), state

    def prepare(self, state): ...
    def measured(self, state):
        return {}

    def adapt(self, state, divergence):
        return state

    def moments(self, parameters: Tree, state: Any) -> Moments | None:
        """What the steps so far have left; zeros before the first one."""
        count, first, second = (optax.tree.get(state, key) for key in ("count", "mu", "nu"))
        return {"count": count, "first_moment": first, "second_moment": second}

    def with_moments(self, parameters: Tree, moments: Moments) -> Any:
        """A state for `parameters` that goes on from `moments`."""
        count = jnp.asarray(moments["count"], jnp.int32)
        state = optax.tree.set(self.init(parameters), count=count, mu=moments["first_moment"], nu=moments["second_moment"])
        return _beside(parameters, state)


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

    def moments(self, parameters: Tree, state: Any) -> Moments | None:
        return None

    def with_moments(self, parameters: Tree, moments: Moments) -> Any:
        return None


class KeepGradients(Optimizer):
    """Wraps an optimizer and keeps, beside its state, the gradient of the last step as it was before clipping."""

    def __init__(self, optimizer: Optimizer) -> None:
        super().__init__(optimizer.learning_rate, optimizer.grad_norm_clip)
        self.optimizer = optimizer

    @staticmethod
    def around(parameters: Tree, state: Any) -> Any:
        """The state of this optimizer, from that of the one it wraps."""
        return state, tree_map(jnp.zeros_like, parameters)

    def init(self, parameters: Tree) -> Any:
        return self.around(parameters, self.optimizer.init(parameters))

    def step(self, parameters: Tree, gradients: Tree, state: Any) -> tuple[Tree, Any]:
        parameters, inner = self.optimizer.step(parameters, gradients, state[0])
        return parameters, (inner, gradients)

    def moments(self, parameters: Tree, state: Any) -> Moments | None:
        return self.optimizer.moments(parameters, state[0])

    def with_moments(self, parameters: Tree, moments: Moments) -> Any:
        return self.around(parameters, self.optimizer.with_moments(parameters, moments))
