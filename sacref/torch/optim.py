"""The one path of a gradient: differentiate, clip, step."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from sacref.tree import map_leaves

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


def value_and_grad(objective: Callable[[Tree], tuple[Tensor, Tree]], parameters: Tree) -> tuple[tuple[Tensor, Tree], Tree]:
    """Value, auxiliary tensor and gradient of `objective` at `parameters`; everything else it reads is a constant."""
    with torch.enable_grad():
        variables = tree_map(lambda leaf: leaf.detach().requires_grad_(), parameters)
        value, aux = objective(variables)
        # Contiguous, as the parameters are: the fused optimizers walk through both side by side.
        gradients = iter(torch.autograd.grad(value, list(leaves(variables)), materialize_grads=True))
    return (value.detach(), map_leaves(lambda leaf: leaf.detach(), aux)), tree_map(lambda _: next(gradients).contiguous(), parameters)


class Optimizer:
    """Adam (Kingma & Ba 2015, arXiv:1412.6980), after clipping by the global norm of all gradients it is given.

    The state is a tree of tensors, `Moments`, so that a step is a function of tensors that can be recorded, captured and batched.
    """

    def __init__(self, learning_rate: float, grad_norm_clip: float = 0.0, schedule=None, every=1) -> None:
        self.learning_rate = learning_rate
        self.grad_norm_clip = grad_norm_clip

    def init(self, parameters: Tree) -> Any:
        """The optimizer's state before the first step."""
        device = next(leaves(parameters)).device
        first, second = (tree_map(torch.zeros_like, parameters) for _ in range(2))
        return {"count": torch.zeros((), dtype=torch.float32, device=device), "first_moment": first, "second_moment": second}

    def step(self, parameters: Tree, gradients: Tree, state: Any) -> tuple[Tree, Any]:
        """Parameters and state after one step against `gradients`; both are written in place."""
        gradient_list: list[Tensor] | tuple[Tensor, ...] = list(leaves(gradients))
        if self.grad_norm_clip > 0:
            norm = torch.nn.utils.get_total_norm(gradient_list)
            gradient_list = torch._foreach_mul(gradient_list, (self.grad_norm_clip / norm).clamp(max=1.0))
        state["count"].add_(1)
        # The kernel of torch.optim.Adam(fused=True). The class itself finds its state by the identity of the parameters, and keeps a
        # count for each, neither of which a recorded graph can follow.
        torch._fused_adam_(
            list(leaves(parameters)),
            list(gradient_list),
            list(leaves(state["first_moment"])),
            list(leaves(state["second_moment"])),
            [],
            [state["count"]] * len(gradient_list),
            lr=self.learning_rate,
            beta1=0.9,
            beta2=0.999,
            weight_decay=0.0,
            eps=1e-8,
            amsgrad=False,
            maximize=False,
        )
        return parameters, state

    def prepare(self, state): ...
    def measured(self, state):
        return {}

    def adapt(self, state, divergence):
        return state

    def moments(self, parameters: Tree, state: Any) -> Moments | None:
        """What the steps so far have left; zeros before the first one."""
        return dict(state)

    def with_moments(self, parameters: Tree, moments: Moments) -> Any:
        """A state for `parameters` that goes on from `moments`."""
        count = torch.as_tensor(moments["count"]).to(device=next(leaves(parameters)).device, dtype=torch.float32)
        first, second = (tree_map(_contiguous_copy, moments[name]) for name in ("first_moment", "second_moment"))
        return {"count": count.clone(), "first_moment": first, "second_moment": second}


def _contiguous_copy(leaf: Tensor) -> Tensor:
    return leaf.clone(memory_format=torch.contiguous_format)


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
