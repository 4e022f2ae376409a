"""A cache of compiled functions on disk. It is a setting of the whole process: for programs, never for `import sacref.jax`."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

SHORTEST_SECONDS = 0.2
"""Functions that compile faster are not kept."""


def keep_compilations() -> Path | None:
    """Keep compiled functions in the user's cache, unless JAX is told already what to do with them.

    Returns:
        The folder, or None if this function changed nothing.
    """
    settings: Any = jax.config
    if settings.jax_compilation_cache_dir is not None or not settings.jax_enable_compilation_cache:
        return None
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(cache) / "sacref" / "jax"
    set_jax: Callable[[str, object], None] = settings.update
    set_jax("jax_compilation_cache_dir", str(folder))
    set_jax("jax_persistent_cache_min_compile_time_secs", SHORTEST_SECONDS)
    return folder
