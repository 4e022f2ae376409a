"""Networks in low precision by casts of parameters and inputs, all but their head; everything else is computed as it is."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from sacref.algorithm.tree import Tree, map_leaves
from sacref.jax.weights import Parameters, functional

DTYPES = {"bfloat16": jnp.bfloat16, "float16": jnp.float16}


def low_precision(model: nnx.Module, precision: str, *, arguments: int) -> Callable[..., Tree]:
    """Return `functional(model)` of parameters and inputs that are cast down, with outputs in float32.

    What the model has as its `head`, a module, keeps its parameters, and so is computed in float32 from up-cast inputs: to cast its result
    up would keep the quantisation, which at |Q| = 1,000 is 4 apart in bfloat16 and 0.5 in float16 (Bjorck et al. 2021, arXiv:2102.13565).
    Layers of the model that say a `dtype` of their own compute in that. Draws of random layers are compared and not computed with: they
    stay as they are.

    Args:
        precision: "bfloat16" or "float16".
        arguments: of the model that are computed with; behind them come draws.
    """
    apply = functional(model)
    dtype = DTYPES[precision]

    def down(value: Array) -> Array:
        return value.astype(dtype) if jnp.issubdtype(value.dtype, jnp.floating) else value

    def run(parameters: Parameters, *inputs: Tree) -> Tree:
        lowered = {path: array if path.startswith("head.") else down(array) for path, array in parameters.items()}
        # The head's product in float32, where a GPU's would be in TF32 unless told; of low-precision inputs it changes nothing.
        with jax.default_matmul_precision("highest"):
            outputs = apply(lowered, *map_leaves(down, inputs[:arguments]), *inputs[arguments:])
        return map_leaves(_up, outputs)

    return run


def _up(value: Array) -> Array:
    return value.astype(jnp.float32) if value.dtype in DTYPES.values() else value
