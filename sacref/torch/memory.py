"""The replay memory: a ring of transitions on the device. Positions are chosen on the device too, so nothing waits for it."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sacref.envs.spaces import Spaces
from sacref.replay import Staging, blocks, check_arrays, check_block, check_size
from sacref.torch.device import device_of
from sacref.types import Batch, Transition


class MemoryState(NamedTuple):
    """The ring, and where the next transition goes."""

    rows: Transition[Tensor]
    """`(capacity + 1, ...)` each; the last row takes what is not kept."""
    head: Tensor
    """`()`, int64: the row written next."""
    size: Tensor
    """`()`, int64: how many rows hold transitions."""


def write(memory: MemoryState, transition: Transition[Any], keep: Any) -> MemoryState:
    """Store the rows of `transition` that `keep` names, in order, over the oldest ones; tensors or NumPy arrays.

    Written in place: what it returns is what it was given.
    """
    capacity = memory.rows.rewards.shape[0] - 1
    keep = torch.as_tensor(keep, device=memory.size.device)
    index = torch.where(keep, (memory.head + torch.cumsum(keep, 0) - 1) % capacity, capacity)
    for ring, values in zip(memory.rows, transition, strict=True):
        if ring is not None and values is not None:
            ring.index_copy_(0, index, torch.as_tensor(values, dtype=ring.dtype, device=ring.device))
    count = keep.sum()
    memory.head.add_(count).remainder_(capacity)
    memory.size.add_(count).clamp_(max=capacity)
    return memory


def sample(memory: MemoryState, batch_size: int, generator: torch.Generator) -> Batch[Tensor]:
    """Draw transitions uniformly, with replacement."""
    draw = torch.randint(2**63 - 1, (batch_size,), generator=generator, device=memory.size.device)
    index = draw % memory.size.clamp(min=1)
    return Batch(*memory.rows[:7]).map(lambda ring: ring.index_select(0, index))


class ReplayMemory:
    """Storage for the transitions of all environments together.

    Args:
        capacity: how many transitions, of all environments together; the oldest are overwritten.
        num_envs: how many environments are stepped at a time.
        device: where the transitions lie; None for the agent's device. The agent allocates at its construction.

    Raises:
        ValueError: if `capacity` or `num_envs` is not positive, or one step of all environments does not fit.
    """

    def __init__(self, capacity: int, num_envs: int, device: str | torch.device | None = None) -> None:
        check_size(capacity, num_envs)
        self.capacity, self.num_envs = capacity, num_envs
        self.device = None if device is None else device_of(device)
        self.written = False
        """Whether anything was ever stored: what the host knows without waiting for the device."""
        self._state: MemoryState | None = None
        self._staging: Staging | None = None

    def allocate(self, spaces: Spaces, dtype: torch.dtype, device: torch.device, *, staged_timesteps: int = 1) -> None:
        """Make room for transitions of these spaces; floats in `dtype`. An agent calls this once, at its construction.

        Args:
            staged_timesteps: how many timesteps of host rows are collected before they are stored together.
        """
        if self._state is not None:
            raise ValueError("ReplayMemory: this memory belongs to another agent already: make one for each agent")
        if self.device not in (None, device):
            raise ValueError(f"ReplayMemory: it is on {self.device}, the agent on {device}: leave the memory's device out")
        check_block(staged_timesteps * self.num_envs, self.capacity)
        self.device = device
        rows, floats = self.capacity + 1, _numpy_dtype(dtype)
        observations = torch.from_numpy(np.empty(0, spaces.stored_dtype(floats))).dtype

        def zeros(shape: tuple[int, ...], kind: torch.dtype) -> Tensor:
            return torch.zeros((rows, *shape), dtype=kind, device=self.device)

        self._state = MemoryState(
            rows=Transition(
                observations=zeros(spaces.observation_shape, observations),
                states=None,
                actions=zeros((spaces.action_size,), dtype),
                rewards=zeros((), dtype),
                next_observations=zeros(spaces.observation_shape, observations),
                next_states=None,
                terminated=zeros((), torch.bool),
            ),
            head=torch.zeros((), dtype=torch.int64, device=self.device),
            size=torch.zeros((), dtype=torch.int64, device=self.device),
        )
        self._staging = Staging(
            self._state.rows.map(lambda ring: np.empty((0, *ring.shape[1:]), _numpy_dtype(ring.dtype))),
            staged_timesteps * self.num_envs,
        )

    @property
    def state(self) -> MemoryState:
        """The ring on the device, with everything in it that was added."""
        if self._state is None or self._staging is None:
            raise ValueError("ReplayMemory: not allocated yet: give it to an agent first, SAC(memory=...)")
        if len(self._staging):
            self._state = write(self._state, *self._staging.take())
        return self._state

    def __len__(self) -> int:
        """How many transitions are stored; waits for the device."""
        return int(self.state.size)

    def add(self, transition: Transition[Any], keep: Any) -> None:
        """Store one row per environment where `keep`, `(envs,)`, is True. NumPy rows wait on the host until they are needed."""
        if self._staging is not None and isinstance(keep, np.ndarray):
            if self._staging.full:
                self._state = self.state
            self._staging.add(transition, keep)
        else:
            self._state = write(self.state, transition, keep)
        self.written = True

    def sample(self, batch_size: int, generator: torch.Generator) -> Batch[Tensor]:
        """Draw `batch_size` transitions uniformly, with replacement."""
        return sample(self.state, batch_size, generator)

    def arrays(self, *, copy: bool = True) -> dict[str, NDArray[Any]]:
        """The stored transitions and the write head, as NumPy arrays.

        Args:
            copy: False gives views of the memory where it lies on the CPU, to be let go of before the next write.
        """
        size = len(self)
        rings = {name: ring for name, ring in self.state.rows._asdict().items() if ring is not None}
        rows = {name: np.array(ring[:size].cpu().numpy(), copy=copy or None) for name, ring in rings.items()}
        return {**rows, "head": self.state.head.cpu().numpy().copy(), "size": np.array(size, np.int64)}

    def set_arrays(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Restore what `arrays` gave.

        Raises:
            ValueError: if the arrays are not those of a memory of this capacity and these shapes. Nothing is changed then.
        """
        rings = {name: ring for name, ring in self.state.rows._asdict().items() if ring is not None}
        check_arrays(arrays, {name: (tuple(ring.shape[1:]), _numpy_dtype(ring.dtype)) for name, ring in rings.items()}, self.capacity)
        size = int(arrays["size"])
        state = self.state
        self.written = size > 0
        for name, ring in rings.items():
            for rows in blocks(size):
                ring[rows] = torch.from_numpy(np.array(arrays[name][rows])).to(ring.device)
        state.head.fill_(int(arrays["head"]))
        state.size.fill_(size)


def _numpy_dtype(dtype: torch.dtype) -> np.dtype[Any]:
    return torch.empty(0, dtype=dtype).numpy().dtype
