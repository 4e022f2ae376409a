"""Devices by name."""

import os
from collections.abc import Sequence
from typing import Any, Protocol

import jax

from sacref.agent.backend import BackendError
from sacref.storage.checkpoint import one_line


class Device(Protocol):
    """A `jax.Device`, whose type JAX does not tell type checkers."""

    @property
    def platform(self) -> str: ...
    @property
    def id(self) -> int: ...
    @property
    def process_index(self) -> int: ...
    def memory_stats(self) -> dict[str, Any] | None: ...


def device_of(device: str | Device | None) -> Device:
    """Return the first of `devices_of`: where an agent acts, and where its memory lies."""
    return devices_of(device)[0]


def devices_of(device: str | Device | None) -> Sequence[Device]:
    """Return this process's devices of that name: `platform`, `platform:index`, several of those separated by commas, or `platform:all`.

    Args:
        device: None for JAX's default device.

    Raises:
        ValueError: if this machine has no such device, or one is named twice. BackendError: if JAX finds no device at all.
    """
    if device is None:
        return [local_devices()[0]]
    if not isinstance(device, str):
        return [device]
    devices = [found for name in device.split(",") for found in _named(name.strip())]
    if len(set(devices)) < len(devices):
        raise ValueError(f"device is {device!r}, which names one twice, expected each device once")
    return devices


def local_devices() -> Sequence[Device]:
    """Return this process's devices of JAX's default platform.

    Raises:
        BackendError: if there is none.
    """
    try:
        found: Sequence[Device] = jax.local_devices()
    except (RuntimeError, AssertionError) as error:  # an assertion of JAX's, where the platform's plugin is not installed
        platforms = os.environ.get("JAX_PLATFORMS", "")
        said = one_line(error) or "its platforms cannot be used"
        raise BackendError(
            f"JAX finds no device here with JAX_PLATFORMS={platforms!r} ({said}): unset JAX_PLATFORMS, or install JAX for what it names"
        ) from error
    return found


def _named(name: str) -> Sequence[Device]:
    platform, _, index = name.partition(":")
    try:
        found = jax.local_devices(backend=platform)
        return found if index == "all" else [found[int(index or 0)]]
    except (RuntimeError, AssertionError, IndexError, ValueError) as error:
        names = sorted(f"{d.platform}:{d.id}" for d in local_devices())
        raise ValueError(f"device is {name!r}, which JAX does not find here: expected one of {names}, or cpu ({error})") from error


def free_bytes(device: Device) -> int | None:
    """Return the bytes that can still be allocated on a device of its own memory; None where JAX does not say."""
    said = {} if device.platform == "cpu" else device.memory_stats() or {}
    limit, used = said.get("bytes_limit"), said.get("bytes_in_use")
    return None if limit is None or used is None else int(limit) - int(used)
