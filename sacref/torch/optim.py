"""The one path of a gradient: scale, differentiate, average over the ranks, unscale, clip, step."""

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler

from sacref.algorithm import update
from sacref.algorithm.data import Metrics, Noise, Sampled
from sacref.algorithm.tree import map_leaves
from sacref.config import ConfigError, Schedule
from sacref.spec.reduce import masked_mean
from sacref.spec.scaling import INITIAL_SCALE, next_scale
from sacref.spec.schedules import FACTORS, KLAdaptive

Tree = Any
"""A tensor, or a dict of trees."""
Moments = dict[str, Tree]
"""`count`, and `first_moment` and `second_moment` with the structure of the parameters; the scalars `calls` and `learning_rate`, and
`loss_scale`, `good_steps` and `skipped_steps`, where there are."""
Average = Callable[[Tree], Tree]
"""Of each tensor over all ranks; every rank gets the same."""
MEASURED = ("gradient_norm", "learning_rate", "loss_scale", "skipped_steps")


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


def average_over_ranks(tree: Tree) -> Tree:
    """Of each tensor over the ranks of torch.distributed's default group, in one message; every rank gets the same bits."""
    group: Any = dist.group.WORLD
    functional: Any = torch.ops._c10d_functional  # a recorded graph holds these as it holds any other operation
    parts = list(leaves(tree))
    summed = functional.all_reduce(torch.cat([part.reshape(-1) for part in parts]), "sum", group.group_name)
    averaged = iter((functional.wait_tensor(summed) / dist.get_world_size()).split([part.numel() for part in parts]))
    return tree_map(lambda part: next(averaged).view(part.shape), tree)


def batch_mean(average: Average | None) -> Callable[[Tensor, Tensor | None], Tensor]:
    """`(values, mask) -> mean` of a rank's part of the batch, such that the average over the ranks is the mean of the whole batch.

    Parts are of one size; the rows of theirs that count need not be.
    """

    def mean(values: Tensor, mask: Tensor | None) -> Tensor:
        count: Tensor | None = None if average is None or mask is None else average(mask.sum().to(values.dtype))
        return masked_mean(values, mask, count)

    return mean


def value_and_grad(
    objective: Callable[[Tree], tuple[Tensor, Any]], parameters: Tree, scale: Tensor | None = None
) -> tuple[tuple[Tensor, Any], Tree]:
    """Value, auxiliary tree of tensors and gradient of `objective` at `parameters`; everything else it reads is a constant.

    The gradient is that of `scale` times the objective.
    """
    with torch.enable_grad():
        variables = tree_map(lambda leaf: leaf.detach().requires_grad_(), parameters)
        value, aux = objective(variables)
        # Contiguous, as the parameters are: the fused optimizers walk through both side by side.
        scaled = value if scale is None else scale * value
        gradients = iter(torch.autograd.grad(scaled, list(leaves(variables)), materialize_grads=True))
    return (value.detach(), map_leaves(torch.Tensor.detach, aux)), tree_map(lambda _: next(gradients).contiguous(), parameters)


class Optimizer:
    """Adam (Kingma & Ba 2015, arXiv:1412.6980), after clipping by the global norm of all gradients it is given.

    The state is a tree of tensors, `Moments`, so that a step is a function of tensors that can be recorded, captured and batched. Where
    there is no clipping, schedule or delay, it holds nothing for them.

    Args:
        learning_rate: the base rate. grad_norm_clip: largest global norm; <= 0 is off.
        schedule: of the rate, by the number of calls; a class of torch.optim.lr_scheduler runs on the host, see `prepare`.
        every: n to apply the step at calls n, 2n, ... only; at the others nothing moves.
        scales_losses: scale the objective dynamically (`sacref.spec.scaling`), and skip a step whose gradients overflow.
        average: of gradients over the ranks; None for one rank.

    Raises:
        ConfigError: if the schedule is none that can run here.
    """

    def __init__(
        self,
        learning_rate: float,
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
        self._host = _HostSchedule(schedule, learning_rate) if schedule is not None and _is_scheduler(schedule.function) else None
        self._rate_of = _rate_of(schedule, learning_rate)

    def init(self, parameters: Tree) -> Any:
        """The optimizer's state before the first step."""
        first, second = (tree_map(torch.zeros_like, parameters) for _ in range(2))
        return self._state(parameters, {"first_moment": first, "second_moment": second})

    def prepare(self, state: Any) -> None:
        """Write the rate of the next call into the state, where a scheduler of torch's has it on the host; else do nothing.

        To be called once before each `step`, outside of what is recorded or captured. Nothing is read from the device.
        """
        if self._host is not None:
            state["learning_rate"].fill_(self._host.next_rate())

    def minimise(self, objective: Callable[[Tree], tuple[Tensor, Any]], parameters: Tree, state: Any) -> tuple[Tensor, Any, Tree, Any]:
        """One step against the gradient of `objective`, a function of the parameters that returns its value and an auxiliary tree.

        Returns:
            Value and auxiliary tree at the given parameters, then parameters and state after the step.
        """
        (value, aux), gradients = self.value_and_grad(objective, parameters, state)
        return value, aux, *self.step(parameters, gradients, state)

    def value_and_grad(
        self, objective: Callable[[Tree], tuple[Tensor, Any]], parameters: Tree, state: Any
    ) -> tuple[tuple[Tensor, Any], Tree]:
        """Value, auxiliary tree of tensors and gradient of `objective`, as `step` takes it: of this rank, scaled."""
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
        """Parameters and state after one step against what `value_and_grad` gave; parameters and moments are written in place."""
        scalars: dict[str, Tensor] = {}
        gradient_list: list[Tensor] | tuple[Tensor, ...] = list(leaves(self.received(gradients, state)))
        skips: list[Tensor] = []
        if self.grad_norm_clip > 0 or self.scales_losses:
            norm = torch.nn.utils.get_total_norm(gradient_list)
        if self.scales_losses:
            overflow = ~torch.isfinite(norm)
            scalars["loss_scale"], scalars["good_steps"] = next_scale(state["loss_scale"], state["good_steps"], overflow)
            scalars["skipped_steps"] = state["skipped_steps"] + overflow
            skips.append(overflow)
            norm = torch.where(overflow, state["gradient_norm"], norm) if self.grad_norm_clip > 0 else norm
        if self.grad_norm_clip > 0:
            scalars["gradient_norm"] = norm
            gradient_list = torch._foreach_mul(gradient_list, (self.grad_norm_clip / norm).clamp(max=1.0))
        if "calls" in state:
            scalars["calls"] = state["calls"] + 1
        if self.every > 1:
            skips.append(scalars["calls"] % self.every != 0)
        # The kernel skips its step where this is 1; the device decides it.
        skipped = functools.reduce(torch.logical_or, skips).to(torch.float32) if skips else None
        rate: Any = self.learning_rate
        if self.schedule is not None:
            rate = state["learning_rate"] if self._rate_of is None else self._rate_of(state["calls"], state["learning_rate"])
            scalars["learning_rate"] = rate
            # The kernel for CUDA reads a rate of float32 alone.
            rate = rate.to(torch.float32) if rate.is_cuda else rate
        state["count"].add_(1 if skipped is None else 1 - skipped)
        # The kernel of torch.optim.Adam(fused=True). The class itself finds its state by the identity of the parameters, and keeps a
        # count for each, neither of which a recorded graph can follow.
        torch._fused_adam_(
            list(leaves(parameters)),
            list(gradient_list),
            list(leaves(state["first_moment"])),
            list(leaves(state["second_moment"])),
            [],
            [state["count"]] * len(gradient_list),
            lr=rate,
            beta1=0.9,
            beta2=0.999,
            weight_decay=0.0,
            eps=1e-8,
            amsgrad=False,
            maximize=False,
            found_inf=skipped,
        )
        return parameters, {**state, **scalars}

    def adapt(self, state: Any, divergence: Callable[[], Tensor]) -> Any:
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
            rate = torch.where(state["calls"] % self.every == 0, rate, state["learning_rate"])
        return {**state, "learning_rate": rate}

    def measured(self, state: Any) -> dict[str, Tensor]:
        """What the last step measured, `()` each, where there are such: `gradient_norm` before clipping (of the last step whose gradients
        did not overflow), `learning_rate`, `loss_scale` of the next step, and `skipped_steps` so far."""
        like = state["first_moment"]
        return {name: state[name].to(next(leaves(like)).dtype, copy=True) for name in MEASURED if name in state}

    def moments(self, parameters: Tree, state: Any) -> Moments | None:
        """What the steps so far have left; zeros before the first one."""
        return {name: tree for name, tree in state.items() if name != "gradient_norm"}

    def with_moments(self, parameters: Tree, moments: Moments) -> Any:
        """A state for `parameters` that goes on from `moments`."""
        return self._state(
            parameters,
            moments | {name: tree_map(_contiguous_copy, moments[name]) for name in ("first_moment", "second_moment")},
        )

    def _state(self, parameters: Tree, given: Mapping[str, Any]) -> dict[str, Any]:
        """The state with the moments and the scalars that are given, the others as before the first step."""
        like = next(leaves(parameters))

        def scalar(name: str, initial: float, dtype: torch.dtype) -> Tensor:
            return torch.as_tensor(given.get(name, initial), dtype=dtype, device=like.device).clone()

        state = {"count": scalar("count", 0, torch.float32), "first_moment": given["first_moment"], "second_moment": given["second_moment"]}
        if self.schedule is not None or self.every > 1:
            state["calls"] = scalar("calls", 0, torch.int64)
        if self.schedule is not None:
            state["learning_rate"] = scalar("learning_rate", self.learning_rate, like.dtype)
        if self.grad_norm_clip > 0:
            state["gradient_norm"] = torch.zeros((), dtype=like.dtype, device=like.device)
        if self.scales_losses:
            state["loss_scale"] = scalar("loss_scale", INITIAL_SCALE, like.dtype)
            state |= {name: scalar(name, 0, torch.int64) for name in ("good_steps", "skipped_steps")}
        if self._host is not None:
            self._host.go_to(int(given.get("calls", 0)))
        return state


def _rate_of(schedule: Schedule | None, learning_rate: float) -> Callable[[Tensor, Tensor], Tensor] | None:
    """(calls before this one, any tensor of the rate's dtype) -> rate; None where the state holds the rate.

    Factors multiply the base rate and never each other.
    """
    if schedule is None or schedule.function is KLAdaptive or _is_scheduler(schedule.function):
        return None
    function, kwargs = schedule
    if function in FACTORS.values():
        return lambda calls, like: learning_rate * function(calls.to(like.dtype), **kwargs)
    name = getattr(function, "__name__", repr(function))
    try:
        own = function(**kwargs) if kwargs else function
        rate = torch.as_tensor(own(torch.zeros(())))
    except Exception as error:
        raise ConfigError(
            f"learning_rate_scheduler is {name} with arguments {dict(kwargs)}, which fails as step -> rate on PyTorch tensors "
            f"({type(error).__name__}: {error}): expected a schedule of sacref.spec.schedules, a class of torch.optim.lr_scheduler, "
            f"a function step -> rate, or with arguments a function that makes one"
        ) from error
    if rate.shape != ():
        raise ConfigError(f"learning_rate_scheduler is {name}, which gives a rate of shape {tuple(rate.shape)}, expected ()")

    def rate_at(calls: Tensor, like: Tensor) -> Tensor:
        found = own(calls.to(like.dtype))
        # A number is filled in where it is needed: a copy from the host cannot be captured.
        return found.to(like) if isinstance(found, Tensor) else torch.full_like(like, float(found))

    return rate_at


def _is_scheduler(function: Any) -> bool:
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
        """Stand where `calls` calls of `next_rate` lead."""
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
        """The rate of the next call; the first one's is the scheduler's initial one."""
        if self._begun:
            self._optimizer.step()  # without it, the scheduler warns
            self._scheduler.step()
        self._begun = True
        return float(self._optimizer.param_groups[0]["lr"])


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

    def measured(self, state: Any) -> dict[str, Tensor]:
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
        self.optimizer = optimizer

    @staticmethod
    def around(parameters: Tree, state: Any) -> Any:
        """The state of this optimizer, from that of the one it wraps."""
        return state, tree_map(torch.zeros_like, parameters)

    def init(self, parameters: Tree) -> Any:
        return self.around(parameters, self.optimizer.init(parameters))

    def prepare(self, state: Any) -> None:
        self.optimizer.prepare(state[0])

    def value_and_grad(
        self, objective: Callable[[Tree], tuple[Tensor, Any]], parameters: Tree, state: Any
    ) -> tuple[tuple[Tensor, Any], Tree]:
        return self.optimizer.value_and_grad(objective, parameters, state[0])

    def step(self, parameters: Tree, gradients: Tree, state: Any) -> tuple[Tree, Any]:
        kept = tree_map(torch.clone, self.optimizer.received(gradients, state[0]))
        parameters, inner = self.optimizer.step(parameters, gradients, state[0])
        return parameters, (inner, kept)

    def adapt(self, state: Any, divergence: Callable[[], Tensor]) -> Any:
        return self.optimizer.adapt(state[0], divergence), state[1]

    def measured(self, state: Any) -> dict[str, Tensor]:
        return self.optimizer.measured(state[0])

    def moments(self, parameters: Tree, state: Any) -> Moments | None:
        return self.optimizer.moments(parameters, state[0])

    def with_moments(self, parameters: Tree, moments: Moments) -> Any:
        return self.around(parameters, self.optimizer.with_moments(parameters, moments))


State: TypeAlias = update.State[Tensor]
"""All that a gradient step reads and writes."""


class Update(update.Update[Tensor, Optimizer]):
    """The gradient step, which carries no gradient but within `Optimizer.minimise`."""

    @torch.no_grad()
    def __call__(self, state: State, batch: Sampled[Tensor], noise: Noise[Tensor]) -> tuple[State, Metrics[Tensor]]:
        return super().__call__(state, batch, noise)
