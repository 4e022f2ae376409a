"""Every example runs as it is written, on the backends that it names."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))
CHOICE = 'backend="torch",  # or "jax"'
RUNS = [
    (path, backend)
    for path in EXAMPLES
    for backend in ("torch", "jax")
    if CHOICE in path.read_text() or f"from sacref.{backend} import" in path.read_text()
]
STEPS = 120
"""Enough for updates on whole sequences; not for learning."""

RESULT = {
    "normaliser": r"count 121\.0\n(.*\n)*the same after loading: True\n",
    "asymmetric": r"the policy sees Box\(.*\(2,\).*\nthe critics see Box\(.*\(4,\).*\n",
    "dict_observations": r"Dict\('positions': Box\(.*\(2,\).*'velocities': Box\(.*\(2,\)",
    "schedules": r"'Learning / Policy learning rate': '\d\.\de-\d\d'",
    "redq_droq": r"3-step: mean return -\d+ .*\nREDQ: mean return -\d+ .*\nDroQ: mean return -\d+ ",
}
"""Example -> what it prints, beside a mean return."""


def test_every_example_is_run() -> None:
    assert {path for path, _ in RUNS} == set(EXAMPLES)
    assert RESULT.keys() <= {path.stem for path in EXAMPLES}


@pytest.mark.parametrize(("path", "backend"), RUNS, ids=[f"{path.stem}-{backend}" for path, backend in RUNS])
def test_the_example_runs(path: Path, backend: str, tmp_path: Path) -> None:
    if find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    text = path.read_text()
    if "-v5" in text:
        pytest.importorskip("mujoco")
    script = tmp_path / path.name
    script.write_text(text.replace(CHOICE, f'backend="{backend}",'))
    process = subprocess.run(
        [sys.executable, "-W", "error", str(script)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "STEPS": str(STEPS)},
    )
    assert process.returncode == 0, process.stderr
    assert re.search(RESULT.get(path.stem, r"mean return -?\d+"), process.stdout), process.stdout
