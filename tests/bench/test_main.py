"""`python -m bench NAME`: which suite runs, with which flags, and what is said of a name that is none."""

import subprocess
import sys

import pytest

from bench import __main__ as command
from bench.core import machine


def test_a_name_runs_its_suite_with_the_flags_after_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["learning", "smoke", "--dry-run", "--seeds", "3"]) == 0
    assert "Preset smoke: " in capsys.readouterr().out


@pytest.mark.parametrize("name", ["ants", "tasks"])
def test_a_name_without_a_command_is_refused(name: str) -> None:
    with pytest.raises(SystemExit, match=f"python -m bench {name}: no suite with a command of its own, expected one of learning, thr"):
        command.main([name])


def test_help_lists_the_suites(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main(["--help"])
    said = capsys.readouterr().out
    assert ended.value.code == 0
    assert "--learning-preset" in said and "throughput: Environment steps per second" in said and "examined: " in said


def test_a_suite_loads_numpy_and_the_backends_after_it_has_bound_its_process() -> None:
    check = "import sys; from bench.suites.update.measure import main; print([n for n in ('numpy', 'torch', 'jax') if n in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", check], cwd=machine.ROOT, capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == "[]"
