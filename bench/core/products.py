"""Products of float32 matrices, as fast as each backend can ask for them: the speed that gradient steps are compared with."""

from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bench.core.flops import product_flops
from bench.core.timing import Timed

OPERATIONS = 10**9
"""About the least number of operations of one call: fewer would show the cost of the call."""


class Shape(NamedTuple):
    """Sizes of a product: a matrix of rows x inner times one of inner x columns, with columns >= inner."""

    rows: int
    inner: int
    columns: int


class TorchProducts:
    """Products in torch. On CUDA those of a call are one graph: launched one by one, small ones would show the cost of a launch."""

    def __init__(self, shape: Shape) -> None:
        import torch

        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.left, there, back = (torch.from_numpy(matrix).to(device) for matrix in matrices(shape))
        out, pairs = self.left.new_empty(shape.rows, shape.columns), pairs_of(shape)

        def multiply() -> None:
            for _ in range(pairs):
                torch.mm(self.left, there, out=out)
                torch.mm(out, back, out=self.left)

        call, synchronise = multiply, _nothing
        if device.type == "cuda":
            side = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch leaves it unannotated.
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                multiply()
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            # Capture this thread alone: JAX's threads may be at work in this process.
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                multiply()
            call, synchronise = graph.replay, torch.cuda.synchronize
        self.timed = Timed(call=call, synchronise=synchronise, count=2 * pairs)


class JaxProducts:
    """Products in JAX: those of a call are one compiled loop."""

    def __init__(self, shape: Shape) -> None:
        import jax

        pairs = pairs_of(shape)

        @partial(jax.jit, donate_argnums=0)
        def loop(left: jax.Array, there: jax.Array, back: jax.Array) -> jax.Array:
            product: jax.Array = jax.lax.fori_loop(0, pairs, lambda _, product: product @ there @ back, left)
            return product

        def call() -> None:
            self.left = loop(self.left, there, back)

        self.left, there, back = (jax.device_put(matrix) for matrix in matrices(shape))
        self.timed = Timed(call=call, synchronise=lambda: self.left.block_until_ready(), count=2 * pairs)


def _nothing() -> None:
    """Wait for nothing: torch computes on the CPU before it returns."""


def pairs_of(shape: Shape) -> int:
    """Return half the number of products of one call: each pair goes there and back, as the products of a recurrence do."""
    return max(1, round(OPERATIONS / (2 * product_flops(*shape))))


def matrices(shape: Shape) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Draw a matrix and its two factors, there and back: orthonormal, so that no number overflows or vanishes, however often."""
    generator = np.random.default_rng(shape)
    there = np.linalg.qr(generator.standard_normal((shape.columns, shape.inner)))[0].T
    rotation = np.linalg.qr(generator.standard_normal((shape.inner, shape.inner)))[0]
    left = generator.standard_normal((shape.rows, shape.inner))
    return _float32(left), _float32(there), _float32(there.T @ rotation)


def _float32(matrix: NDArray[np.float64]) -> NDArray[np.float32]:
    return np.ascontiguousarray(matrix, np.float32)
