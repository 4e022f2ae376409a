"""The one path of a gradient: differentiate, clip, step."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

Tree = Any
"""A tensor, or a dict of trees."""
Moments = dict[str, Tree]
"""`count`, and `first_moment` and `second_moment` with the structure of the parameters."""


def leaves(tree: Tree) -> Iterator[Tensor]:
    """The tensors of a tree, in the order of its keys."""
    if isinstance(tree, Mapping):
        for branch in tree.values():
            yield from leaves(branch)
    else:
        yield tree


def tree_map(function: Callable[..., Any], tree: Tree, *others: Tree) -> Tree:
    """Apply `function` to the tensors that stand at the same place of each tree."""
    if isinstance(tree, Mapping):
        return {key: tree_map(function, branch, *(other[key] for other in others)) for key, branch in tree.items()}
    return function(tree, *others)


def value_and_grad(objective: Callable[[Tree], tuple[Tensor, Tensor]], parameters: Tree) -> tuple[tuple[Tensor, Tensor], Tree]:
    """Value, auxiliary tensor and gradient of `objective` at `parameters`; everything else it reads is a constant."""
    with torch.enable_grad():
        variables = tree_map(lambda leaf: leaf.detach().requires_grad_(), parameters)
        value, aux = objective(variables)
        gradients = iter(torch.autograd.grad(value, list(leaves(variables)), materialize_grads=True))
    return (value.detach(), aux.detach()), tree_map(lambda _: next(gradients), parameters)


class Optimizer:
    """Adam (Kingma & Ba 2015, arXiv:1412.6980), after clipping by the global norm of all gradients it is given."""

    def __init__(self, learning_rate: float, grad_norm_clip: float = 0.0) -> None:
        self.learning_rate = learning_rate
        self.grad_norm_clip = grad_norm_clip

    def init(self, parameters: Tree) -> Any:
        """The optimizer's state: a `torch.optim.Adam` that owns `parameters` and writes them in place."""
        return torch.optim.Adam(list(leaves(parameters)), lr=self.learning_rate, fused=True)

    def step(self, parameters: Tree, gradients: Tree, state: Any) -> tuple[Tree, Any]:
        """Parameters and state after one step against `gradients`."""
        gradient_list = list(leaves(gradients))
        if self.grad_norm_clip > 0:
            norm = torch.nn.utils.get_total_norm(gradient_list)
            torch._foreach_mul_(gradient_list, (self.grad_norm_clip / norm).clamp(max=1.0))
        for parameter, gradient in zip(leaves(parameters), gradient_list, strict=True):
            parameter.grad = gradient
        state.step()
        return parameters, state

    def moments(self, parameters: Tree, state: Any) -> Moments | None:
        """What the steps so far have left; zeros before the first one."""
        slots = [state.state.get(leaf, {}) for leaf in leaves(parameters)]
        count = slots[0].get("step", torch.zeros(()))

        def tree_of(key: str) -> Tree:
            found = iter(slots)
            return tree_map(lambda leaf: next(found).get(key, torch.zeros_like(leaf)), parameters)

        return {"count": count, "first_moment": tree_of("exp_avg"), "second_moment": tree_of("exp_avg_sq")}

    def with_moments(self, parameters: Tree, moments: Moments) -> Any:
        """A state that owns `parameters` and goes on from `moments`."""
        state = self.init(parameters)
        rows = zip(leaves(parameters), leaves(moments["first_moment"]), leaves(moments["second_moment"]), strict=True)
        for leaf, first, second in rows:
            count = torch.as_tensor(moments["count"]).to(device=leaf.device, dtype=torch.float32)
            state.state[leaf] = {"step": count.clone(), "exp_avg": first.clone(), "exp_avg_sq": second.clone()}
        return state


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
        return state, tree_map(torch.zeros_like, parameters)

    def init(self, parameters: Tree) -> Any:
        return self.around(parameters, self.optimizer.init(parameters))

    def step(self, parameters: Tree, gradients: Tree, state: Any) -> tuple[Tree, Any]:
        kept = tree_map(torch.clone, gradients)
        parameters, inner = self.optimizer.step(parameters, gradients, state[0])
        return parameters, (inner, kept)

    def moments(self, parameters: Tree, state: Any) -> Moments | None:
        return self.optimizer.moments(parameters, state[0])

    def with_moments(self, parameters: Tree, moments: Moments) -> Any:
        return self.around(parameters, self.optimizer.with_moments(parameters, moments))
