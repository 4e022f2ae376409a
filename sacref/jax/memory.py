"""The replay memory: a ring of transitions on the device. Positions are chosen on the device too, so nothing waits for it."""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike
from numpy.typing import NDArray

from sacref.envs.spaces import Spaces
from sacref.jax.device import device_of
from sacref.replay import Staging, blocks, check_arrays, check_block, check_size
from sacref.types import Batch, Transition


class MemoryState(NamedTuple):
    """The ring, and where the next transition goes."""

    rows: Transition[Array]
    """`(capacity, ...)` each."""
    head: Array
    """`()`, int32: the row written next."""
    size: Array
    """`()`, int32: how many rows hold transitions."""


def write(memory: MemoryState, transition: Transition[Any], keep: Any) -> MemoryState:
    """Store the rows of `transition` that `keep` names, in order, over the oldest ones; JAX or NumPy arrays."""
    capacity = memory.rows.rewards.shape[0]
    index = jnp.where(keep, (memory.head + jnp.cumsum(keep, dtype=jnp.int32) - 1) % capacity, capacity)
    rows = jax.tree.map(lambda ring, values: ring.at[index].set(values.astype(ring.dtype), mode="drop"), memory.rows, transition)
    count = keep.sum(dtype=jnp.int32)
    return MemoryState(rows, (memory.head + count) % capacity, jnp.minimum(memory.size + count, capacity))


write_in_place = jax.jit(write, donate_argnums=0)
"""`write`, compiled; the ring is donated: written, not copied."""


def sample(memory: MemoryState, batch_size: int, key: Array) -> Batch[Array]:
    """Draw transitions uniformly, with replacement."""
    index = jax.random.randint(key, (batch_size,), 0, jnp.maximum(memory.size, 1))
    return Batch(*memory.rows[:7]).map(lambda ring: ring[index])


class ReplayMemory:
    """Storage for the transitions of all environments together.

    Args:
        capacity: how many transitions, of all environments together; the oldest are overwritten.
        num_envs: how many environments are stepped at a time.
        device: where the transitions lie; None for the agent's device. The agent allocates at its construction.

    Raises:
        ValueError: if `capacity` or `num_envs` is not positive, or one step of all environments does not fit.
    """

    def __init__(self, capacity: int, num_envs: int, device: str | jax.Device | None = None) -> None:
        check_size(capacity, num_envs)
        self.capacity, self.num_envs = capacity, num_envs
        self.device = None if device is None else device_of(device)
        self.written = False
        """Whether anything was ever stored: what the host knows without waiting for the device."""
        self._state: MemoryState | None = None
        self._staging: Staging | None = None

    def allocate(self, spaces: Spaces, dtype: DTypeLike, device: jax.Device, *, staged_timesteps: int = 1) -> None:
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
        observations = jax.dtypes.canonicalize_dtype(spaces.stored_dtype(dtype))

        def zeros(shape: tuple[int, ...], kind: DTypeLike) -> Array:
            return jnp.zeros((self.capacity, *shape), dtype=kind, device=self.device)

        self._state = MemoryState(
            rows=Transition(
                observations=zeros(spaces.observation_shape, observations),
                states=None,
                actions=zeros((spaces.action_size,), dtype),
                rewards=zeros((), dtype),
                next_observations=zeros(spaces.observation_shape, observations),
                next_states=None,
                terminated=zeros((), jnp.bool_),
            ),
            head=jnp.zeros((), dtype=jnp.int32, device=self.device),
            size=jnp.zeros((), dtype=jnp.int32, device=self.device),
        )
        self._staging = Staging(
            self._state.rows.map(lambda ring: np.empty((0, *ring.shape[1:]), ring.dtype)),
            staged_timesteps * self.num_envs,
        )

    @property
    def state(self) -> MemoryState:
        """The ring on the device, with everything in it that was added."""
        if self._state is None or self._staging is None:
            raise ValueError("ReplayMemory: not allocated yet: give it to an agent first, SAC(memory=...)")
        if len(self._staging):
            self._state = write_in_place(self._state, *self._staging.take())
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
            self._state = write_in_place(self.state, transition, keep)
        self.written = True

    def sample(self, batch_size: int, key: Array) -> Batch[Array]:
        """Draw `batch_size` transitions uniformly, with replacement."""
        return sample(self.state, batch_size, key)

    def arrays(self, *, copy: bool = True) -> dict[str, NDArray[Any]]:
        """The stored transitions and the write head, as NumPy arrays.

        Args:
            copy: False gives views of the memory where it lies on the CPU, to be let go of before the next write.
        """
        size = len(self)
        rings = {name: ring for name, ring in self.state.rows._asdict().items() if ring is not None}
        rows = {name: np.array(np.asarray(ring)[:size], copy=copy or None) for name, ring in rings.items()}
        return {**rows, "head": np.array(self.state.head, np.int64), "size": np.array(self.state.size, np.int64)}

    def set_arrays(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Restore what `arrays` gave.

        Raises:
            ValueError: if the arrays are not those of a memory of this capacity and these shapes. Nothing is changed then.
        """
        rings = {name: ring for name, ring in self.state.rows._asdict().items() if ring is not None}
        check_arrays(arrays, {name: (ring.shape[1:], np.dtype(ring.dtype)) for name, ring in rings.items()}, self.capacity)
        size = int(arrays["size"])
        self.written = size > 0

        for rows in blocks(size):
            for name in rings:
                filled = _fill_in_place(rings[name], np.array(arrays[name][rows]), np.int32(rows.start))
                rings[name] = filled.block_until_ready()  # else the blocks that wait add up to a second copy
        ring = self.state.rows._replace(**rings)
        head, count = (jax.device_put(np.int32(arrays[name]), self.device) for name in ("head", "size"))
        self._state = MemoryState(ring, head, count)


@partial(jax.jit, donate_argnums=0)
def _fill_in_place(ring: Array, rows: Array, start: Array) -> Array:
    return jax.lax.dynamic_update_slice_in_dim(ring, rows, start, 0)
