"""Devices by name."""

import jax


def device_of(device: str | jax.Device | None) -> jax.Device:
    """The device of that name, `platform` or `platform:index`; for None, JAX's default device.

    Raises:
        ValueError: if this machine has no such device.
    """
    if device is None:
        return jax.local_devices()[0]
    if isinstance(device, jax.Device):
        return device
    platform, _, index = str(device).partition(":")
    try:
        return jax.local_devices(backend=platform)[int(index or 0)]
    except (RuntimeError, IndexError, ValueError) as error:
        found = sorted(f"{d.platform}:{d.id}" for d in jax.local_devices())
        raise ValueError(f"device is {device!r}, which JAX does not find here: expected one of {found}, or cpu ({error})") from error
