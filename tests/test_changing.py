"""The examples of docs/changing.md apply to the code as it is, do what they say, and touch few files."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.changing import PAGE, ROOT, Example, examples

EXAMPLES = examples()
MOST_FILES = {
    "Actor loss": 3,
    "Network": 4,
    "Exploration": 3,
    "Replay sampling": 3,
    "Temperature rule": 3,
    "Benchmark suite": 4,
}
EQUATIONS = {"Actor loss", "Network", "Temperature rule"}
"""Examples that change an equation, and the oracle with it."""


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env={**os.environ, "PYTHONPATH": str(folder)}, capture_output=True, text=True
    )


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the code that may be changed."""
    for name in ("sacref", "bench"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "reference"))
    return tmp_path


@pytest.mark.parametrize("example", EXAMPLES.values(), ids=EXAMPLES)
def test_an_example_changes_what_it_says(example: Example, copy: Path) -> None:
    if "torch" in example.check:
        pytest.importorskip("torch")
    example.apply(copy)
    finished = run(copy, "-c", example.check)
    assert finished.returncode == 0, finished.stderr


@pytest.mark.full
@pytest.mark.parametrize("example", EXAMPLES.values(), ids=EXAMPLES)
def test_its_check_fails_without_it(example: Example, copy: Path) -> None:
    if "torch" in example.check:
        pytest.importorskip("torch")
    assert run(copy, "-c", example.check).returncode == 1


def test_few_files_are_opened_to_change_one_thing() -> None:
    assert MOST_FILES.keys() == EXAMPLES.keys()
    rows = re.findall(r"^\| \[(.+?)\]\(.+?\) \| (.+?) \| (.*?) ?\|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    named = {title.capitalize(): {f"sacref/{file}" for file in re.findall(r"\S+\.py", " ".join(files))} for title, *files in rows}
    for title, example in EXAMPLES.items():
        assert len(example.files) <= MOST_FILES[title]
        assert named[title] == example.files or title == "Benchmark suite"


@pytest.mark.full
@pytest.mark.parametrize("title", sorted(EQUATIONS))
def test_parity_holds_after_an_example(title: str, copy: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("jax")
    EXAMPLES[title].apply(copy)
    finished = run(copy, "-m", "sacref", "parity", "--updates", "3")
    assert finished.returncode == 0, finished.stdout + finished.stderr
