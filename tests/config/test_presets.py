"""Published settings by name: against the values of their sources, through the command line, training and resuming."""

import json
from pathlib import Path
from typing import Any, Literal

import pytest

import sacref
from sacref.cli import commands
from sacref.cli import main as cli
from sacref.cli.flags import Train, parse
from sacref.config import presets
from sacref.training.run_directory import RunError, read_config
from tests.backends import without_shape_checks

# As the files of each source have them, for one environment whose actions have six dimensions.
SOURCES: dict[str, dict[str, Any]] = {
    "paper": {"learning_rates": (3e-4, 3e-4, 3e-4), "batch_size": 256, "random_timesteps": 5_000, "target": -6.0},
    "sb3": {"learning_rates": (3e-4, 3e-4, 3e-4), "batch_size": 256, "random_timesteps": 100, "target": -6.0},
    "cleanrl": {"learning_rates": (3e-4, 1e-3, 1e-3), "batch_size": 256, "random_timesteps": 5_000, "target": -6.0},
    "jaxrl": {"learning_rates": (3e-4, 3e-4, 3e-4), "batch_size": 256, "random_timesteps": 10_000, "target": -3.0},
    "tianshou": {"learning_rates": (1e-3, 1e-3, 1e-3), "batch_size": 256, "random_timesteps": 10_000, "fixed": 0.2},
    "spinningup": {"learning_rates": (1e-3, 1e-3, 1e-3), "batch_size": 100, "random_timesteps": 10_000, "fixed": 0.2},
    "crossq-baseline": {"learning_rates": (1e-3, 1e-3, 1e-3), "batch_size": 256, "random_timesteps": 5_000, "target": -6.0},
    "redq": {"learning_rates": (3e-4, 3e-4, 3e-4), "batch_size": 256, "random_timesteps": 5_000, "target": -3.0},
    "droq": {"learning_rates": (3e-4, 3e-4, 3e-4), "batch_size": 256, "random_timesteps": 5_000, "target": -3.0},
}
PLAIN: dict[str, Any] = {"gradient_steps_per_timestep": 1, "policy_delay": 1, "target_subset": None, "policy_value": "min", "chunk": 1}
OTHERS: dict[str, dict[str, Any]] = {
    "spinningup": {"chunk": 50},
    "redq": {"gradient_steps_per_timestep": 20, "policy_delay": 20, "target_subset": 2, "policy_value": "mean"},
    "droq": {"gradient_steps_per_timestep": 20, "policy_delay": 20, "policy_value": "mean"},
}
CRITICS: dict[str, dict[str, Any]] = {"redq": {"num_critics": 10}, "droq": {"layer_norm": True, "dropout": 0.01}}
SHORT: dict[str, Any] = {"random_timesteps": 10, "learning_starts": 10, "chunk": 1, "execution": "plain"}


def run(directory: Path, name: str | None, backend: Literal["torch", "jax"] = "torch", **arguments: Any) -> dict[str, Any]:
    """Train for a few steps; returns what config.json holds."""
    given: dict[str, Any] = {"hidden": (8,), "cfg": SHORT, "evaluation_episodes": 1, "progress": False, **arguments}
    with without_shape_checks():  # which take most of the time of so many eager updates
        sacref.train(backend=backend, env="Pendulum-v1", steps=given.pop("steps", 12), preset=name, run_dir=directory, **given)
    return read_config(directory)


def test_every_preset_is_held_against_its_source() -> None:
    assert SOURCES.keys() == presets.PRESETS.keys()


@pytest.mark.parametrize("name", SOURCES)
def test_a_preset_has_the_values_of_its_source(name: str) -> None:
    preset, wanted = presets.PRESETS[name], SOURCES[name]
    cfg = preset.config()
    assert {key: getattr(cfg, key) for key in ("learning_rates", "batch_size", "random_timesteps")} == {
        key: wanted[key] for key in ("learning_rates", "batch_size", "random_timesteps")
    }
    assert cfg.learning_starts == (1_000 if name == "spinningup" else wanted["random_timesteps"])
    assert (cfg.discount_factor, cfg.polyak, cfg.grad_norm_clip, cfg.n_step) == (0.99, 0.005, 0.0, 1)
    assert cfg.learn_entropy is ("fixed" not in wanted)
    assert cfg.initial_entropy_value == wanted.get("fixed", 1.0)
    if cfg.learn_entropy:
        assert cfg.target_entropy_of(6) == wanted["target"]
    found = {key: getattr(cfg, key) for key in PLAIN if key != "gradient_steps_per_timestep"}
    found["gradient_steps_per_timestep"] = cfg.gradient_steps_per_timestep(1)
    assert found == {**PLAIN, **OTHERS.get(name, {})}
    assert preset.critics == {"num_critics": 2, "layer_norm": False, "dropout": 0.0, **CRITICS.get(name, {})}
    # Eight environments take as many random steps of the environment, and as many gradient steps for each.
    assert preset.config(8).random_timesteps == -(-wanted["random_timesteps"] // 8)
    assert preset.config(8).gradient_steps_per_timestep(8) == 8 * cfg.gradient_steps_per_timestep(1)
    assert preset.config(8).chunk == -(-cfg.chunk // 8)


SHORT_RUN = ("redq", "spinningup")
"""Those that differ most from the paper's are trained in every run of the tests."""


@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name in SHORT_RUN else pytest.mark.full) for name in SOURCES])
def test_each_trains_and_its_run_says_what_stands_beside_it(name: str, tmp_path: Path) -> None:
    stored = run(tmp_path / "run", name)
    usual = presets.PRESETS[name].config().to_dict()
    assert (stored["preset"], stored["beside_preset"]) == (name, {key: value for key, value in SHORT.items() if usual[key] != value})
    assert {key: stored["models"][key] for key in ("num_critics", "layer_norm", "dropout")} == presets.PRESETS[name].critics


@pytest.mark.full
@pytest.mark.parametrize("name", ["redq", "droq"])
def test_those_with_critics_of_their_own_train_on_jax(name: str, tmp_path: Path) -> None:
    pytest.importorskip("jax", reason="jax is not installed")
    assert run(tmp_path / "run", name, "jax", cfg={**SHORT, "execution": "auto"})["preset"] == name


def test_what_is_given_beside_a_preset_wins_and_a_resumed_run_keeps_it(tmp_path: Path) -> None:
    stored = run(tmp_path / "run", "redq", num_critics=3, cfg={**SHORT, "policy_delay": 2})
    assert stored["models"]["num_critics"] == 3
    assert stored["beside_preset"] == {**{k: v for k, v in SHORT.items() if k != "chunk"}, "policy_delay": 2, "num_critics": 3}
    command = parse(["train", "--resume", "--run-dir", str(tmp_path / "run"), "--steps", "14"])
    assert isinstance(command, Train)
    assert (command.preset, command.num_critics, command.cfg.policy_delay, command.cfg.target_subset) == ("redq", 3, 2, 2)
    with without_shape_checks():
        assert commands.run(command) == 0
    assert read_config(tmp_path / "run")["beside_preset"] == stored["beside_preset"]
    with pytest.raises(RunError, match=r"cfg.policy_delay: the run has 2, asked is 20"):
        run(tmp_path / "run", "redq", num_critics=3, resume=True)


def test_a_resumed_run_keeps_its_preset_and_takes_no_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = str(tmp_path / "run")
    stored = run(tmp_path / "run", "sb3")
    assert stored["beside_preset"] == {"random_timesteps": 10, "learning_starts": 10, "execution": "plain"}
    for given in ({"cfg": None}, {"cfg": stored["cfg"]}):  # what a population gives to each of its members
        resumed = run(tmp_path / "run", **given, name=None, resume=True, steps=14)
        assert [resumed[key] for key in ("preset", "beside_preset")] == [stored[key] for key in ("preset", "beside_preset")]
    for name, own in (("redq", "sb3"), ("sb3", None)):
        assert cli.main(["train", "--resume", "--preset", name, "--run-dir", directory, "--steps", "90"]) == 2
        assert (
            f"--preset is {name} beside --resume, and the run has {own}: a resumed run keeps its settings, leave --preset out"
            in " ".join(capsys.readouterr().err.split())
        )
        (tmp_path / "run" / "config.json").write_text(json.dumps({**read_config(directory), "preset": None}))
    command = parse(["train", "--resume", "--run-dir", directory])
    assert isinstance(command, Train) and command.preset is None
    (tmp_path / "run" / "config.json").write_text(json.dumps({**stored, "preset": "sb4"}))
    with pytest.raises(RunError, match=r"config.json is damaged \(ValueError: preset is 'sb4', expected one of paper, .*\): restore it"):
        run(tmp_path / "run", name=None, cfg=None, resume=True, steps=16)


def test_flags_beside_a_preset_win() -> None:
    command = parse(["train", "--preset", "droq", "--dropout", "0.1", "--batch-size", "32", "--num-envs", "4"])
    assert isinstance(command, Train)
    assert (command.layer_norm, command.dropout, command.cfg.batch_size, command.cfg.random_timesteps) == (True, 0.1, 32, 1_250)
    assert command.cfg.update_to_data == 20.0


def test_an_unknown_preset_is_refused_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"preset is 'jaxlr', expected one of paper, sb3, .*: did you mean 'jaxrl'\?"):
        run(tmp_path / "run", "jaxlr")
    assert not (tmp_path / "run").exists()


def test_the_table_names_every_source(capsys: pytest.CaptureFixture[str]) -> None:
    assert commands.run(parse(["presets", "--json"])) == 0
    listed = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert listed.keys() == presets.PRESETS.keys()
    assert listed["redq"]["differences"] == {
        "update_to_data": 20.0,
        "target_subset": 2,
        "policy_value": "mean",
        "policy_delay": 20,
        "target_entropy_per_dimension": -0.5,
        "num_critics": 10,
    }
    assert commands.run(parse(["presets"])) == 0
    assert "watchernyu/REDQ" in capsys.readouterr().out
