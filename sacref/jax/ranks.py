"""Several processes on `jax.distributed`."""

import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from numpy.typing import NDArray

from sacref.jax.device import local_devices
from sacref.ranks import TIMEOUT, Launch, Ranks, launched

# JAX types none of these.
_set_flag: Callable[[str, object], None] = jax.config.update
_partition: Callable[..., Any] = PartitionSpec
_spread: Callable[..., jax.Array] = jax.make_array_from_process_local_data

SMALLEST = 64
"""Bytes; what is sent is padded to this times a power of two, so that few sizes are compiled."""


class JaxRanks(Ranks):
    """The ranks of `jax.distributed`, which must be initialised."""

    def __init__(self) -> None:
        self.rank: int = jax.process_index()
        self.size: int = jax.process_count()
        try:
            devices = jax.devices("cpu")  # over gloo: what is told on the host does not wait for a GPU
        except RuntimeError:  # JAX_PLATFORMS leaves the CPU out
            devices = jax.devices()
        first = [next(device for device in devices if device.process_index == rank) for rank in range(self.size)]
        mesh = Mesh(np.array(first), ("rank",))
        self._split = NamedSharding(mesh, _partition("rank"))
        # multihost_utils.process_allgather, without making its mesh and its function each time.
        self._gather = jax.jit(lambda data: data, out_shardings=NamedSharding(mesh, _partition()))

    def _exchange(self, data: NDArray[np.uint8]) -> NDArray[np.uint8]:
        padded = SMALLEST
        while padded < data.size:
            padded *= 2
        # Bytes, so that every dtype passes as it is, where x64 is off too.
        sent = np.zeros((1, padded), np.uint8)
        sent[0, : data.size] = data
        try:
            spread = _spread(self._split, sent, (self.size, padded))
            gathered = np.asarray(self._gather(spread).addressable_data(0))
        except (RuntimeError, ValueError) as error:
            raise self.lost(error) from error
        return gathered[:, : data.size]


def ranks() -> Ranks:
    """Return the ranks of `jax.distributed`; where it is not initialised, this process alone.

    Raises:
        BackendError: if JAX finds no device.
    """
    local_devices()
    return JaxRanks() if jax.process_count() > 1 else Ranks()


def join(device: str | None = None, *, timeout: float = TIMEOUT) -> Ranks:
    """Initialise `jax.distributed` with the ranks that the environment names (`sacref.ranks.launched`).

    Ranks of one machine take a GPU each. For programs, not for libraries, and before JAX computes anything. Nothing happens where the
    environment names no others, or where `jax.distributed` is initialised. The coordinator listens at JAX_COORDINATOR_ADDRESS where that is
    set, else at MASTER_ADDR:MASTER_PORT; torchrun holds that port itself, so that under it the next one is taken.

    Args:
        device: where the agent will compute; "cpu" leaves the GPUs of the machine alone.
        timeout: seconds after which a rank that does not answer is given up; at least 10.

    Raises:
        ValueError: if the environment is incomplete. LostRankError: if the others do not come.
    """
    place = launched()
    if place is None or jax.distributed.is_initialized():
        return ranks()
    if device is not None and device.partition(":")[0] == "cpu":
        _set_flag("jax_platforms", "cpu")
    # It would take SIGTERM, by which a launcher ends a rank, for a notice of later.
    _set_flag("jax_enable_preemption_service", False)
    seconds = max(1, round(timeout))
    place.begin(
        lambda: jax.distributed.initialize(
            _coordinator(place),
            place.size,
            place.rank,
            local_device_ids=[place.local_rank] if place.local_size > 1 else None,
            cluster_detection_method="deactivate",
            initialization_timeout=seconds,
            heartbeat_timeout_seconds=seconds,
            shutdown_timeout_seconds=seconds,
        )
    )
    return ranks()


def _coordinator(place: Launch) -> str:
    port = place.port + 1 if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" else place.port
    return os.environ.get("JAX_COORDINATOR_ADDRESS") or f"{place.address}:{port}"
