"""SBX's SAC (Stable-Baselines3 in JAX), by its own `learn`, with its default logger, on the device that it chooses."""

from functools import partial

from bench.peers.setting import ENDLESS, Setting, Trainer


def make(setting: Setting, *, steps: int) -> Trainer:
    """Train after every `steps` steps, as many times, which SBX compiles into one scan."""
    from sbx import SAC

    model = SAC(
        "MlpPolicy",
        setting.env,
        learning_rate=setting.learning_rate,
        buffer_size=setting.memory_capacity,
        learning_starts=setting.random_steps,
        batch_size=setting.batch_size,
        train_freq=steps,
        gradient_steps=steps,
        policy_kwargs={"net_arch": [256, 256]},
        seed=setting.seed,
    )
    settings = {} if steps == 1 else {"train_freq": steps, "gradient_steps": steps}
    return Trainer(
        train=partial(model.learn, ENDLESS), execution=f"JAX, a scan of {steps}" if steps > 1 else "JAX, one jit", settings=settings
    )
