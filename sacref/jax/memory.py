"""The replay memory's rings as arrays of JAX, donated to each write."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import DTypeLike

from sacref.algorithm import replay
from sacref.algorithm.data import Sampled, Transition
from sacref.algorithm.replay import blocks, filled_rows
from sacref.algorithm.sequences import Sampler, index_of
from sacref.algorithm.tree import map_leaves, named_leaves
from sacref.jax.device import Device, device_of, free_bytes
from sacref.spec.arrays import NumpyArray


class MemoryState(NamedTuple):
    """The rings of the environments (`sacref.algorithm.sequences.Rings`)."""

    rows: Transition[Array]
    head: Array
    size: Array

    @property
    def slots(self) -> int:
        """Rows that each environment has room for."""
        return int(self.rows.rewards.shape[0]) // int(self.size.shape[0])

    def place(self, slot: Any, environment: Any) -> Any:
        """Return the rows of slots."""
        return index_of(slot, environment, self.size.shape[0])

    def take(self, ring: Array, index: Array) -> Array:
        """Return rows of a ring, `(*index.shape, ...)`."""
        return ring[index]


def write(memory: MemoryState, transition: Transition[Any], keep: Any) -> MemoryState:
    """Return the memory with the rows of `transition` that `keep` names."""
    envs, slots = memory.size.shape[0], memory.slots
    keep = jnp.asarray(keep).reshape(-1, envs)
    slot = (memory.head[None, :] + jnp.cumsum(keep, 0, dtype=jnp.int32) - 1) % slots
    index = jnp.where(keep, memory.place(slot, jnp.arange(envs, dtype=jnp.int32)[None, :]), slots * envs).reshape(-1)

    def store(ring: Array, values: Any) -> Array:
        return ring.at[index].set(values.astype(ring.dtype), mode="drop")

    rows = map_leaves(store, memory.rows, transition)
    count = keep.sum(0, dtype=jnp.int32)
    return MemoryState(rows, (memory.head + count) % slots, jnp.minimum(memory.size + count, slots))


def _draw(memory: MemoryState, batch_size: int, key: Array) -> Array:
    stored = jnp.maximum(memory.size.sum(dtype=jnp.int32), 1)
    return jax.random.randint(key, (batch_size,), 0, stored, dtype=jnp.int32)


sampler: Sampler[MemoryState, Array] = Sampler(_draw, lambda memory, length: jnp.arange(length, dtype=jnp.int32))


class ArrayRings:
    """JAX's part of a replay memory (`RingLibrary`)."""

    device: Callable[[str | Device | None], Device] = staticmethod(device_of)
    free_bytes: Callable[[Device], int | None] = staticmethod(free_bytes)
    write: Callable[..., MemoryState] = staticmethod(jax.jit(write, donate_argnums=0))

    def numpy_dtype(self, dtype: DTypeLike) -> np.dtype[np.generic]:
        return np.dtype(dtype)

    def zeros(self, like: Transition[NumpyArray], slots: int, envs: int, device: Device) -> MemoryState:
        rows = like.map(lambda row: jnp.zeros((slots * envs, *row.shape[1:]), dtype=row.dtype, device=device))
        head, size = (jnp.zeros(envs, dtype=jnp.int32, device=device) for _ in range(2))
        return MemoryState(rows, head, size)

    def to_numpy(self, array: Array, rows: int | None = None) -> NumpyArray:
        return np.asarray(array)[:rows]

    def take(self, memory: MemoryState, index: NumpyArray) -> dict[str, NumpyArray]:
        # Padded to a power of two, so that few sizes are compiled.
        padded = np.zeros(1 << max(len(index) - 1, 0).bit_length(), np.int32)
        padded[: len(index)] = index
        return {name: np.asarray(_take(ring, padded))[: len(index)] for name, ring in named_leaves(memory.rows).items()}

    def fill(self, memory: MemoryState, arrays: Mapping[str, NumpyArray], first: int = 0) -> MemoryState:
        rings, envs = named_leaves(memory.rows), len(arrays["size"])
        for rows in blocks(filled_rows(arrays["size"]), envs):
            for name in rings:
                block = np.array(arrays[name][rows]).reshape(-1, envs, *rings[name].shape[1:])
                filled = _fill_in_place(rings[name], block, np.int32(rows.start // envs), np.int32(first), memory.slots)
                rings[name] = filled.block_until_ready()  # else the blocks that wait add up to a second copy
        restored = iter(rings.values())
        ring = map_leaves(lambda _: next(restored), memory.rows)
        counters = {name: np.array(getattr(memory, name)) for name in ("head", "size")}
        for name, counter in counters.items():
            counter[first : first + envs] = arrays[name]
        head, size = (jax.device_put(counter, memory.head.sharding) for counter in counters.values())
        return MemoryState(ring, head, size)

    def cut(self, memory: MemoryState, first: int, envs: int) -> MemoryState:
        rings: MemoryState = _cut(memory, first, envs, memory.slots)
        return rings


class ReplayMemory(replay.ReplayMemory[MemoryState, Device]):
    """Storage on JAX for the transitions of all environments together; see `sacref.algorithm.replay.ReplayMemory`."""

    library: ArrayRings = ArrayRings()

    def sample(self, batch_size: int, key: Array) -> Sampled[Array]:
        """Draw `batch_size` transitions, or sequences of a recurrent agent, uniformly, with replacement."""
        return sampler(self.settings)(self.state, batch_size, key)


@jax.jit
def _take(ring: Array, index: NumpyArray) -> Array:
    return jnp.take(ring, index, axis=0)


@partial(jax.jit, donate_argnums=0, static_argnums=4)
def _fill_in_place(ring: Array, rows: NumpyArray, start: NumpyArray, first: NumpyArray, slots: int) -> Array:
    """Write rows, `(some slots, some environments, ...)`."""
    by_slot = ring.reshape(slots, -1, *ring.shape[1:])
    zeros: list[Any] = [np.int32(0) for _ in ring.shape[1:]]
    return jax.lax.dynamic_update_slice(by_slot, jnp.asarray(rows), [start, first, *zeros]).reshape(ring.shape)


@partial(jax.jit, static_argnums=(1, 2, 3))
def _cut(memory: MemoryState, first: int, envs: int, slots: int) -> MemoryState:
    some = slice(first, first + envs)

    def ring(whole: Array) -> Array:
        return whole.reshape(slots, -1, *whole.shape[1:])[:, some].reshape(slots * envs, *whole.shape[1:])

    return MemoryState(memory.rows.map(ring), memory.head[some], memory.size[some])
