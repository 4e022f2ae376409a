"""The precisions of the measured gradient steps. Each needs its own process: the libraries keep a precision for the whole process."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Precision:
    """Settings that differ from float32 throughout."""

    torch_matmul: str
    """Argument of `torch.set_float32_matmul_precision`."""
    jax_matmul: str
    """Value of JAX's option `jax_default_matmul_precision`."""
    cuda_only: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Fields of `SACConfig`."""


PRECISIONS = {
    # Not left to the default: JAX multiplies float32 in TF32 on the GPUs that can.
    "float32": Precision(torch_matmul="highest", jax_matmul="highest"),
    "tf32": Precision(torch_matmul="high", jax_matmul="tensorfloat32", cuda_only=True),
    # The layers that stay float32 (the last ones) are multiplied as in float32 throughout.
    "bfloat16": Precision(torch_matmul="highest", jax_matmul="highest", settings={"mixed_precision": True, "precision": "bfloat16"}),
    "float16": Precision(torch_matmul="highest", jax_matmul="highest", settings={"mixed_precision": True, "precision": "float16"}),
}


def use(backend: str, name: str) -> None:
    """Set the precision of this process."""
    precision = PRECISIONS[name]
    if backend == "torch":
        import torch

        torch.set_float32_matmul_precision(precision.torch_matmul)
        # cuDNN multiplies recurrent cells in TF32 unless told.
        torch.backends.cudnn.allow_tf32 = precision.torch_matmul != "highest"
    else:
        import jax

        jax.config.update("jax_default_matmul_precision", precision.jax_matmul)  # type: ignore[no-untyped-call]  # JAX leaves it unannotated.
