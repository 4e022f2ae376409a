"""What every test stands on: shapes checked at run time, one thread, x64, and one fixture that runs a test on every array library."""

import functools
import gc
import importlib
import os
import signal
import sys
import threading
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

# Before NumPy or torch is loaded, here and in every process that a test starts: a test is one of several that run side by side.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# On a GPU they share its memory, of which JAX would take most at once.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
# Tests run in a directory of their own, so that a relative entry would lead a process that they start nowhere.
if "PYTHONPATH" in os.environ:
    os.environ["PYTHONPATH"] = os.pathsep.join(str(Path(entry).absolute()) for entry in os.environ["PYTHONPATH"].split(os.pathsep))

import hypothesis
import numpy as np
import pytest
from hypothesis.internal.conjecture import providers
from jaxtyping import install_import_hook
from numpy.typing import ArrayLike, NDArray

from tests import shapes

# What programs print follows these: no line is broken, and no colour shown, as whoever calls the tests has it.
for name in ("COLORTERM", "FORCE_COLOR", "LINES", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
    os.environ.pop(name, None)
os.environ |= {"COLUMNS": "80", "TERM": "xterm"}

# Python 3.11 lists the members of a protocol at each check against it, which takes longer than all else of the check.
if sys.version_info < (3, 12):
    vars(typing)["_get_protocol_attrs"] = functools.cache(vars(typing)["_get_protocol_attrs"])

# The hook only sees modules that are imported after it. It breaks torch.compile(fullgraph=True): those tests start a process of their own.
if os.environ.get("SACREF_SHAPE_CHECKS") != "0":
    install_import_hook(shapes.modules(), f"{shapes.__name__}.check")

# On a new machine its first import reads all fonts. It logs that if it takes long, amid what a test looks for, and keeps what it read.
if find_spec("matplotlib") is not None:
    importlib.import_module("matplotlib.font_manager")

if find_spec("jax") is not None:
    import jax

    set_jax: Callable[[str, object], None] = jax.config.update
    set_jax("jax_numpy_rank_promotion", "raise")
    set_jax("jax_enable_x64", True)
    if any(find_spec(f"jax_cuda{version}_plugin") is not None for version in (12, 13)):
        set_jax("jax_default_matmul_precision", "highest")  # where float32 is TF32 otherwise

if find_spec("torch") is not None:
    import torch

    torch.set_num_threads(1)

# The same examples on every run, so that a red test is a change of the code; SACREF_EXPLORE=1 looks for new ones.
hypothesis.settings.register_profile("same", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.register_profile("short", hypothesis.settings.get_profile("same"), max_examples=25)
hypothesis.settings.register_profile("explore", deadline=None)
hypothesis.settings.load_profile("explore" if os.environ.get("SACREF_EXPLORE") == "1" else "same")

# It draws from the numbers that stand in our modules, too: in those that are loaded, which follows from the tests that ran before.
if all(hasattr(providers, name) for name in ("_get_local_constants", "_local_constants")) and os.environ.get("SACREF_EXPLORE") != "1":
    vars(providers)["_get_local_constants"] = lambda none=providers._local_constants: none

# Background jobs of a shell start with Ctrl-C ignored; the tests that press it must find Python's own handler.
if threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config: pytest.Config) -> None:
    """Try fewer examples where the tests marked `full` are left out, and keep what XLA compiles."""
    if config.option.markexpr == "not full" and os.environ.get("SACREF_EXPLORE") != "1":
        hypothesis.settings.load_profile("short")
    cache = getattr(config, "cache", None)
    if cache is not None and find_spec("jax") is not None:
        _share_compilations(str(cache.mkdir("jax")))


def pytest_collection_finish() -> None:
    """Let the garbage collector pass over what was imported: millions of objects that stay, at each of its full collections."""
    gc.collect()
    gc.freeze()


def _share_compilations(folder: str) -> None:
    """Keep what XLA compiles, here and in processes that tests start: many make the same small agent, whose update compiles for seconds."""
    settings: dict[str, Any] = {
        "jax_compilation_cache_dir": folder,
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        for name, value in settings.items():
            set_jax(name, value)
        os.environ |= {name.upper(): str(value) for name, value in settings.items()}
        # One process may find a file that another still writes; pyproject.toml says the same of the tests' own.
        warnings = [f"ignore:Error {doing} persistent compilation cache entry:UserWarning" for doing in ("reading", "writing")]
        os.environ["PYTHONWARNINGS"] = ",".join(filter(None, [os.environ.get("PYTHONWARNINGS"), *warnings]))


@pytest.fixture(autouse=True)
def own_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run each test in a directory of its own: MuJoCo writes MUJOCO_LOG.TXT, and a run its results, where they are."""
    monkeypatch.chdir(tmp_path)


@dataclass(frozen=True)
class Backend:
    """An array library and one of its floating types, as the tests of the spec see them."""

    library: str
    dtype: str

    @property
    def module(self) -> Any:
        """The library itself."""
        return importlib.import_module({"numpy": "numpy", "strict": "array_api_strict", "torch": "torch", "jax": "jax.numpy"}[self.library])

    @property
    def eps(self) -> float:
        """Distance from 1 to the next number."""
        return float(np.finfo(self.dtype).eps)

    @property
    def width(self) -> Literal[32, 64]:
        """Bits of a number, as hypothesis asks for them."""
        return 32 if self.dtype == "float32" else 64

    @property
    def differentiates(self) -> bool:
        return self.library in ("torch", "jax")

    def asarray(self, values: ArrayLike, dtype: str | None = None) -> Any:
        """`values` as an array of this library, of this floating type unless another is named."""
        dtype = dtype or self.dtype
        return self.module.asarray(np.array(values, dtype), dtype=getattr(self.module, dtype))

    def numpy(self, array: Any) -> NDArray[Any]:
        """An array of this library on the host; refuses an array of another library or type."""
        if self.library == "numpy":
            assert isinstance(array, np.ndarray | np.generic), type(array)
        else:
            assert type(array) is type(self.asarray(0.0)), type(array)
        host = np.asarray(array) if self.library != "torch" else array.detach().numpy()
        assert host.dtype == self.dtype, f"{host.dtype} came of {self.dtype}"
        return host

    def gradient(self, function: Callable[[Any], Any], at: ArrayLike) -> NDArray[Any]:
        """Gradient of the sum of `function`'s elements: autodiff on torch and JAX, central differences on the others."""
        if self.library == "torch":
            leaf = self.asarray(at).requires_grad_()
            function(leaf).sum().backward()
            return self.numpy(leaf.grad)
        if self.library == "jax":
            import jax

            return self.numpy(jax.grad(lambda x: function(x).sum())(self.asarray(at)))
        point = np.asarray(at, self.dtype)
        step = self.eps ** (1 / 3)
        gradient = np.empty_like(point)
        for index in np.ndindex(point.shape):
            up, down = point.copy(), point.copy()
            up[index] += step
            down[index] -= step
            high, low = (self.numpy(function(self.asarray(x))).sum(dtype=np.float64) for x in (up, down))
            gradient[index] = (high - low) / (np.float64(up[index]) - np.float64(down[index]))
        return gradient


BACKENDS = [Backend(library, dtype) for library in ("numpy", "strict", "torch", "jax") for dtype in ("float32", "float64")]


def _installed(backend: Backend) -> Backend:
    module = {"strict": "array_api_strict"}.get(backend.library, backend.library)
    pytest.importorskip(module, reason=f"{module} is not installed")
    return backend


# Of the session, not of the function: hypothesis refuses to share what pytest makes anew for each test among its examples.
@pytest.fixture(scope="session", params=BACKENDS, ids=lambda backend: f"{backend.library}-{backend.dtype}")
def xp(request: pytest.FixtureRequest) -> Backend:
    """Runs the test on NumPy, array-api-strict, torch and JAX, in float32 and in float64."""
    return _installed(request.param)


@pytest.fixture(
    scope="session",
    params=[backend for backend in BACKENDS if backend.differentiates],
    ids=lambda backend: f"{backend.library}-{backend.dtype}",
)
def autodiff_xp(request: pytest.FixtureRequest) -> Iterator[Backend]:
    """Runs the test on the libraries that differentiate: torch and JAX, in float32 and in float64."""
    yield _installed(request.param)
