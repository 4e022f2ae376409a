"""Stable-Baselines3's SAC, by its own `learn`, with its default logger, on the device that it chooses."""

from functools import partial

from bench.peers.setting import ENDLESS, Setting, Trainer


def make(setting: Setting) -> Trainer:
    """Train after every step, once."""
    from stable_baselines3 import SAC

    model = SAC(
        "MlpPolicy",
        setting.env,
        learning_rate=setting.learning_rate,
        buffer_size=setting.memory_capacity,
        learning_starts=setting.random_steps,
        batch_size=setting.batch_size,
        train_freq=1,
        gradient_steps=1,
        policy_kwargs={"net_arch": [256, 256]},
        seed=setting.seed,
    )
    return Trainer(train=partial(model.learn, ENDLESS), execution="torch, eager")
