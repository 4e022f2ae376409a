"""Export of a policy from JAX, to ONNX and to StableHLO."""

from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from jax import Array

from sacref.agent.prediction import ExportablePolicy
from sacref.algorithm.tree import map_leaves
from sacref.spec.arrays import NumpyArray

PLATFORMS = ("cpu", "cuda")
"""Platforms that an exported StableHLO program runs on."""


def to_stablehlo(policy: ExportablePolicy[Array], path: Path) -> None:
    """Write a program that `jax.export.deserialize` reads: StableHLO, with its calling convention."""
    path.write_bytes(jax.export.export(jax.jit(_closed(policy)), platforms=PLATFORMS)(*_shapes(policy)).serialize())


def to_onnx(policy: ExportablePolicy[Array], path: Path) -> None:
    """Write a model in one ONNX file, by jax2onnx."""
    held = dict(vars(jnp))
    try:
        from jax2onnx import to_onnx

        to_onnx(
            _closed(policy),
            _shapes(policy),
            return_mode="file",
            output_path=path,
            input_names=list(policy.inputs),
            output_names=list(policy.outputs),
            enable_double_precision=any(array.dtype == np.float64 for array in policy.inputs.values()),
        )
    finally:
        vars(jnp).update(held)  # jax2onnx leaves a function of its own there


def load_stablehlo(path: Path) -> Callable[..., list[NumpyArray]]:
    """Return a program that `to_stablehlo` wrote as a function of NumPy arrays, which runs on the CPU."""
    program = jax.export.deserialize(bytearray(path.read_bytes()))
    call: Callable[..., Sequence[Array]] = program.call

    def run(*inputs: NumpyArray) -> list[NumpyArray]:
        # On the CPU, as the agent that it is held against: JAX's own choice may be a GPU, which multiplies in TF32.
        with jax.default_device(jax.local_devices(backend="cpu")[0]):
            return [np.asarray(output) for output in call(*inputs)]

    return run


def _shapes(policy: ExportablePolicy[Array]) -> list[jax.ShapeDtypeStruct]:
    """Return shapes and dtypes of the inputs, for any number of rows."""
    (rows,) = jax.export.symbolic_shape("n")
    shape: Callable[..., jax.ShapeDtypeStruct] = jax.ShapeDtypeStruct
    return [shape((rows, *array.shape[1:]), array.dtype) for array in policy.inputs.values()]


def _closed(policy: ExportablePolicy[Array]) -> Callable[..., tuple[Array, ...]]:
    """Return the policy as a function of its inputs alone, whose weights are constants."""
    parameters, moments = map_leaves(np.asarray, (policy.parameters, policy.moments))
    return lambda *inputs: policy.function(*map_leaves(jnp.asarray, (parameters, moments)), *inputs)
