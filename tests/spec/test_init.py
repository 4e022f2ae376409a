"""The table of the spec: complete, and free of any backend."""

import subprocess
import sys

import pytest

import sacref.spec


@pytest.mark.parametrize("name", sacref.spec.__all__)
def test_the_table_has_every_function(name: str) -> None:
    assert sacref.spec.__doc__ is not None
    rows = [line for line in sacref.spec.__doc__.splitlines() if line.startswith(f"{name} ")]
    assert len(rows) == 1, f"{name} has {len(rows)} rows among the equations"
    function_doc = getattr(sacref.spec, name).__doc__
    assert "arXiv:" in function_doc and "Returns:" in function_doc


def test_importing_the_spec_loads_no_backend() -> None:
    script = "import sys, sacref.spec; print([name for name in ('torch', 'jax', 'flax', 'optax', 'gymnasium') if name in sys.modules])"
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (process.stdout.strip(), process.stderr) == ("[]", "")
