"""The default recurrent networks: a policy and a Q-function, each with a cell of its own."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensor

from sacref.agent.networks import Network, recurrent_policy, recurrent_q_function
from sacref.algorithm.tree import Tree, map_leaves
from sacref.torch.layers import Perceptron

CELLS: dict[str, Callable[..., nn.RNNBase]] = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}


class Recurrent(Perceptron):
    """A cell below a perceptron (`sacref.agent.networks.RecurrentPerceptron`)."""

    def __init__(self, network: Network, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(network, dtype)
        self.cell: nn.RNNBase = recurrent_cell(*network.recurrent_cell, dtype)

    def initial_carry(self, batch: int) -> Tree:
        """Return zeros, `(batch, size)`; see `Cell.initial_carry`."""
        cell = self.network.recurrent_cell
        return cell.initial_carry(self.head.weight.new_zeros(batch, cell.size))

    def train(self, mode: bool = True) -> Self:
        """Set the mode of all but the cell, which computes the same in either: cuDNN has no gradient in evaluation mode."""
        super().train(mode)
        self.cell.train()
        return self

    def run_cell(self, inputs: list[Tensor], carry: Tree) -> tuple[Tensor, Tree]:
        x = torch.cat(inputs, dim=-1)
        with _pytorchs_own(x), _without_warning(x):
            outputs, state = self._in_precision(x, map_leaves(lambda leaf: leaf[None], carry))
        return outputs, map_leaves(lambda leaf: leaf[0], state)

    def _in_precision(self, x: Tensor, state: Tree) -> tuple[Tensor, Tree]:
        """Run the cell in the precision in force: on CUDA, autocast has cuDNN's cells compute in float16 where bfloat16 is asked."""
        device = x.device.type
        if not x.is_cuda or not torch.is_autocast_enabled(device):
            outputs, state = self.cell(x, state)
            return outputs, state
        dtype = torch.get_autocast_dtype(device)
        lowered = {name: parameter.to(dtype) for name, parameter in self.cell.named_parameters()}
        with torch.autocast(device, enabled=False):
            outputs, state = torch.func.functional_call(self.cell, lowered, (x.to(dtype), map_leaves(lambda part: part.to(dtype), state)))
        return outputs, state


class RecurrentPolicy(Recurrent):
    """Sequences of observations -> Gaussians before the squashing, and the carry."""

    forward = recurrent_policy


class RecurrentQFunction(Recurrent):
    """Sequences of observations (or states) and of actions in (-1, 1) -> the soft action values, and the carry."""

    forward = recurrent_q_function


def recurrent_cell(kind: str, inputs: int, size: int, dtype: torch.dtype) -> nn.RNNBase:
    """Make one layer of zeros, over `(time, batch, inputs)`: the weights are drawn by default_models."""
    cell = CELLS[kind](inputs, size, dtype=dtype, device="meta")  # torch's own draw would move the global generator
    cell = cell.to_empty(device="cpu")
    for parameter in cell.parameters():
        nn.init.zeros_(parameter)
    return cell


@contextmanager
def _pytorchs_own(x: Tensor) -> Iterator[None]:
    """Keep a recording away from the libraries' cells.

    The gradient of oneDNN's LSTM needs a workspace that a replayed forward pass does not leave. cuDNN's cells, and those of PyTorch for
    CUDA, can neither be recorded with fake tensors nor mapped over members: there a recording has PyTorch's decompositions of them.
    """
    if not isinstance(x, FakeTensor):
        yield
        return
    if x.device.type != "cpu":
        with enable_python_dispatcher():
            yield
        return
    settings: Any = torch.backends.mkldnn
    enabled = settings.enabled
    settings.enabled = False
    try:
        yield
    finally:
        settings.enabled = enabled


@contextmanager
def _without_warning(x: Tensor) -> Iterator[None]:
    """On CUDA: parameters that are arguments do not lie side by side, so that cuDNN packs them at each call, and says so."""
    if not x.is_cuda:
        yield
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="RNN module weights are not part of single contiguous chunk")
        yield
