"""skrl's SAC on either of its backends: its own networks, random memory and sequential trainer."""

import importlib
from typing import Any

from bench.peers.setting import ENDLESS, Setting, Trainer


def make(setting: Setting, *, backend: str, memory: int) -> Trainer:
    """Make skrl's agent and trainer, tracked as in a user's run, without checkpoints.

    Args:
        setting: the task.
        backend: "torch" or "jax".
        memory: transitions that its memory holds.
    """
    import gymnasium
    from skrl.utils import set_seed

    library = "torch" if backend == "torch" else "jax.numpy"

    def part(name: str) -> Any:
        return importlib.import_module(name.format(backend))

    if backend == "torch":
        set_seed(setting.seed)
    else:
        # skrl's set_seed loads torch where it is installed; JAX's key is all that the JAX agent draws from.
        part("skrl").config.jax.key = setting.seed
    instantiators = part("skrl.utils.model_instantiators.{}")
    env = part("skrl.envs.wrappers.{}").wrap_env(gymnasium.make(setting.env), wrapper="gymnasium", verbose=False)
    spaces = {"observation_space": env.observation_space, "action_space": env.action_space, "device": env.device}
    layers = {"name": "net", "layers": [256, 256], "activations": "relu"}
    models = {
        "policy": instantiators.gaussian_model(
            **spaces, clip_actions=True, network=[{**layers, "input": "OBSERVATIONS"}], output="tanh(ACTIONS)"
        )
    }
    for name in ("critic_1", "critic_2", "target_critic_1", "target_critic_2"):
        network = [{**layers, "input": "concatenate([OBSERVATIONS, ACTIONS])"}]
        models[name] = instantiators.deterministic_model(**spaces, network=network, output="ONE")
    # Given, because skrl's own are samples of the spaces, in float64 where MuJoCo's spaces are; the environment's arrays come in float32.
    zeros = part(library).zeros
    inputs = {"observations": zeros((1, *env.observation_space.shape)), "taken_actions": zeros((1, *env.action_space.shape))}
    for name, model in models.items():
        model.init_state_dict(inputs, role=name)
    sac = part("skrl.agents.{}.sac")
    cfg = sac.SAC_CFG(
        batch_size=setting.batch_size,
        learning_rate=setting.learning_rate,
        random_timesteps=setting.random_steps,
        learning_starts=setting.random_steps,
        initial_entropy_value=1.0,
    )
    cfg.experiment.directory = "runs"
    cfg.experiment.write_interval = 1_000
    cfg.experiment.checkpoint_interval = 0
    agent = sac.SAC(
        models=models,
        memory=part("skrl.memories.{}").RandomMemory(memory_size=memory, num_envs=1, device=env.device),
        cfg=cfg,
        **spaces,
    )
    trainers = part("skrl.trainers.{}")
    trainer_cfg = trainers.SequentialTrainerCfg(timesteps=ENDLESS, headless=True, disable_progressbar=True)
    trainer = trainers.SequentialTrainer(env=env, agents=agent, cfg=trainer_cfg)
    return Trainer(
        train=trainer.train,
        execution="torch, eager" if backend == "torch" else "JAX, one jit call per network",
        settings={} if memory == setting.memory_capacity else {"memory_capacity": memory},
    )
