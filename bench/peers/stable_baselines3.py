"""Stable-Baselines3's SAC, by its own `learn`, at the same settings."""

from bench.peers.setting import Setting


class StableBaselines3:
    """SAC of Stable-Baselines3 with its default logger, on the device that it chooses."""

    def __init__(self, setting: Setting) -> None:
        from stable_baselines3 import SAC

        self._model = SAC(
            "MlpPolicy",
            setting.env,
            learning_rate=setting.learning_rate,
            buffer_size=setting.memory_capacity,
            learning_starts=setting.random_steps,
            batch_size=setting.batch_size,
            policy_kwargs={"net_arch": [256, 256]},
            seed=setting.seed,
        )

    def advance(self, steps: int) -> None:
        """Train for `steps` environment steps; return when the device is idle."""
        import torch

        self._model.learn(steps, reset_num_timesteps=False)
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    def close(self) -> None:
        """Close the environment."""
        if (env := self._model.get_env()) is not None:
            env.close()
