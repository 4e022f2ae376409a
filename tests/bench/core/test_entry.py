"""What the modules that suites start say to a person: one line, and no traceback."""

import subprocess
import sys

import pytest

from bench.core import machine

SUITES = {
    "bench.suites.amp.worker": "bench amp",
    "bench.suites.faults.worker": "bench faults",
    "bench.suites.scaling.worker": "bench scaling",
    "bench.suites.soak.worker": "bench soak",
    "bench.suites.mutants.worker": "bench mutants",
    "bench.peers.worker": "bench throughput",
    "bench.suites.learning.worker": "bench learning",
}


def run(module: str, *arguments: str, given: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", module, *arguments], cwd=machine.ROOT, input=given, capture_output=True, text=True, check=False, timeout=120
    )


@pytest.mark.parametrize("module", SUITES)
def test_help_is_one_line_that_says_what_starts_the_module(module: str) -> None:
    for flag in ("--help", "-h"):
        ended = run(module, flag)
        assert (ended.returncode, ended.stderr) == (0, "")
        (line,) = ended.stdout.splitlines()
        assert line.startswith("usage: ") and module in line and line.endswith(f"; python -m {SUITES[module]} starts it")


@pytest.mark.parametrize("module", SUITES)
@pytest.mark.parametrize("arguments", [(), ("x",), ('[{"steps": 3}]',), ("{}",), ("[]",)], ids=str)
def test_wrong_arguments_are_one_line_and_status_2(module: str, arguments: tuple[str, ...]) -> None:
    ended = run(module, *arguments)
    assert (ended.returncode, ended.stdout) == (2, "")
    (line,) = ended.stderr.splitlines()
    assert line.startswith("usage: ") and f"; python -m {SUITES[module]} starts it (got " in line


@pytest.mark.parametrize(
    "given", ["x", "[]", '{"jobs": [], "seen": {}}', '{"jobs": [{"key": ""}], "at_once": 1, "modules": [], "seen": {}}']
)
def test_wrong_input_is_one_line_and_status_2(given: str) -> None:
    ended = run("bench.suites.mutants.worker", given=given)
    assert (ended.returncode, ended.stdout, len(ended.stderr.splitlines())) == (2, "", 1)
