"""The peers' environments: made once, made anew when their requirements change, and a failure keeps its reason."""

import subprocess
from pathlib import Path
from typing import Any

import pytest

from bench.peers import environments

Command = list[str]


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Command]:
    """The commands that would have been run; `fail` in a requirements file makes pip fail."""
    ran: list[Command] = []

    def run(command: Command, **_: Any) -> subprocess.CompletedProcess[str]:
        ran.append(command)
        broken = "--requirement" in command and "fail" in Path(command[-1]).read_text()
        if "venv" in command:
            Path(command[-1]).mkdir(parents=True, exist_ok=True)
        return subprocess.CompletedProcess(command, int(broken), "", "looking\nERROR: no matching distribution\n\n" if broken else "")

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(environments, "REQUIREMENTS", tmp_path / "requirements")
    (tmp_path / "requirements").mkdir()
    return ran


def test_an_environment_is_made_once_and_again_when_its_requirements_change(commands: list[Command], tmp_path: Path) -> None:
    requirements = tmp_path / "requirements" / "a.txt"
    requirements.write_text("one==1")
    assert environments.make("a", tmp_path)
    assert [command[1:3] for command in commands] == [["-m", "venv"], ["-m", "pip"]]
    assert commands[1][0] == str(tmp_path / "a" / "bin" / "python")
    assert environments.make("a", tmp_path)
    assert len(commands) == 2
    requirements.write_text("one==2")
    assert environments.make("a", tmp_path)
    assert len(commands) == 4


def test_a_failure_keeps_its_reason_until_it_succeeds(commands: list[Command], tmp_path: Path) -> None:
    requirements = tmp_path / "requirements" / "a.txt"
    requirements.write_text("fail")
    assert not environments.make("a", tmp_path)
    reason = tmp_path / "a" / environments.FAILED
    assert reason.read_text() == "pip install failed: ERROR: no matching distribution"
    requirements.write_text("one==1")
    assert environments.make("a", tmp_path)
    assert not reason.exists()


def test_one_failure_keeps_none_of_the_others_from_being_made(
    commands: list[Command], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environments, "NAMES", ("a", "b"))
    (tmp_path / "requirements" / "a.txt").write_text("fail")
    (tmp_path / "requirements" / "b.txt").write_text("one==1")
    assert environments.main(["--folder", str(tmp_path)]) == 1
    assert (tmp_path / "b" / environments.DONE).exists()
    assert environments.main(["b", "--folder", str(tmp_path)]) == 0


def test_a_peer_that_is_none_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        environments.main(["rllib"])
    assert "no such peer: rllib; expected some of cleanrl, leanrl, sbx, skrl, stable-baselines3" in capsys.readouterr().err
