"""SBX's SAC (Stable-Baselines3 in JAX), by its own `learn`, with its default logger, on the device that it chooses."""

from functools import partial

from bench.peers.setting import ENDLESS, Setting, Trainer
from bench.peers.stable_baselines3 import parts


def make(setting: Setting, *, steps: int) -> Trainer:
    """Train after every `steps` steps, as many times, which SBX compiles into one scan."""
    from sbx import SAC
    from stable_baselines3.common.env_util import make_vec_env

    model = SAC(
        "MlpPolicy",
        make_vec_env(setting.env, setting.num_envs, seed=setting.seed),
        learning_rate=setting.learning_rate,
        buffer_size=setting.memory_capacity,
        learning_starts=setting.random_steps,
        batch_size=setting.batch_size,
        train_freq=steps,
        gradient_steps=steps,
        policy_kwargs={"net_arch": list(setting.hidden)},
        seed=setting.seed,
    )
    settings = {} if steps == 1 else {"train_freq": steps, "gradient_steps": steps}
    return Trainer(
        train=partial(model.learn, ENDLESS),
        execution=f"JAX, a scan of {steps}" if steps > 1 else "JAX, one jit",
        settings=settings,
        parts=parts(model),
    )
