"""Networks in low precision by autocast, all but their head; everything else is computed as it is."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sacref.agent.model_checks import has_head
from sacref.algorithm.tree import Tree, map_leaves
from sacref.torch.weights import Parameters, functional

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def low_precision(model: nn.Module, precision: str, device: torch.device) -> Callable[..., Tree]:
    """Return `functional(model)` under `torch.autocast`, with outputs in float32.

    What the model has as its `head`, a module, is computed in float32 from up-cast inputs: to cast its result up would keep the
    quantisation, which at |Q| = 1,000 is 4 apart in bfloat16 and 0.5 in float16 (Bjorck et al. 2021, arXiv:2102.13565).

    Args:
        precision: "bfloat16" or "float16". device: that it runs on.
    """
    head: Any = getattr(model, "head", None) if has_head(model) else None
    apply = functional(model)

    def run(parameters: Parameters, *inputs: Tree) -> Tree:
        with torch.autocast(device.type, DTYPES[precision]), _in_float32(head, device):
            outputs = apply(parameters, *inputs)
        return map_leaves(_up, outputs)

    return run


@contextmanager
def _in_float32(head: nn.Module | None, device: torch.device) -> Iterator[None]:
    """Let `head` be computed in float32 meanwhile."""
    if head is None:
        yield
        return
    forward = head.forward

    def exact(*inputs: object, **keywords: object) -> Tree:
        with torch.autocast(device.type, enabled=False):
            return forward(*map_leaves(_up, inputs), **map_leaves(_up, keywords))

    head.forward = exact
    try:
        yield
    finally:
        del head.forward  # the class's own again


def _up(value: object) -> object:
    return value.float() if isinstance(value, Tensor) and value.dtype in DTYPES.values() else value
