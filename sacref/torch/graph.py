"""Recordings: the graph of ATen operations that a function of tensors does, without modules, autograd or Python between them."""

import functools
import logging
import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from sacref.algorithm.tree import Tree

logger: logging.Logger = logging.getLogger(__name__)

aten: Any = torch.ops.aten

SMALLEST_PRODUCT = 2**19
"""Multiplications from which on a product goes to oneDNN: a call of it costs 15 microseconds, one of MKL 5."""
SMALLEST_TRANSPOSED = 64
"""Columns from which on a weight's gradient is computed in the weight's own layout; below, the other order of the product is faster."""

_RECORDING = threading.RLock()
"""Held while a function is recorded: torch.fx patches PyTorch for the whole process meanwhile."""


Run: TypeAlias = Callable[..., Sequence[Tensor | None]]
"""A recording: of leaves, those of the state first, to leaves."""


def leaves_of(tree: Tree) -> Iterator[Any]:
    """Yield the tensors of nested dicts and tuples, and None where one is left out, in the order of `torch.utils._pytree` and faster."""
    if isinstance(tree, Tensor) or tree is None:
        yield tree
    else:
        for branch in tree.values() if isinstance(tree, Mapping) else tree:
            yield from leaves_of(branch)


def detects_anomalies() -> bool:
    """Return whether torch.autograd.set_detect_anomaly is on: updates then run plain, since a recording has no autograd for it to watch."""
    if not torch.is_anomaly_enabled():
        return False
    _say_plain()
    return True


@functools.cache
def _say_plain() -> None:
    logger.warning("torch.autograd.set_detect_anomaly is on: updates run plain, which is slower, until it is off")


class Recorded:
    """A function `(state, *arguments) -> tree`, run from a recording of it.

    It is recorded at its first call, and once more for arguments of other shapes or dtypes. What the function decides in Python is
    decided then; random numbers must be arguments.

    Args:
        function: of trees of tensors (dicts, tuples, named tuples; None stays None). It may write into its arguments.
    """

    def __init__(self, function: Callable[..., Tree]) -> None:
        self.function = function
        self.recordings: int = 0
        """Number of recordings of the function."""
        self._runs: dict[tuple[object, ...], tuple[Run, pytree.TreeSpec]] = {}
        self._state: Tree = None
        self._state_leaves: list[Tensor | None] = []

    def __call__(self, state: Tree, *arguments: Tree) -> Tree:
        # The state is the same object from call to call, written in place: its tensors are looked up once.
        if state is not self._state:
            self._state, self._state_leaves = state, list(leaves_of(state))
        leaves = list(leaves_of(arguments))
        key = tuple(None if leaf is None else (leaf.shape, leaf.dtype) for leaf in leaves)
        with torch.no_grad():
            if key not in self._runs:
                # Anomaly detection would look for NaN in tensors that have no values while they are recorded.
                with _RECORDING, torch.autograd.set_detect_anomaly(False):
                    self._runs[key] = self._record(state, *arguments)
            run, structure = self._runs[key]
            results = run(*self._state_leaves, *leaves)
        return results[0] if structure.is_leaf() else pytree.tree_unflatten(results, structure)

    recordings: int

    def _record(self, *arguments: object) -> tuple[Run, pytree.TreeSpec]:
        leaves, structure = pytree.tree_flatten(arguments)
        returned: list[pytree.TreeSpec] = []

        def flat(*tensors: Tensor | None) -> list[Tensor | None]:
            results, spec = pytree.tree_flatten(self.function(*pytree.tree_unflatten(list(tensors), structure)))
            returned.append(spec)
            return results

        # Fake tensors have shapes and no values: recording computes nothing and writes into nothing.
        recorded = make_fx(flat, tracing_mode="fake", _allow_non_fake_inputs=True)(*leaves)
        self.recordings += 1
        simplify(recorded)
        interpolate_in_place(recorded)
        if uses_onednn(leaves):
            multiply_with_onednn(recorded)
        return recorded.forward, returned[-1]


class RecordedTogether(Recorded):
    """As `Recorded`, for many at once: the function is of one, its arguments and results here have a leading axis of members.

    What it does to one is recorded first, without autograd; that is mapped over the axis (`torch.vmap`), and recorded again.
    """

    recordings: int

    def _record(self, *arguments: object) -> tuple[Run, pytree.TreeSpec]:
        leaves, structure = pytree.tree_flatten(arguments)
        axes = tuple(None if leaf is None else 0 for leaf in leaves)
        returned: list[pytree.TreeSpec] = []

        def one(*tensors: Tensor | None) -> list[Tensor | None]:
            results, spec = pytree.tree_flatten(self.function(*pytree.tree_unflatten(list(tensors), structure)))
            returned.append(spec)
            return results

        first = [None if leaf is None else leaf[0].clone() for leaf in leaves]
        of_one = make_fx(one, tracing_mode="fake", _allow_non_fake_inputs=True)(*first)
        simplify(of_one)
        together = torch.vmap(_TensorByTensor(of_one).run, in_dims=axes)
        recorded = make_fx(lambda *tensors: list(together(*tensors)), tracing_mode="fake", _allow_non_fake_inputs=True)(*leaves)
        self.recordings += 1
        simplify(recorded)
        merge_views(recorded)
        interpolate_in_place(recorded)
        return recorded.forward, returned[-1]


class _TensorByTensor(torch.fx.Interpreter):
    """Runs a recording in operations that `torch.vmap` knows: those on lists of tensors one by one."""

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        if target in (aten._fused_adam_.default, aten._fused_adam_.tensor_lr):
            return adam_(*args, **kwargs)
        if target is aten._foreach_mul.Tensor:
            return [each * args[1] for each in args[0]]
        return super().call_function(target, args, kwargs)


def adam_(
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor],
    first_moments: Sequence[Tensor],
    second_moments: Sequence[Tensor],
    largest: Sequence[Tensor],
    counts: Sequence[Tensor],
    *,
    lr: float | Tensor,
    beta1: float,
    beta2: float,
    weight_decay: float,
    eps: float,
    amsgrad: bool,
    maximize: bool,
    found_inf: Tensor | None = None,
) -> None:
    """Do what the kernel `torch._fused_adam_` does for `optim.Optimizer`, one operation at a time (Kingma & Ba 2015, algorithm 1)."""
    corrections: dict[Tensor, tuple[Tensor, Tensor]] = {}  # the parameters of an optimizer share a count
    for parameter, gradient, first, second, count in zip(parameters, gradients, first_moments, second_moments, counts, strict=True):
        if count not in corrections:
            steps = count.to(torch.float64)
            correction1, correction2 = ((1.0 - beta**steps).to(parameter.dtype) for beta in (beta1, beta2))
            corrections[count] = lr / correction1, correction2.sqrt()
        rate, root = corrections[count]
        before = [each.clone() for each in (parameter, first, second)] if found_inf is not None else []
        first.mul_(beta1).add_(gradient, alpha=1.0 - beta1)
        second.mul_(beta2).add_(gradient * gradient, alpha=1.0 - beta2)
        parameter.sub_((rate * first).div_(second.sqrt().div_(root).add_(eps)))
        if found_inf is not None:
            for new, old in zip((parameter, first, second), before, strict=True):
                new.copy_(torch.where(found_inf == 1, old, new))


def uses_onednn(leaves: Sequence[object]) -> bool:
    """Return whether products of these tensors go to oneDNN: float32 on a CPU with AVX-512.

    PyTorch multiplies float32 with MKL, which runs AVX2 code on processors that are not Intel's, at half the speed there.
    """
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    if any(tensor.device.type != "cpu" or tensor.dtype != torch.float32 for tensor in tensors):
        return False
    return onednn_available()


def onednn_available() -> bool:
    """Return whether this machine's CPU and this build of PyTorch have what `multiply_with_onednn` needs."""
    return (
        torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]  # torch leaves it unannotated.
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


def onednn_multiplies(dtype: torch.dtype) -> bool:
    """Return whether oneDNN multiplies this type on this CPU; for others it raises at the first product."""
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    if dtype == torch.float16:
        return bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())
    return True


def simplify(recorded: GraphModule) -> None:
    """Take out what computes nothing: detached views of what needs no gradient, and transposes of transposes."""
    graph = recorded.graph
    for node in graph.nodes:
        if node.op != "call_function":
            continue
        if node.target in (aten.detach.default, aten.alias.default):  # PyTorch 2.15 records the second
            node.replace_all_uses_with(node.args[0])
        elif node.target is aten.t.default and _is(node.args[0], aten.t.default):
            node.replace_all_uses_with(node.args[0].args[0])
    for node in graph.nodes:
        # The gradient of a weight, ((x^T) g)^T and then contiguous: the same product in the other order needs no copy.
        if _is(node, aten.clone.default) and _is(node.args[0], aten.t.default) and _is(node.args[0].args[0], aten.mm.default):
            product = node.args[0].args[0]
            first, second = product.args
            if len(product.users) == 1 and _is(first, aten.t.default) and _shape(first)[0] >= SMALLEST_TRANSPOSED:
                with graph.inserting_before(node):
                    transposed = _call(graph, aten.t.default, second, shape=tuple(reversed(_shape(second))))
                    swapped = _call(graph, aten.mm.default, transposed, first.args[0], shape=_shape(node))
                node.replace_all_uses_with(swapped)
    _finish(recorded)


_VIEWS = (aten.view.default, aten._unsafe_view.default, aten.expand.default, aten.unsqueeze.default)


def merge_views(recorded: GraphModule) -> None:
    """Take out views of a shape that is there already, as mapping over members leaves around each product and each number of a member."""
    seen: dict[tuple[object, ...], Node] = {}
    for node in recorded.graph.nodes:
        if node.op != "call_function" or node.target not in _VIEWS:
            continue
        source, *size = node.args
        if _shape(node) == _shape(source):
            node.replace_all_uses_with(source)
        else:
            node.replace_all_uses_with(seen.setdefault((node.target, source, str(size)), node))
    _finish(recorded)


def interpolate_in_place(recorded: GraphModule) -> None:
    """Let one operation write all moving averages: target <- weight online + (1 - weight) target, and nothing in between."""
    graph = recorded.graph
    averages: dict[float, list[tuple[Node, object, object]]] = {}
    for node in graph.nodes:
        if not (_is(node, aten.copy_.default) and _is(node.args[1], aten.add.Tensor) and len(node.args[1].users) == 1):
            continue
        target, (first, second) = node.args[0], node.args[1].args[:2]
        if not (_is(first, aten.mul.Tensor) and _is(second, aten.mul.Tensor) and second.args[0] is target):
            continue
        weight, rest = first.args[1], second.args[1]
        if isinstance(weight, float) and isinstance(rest, float) and rest == 1.0 - weight:
            averages.setdefault(weight, []).append((node, target, first.args[0]))
    for weight, found in averages.items():
        copies, targets, online = zip(*found, strict=True)
        # After the last copy, so that whoever reads a target or an online parameter before still reads it before.
        with graph.inserting_after(copies[-1]):
            graph.call_function(aten._foreach_lerp_.Scalar, (list(targets), list(online), weight))
        for copy in copies:
            graph.erase_node(copy)
    _finish(recorded)


def multiply_with_onednn(recorded: GraphModule) -> None:
    """Let oneDNN compute the matrix products of the types that it can, and the ReLU after a linear layer with it."""
    graph = recorded.graph
    for node in graph.nodes:
        if _is(node, aten.addmm.default) and not node.kwargs:
            bias, left, right = node.args
        elif _is(node, aten.mm.default):
            bias, (left, right) = None, node.args
        else:
            continue
        if math.prod(_shape(left)) * _shape(right)[1] < SMALLEST_PRODUCT or not onednn_multiplies(_dtype(left)):
            continue
        with graph.inserting_before(node):
            if _is(right, aten.t.default):
                weight = right.args[0]
            else:
                weight = _call(graph, aten.t.default, right, shape=tuple(reversed(_shape(right))))
            users = list(node.users)
            relu = len(users) == 1 and _is(users[0], aten.relu.default)
            product = _call(
                graph,
                torch.ops.mkldnn._linear_pointwise.default,
                left,
                weight,
                bias,
                "relu" if relu else "none",
                [],
                "",
                shape=_shape(node),
            )
        (users[0] if relu else node).replace_all_uses_with(product)
    _finish(recorded)


def _finish(recorded: GraphModule) -> None:
    recorded.graph.eliminate_dead_code()
    recorded.graph.lint()
    recorded.recompile()


def _is(node: object, operation: object) -> bool:
    return isinstance(node, Node) and node.op == "call_function" and node.target is operation


def _shape(node: Node) -> tuple[int, ...]:
    return tuple(node.meta["val"].shape)


def _dtype(node: Node) -> torch.dtype:
    dtype: torch.dtype = node.meta["val"].dtype
    return dtype


class _Shaped:
    """Stands for a tensor in a node's `meta`, where `_shape` and `_dtype` read."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        self.shape, self.dtype = shape, dtype


def _call(graph: Graph, operation: Any, *arguments: Any, shape: tuple[int, ...]) -> Node:
    """Insert a node, whose result has its first argument's dtype."""
    node = graph.call_function(operation, arguments)
    node.meta["val"] = _Shaped(shape, _dtype(arguments[0]))
    return node
