"""PyTorch's modes that a caller may be in, inference mode and autocast: an agent computes as if there were none."""

import functools
import inspect
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, TypeVar
from weakref import WeakSet

import torch

Agent = TypeVar("Agent", bound=type)

_DECORATED: WeakSet[Callable[..., object]] = WeakSet()


def in_no_mode(agent: Agent) -> Agent:
    """Decorate an agent's class: its public methods leave inference mode and autocast while they run.

    In inference mode no gradient can be taken, and tensors that were made in it cannot be written later; under the caller's autocast the
    update would be computed in low precision, which `mixed_precision` alone decides.
    """
    for name, method in inspect.getmembers(agent, inspect.isfunction):
        # What a decorated base class has stays inherited.
        if (name == "__init__" or not name.startswith("_")) and method not in _DECORATED:
            decorated = _in_no_mode(method)
            _DECORATED.add(decorated)
            setattr(agent, name, decorated)
    return agent


def _in_no_mode(method: Callable[..., object]) -> Callable[..., Any]:
    @functools.wraps(method)
    def run(*arguments: object, **keywords: object) -> Any:
        casting = [device for device in ("cpu", "cuda") if torch.is_autocast_enabled(device)]
        if not casting and not torch.is_inference_mode_enabled():
            return method(*arguments, **keywords)
        with ExitStack() as left:
            left.enter_context(torch.inference_mode(False))
            for device in casting:
                left.enter_context(torch.autocast(device, enabled=False))
            return method(*arguments, **keywords)

    return run
