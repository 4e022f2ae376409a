"""The replay memory's rings as tensors, written in place."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sacref.algorithm import replay
from sacref.algorithm.data import Sampled, Transition
from sacref.algorithm.replay import blocks, filled_rows
from sacref.algorithm.sequences import Sampler, index_of
from sacref.algorithm.tree import map_leaves, named_leaves
from sacref.spec.arrays import NumpyArray
from sacref.torch.device import device_of, free_bytes


class MemoryState(NamedTuple):
    """The rings of the environments (`sacref.algorithm.sequences.Rings`), with one row more, which takes what is not kept."""

    rows: Transition[Tensor]
    head: Tensor
    size: Tensor

    @property
    def slots(self) -> int:
        """Rows that each environment has room for."""
        return int(self.rows.rewards.shape[0] - 1) // int(self.size.shape[0])

    def take(self, ring: Tensor, index: Tensor) -> Tensor:
        """Return rows of a ring, `(*index.shape, ...)`."""
        # Wide rows are copied whole, which indexing does number by number.
        if index.ndim == 1:
            return ring.index_select(0, index)
        return ring.index_select(0, index.reshape(-1)).reshape(*index.shape, *ring.shape[1:])


def write(memory: MemoryState, transition: Transition[Any], keep: Any) -> MemoryState:
    """Store the rows of `transition` that `keep` names in place; return the memory that was given."""
    envs, slots = memory.size.shape[0], memory.slots
    keep = torch.as_tensor(keep, device=memory.size.device).reshape(-1, envs)
    slot = (memory.head + torch.cumsum(keep, 0) - 1) % slots
    index = torch.where(keep, index_of(slot, torch.arange(envs, device=slot.device), envs), slots * envs).reshape(-1)

    def store(ring: Tensor, values: object) -> None:
        ring.index_copy_(0, index, torch.as_tensor(values, dtype=ring.dtype, device=ring.device))

    map_leaves(store, memory.rows, transition)
    count = keep.sum(0)
    memory.head.add_(count).remainder_(slots)
    memory.size.add_(count).clamp_(max=slots)
    return memory


def _draw(memory: MemoryState, batch_size: int, generator: torch.Generator) -> Tensor:
    stored = memory.size if memory.size.shape[0] == 1 else memory.size.sum()
    return torch.randint(2**63 - 1, (batch_size,), generator=generator, device=memory.size.device) % stored.clamp(min=1)


sampler: Sampler[MemoryState, torch.Generator] = Sampler(_draw, lambda memory, length: torch.arange(length, device=memory.size.device))


class TensorRings:
    """PyTorch's part of a replay memory (`RingLibrary`)."""

    device: Callable[[str | torch.device | None], torch.device] = staticmethod(device_of)
    free_bytes: Callable[[torch.device], int | None] = staticmethod(free_bytes)
    write: Callable[..., MemoryState] = staticmethod(write)

    def numpy_dtype(self, dtype: torch.dtype) -> np.dtype[np.generic]:
        return torch.empty(0, dtype=dtype).numpy().dtype

    def zeros(self, like: Transition[NumpyArray], slots: int, envs: int, device: torch.device) -> MemoryState:
        def ring(row: NumpyArray) -> Tensor:
            return torch.zeros((slots * envs + 1, *row.shape[1:]), dtype=torch.from_numpy(row).dtype, device=device)

        head, size = (torch.zeros(envs, dtype=torch.int64, device=device) for _ in range(2))
        return MemoryState(like.map(ring), head, size)

    def to_numpy(self, array: Tensor, rows: int | None = None) -> NumpyArray:
        return array[:rows].cpu().numpy()

    def take(self, memory: MemoryState, index: NumpyArray) -> dict[str, NumpyArray]:
        place = torch.from_numpy(np.array(index, np.int64)).to(memory.head.device)
        return {name: memory.take(ring, place).cpu().numpy() for name, ring in named_leaves(memory.rows).items()}

    def fill(self, memory: MemoryState, arrays: Mapping[str, NumpyArray]) -> MemoryState:
        for name, ring in named_leaves(memory.rows).items():
            for rows in blocks(filled_rows(arrays["size"])):
                ring[rows] = torch.from_numpy(np.array(arrays[name][rows])).to(ring.device)
        for name, counter in {"head": memory.head, "size": memory.size}.items():
            counter.copy_(torch.from_numpy(np.array(arrays[name], np.int64)))
        return memory


class ReplayMemory(replay.ReplayMemory[MemoryState, torch.device]):
    """Storage on PyTorch for the transitions of all environments together; see `sacref.algorithm.replay.ReplayMemory`."""

    library: TensorRings = TensorRings()

    def sample(self, batch_size: int, generator: torch.Generator) -> Sampled[Tensor]:
        """Draw `batch_size` transitions, or sequences of a recurrent agent, uniformly, with replacement."""
        return sampler(self.settings)(self.state, batch_size, generator)
