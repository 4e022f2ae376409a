"""Flags become configurations, mistakes become one message, and a small run goes from `sacref train` to its plot."""

import dataclasses
import inspect
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable
from importlib.abc import MetaPathFinder
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import gymnasium
import pytest
from gymnasium.envs.classic_control import PendulumEnv
from PIL import Image

import sacref
import sacref.__main__ as program
from sacref import envs
from sacref.cli import commands, flags, launch
from sacref.cli import main as cli
from sacref.config import ExperimentConfig, SACConfig, paper_config, presets
from sacref.config.train_config import OTHER_NAMES, TrainConfig, Vectorization
from sacref.preprocessing import RunningStandardScaler
from sacref.spec.schedules import KLAdaptive, warm_up
from sacref.training import experiment, known_returns, plan, population, video
from sacref.training.callbacks import StopAtReturn
from sacref.training.evaluation import Evaluation, evaluate
from sacref.training.experiment import train as sacref_train
from sacref.training.run_directory import RunError
from tests.envs.painted import PaintedEnv


def parse_train(*arguments: str) -> flags.Train:
    command = flags.parse(["train", *arguments])
    assert isinstance(command, flags.Train)
    return command


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """In the place of `sacref.train`; holds the arguments of the call, and the result that it gives."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "curve.png").touch()
    calls: dict[str, Any] = {
        "result": SimpleNamespace(
            run_dir=tmp_path / "run",
            evaluations=((40, Evaluation((1.0, 3.0), (5, 5))),),
            steps=50,
            steps_per_second=123.4,
            interrupted=False,
            stopped_by=None,
            config={"env": "Unknown-v0"},
        )
    }

    def train(**arguments: Any) -> Any:
        calls["arguments"] = arguments
        return calls["result"]

    monkeypatch.setattr(experiment, "train", train)
    return calls


def unboxed(text: str) -> str:
    """What tyro prints, without the frame and the line breaks."""
    return " ".join(text.replace("│", " ").split())


class Preprocessor:
    """The protocol's methods, no more."""

    def __init__(self, space: Any, clip: float = 10.0) -> None: ...
    def update(self, rows: Any) -> None: ...
    def arrays(self) -> Any: ...
    def set_arrays(self, arrays: Any) -> None: ...
    def transform(self, arrays: Any, values: Any) -> Any: ...


FLAGS: list[tuple[str, list[str], Any]] = [
    ("gradient_steps", ["--gradient-steps", "4"], 4),
    ("update_to_data", ["--update-to-data", "0.5"], 0.5),
    ("chunk", ["--chunk", "64"], 64),
    ("overlap", ["--overlap"], True),
    ("execution", ["--execution", "plain"], "plain"),
    ("batch_size", ["--batch-size", "32"], 32),
    ("discount_factor", ["--discount-factor", "0.9"], 0.9),
    ("n_step", ["--n-step", "3"], 3),
    ("polyak", ["--polyak", "0.01"], 0.01),
    ("target_subset", ["--target-subset", "2"], 2),
    ("target_subset", ["--target-subset", "None"], None),
    ("policy_value", ["--policy-value", "mean"], "mean"),
    ("policy_delay", ["--policy-delay", "2"], 2),
    ("sequence_length", ["--sequence-length", "16"], 16),
    ("burn_in", ["--burn-in", "8"], 8),
    ("stored_carry", ["--no-stored-carry"], False),
    ("learning_rate", ["--learning-rate", "1e-4"], 1e-4),
    ("learning_rate", ["--learning-rate", "1e-4", "2e-4", "3e-4"], (1e-4, 2e-4, 3e-4)),
    ("learning_rate_scheduler", ["--learning-rate-scheduler", "warm_up"], warm_up),
    ("learning_rate_scheduler", ["--learning-rate-scheduler", "None"], None),
    ("learning_rate_scheduler", ["--learning-rate-scheduler", "math:hypot"], math.hypot),
    ("learning_rate_scheduler", ["--learning-rate-scheduler", '["kl_adaptive", null, "math:hypot"]'], (KLAdaptive, None, math.hypot)),
    ("learning_rate_scheduler_kwargs", ["--learning-rate-scheduler-kwargs", '{"steps": 5}'], {"steps": 5}),
    ("learning_rate_scheduler_kwargs", ["--learning-rate-scheduler-kwargs", '[{"steps": 5}, {}, {}]'], ({"steps": 5}, {}, {})),
    ("observation_preprocessor", ["--observation-preprocessor", f"{__name__}:Preprocessor"], Preprocessor),
    ("observation_preprocessor", ["--observation-preprocessor", "None"], None),
    ("observation_preprocessor_kwargs", ["--observation-preprocessor-kwargs", '{"clip": 5.0}'], {"clip": 5.0}),
    ("state_preprocessor", ["--state-preprocessor", f"{__name__}:Preprocessor"], Preprocessor),
    ("state_preprocessor_kwargs", ["--state-preprocessor-kwargs", '{"clip": 5.0}'], {"clip": 5.0}),
    ("random_timesteps", ["--random-timesteps", "7"], 7),
    ("learning_starts", ["--learning-starts", "8"], 8),
    ("grad_norm_clip", ["--grad-norm-clip", "0.5"], 0.5),
    ("learn_entropy", ["--no-learn-entropy"], False),
    ("initial_entropy_value", ["--initial-entropy-value", "0.7"], 0.7),
    ("target_entropy", ["--target-entropy", "-3"], -3.0),
    ("target_entropy", ["--target-entropy", "None"], None),
    ("target_entropy_per_dimension", ["--target-entropy-per-dimension", "-0.5"], -0.5),
    ("reward_scale", ["--reward-scale", "0.1"], 0.1),
    ("rewards_shaper", ["--rewards-shaper", "math:hypot"], math.hypot),
    ("rewards_shaper", ["--rewards-shaper", "None"], None),
    ("mixed_precision", ["--mixed-precision"], True),
    ("precision", ["--precision", "float16"], "float16"),
    ("seed", ["--seed", "11"], 11),
    ("experiment.directory", ["--experiment.directory", "folder"], "folder"),
    ("experiment.experiment_name", ["--experiment.experiment-name", "name"], "name"),
    ("experiment.write_interval", ["--experiment.write-interval", "50"], 50),
    ("experiment.write_interval", ["--experiment.write-interval", "auto"], "auto"),
    ("experiment.checkpoint_interval", ["--experiment.checkpoint-interval", "0"], 0),
    ("experiment.store_separately", ["--experiment.store-separately"], True),
]


@pytest.mark.parametrize(("path", "arguments", "expected"), FLAGS, ids=lambda value: " ".join(value) if isinstance(value, list) else "")
def test_a_flag_sets_its_field_and_no_other(path: str, arguments: list[str], expected: Any) -> None:
    changed = paper_config()
    owner, name = (changed.experiment, path.removeprefix("experiment.")) if "." in path else (changed, path)
    setattr(owner, name, expected)
    assert parse_train(*arguments).cfg == changed


def test_every_field_has_a_flag_that_is_tested() -> None:
    tested = {path for path, _, _ in FLAGS}
    fields = {entry.name for entry in dataclasses.fields(SACConfig)} - {"experiment"}
    assert tested == fields | {f"experiment.{entry.name}" for entry in dataclasses.fields(ExperimentConfig)}


def test_help_names_every_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["train", "--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    names = {entry.name for entry in dataclasses.fields(SACConfig)} | set(inspect.signature(sacref_train).parameters)
    names = (names - {"experiment", "cfg"}) | {f"experiment.{entry.name}" for entry in dataclasses.fields(ExperimentConfig)}
    assert {f"--{name.replace('_', '-')}" for name in names | {"seeds"}} <= set(re.findall(r"--[\w.-]+", text))
    assert "each is the run of --seed, in RUN_DIR/seed=<seed>." in unboxed(text)
    assert "Transitions in the batch of one gradient step. (default: 256)" in unboxed(text)


def test_train_has_the_parameters_and_the_defaults_of_the_function(trained: dict[str, Any]) -> None:
    parameters = inspect.signature(sacref_train).parameters
    assert cli.main(["train"]) == 0
    arguments = trained["arguments"]
    assert set(arguments) == set(parameters)
    assert arguments.pop("cfg") == paper_config()
    # The function leaves those of the critics to the preset; a flag shows what that is.
    as_written: dict[str, Any] = {"env_kwargs": {}, "wrappers": [], "callbacks": [], **presets.find(None).critics}
    as_written["hidden"] = (256, 256)  # the network's
    assert arguments == {name: as_written.get(name, parameters[name].default) for name in arguments}


def test_train_passes_on_what_its_flags_say(trained: dict[str, Any], tmp_path: Path) -> None:
    arguments = "--backend jax --env Pendulum-v1 --steps 70 --seed 5 --num-envs 2 --hidden 8 9 --memory-capacity 60 --device cpu".split()
    arguments += ["--evaluation-interval", "35", "--evaluation-episodes", "3", "--vectorization", "async", "--overwrite", "--no-progress"]
    arguments += ["--keep-checkpoints", "4", "--evaluation-max-steps", "50"]
    arguments += "--network simba --critic-hidden 7 7".split()
    arguments += "--num-critics 3 --layer-norm --dropout 0.01 --recurrent lstm --recurrent-size 7 --feed-previous rewards".split()
    arguments += ["--callbacks", "sacref.training.callbacks:StopAtReturn", "--log", "csv", "wandb"]
    arguments += ["--run-dir", str(tmp_path), "--env-kwargs", '{"g": 9.0}', "--wrappers", "gymnasium.wrappers:ClipAction"]
    assert cli.main(["train", *arguments]) == 0
    passed = trained["arguments"]
    assert passed.pop("cfg").seed == 5
    assert passed == {
        "backend": "jax",
        "env": "Pendulum-v1",
        "steps": 70,
        "seed": 5,
        "run_dir": tmp_path,
        "num_envs": 2,
        "preset": None,
        "network": "simba",
        "hidden": (8, 9),
        "critic_hidden": (7, 7),
        "num_critics": 3,
        "layer_norm": True,
        "dropout": 0.01,
        "recurrent": "lstm",
        "recurrent_size": 7,
        "feed_previous": ("rewards",),
        "memory_capacity": 60,
        "evaluation_interval": 35,
        "evaluation_episodes": 3,
        "evaluation_max_steps": 50,
        "keep_checkpoints": 4,
        "device": "cpu",
        "vectorization": "async",
        "env_kwargs": {"g": 9.0},
        "wrappers": [gymnasium.wrappers.ClipAction],
        "callbacks": [StopAtReturn],
        "log": ("csv", "wandb"),
        "vector_env": None,
        "overwrite": True,
        "resume": False,
        "progress": False,
    }


def test_a_flag_beside_a_preset_changes_it_alone(trained: dict[str, Any]) -> None:
    assert cli.main(["train", "--preset", "sb3", "--batch-size", "8"]) == 0
    arguments = trained["arguments"]
    options = TrainConfig(**{name: arguments[name] for name in ("preset", "cfg")})
    assert options.checked().settings(1).to_dict() == {**presets.find("sb3").config().to_dict(), "batch_size": 8}


@pytest.mark.parametrize(("given", "meant"), [("--lr", "--learning-rate"), ("--n-envs=4", "--num-envs"), ("--total_timesteps", "--steps")])
def test_a_flag_with_the_name_that_others_give_it_is_told_its_own(given: str, meant: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", given, "1"]) == 2
    assert f"sacref train has no {given.partition('=')[0].replace('_', '-')}: here it is {meant}\n" in capsys.readouterr().err


def test_the_names_that_others_give_lead_to_ours() -> None:
    ours = {*TrainConfig.__dataclass_fields__, *SACConfig.__dataclass_fields__}
    assert set(OTHER_NAMES.values()) <= ours
    assert not ours & OTHER_NAMES.keys()


def test_a_module_is_found_in_the_working_directory(tmp_path: Path) -> None:
    """Without the folder at the head of Python's path, as the installed script runs."""
    (tmp_path / "beside.py").write_text("def env(): raise SystemExit('found')")
    code = "import sys; from sacref.cli.main import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-P", "-c", code, "train", "--backend", "torch", "--env", "beside:env", "--steps", "9", "--run-dir", "run"]
    pytest.importorskip("torch")
    root = str(Path(sacref.__file__).parents[1])
    finished = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "PYTHONPATH": root})
    assert finished.stderr.splitlines()[-1] == "found", finished.stderr


def test_an_error_is_told_with_its_notes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    error = ValueError("boom")
    error.add_note("raised by the callback a:Boom in on_evaluation")

    def fail(command: object) -> int:
        raise error

    monkeypatch.setattr(commands, "run", fail)
    assert cli.main(["presets"]) == 2
    assert capsys.readouterr().err.startswith("sacref: boom; raised by the callback a:Boom in on_evaluation\n(ValueError")


def test_simba_comes_with_its_widths_and_its_normaliser_unless_others_are_asked_for() -> None:
    usual = parse_train("--network", "simba")
    assert (usual.hidden, usual.critic_hidden, usual.cfg.observation_preprocessor) == ((128,), (512, 512), RunningStandardScaler)
    other = parse_train(*"--network simba --hidden 64 --observation-preprocessor None".split())
    assert (other.hidden, other.critic_hidden, other.cfg.observation_preprocessor) == ((64,), None, None)
    plain = parse_train("--critic-hidden", "512")
    assert (plain.hidden, plain.critic_hidden, plain.cfg.observation_preprocessor) == ((256, 256), (512,), None)


@pytest.mark.parametrize("way", get_args(Vectorization))
def test_environments_are_stepped_in_any_way_that_there_is(way: str) -> None:
    assert parse_train("--vectorization", way).vectorization == way


def test_an_environment_may_be_named_by_its_callable(trained: dict[str, Any]) -> None:
    assert cli.main(["train", "--env", "gymnasium.envs.classic_control:PendulumEnv"]) == 0
    named = trained["arguments"]["env"]
    assert named is PendulumEnv
    assert cli.main(["train", "--env", "gymnasium.envs:Pendulum-v1"]) == 0
    registered = trained["arguments"]["env"]
    assert registered == "gymnasium.envs:Pendulum-v1", "what Gymnasium reads as module:id stays a name"
    assert cli.main(["train", "--vector-env", 'gymnasium:make_vec(id="Pendulum-v1")']) == 0
    factory = trained["arguments"]["vector_env"]
    assert (factory.func, factory.keywords) == (gymnasium.make_vec, {"id": "Pendulum-v1"})


def test_eval_gives_the_tasks_own_rewards(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch")
    settings = {"batch_size": 4, "random_timesteps": 4, "learning_starts": 4}
    task: dict[str, Any] = {"env": "Pendulum-v1", "env_kwargs": {"max_episode_steps": 20}, "hidden": (4,), "cfg": settings}
    sacref_train(
        **task,
        backend="torch",
        steps=8,
        evaluation_episodes=1,
        run_dir=tmp_path,
        wrappers=[gymnasium.wrappers.NormalizeReward],
        progress=False,
    )
    assert cli.main(["eval", str(tmp_path), "--episodes", "1"]) == 0
    plain = envs.make("Pendulum-v1", 1, env_kwargs=task["env_kwargs"])
    wanted = evaluate(sacref.load(tmp_path), plain, episodes=1).mean
    assert f"returns: {wanted:,.1f}\n" in capsys.readouterr().out
    # A limit of its own, and those of a run whose configuration names one, and none.
    config = json.loads((tmp_path / "config.json").read_text())
    assert cli.main(["eval", str(tmp_path), "--episodes", "2", "--evaluation-max-steps", "5"]) == 0
    assert "2 episodes, 2 of them cut after 5 steps\n" in capsys.readouterr().out
    (tmp_path / "config.json").write_text(json.dumps({**config, "evaluation_max_steps": 7}))
    assert cli.main(["eval", str(tmp_path), "--episodes", "2"]) == 0
    assert "2 of them cut after 7 steps\n" in capsys.readouterr().out
    del config["evaluation_max_steps"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert cli.main(["eval", str(tmp_path), "--episodes", "2"]) == 0
    assert "2 episodes\n" in capsys.readouterr().out


def test_random_steps_follow_the_number_of_environments() -> None:
    """5,000 environment steps are 1,250 steps of four environments; a flag that is given stays."""
    cfg = parse_train("--num-envs", "4").cfg
    assert (cfg.random_timesteps, cfg.learning_starts) == (1250, 1250)
    cfg = parse_train("--num-envs", "4", "--learning-starts", "9").cfg
    assert (cfg.random_timesteps, cfg.learning_starts) == (1250, 9)


def test_ranks_are_started_by_the_launcher_with_the_same_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Any] = []

    def run(*given: Any, **named: Any) -> int:
        started.append((*given, named))
        return 7

    monkeypatch.setattr(launch, "run", run)
    arguments = ["train", "--ranks", "3", "--run-dir", "runs/x"]
    assert cli.main(arguments) == 7
    assert started == [(arguments, 3, {"run_dir": "runs/x"})]


def test_the_random_steps_are_those_of_all_ranks_together(monkeypatch: pytest.MonkeyPatch) -> None:
    command = parse_train("--ranks", "2", "--num-envs", "4")
    assert (command.ranks, command.cfg.random_timesteps, command.cfg.update_to_data) == (2, 625, 1.0)
    for name, value in {"RANK": "1", "WORLD_SIZE": "5", "MASTER_ADDR": "node0", "MASTER_PORT": "29500"}.items():
        monkeypatch.setenv(name, value)
    command = parse_train()
    assert (command.ranks, command.cfg.random_timesteps) == (5, 1000), "torchrun says how many there are"


def test_gradient_steps_that_are_given_take_the_place_of_the_ratio_that_is_not() -> None:
    paces = []
    for given in (["--gradient-steps", "8"], ["--gradient_steps=1"], [], ["--gradient-steps", "1", "--update-to-data", "0.5"]):
        cfg = parse_train("--num-envs", "4096", *given).cfg
        cfg.validate()
        paces.append((cfg.gradient_steps, cfg.update_to_data))
    assert paces == [(8, None), (1, None), (1, 1.0), (1, 0.5)]


def test_a_rank_that_cannot_begin_ends_its_process_at_once(
    trained: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "node0", "MASTER_PORT": "29500"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(plan, "prepare_process", lambda *arguments: None)

    def leave(status: int) -> None:
        raise SystemExit(status)

    monkeypatch.setattr("os._exit", leave)
    with pytest.raises(SystemExit) as left:
        cli.main(["train", "--ranks", "3"])
    assert left.value.code == 2
    assert "--ranks is 3, and 2 processes were started together (WORLD_SIZE): leave --ranks out" in capsys.readouterr().err

    def raising(error: Exception) -> Callable[..., None]:
        def train(**arguments: Any) -> None:
            raise error

        return train

    assert cli.main(["train"]) == 0
    assert capsys.readouterr().out == "", "rank 0 speaks for all"
    lost = RuntimeError("[../third_party/gloo/pair.cc:553] Connection closed by peer [127.0.0.1]:31924")
    monkeypatch.setattr(experiment, "train", raising(lost))
    with pytest.raises(SystemExit) as left:
        cli.main(["train"])
    assert left.value.code == launch.LOST_STATUS
    assert "another rank ended or did not answer in time" in capsys.readouterr().err
    monkeypatch.setenv(launch.STARTED_HERE, "1")
    with pytest.raises(SystemExit):
        cli.main(["train"])
    assert capsys.readouterr().err.endswith("Connection closed by peer [127.0.0.1]:31924)\n"), "the launcher does not know it"

    for other in (ConnectionRefusedError(111, "Connection refused"), RunError("run_dir runs/gloo already holds a run")):
        monkeypatch.setattr(experiment, "train", raising(other))
        with pytest.raises(SystemExit) as left:
            cli.main(["train"])
        assert left.value.code == 2, "an environment's connection is no rank's"
        assert str(other) in capsys.readouterr().err
    monkeypatch.setenv("RANK", "2")
    with pytest.raises(SystemExit) as left:
        cli.main(["train"])
    assert left.value.code == 2
    assert "RANK is '2', expected an integer from 0 to 1" in capsys.readouterr().err


def test_the_experiments_own_fields_name_the_run_directory(trained: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "--experiment.directory", "folder", "--experiment.experiment-name", "name"]) == 0
    assert trained["arguments"]["run_dir"] == Path("folder/name")
    assert cli.main(["train", "--experiment.experiment-name", "name"]) == 0
    assert trained["arguments"]["run_dir"] == Path("runs/name")
    assert cli.main(["train", "--experiment.directory", "folder"]) == 0
    assert trained["arguments"]["run_dir"].parent == Path("folder")
    assert cli.main(["train", "--experiment.directory", "folder", "--run-dir", "other"]) == 2
    assert "leave out one or the other" in capsys.readouterr().err


def test_resume_takes_the_settings_of_the_run(tmp_path: Path) -> None:
    stored = {
        "backend": "jax",
        "env": "Pendulum-v1",
        "env_kwargs": {"g": 9.0},
        "wrappers": ["gymnasium.wrappers:ClipAction"],
        "steps": 70,
        "seed": 5,
        "num_envs": 2,
        "ranks": 3,
        "hidden": [8, 9],
        "models": {
            "num_critics": 3,
            "layer_norm": True,
            "dropout": 0.5,
            "recurrent": "gru",
            "recurrent_size": 7,
            "feed_previous": ["rewards"],
        },
        "memory_capacity": 60,
        "evaluation_interval": 35,
        "evaluation_episodes": 3,
        "evaluation_max_steps": 50,
        "keep_checkpoints": 4,
        "device": "cpu",
        "vectorization": "sync",
        "cfg": SACConfig(batch_size=17, seed=5, experiment=ExperimentConfig(directory="elsewhere", experiment_name="x")).to_dict(),
    }
    (tmp_path / "config.json").write_text(json.dumps(stored))
    command = parse_train("--resume", "--run-dir", str(tmp_path), "--steps", "90")
    models: Any = stored.pop("models")
    expected = {
        **stored,
        **models,
        "feed_previous": ("rewards",),
        "hidden": (8, 9),
        "wrappers": ("gymnasium.wrappers:ClipAction",),
        "steps": 90,
        "resume": True,
        "run_dir": tmp_path,
    }
    assert {name: getattr(command, name) for name in expected if name not in ("cfg", "seed")} == {
        name: value for name, value in expected.items() if name not in ("cfg", "seed")
    }
    assert command.cfg == SACConfig(batch_size=17, seed=5)
    assert command.directory() == tmp_path
    (tmp_path / "seed=5").mkdir()
    (tmp_path / "config.json").rename(tmp_path / "seed=5" / "config.json")
    stored_alone = json.loads((tmp_path / "seed=5" / "config.json").read_text())
    (tmp_path / "seed=5" / "config.json").write_text(json.dumps({**stored_alone, "ranks": 1}))
    command = parse_train("--resume", "--seeds", "5:7", "--run-dir", str(tmp_path))
    assert command.cfg == SACConfig(batch_size=17), "several seeds go on with the settings of the first one, but for its seed"
    added = parse_train("--resume", "--seeds", "4:7", "--run-dir", str(tmp_path))
    assert added.cfg == SACConfig(batch_size=17), "of the first one that there is"
    assert (command.backend, command.hidden, command.ranks, command.directory()) == ("jax", (8, 9), 1, tmp_path)


def test_resume_without_a_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "--resume"]) == 2
    assert "--resume is given without --run-dir" in capsys.readouterr().err
    assert cli.main(["train", "--resume", "--run-dir", str(tmp_path)]) == 2
    assert "holds no run" in capsys.readouterr().err
    (tmp_path / "config.json").write_text("{}")
    assert cli.main(["train", "--resume", "--run-dir", str(tmp_path)]) == 2
    assert "is damaged (KeyError: 'cfg')" in capsys.readouterr().err


def test_train_says_what_it_wrote(trained: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "finished after 50 steps of HalfCheetah-v5 on torch (123 steps/s, evaluations left out)",
        "nothing was learned: gradient steps begin after timestep 5,000, and the run has 50; give more --steps, or lower --learning-starts"
        " and --random-timesteps",
        "evaluation at step 40: mean return 2.0, standard deviation 1.0, 2 episodes",
        f"written to {tmp_path / 'run'}: curve.png",
    ]


def test_train_that_learned_says_what_its_return_means_and_what_to_do_next(
    trained: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert cli.main(["train", "--learning-starts", "49"]) == 0
    assert capsys.readouterr().out.splitlines()[2:] == [
        "compare: sacref knows no published return of Unknown-v0 with these settings after 40 steps",
        f"written to {run}: curve.png",
        f"next: look at {run / 'curve.png'}; beside another seed: sacref plot {run} OTHER_RUN --output curves.png",
        f"      more episodes: sacref eval {run}",
        f"      in Python: agent = sacref.load('{run}')",
        f"      longer: sacref train --resume --run-dir {run} --steps 100",
    ]


def test_train_that_had_nothing_left_to_do_says_so(trained: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    trained["result"].steps_per_second = math.nan
    trained["result"].evaluations = ((50, Evaluation((2.5,), (5,))),)
    assert cli.main(["train"]) == 0
    assert capsys.readouterr().out.splitlines()[:3] == [
        "finished after 50 steps of HalfCheetah-v5 on torch",
        "nothing was left to train: to go on, give more --steps",
        "evaluation at step 50: return 2.5, 1 episode",
    ]


@pytest.mark.parametrize(
    ("flags", "silent"),
    [("--learning-starts 49", True), ("--learning-starts 50", False), ("--gradient-steps 0", True), ("--num-envs 2", False)],
)
def test_train_says_where_no_gradient_step_was_reached(
    flags: str, silent: bool, trained: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["train", *flags.split()]) == 0
    assert ("nothing was learned" not in capsys.readouterr().out) is silent
    trained["result"].interrupted = True
    assert cli.main(["train", *flags.split()]) == 130
    assert "nothing was learned" not in capsys.readouterr().out, "who presses Ctrl-C knows that the run is unfinished"


@pytest.fixture
def trained_together(trained: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """In the place of `sacref.train_population`, whose members give what `trained` says."""

    def train_population(**arguments: Any) -> Any:
        trained["arguments"] = arguments
        other = SimpleNamespace(**{**vars(trained["result"]), "evaluations": ((40, Evaluation((5.0, 7.0), (5, 5))),)})
        return SimpleNamespace(run_dir=tmp_path / "runs", members={"seed=0": trained["result"], "seed=1": other})

    monkeypatch.setattr(population, "train_population", train_population)
    return trained


def test_several_seeds_are_one_call_with_the_arguments_of_each(
    trained_together: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["train", "--seeds", "0:2", "--batch-size", "7", "--run-dir", "x"]) == 0
    arguments = trained_together["arguments"]
    assert set(arguments) == (set(inspect.signature(sacref_train).parameters) - {"seed"}) | {"seeds"}
    assert (arguments["seeds"], arguments["cfg"].batch_size, arguments["run_dir"]) == ([0, 1], 7, Path("x"))
    assert capsys.readouterr().out.splitlines()[:-1] == [
        "finished after 50 steps each of 2 x HalfCheetah-v5 on torch (247 steps/s together, evaluations left out)",
        "nothing was learned: gradient steps begin after timestep 5,000, and the run has 50; give more --steps, or lower --learning-starts"
        " and --random-timesteps",
        "seed=0: evaluation at step 40: mean return 2.0, standard deviation 1.0, 2 episodes",
        "seed=1: evaluation at step 40: mean return 6.0, standard deviation 1.0, 2 episodes",
        # Student's t for two values: 12.706 standard errors, of 2.
        "over 2 seeds: mean 4.0, 95% interval of the mean [-21.4, 29.4]",
    ]
    # A callback has ended one of them: no mean over runs of other lengths, and none beside those that are known.
    trained_together["result"].stopped_by, trained_together["result"].steps = "a:Callback", 45
    trained_together["result"].evaluations = ((30, Evaluation((1.0,), (5,))),)
    assert cli.main(["train", "--seeds", "0:2", "--learning-starts", "44"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("finished after 45 steps each of 2")
    assert said[1].endswith("1 episode (stopped by a:Callback)")
    assert said[3] == "no mean over the seeds: their last evaluations are after other steps"
    assert not any(line.startswith(("compare", "over")) for line in said)
    trained_together["result"].stopped_by, trained_together["result"].steps = None, 50
    trained_together["result"].evaluations = ((40, Evaluation((1.0, 3.0), (5, 5))),)
    assert cli.main(["train", "--seeds", "0:2", "--learning-starts", "49"]) == 0
    assert capsys.readouterr().out.splitlines()[-2].startswith("compare: sacref knows no published return of Unknown-v0")
    given: list[Any] = []

    def meaning(*arguments: Any) -> list[str]:
        given.append(arguments)
        return []

    monkeypatch.setattr(known_returns, "meaning", meaning)
    assert cli.main(["train", "--seeds", "0:2", "--learning-starts", "49"]) == 0
    assert given == [({"env": "Unknown-v0"}, 50, 4.0, 2)], "the mean of two runs"


def test_ctrl_c_on_several_seeds_says_how_to_go_on(
    trained_together: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained_together["result"].interrupted = True
    assert cli.main(["train", "--seeds", "0:2"]) == 130
    assert capsys.readouterr().out.splitlines()[-1] == f"to go on: sacref train --resume --seeds 0:2 --run-dir {tmp_path / 'runs'}"


def test_ranks_and_seeds_are_one_or_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "4", "MASTER_ADDR": "node0", "MASTER_PORT": "29500"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=r"--seeds is 0:2, and there are 4 ranks: a population has one process, leave out the ranks"):
        commands.run(parse_train("--seeds", "0:2"))


def test_ctrl_c_is_status_130_and_says_what_was_written(
    trained: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained["result"].interrupted = True
    assert cli.main(["train"]) == 130
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].startswith("interrupted after 50 steps")
    assert shown[-2:] == [f"written to {tmp_path / 'run'}: curve.png", f"to go on: sacref train --resume --run-dir {tmp_path / 'run'}"]

    def interrupted(**arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(experiment, "train", interrupted)
    assert cli.main(["train"]) == 130
    assert "interrupted at once" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--batch-size", "0"], "SACConfig.batch_size is 0, expected an integer >= 1"),
        (["train", "--polyak", "1.5"], "SACConfig.polyak is 1.5, expected a number from 0 to 1"),
        (
            ["train", "--learning-rate-scheduler", "linaer"],
            "SACConfig.learning_rate_scheduler is 'linaer', expected one of constant, linear",
        ),
        (["train", "--learning-rate-scheduler", '["linear"]'], "in the order (policy, critic, entropy); 1 came"),
        (["train", "--learning-rate-scheduler", "linear"], "argument: 'steps'; expected steps, end=0.0"),
        (["train", "--learning-rate-scheduler-kwargs", '{"steps": 5}'], "learning_rate_scheduler None: set one, or leave"),
        (["train", "--state-preprocessor", "math:hypot"], "expected a class with the methods update, arrays, set_arrays, transform"),
        (["train", "--wrappers", "ClipAction"], "--wrappers: got ClipAction, expected module:name"),
        (["train", "--wrappers", "gymnasium.wrappers:Clip"], "--wrappers: got gymnasium.wrappers:Clip, expected module:name of something"),
        (["train", "--env", "HalfCheetah-v99"], "HalfCheetah-v99"),
        (["train", "--env", "CartPole-v1"], "action_space is"),
        (["train", "--steps", "0"], "steps is 0, expected an integer of at least 1"),
        (["train", "--seeds", "x"], "seeds are 'x', expected non-negative integers as 0:10 or 0,3,5, none of them twice"),
        (["train", "--seeds", "3:1"], "seeds are '3:1', expected non-negative integers as 0:10"),
        (["train", "--seeds", "0:2", "--seed", "5"], "--seeds is 0:2, and --seed is 5 too: leave out one or the other"),
        (["train", "--seeds", "0:2", "--resume", "--run-dir", "absent"], "absent/seed=0 holds no run"),
        (["train", "--ranks", "0"], "--ranks is 0, expected an integer of at least 1"),
        (["train", "--num-envs", "0"], "num_envs is 0, expected an integer >= 1"),
        (["train", "--overwrite", "--resume", "--run-dir", "absent"], "holds no run"),
        (["eval", "absent"], "absent holds no run"),
        (["video", "absent"], "absent holds no run"),
        (["plot", "absent", "--output", "curve.png"], "absent is no directory"),
        (["plot", "--output", "curve.png"], "no run directory: name at least one"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_done_is_one_message_and_status_2(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert error.splitlines()[-1].endswith("SACREF_TRACEBACK=1 shows where)")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--backend", "tensorflow"], "invalid choice 'tensorflow'"),
        (["train", "--btch-size", "3"], "--batch-size"),
        (["train", "--batch-size", "many"], "--batch-size"),
        (["train", "--learning-rate", "1e-4", "2e-4"], "--learning-rate"),
        (["train", "--rewards-shaper", "clip"], "Error parsing --rewards-shaper: got clip, expected module:name"),
        (
            ["train", "--rewards-shaper", "sacref.config:nothing"],
            "got sacref.config:nothing, expected module:name of something that can be",
        ),
        (["train", "--env-kwargs", "3"], "expected a JSON object"),
        (["train", "--learning-rate-scheduler-kwargs", "3"], "expected a JSON object"),
        (["train", "--learning-rate-scheduler-kwargs", "[1, 2, 3]"], "expected a JSON object"),
        (["train", "--learning-rate-scheduler", "["], "--learning-rate-scheduler"),
        (["train", "--experiment.write-interval", "often"], "--experiment.write-interval"),
        (["trian"], "train"),
        ([], "train"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_flag_that_cannot_be_read_is_named(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    assert stopped.value.code == 2
    assert message in unboxed(capsys.readouterr().err)


def test_a_traceback_is_shown_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SACREF_TRACEBACK", "1")
    with pytest.raises(ValueError, match="batch_size is 0"):
        cli.main(["train", "--batch-size", "0"])


def test_version_and_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"sacref {sacref.__version__}\n"
    status = cli.main(["doctor", "--json"])
    report = json.loads(capsys.readouterr().out)
    assert report["sacref"] == sacref.__version__
    assert status == (0 if report["healthy"] else 1)
    assert cli.main(["doctor"]) == status
    assert "HalfCheetah-v5 steps" in capsys.readouterr().out


def test_the_module_is_the_program_and_its_help_loads_no_backend() -> None:
    code = (
        "import runpy, sys; sys.argv = ['sacref', '--help']\n"
        "try: runpy.run_module('sacref', run_name='__main__')\n"
        "except SystemExit as stopped: status = stopped.code\n"
        "loaded = {'torch', 'jax', 'flax', 'gymnasium', 'matplotlib', 'scipy', 'tensorboard'} & set(sys.modules)\n"
        "print(status, sorted(loaded))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(sacref.__file__).parents[1])
    assert "subcommands" in ended.stdout
    assert ended.stdout.splitlines()[-1] == "0 []"


def test_ctrl_c_while_the_program_is_loaded_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    class Interrupted(MetaPathFinder):
        def find_spec(self, fullname: str, path: Any, target: Any = None) -> None:
            if fullname == "sacref.cli.main":
                raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, "sacref.cli.main")
    monkeypatch.delattr(sacref, "cli")
    monkeypatch.setattr(sys, "meta_path", [Interrupted(), *sys.meta_path])
    assert program.main() == 130
    assert capsys.readouterr().err == "sacref: interrupted before it began\n"


@pytest.mark.parametrize(("dtype", "agree", "status"), [("float64", True, 0), ("float64", False, 1), ("float32", False, 0)])
def test_parity_fails_where_float64_does_not_agree(
    dtype: str, agree: bool, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    passed: dict[str, Any] = {}

    def run(**arguments: Any) -> Any:
        passed.update(arguments)
        arguments["on_update"]()
        return SimpleNamespace(table=lambda: "the table", within=lambda tolerance: agree and tolerance == 1e-9)

    monkeypatch.setattr("sacref.parity.run", run)
    arguments = ["--updates", "3", "--dtype", dtype, "--seed", "2", "--json", "record.json", "--backends", "torch"]
    assert cli.main(["parity", *arguments]) == status
    passed.pop("on_update")
    assert passed == {"updates": 3, "dtype": dtype, "seed": 2, "json": Path("record.json"), "backends": ("torch",)}
    shown = capsys.readouterr()
    assert shown.out.splitlines() == ["the table", "written to record.json and record.png"]
    assert ("do not agree to 1e-09" in shown.err) is (status == 1)


def test_parity_of_two_updates(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    backend = "torch" if find_spec("torch") else "jax"
    assert cli.main(["parity", "--updates", "2", "--backends", backend, "--json", str(tmp_path / "record.json")]) == 0
    assert "2 updates in float64" in capsys.readouterr().out
    assert json.loads((tmp_path / "record.json").read_text())["configuration"]["updates"] == 2
    assert cli.main(["parity", "--updates", "0"]) == 2
    assert "updates is 0, expected at least 1" in capsys.readouterr().err


def test_a_small_run_from_training_to_its_plot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    backend = "torch" if find_spec("torch") else "jax"
    run = tmp_path / "run"
    arguments = ["train", "--backend", backend, "--env", "Pendulum-v1", "--run-dir", str(run), "--no-progress", "--seed", "3"]
    arguments += "--steps 24 --hidden 8 --batch-size 4 --random-timesteps 8 --learning-starts 8 --evaluation-episodes 2".split()
    assert cli.main(arguments) == 0
    assert capsys.readouterr().out.startswith(f"finished after 24 steps of Pendulum-v1 on {backend}")
    config = json.loads((run / "config.json").read_text())
    assert (config["seed"], config["hidden"], config["cfg"]["batch_size"]) == (3, [8], 4)
    evaluations = json.loads((run / "evaluation.json").read_text())
    assert evaluations[-1]["step"] == 24

    assert cli.main(arguments) == 2
    assert "already holds a run" in capsys.readouterr().err

    assert cli.main(["train", "--resume", "--run-dir", str(run), "--steps", "26", "--no-progress"]) == 0
    assert capsys.readouterr().out.startswith(f"finished after 26 steps of Pendulum-v1 on {backend}")

    assert cli.main(["eval", str(run), "--episodes", "2", "--seed", "4"]) == 0
    first = capsys.readouterr().out
    assert first.startswith(f"Pendulum-v1 on {backend}: mean return -")
    assert len(first.splitlines()[1].removeprefix("returns: ").split(", ")) == 2
    assert cli.main(["eval", str(run), "--episodes", "2", "--seed", "4"]) == 0
    assert capsys.readouterr().out == first, "an evaluation is deterministic"
    assert cli.main(["eval", str(run), "--episodes", "0"]) == 2
    assert "episodes is 0" in capsys.readouterr().err

    assert cli.main(["video", str(run), "--output", str(tmp_path / "video.avi")]) == 2
    assert f"output is {tmp_path / 'video.avi'}, expected a name that ends in .gif or .mp4" in capsys.readouterr().err

    assert cli.main(["plot", str(run), "--output", str(tmp_path / "plot.png")]) == 0
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_a_video_shows_the_episodes_that_an_evaluation_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(video, "prepare_gl", lambda: None)
    backend, run, env = "torch" if find_spec("torch") else "jax", tmp_path / "run", f"{PaintedEnv.__module__}:PaintedEnv"
    arguments = ["train", "--backend", backend, "--env", env, "--run-dir", str(run), "--no-progress", "--env-kwargs", '{"length": 30}']
    arguments += "--steps 24 --hidden 8 --batch-size 4 --random-timesteps 8 --learning-starts 8 --evaluation-episodes 1".split()
    assert cli.main(arguments) == 0
    returns = []
    for seed in (4, 5):
        capsys.readouterr()
        assert cli.main(["eval", str(run), "--episodes", "1", "--seed", str(seed)]) == 0
        returns.append(capsys.readouterr().out.splitlines()[1].removeprefix("returns: "))
    assert len(set(returns)) == 2

    assert cli.main(["video", str(run), "--episodes", "2", "--seed", "4", "--fps", "20", "--width", "16", "--height", "12"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        *(f"{env} on {backend}, seed {seed}: return {value} in 30 steps" for seed, value in zip((4, 5), returns, strict=True)),
        f"written to {run / 'video.gif'}: 14 frames of 16 x 12, 20 a second",
    ]
    with Image.open(run / "video.gif") as picture:
        assert (picture.size, getattr(picture, "n_frames", 1)) == ((16, 12), 14)

    output = tmp_path / "short.gif"
    assert cli.main(["video", str(run), "--checkpoint", "best", "--seconds", "0.1", "--output", str(output)]) == 0
    assert capsys.readouterr().out.splitlines()[1] == f"written to {output}: 2 frames of 8 x 6, 25 a second"
    assert cli.main(["video", str(run), "--checkpoint", "worst"]) == 2
    assert "checkpoint 'worst' is neither in" in capsys.readouterr().err


def test_the_flags_of_video() -> None:
    given = "--output a.mp4 --episodes 3 --seed 9 --checkpoint best --fps 12.5 --seconds 4 --width 320 --height 240 --device cpu"
    assert flags.parse(["video", "run", *given.split()]) == flags.Video(
        run_dir=Path("run"),
        output=Path("a.mp4"),
        episodes=3,
        seed=9,
        checkpoint="best",
        fps=12.5,
        seconds=4.0,
        width=320,
        height=240,
        device="cpu",
    )
    assert flags.parse(["video", "run"]) == flags.Video(run_dir=Path("run"))
