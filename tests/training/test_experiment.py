"""Whole runs: what a run directory holds, that it can be resumed, loaded and replaced, and what is refused."""

import errno
import json
import math
import os
import platform
import shutil
import signal
import subprocess
import sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, cast

import gymnasium
import numpy as np
import pytest

import sacref
from sacref import envs
from sacref.agent.backend import BackendError
from sacref.cli import main as cli
from sacref.config import ConfigError, SACConfig, paper_config
from sacref.envs.partial import PrivilegedState
from sacref.ranks import Ranks
from sacref.storage import checkpoint
from sacref.training import experiment, run_directory
from sacref.training.callbacks import Callback, RunView
from sacref.training.checkpoints import CheckpointWriter, evaluation_of_best, holds_memory
from sacref.training.evaluation import Evaluation, EvaluationError, evaluate
from sacref.training.experiment import TrainingResult
from sacref.training.plan import BACKENDS, derive_seed, import_backend
from sacref.training.population import train_population
from sacref.training.run_directory import RunError
from tests.backends import assert_same_arrays, jax_in_full, without_shape_checks
from tests.envs.counting import CountingEnv

BACKEND = "torch" if find_spec("torch") else "jax"
INTERVALS = {"write_interval": 25, "checkpoint_interval": 50}
SMALL: dict[str, Any] = {
    "env": "Pendulum-v1",
    "env_kwargs": {"max_episode_steps": 20},
    "hidden": (8, 8),
    "evaluation_episodes": 2,
    "cfg": {"batch_size": 16, "random_timesteps": 20, "learning_starts": 20, "experiment": INTERVALS},
    "progress": False,
}


def train(run_dir: str | Path, **changed: Any) -> TrainingResult:
    return experiment.train(**{**SMALL, "run_dir": run_dir, "steps": 100, "evaluation_interval": 40, **changed})


def memory_of(result: TrainingResult) -> Any:
    return result.agent.memory


def entries(run_dir: Path) -> Any:
    return json.loads((run_dir / "evaluation.json").read_text())


def metrics(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def checkpoints(run_dir: Path) -> list[str]:
    return sorted(path.name for path in (run_dir / "checkpoints").iterdir())


@pytest.fixture(params=["torch", "jax"])
def backend(request: pytest.FixtureRequest) -> str:
    if find_spec(request.param) is None:
        pytest.skip(f"{request.param} is not installed")
    return str(request.param)


def test_a_run_directory_holds_the_run_and_its_agent_can_be_loaded(backend: str, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    result = train(run_dir, backend=backend, num_envs=2, seed=3)
    assert (result.run_dir, result.steps, result.interrupted) == (run_dir, 100, False)
    assert result.steps_per_second > 0

    # 40 environment steps are 20 timesteps; the last step is evaluated too.
    assert [(entry["step"], len(entry["returns"])) for entry in entries(run_dir)] == [(40, 2), (80, 2), (100, 2)]
    assert [(step, evaluation.to_entry(step)) for step, evaluation in result.evaluations] == [(e["step"], e) for e in entries(run_dir)]
    assert [line["timestep"] for line in metrics(run_dir)] == [25, 50]
    assert [line["environment_steps"] for line in metrics(run_dir)] == [50, 100]
    assert {"Loss / Critic loss", "Stats / Inference time (ms)", "Stats / Env stepping time (ms)"} <= metrics(run_dir)[1].keys()
    config = json.loads((run_dir / "config.json").read_text())
    assert {key: config[key] for key in ("backend", "env", "steps", "seed", "num_envs", "hidden")} == {
        "backend": backend,
        "env": "Pendulum-v1",
        "steps": 100,
        "seed": 3,
        "num_envs": 2,
        "hidden": [8, 8],
    }
    assert (config["cfg"]["batch_size"], config["cfg"]["learning_rate"], config["cfg"]["seed"]) == (16, 3e-4, 3)
    assert config == json.loads(json.dumps(result.config))
    assert (run_dir / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert len(list(run_dir.glob("events.out.tfevents.*"))) == 1
    assert {path.name for path in run_dir.iterdir()} <= {
        *run_directory.RUN_FILES,
        "checkpoints",
        *(path.name for path in run_dir.glob("events*")),
    }

    loaded = sacref.load(run_dir)
    observations = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    trained, again = (agent.to_numpy(agent.act(observations, None, timestep=0, timesteps=1)[0]) for agent in (result.agent, loaded))
    np.testing.assert_array_equal(trained, again)
    assert not loaded.training
    made = envs.make("Pendulum-v1", 2, env_kwargs={"max_episode_steps": 20})
    repeated = evaluate(loaded, made, episodes=2, seed=derive_seed(3, 1))
    assert repeated.to_entry(100) == entries(run_dir)[-1]


def test_a_run_of_one_seed_repeats_and_another_seed_differs(tmp_path: Path) -> None:
    for name, seed in {"first": 1, "second": 1, "other": 2}.items():
        train(tmp_path / name, seed=seed)
    assert entries(tmp_path / "first") == entries(tmp_path / "second")
    assert entries(tmp_path / "first") != entries(tmp_path / "other")


def test_numpys_integers_are_written_as_numbers(tmp_path: Path) -> None:
    changed: dict[str, Any] = {"steps": 4, "seed": np.int64(3), "hidden": np.array([8, 8]), "cfg": {"batch_size": 4}}
    with without_shape_checks():  # which would refuse them for their types
        result = train(tmp_path, **changed)
    assert result.config["seed"] == 3
    assert result.config["hidden"] == [8, 8]
    agents: list[Any] = [sacref.load(tmp_path), result.agent]
    assert_same_arrays(*(agent.arrays() for agent in agents))


def test_the_callers_configuration_stays_as_it_is_and_the_papers_is_the_default(tmp_path: Path) -> None:
    cfg = SACConfig.from_dict(SMALL["cfg"])
    before = cfg.to_dict()
    assert train(tmp_path / "object", cfg=cfg, seed=9).config["cfg"]["learning_rate"] == 1e-3
    assert cfg.to_dict() == before
    config = train(tmp_path / "none", cfg=None, steps=20).config["cfg"]
    for name in ("batch_size", "learning_rate", "random_timesteps", "learning_starts", "initial_entropy_value"):
        assert config[name] == getattr(paper_config(1), name)


def test_a_run_without_a_directory_makes_a_fresh_one(tmp_path: Path) -> None:
    result = train(None, steps=20)  # type: ignore[arg-type]  # what run_dir's default is
    assert result.run_dir.parent == tmp_path / "runs"
    assert result.run_dir.name.startswith("Pendulum-v1-torch-0-")


def test_the_last_checkpoints_are_kept_with_their_memories_and_the_best_without(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    train(run_dir, steps=120)
    assert checkpoints(run_dir) == ["agent_100", "agent_120", "agent_50", "best", "replay"]
    train(run_dir, steps=170, resume=True)
    assert checkpoints(run_dir) == ["agent_120", "agent_150", "agent_170", "best", "replay"]
    train(run_dir, steps=200, resume=True, keep_checkpoints=1)
    assert checkpoints(run_dir) == ["agent_200", "best", "replay"]
    assert holds_memory(run_dir / "checkpoints" / "agent_200")
    assert not holds_memory(run_dir / "checkpoints" / "best")
    best = max(entries(run_dir), key=lambda entry: float(entry["mean"]))
    found = sacref.load(run_dir, checkpoint="best")
    copies = envs.make("Pendulum-v1", 2, env_kwargs=SMALL["env_kwargs"])
    assert list(evaluate(found, copies, episodes=2, seed=derive_seed(0, 1)).returns) == pytest.approx(best["returns"])
    copies.close()


def delete_old(run_dir: Path, keep: int) -> None:
    agent: Any = SimpleNamespace(memory=None)
    CheckpointWriter(agent, Ranks(), run_dir, agent, every=0, keep=keep).delete_old()


def segments(log: Path) -> list[str]:
    return sorted(path.name for path in log.iterdir())


def test_no_segment_is_deleted_while_a_kept_checkpoint_cannot_be_read(tmp_path: Path) -> None:
    train(tmp_path, steps=120)
    where = tmp_path / "checkpoints"
    assert segments(where / "replay") == ["segment_0", "segment_1", "segment_2"]
    text = (where / "agent_120" / checkpoint.MANIFEST).read_text()
    (where / "agent_120" / checkpoint.MANIFEST).write_text("the disk does not answer")
    delete_old(tmp_path, keep=3)
    assert segments(where / "replay") == ["segment_0", "segment_1", "segment_2"]
    (where / "agent_120" / checkpoint.MANIFEST).write_text(text)
    shutil.rmtree(where / "agent_120")
    delete_old(tmp_path, keep=3)
    assert segments(where / "replay") == ["segment_0", "segment_1"]


def test_the_segments_of_departed_ranks_go_with_their_checkpoints(tmp_path: Path) -> None:
    train(tmp_path, steps=120)
    where = tmp_path / "checkpoints"
    for name in ("agent_50", "agent_100", "replay"):
        shutil.copytree(where / name, where / f"{name}.rank_1")
    delete_old(tmp_path, keep=2)
    assert checkpoints(tmp_path) == ["agent_100", "agent_100.rank_1", "agent_120", "best", "replay", "replay.rank_1"]
    assert segments(where / "replay") == ["segment_0", "segment_1", "segment_2"]
    assert segments(where / "replay.rank_1") == ["segment_0", "segment_1"]
    delete_old(tmp_path, keep=1)
    assert checkpoints(tmp_path) == ["agent_120", "best", "replay"]


@pytest.mark.parametrize(
    ("owner", "method"),
    [(CheckpointWriter, "delete_old"), (CheckpointWriter, "write_best"), (experiment.Run, "write_evaluations")],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_run_killed_after_its_last_checkpoint_ends_as_others_once_resumed(
    owner: Any, method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No step comes again: what is not done by then is done at the end of the resumed run."""
    only = {"evaluation_interval": 100, "keep_checkpoints": 1}
    train(tmp_path / "whole", **only)

    class Killed(BaseException):
        pass

    def die(*arguments: Any) -> None:
        if "agent_100" in checkpoints(tmp_path / "run"):
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(owner, method, die)
        with pytest.raises(Killed):
            train(tmp_path / "run", **only)
    train(tmp_path / "run", resume=True, **only)
    assert checkpoints(tmp_path / "run") == checkpoints(tmp_path / "whole") == ["agent_100", "best", "replay"]
    assert entries(tmp_path / "run") == entries(tmp_path / "whole")
    written = [checkpoint.read(tmp_path / name / "checkpoints" / "best").groups["agent"] for name in ("run", "whole")]
    assert_same_arrays(*written)


@pytest.mark.parametrize(
    ("before", "after", "best"),
    [
        # The best one comes again, with another result: the agents of the steps that were thrown away are no result of the run.
        ((-5.0, 100.0, 1.0), (-7.0, -6.0), (100, -6.0)),
        ((-5.0, 100.0, 1.0), (-6.0, -7.0), (80, -6.0)),
        # The best one was before the checkpoint: what comes is held against it.
        ((5.0, 1.0, 2.0), (4.0, 6.0), (100, 6.0)),
        ((5.0, 1.0, 2.0), (4.0, 3.0), (40, 5.0)),
    ],
)
def test_the_best_agent_is_of_an_evaluation_that_the_run_has(
    before: tuple[float, ...], after: tuple[float, ...], best: tuple[int, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    means = iter([*before, *after])
    monkeypatch.setattr(experiment, "evaluate", lambda *_, **__: Evaluation((next(means),), (1,)))
    train(tmp_path)
    shutil.rmtree(tmp_path / "checkpoints" / "agent_100")
    train(tmp_path, resume=True)
    assert evaluation_of_best(tmp_path) == best
    assert list(best) in [[entry["step"], entry["mean"]] for entry in entries(tmp_path)]
    assert sacref.load(tmp_path, checkpoint="best").gradient_step_count == best[0] - 20


def test_a_damaged_checkpoint_is_left_out_and_the_one_before_taken(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run_dir = tmp_path / "run"
    train(run_dir, steps=120)
    shutil.copytree(run_dir, tmp_path / "second")
    wanted = entries(run_dir)
    with (run_dir / "checkpoints" / "agent_120" / "agent.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\xff")
    sacref.load(run_dir)
    assert "agent_120 is left out, and agent_100 taken" in caplog.text
    caplog.clear()
    train(run_dir, steps=120, resume=True)
    assert "checkpoint agent_120 is left out, and the one before it taken" in caplog.text
    assert entries(run_dir) == wanted  # the steps from 100 on came again
    # The configuration is of the newest checkpoint, which three ranks may have written after one wrote those before.
    config = json.loads((run_dir / "config.json").read_text())
    (run_dir / "config.json").write_text(json.dumps({**config, "ranks": 3, "steps_offset": 120 - 3 * 120}))
    for steps in (120, 100):
        resumed = run_directory.prepare(Ranks(), run_dir, overwrite=False, resume=True)
        assert resumed is not None
        assert resumed.steps == steps
        shutil.rmtree(run_dir / "checkpoints" / "agent_120", ignore_errors=True)
    (run_dir / "config.json").write_text(json.dumps(config))
    segments = sorted((tmp_path / "second" / "checkpoints" / "replay").glob("segment_*"))
    (segments[-1] / "rows.safetensors").unlink()
    caplog.clear()
    train(tmp_path / "second", steps=120, resume=True)
    assert "checkpoint agent_120 is left out" in caplog.text
    (segments[0] / "rows.safetensors").unlink()
    with pytest.raises(
        RunError, match=r"holds no sound checkpoint: .*the weights are whole \(sacref.load, sacref eval\), the replay memory"
    ):
        train(tmp_path / "second", steps=140, resume=True)
    sacref.load(tmp_path / "second")
    for path in (run_dir / "checkpoints").glob("agent_*"):
        (path / "checkpoint.json").write_text("{}")
    with pytest.raises(RunError, match=r"holds no sound checkpoint: .*start anew with overwrite"):
        train(run_dir, steps=120, resume=True)


def test_a_disk_that_is_full_costs_a_checkpoint_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    right, writings = checkpoint.write, []

    def full(path: Any, *arguments: Any) -> Any:
        writings.append(Path(path).name)
        if Path(path).name == "agent_100":
            raise OSError(errno.ENOSPC, "No space left on device")
        return right(path, *arguments)

    monkeypatch.setattr(checkpoint, "write", full)
    train(tmp_path / "run", steps=170)
    assert "no checkpoint at timestep 100: [Errno 28] No space left on device. Training goes on; agent_50 is the last one" in caplog.text
    assert checkpoints(tmp_path / "run") == ["agent_150", "agent_170", "agent_50", "best", "replay"]
    monkeypatch.undo()
    again = train(tmp_path / "run", steps=200, resume=True)
    assert again.steps == 200


def test_a_run_is_resumed_with_its_memory_and_counters_for_more_steps(backend: str, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    first = train(run_dir, backend=backend)
    before = entries(run_dir)
    stored = len(memory_of(first))
    # Episodes of 20 steps and a reset row after each: 4 of 100 rows are none.
    assert stored == 96
    resumed = train(run_dir, backend=backend, steps=200, resume=True)
    assert [entry["step"] for entry in entries(run_dir)] == [40, 80, 100, 120, 160, 200]
    assert entries(run_dir)[:3] == before
    assert [line["timestep"] for line in metrics(run_dir)] == [25, 50, 75, 100, 125, 150, 175, 200]
    # In the episode that ran: as many reset rows as an uninterrupted run has.
    assert len(memory_of(resumed)) == 191
    # No random first steps again, and one gradient step for each of the timesteps 20 to 199.
    assert resumed.agent.gradient_step_count == 180
    assert json.loads((run_dir / "config.json").read_text())["steps"] == 200


def test_a_run_that_was_cut_off_is_resumed_for_less_steps_than_were_asked(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    train(run_dir, steps=100)
    shutil.rmtree(run_dir / "checkpoints" / "agent_100")
    config = json.loads((run_dir / "config.json").read_text())
    assert config["versions"].keys() >= {"python", "numpy", "gymnasium", *BACKENDS[BACKEND]}
    assert (config["versions"]["python"], config["versions"]["gymnasium"]) == (platform.python_version(), gymnasium.__version__)
    # It may go on with other versions, and says which.
    (run_dir / "config.json").write_text(json.dumps({**config, "versions": {"numpy": "0.1"}}))
    resumed = train(run_dir, steps=60, resume=True)
    assert json.loads((run_dir / "config.json").read_text())["versions"] == config["versions"]
    assert resumed.steps == 60
    assert memory_of(resumed).capacity == 101
    assert 55 <= len(memory_of(resumed)) <= 60


def test_steps_after_the_last_checkpoint_come_again(tmp_path: Path) -> None:
    """What a run looks like that was killed at step 130, its last checkpoint at 100."""
    run_dir = tmp_path / "run"
    train(run_dir)
    (run_dir / "evaluation.json").write_text(json.dumps([*entries(run_dir), {"step": 120, "returns": [0.0], "mean": 0.0, "std": 0.0}]))
    with open(run_dir / "metrics.jsonl", "a") as lines:
        lines.write('{"timestep": 125, "environment_steps": 125, "wall_time": 0.0}\n{"timestep": 1')
    train(run_dir, steps=160, resume=True)
    assert [entry["step"] for entry in entries(run_dir)] == [40, 80, 100, 120, 160]
    assert all(len(entry["returns"]) == 2 for entry in entries(run_dir))
    assert [line["timestep"] for line in metrics(run_dir)] == [25, 50, 75, 100, 125, 150, 160]


def test_what_is_left_of_a_checkpoint_that_was_deleted_is_none(tmp_path: Path) -> None:
    """A file of somebody else's, in its directory, keeps that there."""
    run_dir = tmp_path / "run"
    train(run_dir, steps=50)
    left = run_dir / "checkpoints" / "agent_100"
    left.mkdir()
    (left / ".DS_Store").write_text("mine")
    with pytest.raises(
        RunError, match=r"agent_100 holds '\.DS_Store', which no run of sacref wrote, and the resumed run writes there: move"
    ):
        train(run_dir, steps=150, resume=True)
    left = left.rename(left.with_name("agent_7"))
    train(run_dir, steps=150, resume=True, keep_checkpoints=1)
    assert checkpoints(run_dir) == ["agent_150", "agent_7", "best", "replay"]
    assert memory_of(train(run_dir, steps=150, resume=True)).capacity >= 150
    assert (left / ".DS_Store").read_text() == "mine"

    class Leaves(Callback):
        """Leaves a file where the last checkpoint goes, as NFS does of one that somebody reads while it is deleted."""

        def on_evaluation(self, run: RunView) -> None:
            (run_dir / "checkpoints" / "agent_200").mkdir(exist_ok=True)
            (run_dir / "checkpoints" / "agent_200" / ".nfs1").touch()

    with pytest.raises(checkpoint.CheckpointError, match=r"agent_200 .*'\.nfs1'"):
        train(run_dir, steps=200, resume=True, callbacks=[Leaves])


def test_a_run_directory_belongs_to_one_run_at_a_time(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"

    class Meanwhile(Callback):
        """Tries what another process would, in the middle of a run."""

        def on_evaluation(self, run: RunView) -> None:
            if run.steps != 40:
                return
            before = {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}
            for how in ({"overwrite": True}, {"resume": True}):
                with pytest.raises(RunError, match=r"run_dir .* is in use by a run that goes on: wait for it, end it, or choose another"):
                    train(run_dir, seed=0, **how)
            assert {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()} == before

    train(run_dir, callbacks=[Meanwhile], cfg={**SMALL["cfg"], "experiment": {**INTERVALS, "checkpoint_interval": 20}})
    assert [entry["step"] for entry in entries(run_dir)] == [40, 80, 100]
    train(run_dir, overwrite=True)


def test_a_checkpoint_without_a_run_is_not_deleted_unasked(tmp_path: Path) -> None:
    train(tmp_path / "run", steps=50)
    kept = tmp_path / "kept" / "checkpoints" / "best"
    shutil.copytree(tmp_path / "run" / "checkpoints" / "best", kept)
    with pytest.raises(RunError, match="already holds a run: choose another, or pass overwrite"):
        train(tmp_path / "kept")
    assert (kept / "checkpoint.json").is_file()


def test_a_finished_run_is_resumed_without_a_step(tmp_path: Path) -> None:
    train(tmp_path / "run")
    before = entries(tmp_path / "run")
    result = train(tmp_path / "run", resume=True)
    assert entries(tmp_path / "run") == before
    assert np.isnan(result.steps_per_second)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"env": "MountainCarContinuous-v0"}, "env: the run has 'Pendulum-v1', asked is 'MountainCarContinuous-v0'"),
        ({"seed": 5}, "seed: the run has 0, asked is 5"),
        ({"hidden": (8,)}, r"hidden: the run has \[8, 8\], asked is \[8\]"),
        ({"cfg": {**SMALL["cfg"], "batch_size": 17}}, "cfg.batch_size: the run has 16, asked is 17"),
        ({"env_kwargs": {"max_episode_steps": 21}}, "env_kwargs.max_episode_steps: the run has 20, asked is 21"),
        ({"steps": 99}, "has 100 steps already, asked are 99"),
        ({"overwrite": True}, "overwrite and resume are both set"),
    ],
    ids=str,
)
def test_a_run_is_not_resumed_with_other_settings(changed: dict[str, Any], message: str, finished_run: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished_run.rglob("*")}
    with pytest.raises(RunError, match=message):
        train(finished_run, **{"resume": True, **changed})
    assert {path: path.stat().st_mtime_ns for path in finished_run.rglob("*")} == before


@pytest.mark.parametrize(("first", "second"), [("torch", "jax"), ("jax", "torch")])
def test_a_run_goes_on_on_the_other_backend(first: str, second: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    if find_spec("jax") is None or find_spec("torch") is None:
        pytest.skip("needs both backends")
    caplog.set_level("INFO", "sacref.agent.checkpoints")
    run_dir = tmp_path / "run"
    before: Any = train(run_dir, backend=first).agent
    same: Any = train(run_dir, backend=second, resume=True).agent
    assert "the random streams begin anew, from the seed, the rank and the 80 gradient steps so far" in caplog.text
    assert_same_arrays(same.arrays(), before.arrays())
    assert_same_arrays(same.memory.arrays(), before.memory.arrays())
    after: Any = train(run_dir, backend=second, steps=200, resume=True).agent  # JAX has compiled for a memory of these steps already
    assert after.gradient_step_count == 180 and run_directory.read_config(run_dir)["backend"] == second
    assert [entry["step"] for entry in entries(run_dir)] == [40, 80, 100, 120, 160, 200]


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("finished") / "run"
    train(run_dir)
    return run_dir


def test_resuming_takes_the_runs_own_configuration_unless_one_is_given(tmp_path: Path) -> None:
    train(tmp_path / "run")
    assert train(tmp_path / "run", steps=110, resume=True, cfg=None).config["cfg"]["batch_size"] == 16


def test_a_configuration_that_cannot_be_used_deletes_no_run(finished_run: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished_run.rglob("*")}
    with pytest.raises(ConfigError, match="batch_size is 0"):
        train(finished_run, overwrite=True, cfg={"batch_size": 0})
    assert {path: path.stat().st_mtime_ns for path in finished_run.rglob("*")} == before


def state_of(directory: Path) -> dict[Path, tuple[int, int]]:
    found = {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in directory.rglob("*")}
    assert directory / "config.json" in found
    return found


def broken(env: Any) -> Any:
    raise RuntimeError("the wrapper fails")


class Once:
    """A wrapper that works for the first environment, and fails for that of the evaluations."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, env: Any) -> Any:
        self.calls += 1
        return env if self.calls == 1 else broken(env)


class NeverReset(CountingEnv):
    def reset(self, **arguments: Any) -> Any:
        raise RuntimeError("the reset fails")


THE_ONE = CountingEnv()


def refusing(rewards: Any, timestep: int, timesteps: int) -> Any:
    raise ArithmeticError("no such reward")


class NeverSteps(gymnasium.Wrapper[Any, Any, Any, Any]):
    def step(self, action: Any) -> Any:
        raise RuntimeError("the simulator is gone")


IMPOSSIBLE: dict[str, dict[str, Any]] = {
    "a typo in the task": {"env": "Pendulm-v1"},
    "discrete actions": {"env": "CartPole-v1", "env_kwargs": {}},
    "discrete observations": {"env": "FrozenLake-v1", "env_kwargs": {}},
    "an argument of the task": {"env_kwargs": {"gravity": 1}},
    "no such module": {"env": "nowhere:Task-v1"},
    "no environment": {"env": dict, "env_kwargs": {}},
    "no reset": {"env": NeverReset, "env_kwargs": {}},
    "one environment for all": {"env": lambda: THE_ONE, "env_kwargs": {}},
    "a wrapper": {"wrappers": [broken]},
    "a wrapper of the evaluations": {"wrappers": [Once()]},
    "the device": {"device": "nowhere:7"},
    "no hidden units": {"hidden": (0,)},
    "negative hidden units": {"hidden": (8, -1)},
    "no critics": {"num_critics": 0},
    "the dropout": {"dropout": 2.0},
    "the cell": {"recurrent": "transformer"},
    "the memory": {"num_envs": 4, "memory_capacity": 3},
    "more steps than the memory": {"memory_capacity": 2, "cfg": {**SMALL["cfg"], "n_step": 3}},
    "a memory that is too large": {"memory_capacity": 2**31 - 1, "steps": 2**40, "env": CountingEnv, "env_kwargs": {}},
    "the vectorization": {"vectorization": "batched"},
    "the execution": {"cfg": {**SMALL["cfg"], "execution": "cuda_graph"}},
    "the preprocessor": {
        "cfg": {**SMALL["cfg"], "observation_preprocessor": "sacref.preprocessing:RunningStandardScaler"}
        | {"observation_preprocessor_kwargs": {"epsilon": "small"}}
    },
    "the evaluations": {"evaluation_max_steps": 0},
    "the first step": {"wrappers": [NeverSteps]},
    "the first reward": {"cfg": {**SMALL["cfg"], "rewards_shaper": refusing, "experiment": {"write_interval": 1}}},
}


@pytest.mark.parametrize("changed", IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_a_run_stays_until_the_new_one_has_taken_its_first_step(changed: dict[str, Any], finished_run: Path) -> None:
    before = state_of(finished_run)
    with without_shape_checks(), pytest.raises(Exception) as refused:  # whatever it is: a user's wrapper raises what it likes
        train(finished_run, overwrite=True, **changed)
    assert state_of(finished_run) == before, refused.value


@pytest.mark.parametrize("kind", ["no hidden units", "the device", "a memory that is too large", "one environment for all"])
def test_it_stays_on_both_backends(kind: str, backend: str, finished_run: Path) -> None:
    before = state_of(finished_run)
    with pytest.raises((ValueError, RuntimeError, TypeError, ZeroDivisionError)):
        train(finished_run, overwrite=True, backend=backend, **IMPOSSIBLE[kind])
    assert state_of(finished_run) == before


def test_a_run_that_begins_meanwhile_is_not_written_over(finished_run: Path, tmp_path: Path) -> None:
    class Late(CountingEnv):
        def __init__(self) -> None:
            super().__init__()
            if not (tmp_path / "run").exists():
                shutil.copytree(finished_run, tmp_path / "run")

    with pytest.raises(RunError, match="already holds a run"):
        train(tmp_path / "run", env=Late, env_kwargs={})
    assert {path.name for path in (tmp_path / "run").iterdir()} == {path.name for path in finished_run.iterdir()}


@pytest.mark.parametrize(
    ("path", "content", "message"),
    [
        ("config.json", '{"name": "mine"}', "holds 'config.json', which no run of sacref wrote"),
        ("config.json", "[1, 2]", "holds 'config.json', which no run of sacref wrote"),
        ("checkpoints/agent_100/notes.txt", "mine", r"agent_100 holds 'notes.txt', which no run of sacref wrote.*: move it away"),
        ("checkpoints/best/plots/a.png", "mine", r"best holds 'plots'"),
        ("checkpoints/replay/segment_0/mine", "mine", r"segment_0 holds 'mine'"),
        ("checkpoints/agent_7/weights.bin", "mine", r"agent_7 holds 'weights.bin'"),
    ],
)
def test_overwriting_deletes_nothing_that_no_run_wrote(path: str, content: str, message: str, finished_run: Path, tmp_path: Path) -> None:
    shutil.copytree(finished_run, tmp_path / "run")
    (tmp_path / "run" / path).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "run" / path).write_text(content)
    before = state_of(tmp_path / "run")
    with pytest.raises(RunError, match=message):
        train(tmp_path / "run", overwrite=True)
    assert state_of(tmp_path / "run") == before


@pytest.mark.parametrize("name", ["config.json", "curve.png", "metrics.jsonl"])
def test_files_of_another_program_are_not_taken_for_a_run(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("{}")
    with pytest.raises(RunError, match=f"holds '{name}', which no run of sacref wrote"):
        train(tmp_path, overwrite=True)
    assert (tmp_path / name).read_text() == "{}"


def test_a_damaged_configuration_beside_checkpoints_is_a_runs(finished_run: Path, tmp_path: Path) -> None:
    for content in ("", '{"sacref": '):
        shutil.copytree(finished_run, tmp_path / "run")
        (tmp_path / "run" / "config.json").write_text(content)
        run_directory.begin(Ranks(), tmp_path / "run", {"seed": 3}, None, overwrite=True)
        assert [path.name for path in (tmp_path / "run").iterdir()] == ["config.json"]
        shutil.rmtree(tmp_path / "run")


def test_a_directory_that_holds_a_run_is_refused_and_overwritten_when_asked(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    train(run_dir, steps=60)
    foreign = [run_dir / "notes.txt", run_dir / "checkpoints" / "mine" / "weights.bin", run_dir / "checkpoints" / "agent_60.zip"]
    for path in foreign:
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    with pytest.raises(RunError, match=r"already holds a run: choose another, or pass overwrite .* or resume"):
        train(run_dir)
    train(run_dir, steps=40, seed=1, overwrite=True)
    assert [path.read_text() for path in foreign] == ["mine"] * 3
    assert [entry["step"] for entry in entries(run_dir)] == [40]
    assert checkpoints(run_dir) == ["agent_40", "agent_60.zip", "best", "mine", "replay"]
    assert [line["timestep"] for line in metrics(run_dir)] == [25, 40]
    assert len(list(run_dir.glob("events.out.tfevents.*"))) == 1


def test_there_must_be_something_to_resume(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"holds no run: .* as `sacref train --run-dir` writes it$"):
        train(tmp_path / "run", resume=True)
    for seed in range(4):
        (tmp_path / "population" / f"seed={seed}").mkdir(parents=True)
        (tmp_path / "population" / f"seed={seed}" / "config.json").write_text("{}")
    with pytest.raises(RunError, match=r"holds no run: .*\. It is a folder of runs, seed=0, seed=1, seed=2, \.\.\.: name one of them"):
        train(tmp_path / "population", resume=True)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    with pytest.raises(RunError, match="without a checkpoint, so there is nothing to resume: start anew with overwrite"):
        train(tmp_path / "run", resume=True)
    with pytest.raises(RunError, match="holds no checkpoint yet"):
        sacref.load(tmp_path / "run")
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="is a file, expected a directory"):
        train(tmp_path / "file")


class Interrupting(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Presses Ctrl-C in the 65th step of training."""

    presses = 0

    def step(self, action: Any) -> Any:
        Interrupting.presses += 1
        if Interrupting.presses == 65:
            os.kill(os.getpid(), signal.SIGINT)
        return super().step(action)


def test_ctrl_c_leaves_a_run_that_can_be_resumed(tmp_path: Path) -> None:
    Interrupting.presses = 0
    # The environments' steps are 40 of training, 2 x 20 of evaluation (a copy goes on while the other ends), 25 less 40 of training.
    result = train(tmp_path / "run", wrappers=[Interrupting], evaluation_interval=1000, cfg={**SMALL["cfg"], "batch_size": 4})
    assert result.interrupted
    # 65 steps and the reset rows of three episodes, which are no steps.
    assert result.steps == 68
    assert checkpoints(tmp_path / "run") == ["agent_50", "agent_68", "replay"]
    assert metrics(tmp_path / "run")[-1]["timestep"] == 68
    assert entries(tmp_path / "run") == []
    resumed = train(tmp_path / "run", wrappers=[Interrupting], evaluation_interval=1000, cfg={**SMALL["cfg"], "batch_size": 4}, resume=True)
    assert (resumed.steps, resumed.interrupted) == (100, False)
    assert [entry["step"] for entry in entries(tmp_path / "run")] == [100]


def test_an_environment_of_ones_own_is_trained_and_its_agent_loads_without_it(tmp_path: Path) -> None:
    result = train(tmp_path / "run", env=CountingEnv, env_kwargs={"high": 3.0, "lengths": (4,)}, steps=60)
    assert result.config["env"] == "tests.envs.counting:CountingEnv"
    agent = sacref.load(tmp_path / "run", checkpoint="agent_50")
    space = agent.action_space
    assert space == CountingEnv(high=3.0).action_space
    assert agent.observation_space == CountingEnv().observation_space
    with pytest.raises(RunError, match=r"checkpoint 'agent_7' is neither .* \(there: agent_50, agent_60, best\)"):
        sacref.load(tmp_path / "run", checkpoint="agent_7")


def test_loading_runs_no_code_that_the_run_names(tmp_path: Path) -> None:
    train(tmp_path / "run", steps=20)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    config["cfg"]["rewards_shaper"] = "antigravity:fly_to"
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    sys.modules.pop("antigravity", None)
    sacref.load(tmp_path / "run")
    assert "antigravity" not in sys.modules
    (tmp_path / "run" / "config.json").write_text(json.dumps({**config, "hidden": None}))
    with pytest.raises(RunError, match=r"config.json is damaged \(TypeError"):
        sacref.load(tmp_path / "run")


def test_what_cannot_be_written_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    cfg = paper_config()
    cfg.rewards_shaper = lambda rewards, timestep, timesteps: rewards
    with pytest.raises(ConfigError, match="no importable name"):
        train(tmp_path / "run", cfg=cfg)
    with pytest.raises(TypeError, match="SAC here needs"):
        train(tmp_path / "run", env="CartPole-v1", env_kwargs={})
    for name in ("steps", "num_envs", "evaluation_episodes", "evaluation_interval", "memory_capacity"):
        with pytest.raises(ValueError, match=f"{name} is 0, expected an integer of at least 1"):
            train(tmp_path / "run", **{name: 0})
    for name, value, message in (
        ("cfg", [3], r"SACConfig cannot be made of \[3\], expected a dict of its fields"),
        ("learning_rate", 1e-3, r"train got 'learning_rate', .*: did you mean cfg=\{'learning_rate': ...\}\?"),
        ("gamma", 0.9, r"train got 'gamma', .*: did you mean cfg=\{'discount_factor': ...\}\?"),
        ("buffer_size", 9, r"train got 'buffer_size', .*: did you mean memory_capacity=...\?"),
        ("num_env", 9, r"train got 'num_env', .*: did you mean num_envs=...\?"),
        ("xyzzy", 9, "train got 'xyzzy': its arguments are .*num_envs.*, and cfg holds the fields of SACConfig"),
        ("hidden", 8, r"hidden is 8, expected the widths of the hidden layers, as \(256, 256\)"),
        ("wrappers", "module:name", "wrappers is 'module:name', expected a list of callables"),
        ("wrappers", ["module:name"], r"wrappers is \['module:name'\], expected a list of callables"),
        ("env_kwargs", [1], r"env_kwargs is \[1\], expected a dict of the environment's arguments by their names"),
        ("overwrite", "no", "overwrite is 'no', expected True or False"),
    ):
        with without_shape_checks(), pytest.raises((TypeError, ValueError), match=message):
            train(tmp_path / "run", **{name: value})
    with pytest.raises(ValueError, match=r"preset is 'sb3' and cfg a SACConfig, .*: give as cfg a dict of the fields that differ from the"):
        train(tmp_path / "run", preset="sb3", cfg=paper_config())
    for bad in cast(Any, [3, b"run"]):
        with without_shape_checks(), pytest.raises(TypeError, match="expected a path, or None for one of its own"):
            experiment.train(run_dir=bad)
    assert not (tmp_path / "run").exists()


def test_returns_are_the_tasks_own_where_training_normalises_rewards(tmp_path: Path) -> None:
    result = train(tmp_path / "run", backend="torch", wrappers=[gymnasium.wrappers.NormalizeReward], evaluation_episodes=3)
    plain = envs.make("Pendulum-v1", 3, env_kwargs=SMALL["env_kwargs"])
    found = evaluate(result.agent, plain, episodes=3, seed=derive_seed(SMALL.get("seed", 0), 1))
    assert result.evaluations[-1][1].returns == pytest.approx(found.returns, rel=1e-6)
    assert (
        metrics(tmp_path / "run")[-1]["Reward / Instantaneous reward (min)"] > -1.0 > max(found.returns) / 20
    )  # training's are normalised


class Pendulums(gymnasium.vector.VectorWrapper[Any, Any, Any, Any, Any]):
    """Vector environment with a wrapper of Gymnasium's around all of its copies, as `vector_env` makes it."""

    def __init__(self, num_envs: int, wrapper: str) -> None:
        task = partial(gymnasium.make, "Pendulum-v1", **SMALL["env_kwargs"])
        super().__init__(getattr(gymnasium.wrappers.vector, wrapper)(gymnasium.vector.SyncVectorEnv([task] * num_envs)))


def train_in_vectors(run_dir: Path, wrapper: str) -> TrainingResult:
    own = {"vector_env": Pendulums, "env_kwargs": {"wrapper": wrapper}, "backend": BACKEND, "run_dir": run_dir, "steps": 100}
    return experiment.train(**{name: value for name, value in SMALL.items() if name != "env"} | own)


def test_returns_are_the_tasks_own_where_a_wrapper_of_vectors_normalises_rewards(tmp_path: Path, capsys: Any) -> None:
    result = train_in_vectors(tmp_path / "run", "NormalizeReward")
    plain = envs.make("Pendulum-v1", 2, env_kwargs=SMALL["env_kwargs"])
    found = evaluate(result.agent, plain, episodes=2, seed=derive_seed(0, 1))
    assert result.evaluations[-1][1].returns == pytest.approx(found.returns, rel=1e-6)
    asked = ["eval", str(tmp_path / "run"), "--episodes", "2", "--seed", str(derive_seed(0, 1))]
    assert cli.main(asked) == 0
    assert ", ".join(f"{value:,.1f}" for value in found.returns) in capsys.readouterr().out


def test_moments_that_evaluations_do_not_have_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    train_in_vectors(tmp_path / "vectors", "NormalizeObservation")
    assert caplog.text.count("set observation_preprocessor to sacref.preprocessing:RunningStandardScaler") == 1
    caplog.clear()
    train(tmp_path / "plain", backend="torch", wrappers=[gymnasium.wrappers.NormalizeReward])
    assert "NormalizeObservation" not in caplog.text
    train(tmp_path / "run", backend="torch", wrappers=[gymnasium.wrappers.NormalizeObservation])
    assert "set observation_preprocessor to sacref.preprocessing:RunningStandardScaler" in caplog.text


def test_counts_may_be_numpys_integers(tmp_path: Path) -> None:
    counts = {"steps": np.int64(6), "num_envs": np.int32(2), "evaluation_interval": np.int64(6), "evaluation_episodes": np.uint8(1)}
    with without_shape_checks():
        train(tmp_path / "run", backend="torch", **counts)
    stored = json.loads((tmp_path / "run" / "config.json").read_text())
    assert [stored[name] for name in counts] == [6, 2, 6, 1]


def test_a_backend_that_there_is_none_of_is_refused() -> None:
    with pytest.raises(BackendError, match="backend is 'numpy', expected one of torch, jax"):
        import_backend("numpy")


@pytest.mark.parametrize(("asked", "missing"), [("torch", "torch"), ("jax", "jax"), ("jax", "flax"), ("jax", "optax")])
def test_a_backend_that_is_not_installed_names_the_extra(asked: str, missing: str) -> None:
    program = f"""
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == {missing!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent())
from sacref.training.plan import import_backend
import_backend({asked!r})
"""
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert finished.returncode == 1
    last = finished.stderr.splitlines()[-1]
    assert f"backend '{asked}' is not installed (No module named '{missing}" in last
    assert last.endswith(f'pip install "sacref[{asked}]"')


# test_resume trains JAX in another.
@pytest.mark.parametrize("backend", ["torch", pytest.param("jax", marks=pytest.mark.full)], indirect=True)
def test_a_mujoco_task_trains_on_both_backends(backend: str, tmp_path: Path) -> None:
    pytest.importorskip("mujoco")
    result = sacref.train(
        **{**SMALL, "backend": backend, "env": "InvertedPendulum-v5", "run_dir": tmp_path / "run", "steps": 60, "evaluation_interval": 60}
    )
    # Each step upright is worth 1.
    assert all(1 <= value <= 20 for value in result.evaluations[-1][1].returns)
    assert not (tmp_path / "MUJOCO_LOG.TXT").exists()


@pytest.mark.parametrize(("cfg", "steps"), [(None, 40), ({"gradient_steps": 3}, 60), ({"update_to_data": 0.25}, 10)])
def test_gradient_steps_follow_the_environment_steps_unless_told_otherwise(cfg: dict[str, Any] | None, steps: int, tmp_path: Path) -> None:
    """40 environment steps of two environments, learning from the first on."""
    pytest.importorskip("torch")
    settings = {"learning_starts": 0, "random_timesteps": 0, "batch_size": 4, **(cfg or {})}
    result = train(tmp_path / "run", backend="torch", num_envs=2, steps=40, cfg=settings)
    assert cast(Any, result.agent).gradient_step_count == steps


# What is written down, and read again.


class Kept(CountingEnv):
    """Takes arguments of kinds that JSON has none of."""

    made: ClassVar[list[dict[str, Any]]] = []

    def __init__(self, **given: Any) -> None:
        super().__init__((4,))
        Kept.made.append(given)


def test_numpys_numbers_paths_and_infinity_are_written_and_read_again(tmp_path: Path) -> None:
    given: Any = {
        "scale": np.float32(0.5),
        "count": np.int64(3),
        "flag": np.bool_(True),
        "file": Path("/data/model.xml"),
        "limits": (-math.inf, np.float64(math.inf), math.nan),
        "gains": np.arange(4, dtype=np.float32).reshape(2, 2),
        "nested": {"is": 1, "of": [Path("a")]},
    }
    asked: dict[str, Any] = {"env": Kept, "env_kwargs": given, "backend": BACKEND, "dropout": np.float32(0.25), "seed": np.int64(1)}
    with without_shape_checks():
        train(tmp_path / "run", steps=20, **asked)
        assert train(tmp_path / "run", steps=24, resume=True, **asked).steps == 24
        for name, value in (
            ("file", Path("/data/other.xml")),
            ("limits", (-math.inf, 5.0, math.nan)),
            ("gains", np.zeros((2, 2), np.float32)),
        ):
            with pytest.raises(RunError, match=f"env_kwargs.{name}.*: the run has "):
                train(tmp_path / "run", steps=24, resume=True, **{**asked, "env_kwargs": {**given, name: value}})
    Kept.made.clear()
    assert cli.main(["eval", str(tmp_path / "run"), "--episodes", "1"]) == 0
    (read,) = Kept.made
    assert [type(value) for value in read.values()] == [float, int, bool, type(Path()), list, np.ndarray, dict]
    assert (read["scale"], read["count"], read["flag"], read["file"]) == (0.5, 3, True, Path("/data/model.xml"))
    assert read["limits"][:2] == [-math.inf, math.inf] and math.isnan(read["limits"][2])
    np.testing.assert_array_equal(read["gains"], given["gains"])
    assert read["gains"].dtype == np.float32 and read["nested"] == given["nested"]


def test_an_argument_that_cannot_be_written_is_named_before_anything_is_made(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"env_kwargs\['hook'\]\[0\] is <function .*, which cannot be written to a file: expected numbers"):
        train(tmp_path / "run", env=Kept, env_kwargs={"hook": [broken]})
    assert not (tmp_path / "run").exists()


def test_a_tilde_is_the_home_directory_wherever_a_path_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    train("~/run", backend=BACKEND, steps=20)
    assert (tmp_path / "run" / "config.json").is_file()
    agent: Any = sacref.load("~/run", checkpoint="~/run/checkpoints/best")
    agent.save("~/saved")
    agent.load("~/saved")
    assert cli.main(["eval", "~/run", "--episodes", "1"]) == 0
    assert cli.main(["plot", "~/run", "--output", "~/drawn/curve.png"]) == 0
    train_population(seeds=[0], run_dir="~/many", **{**SMALL, "backend": BACKEND, "steps": 20})
    agent = agent_in("~/tracked")
    assert agent.experiment_dir == tmp_path / "tracked" / "name"
    (tmp_path / "sweep.json").write_text('{"grid": {"seed": ["two"]}}')
    assert cli.main(["train", "--sweep", "~/sweep.json", "--run-dir", "~/swept"]) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["drawn", "many", "run", "saved", "sweep.json"]


def test_a_run_whose_critics_see_little_of_what_the_policy_sees_is_loaded_and_resumed(tmp_path: Path) -> None:
    wrappers = [PrivilegedState, partial(gymnasium.wrappers.FrameStackObservation, stack_size=200)]
    options: dict[str, Any] = {"backend": BACKEND, "wrappers": wrappers, "hidden": (8,), "critic_hidden": (256,)}
    with without_shape_checks():
        train(tmp_path, steps=40, **options)
        assert sacref.load(tmp_path).gradient_step_count == 20
        assert train(tmp_path, steps=60, resume=True, **options).steps == 60


def agent_in(directory: str) -> Any:
    spaces: Any = {"observation_space": CountingEnv().observation_space, "action_space": CountingEnv().action_space}
    module = import_backend(BACKEND)
    cfg = SACConfig.from_dict({"experiment": {"directory": directory, "experiment_name": "name"}})
    return module.SAC(models=module.default_models(**spaces, hidden=(4,)), **spaces, state_space=None, cfg=cfg)


def test_a_platform_that_is_not_there_is_one_line() -> None:
    pytest.importorskip("jax")
    program = "import sys; from sacref.cli import main as cli; sys.exit(cli.main(['train', '--backend', 'jax', '--env', 'Pendulum-v1']))"
    caught = """import sacref
try:
    sacref.train(backend="jax", env="Pendulum-v1")
except sacref.agent.backend.BackendError as error:
    raise SystemExit(7) from error
"""
    environment = {**os.environ, "JAX_PLATFORMS": "cuda" if not shutil.which("nvidia-smi") else "nowhere"}
    for script, status in ((program, 2), (caught, 7)):
        done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == status, done.stderr
        if status == 2:
            (line,) = [line for line in done.stderr.splitlines() if line.startswith("sacref: ")]
            assert line.startswith(f"sacref: JAX finds no device here with JAX_PLATFORMS='{environment['JAX_PLATFORMS']}'")
            assert "Traceback" not in done.stderr


# Evaluations of a run.


class Shaky(CountingEnv):
    """Ends after 4 steps, or never; with a seed of the evaluations' first copy its first episode diverges, where asked."""

    def __init__(self, ends: bool = True, diverging: int | None = None) -> None:
        super().__init__((4,) if ends else (10**9,))
        self.diverging, self.diverges = diverging, False

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.diverges = seed is not None and seed == self.diverging
        return super().reset(seed=seed, options=options)

    def step(self, action: Any) -> Any:
        observation, _, *rest = super().step(action)
        return observation, np.nan if self.diverges else 1.0, *rest


@jax_in_full
def test_an_episode_that_diverges_ends_neither_training_nor_its_resumption(backend: str, tmp_path: Path) -> None:
    seed = derive_seed(0, 1)
    shaky: Any = {"backend": backend, "env": Shaky, "env_kwargs": {"diverging": seed}, "evaluation_episodes": 3, "memory_capacity": 101}
    train(tmp_path / "run", **shaky)
    wanted = {"returns": [4.0, 4.0], "mean": 4.0, "std": 0.0, "diverged": 1, "diverged_seeds": [seed]}
    assert entries(tmp_path / "run") == [{"step": step, **wanted} for step in (40, 80, 100)]
    result = train(tmp_path / "run", resume=True, steps=120, **shaky)
    assert entries(tmp_path / "run") == [{"step": step, **wanted} for step in (40, 80, 100, 120)]
    assert [evaluation.diverged for _, evaluation in result.evaluations] == [(seed,)] * 4


def test_an_evaluation_whose_episodes_all_diverge_is_an_error_at_the_end_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shaky: Any = {"backend": BACKEND, "env": Shaky, "env_kwargs": {"diverging": derive_seed(0, 1)}, "memory_capacity": 101}
    with pytest.raises(EvaluationError, match="all 1 episodes diverged"):
        train(tmp_path / "run", evaluation_episodes=1, **shaky)
    told = [text.partition(":")[0] for text in caplog.messages if "there is no evaluation" in text]
    assert told == ["there is no evaluation after timestep 40", "there is no evaluation after timestep 80"]
    assert (tmp_path / "run/checkpoints/agent_100").is_dir()
    result = train(tmp_path / "run", evaluation_episodes=2, resume=True, steps=120, **shaky)
    assert [(step, evaluation.returns) for step, evaluation in result.evaluations] == [(120, (4.0,))]


def test_a_task_without_a_time_limit_is_evaluated(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    endless: Any = {"env": Shaky, "env_kwargs": {"ends": False}, "evaluation_max_steps": 30, "backend": BACKEND}
    train(tmp_path / "run", **endless)
    wanted = {"returns": [30.0, 30.0], "mean": 30.0, "std": 0.0, "truncated": 2}
    assert entries(tmp_path / "run") == [{"step": step, **wanted} for step in (40, 80, 100)]
    assert caplog.text.count("2 of 2 episodes of the evaluation did not end within 30 steps and were cut") == 1
    train(tmp_path / "run", resume=True, steps=120, **endless | {"evaluation_max_steps": 20})
    assert [entry["mean"] for entry in entries(tmp_path / "run")] == [30.0, 30.0, 30.0, 20.0]


class Unclosable(CountingEnv):
    def close(self) -> None:
        raise OSError("the simulator does not answer")


def test_a_result_is_not_lost_where_environments_cannot_be_closed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    result = train(tmp_path / "run", env=Unclosable, env_kwargs={}, backend=BACKEND, num_envs=2)
    assert [step for step, _ in result.evaluations] == [40, 80, 100]
    assert caplog.text.count("an environment could not be closed (OSError: the simulator does not answer): its results are kept") == 2
    with pytest.raises(RuntimeError, match="the wrapper fails"):  # and not the error of closing
        train(tmp_path / "other", env=Unclosable, env_kwargs={}, backend=BACKEND, wrappers=[Once()])
