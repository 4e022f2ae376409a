"""Counts of uploads, launches and downloads, from the profilers of JAX and PyTorch.

A profiler costs time, so that no round is timed while it runs. On a CPU nothing is downloaded: NumPy reads the library's arrays where they
lie.
"""

import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

UPLOADS = ("DevicePut", "DevicePutWithSharding")
"""Events of JAX's host, one for each array that is brought to the device: an argument of a compiled call, or one of `jax.device_put`."""
DOWNLOADS = "np.asarray(jax.Array)"
CALL = "PjitFunction("
"""Start of the events of a compiled function's call."""
KERNELS = ("cudaLaunchKernel", "cuLaunchKernel", "cudaGraphLaunch", "hipLaunchKernel")
"""Starts of the names of calls that hand work to a GPU: a kernel, or a whole graph of them."""


def start(library: str) -> Callable[[], dict[str, Any]]:
    """Begin to count what this process asks of a library, "torch" or "jax".

    Returns:
        A function that ends the count: the unit of launches, and the numbers of uploads, launches and downloads, None for unknown.
    """
    return _torch() if library == "torch" else _jax()


def _jax() -> Callable[[], dict[str, Any]]:
    import jax

    profiler: Any = jax.profiler
    folder = tempfile.TemporaryDirectory(prefix="sacref-bench-")
    options = profiler.ProfileOptions()
    options.python_tracer_level, options.host_tracer_level = 0, 2
    profiler.start_trace(folder.name, profiler_options=options)

    def end() -> dict[str, Any]:
        profiler.stop_trace()
        (path,) = Path(folder.name).rglob("*.xplane.pb")
        lines = [list(line.events) for plane in profiler.ProfileData.from_file(str(path)).planes for line in plane.lines]
        folder.cleanup()
        names = [event.name for line in lines for event in line]
        return {
            "unit": "compiled calls",
            "uploads": sum(name in UPLOADS for name in names),
            "launches": sum(outermost((event.start_ns, event.end_ns) for event in line if event.name.startswith(CALL)) for line in lines),
            "downloads": None if jax.default_backend() == "cpu" else names.count(DOWNLOADS),
        }

    return end


def _torch() -> Callable[[], dict[str, Any]]:
    import torch
    from torch.profiler import ProfilerActivity, profile

    cuda = torch.cuda.is_available()
    profiler: Any = profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])])
    profiler.start()

    def end() -> dict[str, Any]:
        profiler.stop()
        events = profiler.events()
        if not cuda:
            called = sum(_is_operation(event) and not _within_an_operation(event) for event in events)
            return {"unit": "operations", "uploads": None, "launches": called, "downloads": None}
        return {
            "unit": "kernels and graphs",
            "uploads": sum(event.name.startswith("Memcpy HtoD") for event in events),
            "launches": sum(event.name.startswith(KERNELS) for event in events),
            "downloads": sum(event.name.startswith("Memcpy DtoH") for event in events),
        }

    return end


def _is_operation(event: Any) -> bool:
    return bool(event.name.startswith(("aten::", "mkldnn::")))


def _within_an_operation(event: Any) -> bool:
    """Return True if an operation called this one; the engine of autograd and an optimizer are none."""
    while (event := event.cpu_parent) is not None:
        if _is_operation(event):
            return True
    return False


def outermost(spans: Iterable[tuple[float, float]]) -> int:
    """Count the spans, of a beginning and an end each, that lie in no other one."""
    found, until = 0, float("-inf")
    for began, ended in sorted(spans, key=lambda span: (span[0], -span[1])):
        if began >= until:
            found, until = found + 1, ended
    return found
