"""Recurrent models as a user writes them in PyTorch: a cell of their own, and a carry of two parts, the second of which counts steps."""

from typing import Any

import torch
from torch import Tensor, nn

WIDTH = 4
Carry = tuple[Tensor, Tensor]


class Cell(nn.Module):
    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.mix = nn.Linear(inputs + WIDTH, WIDTH)

    def forward(self, sequence: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
        hidden, steps = carry
        outputs = []
        for inputs in sequence.unbind():
            hidden, steps = torch.tanh(self.mix(torch.cat([inputs, hidden], -1))), steps + 1
            outputs.append(hidden)
        return torch.stack(outputs), (hidden, steps)


class Model(nn.Module):
    def initial_carry(self, batch: int) -> Carry:
        return torch.zeros(batch, WIDTH), torch.zeros(batch, 1)


class Actor(Model):
    def __init__(self, observations: int, actions: int) -> None:
        super().__init__()
        self.cell, self.out = Cell(observations), nn.Linear(WIDTH, 2 * actions)

    def forward(self, inputs: Any, carry: Carry) -> Any:
        outputs, carry = self.cell(inputs["observations"], carry)
        return (*self.out(outputs).chunk(2, -1), carry)


class Begins(Actor):
    """An actor whose episodes begin with what `first` holds."""

    def __init__(self, observations: int, actions: int, learns: bool) -> None:
        super().__init__(observations, actions)
        self.first = nn.Parameter(torch.full((WIDTH,), 0.5), requires_grad=learns)

    def initial_carry(self, batch: int) -> Carry:
        return self.first.expand(batch, WIDTH), torch.zeros(batch, 1, dtype=torch.int32)


class Value(Model):
    def __init__(self, observations: int, actions: int) -> None:
        super().__init__()
        self.cell, self.out = Cell(observations), nn.Linear(WIDTH + actions, 1)

    def forward(self, inputs: Any, actions: Tensor, carry: Carry) -> Any:
        outputs, carry = self.cell(inputs["observations"], carry)
        return self.out(torch.cat([outputs, actions], -1))[..., 0], carry


def returns(model: nn.Module, change: Any) -> nn.Module:
    """`model`, returning what `change` makes of its result."""

    own: Any = type(model)
    model.__class__ = type("Changed", (own,), {"forward": lambda self, *inputs: change(own.forward(self, *inputs))})
    return model


def carries(model: nn.Module, change: Any) -> nn.Module:
    """`model`, with an initial carry that `change` makes of its own."""

    own: Any = type(model)
    model.__class__ = type("Changed", (own,), {"initial_carry": lambda self, batch: change(own.initial_carry(self, batch))})
    return model


def user_models(observations: int, actions: int) -> dict[str, nn.Module]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return {"policy": Actor(observations, actions), **{f"critic_{i}": Value(observations, actions) for i in (1, 2)}}
