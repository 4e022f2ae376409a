"""What the default models are before a backend builds them: their sizes, and their first weights.

The weights are drawn once with NumPy, so that one seed gives the same networks on both backends.
"""

import math
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sacref.algorithm.tree import Tree, named_leaves
from sacref.envs.spaces import Spaces, flat_size

GATES = {"rnn": 1, "gru": 3, "lstm": 4}
"""Kind of recurrent cell -> how many gates it computes, in PyTorch's order: GRU reset, update, new; LSTM input, forget, cell, output."""
PREVIOUS = ("actions", "rewards")
"""What of the step before can be fed to a recurrent network."""


class Cell(NamedTuple):
    """A recurrent cell below the dense layers."""

    kind: str
    """One of `GATES`."""
    inputs: int
    size: int
    """Of the hidden state."""


class Network(NamedTuple):
    """What a default network is built of."""

    reads: str
    """`observations` or `states`."""
    paths: tuple[str, ...]
    """Which arrays of those, in the order in which they are concatenated: dotted keys of a Dict space, `""` of a Box."""
    inputs: int
    """Width of the first dense layer's input."""
    hidden: tuple[int, ...]
    """Widths of the hidden layers."""
    outputs: int
    """Width of the head."""
    layer_norm: bool = False
    dropout: float = 0.0
    cell: Cell | None = None
    feed_previous: tuple[str, ...] = ()

    def leaves(self, tree: Tree) -> list[Any]:
        """The arrays that the network reads, in its order.

        Raises:
            ValueError: if there are others than in the space that the network was built for.
        """
        found = named_leaves(tree)
        if set(found) != set(self.paths):
            got = "None" if tree is None else _describe(found)
            raise ValueError(
                f"{self.reads} are {got}, expected {_describe(self.paths)}: build the models with the spaces of the environment, "
                f"and give the agent the same ones"
            )
        return [found[path] for path in self.paths]

    def draw(self, *, seed: int, model: str) -> dict[str, NDArray[np.float64]]:
        """The first weights; see `dense_layers`."""
        return dense_layers(
            inputs=self.inputs,
            hidden=self.hidden,
            outputs=self.outputs,
            seed=seed,
            model=model,
            layer_norm=self.layer_norm,
            cell=self.cell,
        )


def default_networks(
    spaces: Spaces,
    *,
    hidden: Sequence[int],
    num_critics: int,
    layer_norm: bool,
    dropout: float,
    recurrent: str | None,
    recurrent_size: int,
    feed_previous: Sequence[str],
) -> dict[str, Network]:
    """What the models `policy`, `critic_1` ... are built of; for the arguments see `default_models`.

    Raises:
        ValueError: naming the argument that does not fit.
    """
    fed = _check_options(hidden, num_critics, layer_norm, dropout, recurrent, recurrent_size, feed_previous)

    def network(reads: str, fields: Tree, actions: int, outputs: int, **options: Any) -> Network:
        _refuse_images(fields, reads)
        seen, previous = flat_size(fields), sum({"actions": spaces.action_size, "rewards": 1}[name] for name in fed)
        cell = None if recurrent is None else Cell(recurrent, seen + previous, recurrent_size)
        inputs = seen + actions + (0 if cell is None else cell.size)
        return Network(reads, tuple(named_leaves(fields)), inputs, tuple(hidden), outputs, cell=cell, feed_previous=fed, **options)

    reads, fields = ("observations", spaces.observations) if spaces.states is None else ("states", spaces.states)
    critic = network(reads, fields, spaces.action_size, 1, layer_norm=layer_norm, dropout=dropout)
    policy = network("observations", spaces.observations, 0, 2 * spaces.action_size)
    return {"policy": policy, **{f"critic_{i + 1}": critic for i in range(num_critics)}}


def _check_options(
    hidden: Sequence[int],
    num_critics: int,
    layer_norm: bool,
    dropout: float,
    recurrent: str | None,
    recurrent_size: int,
    feed_previous: Sequence[str],
) -> tuple[str, ...]:
    """Refuse what no network can have, or would ignore; return what is fed of the step before, in its order."""
    widths: Any = hidden
    if not isinstance(widths, list | tuple) or not all(_is_count(width) for width in widths):
        raise ValueError(f"default_models: hidden is {hidden!r}, expected the widths of the hidden layers, integers >= 1, as (256, 256)")
    for name, count in {"num_critics": num_critics, "recurrent_size": recurrent_size}.items():
        if isinstance(count, bool) or not isinstance(count, int | np.integer):
            raise ValueError(f"default_models: {name} is {count!r}, expected an integer >= 1")
    if num_critics < 1:
        raise ValueError(f"default_models: num_critics is {num_critics}, expected at least 1 (2 is usual)")
    if not 0.0 <= dropout < 1.0:
        raise ValueError(f"default_models: dropout is {dropout}, expected at least 0 and less than 1: it is the fraction that is dropped")
    if not hidden and (layer_norm or dropout):
        raise ValueError("default_models: hidden is empty, so that layer_norm and dropout have no layer: give at least one width")
    if recurrent is None:
        if recurrent_size != 128 or tuple(feed_previous) != ("actions",):
            raise ValueError(
                f"default_models: recurrent is None, so that recurrent_size {recurrent_size} and feed_previous {feed_previous!r} have no "
                f"cell: leave them out, or choose recurrent from {list(GATES)}"
            )
        return ()
    if recurrent not in GATES:
        raise ValueError(f"default_models: recurrent is {recurrent!r}, expected None or one of {list(GATES)}")
    if recurrent_size < 1:
        raise ValueError(f"default_models: recurrent_size is {recurrent_size}, expected at least 1 (128 is usual)")
    if isinstance(feed_previous, str) or not set(feed_previous) <= set(PREVIOUS):
        raise ValueError(f"default_models: feed_previous is {feed_previous!r}, expected a tuple of some of {PREVIOUS}, or ()")
    return tuple(name for name in PREVIOUS if name in feed_previous)


def _is_count(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and bool(value >= 1)


def check_carry(carry: Any, shape: tuple[int, ...], *, parts: int) -> None:
    """Refuse a carry that is not `parts` arrays (one array: 1) of the shape `(batch, size)`.

    Raises:
        ValueError: with what came, what was expected, and the fix.
    """
    expected = shape if parts == 1 else (shape,) * parts
    got = tuple(tuple(part.shape) for part in carry) if isinstance(carry, tuple) else tuple(carry.shape)
    if got != expected:
        raise ValueError(f"the carry has shape {got}, expected {expected}, (batch, size) each: start from model.initial_carry({shape[0]})")


def _refuse_images(fields: Tree, reads: str) -> None:
    for path, field in named_leaves(fields).items():
        if field.dtype == np.uint8 and len(field.shape) > 1:
            raise ValueError(
                f"default_models: {reads}{f' at {path!r}' if path else ''} are images, uint8 of shape {field.shape}, which a perceptron "
                f"cannot see: write a policy and critics of your own with an encoder (the memory stores uint8 as it is), or flatten them "
                f"to one axis"
            )


def _describe(paths: Any) -> str:
    return "one array" if list(paths) == [""] else f"a dict of {sorted(paths)}"


def dense_layers(
    *,
    inputs: int,
    hidden: Sequence[int],
    outputs: int,
    seed: int,
    model: str,
    layer_norm: bool = False,
    cell: Cell | None = None,
) -> dict[str, NDArray[np.float64]]:
    """Draw the layers of a multilayer perceptron: kernels from U(-b, b) with b = sqrt(6 / (in + out)) of each layer, biases zero.

    Glorot & Bengio 2010, equation 16: what the authors of SAC started from (Keras' default). PyTorch's own default is narrower and
    its biases are random. Each model has a stream of its own, so that twin critics differ.

    A recurrent cell's kernels and biases come from U(-b, b) with b = 1 / sqrt(size), PyTorch's default, before the dense layers.

    Args:
        inputs, outputs: width of the first layer's input and of the last layer's output.
        hidden: widths of the hidden layers.
        seed: of the run.
        model: name of the model, such as `critic_1`; part of the stream.
        layer_norm: whether each hidden layer is normalised.
        cell: the recurrent cell whose output is among the inputs, or None.

    Returns:
        Common name -> array: `hidden.<i>.kernel` `(in, out)`, `hidden.<i>.bias` `(out,)`, `head.kernel`, `head.bias`; normalised:
        `norms.<i>.scale` of ones and `norms.<i>.bias` of zeros, `(out,)`; of a cell with G gates: `cell.input.kernel`
        `(in, G * size)`, `cell.hidden.kernel` `(size, G * size)`, `cell.input.bias` and `cell.hidden.bias` `(G * size,)`.
    """
    if not isinstance(seed, int | np.integer) or isinstance(seed, bool) or seed < 0:
        raise ValueError(f"default_models: seed is {seed!r}, expected an integer >= 0")
    stream = np.random.default_rng([seed, zlib.crc32(model.encode())])
    widths = [inputs, *hidden, outputs]
    names = [*(f"hidden.{i}" for i in range(len(hidden))), "head"]
    arrays: dict[str, NDArray[np.float64]] = {}
    if cell is not None:
        bound, width = 1.0 / math.sqrt(cell.size), GATES[cell.kind] * cell.size
        for part, fan_in in (("input", cell.inputs), ("hidden", cell.size)):
            arrays[f"cell.{part}.kernel"] = stream.uniform(-bound, bound, (fan_in, width))
            arrays[f"cell.{part}.bias"] = stream.uniform(-bound, bound, width)
    for name, fan_in, fan_out in zip(names, widths[:-1], widths[1:], strict=True):
        bound = math.sqrt(6.0 / (fan_in + fan_out))
        arrays[f"{name}.kernel"] = stream.uniform(-bound, bound, (fan_in, fan_out))
        arrays[f"{name}.bias"] = np.zeros(fan_out)
    if layer_norm:
        for i, width in enumerate(hidden):
            arrays[f"norms.{i}.scale"], arrays[f"norms.{i}.bias"] = np.ones(width), np.zeros(width)
    return arrays
