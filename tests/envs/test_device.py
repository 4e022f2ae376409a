"""Arrays that go from one library to the other, looked at where there is no CUDA device."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from sacref.envs.device import transferred


class OnCuda(np.ndarray[Any, Any]):
    """Stands in for an array of JAX on a CUDA device, which NumPy can read and nobody can share."""

    def __dlpack_device__(self) -> Any:
        return 2, 0

    def __dlpack__(self, **_: Any) -> Any:
        raise BufferError


def test_what_pytorch_without_cuda_cannot_share_goes_through_the_host() -> None:
    torch = pytest.importorskip("torch")
    tensor = transferred(np.arange(3.0).view(OnCuda), torch, "cpu")
    assert (tensor.tolist(), tensor.device.type) == ([0.0, 1.0, 2.0], "cpu")


def test_a_tensor_is_exported_while_its_device_is_the_current_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch refuses otherwise, and the tensor would go through the host."""
    torch = pytest.importorskip("torch")
    current, exported_on = ["cuda:0"], []

    @contextmanager
    def device(found: Any) -> Iterator[None]:
        current.append(str(found))
        yield
        current.pop()

    def from_dlpack(array: Any) -> Any:
        exported_on.append(current[-1])
        return np.zeros(2)

    monkeypatch.setattr(torch.cuda, "device", device)
    on_second = type("OnSecond", (torch.Tensor,), {"device": torch.device("cuda", 1)})
    for tensor in (torch.zeros(2), torch.zeros(2).as_subclass(on_second)):
        transferred(tensor, SimpleNamespace(from_dlpack=from_dlpack), "cpu")
    assert (exported_on, current) == (["cuda:0", "cuda:1"], ["cuda:0"])
