"""The replay memory: a ring of transitions on the device. Positions are chosen on the device too, so nothing waits for it."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray
from torch import Tensor

from sacref.algorithm.data import Batch, Sequences, Transition
from sacref.algorithm.replay import (
    Follow,
    Staging,
    blocks,
    check_arrays,
    check_block,
    check_follow,
    check_room,
    check_size,
    filled_rows,
    gather,
    gather_sequences,
    gather_steps,
    index_of,
)
from sacref.algorithm.tree import Tree, leaves, map_leaves, named_leaves
from sacref.envs.spaces import Spaces
from sacref.torch.device import device_of, free_bytes


class MemoryState(NamedTuple):
    """The rings of the environments, see `sacref.algorithm.replay`, and where their next transitions go."""

    rows: Transition[Tensor]
    """`(slots * envs + 1, ...)` each; the last row takes what is not kept."""
    head: Tensor
    """`(envs,)`, int64: the slot written next."""
    size: Tensor
    """`(envs,)`, int64: how many slots hold transitions."""

    @property
    def slots(self) -> int:
        """Rows that each environment has room for."""
        return int(self.rows.rewards.shape[0] - 1) // int(self.size.shape[0])

    def take(self, ring: Tensor, index: Tensor) -> Tensor:
        """Rows of a ring, `(*index.shape, ...)`."""
        # Wide rows are copied whole, which indexing does number by number.
        if index.ndim == 1:
            return ring.index_select(0, index)
        return ring.index_select(0, index.reshape(-1)).reshape(*index.shape, *ring.shape[1:])


def write(memory: MemoryState, transition: Transition[Any], keep: Any) -> MemoryState:
    """Store the rows of `transition` that `keep` names, timestep by timestep, over the oldest ones; tensors or NumPy arrays.

    Written in place: what it returns is what it was given.
    """
    envs, slots = memory.size.shape[0], memory.slots
    keep = torch.as_tensor(keep, device=memory.size.device).reshape(-1, envs)
    slot = (memory.head + torch.cumsum(keep, 0) - 1) % slots
    index = torch.where(keep, index_of(slot, torch.arange(envs, device=slot.device), envs), slots * envs).reshape(-1)

    def store(ring: Tensor, values: Any) -> None:
        ring.index_copy_(0, index, torch.as_tensor(values, dtype=ring.dtype, device=ring.device))

    map_leaves(store, memory.rows, transition)
    count = keep.sum(0)
    memory.head.add_(count).remainder_(slots)
    memory.size.add_(count).clamp_(max=slots)
    return memory


def sample(memory: MemoryState, batch_size: int, generator: torch.Generator) -> Batch[Tensor]:
    """Draw transitions uniformly, with replacement."""
    return gather(memory, _draw(memory, batch_size, generator))


def sample_steps(memory: MemoryState, batch_size: int, generator: torch.Generator, settings: Follow) -> Batch[Tensor]:
    """Draw transitions of n steps: their first rows uniformly, with replacement."""
    return gather_steps(memory, _draw(memory, batch_size, generator), settings, _steps(memory, settings.n_step + 1))


def sample_sequences(memory: MemoryState, batch_size: int, generator: torch.Generator, settings: Follow) -> Sequences[Tensor]:
    """Draw sequences: the first rows that are learned from uniformly, with replacement."""
    steps = _steps(memory, settings.burn_in + settings.sequence_length)
    return gather_sequences(memory, _draw(memory, batch_size, generator), settings, steps)


Sampler = Callable[[MemoryState, int, torch.Generator], Batch[Tensor] | Sequences[Tensor]]


def sampler(settings: Follow) -> Sampler:
    """The way to draw a batch."""
    if settings.sequence_length > 0:
        return partial(sample_sequences, settings=settings)
    return sample if settings.n_step == 1 else partial(sample_steps, settings=settings)


def _draw(memory: MemoryState, batch_size: int, generator: torch.Generator) -> Tensor:
    """Numbers of rows, among all that are stored, drawn uniformly."""
    stored = memory.size if memory.size.shape[0] == 1 else memory.size.sum()
    return torch.randint(2**63 - 1, (batch_size,), generator=generator, device=memory.size.device) % stored.clamp(min=1)


def _steps(memory: MemoryState, length: int) -> Tensor:
    return torch.arange(length, device=memory.size.device)


class ReplayMemory:
    """Storage for the transitions of all environments together.

    Args:
        capacity: how many transitions, of all environments together, each having the same share; the oldest are overwritten.
        num_envs: how many environments are stepped at a time.
        device: where the transitions lie; None for the agent's device. The agent allocates at its construction.

    Raises:
        ValueError: if `capacity` or `num_envs` is not positive, or one step of all environments does not fit.
    """

    def __init__(self, capacity: int, num_envs: int, device: str | torch.device | None = None) -> None:
        check_size(capacity, num_envs)
        self.capacity: int = capacity
        self.num_envs: int = num_envs
        self.device = None if device is None else device_of(device)
        self.written: bool = False
        """Whether anything was ever stored: what the host knows without waiting for the device."""
        self.added: int = 0
        """Timesteps that were ever stored, a restored memory's not counted."""
        self.settings: Follow = Follow()
        self._state: MemoryState | None = None
        self._staging: Staging | None = None

    def allocate(
        self,
        spaces: Spaces,
        dtype: torch.dtype,
        device: torch.device,
        *,
        staged_timesteps: int = 1,
        settings: Follow | None = None,
        carry: Tree = None,
    ) -> None:
        """Make room for transitions of these spaces; floats in `dtype`. An agent calls this once, at its construction.

        Args:
            staged_timesteps: how many timesteps of host rows are collected before they are stored together.
            settings: how batches are made; None for transitions of one step.
            carry: of a recurrent policy, for one environment, `(1, ...)` each.
        """
        if self._state is not None:
            raise ValueError("ReplayMemory: this memory belongs to another agent already: make one for each agent")
        if self.device not in (None, device):
            raise ValueError(f"ReplayMemory: it is on {self.device}, the agent on {device}: leave the memory's device out")
        check_block(staged_timesteps, self.num_envs, self.capacity)
        settings, slots = settings or Follow(), self.capacity // self.num_envs
        check_follow(settings, slots)
        self.device, self.settings = device, settings
        rows, floats = slots * self.num_envs + 1, _numpy_dtype(dtype)

        def none(shape: tuple[int, ...], kind: DTypeLike) -> NDArray[Any]:
            return np.empty((0, *shape), kind)

        def of_space(fields: Tree) -> Tree:
            return map_leaves(lambda field: none(field.shape, field.stored_dtype(floats)), fields)

        recurrent = settings.sequence_length > 0
        like: Transition[NDArray[Any]] = Transition(
            observations=of_space(spaces.observations),
            states=of_space(spaces.states),
            actions=none((spaces.action_size,), floats),
            rewards=none((), floats),
            next_observations=of_space(spaces.observations),
            next_states=of_space(spaces.states),
            terminated=none((), np.bool_),
            first=none((), np.bool_) if settings.needs_first else None,
            previous_actions=none((spaces.action_size,), floats) if recurrent else None,
            previous_rewards=none((), floats) if recurrent else None,
            carry=map_leaves(lambda leaf: none(tuple(leaf.shape[1:]), _numpy_dtype(leaf.dtype)), carry) if recurrent else None,
        )
        check_room(
            rows,
            sum(row.dtype.itemsize * math.prod(row.shape[1:]) for row in leaves(like)),
            None if device.type == "cpu" else free_bytes(device),
        )
        self._state = MemoryState(
            rows=like.map(lambda row: torch.zeros((rows, *row.shape[1:]), dtype=torch.from_numpy(row).dtype, device=device)),
            head=torch.zeros(self.num_envs, dtype=torch.int64, device=self.device),
            size=torch.zeros(self.num_envs, dtype=torch.int64, device=self.device),
        )
        self._staging = Staging(like, staged_timesteps * self.num_envs)

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
        return int(self.state.size.sum())

    def add(self, transition: Transition[Any], keep: Any) -> None:
        """Store one row per environment where `keep`, `(envs,)`, is True. NumPy rows wait on the host until they are needed."""
        if self._staging is not None and isinstance(keep, np.ndarray):
            if self._staging.full:
                self._state = self.state
            self._staging.add(transition, keep)
        else:
            self._state = write(self.state, transition, keep)
        self.written = True
        self.added += 1

    @property
    def slots(self) -> int:
        """Transitions that each environment has room for."""
        return self.capacity // self.num_envs

    def sample(self, batch_size: int, generator: torch.Generator) -> Batch[Tensor] | Sequences[Tensor]:
        """Draw `batch_size` transitions, or sequences of a recurrent agent, uniformly, with replacement."""
        return sampler(self.settings)(self.state, batch_size, generator)

    def counters(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """The slot that is written next and the number of transitions, `(envs,)` each, on the host."""
        head, size = (array.cpu().numpy().copy() for array in (self.state.head, self.state.size))
        return head, size

    def rows(self, index: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Rows of the memory, by name, on the host."""
        place = torch.from_numpy(np.array(index, np.int64)).to(self.state.head.device)
        return {name: self.state.take(ring, place).cpu().numpy() for name, ring in named_leaves(self.state.rows).items()}

    def arrays(self, *, copy: bool = True) -> dict[str, NDArray[Any]]:
        """The stored transitions and the write head, as NumPy arrays.

        Args:
            copy: False gives views of the memory where it lies on the CPU, to be let go of before the next write.
        """
        head, size = self.counters()
        filled = filled_rows(size)
        rows = {name: np.array(ring[:filled].cpu().numpy(), copy=copy or None) for name, ring in named_leaves(self.state.rows).items()}
        return {**rows, "head": head, "size": size}

    def set_arrays(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Restore what `arrays` gave.

        Raises:
            ValueError: if the arrays are not those of a memory of this capacity and these shapes. Nothing is changed then.
        """
        rings = named_leaves(self.state.rows)
        kinds = {name: (tuple(ring.shape[1:]), _numpy_dtype(ring.dtype)) for name, ring in rings.items()}
        check_arrays(arrays, kinds, self.state.slots, self.num_envs)
        state = self.state
        self.written = bool(arrays["size"].any())
        for name, ring in rings.items():
            for rows in blocks(filled_rows(arrays["size"])):
                ring[rows] = torch.from_numpy(np.array(arrays[name][rows])).to(ring.device)
        for name, counter in {"head": state.head, "size": state.size}.items():
            counter.copy_(torch.from_numpy(np.array(arrays[name], np.int64)))


def _numpy_dtype(dtype: torch.dtype) -> np.dtype[Any]:
    return torch.empty(0, dtype=dtype).numpy().dtype
