"""How much a run learns from its data: the numbers that it says, against those of a loop that counts them."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

import sacref
from sacref.agent.update_schedule import UpdateSchedule
from sacref.config import SACConfig, paper_config
from sacref.config.update_to_data import update_to_data
from sacref.training.run_directory import read_config

CASES: dict[str, tuple[dict[str, Any], dict[str, Any], tuple[float, float, int, int], dict[str, Any]]] = {
    "one environment": (
        {},
        {"num_envs": 1},
        (1.0, 256.0, 5000, 5000),
        {
            "Stable-Baselines3": {"train_freq": 1, "gradient_steps": 1, "batch_size": 256, "learning_starts": 5000},
            "Brax": {"grad_updates_per_step": 1, "batch_size": 256, "min_replay_size": 5000},
            "rl_games (PPO)": {"horizon_length": 1, "minibatch_size": 256, "mini_epochs": 256},
        },
    ),
    "16 environments": (
        {},
        {"num_envs": 16},
        (1.0, 256.0, 5008, 5008),
        {
            "Stable-Baselines3": {"train_freq": 1, "gradient_steps": 16, "batch_size": 256, "learning_starts": 5008},
            "Brax": {"grad_updates_per_step": 16, "batch_size": 256, "min_replay_size": 5008},
            "rl_games (PPO)": {"horizon_length": 1, "minibatch_size": 256, "mini_epochs": 256},
        },
    ),
    "one gradient step a timestep": (
        {"update_to_data": None, "gradient_steps": 1},
        {"num_envs": 16},
        (1 / 16, 16.0, 5008, 5008),
        {
            "Stable-Baselines3": {"train_freq": 1, "gradient_steps": 1, "batch_size": 256, "learning_starts": 5008},
            "Brax": {"grad_updates_per_step": 1, "batch_size": 256, "min_replay_size": 5008},
            "rl_games (PPO)": {"horizon_length": 1, "minibatch_size": 256, "mini_epochs": 16},
        },
    ),
    "a chunk": (
        {"chunk": 64, "random_timesteps": 10, "learning_starts": 20},
        {"num_envs": 2},
        (1.0, 256.0, 40, 20),
        {
            "Stable-Baselines3": {"train_freq": 64, "gradient_steps": 128, "batch_size": 256, "learning_starts": 40},
            "rl_games (PPO)": {"horizon_length": 64, "minibatch_size": 256, "mini_epochs": 256},
        },
    ),
    "a fraction that no other library has": ({"update_to_data": 0.1, "batch_size": 64}, {"num_envs": 16}, (0.1, 6.4, 5008, 5008), {}),
    "a fraction that a chunk makes whole": (
        {"update_to_data": 0.1, "batch_size": 64, "chunk": 5},
        {"num_envs": 16},
        (0.1, 6.4, 5008, 5008),
        {"Stable-Baselines3": {"train_freq": 5, "gradient_steps": 8, "batch_size": 64, "learning_starts": 5008}},
    ),
    "Stable-Baselines3's one gradient step after four": (
        {"update_to_data": 0.25, "chunk": 4},
        {"num_envs": 1},
        (0.25, 64.0, 5000, 5000),
        {
            "Stable-Baselines3": {"train_freq": 4, "gradient_steps": 1, "batch_size": 256, "learning_starts": 5000},
            "rl_games (PPO)": {"horizon_length": 4, "minibatch_size": 256, "mini_epochs": 64},
        },
    ),
    "two ranks, each with a batch of its own": (
        {"update_to_data": 1.0},
        {"num_envs": 2, "ranks": 2},
        (0.5, 256.0, 5000, 5000),
        {
            "Stable-Baselines3": {"train_freq": 1, "gradient_steps": 2, "batch_size": 512, "learning_starts": 5000},
            "Brax": {"grad_updates_per_step": 2, "batch_size": 512, "min_replay_size": 5000},
            "rl_games (PPO)": {"horizon_length": 1, "minibatch_size": 512, "mini_epochs": 256},
        },
    ),
    "sequences": ({"batch_size": 32, "sequence_length": 16}, {"num_envs": 1, "recurrent": True}, (1.0, 512.0, 5000, 5000), {}),
    "no learning": (
        {"gradient_steps": 0},
        {"num_envs": 1},
        (0.0, 0.0, 5000, 5000),
        {
            "Stable-Baselines3": {"train_freq": 1, "gradient_steps": 0, "batch_size": 256, "learning_starts": 5000},
            "Brax": {"grad_updates_per_step": 0, "batch_size": 256, "min_replay_size": 5000},
        },
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_numbers(case: str) -> None:
    fields, given, numbers, called = CASES[case]
    cfg = SACConfig.from_dict({**paper_config(given["num_envs"] * given.get("ranks", 1)).to_dict(), **fields})
    found = update_to_data(cfg, **given)
    assert (
        found.gradient_steps_per_environment_step,
        found.transitions_drawn_per_transition_stored,
        found.warm_up_transitions,
        found.random_transitions,
    ) == numbers
    assert found.called_elsewhere == called


@pytest.mark.parametrize(("chunk", "ratio"), list(itertools.product([1, 4], [0.3, 1.0, 2.5])))
def test_the_schedule_takes_as_many_gradient_steps(chunk: int, ratio: float) -> None:
    cfg, envs, timesteps = SACConfig(update_to_data=ratio, chunk=chunk), 3, 400
    schedule = UpdateSchedule(cfg, envs)
    taken = sum(schedule.after_timestep(last=timestep == timesteps - 1) for timestep in range(timesteps))
    assert taken / (timesteps * envs) == update_to_data(cfg, envs).gradient_steps_per_environment_step == ratio


def test_a_run_says_them_when_it_starts_and_in_its_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options: dict[str, Any] = {"env": "Pendulum-v1", "num_envs": 2, "hidden": (4,), "evaluation_episodes": 1, "run_dir": tmp_path / "run"}
    cfg = {"batch_size": 8, "random_timesteps": 3, "learning_starts": 4, "update_to_data": 0.5}
    sacref.train(**options, steps=12, cfg=cfg)
    assert capsys.readouterr().err.splitlines()[:2] == [
        "0.5 gradient steps per environment step, 4 transitions drawn per transition stored; "
        "learning starts after 8 transitions, the first 6 with random actions",
        "the same elsewhere: Stable-Baselines3 with train_freq=1, gradient_steps=1, batch_size=8, learning_starts=8; "
        "Brax with grad_updates_per_step=1, batch_size=8, min_replay_size=8; "
        "rl_games (PPO) with horizon_length=1, minibatch_size=8, mini_epochs=4",
    ]
    stored = read_config(tmp_path / "run")
    said = stored.pop("update_to_data")
    assert said["gradient_steps_per_environment_step"] == 0.5
    assert said["called_elsewhere"]["Brax"] == {"grad_updates_per_step": 1, "batch_size": 8, "min_replay_size": 8}
    # A run of before, whose configuration says nothing of it.
    (tmp_path / "run" / "config.json").write_text(json.dumps(stored))
    sacref.train(**options, steps=16, resume=True, progress=False)
    assert read_config(tmp_path / "run")["update_to_data"] == said
