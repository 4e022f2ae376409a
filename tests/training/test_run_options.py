"""Every option of a run goes with it through its life: trained, killed, resumed, loaded, evaluated and drawn."""

import dataclasses
import inspect
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium.wrappers import TimeLimit

import sacref
from sacref import envs
from sacref.cli import main as cli
from sacref.config import ExperimentConfig, SACConfig
from sacref.config.train_config import TrainConfig
from sacref.envs.partial import PrivilegedState
from sacref.preprocessing import RunningStandardScaler
from sacref.training import experiment
from sacref.training.callbacks import StopAtReturn
from sacref.training.plan import derive_seed
from tests.backends import BACKENDS, Backend, assert_same_arrays, load_backend

backend = pytest.fixture(params=BACKENDS)(load_backend)

TIMESTEPS, KILLED = 12, 10
"""Of the whole run, and after how many of them it is killed; its last checkpoint is two timesteps older."""


def tenth(rewards: Any, timestep: int, timesteps: int) -> Any:
    return 0.1 * rewards


def pendulums(num_envs: int, max_episode_steps: int) -> Any:
    return envs.make("Pendulum-v1", num_envs, env_kwargs={"max_episode_steps": max_episode_steps})


BASE: dict[str, Any] = {"env": "Pendulum-v1", "env_kwargs": {"max_episode_steps": 5}, "hidden": (4,), "evaluation_episodes": 2}
BASE |= {"progress": False, "seed": 3, "evaluation_interval": 7, "evaluation_max_steps": 500, "device": "cpu"}
BASE_CFG: dict[str, Any] = {"batch_size": 3, "random_timesteps": 3, "learning_starts": 3, "execution": "plain"}
INTERVALS: dict[str, Any] = {"write_interval": 4, "checkpoint_interval": 4}

TABLE: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "the update": (
        {"callbacks": [partial(StopAtReturn, mean=1e9)], "log": ["csv"]}
        | {"num_envs": 2, "num_critics": 3, "layer_norm": True, "dropout": 0.2, "keep_checkpoints": 2},
        {
            "n_step": 2,
            "policy_delay": 2,
            "target_subset": 2,
            "policy_value": "mean",
            "discount_factor": 0.9,
            "polyak": 0.1,
            "learning_rate": (1e-3, 2e-3, 3e-3),
            "learning_rate_scheduler": ("cosine", "kl_adaptive", "linear"),
            "learning_rate_scheduler_kwargs": ({"steps": 9}, {"kl_threshold": 1e-3}, {"steps": 9}),
            "grad_norm_clip": 0.5,
            "initial_entropy_value": 0.3,
            "target_entropy": -2.0,
            "observation_preprocessor": RunningStandardScaler,
            "observation_preprocessor_kwargs": {"clip": 3.0},
            "update_to_data": 1.5,
            "chunk": 2,
        },
        {"directory": "elsewhere", "experiment_name": "named"},
    ),
    "states and files": (
        {
            "wrappers": [PrivilegedState, partial(TimeLimit, max_episode_steps=4)],
            "memory_capacity": 8,
            "network": "simba",
            "critic_hidden": (3, 3),
        },
        {
            "state_preprocessor": RunningStandardScaler,
            "state_preprocessor_kwargs": {"clip": 2.0},
            "learn_entropy": False,
            "gradient_steps": 2,
            "overlap": True,
            "reward_scale": 0.5,
        },
        {"store_separately": True},
    ),
    "sequences": (
        {"recurrent": "gru", "recurrent_size": 5, "feed_previous": ("actions", "rewards")},
        {"sequence_length": 2, "burn_in": 1, "stored_carry": False, "rewards_shaper": tenth, "target_entropy_per_dimension": -0.5},
        {},
    ),
    "vector environments": ({"env": "HalfCheetah-v5", "vector_env": pendulums, "num_envs": 2}, {}, {}),
    "precision": (
        {"env": "InvertedPendulum-v5", "vectorization": "batched", "preset": "cleanrl"},
        {"mixed_precision": True, "precision": "float16"},
        {},
    ),
}
"""Options that do not hide each other: arguments of `train`, fields of the configuration, and of its `experiment`."""
BY_THE_LIFE = {"backend", "steps", "run_dir", "cfg", "overwrite", "resume"}
"""Arguments of `train` that `test_an_option_goes_through_the_life_of_a_run` itself gives."""


def test_every_option_has_a_row() -> None:
    """A new one without fails here: add it to a row, with another value than its default."""
    parameters = inspect.signature(sacref.train).parameters
    given = [BASE, *(arguments for arguments, _, _ in TABLE.values())]
    changed = {name for arguments in given for name, value in arguments.items() if value != parameters[name].default}
    assert changed | BY_THE_LIFE == set(parameters)
    for kind, rows in {
        SACConfig: [BASE_CFG, *(row[1] for row in TABLE.values())],
        ExperimentConfig: [INTERVALS, *(r[2] for r in TABLE.values())],
    }.items():
        usual = kind()
        fields = {name for row in rows for name, value in row.items() if value != getattr(usual, name)}
        assert fields | {"seed", "experiment"} == {entry.name for entry in dataclasses.fields(kind)} | {"seed", "experiment"}


def test_simba_has_its_normaliser_unless_the_configuration_says_another() -> None:
    found = TrainConfig(network="simba", cfg={"batch_size": 32}).checked()
    assert (found.hidden, found.critic_hidden) == ((128,), (512, 512))
    assert found.settings(1).observation_preprocessor is RunningStandardScaler
    for cfg in ({"observation_preprocessor": None}, SACConfig()):
        assert TrainConfig(network="simba", cfg=cfg).checked().settings(1).observation_preprocessor is None
    assert TrainConfig().checked().settings(1).observation_preprocessor is None
    unknown: Any = "resnet"
    with pytest.raises(ValueError, match="network is 'resnet', expected one of mlp, simba"):
        TrainConfig(network=unknown).checked()


class Killed(BaseException):
    """In the place of a signal that no handler sees."""


LIVES = [pytest.param(name, row, marks=() if name == "torch" else pytest.mark.full) for name in BACKENDS for row in TABLE]


@pytest.mark.parametrize(("backend", "row"), LIVES, indirect=["backend"])
def test_an_option_goes_through_the_life_of_a_run(
    backend: Backend, row: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, fields, files = TABLE[row]
    if arguments.get("vectorization") == "batched":
        pytest.importorskip("mujoco")
    cfg = {**BASE_CFG, **fields, "experiment": {**INTERVALS, **files}}
    run_dir, steps = tmp_path / "run", TIMESTEPS * arguments.get("num_envs", 1)
    train = partial(sacref.train, **{**BASE, **arguments, "backend": backend.name, "steps": steps, "run_dir": run_dir, "cfg": cfg})
    whole: Any = train()
    evaluations = (run_dir / "evaluation.json").read_text()

    def die(run: Any, finished: int) -> None:
        if finished == KILLED:
            raise Killed
        after_timestep(run, finished)

    after_timestep = experiment.Run.after_timestep
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(experiment.Run, "after_timestep", die)
        train(overwrite=True)
    resumed: Any = train(resume=True)
    assert_same_arrays(resumed.agent.arrays(), whole.agent.arrays())
    assert_same_arrays(resumed.agent.memory.arrays(), whole.agent.memory.arrays())
    assert resumed.agent.gradient_step_count == whole.agent.gradient_step_count > 0
    assert (run_dir / "evaluation.json").read_text() == evaluations

    loaded: Any = sacref.load(run_dir, import_callables=True)
    found = loaded.arrays()
    assert_same_arrays(
        {name: found[name] for name in found if name.startswith(("policy.", "preprocessor."))},
        {name: array for name, array in whole.agent.arrays().items() if name.startswith(("policy.", "preprocessor."))},
    )
    last = json.loads(evaluations)[-1]
    assert last["step"] == steps and np.isfinite(last["returns"]).all()
    seed = str(derive_seed(BASE["seed"], 1))
    capsys.readouterr()
    assert cli.main(["eval", str(run_dir), "--episodes", "2", "--seed", seed, "--device", "cpu", "--import-callables"]) == 0
    assert capsys.readouterr().out.endswith(f"returns: {', '.join(f'{value:,.1f}' for value in last['returns'])}\n")
    assert cli.main(["plot", str(run_dir), "--output", str(tmp_path / "curve.svg")]) == 0
    assert (tmp_path / "curve.svg").stat().st_size > 1000
