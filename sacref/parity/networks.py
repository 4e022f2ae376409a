"""The oracle's networks in NumPy: each forward pass with its backward pass beside it, derived by hand.

Arrays are `(batch, features)` or `(time, batch, features)`; a parameter's gradient is summed over all axes but the last. What a network is
made of is read off the names of its parameters: `cell.` is a recurrent cell before the layers, `norms.<i>.` a LayerNorm in hidden block i,
`expand.<i>.` the first layer of a residual block.
`by_x` is the derivative of the loss by x; a tape is what a backward pass needs of its forward pass.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[Any]
Arrays = dict[str, Floats]
Named = Mapping[str, Floats]
Carry = tuple[Floats, ...]
"""(h,) of RNN and GRU, (h, c) of LSTM: `(batch, size)` each."""

LAYER_NORM_EPSILON = 1e-5
SIMBA_EPSILON = 1e-6


class Seen(NamedTuple):
    """Inputs of a network beside the action."""

    inputs: Floats
    """Observations or states."""
    fed: Floats | None = None
    """Inputs of the cell alone: the previous action and reward, `(time, batch, n)`."""
    carry: Carry | None = None
    """Carry of the cell before the first step; None for zeros."""
    skip: int = 0
    """How many steps at the start only advance the cell and have no output."""


# One layer: x -> y, and (x, by_y) -> gradients and by_x.


def dense(state: Named, layer: str, x: Floats) -> Floats:
    """Return x W + b."""
    y: Floats = x @ state[f"{layer}.kernel"] + state[f"{layer}.bias"]
    return y


def dense_backward(state: Named, layer: str, x: Floats, by_y: Floats) -> tuple[Arrays, Floats]:
    """Return dW = x^T dy, db = sum dy, dx = dy W^T."""
    rows, by_rows = x.reshape(-1, x.shape[-1]), by_y.reshape(-1, by_y.shape[-1])
    gradients = {f"{layer}.kernel": rows.T @ by_rows, f"{layer}.bias": by_rows.sum(axis=0)}
    return gradients, by_y @ state[f"{layer}.kernel"].T


def layer_norm(state: Named, layer: str, x: Floats, epsilon: float = LAYER_NORM_EPSILON) -> tuple[Floats, tuple[Floats, Floats]]:
    """Normalise (Ba et al. 2016, arXiv:1607.06450): (x - mean) / sqrt(var + epsilon) * scale + bias, over the features."""
    centred = x - x.mean(axis=-1, keepdims=True)
    deviation = np.sqrt((centred**2).mean(axis=-1, keepdims=True) + x.dtype.type(epsilon))
    standard = centred / deviation
    return standard * state[f"{layer}.scale"] + state[f"{layer}.bias"], (standard, deviation)


def layer_norm_backward(state: Named, layer: str, tape: tuple[Floats, Floats], by_y: Floats) -> tuple[Arrays, Floats]:
    """Return the gradients. With s = (x - mean) / deviation: dx = (ds - mean(ds) - s mean(ds s)) / deviation."""
    standard, deviation = tape
    features = by_y.shape[-1]
    gradients = {
        f"{layer}.scale": (by_y * standard).reshape(-1, features).sum(axis=0),
        f"{layer}.bias": by_y.reshape(-1, features).sum(axis=0),
    }
    by_standard = by_y * state[f"{layer}.scale"]
    along = (by_standard * standard).mean(axis=-1, keepdims=True)
    return gradients, (by_standard - by_standard.mean(axis=-1, keepdims=True) - standard * along) / deviation


# Residual layers: an embedding, blocks that each add dense(ReLU(dense(layer norm(x)))) to x, a layer norm, and a dense head.


class Residual(NamedTuple):
    """The tape of what a residual block adds."""

    norm: tuple[Floats, Floats]
    entered: Floats
    wide: Floats
    """Above zero where the ReLU's slope is 1."""


class Residuals(NamedTuple):
    """The tape of residual layers."""

    embedded: Floats
    """Input of the embedding."""
    blocks: list[Residual]
    norm: tuple[Floats, Floats]
    entered: Floats
    """Input of the head."""


def residual_layers(state: Named, model: str, x: Floats) -> tuple[Floats, Residuals]:
    """Apply embedding, blocks, layer norm and head (Lee et al. 2025, arXiv:2410.09754)."""
    embedded = x
    blocks: list[Residual] = []
    x = dense(state, f"{model}.hidden.0", x)
    while f"{model}.expand.{len(blocks)}.kernel" in state:
        i = len(blocks)
        entered, norm = layer_norm(state, f"{model}.norms.{i}", x, SIMBA_EPSILON)
        wide = np.maximum(dense(state, f"{model}.expand.{i}", entered), 0)
        x = x + dense(state, f"{model}.contract.{i}", wide)
        blocks.append(Residual(norm, entered, wide))
    x, norm = layer_norm(state, f"{model}.norms.{len(blocks)}", x, SIMBA_EPSILON)
    return dense(state, f"{model}.head", x), Residuals(embedded, blocks, norm, x)


def residual_layers_backward(state: Named, model: str, tape: Residuals, by_output: Floats) -> tuple[Arrays, Floats]:
    """Return the gradients of the layers, and by_x: with x' = x + f(x), dx = dx' + f'(x) dx'."""
    of_head, by_x = dense_backward(state, f"{model}.head", tape.entered, by_output)
    of_norm, by_x = layer_norm_backward(state, f"{model}.norms.{len(tape.blocks)}", tape.norm, by_x)
    gradients = of_head | of_norm
    for i, block in reversed(list(enumerate(tape.blocks))):
        of_contract, by_wide = dense_backward(state, f"{model}.contract.{i}", block.wide, by_x)
        of_expand, by_entered = dense_backward(state, f"{model}.expand.{i}", block.entered, by_wide * (block.wide > 0))
        of_norm, by_inner = layer_norm_backward(state, f"{model}.norms.{i}", block.norm, by_entered)
        by_x = by_x + by_inner
        gradients |= of_contract | of_expand | of_norm
    of_embedding, by_x = dense_backward(state, f"{model}.hidden.0", tape.embedded, by_x)
    return gradients | of_embedding, by_x


# Layers: blocks of dense -> dropout -> layer norm -> ReLU, and a dense head.


class Block(NamedTuple):
    """The tape of one hidden block."""

    entered: Floats
    kept: Floats | None
    """Factors of dropout: 0 or 1 / (1 - rate)."""
    norm: tuple[Floats, Floats] | None
    output: Floats
    """Above zero where the ReLU's slope is 1."""


Layers = list[Block] | Residuals
"""The tape of a network's layers above its cell."""


def layers(state: Named, model: str, x: Floats, draws: Sequence[Floats] = (), dropout: float = 0.0) -> tuple[Floats, Layers]:
    """Apply hidden blocks and head. Dropout (Srivastava et al. 2014) keeps a unit where its draw is at least `dropout`."""
    if f"{model}.expand.0.kernel" in state:
        return residual_layers(state, model, x)
    tape: list[Block] = []
    while f"{model}.hidden.{len(tape)}.kernel" in state:
        i = len(tape)
        y = dense(state, f"{model}.hidden.{i}", x)
        kept = norm = None
        if draws:
            kept = ((draws[i] >= dropout) / (1 - dropout)).astype(y.dtype)
            y = y * kept
        if f"{model}.norms.{i}.scale" in state:
            y, norm = layer_norm(state, f"{model}.norms.{i}", y)
        y = np.maximum(y, 0)
        tape.append(Block(x, kept, norm, y))
        x = y
    return dense(state, f"{model}.head", x), [*tape, Block(x, None, None, x)]


def layers_backward(state: Named, model: str, tape: Layers, by_output: Floats) -> tuple[Arrays, Floats]:
    """Return the gradients of the layers, and by_x."""
    if isinstance(tape, Residuals):
        return residual_layers_backward(state, model, tape, by_output)
    *blocks, head = tape
    gradients, by_x = dense_backward(state, f"{model}.head", head.entered, by_output)
    for i, block in reversed(list(enumerate(blocks))):
        by_y = by_x * (block.output > 0)
        if block.norm is not None:
            of_norm, by_y = layer_norm_backward(state, f"{model}.norms.{i}", block.norm, by_y)
            gradients |= of_norm
        if block.kept is not None:
            by_y = by_y * block.kept
        of_dense, by_x = dense_backward(state, f"{model}.hidden.{i}", block.entered, by_y)
        gradients |= of_dense
    return gradients, by_x


# Cells, in PyTorch's form with two bias vectors. A step takes a = x W_i + b_i, b = h W_h + b_h and the carry; its backward pass returns
# by_a, by_b and what reaches the carry past b.

Saved = tuple[Floats, ...]
Step = Callable[[Floats, Floats, Carry], tuple[Carry, Saved]]
StepBackward = Callable[[Saved, Carry], tuple[Floats, Floats, Carry]]


def sigmoid(x: Floats) -> Floats:
    """Return 1 / (1 + exp(-x)), which is (1 + tanh(x / 2)) / 2, and overflows nowhere."""
    y: Floats = (1 + np.tanh(x / 2)) / 2
    return y


def rnn(a: Floats, b: Floats, carry: Carry) -> tuple[Carry, Saved]:
    """Advance an RNN (Elman 1990): h' = tanh(a + b)."""
    h = np.tanh(a + b)
    return (h,), (h,)


def rnn_backward(saved: Saved, by_carry: Carry) -> tuple[Floats, Floats, Carry]:
    """Return the derivatives; that of tanh is 1 - tanh^2."""
    (h,), (by_h,) = saved, by_carry
    by_a = by_h * (1 - h**2)
    return by_a, by_a, (np.zeros_like(h),)


def gru(a: Floats, b: Floats, carry: Carry) -> tuple[Carry, Saved]:
    """Advance a GRU (Cho et al. 2014, arXiv:1406.1078), with the reset after the product: n = tanh(a_n + r b_n), h' = (1 - z) n + z h."""
    (a_r, a_z, a_n), (b_r, b_z, b_n), (h,) = np.split(a, 3, axis=-1), np.split(b, 3, axis=-1), carry
    r, z = sigmoid(a_r + b_r), sigmoid(a_z + b_z)
    n = np.tanh(a_n + r * b_n)
    return ((1 - z) * n + z * h,), (r, z, n, b_n, h)


def gru_backward(saved: Saved, by_carry: Carry) -> tuple[Floats, Floats, Carry]:
    """Return the derivatives, from h' to z and n, from n to r."""
    (r, z, n, b_n, h), (by_h,) = saved, by_carry
    by_n = by_h * (1 - z) * (1 - n**2)
    by_r = by_n * b_n * r * (1 - r)
    by_z = by_h * (h - n) * z * (1 - z)
    return np.concatenate([by_r, by_z, by_n], axis=-1), np.concatenate([by_r, by_z, by_n * r], axis=-1), (by_h * z,)


def lstm(a: Floats, b: Floats, carry: Carry) -> tuple[Carry, Saved]:
    """Advance an LSTM (Hochreiter & Schmidhuber 1997) with Gers' forget gate: c' = f c + i g, h' = o tanh(c')."""
    pre_i, pre_f, pre_g, pre_o = np.split(a + b, 4, axis=-1)
    i, f, g, o = sigmoid(pre_i), sigmoid(pre_f), np.tanh(pre_g), sigmoid(pre_o)
    c = f * carry[1] + i * g
    return (o * np.tanh(c), c), (i, f, g, o, carry[1], np.tanh(c))


def lstm_backward(saved: Saved, by_carry: Carry) -> tuple[Floats, Floats, Carry]:
    """Return the derivatives; c' is reached from h' and from the next step."""
    (i, f, g, o, c, tanh_of_new_c), (by_h, by_new_c) = saved, by_carry
    by_c = by_new_c + by_h * o * (1 - tanh_of_new_c**2)
    by_i, by_f = by_c * g * i * (1 - i), by_c * c * f * (1 - f)
    by_g, by_o = by_c * i * (1 - g**2), by_h * tanh_of_new_c * o * (1 - o)
    by_a = np.concatenate([by_i, by_f, by_g, by_o], axis=-1)
    return by_a, by_a, (np.zeros_like(by_h), by_c * f)


CELLS: dict[int, tuple[int, Step, StepBackward]] = {1: (1, rnn, rnn_backward), 3: (1, gru, gru_backward), 4: (2, lstm, lstm_backward)}
"""Number of gates side by side in a kernel -> number of arrays of the carry, the step, its backward pass."""


def cell_of(state: Named, cell: str) -> tuple[int, tuple[int, Step, StepBackward]]:
    """Return the size, and the entry of `CELLS`, by the kernel's shape."""
    size, gates = state[f"{cell}.hidden.kernel"].shape
    return size, CELLS[gates // size]


class Unrolled(NamedTuple):
    """The tape of a cell over time."""

    x: Floats
    hidden: Floats
    """h before each step."""
    saved: list[Saved]


def unroll(state: Named, cell: str, x: Floats, carry: Carry | None) -> tuple[Floats, Unrolled]:
    """Return h after each step, `(time, batch, size)`."""
    size, (arrays, step, _) = cell_of(state, cell)
    if carry is None:
        carry = (np.zeros((*x.shape[1:-1], size), x.dtype),) * arrays
    hidden, saved = [carry[0]], []
    for a in dense(state, f"{cell}.input", x):
        carry, of_step = step(a, dense(state, f"{cell}.hidden", carry[0]), carry)
        hidden.append(carry[0])
        saved.append(of_step)
    return np.stack(hidden[1:]), Unrolled(x, np.stack(hidden[:-1]), saved)


def unroll_backward(state: Named, cell: str, tape: Unrolled, by_output: Floats) -> Arrays:
    """Propagate back through time: return the gradients of the cell. Its inputs and its first carry are data."""
    _, (arrays, _, step_backward) = cell_of(state, cell)
    by_carry: Carry = (np.zeros_like(by_output[0]),) * arrays
    by_a, by_b = [], []
    for saved, by_h in zip(reversed(tape.saved), reversed(by_output), strict=True):
        of_a, of_b, past = step_backward(saved, (by_carry[0] + by_h, *by_carry[1:]))
        by_carry = (past[0] + of_b @ state[f"{cell}.hidden.kernel"].T, *past[1:])
        by_a.append(of_a)
        by_b.append(of_b)
    of_input, _ = dense_backward(state, f"{cell}.input", tape.x, np.stack(by_a[::-1]))
    of_hidden, _ = dense_backward(state, f"{cell}.hidden", tape.hidden, np.stack(by_b[::-1]))
    return of_input | of_hidden


# A whole network.


class Tape(NamedTuple):
    """The tape of a network."""

    layers: Layers
    cell: Unrolled | None
    skip: int


def forward(
    state: Named, model: str, seen: Seen, action: Floats | None = None, draws: Sequence[Floats] = (), dropout: float = 0.0
) -> tuple[Floats, Tape]:
    """Return the network's output, one row per row of `action`, and the tape.

    A recurrent network's cell advances on the inputs and on what it is fed; its layers see the cell's output, the inputs again, and the
    action (Ni et al. 2022, arXiv:2110.05038). Without a cell they see the inputs and the action.
    """
    parts, tape = [seen.inputs[seen.skip :]], None
    if f"{model}.cell.input.kernel" in state:
        advanced_on = seen.inputs if seen.fed is None else np.concatenate([seen.inputs, seen.fed], axis=-1)
        hidden, tape = unroll(state, f"{model}.cell", advanced_on, seen.carry)
        parts = [hidden[seen.skip :], *parts]
    if action is not None:
        parts.append(action)
    output, of_layers = layers(state, model, np.concatenate(parts, axis=-1), draws, dropout)
    return output, Tape(of_layers, tape, seen.skip)


def backward(state: Named, model: str, tape: Tape, by_output: Floats) -> tuple[Arrays, Floats]:
    """Return the gradients of the network, and by the inputs of its layers, of which the action is the last."""
    gradients, by_parts = layers_backward(state, model, tape.layers, by_output)
    if tape.cell is not None:
        by_hidden = np.zeros_like(tape.cell.hidden)
        by_hidden[tape.skip :] = by_parts[..., : by_hidden.shape[-1]]
        gradients |= unroll_backward(state, f"{model}.cell", tape.cell, by_hidden)
    return gradients, by_parts
