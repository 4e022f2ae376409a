"""Devices by name."""

import torch


def device_of(device: str | torch.device | None) -> torch.device:
    """Return the device of that name; for None, the process's CUDA device (the first, unless it was set) where there is one, else the CPU.

    Raises:
        ValueError: if this machine has no such device.
    """
    if device is None:
        return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    try:
        # Through a tensor: the device must be there, and "cuda" becomes "cuda:0".
        found = torch.empty(0, device=torch.device(device)).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        cuda = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
        raise ValueError(f"device is {device!r}, which PyTorch does not find here: expected one of {['cpu', *cuda]} ({error})") from error
    return found


def synchronise(device: torch.device) -> None:
    """Wait until a device has done all that this thread asked it for."""
    if device.type == "cuda":
        # Not for the whole device: that breaks a capture of another thread's.
        torch.cuda.current_stream(device).synchronize()


def free_bytes(device: torch.device) -> int | None:
    """Return the bytes that can still be allocated on a device of its own memory; None where PyTorch does not say."""
    if device.type != "cuda":
        return None
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + kept
