"""Every example runs as it is written, in a reduced size."""

import os
import re
import runpy
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.backends import without_shape_checks

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))
BACKENDS = {path: "jax" if re.search(r'from sacref.jax import|backend="jax"', path.read_text()) else "torch" for path in EXAMPLES}
PROCESSES = {"own_models_torch", "own_models_jax"}
"""Started as scripts, one of each backend; the others run in the process of the tests, which has imported everything."""
STEPS = 60
"""Enough for updates on whole sequences; not for learning."""

RESULT = {
    "normaliser": r"count 61\.0\n(.*\n)*the same after loading: True\n",
    "asymmetric": r"the policy sees Box\(.*\(2,\).*\nthe critics see Box\(.*\(4,\).*\n",
    "dict_observations": r"Dict\('positions': Box\(.*\(2,\).*'velocities': Box\(.*\(2,\)",
    "schedules": r"'Learning / Policy learning rate': '\d\.\de-\d\d'",
    "redq_droq": r"3-step: mean return -\d+ .*\nREDQ: mean return -\d+ .*\nDroQ: mean return -\d+ ",
}
"""Example -> what it prints, beside a mean return."""


def test_the_results_are_those_of_examples() -> None:
    assert RESULT.keys() | PROCESSES <= {path.stem for path in EXAMPLES}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_example_runs(path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    if find_spec(BACKENDS[path]) is None:
        pytest.skip(f"{BACKENDS[path]} is not installed")
    if "-v5" in path.read_text():
        pytest.importorskip("mujoco")
    monkeypatch.setenv("STEPS", str(STEPS))
    if path.stem in PROCESSES:
        warnings = ",".join(filter(None, ["error", os.environ.get("PYTHONWARNINGS")]))
        process = subprocess.run(
            [sys.executable, str(path)], capture_output=True, text=True, timeout=300, env={**os.environ, "PYTHONWARNINGS": warnings}
        )
        assert process.returncode == 0, process.stderr
        printed = process.stdout
    else:
        with without_shape_checks():
            runpy.run_path(str(path), run_name="__main__")
        printed = capsys.readouterr().out
    assert re.search(RESULT.get(path.stem, r"mean return -?\d+"), printed), printed
