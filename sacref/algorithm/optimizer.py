"""What the gradient step asks of a backend's optimizer."""

from collections.abc import Callable
from typing import Any, Protocol, TypeAlias, TypeVar

from sacref.algorithm.tree import Tree
from sacref.spec.arrays import ArrayT

Parameters: TypeAlias = dict[str, ArrayT]
"""Name of a parameter -> array."""


class Optimizer(Protocol[ArrayT]):
    """One step against the gradient of an objective. Its state is a tree of the backend's arrays, which it alone reads."""

    def init(self, parameters: Tree, /) -> Any:
        """Return the state before the first step."""
        ...

    def minimise(self, objective: Callable[[Tree], tuple[ArrayT, Any]], parameters: Tree, state: Any, /) -> tuple[ArrayT, Any, Tree, Any]:
        """Step against the gradient of `objective`, a function of the parameters that returns its value, `()`, and an auxiliary tree.

        All else that the objective reads is a constant of it.

        Returns:
            Value and auxiliary tree at the given parameters, then parameters and state after the step.
        """
        ...

    def adapt(self, state: Any, divergence: Callable[[], ArrayT], /) -> Any:
        """Return the state after an adaptive schedule has seen how far the policy moved: `divergence()`, the mean KL divergence, `()`."""
        ...

    def measured(self, state: Any, /) -> dict[str, ArrayT]:
        """Return what the last step measured, `()` each, by the endings of the metrics' names."""
        ...


OptimizerT = TypeVar("OptimizerT", bound=Optimizer[Any])
