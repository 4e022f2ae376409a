"""Scripts run as they are: by their own flags, as the main program, beside the package of their repository."""

import hashlib
import json
import sys
from pathlib import Path

import pytest

from bench.peers import script
from bench.peers.setting import ENDLESS, Setting

SETTING = Setting(env="Task-v1", seed=3, random_steps=64, batch_size=32, learning_rate=1e-3, memory_capacity=500)

SCRIPT = """
import json, os, sys
from the_repository.part import VALUE
if __name__ == "__main__":
    with open(os.path.join(os.path.dirname(__file__), "said.json"), "w") as file:
        json.dump([VALUE, *sys.argv[1:]], file)
"""


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A script in a folder of a repository that has a package beside it."""
    (tmp_path / "the_repository").mkdir()
    (tmp_path / "the_repository" / "part.py").write_text("VALUE = 7")
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "sac.py").write_text(SCRIPT)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "argv", [*sys.argv])
    monkeypatch.delenv("WANDB_MODE", raising=False)
    return tmp_path / "scripts" / "sac.py"


def test_a_script_gets_the_setting_as_its_flags(path: Path) -> None:
    trainer = script.make(SETTING, script=str(path), compiled=False)
    assert trainer.execution == "torch, eager"
    assert trainer.settings == {"script": "sac.py", "script_sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    trainer.train()
    value, *flags = json.loads((path.parent / "said.json").read_text())
    assert value == 7
    assert dict(zip(flags[::2], flags[1::2], strict=True)) == {
        "--env-id": "Task-v1",
        "--seed": "3",
        "--total-timesteps": str(ENDLESS),
        "--buffer-size": "500",
        "--batch-size": "32",
        "--learning-starts": "64",
        "--policy-lr": "0.001",
        "--q-lr": "0.001",
    }


@pytest.mark.parametrize("graphs", [False, True])
def test_a_script_that_compiles_captures_graphs_where_there_is_a_gpu(path: Path, graphs: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: graphs)
    trainer = script.make(SETTING, script=str(path), compiled=True)
    assert trainer.execution == ("torch.compile and CUDA graphs" if graphs else "torch.compile")
    trainer.train()
    flags = json.loads((path.parent / "said.json").read_text())
    assert flags[17:] == (["--compile", "--cudagraphs"] if graphs else ["--compile"])
