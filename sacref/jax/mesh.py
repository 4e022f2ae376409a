"""Gradient steps over several devices: those of all ranks, and several of one process. Each computes a part of every batch.

The agent keeps its state where it acts, on the first device of its process; here it is a copy on every device, which all step alike.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sacref.algorithm.data import Metrics, Noise, Sampled, Sequences
from sacref.algorithm.tree import Tree, map_leaves
from sacref.jax.device import Device
from sacref.jax.optim import State, Update

AXIS = "parts"
"""Axis of the mesh: the parts of a batch."""

# JAX types none of these.
_partition: Callable[..., Any] = PartitionSpec
_assemble: Callable[..., Array] = jax.make_array_from_single_device_arrays
_mean: Callable[..., Tree] = jax.lax.pmean
_max: Callable[[Array, str], Array] = jax.lax.pmax


def average(tree: Tree) -> Tree:
    """Average each array over all parts, in one message; every device gets the same. Only within `DataParallel.steps`."""
    flat, unflatten = ravel_pytree(tree)
    return unflatten(_mean(flat, AXIS))


class DataParallel:
    """The devices of all processes that one agent learns on.

    Args:
        devices: this process's, the first one the agent's own. Every process has as many.
    """

    def __init__(self, devices: Sequence[Device]) -> None:
        self.devices: list[Device] = list(devices)
        local = [device for device in jax.devices(devices[0].platform) if device.process_index == devices[0].process_index]
        places = [local.index(device) for device in devices]
        everywhere: list[Device] = []
        for process in range(jax.process_count()):
            theirs = [device for device in jax.devices(devices[0].platform) if device.process_index == process]
            everywhere += [theirs[place] for place in places]
        mesh = Mesh(np.array(everywhere), (AXIS,))
        self.mesh = mesh
        self._copied, self._split = NamedSharding(mesh, _partition()), NamedSharding(mesh, _partition(AXIS))

    @property
    def local_parts(self) -> int:
        """Number of parts of this process's batch."""
        return len(self.devices)

    def steps(self, update: Update) -> Callable[[State, Tree], tuple[State, Metrics[Array]]]:
        """Return `(state, parts) -> (state, metrics)`: gradient steps, one after the other.

        `parts` is (batch, noise), each array `(local_parts, steps, ...)`. The metrics are those of all parts together, `(steps, ...)` each.
        The state is donated.
        """

        def body(state: State, parts: Tree) -> tuple[State, Metrics[Array]]:
            state, metrics = jax.lax.scan(lambda state, given: update(state, *given), state, jax.tree.map(lambda leaf: leaf[0], parts))
            return state, _over_parts(metrics)

        sharded = jax.shard_map(
            body,
            mesh=self.mesh,
            in_specs=(_partition(), _partition(AXIS)),
            out_specs=_partition(),
            check_vma=False,  # with it, the gradient of what is equal everywhere is summed over the parts before `average` sees it
        )
        run: Callable[[State, Tree], tuple[State, Metrics[Array]]] = jax.jit(sharded, donate_argnums=0)
        held: list[State] = []
        """The state on all devices, and the part of it that was handed out last."""

        def steps(state: State, parts: Tree) -> tuple[State, Metrics[Array]]:
            everywhere = held[0] if held and held[1] is state else jax.tree.map(self._copy, state)
            everywhere, metrics = run(everywhere, jax.tree.map(self._spread, parts))
            here: State = jax.tree.map(_here, everywhere)
            held[:] = [everywhere, here]
            return here, jax.tree.map(_here, metrics)

        return steps

    def _copy(self, leaf: Array) -> Array:
        return _assemble(leaf.shape, self._copied, [jax.device_put(leaf, device) for device in self.devices])

    def _spread(self, leaf: Array) -> Array:
        pieces = [leaf] if len(self.devices) == 1 else [leaf[i : i + 1] for i in range(len(self.devices))]
        shards = [jax.device_put(piece, device) for piece, device in zip(pieces, self.devices, strict=True)]
        return _assemble((self.mesh.size, *leaf.shape[1:]), self._split, shards)


def _here(leaf: Array) -> Array:
    found: Array = leaf.addressable_data(0)
    return found


def _over_parts(metrics: Metrics[Array]) -> Metrics[Array]:
    """Return the metrics of the whole batch: largest, smallest, and for all others the mean."""
    sign = {name: 1.0 if name.endswith("_max") else -1.0 for name in metrics if name.endswith(("_max", "_min"))}
    means: dict[str, Array] = average({name: values for name, values in metrics.items() if name not in sign})
    flat, unflatten = ravel_pytree({name: sign[name] * metrics[name] for name in sign})
    extremes = unflatten(_max(flat, AXIS))
    return means | {name: sign[name] * extremes[name] for name in sign}


def divided(batch: Sampled[Array], noise: Noise[Array], parts: int) -> tuple[Sampled[Array], Noise[Array]]:
    """Divide a batch and its noise into `parts` equal ones, `(parts, ...)` each array. Numbers drawn once for a batch are the same for all.

    Raises:
        ValueError: if the batch does not divide.
    """
    rows = batch.actions.shape[-2]
    if rows % parts:
        raise ValueError(f"a batch of {rows} does not divide among {parts} devices, expected a multiple of {parts}: change batch_size")
    axis = batch.actions.ndim - 2

    def split(leaf: Array, axis: int = axis) -> Array:
        return jnp.stack(jnp.split(leaf, parts, axis))

    def copies(leaf: Array) -> Array:
        return jnp.stack([leaf] * parts)

    if isinstance(batch, Sequences):
        cut: Sampled[Array] = batch._replace(carry=None).map(split)._replace(carry=map_leaves(partial(split, axis=0), batch.carry))
    else:
        cut = batch.map(split)
    draws: Tree = map_leaves(lambda leaf: split(leaf) if leaf.ndim > 1 else copies(leaf), noise.dropout)  # a key is one for all rows
    subset = None if noise.target_critics is None else copies(noise.target_critics)
    return cut, Noise(split(noise.next_actions), split(noise.actions), subset, draws)
