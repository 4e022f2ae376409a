"""Report of what this machine has for sacref: backends, devices, versions, and whether an environment steps."""

import importlib
import os
import platform
from collections.abc import Callable
from typing import TypedDict

from rich.console import Console
from rich.table import Table
from rich.text import Text

import sacref
from sacref.storage.versions import installed

LIBRARIES = {
    "core": ("numpy", "scipy", "array-api-compat", "jaxtyping", "gymnasium", "safetensors", "tensorboard", "tyro", "rich", "matplotlib"),
    "torch": ("torch",),
    "jax": ("jax", "jaxlib", "flax", "optax"),
    "mujoco": ("mujoco",),
}
"""Extra -> the libraries it installs; `core` comes with sacref itself."""


class Finding(TypedDict):
    """One part of what sacref uses, tried out."""

    works: bool
    """It was imported and did a small piece of work."""
    found: list[str]
    """Devices by their names, or the environment that stepped."""
    problem: str
    """The error and its fix; empty if it works."""


class Report(TypedDict):
    """The content of `sacref doctor --json`."""

    sacref: str
    python: str
    platform: str
    threads: dict[str, str]
    versions: dict[str, str | None]
    """Library -> installed version, or None."""
    backends: dict[str, Finding]
    environments: dict[str, Finding]
    healthy: bool
    """At least one backend works."""


def examine() -> Report:
    """Import each backend and let it add two numbers, step MuJoCo once, and list versions. Nothing here raises."""
    backends = {
        "torch": _try("torch", ("torch", "sacref.torch"), _torch_devices),
        "jax": _try("jax", ("jax", "flax", "optax", "sacref.jax"), _jax_devices),
    }
    threads = {"processors": str(os.cpu_count()), "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "not set")}
    if hasattr(os, "sched_getaffinity"):
        threads["usable by this process"] = str(len(os.sched_getaffinity(0)))
    if backends["torch"]["works"]:
        threads["torch"] = str(importlib.import_module("torch").get_num_threads())
    names = [name for names in LIBRARIES.values() for name in names]
    versions = installed(names)
    return {
        "sacref": sacref.__version__,
        "python": versions["python"],
        "platform": platform.platform(),
        "threads": threads,
        "versions": {name: versions.get(name) for name in names},
        "backends": backends,
        "environments": {"mujoco": _try("mujoco", ("gymnasium", "mujoco"), _step_half_cheetah)},
        "healthy": any(backend["works"] for backend in backends.values()),
    }


def _try(extra: str, modules: tuple[str, ...], work: Callable[[], list[str]]) -> Finding:
    """Import `modules`, do `work`, and say what `extra` installs if something is missing."""
    try:
        for module in modules:
            importlib.import_module(module)
        return {"works": True, "found": work(), "problem": ""}
    except ModuleNotFoundError as error:
        return {"works": False, "found": [], "problem": f"{error.name} is not installed: pip install 'sacref[{extra}]'"}
    except Exception as error:  # a broken driver or library shows itself in any exception, and the report is to name it
        return {"works": False, "found": [], "problem": f"{type(error).__name__}: {error}"}


def _torch_devices() -> list[str]:
    torch = importlib.import_module("torch")
    execution = importlib.import_module("sacref.torch.execution")
    names = {"cpu": "cpu"}
    for index in range(torch.cuda.device_count()):
        names[f"cuda:{index}"] = f"cuda:{index} ({torch.cuda.get_device_name(index)}, CUDA {torch.version.cuda})"
    for device in names:
        _require_two(float(torch.ones(2, device=device).sum()), device)
    return [f"{name}: updates run {execution.describe(torch.device(device))}" for device, name in names.items()]


def _jax_devices() -> list[str]:
    jax = importlib.import_module("jax")
    devices = jax.devices()
    for device in devices:
        _require_two(float(jax.device_put(jax.numpy.ones(2), device).sum()), str(device))
    execution = importlib.import_module("sacref.jax.execution").describe()
    return [f"{device.platform}:{device.id} ({device.device_kind}): updates run {execution}" for device in devices]


def _require_two(total: float, device: str) -> None:
    if total != 2.0:
        raise RuntimeError(f"1 + 1 is {total} on {device}: its driver or its library is broken")


def _step_half_cheetah() -> list[str]:
    gymnasium = importlib.import_module("gymnasium")
    environment = gymnasium.make("HalfCheetah-v5")
    try:
        environment.reset(seed=0)
        environment.step(environment.action_space.sample())
    finally:
        environment.close()
    return ["HalfCheetah-v5 steps"]


def show(report: Report) -> None:
    """Print the report as tables."""
    console = Console()
    parts = Table(title=f"sacref {report['sacref']}, Python {report['python']}, {report['platform']}", title_justify="left")
    for heading in ("part", "works", "found"):
        parts.add_column(heading, overflow="fold")
    for name, finding in {**report["backends"], **report["environments"]}.items():
        # Text, because rich reads [torch] in a string as markup.
        parts.add_row(name, "yes" if finding["works"] else "no", Text("\n".join(finding["found"]) or finding["problem"]))
    console.print(parts)

    versions = Table(title="Versions", title_justify="left")
    for heading in ("library", "version", "comes with"):
        versions.add_column(heading)
    for extra, names in LIBRARIES.items():
        for name in names:
            source = "sacref" if extra == "core" else f"sacref[{extra}]"
            versions.add_row(name, report["versions"][name] or "missing", Text(source))
    console.print(versions)
    console.print("Threads: " + ", ".join(f"{name}: {count}" for name, count in report["threads"].items()))
    if not report["healthy"]:
        console.print("No backend works: install one with", Text("pip install 'sacref[torch]' or pip install 'sacref[jax]'"))
