"""Arrays of environments on a device: PyTorch's and JAX's, which stay there."""

import importlib
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeGuard

import numpy as np
from array_api_compat import is_jax_array, is_torch_array, to_device

from sacref.spec.arrays import Array, as_numpy


def is_on_device(value: object) -> TypeGuard[Array]:
    """Tell whether a value is an array of PyTorch or JAX, on any device, the CPU included."""
    return type(value) is not np.ndarray and (is_torch_array(value) or is_jax_array(value))


def transferred(array: Array, library: Any, device: object) -> Any:
    """Return an array of PyTorch or JAX as one of the other library, on a device of that one's.

    On one device it goes through DLPack and shares its memory; between devices that only one library sees, through the host.

    Args:
        library: the other one, with `from_dlpack` and `asarray`.
    """
    try:
        with _current_device_of(array):
            found = library.from_dlpack(array)
    except (RuntimeError, BufferError, TypeError, ValueError, AssertionError):  # of a device that this library does not see
        found = library.asarray(as_numpy(array, "the array"))
    return to_device(found, device)


def _current_device_of(array: Any) -> AbstractContextManager[object]:
    """Make a tensor's CUDA device the current one meanwhile: PyTorch exports tensors of no other."""
    if is_torch_array(array) and array.device.type == "cuda":
        found: AbstractContextManager[object] = importlib.import_module("torch").cuda.device(array.device)
        return found
    return nullcontext()
