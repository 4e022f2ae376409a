"""Helpers that adapters share: noise put into torch and JAX, gradients seen by torch's optimizers, weights by shape and order."""

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from sacref.algorithm.data import Batch
from sacref.examine.problem import Problem
from sacref.parity.networks import Arrays, Floats, Named
from sacref.spec.arrays import NumpyArray

if TYPE_CHECKING:
    from torch import Tensor, nn

Places = Mapping[str, tuple["Tensor", bool]]
"""Common name -> the array or tensor that holds it, and whether it is transposed there."""


class Noise:
    """Noise arrays of one update after another, handed out in their order.

    A draw that has a key (JAX) gets the same array whenever it comes with the same key, also in later updates: noise that an implementation
    repeats by mistake is repeated here. The array in its turn is left out then, so that the n-th draw of each update has the n-th array.
    """

    def __init__(self) -> None:
        self._left: list[Floats] = []
        self._by_key: dict[bytes, Floats] = {}

    def fill(self, draws: Floats) -> None:
        """Hold the arrays of the next update, `(draws, batch, action)`."""
        self._left = list(draws)

    def draw(self, shape: Sequence[int], key: bytes | None = None) -> Floats:
        """Give the next array, or that of a key that was seen before; transposed where `(action, batch)` is drawn.

        Raises:
            RuntimeError: if the update draws another shape than `(batch, action)`, or more arrays than there are.
        """
        if key is not None and key in self._by_key:
            found = self._by_key[key]
            del self._left[:1]
            return found if found.shape == tuple(shape) else found.T
        if not self._left:
            raise RuntimeError("noise: the update draws more normal arrays than the examiner has: draw one for each action that is sampled")
        found = self._left.pop(0)
        if tuple(shape) not in (found.shape, found.shape[::-1]):
            raise RuntimeError(f"noise: a normal array of shape {tuple(shape)} is drawn, expected {found.shape}, (batch, action)")
        if key is not None:
            self._by_key[key] = found
        return found if found.shape == tuple(shape) else found.T


@contextmanager
def torch_noise(noise: Noise) -> Iterator[None]:
    """Let all that draws normal numbers in torch take them from `noise`.

    Those are randn, randn_like, normal, a tensor's normal_, and with them rsample and sample of Normal and MultivariateNormal.
    """
    torch = importlib.import_module("torch")

    def like(shape: Sequence[int], dtype: Any = None) -> Any:
        return torch.as_tensor(noise.draw(shape)).to(dtype or torch.get_default_dtype())

    def randn(*sizes: Any, size: Any = None, dtype: Any = None, **_: object) -> object:
        given = sizes if size is None else (size,)
        return like(given[0] if given and not isinstance(given[0], int) else given, dtype)

    def normal(mean: Any, std: Any = 1.0, size: Any = None, **_: Any) -> Any:
        shape = size if size is not None else torch.broadcast_tensors(torch.as_tensor(mean), torch.as_tensor(std))[0].shape
        drawn = like(shape, getattr(mean, "dtype", None)) * std + mean
        # As torch's own, which passes zeros back to both.
        return drawn.detach() + 0 * drawn

    def standard_normal(shape: Sequence[int], dtype: object, device: object) -> object:
        return like(shape, dtype)

    def normal_(tensor: Any, mean: float = 0.0, std: float = 1.0, **_: object) -> object:
        return tensor.copy_(like(tensor.shape, tensor.dtype) * std + mean)

    distributions = [importlib.import_module(f"torch.distributions.{name}") for name in ("normal", "multivariate_normal")]
    patches = [
        (torch, "randn", randn),
        (torch, "randn_like", lambda tensor, **_: like(tensor.shape, tensor.dtype)),
        (torch, "normal", normal),
        (torch.Tensor, "normal_", normal_),
        *((module, "_standard_normal", standard_normal) for module in distributions),
    ]
    with patched(patches):
        yield


@contextmanager
def torch_dtype(dtype: str) -> Iterator[None]:
    """Let torch make its floats in this dtype unless it is told another: a bool times a float, for one."""
    torch = importlib.import_module("torch")
    usual = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, dtype))
    try:
        yield
    finally:
        torch.set_default_dtype(usual)


@contextmanager
def float32_is(dtype: str, *modules: str) -> Iterator[None]:
    """Let modules of a library that cast to torch.float32 cast to another dtype."""
    torch = importlib.import_module("torch")

    class Torch:
        float32 = getattr(torch, dtype)

        def __getattr__(self, name: str) -> object:
            return getattr(torch, name)

    with patched([(importlib.import_module(module), "torch", Torch()) for module in modules]):
        yield


_jax_sources: list[Noise] = []
"""Where compiled functions get their numbers: the last one. They outlive the agent that they were traced for."""


@contextmanager
def jax_noise(noise: Noise) -> Iterator[None]:
    """Let `jax.random.normal` take its numbers from `noise`, in compiled functions too, if all tracing happens within.

    A compiled function asks for its numbers each time it runs, with the key that it has then.
    """
    jax = importlib.import_module("jax")
    callback: Callable[..., object] = importlib.import_module("jax.experimental").io_callback

    def normal(key: Any, shape: Sequence[int] = (), dtype: Any = float, **_: object) -> object:
        typed = jax.dtypes.issubdtype(key.dtype, jax.dtypes.prng_key)
        found = jax.ShapeDtypeStruct(tuple(shape), jax.dtypes.canonicalize_dtype(dtype))

        def host(key: object) -> NumpyArray:
            if not _jax_sources:
                drawn = np.random.default_rng(np.asarray(key)).standard_normal(found.shape)
            else:
                drawn = _jax_sources[-1].draw(found.shape, np.asarray(key).tobytes())
            return np.asarray(drawn, found.dtype)

        return callback(host, found, jax.random.key_data(key) if typed else key, ordered=True)

    _jax_sources.append(noise)
    try:
        with patched([(jax.random, "normal", normal)]):
            yield
            jax.effects_barrier()
    finally:
        _jax_sources.remove(noise)


@contextmanager
def torch_gradients(names: Callable[[], Places]) -> Iterator[list[Arrays]]:
    """Keep the gradients that torch's optimizers step with: a dict by common names for each step, in their order.

    Args:
        names: gives the tensors by their common names, as `torch_places` gives them.
    """
    optimizer = importlib.import_module("torch.optim.optimizer")
    seen: list[Arrays] = []

    def before_step(stepped: Any, *_: object) -> None:
        parameters = {id(parameter) for part in stepped.param_groups for parameter in part["params"] if parameter.grad is not None}
        found: Arrays = {}
        for name, (tensor, transposed) in names().items():
            # A view is one of the models that are stacked in a parameter.
            owner = tensor if tensor._base is None else tensor._base
            if id(owner) in parameters and owner.grad is not None:
                grad = owner.grad if owner is tensor else owner.grad[tensor.storage_offset() // tensor.numel()]
                found[name] = to_numpy(grad, transposed, name == "log_alpha")
        seen.append(merge_heads(found))

    handle = optimizer.register_optimizer_step_pre_hook(before_step)
    try:
        yield seen
    finally:
        handle.remove()


def to_numpy(array: object, transposed: bool = False, scalar: bool = False) -> NumpyArray:
    """Copy a torch or JAX array to the host."""
    found: NumpyArray = np.array(array.detach().cpu().numpy() if hasattr(array, "detach") else array)
    return found.reshape(()) if scalar else found.T if transposed else found


KINDS = ("kernel", "bias")
MEAN, LOG_STD = "policy.head.mean.", "policy.head.log_std."
"""Prefixes of a head that is two layers: `merge_heads` makes one of them, as the common names have it."""


def merge_heads(arrays: Named) -> Arrays:
    """Put the mean's and the log standard deviation's layers together, where there are two."""
    found = {name: array for name, array in arrays.items() if not name.startswith((MEAN, LOG_STD))}
    for kind in ("kernel", "bias"):
        if MEAN + kind in arrays:
            found[f"policy.head.{kind}"] = np.concatenate([arrays[MEAN + kind], arrays[LOG_STD + kind]], axis=-1)
    return found


def split_heads(weights: Named) -> Arrays:
    """Split the policy's head into a layer for the mean and one for the log standard deviation."""
    found = dict(weights)
    for kind in ("kernel", "bias"):
        found[MEAN + kind], found[LOG_STD + kind] = np.split(found.pop(f"policy.head.{kind}"), 2, axis=-1)
    return found


def torch_places(models: Mapping[str, "nn.Module | Sequence[Tensor]"], log_alpha: "Tensor | None" = None) -> Places:
    """Find the tensors of torch modules by common names, told by shapes and order: each linear layer in turn, the last one the head.

    Args:
        models: "policy", "critic_1" and so on -> a module, or its parameters in their order, which may be views of stacked ones. A policy
            whose last two layers read the same input has a mean and a log standard deviation, in this order.
        log_alpha: its tensor.
    """
    found: dict[str, tuple[Tensor, bool]] = {}
    for model, module in models.items():
        parameters = list(module) if isinstance(module, Sequence) else list(module.parameters())
        layers = [tuple(pair) for pair in zip(parameters[::2], parameters[1::2], strict=True)]
        two_heads = model == "policy" and len(layers) > 1 and layers[-1][0].shape == layers[-2][0].shape
        heads = [MEAN, LOG_STD] if two_heads else [f"{model}.head."]
        hidden = [f"{model}.hidden.{i}." for i in range(len(layers) - len(heads))]
        for prefix, (weight, bias) in zip([*hidden, *heads], layers, strict=True):
            found |= {f"{prefix}kernel": (weight, True), f"{prefix}bias": (bias, False)}
    if log_alpha is not None:
        found["log_alpha"] = (log_alpha, False)
    return found


def read_flax(params: Mapping[str, Mapping[str, ArrayLike]], model: str, hidden: int) -> Arrays:
    """Read a model of `nn.Dense` layers by common names, told by their order; stacked models give stacked arrays.

    Args:
        params: `Dense_0` and so on -> `kernel`, `bias`. model: "policy", "critic_1" and so on.
        hidden: layers before the head; a policy with two more has a mean and a log standard deviation.
    """
    layers = _flax_layers(model, hidden, two_heads=f"Dense_{hidden + 1}" in params)
    found = {f"{prefix}{kind}": np.array(params[layer][kind]) for layer, prefix in layers.items() for kind in KINDS}
    return merge_heads(found)


def write_flax(weights: Named, model: str, hidden: int, *, two_heads: bool = False) -> dict[str, dict[str, Floats]]:
    """Make the tree that `read_flax` reads."""
    split = split_heads(weights) if two_heads else weights
    layers = _flax_layers(model, hidden, two_heads=two_heads)
    return {layer: {kind: split[f"{prefix}{kind}"] for kind in KINDS} for layer, prefix in layers.items()}


def _flax_layers(model: str, hidden: int, *, two_heads: bool) -> dict[str, str]:
    """Flax's name of each layer -> prefix of its common names."""
    heads = [MEAN, LOG_STD] if two_heads else [f"{model}.head."]
    return {f"Dense_{i}": prefix for i, prefix in enumerate([*(f"{model}.hidden.{i}." for i in range(hidden)), *heads])}


class TorchAdapter(ABC):
    """Weights, noise and gradients of an adapter whose SAC computes in torch; `make`, which sets `problem`, is left to it."""

    problem: Problem
    _gradients: Sequence[Arrays] = ()

    @abstractmethod
    def places(self) -> Places:
        """Give the tensors of all networks and of log alpha by their common names; see `torch_places`."""

    @abstractmethod
    def learn_from(self, batch: Batch[Floats]) -> None:
        """Make one update on this batch, whose actions are in (-1, 1)."""

    def set_weights(self, weights: Named) -> None:
        """Write weights into the tensors."""
        torch = importlib.import_module("torch")
        split = split_heads(weights)
        with torch.no_grad():
            for name, (tensor, transposed) in self.places().items():
                value = torch.as_tensor(np.ascontiguousarray(split.get(name, weights.get(name))), dtype=tensor.dtype)
                tensor.copy_(value.T if transposed else value.reshape(tensor.shape))

    def update(self, batch: Batch[Floats], draws: Floats) -> None:
        """Make one update that draws this noise, and keep its gradients."""
        noise = Noise()
        noise.fill(draws)
        with torch_dtype(self.problem.dtype), torch_noise(noise), torch_gradients(self.places) as self._gradients:
            self.learn_from(batch)

    def weights(self) -> Arrays:
        """Read the weights by common names."""
        return merge_heads(
            {name: to_numpy(tensor, transposed, name == "log_alpha") for name, (tensor, transposed) in self.places().items()}
        )

    def gradients(self) -> Sequence[Named]:
        """Give those that each optimizer step of the last update was taken with."""
        return self._gradients


def tapped(function: Callable[..., Any], see: Callable[[Any], object]) -> Callable[..., Any]:
    """Wrap a function so that `see` gets what each call returns."""

    def call(*arguments: object, **named: object) -> Any:
        found = function(*arguments, **named)
        see(found)
        return found

    return call


@contextmanager
def patched(patches: Sequence[tuple[object, str, object]]) -> Iterator[None]:
    """Set attributes of modules or objects for a while."""
    kept = [(module, name, getattr(module, name)) for module, name, _ in patches]
    for module, name, value in patches:
        setattr(module, name, value)
    try:
        yield
    finally:
        for module, name, value in kept:
            setattr(module, name, value)
