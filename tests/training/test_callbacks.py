"""Callbacks: when they are called, what they see, how they end a run, and what a resumed run knows of them."""

import logging
import re
import sys
import time
from functools import partial
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

import sacref
from sacref.cli import main as cli
from sacref.training import callbacks, experiment
from sacref.training.callbacks import Callback, RunView
from tests.backends import BACKENDS, Backend, assert_same_arrays, jax_in_full, load_backend

backend = pytest.fixture(params=BACKENDS)(load_backend)

CFG: dict[str, Any] = {"batch_size": 3, "random_timesteps": 3, "learning_starts": 3, "execution": "plain"}
CFG["experiment"] = {"write_interval": 2, "checkpoint_interval": 4}
RUN: dict[str, Any] = {"env": "Pendulum-v1", "env_kwargs": {"max_episode_steps": 3}, "hidden": (4,), "steps": 12, "evaluation_interval": 6}
RUN |= {"evaluation_episodes": 1, "progress": False, "device": "cpu", "cfg": CFG}


def train(backend: Backend, run_dir: Path, *given: Any, **changed: Any) -> Any:
    return sacref.train(**{**RUN, "backend": backend.name, "run_dir": run_dir, "callbacks": given, **changed})


class Recorder(Callback):
    def __init__(self) -> None:
        self.seen: list[Any] = []

    def on_start(self, run: RunView) -> None:
        assert (run.evaluation, dict(run.metrics)) == (None, {})
        self.seen.append(("start", run.timestep, run.timesteps))

    def on_gradient_steps(self, run: RunView) -> None:
        self.seen.append(("gradient steps", run.timestep, run.gradient_steps))

    def on_timestep(self, run: RunView) -> None:
        self.seen.append(("timestep", run.timestep, run.steps))

    def on_evaluation(self, run: RunView) -> None:
        assert run.evaluation is not None
        self.seen.append(("evaluation", run.timestep, run.evaluation.mean == run.evaluations[-1][1].mean))

    def on_checkpoint(self, run: RunView) -> None:
        self.seen.append(("checkpoint", run.timestep, run.checkpoint.is_dir()))

    def on_end(self, run: RunView) -> None:
        assert "Loss / Critic loss" in run.metrics
        self.seen.append(("end", run.timestep, (run.run_dir / "curve.png").is_file()))


@jax_in_full
def test_they_are_called_in_order_and_see_the_run(backend: Backend, tmp_path: Path) -> None:
    recorder = Recorder()
    result = train(backend, tmp_path, recorder, num_envs=2, steps=12, cfg={**CFG, "update_to_data": None})
    assert result.stopped_by is None
    assert recorder.seen == [
        ("start", 0, 6),
        *[("timestep", t, 2 * t) for t in (1, 2)],
        ("timestep", 3, 6),
        ("evaluation", 3, True),
        ("gradient steps", 4, 1),
        ("timestep", 4, 8),
        ("checkpoint", 4, True),
        ("gradient steps", 5, 2),
        ("timestep", 5, 10),
        ("gradient steps", 6, 3),
        ("timestep", 6, 12),
        ("checkpoint", 6, True),
        ("evaluation", 6, True),
        ("end", 6, True),
    ]


class Stop(Callback):
    def on_timestep(self, run: RunView) -> Any:
        return False  # which ends nothing

    def on_evaluation(self, run: RunView) -> bool:
        return cast(bool, np.float64(run.steps) < 6)  # NumPy's own False, as a comparison with a median gives


@jax_in_full
def test_false_from_an_evaluation_ends_the_run_with_everything_written(
    backend: Backend, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recorder = Recorder()
    result = train(backend, tmp_path, Stop, recorder)
    assert (result.stopped_by, result.interrupted, result.steps) == (f"{__name__}:Stop", False, 6)
    assert [step for step, _ in result.evaluations] == [6]
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"agent_4", "agent_6", "best", "replay"}
    assert recorder.seen[-3:] == [("evaluation", 6, True), ("checkpoint", 6, True), ("end", 6, True)]
    resumed = train(backend, tmp_path, resume=True)
    whole = train(backend, tmp_path / "whole")
    assert_same_arrays(resumed.agent.arrays(), whole.agent.arrays())

    arguments = (
        "train --env Pendulum-v1 --steps 12 --evaluation-interval 6 --evaluation-episodes 1 --hidden 4 --no-progress --device cpu".split()
    )
    arguments += ["--backend", backend.name, "--run-dir", str(tmp_path / "cli")]
    command = [*arguments, "--callbacks", f"{__name__}:Stop", "sacref.training.callbacks:StopAtReturn(mean=1e9)"]
    assert cli.main(command) == 0
    assert f"stopped by {__name__}:Stop after 6 steps" in capsys.readouterr().out
    assert (
        cli.main(["train", "--resume", "--run-dir", str(tmp_path / "cli"), "--callbacks", "sacref.training.callbacks:StopAtReturn(-1e9)"])
        == 0
    )
    assert "stopped by sacref.training.callbacks:StopAtReturn" not in capsys.readouterr().out  # at its last evaluation


class FailingAtTimestep(Callback):
    def on_timestep(self, run: RunView) -> None:
        if run.timestep == 7:
            raise ZeroDivisionError("the callback's own")


class FailingState(Callback):
    def state(self) -> object:
        return {1: object()}

    def set_state(self, state: object) -> None: ...


@jax_in_full
def test_an_error_ends_the_run_with_everything_written(backend: Backend, tmp_path: Path) -> None:
    recorder = Recorder()
    with pytest.raises(ZeroDivisionError, match="the callback's own") as raised:
        train(backend, tmp_path, FailingAtTimestep, recorder)
    assert raised.value.__notes__ == [f"raised by the callback {__name__}:FailingAtTimestep in on_timestep, after 7 environment steps"]
    assert recorder.seen[-3:] == [("timestep", 7, 7), ("checkpoint", 7, True), ("end", 7, True)]
    assert '"timestep": 7,' in (tmp_path / "metrics.jsonl").read_text().splitlines()[-1]
    resumed, whole = train(backend, tmp_path, resume=True), train(backend, tmp_path / "whole")
    assert_same_arrays(resumed.agent.arrays(), whole.agent.arrays())


def test_a_state_that_cannot_be_written_ends_the_run_with_a_checkpoint(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    with pytest.raises(TypeError, match=r"has the keys \[1\], expected text") as raised:
        train(Backend("torch"), tmp_path, FailingState)
    assert f"raised by the callback {__name__}:FailingState in state" in raised.value.__notes__[0]
    assert (tmp_path / "checkpoints" / "agent_4").is_dir()
    assert train(Backend("torch"), tmp_path, resume=True).steps == 12


class Pruned(Exception):
    """In the place of Optuna's."""


class Trial:
    """As much of a trial of Optuna as the example of the documentation asks for."""

    number = 0

    def __init__(self) -> None:
        self.reported: list[tuple[int, float]] = []

    def suggest_float(self, name: str, low: float, high: float, log: bool) -> float:
        return low

    def report(self, value: float, step: int) -> None:
        self.reported.append((step, value))

    def should_prune(self) -> bool:
        return len(self.reported) == 2


def test_the_documented_callback_prunes_a_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    monkeypatch.setitem(sys.modules, "optuna", SimpleNamespace(TrialPruned=Pruned))
    page = (Path(__file__).parents[2] / "docs" / "callbacks.md").read_text()
    (block,) = [block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "class Prune" in block]
    namespace: dict[str, Any] = {"Callback": Callback, "RunView": RunView, "sacref": SimpleNamespace(train=train_briefly)}
    exec(compile(block, "callbacks.md", "exec", dont_inherit=True), namespace)
    monkeypatch.chdir(tmp_path)
    trial = Trial()
    with pytest.raises(Pruned):
        namespace["objective"](trial)
    assert [step for step, _ in trial.reported] == [3, 6]
    assert (tmp_path / "runs" / "trials" / "0" / "checkpoints" / "agent_6").is_dir()


def train_briefly(**given: Any) -> Any:
    return sacref.train(**{**RUN, "evaluation_interval": 3, "run_dir": given["run_dir"], "callbacks": given["callbacks"]})


class Counting(Callback):
    """Has numbers, arrays and a random stream in its state."""

    def __init__(self) -> None:
        self.generator = np.random.default_rng(1)
        self.total, self.best, self.path = np.zeros(3), -np.inf, tuple[int, ...]()
        self.written: tuple[int, ...] = ()
        self.seen: list[float] = []

    def on_timestep(self, run: RunView) -> None:
        self.total = self.total + self.generator.normal(size=3)
        self.path = (*self.path, run.steps)

    def on_evaluation(self, run: RunView) -> None:
        assert run.evaluation is not None
        self.best = max(self.best, run.evaluation.mean)
        self.seen.append(run.evaluation.mean)

    def on_checkpoint(self, run: RunView) -> None:
        assert run.checkpoint.is_dir()
        self.written = (*self.written, run.steps)

    def state(self) -> dict[str, Any]:
        stream = self.generator.bit_generator.state
        return {"total": self.total, "best": self.best, "path": self.path, "written": self.written, "stream": stream["state"]}

    def set_state(self, state: dict[str, Any]) -> None:
        self.total, self.best, self.path, self.written = state["total"], state["best"], state["path"], state["written"]
        self.generator.bit_generator.state = {**self.generator.bit_generator.state, "state": state["stream"]}


class Killed(BaseException):
    """In the place of a signal that no handler sees."""


def test_the_state_of_a_callback_goes_on_bit_for_bit(
    backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    whole = Counting()
    train(backend, tmp_path / "whole", Counting, whole)

    def die(run: Any, finished: int) -> Any:
        if finished == 10:
            raise Killed
        return after_timestep(run, finished)

    after_timestep = experiment.Run.after_timestep
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(experiment.Run, "after_timestep", die)
        train(backend, tmp_path, Recorder, Counting, Counting)
    again = Counting()
    with caplog.at_level(logging.WARNING):
        train(backend, tmp_path, again, resume=True)
    assert again.state()["path"] == whole.state()["path"] == tuple(range(1, 13))
    assert again.written == whole.written == (4, 8, 12)
    np.testing.assert_equal(again.state(), whole.state())
    assert [text for text in caplog.messages if "callback" in text] == [
        f"the checkpoint holds the state of callback {__name__}:Counting, which this run lacks: left out. Pass it in callbacks"
    ]


@jax_in_full
def test_a_run_that_goes_on_beyond_its_end_tells_of_the_evaluation_there(backend: Backend, tmp_path: Path) -> None:
    whole, first, again, fresh = Counting(), Counting(), Counting(), Recorder()
    train(backend, tmp_path / "whole", whole, steps=18)
    train(backend, tmp_path, first)
    train(backend, tmp_path, fresh, again, steps=18, resume=True)
    np.testing.assert_equal(again.state(), whole.state())
    assert first.best in whole.seen and again.seen == whole.seen[1:]  # by this process: that of 12 and that of 18 steps
    assert [entry for entry in fresh.seen if entry[0] == "evaluation"] == [("evaluation", 18, True)]


def test_without_callbacks_none_of_their_code_runs(backend: Backend, tmp_path: Path) -> None:
    called: list[str] = []

    def note(frame: FrameType, event: str, argument: object) -> None:
        if event == "call" and frame.f_code.co_filename == callbacks.__file__:
            called.append(frame.f_code.co_name)

    sys.setprofile(note)
    try:
        train(backend, tmp_path)
    finally:
        sys.setprofile(None)
    assert called == ["make_callbacks"]


def test_what_is_no_callback_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    for given, said in (
        (7, "callbacks has 7"),
        (dict, "callbacks has <class 'dict'>"),
        (partial(int, 3), "callbacks has functools.partial"),
    ):
        with pytest.raises(TypeError, match=rf"{said}.*, expected a subclass of sacref.training.callbacks.Callback, or an instance"):
            train(Backend("torch"), tmp_path / "run", given)
    with pytest.raises(TypeError, match="callbacks is 7, expected a list of callbacks"):
        train(Backend("torch"), tmp_path / "run", callbacks=7)
    assert not (tmp_path / "run").exists()
    with pytest.raises(TypeError, match=r"callbacks has .*Recorder.*, which the members would share: give its class, or"):
        sacref.train_population(seeds=[0, 1], **{**RUN, "run_dir": tmp_path / "run", "callbacks": [Recorder()]})


ENDED: dict[str, int] = {}


class Ended(Callback):
    def on_evaluation(self, run: RunView) -> Any:
        return run.run_dir.name != "seed=1"

    def on_end(self, run: RunView) -> None:
        ENDED[run.run_dir.name] = run.steps


@jax_in_full
def test_each_member_of_a_population_has_callbacks_of_its_own(backend: Backend, tmp_path: Path) -> None:
    ENDED.clear()
    found = sacref.train_population(seeds=[0, 1, 2], **{**RUN, "backend": backend.name, "run_dir": tmp_path, "callbacks": [Ended]})
    assert ENDED == {"seed=0": 12, "seed=1": 6, "seed=2": 12}
    assert found.members["seed=1"].stopped_by == f"{__name__}:Ended"
    alone = train(backend, tmp_path / "alone", seed=2)
    np.testing.assert_allclose(found.members["seed=2"].agent.predict(np.ones(3)), alone.agent.predict(np.ones(3)), rtol=1e-4, atol=1e-5)


class Nothing(Callback):
    def on_timestep(self, run: RunView) -> None: ...
    def on_gradient_steps(self, run: RunView) -> None: ...
    def on_evaluation(self, run: RunView) -> None: ...


class Dropped:
    def write(self, step: int, scalars: Any) -> None: ...


@pytest.mark.full
def test_three_that_do_nothing_and_three_loggers_cost_less_than_two_percent(tmp_path: Path) -> None:
    """In the loop of a tiny network, where a step costs least; medians of pairs that are run in turn."""
    pytest.importorskip("jax")
    ratios = []
    for number in range(9):
        seconds = []
        for name, more in (("without", {}), ("with", {"callbacks": [Nothing] * 3, "log": ["tensorboard", "jsonl", *[Dropped] * 3]})):
            given = {
                **RUN,
                "backend": "jax",
                "steps": 3_000,
                "evaluation_interval": 3_000,
                "cfg": {"batch_size": 8, "learning_starts": 100},
            }
            began = time.process_time()
            sacref.train(**{**given, "run_dir": tmp_path / f"{name}{number}", **more})
            seconds.append(time.process_time() - began)
        ratios.append(seconds[1] / seconds[0])
    assert np.median(ratios[1:]) < 1.02, ratios
