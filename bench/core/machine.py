"""The machine, the library versions and the state of the source, as a record names them."""

import os
import platform
import re
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bench.core.record import Hardware

ROOT = Path(__file__).resolve().parents[2]
"""The checkout that this benchmark belongs to."""

LIBRARIES = ("numpy", "gymnasium", "mujoco", "torch", "jax", "jaxlib", "flax", "optax", "stable-baselines3")


def hardware(accelerator: str | None) -> "Hardware":
    """Describe this machine, and the number of cores that this process may use."""
    # Here alone: the interpreters of peers, which import this module, lack msgspec.
    from bench.core.record import Hardware

    return Hardware(
        cpu_model=_cpu_model(),
        cores=os.cpu_count() or 1,
        threads=len(available_cores()),
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        accelerator=accelerator,
    )


def slug(where: "Hardware") -> str:
    """Return a short name of a kind of machine, for file names: the accelerator or the CPU, and the number of cores."""
    model = re.sub(r"\((r|tm)\)|@.*|\d+-core|processor|cpu", " ", (where.accelerator or where.cpu_model).lower())
    return "-".join([*re.findall(r"[a-z0-9]+", model), f"{where.cores}core"])


def available_cores() -> list[int]:
    """Return the cores that this process may run on."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def keep_to_cores(cores: Iterable[int]) -> None:
    """Bind this process to these cores, before NumPy, torch or JAX is imported.

    Nothing else limits JAX: XLA sizes its thread pools by the cores that the process may use, and computes on two of two cores under
    `--xla_cpu_multi_thread_eigen=false`. Only Linux can bind; elsewhere a record says how many cores its run was free to use.
    """
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, set(cores))


def threads(number: int) -> dict[str, str]:
    """Return the environment variables that limit a process to so many threads, in addition to `keep_to_cores`."""
    counts = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(number))
    # Two processes that share an accelerator: neither may take all of its memory.
    return {**counts, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}


ONE_THREAD: Mapping[str, str] = threads(1)
"""Environment variables of a run on one thread."""


def find_accelerators() -> list[str]:
    """Return the names of this machine's NVIDIA devices, usable or not, without loading a backend."""
    try:
        answer = subprocess.run(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        return []
    return answer.stdout.strip().splitlines()


def find_accelerator() -> str | None:
    """Return the name of the first NVIDIA device; None for a machine without."""
    return next(iter(find_accelerators()), None)


def power_watts() -> float | None:
    """Return the power that the first NVIDIA device draws now; None without one, and if it does not tell."""
    query = ["nvidia-smi", "--id=0", "--query-gpu=power.draw", "--format=csv,noheader,nounits"]
    try:
        return float(subprocess.run(query, check=True, capture_output=True, text=True).stdout)
    except (OSError, subprocess.CalledProcessError, ValueError):
        return None


def accelerator(backend: str) -> str | None:
    """Import `backend`, and return the name of its default device; None for the CPU."""
    if backend == "torch":
        import torch

        return str(torch.cuda.get_device_name()) if torch.cuda.is_available() else None
    import jax

    device = jax.devices()[0]
    return None if device.platform == "cpu" else str(device.device_kind)


def libraries(names: Sequence[str] = LIBRARIES) -> dict[str, str]:
    """Return the versions of Python and of the installed libraries among `names`."""
    # Here alone: to import this module needs nothing but Python, nor does this one, which the interpreters of peers find in the checkout.
    from sacref.storage.versions import installed

    return installed(names)


def source() -> tuple[str | None, bool]:
    """Return the commit of the checkout, and True if its code (all but results/) differs from it; (None, True) outside Git."""
    try:
        commit = _git("rev-parse", "HEAD").strip()
        changes = _git("status", "--porcelain", "--", ".", ":(exclude)results")
    except (OSError, subprocess.CalledProcessError):
        return None, True
    return commit, bool(changes.strip())


def _git(*arguments: str) -> str:
    return subprocess.run(["git", "-C", str(ROOT), *arguments], check=True, capture_output=True, text=True).stdout


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
