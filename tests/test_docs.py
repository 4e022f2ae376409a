"""Every block of the documentation: Python runs, in a reduced size, and commands parse; links and docstrings are for `make docs`."""

import contextlib
import re
import shlex
import tomllib
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest import SkipTest

import pytest
from sybil.document import Document
from sybil.evaluators.python import PythonEvaluator
from sybil.example import Example
from sybil.parsers.markdown import CodeBlockParser, SkipParser

import sacref
from sacref.cli.flags import Train, parse
from tests.backends import without_shape_checks

ROOT = Path(__file__).parents[1]
PAGES = sorted([*(ROOT / "docs").glob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"])
WITH_PYTHON = [page for page in PAGES if "```python" in page.read_text()]
OTHERS = {"docs/changing.md": "tests/test_changing.py runs it", "docs/examine.md": "tests/examine/test_guide.py runs it"}
"""Page -> who runs its Python."""
PROGRAMS = {"export", "cd", "tensorboard", "docker"}
"""Programs of others, whose arguments nothing here knows."""


def reduced(example: Example) -> None:
    """Run a block with its thousands as ones: `steps=6_000` takes 6 steps."""
    source = re.sub(r"\b(\d+)_000\b", r"\1", example.parsed)
    code = compile("\n" * (example.line + example.parsed.line_offset) + source, example.path, "exec", dont_inherit=True)
    exec(code, example.namespace)


def run(page: Path, evaluate: Callable[[Example], None]) -> dict[str, Any]:
    """Run the page's blocks of Python in one namespace, which it returns."""
    document = Document.parse(str(page), CodeBlockParser("python", evaluate), SkipParser())
    document.namespace.update(__name__="__main__", missing=lambda name: find_spec(name) is None)
    for example in document.examples():
        with contextlib.suppress(SkipTest):
            example.evaluate()
    namespace: dict[str, Any] = document.namespace
    return namespace


@pytest.fixture
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("jax")
    pytest.importorskip("mujoco")
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("page", WITH_PYTHON, ids=lambda page: page.stem)
def test_the_pages_python_runs(page: Path, in_a_folder: None, monkeypatch: pytest.MonkeyPatch) -> None:
    if str(page.relative_to(ROOT)) in OTHERS:
        pytest.skip(OTHERS[str(page.relative_to(ROOT))])
    train = sacref.train

    def short(**arguments: Any) -> sacref.TrainingResult:
        return train(
            **{**arguments, "hidden": (8, 8), "evaluation_episodes": 1, "evaluation_interval": arguments["steps"], "progress": False}
        )

    monkeypatch.setattr(sacref, "train", short)
    with without_shape_checks():
        run(page, reduced)


def test_the_loop_of_the_life_cycle_learns(in_a_folder: None) -> None:
    text = (ROOT / "docs" / "life-cycle.md").read_text()
    (loop,) = [block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "for timestep in" in block]
    Path("loop.md").write_text(f"```python\n{loop}```\n")
    agent = run(Path("loop.md"), reduced)["agent"]
    assert agent.gradient_step_count == 10
    assert len(agent.memory) == 20


@pytest.mark.full
@pytest.mark.parametrize("name", ["start", "environments", "models", "from-sb3"])
def test_the_pages_python_runs_as_it_is_written(name: str, in_a_folder: None) -> None:
    with without_shape_checks():
        run(ROOT / "docs" / f"{name}.md", PythonEvaluator())


def commands(page: Path) -> list[list[str]]:
    """The page's commands, split as a shell does, without comments."""
    blocks = re.findall(r"^( *)```console\n(.*?)^ *```", page.read_text(), re.DOTALL | re.MULTILINE)
    return [shlex.split(line, comments=True) for _, block in blocks for line in block.splitlines() if line.strip()]


def check(command: list[str]) -> None:
    """Refuse a command that nothing would understand."""
    while command and re.fullmatch(r"\w+=\S*", command[0]):
        del command[0]
    program, *arguments = command or ["export"]
    if program == "torchrun":
        program, *arguments = arguments[arguments.index("-m") + 1 :]
    if program in ("python", "python3") and arguments[0] == "-m":
        module, *arguments = arguments[1:]
        assert find_spec(module) is not None, module
        program = module
    if program == "sacref":
        try:
            parsed = parse([argument for argument in arguments if argument != "--resume"])  # whose defaults follow from a run
            if isinstance(parsed, Train):
                parsed.cfg.validate()
        except SystemExit as ended:
            assert ended.code in (0, None), arguments
    elif program == "make":
        targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
        assert {argument for argument in arguments if "=" not in argument and not argument.startswith("-")} <= targets, arguments
    elif program == "nox":
        assert re.search(rf"^def {arguments[1]}\(", (ROOT / "noxfile.py").read_text(), re.MULTILINE), arguments
    elif program == "pip":
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        assert set(",".join(re.findall(r"\[(.*?)\]", " ".join(arguments))).split(",")) <= {*extras, ""}, arguments
    else:
        assert program in PROGRAMS or program.startswith("bench") or program in ("python", "cleanrl"), command


@pytest.mark.parametrize("page", [page for page in PAGES if "```console" in page.read_text()], ids=lambda page: page.stem)
def test_the_pages_commands_are_understood(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for command in commands(page):
        check(command)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_pages_links_lead_somewhere(page: Path) -> None:
    prose = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    targets = re.findall(r"\]\(([^)\s#:]+)[^)\s:]*\)", prose)
    assert [target for target in targets if not (page.parent / target).exists() and target != "life-cycle.svg"] == []


def test_every_page_is_in_the_navigation() -> None:
    text = (ROOT / "mkdocs.yml").read_text()
    assert [page.name for page in (ROOT / "docs").glob("*.md") if page.name not in text] == []
