"""The default recurrent networks: a policy and a Q-function, each with a cell of its own."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensor

from sacref.agent.networks import Network, check_carry
from sacref.algorithm.data import Inputs
from sacref.algorithm.tree import map_leaves
from sacref.torch.layers import Perceptron

CELLS: dict[str, Callable[..., nn.RNNBase]] = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}


class Recurrent(Perceptron):
    """A cell over the inputs, the previous actions and the previous rewards; above it a perceptron that sees the inputs, too.

    The networks of Ni et al. 2022 (arXiv:2110.05038): each owns its cell, and has a shortcut of the current input.
    """

    def __init__(self, network: Network, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(network, dtype)
        if network.cell is None:
            raise ValueError("a recurrent network needs a cell: Network(..., cell=Cell(kind, inputs, size))")
        self.kind: str = network.cell.kind
        self.size: int = network.cell.size
        self.cell: nn.RNNBase = recurrent_cell(self.kind, network.cell.inputs, self.size, dtype)

    def initial_carry(self, batch: int) -> Any:
        """Zeros: `(batch, size)`, of an LSTM a tuple of two."""
        zeros = self.head.weight.new_zeros
        return (zeros(batch, self.size), zeros(batch, self.size)) if self.kind == "lstm" else zeros(batch, self.size)

    def train(self, mode: bool = True) -> Self:
        """As any module; the cell stays in training mode, where it computes the same, since cuDNN has no gradient in the other."""
        super().train(mode)
        self.cell.train()
        return self

    def unroll(self, inputs: Inputs[Tensor], carry: Any) -> tuple[list[Tensor], Any]:
        """What the perceptron sees at each step, the cell's output first, and the carry after the last step.

        Raises:
            ValueError: if the carry does not fit the inputs.
        """
        seen = self.read(inputs, 2)
        fed = list(seen)
        if "actions" in self.network.feed_previous:
            fed.append(inputs["previous_actions"])
        if "rewards" in self.network.feed_previous:
            fed.append(inputs["previous_rewards"][..., None])
        check_carry(carry, (seen[0].shape[1], self.size), parts=2 if self.kind == "lstm" else 1)
        state = tuple(part[None] for part in carry) if self.kind == "lstm" else carry[None]
        x = torch.cat(fed, dim=-1)
        with _pytorchs_own(x), _without_warning(x):
            outputs, state = self._run_cell(x, state)
        return [outputs, *seen], tuple(part[0] for part in state) if self.kind == "lstm" else state[0]

    def _run_cell(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        """The cell in the precision in force. On CUDA, autocast has cuDNN's cells compute in float16 where bfloat16 is asked for, too."""
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
    """Sequences of observations -> mean and raw log standard deviation of the Gaussians before the squashing."""

    def forward(
        self, inputs: Inputs[Tensor], carry: Any
    ) -> tuple[Float[Tensor, "time batch action"], Float[Tensor, "time batch action"], Any]:
        """Return mean and raw log_std, each `(time, batch, action)`, and the carry after the last step."""
        parts, carry = self.unroll(inputs, carry)
        mean, raw_log_std = self.perceive(parts).chunk(2, dim=-1)
        return mean, raw_log_std, carry


class RecurrentQFunction(Recurrent):
    """Sequences of observations (or states) and of actions in (-1, 1) -> the soft action values.

    The evaluated actions enter above the cell: the carry knows what was done, not what is asked about, so that one pass serves both.
    """

    def forward(
        self, inputs: Inputs[Tensor], actions: Float[Tensor, "time batch action"], carry: Any, *draws: Tensor
    ) -> tuple[Float[Tensor, "time batch"], Any]:
        """Return values, `(time, batch)`, and the carry after the last step.

        `draws` are uniform, `(time, batch, width)`, one for each of `draw_widths`.
        """
        parts, carry = self.unroll(inputs, carry)
        return self.perceive([*parts, actions], draws)[..., 0], carry


def recurrent_cell(kind: str, inputs: int, size: int, dtype: torch.dtype) -> nn.RNNBase:
    """One layer of zeros, over `(time, batch, inputs)`: the weights are drawn by default_models."""
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
