"""All adapters are examined in one command, each with the interpreter that has its library."""

import subprocess
import sys
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from bench.peers import environments
from bench.suites.examined import measure
from sacref.examine.adapters import ADAPTERS


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[list[str]]:
    """Commands that would have run; a status of 1 for skrl's, an error for tianshou's, and no environment for sbx."""
    ran: list[list[str]] = []

    def run(command: list[str], **_: Any) -> CompletedProcess[bytes]:
        ran.append(command)
        if command[4] != "tianshou":
            Path(command[6]).write_text("new")
        return CompletedProcess(command, int("skrl" in command[4] or command[4] == "tianshou"))

    monkeypatch.setattr(environments, "FOLDER", tmp_path)
    for name in {*measure.ENVIRONMENTS.values()} - {"sbx"}:
        environments.python(tmp_path / name).parent.mkdir(parents=True)
        environments.python(tmp_path / name).touch()
    monkeypatch.setattr(subprocess, "run", run)
    return ran


def test_each_adapter_is_examined_by_the_interpreter_that_has_its_library(
    commands: list[list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "results").mkdir()
    for name in ADAPTERS:
        (tmp_path / "results" / f"{name}.json").write_text("old")
    assert measure.main(results=tmp_path / "results") == 1
    assert [command[4] for command in commands] == [name for name in ADAPTERS if name != "sbx"]
    interpreters = {command[4]: command[0] for command in commands}
    assert interpreters["sacref-jax"] == interpreters["cleanrl"] == sys.executable
    assert interpreters["skrl-jax"] == interpreters["skrl-torch"] == str(tmp_path / "skrl" / "bin" / "python")
    assert [command[5] for command in commands] == ["--json"] * len(commands)
    kept = [name for name in ADAPTERS if (tmp_path / "results" / f"{name}.json").read_text() == "old"]
    assert kept == ["sbx", "tianshou"]
    shown = capsys.readouterr()
    assert "skrl-jax: mistakes found" in shown.out and "sacref-torch: no known mistake" in shown.out
    assert "tianshou: not examined" in shown.out and "7 of 9 examined" in shown.out
    assert shown.err == "sbx: no environment sbx: run `make bench-peers PEERS=sbx`\n"


def test_mistakes_are_no_failure_and_other_names_are_refused(commands: list[list[str]], tmp_path: Path) -> None:
    assert measure.main(("skrl-torch",), results=tmp_path) == 0
    with pytest.raises(SystemExit, match="examined: stable is no adapter, expected some of sacref-torch, sacref-jax, "):
        measure.main(("stable",))
    assert len(commands) == 1


def test_each_environment_has_requirements() -> None:
    assert set(measure.ENVIRONMENTS.values()) <= set(environments.NAMES)
