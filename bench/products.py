"""Products of square float32 matrices, as fast as each backend can ask for them: the machine's speed, which gradient steps are held to."""

from functools import partial

import numpy as np
from numpy.typing import NDArray

from bench.flops import matmul_flops
from bench.timing import Timed

OPERATIONS = 10**9
"""Of one call, at least about so many: less would show what the call costs."""


class TorchProducts:
    """In torch. On CUDA the products of a call are one graph: launched one by one, small ones would show the launches' cost."""

    def __init__(self, size: int) -> None:
        import torch

        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.left, right = (torch.from_numpy(matrix).to(device) for matrix in matrices(size))
        out, pairs = torch.empty_like(self.left), pairs_of(size)

        def multiply() -> None:
            for _ in range(pairs):
                torch.mm(self.left, right, out=out)
                torch.mm(out, right, out=self.left)

        call, synchronise = multiply, _nothing
        if device.type == "cuda":
            side = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch leaves it unannotated.
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                multiply()
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                multiply()
            call, synchronise = graph.replay, torch.cuda.synchronize
        self.timed = Timed(call=call, synchronise=synchronise, count=2 * pairs)


class JaxProducts:
    """In JAX: the products of a call are one compiled loop."""

    def __init__(self, size: int) -> None:
        import jax

        count = 2 * pairs_of(size)

        @partial(jax.jit, donate_argnums=0)
        def loop(left: jax.Array, right: jax.Array) -> jax.Array:
            product: jax.Array = jax.lax.fori_loop(0, count, lambda _, product: product @ right, left)
            return product

        def call() -> None:
            self.left = loop(self.left, right)

        self.left, right = (jax.device_put(matrix) for matrix in matrices(size))
        self.timed = Timed(call=call, synchronise=lambda: self.left.block_until_ready(), count=count)


def _nothing() -> None:
    """The CPU of torch has nothing to wait for."""


def pairs_of(size: int) -> int:
    """Half the products of one call."""
    return max(1, round(OPERATIONS / (2 * matmul_flops(size))))


def matrices(size: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Two matrices, the second orthogonal: however often it multiplies the first, no number overflows or vanishes."""
    generator = np.random.default_rng(size)
    orthogonal = np.linalg.qr(generator.standard_normal((size, size)))[0]
    return generator.standard_normal((size, size)).astype(np.float32), orthogonal.astype(np.float32)
