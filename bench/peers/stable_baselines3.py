"""Stable-Baselines3's SAC, by its own `learn`, with its default logger, on the device that it chooses."""

from functools import partial
from typing import Any

from bench.peers.setting import ENDLESS, Setting, Trainer


def make(setting: Setting) -> Trainer:
    """Train after every step, once."""
    from stable_baselines3 import SAC
    from stable_baselines3.common.env_util import make_vec_env

    model = SAC(
        "MlpPolicy",
        make_vec_env(setting.env, setting.num_envs, seed=setting.seed),
        learning_rate=setting.learning_rate,
        buffer_size=setting.memory_capacity,
        learning_starts=setting.random_steps,
        batch_size=setting.batch_size,
        train_freq=1,
        gradient_steps=1,
        policy_kwargs={"net_arch": list(setting.hidden)},
        seed=setting.seed,
    )
    return Trainer(train=partial(model.learn, ENDLESS), execution="torch, eager", parts=parts(model))


def parts(model: Any) -> dict[str, list[tuple[Any, str]]]:
    """Return the calls of `learn` by part of a timestep, of an off-policy algorithm of Stable-Baselines3 or SBX."""
    return {
        "act": [(model, "_sample_action")],
        "environment": [(model.env, "step")],
        "record": [(model, "_store_transition")],
        "learn": [(model, "train")],
    }
