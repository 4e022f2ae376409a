"""What is compiled is kept in the user's cache, unless JAX was told otherwise; a process of its own, since it is the process's setting."""

import os
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import sys
import jax
if sys.argv[1] == "told":
    jax.config.update("jax_compilation_cache_dir", "/nowhere")
import sacref.jax
from sacref.jax.compilation import keep_compilations
before = jax.config.jax_compilation_cache_dir
print(before, keep_compilations(), jax.config.jax_compilation_cache_dir)
if sys.argv[1] == "compile":
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.jit(lambda x: x * 2 + 1)(jax.numpy.ones(3)).block_until_ready()
"""


def run(mode: str, home: Path) -> list[str]:
    environment = {**os.environ, "XDG_CACHE_HOME": str(home), "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    answer = subprocess.run([sys.executable, "-c", PROGRAM, mode], env=environment, capture_output=True, text=True, check=True)
    return answer.stdout.split()


def test_compiled_functions_are_kept_in_the_users_cache(tmp_path: Path) -> None:
    folder = tmp_path / "sacref" / "jax"
    assert run("compile", tmp_path) == ["None", str(folder), str(folder)]
    assert len(list(folder.glob("*-cache"))) >= 1


def test_a_folder_that_jax_was_told_stays(tmp_path: Path) -> None:
    assert run("told", tmp_path) == ["/nowhere", "None", "/nowhere"]
    assert not (tmp_path / "sacref").exists()
