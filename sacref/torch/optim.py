"""PyTorch's part of a gradient step: autograd, the fused kernel of Adam, schedules of torch.optim, the average over ranks."""

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.optim.lr_scheduler import LRScheduler

from sacref.algorithm import optimizer, update
from sacref.algorithm.data import Metrics, Noise, Sampled
from sacref.algorithm.optimizer import Moments, Objective, Rate, Step, rate_function
from sacref.algorithm.tree import Tree, leaves, map_leaves
from sacref.config import ConfigError, Schedule
from sacref.spec.schedules import KLAdaptive
from sacref.torch.graph import adam_


def average_over_ranks(tree: Tree) -> Tree:
    """Average each tensor over the ranks of torch.distributed's default group, in one message; every rank gets the same bits."""
    group: Any = dist.group.WORLD
    functional: Any = torch.ops._c10d_functional  # a recorded graph holds these as it holds any other operation
    tensors = leaves(tree)
    summed = functional.all_reduce(torch.cat([tensor.reshape(-1) for tensor in tensors]), "sum", group.group_name)
    averaged = iter((functional.wait_tensor(summed) / dist.get_world_size()).split([tensor.numel() for tensor in tensors]))
    return map_leaves(lambda tensor: next(averaged).view(tensor.shape), tree)


def value_and_grad(objective: Objective[Tensor], parameters: Tree, scale: Tensor | None = None) -> tuple[tuple[Tensor, Tree], Tree]:
    """Return value and auxiliary tree of `objective` at `parameters`, and the gradient of `scale` times it."""
    with torch.enable_grad():
        variables = map_leaves(lambda leaf: leaf.detach().requires_grad_(), parameters)
        value, aux = objective(variables)
        # Contiguous, as the parameters are: the fused optimizers walk through both side by side.
        scaled = value if scale is None else scale * value
        gradients = iter(torch.autograd.grad(scaled, leaves(variables), materialize_grads=True))
    return (value.detach(), map_leaves(torch.Tensor.detach, aux)), map_leaves(lambda _: next(gradients).contiguous(), parameters)


class Optimizer(optimizer.Adam[Tensor]):
    """Adam by PyTorch's fused kernel. The state is a tree of tensors, so that a step can be recorded, captured and batched."""

    differentiate: optimizer.Differentiate[Tensor] = staticmethod(value_and_grad)

    def rate_of(self, schedule: Schedule | None) -> Rate[Tensor] | None:
        self._host = (
            _HostSchedule(schedule, float(self.learning_rate)) if schedule is not None and _is_scheduler(schedule.function) else None
        )
        return _rate_of(schedule, self.learning_rate)

    def init(self, parameters: Tree) -> dict[str, Tree]:
        first, second = (map_leaves(torch.zeros_like, parameters) for _ in range(2))
        return self._state(parameters, {"first_moment": first, "second_moment": second})

    def prepare(self, state: Tree) -> None:
        if self._host is not None:
            state["learning_rate"].fill_(self._host.next_rate())

    def norm(self, gradients: Tree) -> Tensor:
        return torch.nn.utils.get_total_norm(leaves(gradients))

    def apply(self, parameters: Tree, gradients: Tree, state: Tree, step: Step[Tensor]) -> tuple[Tree, Tree]:
        """Take the step in place."""
        rate, scalars, skipped = step
        gradient_list: Any = leaves(gradients)
        if self.grad_norm_clip > 0:
            gradient_list = torch._foreach_mul(gradient_list, (self.grad_norm_clip / scalars["gradient_norm"]).clamp(max=1.0))
        # The kernel skips its step where this is 1; the device decides it.
        found_inf = None if skipped is None else skipped.to(torch.float32)
        own = leaves(parameters)
        take = _step_of(own[0].device.type, own[0].dtype, tensor_rate=isinstance(rate, Tensor))
        lr: Any = rate.to(own[0].dtype) if isinstance(rate, Tensor) and rate.is_cuda else rate
        state["count"].add_(1 if found_inf is None else 1 - found_inf)
        # The kernel of torch.optim.Adam(fused=True). The class itself finds its state by the identity of the parameters, and keeps a
        # count for each, neither of which a recorded graph can follow.
        take(
            own,
            list(gradient_list),
            leaves(state["first_moment"]),
            leaves(state["second_moment"]),
            [],
            [state["count"]] * len(gradient_list),
            lr=lr,
            beta1=0.9,
            beta2=0.999,
            weight_decay=0.0,
            eps=1e-8,
            amsgrad=False,
            maximize=False,
            found_inf=found_inf,
        )
        return parameters, {**state, **scalars}

    def scalar(self, value: float | Tensor, like: Tensor, *, integer: bool = False) -> Tensor:
        return torch.as_tensor(value, dtype=torch.int64 if integer else like.dtype, device=like.device).clone()

    def moments(self, parameters: Tree, state: Tree) -> Moments:
        return {name: tree for name, tree in state.items() if name != "gradient_norm"}

    def with_moments(self, parameters: Tree, moments: Moments) -> dict[str, Tree]:
        def copied(leaf: Tensor) -> Tensor:
            return leaf.clone(memory_format=torch.contiguous_format)

        return self._state(parameters, moments | {name: map_leaves(copied, moments[name]) for name in ("first_moment", "second_moment")})

    def _state(self, parameters: Tree, given: Mapping[str, Tree]) -> dict[str, Tree]:
        like = leaves(parameters)[0]
        count = torch.as_tensor(given.get("count", 0), dtype=torch.float32, device=like.device).clone()
        if self._host is not None:
            self._host.go_to(int(given.get("calls", 0)))
        moments = {name: given[name] for name in ("first_moment", "second_moment")}
        return {"count": count, **moments, **self.scalars(parameters, given)}


def _step_of(device: str, dtype: torch.dtype, *, tensor_rate: bool) -> Callable[..., object]:
    """Return the kernel of Adam's step, or in float64 what computes it where the kernel would read the rate in float32, as CUDA's does."""
    return adam_ if device == "cuda" and dtype == torch.float64 and tensor_rate else torch._fused_adam_


def _rate_of(schedule: Schedule | None, learning_rate: float | Tensor) -> Rate[Tensor] | None:
    if schedule is None or schedule.function is KLAdaptive or _is_scheduler(schedule.function):
        return None

    def as_rate(found: Any, like: Tensor) -> Tensor:
        # A number is filled in where it is needed: a copy from the host cannot be captured.
        return found.to(like) if isinstance(found, Tensor) else torch.full_like(like, float(found))

    return rate_function(
        schedule,
        learning_rate,
        _shape_of,
        as_rate,
        "PyTorch tensors",
        "a class of torch.optim.lr_scheduler",
    )


def _shape_of(own: Callable[[Tensor], object]) -> torch.Size:
    """Return the shape of the rate at a step without a value, as a recording calls it: what decides by its value raises."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        return torch.as_tensor(own(torch.zeros(()))).shape


def _is_scheduler(function: object) -> bool:
    return isinstance(function, type) and issubclass(function, LRScheduler)


class _HostSchedule:
    """A scheduler of torch.optim.lr_scheduler, around an optimizer that steps nothing: only its rate is taken."""

    def __init__(self, schedule: Schedule, learning_rate: float) -> None:
        self.schedule = schedule
        self.learning_rate = learning_rate
        function: Any = schedule.function
        arguments = list(inspect.signature(function.step).parameters.values())[1:]
        if any(argument.default is argument.empty and argument.kind is argument.POSITIONAL_OR_KEYWORD for argument in arguments):
            raise ConfigError(
                f"learning_rate_scheduler is {function.__name__}, whose step needs {arguments[0].name}, which a gradient step cannot have: "
                f"expected a scheduler of the step alone, or kl_adaptive, which follows the policy's divergence"
            )
        self.go_to(0)

    def go_to(self, calls: int) -> None:
        """Go to where `calls` calls of `next_rate` lead."""
        function, kwargs = self.schedule
        optimizer = torch.optim.SGD([torch.zeros((), requires_grad=True)], lr=self.learning_rate)
        try:
            scheduler = function(optimizer, **kwargs)
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"learning_rate_scheduler_kwargs is {dict(kwargs)}, which {function.__name__} refuses ({error}): "
                f"expected arguments of {function.__name__}{inspect.signature(function)}, without the optimizer"
            ) from error
        self._optimizer, self._scheduler, self._begun = optimizer, scheduler, False
        for _ in range(calls):
            self.next_rate()

    def next_rate(self) -> float:
        """Return the rate of the next call; the first one's is the scheduler's initial one."""
        if self._begun:
            self._optimizer.step()  # without it, the scheduler warns
            self._scheduler.step()
        self._begun = True
        return float(self._optimizer.param_groups[0]["lr"])


Frozen: Callable[[], optimizer.Frozen[Tensor]] = partial(optimizer.Frozen[Tensor], value_and_grad)
State: TypeAlias = update.State[Tensor]


class Update(update.Update[Tensor, Any]):
    """The gradient step, which carries no gradient but within an optimizer's `minimise`."""

    @torch.no_grad()
    def __call__(self, state: State, batch: Sampled[Tensor], noise: Noise[Tensor]) -> tuple[State, Metrics[Tensor]]:
        return super().__call__(state, batch, noise)

    @property
    def scheduled_on_host(self) -> bool:
        """True where a schedule writes into the state before each step (`Optimizer.prepare`)."""
        optimizers = (self.policy_optimizer, self.critic_optimizer, self.temperature_optimizer)
        return any(getattr(optimizer, "_host", None) is not None for optimizer in optimizers)
