"""Loggers: a run's metrics go to each of them, and one that fails keeps nothing from going on."""

import csv
import json
import logging
import re
import tomllib
from collections.abc import Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import sacref
from sacref.cli import main as cli
from sacref.storage.metric_files import Origin
from sacref.training import experiment, loggers
from sacref.training.loggers import EXTRAS, SINKS, LoggerError

CFG: dict[str, Any] = {"batch_size": 3, "random_timesteps": 3, "learning_starts": 3, "execution": "plain"}
CFG["experiment"] = {"write_interval": 2, "checkpoint_interval": 4}
RUN: dict[str, Any] = {"env": "Pendulum-v1", "env_kwargs": {"max_episode_steps": 3}, "hidden": (4,), "steps": 12, "evaluation_interval": 12}
RUN |= {"evaluation_episodes": 1, "progress": False, "device": "cpu", "cfg": CFG}


def train(run_dir: Path, *log: Any, **changed: Any) -> Any:
    pytest.importorskip("torch")
    return sacref.train(**{**RUN, "run_dir": run_dir, "log": log, **changed})


def lines(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


WRITTEN: list[tuple[int, dict[str, float]]] = []


class Own:
    """As a user writes one: one method."""

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        WRITTEN.append((step, dict(scalars)))


class Opened:
    """With the two optional methods."""

    def __init__(self, name: str = "") -> None:
        self.written: list[tuple[int, dict[str, float]]] = []
        self.calls: list[Any] = []
        self.name = name

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        self.written.append((step, dict(scalars)))

    def open(self, origin: Origin) -> None:
        self.calls.append((origin.directory.name, origin.environment_steps(3), origin.config["env"]))

    def close(self) -> None:
        self.calls.append("close")


class Full:
    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        raise OSError(28, "No space left on device")


def test_each_logger_gets_the_numbers_of_the_others(tmp_path: Path) -> None:
    opened = Opened()
    WRITTEN.clear()
    train(tmp_path, "csv", "jsonl", f"{__name__}:Own", opened, partial(Opened, name="b"), num_envs=2, steps=24)
    own = [{tag: value for tag, value in line.items() if " / " in tag} for line in lines(tmp_path)]
    assert [(line["timestep"], line["environment_steps"]) for line in lines(tmp_path)] == [(t, 2 * t) for t in (2, 4, 6, 8, 10, 12)]
    assert WRITTEN == opened.written == list(zip((2, 4, 6, 8, 10, 12), own, strict=True))
    assert opened.calls == [(tmp_path.name, 6, "Pendulum-v1"), "close"]
    with (tmp_path / "metrics.csv").open(newline="") as stream:
        header, *rows = list(csv.reader(stream))
    assert header == ["timestep", "environment_steps", "tag", "value"]
    assert [(int(t), int(steps), tag, float(value)) for t, steps, tag, value in rows] == [
        (t, 2 * t, tag, value) for t, scalars in WRITTEN for tag, value in scalars.items()
    ]
    assert not list(tmp_path.glob("events*"))
    assert json.loads((tmp_path / "config.json").read_text())["log"] == [
        *("csv", "jsonl", f"{__name__}:Own", f"<an instance of {__name__}:Opened>", f"{__name__}:Opened(name='b')")
    ]


def test_one_that_fails_is_said_once_and_training_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        result = train(tmp_path, Full, "jsonl")
    assert [line["timestep"] for line in lines(tmp_path)] == [2, 4, 6, 8, 10, 12]
    assert [text for text in caplog.messages if "Full" in text] == [
        "Full: what was measured up to timestep 2 is not written: [Errno 28] No space left on device. Training goes on"
    ]
    assert result.steps == 12


class Killed(BaseException):
    """In the place of a signal that no handler sees."""


def test_files_are_cut_back_to_the_checkpoint_of_a_resumed_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(run: Any, finished: int) -> Any:
        if finished == 11:
            raise Killed
        return after_timestep(run, finished)

    after_timestep = experiment.Run.after_timestep
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(experiment.Run, "after_timestep", die)
        train(tmp_path, "csv", "jsonl")
    with (tmp_path / "metrics.csv").open("a") as stream:
        stream.write("12,1")  # half a line
    train(tmp_path, "csv", "jsonl", resume=True)
    train(tmp_path / "whole", "csv", "jsonl")

    def timesteps(run_dir: Path) -> list[str]:
        return [re.sub(r",[^,]*$", "", line) for line in (run_dir / "metrics.csv").read_text().splitlines()]

    assert timesteps(tmp_path) == timesteps(tmp_path / "whole")
    assert [line["timestep"] for line in lines(tmp_path)] == [2, 4, 6, 8, 10, 12]
    train(tmp_path, "jsonl", overwrite=True)
    assert not (tmp_path / "metrics.csv").exists()


def test_what_is_no_logger_is_refused_before_anything_is_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for given, said in (("wand", "log has 'wand'"), (7, "log has 7"), ("math:pi", "log has 'math:pi'"), (dict, "log has <class 'dict'>")):
        with pytest.raises(LoggerError, match=rf"{said}, expected one of {', '.join(SINKS)}, module:Class, or an object with write"):
            train(tmp_path / "run", given)
    with pytest.raises(TypeError, match="log is 'csv', expected a list of loggers"):
        train(tmp_path / "run", log="csv")
    assert cli.main(["train", "--log", "tensorboard", "no_module:Sink", "--run-dir", str(tmp_path / "run")]) == 2
    assert "log has 'no_module:Sink', expected" in capsys.readouterr().err


@pytest.mark.parametrize("name", EXTRAS)
def test_a_service_whose_package_is_not_installed_is_refused_with_its_extra(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(loggers, "find_spec", lambda package: None)
    with pytest.raises(LoggerError, match=rf"log has '{name}', whose package is not installed: pip install \"sacref\[{name}\]\""):
        train(tmp_path / "run", name)
    assert not (tmp_path / "run").exists()
    extras = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(EXTRAS) <= extras.keys() & SINKS.keys()
    assert not (tmp_path / "run").exists()


def needs(package: str) -> None:
    if find_spec(package) is None:
        pytest.skip(f"{package} is not installed: `nox -s integrations` runs this")


def test_weights_and_biases_keeps_a_run_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    needs("wandb")
    for name, value in {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "WANDB_DISABLE_CODE": "true"}.items():
        monkeypatch.setenv(name, value)
    train(tmp_path / "run", "wandb", "jsonl", num_envs=2)
    assert not [text for text in caplog.messages if "WandB" in text]
    (kept,) = (tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb")
    found = kept.read_bytes()
    assert b"Loss / Critic loss" in found and b"Pendulum-v1" in found


def test_mlflow_keeps_a_run_in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    needs("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "store").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    train(tmp_path / "run", "mlflow", "jsonl", num_envs=2, steps=24)
    assert not [text for text in caplog.messages if "MLflow" in text]
    from mlflow import MlflowClient

    client = MlflowClient()
    experiment_id = client.get_experiment_by_name("sacref").experiment_id
    (run,) = client.search_runs([experiment_id])
    assert (run.info.run_name, run.info.status) == ("run", "FINISHED")
    assert run.data.params["env"] == "Pendulum-v1" and run.data.params["cfg.batch_size"] == "3"
    history = client.get_metric_history(run.info.run_id, "Reward/Total reward max")
    expected = [line for line in lines(tmp_path / "run") if "Reward / Total reward (max)" in line]
    assert [(point.step, point.value) for point in history] == [
        (line["environment_steps"], line["Reward / Total reward (max)"]) for line in expected
    ]
