"""Runs are used again: loaded, resumed and evaluated, with code of the user's own in them, or refused by its name."""

import json
import sys
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.wrappers import TimeLimit

import sacref
from sacref import envs
from sacref.cli import main as cli
from sacref.preprocessing import RunningStandardScaler
from sacref.training import experiment
from sacref.training.evaluation import evaluate
from sacref.training.experiment import TrainingResult
from sacref.training.plan import derive_seed
from sacref.training.run_directory import RunError
from tests.backends import BACKENDS, Backend, assert_same_arrays, load_backend
from tests.envs.counting import CountingEnv

backend = pytest.fixture(params=BACKENDS)(load_backend)

CFG: dict[str, Any] = {
    "batch_size": 4,
    "random_timesteps": 4,
    "learning_starts": 4,
    "execution": "plain",
    "experiment": {"write_interval": 0, "checkpoint_interval": 6},
}


def train(run_dir: Path, cfg: dict[str, Any] | None = None, **changed: Any) -> TrainingResult:
    """A run of 12 steps."""
    pytest.importorskip(changed.get("backend", "torch"))
    given: dict[str, Any] = {"env": "Pendulum-v1", "env_kwargs": {"max_episode_steps": 20} if "env" not in changed else {}, "hidden": (4,)}
    given |= {"steps": 12, "evaluation_interval": 12, "evaluation_episodes": 1, "progress": False, "cfg": {**CFG, **(cfg or {})}}
    return experiment.train(**{**given, "run_dir": run_dir, **changed})


def assert_acts_alike(result: TrainingResult, loaded: Any) -> None:
    agent: Any = result.agent
    observations = np.stack([agent.observation_space.sample() for _ in range(4)])
    actions = [each.to_numpy(each.act(observations, None, timestep=0, timesteps=1)[0]) for each in (agent, loaded)]
    np.testing.assert_array_equal(*actions)


# Schedules of the learning rate.

SCHEDULES: dict[str, Any] = {
    "linear": (None, "linear", {"steps": 100}),
    "torch": ("torch", "torch.optim.lr_scheduler:OneCycleLR", {"max_lr": 1e-2, "total_steps": 200}),
    "optax": ("jax", "optax:cosine_decay_schedule", {"init_value": 1e-3, "decay_steps": 100}),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_run_with_a_schedule_is_loaded_and_evaluated(backend: Backend, name: str, tmp_path: Path) -> None:
    only, schedule, kwargs = SCHEDULES[name]
    if only not in (None, backend.name):
        pytest.skip(f"it is a schedule of {only}")
    cfg = {"learning_rate_scheduler": schedule, "learning_rate_scheduler_kwargs": kwargs}
    result = train(tmp_path, cfg, backend=backend.name)
    loaded = sacref.load(tmp_path)
    assert_acts_alike(result, loaded)
    with closing(envs.make("Pendulum-v1", 1, env_kwargs={"max_episode_steps": 20})) as made:
        again = evaluate(loaded, made, episodes=1, seed=derive_seed(0, 1))
    assert again.returns == pytest.approx(result.evaluations[-1][1].returns, rel=1e-6)


# Preprocessors and shapers of the user's own.


class Scaler(RunningStandardScaler):
    """A preprocessor of the user's."""


def halve(rewards: Any, timestep: int, timesteps: int) -> Any:
    return 0.5 * rewards


def test_a_run_with_a_preprocessor_of_the_users_is_loaded_where_imports_are_allowed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = train(tmp_path, {"observation_preprocessor": Scaler})
    with pytest.raises(RunError) as refused:
        sacref.load(tmp_path)
    said = f"SACConfig.observation_preprocessor is '{__name__}:Scaler', which names code to import"
    for part in (said, "load with import_callables=True (--import-callables)", str(tmp_path / "config.json")):
        assert part in str(refused.value)
    assert "damaged" not in str(refused.value)
    loaded = sacref.load(tmp_path, import_callables=True)
    assert_acts_alike(result, loaded)
    agents: list[Any] = [loaded, result.agent]
    assert_same_arrays(*(agent.normalisers.preprocessors["observations"].arrays() for agent in agents))
    assert cli.main(["eval", str(tmp_path), "--episodes", "1"]) == 2
    assert "--import-callables" in capsys.readouterr().err
    assert cli.main(["eval", str(tmp_path), "--episodes", "1", "--import-callables"]) == 0


def test_a_preprocessor_that_is_gone_is_named_and_nothing_is_imported_unasked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(tmp_path / "run", {"state_preprocessor": None})
    (tmp_path / "strange_module.py").write_text("raise SystemExit('the code of a stranger')")
    monkeypatch.syspath_prepend(str(tmp_path))
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    for name, message in {"strange_module": "load with import_callables=True", "absent_module": "load with import_callables=True"}.items():
        config["cfg"]["observation_preprocessor"] = f"{name}:Scaler"
        (tmp_path / "run" / "config.json").write_text(json.dumps(config))
        with pytest.raises(RunError, match=message):
            sacref.load(tmp_path / "run")
    assert "strange_module" not in sys.modules
    with pytest.raises(RunError, match=r"observation_preprocessor is 'absent_module:Scaler', expected .*No module named 'absent_module'"):
        sacref.load(tmp_path / "run", import_callables=True)


@pytest.mark.parametrize("seen", ["actions", "rewards"])
def test_a_recurrent_policy_that_sees_rewards_needs_their_shaper(seen: str, tmp_path: Path) -> None:
    cfg = {"rewards_shaper": halve, "sequence_length": 2}
    result = train(tmp_path, cfg, recurrent="rnn", recurrent_size=4, feed_previous=(seen,))
    if seen == "rewards":
        with pytest.raises(RunError, match=f"rewards_shaper is '{__name__}:halve', which names code to import"):
            sacref.load(tmp_path)
    loaded = sacref.load(tmp_path, import_callables=seen == "rewards")
    with closing(envs.make("Pendulum-v1", 1, env_kwargs={"max_episode_steps": 20})) as made:
        again = evaluate(loaded, made, episodes=1, seed=derive_seed(0, 1))
    assert again.returns == pytest.approx(result.evaluations[-1][1].returns, rel=1e-6)


def test_a_device_that_is_not_here_is_no_fault_of_the_run(finished: Path) -> None:
    with pytest.raises(ValueError, match="device is 'nowhere'") as refused:
        sacref.load(finished, device="nowhere")
    assert "damaged" not in str(refused.value)


def test_a_checkpoint_of_a_run_is_named_by_its_path(finished: Path) -> None:
    newest = sacref.load(finished)
    for place in ("checkpoints/agent_12", "agent_12", "checkpoints/best", "best"):
        assert_same_arrays(sacref.load(finished / place).arrays(), newest.arrays())
    with pytest.raises(RunError, match=r"'bset' is neither in .*\(there: agent_6, agent_12, best\) .*: did you mean 'best'\?"):
        sacref.load(finished / "bset")
    with pytest.raises(RunError, match="best is a checkpoint, and checkpoint is 'agent_12' too: leave out one or the other"):
        sacref.load(finished / "best", checkpoint="agent_12")
    with pytest.raises(RunError, match="holds no run"):
        sacref.load(finished / "checkpoints" / "best" / "deeper")


@pytest.mark.parametrize("command", ["eval", "video"])
def test_commands_that_load_hand_on_whether_imports_are_allowed(
    command: str, finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[Any] = []

    def load(run_dir: Path, **named: Any) -> Any:
        asked.append(named["import_callables"])
        raise ValueError("that is enough")

    monkeypatch.setattr("sacref.training.load.load", load)
    for flags in ([], ["--import-callables"]):
        assert cli.main([command, str(finished), *flags]) == 2
    assert asked == [False, True]


# Environments and wrappers with arguments.


def counting(lengths: tuple[int, ...] = (3,), high: float = 1.0) -> CountingEnv:
    return CountingEnv(lengths, high=high)


class Ending(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Adds to the reward what a function makes of it."""

    def __init__(self, env: Any, function: Any, scale: Any = 1) -> None:
        super().__init__(env)
        self.function, self.scale = function, scale

    def step(self, action: Any) -> Any:
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, float(reward) + float(self.scale * self.function(reward)), terminated, truncated, info


def double(value: Any) -> Any:
    return 2 * value


class Around:
    """Wraps as a function would."""

    def __call__(self, env: Any) -> Any:
        return TimeLimit(env, 7)


ARGUMENTS: dict[str, Any] = {
    "env": partial(counting, (9, 20), high=2.0),
    "wrappers": [partial(TimeLimit, max_episode_steps=7), partial(Ending, function=double, scale=np.float32(10))],
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with arguments in its environment and wrappers."""
    run_dir = tmp_path_factory.mktemp("finished") / "run"
    train(run_dir, **ARGUMENTS)
    return run_dir


def test_arguments_of_an_environment_and_its_wrappers_are_written(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = json.loads((finished / "config.json").read_text())
    assert config["env"] == f"{__name__}:counting((9, 20), high=2.0)"
    assert config["wrappers"] == [
        "gymnasium.wrappers.common:TimeLimit(max_episode_steps=7)",
        f"{__name__}:Ending(function={__name__}.double, scale=numpy.float32(10.0))",
    ]
    assert cli.main(["eval", str(finished), "--episodes", "2"]) == 0
    # Seven steps of the first and the second episode, each reward with twenty times itself.
    assert capsys.readouterr().out.endswith(f"returns: {21 * 28:,.1f}, {21 * 28:,.1f}\n")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"wrappers": [partial(TimeLimit, max_episode_steps=8)]}, r"wrappers: .*TimeLimit\(max_episode_steps=7\).*asked is .*steps=8\)"),
        ({"env": partial(counting, (9, 20), high=3.0)}, r"env: the run has .*high=2\.0\)', asked is .*high=3\.0\)'"),
        ({"env": partial(counting, (9, 21), high=2.0)}, r"env: the run has .*\(9, 20\), high.*, asked is .*\(9, 21\), high"),
        (
            {"env": lambda: counting((9, 20), 2.0)},
            rf"env is <{__name__}:<lambda>>, which has no name that leads to it alone: define it with",
        ),
        ({"wrappers": [Around()]}, rf"wrappers.0 is <an instance of {__name__}:Around>, which has no name"),
    ],
    ids=["wrapper's argument", "keyword", "argument", "lambda", "instance"],
)
def test_a_run_is_not_resumed_with_other_arguments_or_without_a_name(changed: dict[str, Any], message: str, finished: Path) -> None:
    with pytest.raises(RunError, match=message):
        train(finished, resume=True, **{**ARGUMENTS, **changed})


def test_a_run_goes_on_with_the_same_arguments_from_python_and_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments: dict[str, Any] = {"env": partial(counting, (5,)), "wrappers": [partial(TimeLimit, max_episode_steps=4)]}
    train(tmp_path, **arguments)
    assert train(tmp_path, **arguments, steps=14, resume=True).steps == 14
    assert cli.main(["train", "--resume", "--run-dir", str(tmp_path), "--steps", "16", "--no-progress"]) == 0
    assert "finished after 16 steps" in capsys.readouterr().out
    assert (
        cli.main(
            ["train", "--resume", "--run-dir", str(tmp_path), "--wrappers", "gymnasium.wrappers.common:TimeLimit(max_episode_steps=5)"]
        )
        == 2
    )
    assert "cannot be resumed with other settings" in capsys.readouterr().err


def make_lambdas() -> Any:
    return [lambda env: TimeLimit(env, 4), lambda env: TimeLimit(env, 5)]


def test_what_has_no_name_trains_and_is_refused_afterwards_by_what_it_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = make_lambdas()
    result = train(tmp_path, wrappers=[first])
    name = f"<{__name__}:make_lambdas.<locals>.<lambda>>"
    assert f"wrappers.0 is {name}, so that sacref eval, sacref video and --resume will not find it: it has no name" in caplog.text
    for again in (first, second):  # the two cannot be told apart
        with pytest.raises(RunError, match=r"cannot be resumed: wrappers\.0 is <.*<lambda>>, which has no name .*: define it with `def`"):
            train(tmp_path, wrappers=[again], resume=True)
    assert_acts_alike(result, sacref.load(tmp_path))
    for arguments in (["eval", str(tmp_path)], ["video", str(tmp_path)], ["train", "--resume", "--run-dir", str(tmp_path)]):
        assert cli.main(arguments) == 2
        assert f"got {name}, which has no name that leads to it alone: define it with `def`" in capsys.readouterr().err


def test_a_run_whose_arguments_were_never_written_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrapper = partial(TimeLimit, max_episode_steps=7)
    train(tmp_path, wrappers=[wrapper])
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "wrappers": ["functools:partial"]}))
    with pytest.raises(RunError, match=r"wrappers.0 is functools:partial, which was written without its arguments: train again"):
        train(tmp_path, wrappers=[wrapper], resume=True)
    assert cli.main(["eval", str(tmp_path)]) == 2
    assert "wrappers of the run: got functools:partial, which was written without its arguments" in capsys.readouterr().err


# What is defined in the script.


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """`__main__`, with an environment, a wrapper and a preprocessor that were defined there."""
    main = sys.modules["__main__"]
    for name, base in {"Task": CountingEnv, "Around": gymnasium.Wrapper, "Shaped": Scaler}.items():
        monkeypatch.setattr(main, name, type(name, (base,), {"__module__": "__main__"}), raising=False)
    yield main


def test_what_the_script_defines_is_said_to_be_lost_when_the_run_begins_and_when_it_fails(
    script: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = {"observation_preprocessor": script.Shaped}
    given = {"env": partial(script.Task, (4,)), "wrappers": [script.Around]}
    train(tmp_path, cfg, **given)
    for option, name in {"env": "Task((4,))", "wrappers.0": "Around", "cfg.observation_preprocessor": "Shaped"}.items():
        said = f"{option} is __main__:{name}, so that sacref eval, sacref video and --resume will not find it: it is of the script"
        assert said in caplog.text
    assert train(tmp_path, cfg, **given, steps=14, resume=True).steps == 14, "the script itself resumes it"
    for name in ("Task", "Around", "Shaped"):
        monkeypatch.delattr(script, name)
    for arguments, where in {"eval": "observation_preprocessor", "train": "observation_preprocessor"}.items():
        flags = ["eval", str(tmp_path), "--import-callables"] if arguments == "eval" else ["train", "--resume", "--run-dir", str(tmp_path)]
        assert cli.main(flags) == 2
        assert f"{where} is '__main__:Shaped', expected" in capsys.readouterr().err
    config = json.loads((tmp_path / "config.json").read_text())
    for changed, said in (
        (
            {},
            "wrappers of the run: got __main__:Around, which is of the script that was run (__main__), and found in",
        ),
        ({"wrappers": []}, "env of the run: got __main__:Task((4,)), which is of the script that was run (__main__)"),
        ({"wrappers": [], "env": "__main__:Task"}, "env of the run: got __main__:Task, which is of the script that was run (__main__)"),
    ):
        monkeypatch.setattr("sacref.training.load.load", lambda *given, **named: None)
        (tmp_path / "config.json").write_text(json.dumps({**config, **changed}))
        assert cli.main(["eval", str(tmp_path)]) == 2
        assert said in capsys.readouterr().err


# Methods of the user's for the state of an environment.


class Stateful(CountingEnv):
    def get_state(self) -> dict[str, Any]:
        return {"episode": self.episode, "step": self.step_number}

    def set_state(self, state: dict[str, Any]) -> None:
        self.episode, self.step_number = state["episode"], state["step"]


class ForAgent(Stateful):
    def get_state(self, agent: Any = ...) -> dict[str, Any]:  # as some libraries of several agents have it
        if agent is ...:
            raise TypeError("get_state() missing 1 required positional argument: 'agent'")
        return {}


class OtherState(Stateful):
    def set_state(self, state: Any) -> None:
        self.episode, self.step_number = map(int, state)


class OnceOnly(Stateful):
    """Its state can be had after a reset, and at no other time."""

    def get_state(self) -> dict[str, Any]:
        if self.step_number:
            raise RuntimeError("in the midst of an episode")
        return super().get_state()


@pytest.mark.parametrize(
    ("env", "said"),
    [
        (ForAgent, "get_state of {}:ForAgent raised TypeError"),
        (OtherState, "set_state of {}:OtherState raised ValueError"),
        (OnceOnly, ""),
    ],
)
def test_methods_that_cannot_be_used_are_said_when_the_run_begins_and_cost_an_episode(
    env: Any, said: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train(tmp_path, env=env, env_kwargs={"lengths": (50,)})
    if said:
        assert f"a resumed run would begin its episodes anew: {said.format(__name__)}" in caplog.text
    caplog.clear()
    assert train(tmp_path, env=env, env_kwargs={"lengths": (50,)}, steps=14, resume=True).steps == 14
    assert "the episodes begin anew" in caplog.text


def test_methods_that_can_be_used_continue_the_episode(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    train(tmp_path, env=Stateful, env_kwargs={"lengths": (50,)})
    resumed: Any = train(tmp_path, env=Stateful, env_kwargs={"lengths": (50,)}, steps=14, resume=True)
    assert "anew" not in caplog.text
    steps = resumed.agent.memory.arrays()["observations"][:, 1]
    assert sorted(steps.tolist()) == list(range(14))
