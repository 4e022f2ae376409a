"""Several processes on `torch.distributed`."""

import atexit
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist

# Its functions have the default group of the moment of the import as a default argument. A recorded graph imports it; after `join`
# that would keep the group, and its threads, beyond `_leave`: at the interpreter's end they abort the process.
import torch.distributed.nn.functional
from numpy.typing import NDArray

from sacref.ranks import TIMEOUT, Launch, Ranks, launched
from sacref.spec.arrays import NumpyArray


class TorchRanks(Ranks):
    """The ranks of the default process group, which must be initialised."""

    def __init__(self) -> None:
        self.rank: int = dist.get_rank()
        self.size: int = dist.get_world_size()
        # NCCL takes no arrays of the host; a group that has gloo beside it does, and then nothing waits for the device.
        on_host = "cpu:" in dist.distributed_c10d.get_backend_config()
        self._device = torch.device("cpu") if on_host else torch.device("cuda", torch.cuda.current_device())

    def _exchange(self, data: NDArray[np.uint8]) -> NDArray[np.uint8]:
        sent = torch.from_numpy(data.copy()).to(self._device)
        received = [torch.empty_like(sent) for _ in range(self.size)]
        try:
            dist.all_gather(received, sent)
            gathered: NumpyArray = torch.stack(received).cpu().numpy()
        except RuntimeError as error:
            raise self.lost(error) from error
        return gathered


def ranks() -> Ranks:
    """Return the ranks of the process group that is initialised; without one, this process alone."""
    return TorchRanks() if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1 else Ranks()


def join(device: str | None = None, *, timeout: float = TIMEOUT) -> Ranks:
    """Initialise `torch.distributed` with the ranks that the environment names (`sacref.ranks.launched`), by gloo and, between GPUs, NCCL.

    Ranks of one machine take a GPU each. For programs, not for libraries. Nothing happens where the environment names no others, or where
    the group is initialised.

    Args:
        device: where the agent will compute, "cpu" or "cuda"; None for CUDA where there is one.
        timeout: seconds after which a rank that does not answer is given up, here and in every exchange.

    Raises:
        ValueError: if this machine has fewer GPUs than ranks, or the environment is incomplete. LostRankError: if the others do not come.
    """
    place = launched()
    if place is None or dist.is_initialized():
        return ranks()
    cuda = torch.cuda.is_available() if device is None else torch.device(device).type == "cuda"
    if cuda:
        torch.cuda.set_device(_gpu(place, device))
    # gloo beside NCCL: what is told on the host does not wait for the device.
    backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
    place.begin(lambda: dist.init_process_group(backend, timeout=timedelta(seconds=timeout)))
    # Its threads free tensors: after the interpreter's end, that is an abort of the process.
    atexit.register(_leave)
    return ranks()


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def _gpu(place: Launch, device: str | None) -> int:
    """Return the index of this rank's GPU."""
    index = None if device is None else torch.device(device).index
    if index is not None and place.local_size > 1:
        raise ValueError(f"device is {device!r} for {place.local_size} ranks of one machine: leave the index out, each takes its own GPU")
    found = place.local_rank if index is None else index
    if found >= torch.cuda.device_count():
        raise ValueError(
            f"rank {place.rank} needs GPU {found}, and this machine has {torch.cuda.device_count()}: start at most one rank for each, "
            f"or pass --device cpu"
        )
    return found
