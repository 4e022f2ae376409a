"""The replay memory's rings as tensors, written in place."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sacref.algorithm import replay
from sacref.algorithm.data import Batch, Sampled, Transition
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

    def place(self, slot: Any, environment: Any) -> Any:
        """Return the rows of slots."""
        return index_of(slot, environment, self.size.shape[0])

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
    index = torch.where(keep, memory.place(slot, torch.arange(envs, device=slot.device)), slots * envs).reshape(-1)

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


def draw_together(memory: MemoryState, members: int, batch_size: int, generators: Sequence[torch.Generator]) -> Batch[Tensor]:
    """Draw for each member of a population what `Sampler.transitions` draws for it alone, `(members, batch, ...)`.

    Args:
        memory: the rings of the first member's environments, those of the second, ...
    """
    number = torch.empty((members, batch_size), dtype=torch.int64, device=memory.size.device)
    for row, generator in zip(number, generators, strict=True):
        torch.randint(2**63 - 1, (batch_size,), generator=generator, out=row)
    size = memory.size.view(members, -1)
    number %= size.sum(1, keepdim=True).clamp(min=1)
    ends = size.cumsum(1)
    environment = (number[:, :, None] >= ends[:, None, :-1]).sum(2)
    slot = number - (ends - size).gather(1, environment)
    index = memory.place(slot, environment + size.shape[1] * torch.arange(members, device=slot.device)[:, None])
    return Batch(*map_leaves(lambda ring: memory.take(ring, index), tuple(memory.rows[:7])))


sampler: Sampler[MemoryState, torch.Generator] = Sampler(_draw, lambda memory, length: torch.arange(length, device=memory.size.device))


def _by_slot(ring: Tensor, slots: int) -> Tensor:
    """Return a view of a ring's rows, without the one that takes what is not kept: `(slots, envs, ...)`."""
    return ring[:-1].view(slots, -1, *ring.shape[1:])


class TensorRings:
    """PyTorch's part of a replay memory (`RingLibrary`)."""

    device: Callable[[str | torch.device | None], torch.device] = staticmethod(device_of)
    free_bytes: Callable[[torch.device], int | None] = staticmethod(free_bytes)
    write: Callable[..., MemoryState] = staticmethod(write)

    def numpy_dtype(self, dtype: torch.dtype) -> np.dtype[np.generic]:
        return np.dtype(str(dtype).removeprefix("torch."))

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

    def fill(self, memory: MemoryState, arrays: Mapping[str, NumpyArray], first: int = 0) -> MemoryState:
        envs, slots = len(arrays["size"]), memory.slots
        some = slice(first, first + envs)
        for name, ring in named_leaves(memory.rows).items():
            by_slot = _by_slot(ring, slots)
            for rows in blocks(filled_rows(arrays["size"]), envs):
                block = torch.from_numpy(np.array(arrays[name][rows])).to(ring.device)
                by_slot[rows.start // envs : rows.stop // envs, some] = block.reshape(-1, envs, *block.shape[1:])
        for name, counter in {"head": memory.head, "size": memory.size}.items():
            counter[some] = torch.from_numpy(np.array(arrays[name], np.int64)).to(counter.device)
        return memory

    def cut(self, memory: MemoryState, first: int, envs: int) -> MemoryState:
        some, slots = slice(first, first + envs), memory.slots

        def ring(whole: Tensor) -> Tensor:
            return torch.cat([_by_slot(whole, slots)[:, some].reshape(slots * envs, *whole.shape[1:]), whole[-1:]])

        return MemoryState(memory.rows.map(ring), memory.head[some].clone(), memory.size[some].clone())


class ReplayMemory(replay.ReplayMemory[MemoryState, torch.device]):
    """Storage on PyTorch for the transitions of all environments together; see `sacref.algorithm.replay.ReplayMemory`."""

    library: TensorRings = TensorRings()

    def sample(self, batch_size: int, generator: torch.Generator) -> Sampled[Tensor]:
        """Draw `batch_size` transitions, or sequences of a recurrent agent, uniformly, with replacement."""
        return sampler(self.settings)(self.state, batch_size, generator)
