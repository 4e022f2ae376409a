"""The default models before a backend builds them: their sizes, their first weights, and what their layers compute alike.

The weights are drawn with NumPy, so that one seed gives the same networks on both backends.
"""

import math
import zlib
from collections.abc import Callable, Collection, Sequence
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from sacref.algorithm.data import Inputs
from sacref.algorithm.tree import Tree, named_leaves
from sacref.config.train_config import NETWORKS, widths_of
from sacref.envs.interface import Space
from sacref.envs.spaces import check_spaces, flat_size
from sacref.spec.arrays import ArrayT, namespace

ModelT = TypeVar("ModelT")
DTypeT = TypeVar("DTypeT")

GATES = {"rnn": 1, "gru": 3, "lstm": 4}
"""Kind of recurrent cell -> number of its gates, in PyTorch's order: GRU reset, update, new; LSTM input, forget, cell, output."""
NORM_EPSILON = {"mlp": 1e-5, "simba": 1e-6}
"""Kind of network -> what its LayerNorms add to the variance: PyTorch's default, and Flax's."""
EXPANSION = 4
"""Width of a residual block's inner layer, in widths of the block."""
PREVIOUS = ("actions", "rewards")
"""Parts of the step before that can be fed to a recurrent network."""


class Cell(NamedTuple):
    """A recurrent cell below the dense layers."""

    kind: str
    """One of `GATES`."""
    inputs: int
    """Width of its input."""
    size: int
    """Width of its hidden state."""

    def initial_carry(self, hidden: ArrayT) -> ArrayT | tuple[ArrayT, ArrayT]:
        """Return the carry that begins with this hidden state of zeros, `(batch, size)`; of an LSTM a tuple of two."""
        return (hidden, namespace(hidden).zeros_like(hidden)) if self.kind == "lstm" else hidden


class Network(NamedTuple):
    """The structure of a default network."""

    reads: str
    """`observations` or `states`."""
    paths: tuple[str, ...]
    """Arrays of those that it reads, in the order in which they are concatenated: dotted keys of a Dict space, `""` of a Box."""
    inputs: int
    """Width of the first dense layer's input."""
    hidden: tuple[int, ...]
    """Widths of the hidden layers; of "simba" those of the residual blocks, all the same."""
    outputs: int
    """Width of the head."""
    layer_norm: bool = False
    dropout: float = 0.0
    cell: Cell | None = None
    feed_previous: tuple[str, ...] = ()
    kind: str = "mlp"
    """One of `NETWORKS`."""

    @property
    def dense_widths(self) -> tuple[int, ...]:
        """Widths of the dense layers in a row; of "simba" that of the embedding."""
        return self.hidden[:1] if self.kind == "simba" else self.hidden

    @property
    def block_widths(self) -> tuple[int, ...]:
        """Widths of the residual blocks."""
        return self.hidden if self.kind == "simba" else ()

    @property
    def norm_widths(self) -> tuple[int, ...]:
        """Widths of the LayerNorms: one for each hidden layer or block, and one after the blocks."""
        if self.kind == "simba":
            return (*self.hidden, self.hidden[-1])
        return self.hidden if self.layer_norm else ()

    @property
    def draw_widths(self) -> tuple[int, ...]:
        """Widths of the draws that its random layers take."""
        return self.hidden if self.dropout else ()

    @property
    def recurrent_cell(self) -> Cell:
        """The cell.

        Raises:
            ValueError: if there is none.
        """
        if self.cell is None:
            raise ValueError("a recurrent network needs a cell: Network(..., cell=Cell(kind, inputs, size))")
        return self.cell

    def read(self, inputs: Inputs[ArrayT], axes: int, dtype: object) -> list[ArrayT]:
        """Return the arrays that the network reads, in its order, each `(*batch, n)` in `dtype`; `axes` counts the batch axes."""

        def flat(array: ArrayT) -> ArrayT:
            xp = namespace(array)
            if array.ndim != axes + 1:
                array = xp.reshape(array, (*array.shape[:axes], math.prod(array.shape[axes:])))
            converted: ArrayT = xp.astype(array, dtype, copy=False)
            return converted

        return [flat(array) for array in self.leaves(inputs["states"] if self.reads == "states" else inputs["observations"])]

    def cell_inputs(self, inputs: Inputs[ArrayT], seen: Sequence[ArrayT], carry: Tree) -> list[ArrayT]:
        """Return the cell's inputs, `(time, batch, n)` each: what was `seen`, and what is fed of the step before.

        Raises:
            ValueError: if the carry does not fit the inputs.
        """
        cell, fed = self.recurrent_cell, list(seen)
        if "actions" in self.feed_previous:
            fed.append(inputs["previous_actions"])
        if "rewards" in self.feed_previous:
            fed.append(inputs["previous_rewards"][..., None])
        check_carry(carry, (seen[0].shape[1], cell.size), parts=2 if cell.kind == "lstm" else 1)
        return fed

    def leaves(self, tree: Tree) -> list[Any]:
        """Return the arrays that the network reads, in its order.

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
        """Draw the first weights; see `dense_layers` and `residual_layers`."""
        if self.kind == "simba":
            return residual_layers(
                inputs=self.inputs,
                blocks=self.hidden,
                outputs=self.outputs,
                heads=2 if model == "policy" else 1,
                seed=seed,
                model=model,
                cell=self.cell,
            )
        return dense_layers(
            inputs=self.inputs,
            hidden=self.hidden,
            outputs=self.outputs,
            seed=seed,
            model=model,
            layer_norm=self.layer_norm,
            cell=self.cell,
        )


class Perceptron(Protocol[ArrayT]):
    """A backend's perceptron: hidden blocks of Linear -> [Dropout] -> [LayerNorm] -> ReLU, and a linear head.

    The order of the block is DroQ's (Hiraoka et al. 2022, arXiv:2110.02034). Of the kind "simba" it is a linear embedding, residual blocks
    of LayerNorm -> Linear -> ReLU -> Linear, a LayerNorm, and a linear head (Lee et al. 2025, arXiv:2410.09754).
    """

    network: Network

    @property
    def hidden(self) -> Any: ...
    @property
    def dropouts(self) -> Any: ...
    @property
    def norms(self) -> Any: ...
    @property
    def expand(self) -> Any: ...
    @property
    def contract(self) -> Any: ...
    @property
    def head(self) -> Any: ...
    @property
    def dtype(self) -> object:
        """The dtype that inputs are cast to."""
        ...

    def relu(self, x: ArrayT, /) -> ArrayT: ...
    def halves(self, x: ArrayT, /) -> Sequence[ArrayT]:
        """Split the last axis in two."""
        ...


class RecurrentPerceptron(Perceptron[ArrayT], Protocol[ArrayT]):
    """A cell over the inputs, the previous actions and the previous rewards; above it a perceptron that sees the inputs, too.

    The networks of Ni et al. 2022 (arXiv:2110.05038): each owns its cell, and has a shortcut of the current input.
    """

    def run_cell(self, inputs: list[ArrayT], carry: Tree, /) -> tuple[ArrayT, Tree]:
        """Return the cell's output at each step, and the carry after the last one; for inputs side by side."""
        ...


def gaussian_policy(
    self: Perceptron[ArrayT], inputs: Inputs[ArrayT]
) -> tuple[Float[ArrayT, "batch action"], Float[ArrayT, "batch action"]]:
    """Return mean and raw log standard deviation of the Gaussian before the squashing."""
    mean, raw_log_std = self.halves(perceive(self, self.network.read(inputs, 1, self.dtype)))
    return mean, raw_log_std


def q_function(
    self: Perceptron[ArrayT], inputs: Inputs[ArrayT], actions: Float[ArrayT, "batch action"], *draws: ArrayT
) -> Float[ArrayT, "batch"]:
    """Return the soft values of actions in (-1, 1); `draws` are uniform, `(batch, width)`, one for each of `draw_widths`."""
    values: ArrayT = perceive(self, [*self.network.read(inputs, 1, self.dtype), actions], draws)[..., 0]
    return values


def recurrent_policy(
    self: RecurrentPerceptron[ArrayT], inputs: Inputs[ArrayT], carry: Tree
) -> tuple[Float[ArrayT, "time batch action"], Float[ArrayT, "time batch action"], Tree]:
    """Return mean and raw log standard deviation of the Gaussians before the squashing, and the carry after the last step."""
    seen, carry = _unroll(self, inputs, carry)
    mean, raw_log_std = self.halves(perceive(self, seen))
    return mean, raw_log_std, carry


def recurrent_q_function(
    self: RecurrentPerceptron[ArrayT], inputs: Inputs[ArrayT], actions: Float[ArrayT, "time batch action"], carry: Tree, *draws: ArrayT
) -> tuple[Float[ArrayT, "time batch"], Tree]:
    """Return the soft values of actions in (-1, 1), and the carry after the last step.

    The evaluated actions enter above the cell: the carry knows what was done, not what is asked about, so that one pass serves both.

    Args:
        draws: uniform, `(time, batch, width)`, one for each of `draw_widths`.
    """
    seen, carry = _unroll(self, inputs, carry)
    return perceive(self, [*seen, actions], draws)[..., 0], carry


def _unroll(model: RecurrentPerceptron[ArrayT], inputs: Inputs[ArrayT], carry: Tree) -> tuple[list[ArrayT], Tree]:
    """Return the perceptron's inputs at each step, the cell's output first, and the carry after the last step."""
    seen = model.network.read(inputs, 2, model.dtype)
    outputs, carry = model.run_cell(model.network.cell_inputs(inputs, seen, carry), carry)
    return [outputs, *seen], carry


def perceive(model: Perceptron[ArrayT], inputs: Sequence[ArrayT], draws: Sequence[ArrayT] = ()) -> Float[ArrayT, "*batch outputs"]:
    """Return the head's output for `inputs` side by side, `(*batch, n)` each.

    Args:
        draws: uniform, `(*batch, width)`, one for each of the network's `draw_widths`; or none in evaluation mode.
    """
    network = model.network
    if draws and len(draws) != len(network.draw_widths):
        raise ValueError(f"got {len(draws)} draws, expected uniform arrays of the widths {network.draw_widths}: one per Dropout layer")
    xp = namespace(*inputs)
    x = xp.concat(list(inputs), axis=-1) if len(inputs) > 1 else inputs[0]
    if network.kind == "simba":
        return add_blocks(model, x)
    for i, layer in enumerate(model.hidden):
        x = layer(x)
        if network.draw_widths:
            x = model.dropouts[i](x, draws[i] if draws else None)
        if network.layer_norm:
            x = model.norms[i](x)
        x = model.relu(x)
    outputs: ArrayT = model.head(x)
    return outputs


def add_blocks(model: Perceptron[ArrayT], x: Float[ArrayT, "*batch inputs"]) -> Float[ArrayT, "*batch outputs"]:
    """Return the head's output behind residual blocks: each adds to a linear path from the embedding to the last LayerNorm."""
    x = model.hidden[0](x)
    *before_blocks, last = model.norms
    for norm, expand, contract in zip(before_blocks, model.expand, model.contract, strict=True):
        x = x + contract(model.relu(expand(norm(x))))
    outputs: ArrayT = model.head(last(x))
    return outputs


def drop(x: Float[ArrayT, "*batch width"], draws: ArrayT | None, rate: float) -> Float[ArrayT, "*batch width"]:
    """Keep a unit where its draw is at least the rate, scaled by 1 / (1 - rate): the layer `Dropout` of either backend.

    Its random numbers are an argument, so that an update with it is a function of its arguments. A model of your own with such layers says
    in `draw_widths: tuple[int, ...]` how wide each of them is, and is called with one uniform array for each. In evaluation mode
    (`model.eval()`) nothing is dropped and the draws may be left out.

    Args:
        x: activations. draws: of the same shape, uniform in [0, 1). rate: the fraction of units that is dropped, in [0, 1).

    Raises:
        ValueError: if draws are missing or have another shape.
    """
    if draws is None or draws.shape != x.shape:
        raise ValueError(
            f"Dropout: draws are {None if draws is None else tuple(draws.shape)}, expected an array {tuple(x.shape)} of uniform "
            f"numbers: call the model with one of them per Dropout layer (its draw_widths), or after model.eval() without"
        )
    xp = namespace(x)
    uniform: Any = draws
    kept: ArrayT = xp.where(uniform >= rate, x * (1.0 / (1.0 - rate)), 0.0)
    return kept


def check_dropout(rate: float) -> float:
    """Return the rate of a Dropout layer.

    Raises:
        ValueError: if it is not in [0, 1).
    """
    if not 0.0 <= rate < 1.0:
        raise ValueError(f"Dropout: rate is {rate}, expected at least 0 and less than 1: it is the fraction that is dropped")
    return rate


class DefaultModels(Generic[ModelT, DTypeT]):
    """A backend's function `default_models`.

    Args:
        policies, critics: classes of models, without a cell and with one.
        dtype_of: -> float32 or float64 of the backend's; None for any other dtype.
        fill: `(model, weights)` -> the model with these weights, by common names.
    """

    def __init__(
        self,
        policies: tuple[Callable[[Network, DTypeT], ModelT], Callable[[Network, DTypeT], ModelT]],
        critics: tuple[Callable[[Network, DTypeT], ModelT], Callable[[Network, DTypeT], ModelT]],
        dtype_of: Callable[[Any], DTypeT | None],
        fill: Callable[[ModelT, dict[str, NDArray[np.float64]]], ModelT],
    ) -> None:
        self._policies, self._critics, self._dtype_of, self._fill = policies, critics, dtype_of, fill
        self.__doc__ = type(self).__call__.__doc__

    def __call__(
        self,
        *,
        observation_space: Space,
        state_space: Space | None = None,
        action_space: Space,
        hidden: Sequence[int] | None = None,
        seed: int = 0,
        dtype: str | DTypeT = "float32",
        num_critics: int = 2,
        layer_norm: bool = False,
        dropout: float = 0.0,
        recurrent: str | None = None,
        recurrent_size: int = 128,
        feed_previous: Sequence[str] = ("actions",),
        network: str = "mlp",
        critic_hidden: Sequence[int] | None = None,
    ) -> dict[str, ModelT]:
        """Build the usual ReLU networks: `policy` and `critic_1` ... `critic_<num_critics>`.

        The weights come from one NumPy draw per model (`sacref.agent.networks`), so one seed gives the same networks on both backends.
        Arrays of a Dict space are flattened and put side by side in the space's order.

        Args:
            observation_space: a Box, or a (nested) Dict of Boxes; no images (uint8 with two or more axes). action_space: a Box.
            state_space: what the critics read instead of the observations, of the same kinds; None for symmetric critics.
            hidden: widths of the hidden layers, of "simba" one for each residual block; None is (256, 256), of "simba" (128,).
            seed: of the initial weights.
            dtype: "float32" or "float64".
            num_critics: how many critics; the target takes their minimum.
            layer_norm: normalise the hidden layers of the critics.
            dropout: the fraction of the critics' hidden units that is dropped, in [0, 1). With layer_norm: DroQ's critics (Hiraoka et
                al. 2022, arXiv:2110.02034).
            recurrent: None, or the kind of cell that each model owns: "rnn", "gru" or "lstm" (models for SAC_RNN).
            recurrent_size: width of the cell's hidden state.
            feed_previous: what of the step before enters the cell beside the inputs: some of "actions" and "rewards".
            network: "mlp", or "simba", residual networks (Lee et al. 2025, arXiv:2410.09754), made for observations that the agent
                normalises (`observation_preprocessor`).
            critic_hidden: widths of the critics' hidden layers, or blocks; None is `hidden`, and without it of "simba" (512, 512).

        Returns:
            Model name -> module of the backend's library. Target critics are made by the agent, by copying.

        Raises:
            ValueError, TypeError: if a space or an argument is not supported.
        """
        spaces = check_spaces(observation_space, state_space, action_space)
        kind = self._dtype_of(dtype)
        if kind is None:
            raise ValueError(f"default_models: dtype is {dtype}, expected float32 or float64")
        hidden, critic_hidden = _check_widths(network, hidden, critic_hidden, layer_norm, dropout)
        fed = _check_options(num_critics, dropout, recurrent, recurrent_size, feed_previous)

        def structure(reads: str, fields: Tree, actions: int, widths: Sequence[int], outputs: int, **options: Any) -> Network:
            _refuse_images(fields, reads)
            seen, previous = flat_size(fields), sum({"actions": spaces.action_size, "rewards": 1}[name] for name in fed)
            cell = None if recurrent is None else Cell(recurrent, seen + previous, recurrent_size)
            inputs = seen + actions + (0 if cell is None else cell.size)
            paths = tuple(named_leaves(fields))
            return Network(reads, paths, inputs, tuple(widths), outputs, cell=cell, feed_previous=fed, kind=network, **options)

        reads, fields = ("observations", spaces.observations) if spaces.states is None else ("states", spaces.states)
        critic = structure(reads, fields, spaces.action_size, critic_hidden, 1, layer_norm=layer_norm, dropout=dropout)
        policy = structure("observations", spaces.observations, 0, hidden, 2 * spaces.action_size)

        def build(name: str, network: Network) -> ModelT:
            model = (self._policies if name == "policy" else self._critics)[recurrent is not None](network, kind)
            return self._fill(model, network.draw(seed=seed, model=name))

        return {"policy": build("policy", policy), **{f"critic_{i + 1}": build(f"critic_{i + 1}", critic) for i in range(num_critics)}}


def _check_widths(
    network: str, hidden: Sequence[int] | None, critic_hidden: Sequence[int] | None, layer_norm: bool, dropout: float
) -> tuple[Sequence[int], Sequence[int]]:
    """Refuse widths that the network cannot have, and options that it would ignore; return those of the policy and of the critics."""
    if network not in NETWORKS:
        raise ValueError(f"default_models: network is {network!r}, expected one of {list(NETWORKS)}")
    hidden, critic_hidden = widths_of(network, hidden, critic_hidden)
    found = hidden, hidden if critic_hidden is None else critic_hidden
    for name, widths in zip(("hidden", "critic_hidden"), found, strict=True):
        if not isinstance(widths, list | tuple) or not all(_is_count(width) for width in widths):
            raise ValueError(
                f"default_models: {name} is {widths!r}, expected the widths of the hidden layers, integers >= 1, as (256, 256)"
            )
        if network == "simba" and len(set(widths)) != 1:
            raise ValueError(
                f"default_models: {name} is {widths!r}, expected the width of each residual block of simba, one for all, as (512, 512): "
                f"a block adds to what it reads"
            )
    if network == "simba" and (layer_norm or dropout):
        raise ValueError(
            f"default_models: layer_norm is {layer_norm} and dropout {dropout}, expected neither beside network 'simba', which has "
            f"LayerNorms of its own and no Dropout: leave them out"
        )
    if not found[1] and (layer_norm or dropout):
        raise ValueError("default_models: hidden is empty, so that layer_norm and dropout have no layer: give at least one width")
    return found


def _check_options(
    num_critics: int,
    dropout: float,
    recurrent: str | None,
    recurrent_size: int,
    feed_previous: Sequence[str],
) -> tuple[str, ...]:
    """Refuse what no network can have, or would ignore; return what is fed of the step before, in its order."""
    for name, count in {"num_critics": num_critics, "recurrent_size": recurrent_size}.items():
        if isinstance(count, bool) or not isinstance(count, int | np.integer):
            raise ValueError(f"default_models: {name} is {count!r}, expected an integer >= 1")
    if num_critics < 1:
        raise ValueError(f"default_models: num_critics is {num_critics}, expected at least 1 (2 is usual)")
    if not 0.0 <= dropout < 1.0:
        raise ValueError(f"default_models: dropout is {dropout}, expected at least 0 and less than 1: it is the fraction that is dropped")
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


def _is_count(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and bool(value >= 1)


def check_carry(carry: Tree, shape: tuple[int, ...], *, parts: int) -> None:
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


def _describe(paths: Collection[str]) -> str:
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
    stream = _stream(seed, model)
    widths = [inputs, *hidden, outputs]
    names = [*(f"hidden.{i}" for i in range(len(hidden))), "head"]
    arrays = _cell_layers(stream, cell)
    for name, fan_in, fan_out in zip(names, widths[:-1], widths[1:], strict=True):
        bound = math.sqrt(6.0 / (fan_in + fan_out))
        arrays[f"{name}.kernel"] = stream.uniform(-bound, bound, (fan_in, fan_out))
        arrays[f"{name}.bias"] = np.zeros(fan_out)
    if layer_norm:
        for i, width in enumerate(hidden):
            arrays[f"norms.{i}.scale"], arrays[f"norms.{i}.bias"] = np.ones(width), np.zeros(width)
    return arrays


def residual_layers(
    *, inputs: int, blocks: Sequence[int], outputs: int, heads: int, seed: int, model: str, cell: Cell | None = None
) -> dict[str, NDArray[np.float64]]:
    """Draw the layers of a residual network as SimBa's authors do (SonyResearch/simba@4e83770, scale_rl/networks).

    Embedding and heads are orthogonal (Saxe et al. 2014, arXiv:1312.6120), kernels of the blocks normal with variance 2 / in and cut at two
    standard deviations (He et al. 2015, arXiv:1502.01852), biases zero, and LayerNorms the identity.

    Args:
        inputs, outputs: width of the embedding's input and of the heads side by side.
        blocks: widths of the residual blocks, all the same.
        heads: how many kernels side by side are the last layer's, each orthogonal by itself: a policy's mean and its log std are two.
        seed, model, cell: see `dense_layers`.

    Returns:
        Common name -> array: `hidden.0.kernel` `(in, width)` of the embedding; of block i `norms.<i>.scale` `(width,)`, `expand.<i>.kernel`
        `(width, 4 * width)`, `contract.<i>.kernel` `(4 * width, width)`; `norms.<blocks>.scale`; `head.kernel`; and a bias beside each;
        `cell.` as of `dense_layers`.
    """
    stream, width = _stream(seed, model), blocks[0]
    arrays = _cell_layers(stream, cell)
    arrays["hidden.0.kernel"] = _orthogonal(stream, inputs, width)
    for i in range(len(blocks)):
        arrays[f"expand.{i}.kernel"] = _he_normal(stream, width, EXPANSION * width)
        arrays[f"contract.{i}.kernel"] = _he_normal(stream, EXPANSION * width, width)
    arrays["head.kernel"] = np.concatenate([_orthogonal(stream, width, outputs // heads) for _ in range(heads)], axis=1)
    arrays |= {name.replace("kernel", "bias"): np.zeros(kernel.shape[1]) for name, kernel in arrays.items() if not name.startswith("cell.")}
    for i in range(len(blocks) + 1):
        arrays[f"norms.{i}.scale"], arrays[f"norms.{i}.bias"] = np.ones(width), np.zeros(width)
    return arrays


def _stream(seed: int, model: str) -> np.random.Generator:
    if not isinstance(seed, int | np.integer) or isinstance(seed, bool) or seed < 0:
        raise ValueError(f"default_models: seed is {seed!r}, expected an integer >= 0")
    return np.random.default_rng([seed, zlib.crc32(model.encode())])


def _cell_layers(stream: np.random.Generator, cell: Cell | None) -> dict[str, NDArray[np.float64]]:
    arrays: dict[str, NDArray[np.float64]] = {}
    if cell is not None:
        bound, width = 1.0 / math.sqrt(cell.size), GATES[cell.kind] * cell.size
        for part, fan_in in (("input", cell.inputs), ("hidden", cell.size)):
            arrays[f"cell.{part}.kernel"] = stream.uniform(-bound, bound, (fan_in, width))
            arrays[f"cell.{part}.bias"] = stream.uniform(-bound, bound, width)
    return arrays


def _orthogonal(stream: np.random.Generator, fan_in: int, fan_out: int) -> NDArray[np.float64]:
    """Draw a kernel with orthonormal columns, or rows where it is wider than high."""
    q, r = np.linalg.qr(stream.standard_normal((max(fan_in, fan_out), min(fan_in, fan_out))))
    q *= np.sign(np.diag(r))  # uniform: a QR decomposition is unique up to these signs
    return q if fan_in >= fan_out else q.T


def _he_normal(stream: np.random.Generator, fan_in: int, fan_out: int) -> NDArray[np.float64]:
    kernel = stream.standard_normal((fan_in, fan_out))
    while (outside := np.abs(kernel) > 2.0).any():
        kernel[outside] = stream.standard_normal(outside.sum())
    # The deviation of a normal that is cut at 2 is less than 1.
    return kernel * (math.sqrt(2.0 / fan_in) / 0.87962566103423978)
