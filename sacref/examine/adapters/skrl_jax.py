"""skrl's SAC on JAX, with models of its Gaussian and deterministic mixins."""

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sacref.algorithm.data import Batch
from sacref.examine.adapters import version
from sacref.examine.inject import GradientsOfMoments, Noise, adam_moments, jax_noise
from sacref.examine.problem import Problem
from sacref.parity.networks import Arrays, Floats, Named

MODELS = ("policy", "critic_1", "critic_2", "target_critic_1", "target_critic_2")


class SkrlJax:
    """Its `update` on a batch of ours. Its Gaussian is not squashed: actions are cut to the Box, as its examples have it."""

    name = "skrl jax"
    supports: tuple[str, ...] = ("clip", "schedule")

    def make(self, problem: Problem) -> None:
        jax, sac = importlib.import_module("jax"), importlib.import_module("skrl.agents.jax.sac")
        jax.config.update("jax_enable_x64", problem.dtype == "float64")
        self._problem, self._noise, self._gradients = problem, Noise(), GradientsOfMoments()
        self._timestep = 0
        schedule: dict[str, Any] = {}
        if problem.decay < 1:
            schedule = {"learning_rate_scheduler": lambda **_: lambda step: problem.decay**step}
        cfg = sac.SAC_CFG(
            batch_size=problem.batch_size,
            discount_factor=problem.discount,
            polyak=problem.tau,
            learning_rate=problem.learning_rate,
            initial_entropy_value=problem.alpha,
            grad_norm_clip=problem.clip,
            **schedule,
        )
        cfg.experiment.write_interval = cfg.experiment.checkpoint_interval = 0
        spaces = {"observation_space": problem.observation_space, "action_space": problem.action_space}
        self.models: dict[str, Any] = {name: _model(name, problem, spaces) for name in MODELS}
        zeros = jax.numpy.zeros
        for name, model in self.models.items():
            model.init_state_dict({"observations": zeros((1, problem.observation)), "taken_actions": zeros((1, problem.action))}, role=name)
        memory = importlib.import_module("skrl.memories.jax").RandomMemory(memory_size=1, num_envs=1)
        self.agent: Any = sac.SAC(models=self.models, memory=memory, cfg=cfg, **spaces)
        self.agent.init()

    def set_weights(self, weights: Named) -> None:
        jnp = importlib.import_module("jax.numpy")
        agent = self.agent
        for name, model in self.models.items():
            layers = {
                layer: {kind: jnp.array(weights[f"{name}.{common}.{kind}"]) for kind in ("kernel", "bias")}
                for layer, common in self._layers().items()
            }
            model.state_dict = model.state_dict.replace(params={"params": layers})
        alpha = agent.log_entropy_coefficient
        alpha.state_dict = alpha.state_dict.replace(params={"params": jnp.array(weights["log_alpha"])[None]})
        agent._entropy_coefficient = jnp.exp(alpha.value)
        for optimizer, model in (*((f"{each}_optimizer", self.models[each]) for each in MODELS[:3]), ("entropy_optimizer", alpha)):
            old = getattr(agent, optimizer)
            setattr(agent, optimizer, old.replace(state=old.transformation.init(model.state_dict.params)))

    def _layers(self) -> dict[str, str]:
        """Flax's name of each layer -> the common one."""
        number = len(self._problem.hidden)
        return {f"Dense_{i}": f"hidden.{i}" if i < number else "head" for i in range(number + 1)}

    def _common(self, model: str, tree: Any) -> Arrays:
        return {
            f"{model}.{common}.{kind}": np.array(tree["params"][layer][kind])
            for layer, common in self._layers().items()
            for kind in ("kernel", "bias")
        }

    def update(self, batch: Batch[Floats], draws: Floats) -> None:
        jnp = importlib.import_module("jax.numpy")
        arrays = {
            "observations": batch.observations,
            "actions": self._problem.box(batch.actions),
            "rewards": batch.rewards[:, None],
            "next_observations": batch.next_observations,
            "terminated": batch.terminated[:, None].astype(np.int8),
        }
        sample = [jnp.array(arrays[name]) if name in arrays else None for name in self.agent._tensors_names]
        self.agent.memory.sample = lambda *_, **__: [sample]
        self._timestep += 1
        self._noise.fill(draws)
        with jax_noise(self._noise):
            self.agent.update(timestep=self._timestep, timesteps=1000)

    def weights(self) -> Arrays:
        found: Arrays = {}
        for name, model in self.models.items():
            found |= self._common(name, model.state_dict.params)
        return found | {"log_alpha": np.array(self.agent.log_entropy_coefficient.value).reshape(())}

    def gradients(self) -> Sequence[Named]:
        found: Arrays = {}
        for name in MODELS[:3]:
            found |= self._common(name, adam_moments(getattr(self.agent, f"{name}_optimizer").state))
        entropy = adam_moments(self.agent.entropy_optimizer.state)
        return [self._gradients(found | {"log_alpha": np.array(entropy["params"]).reshape(())})]

    def act(self, observations: NDArray[Any], *, deterministic: bool) -> NDArray[Any]:
        jnp = importlib.import_module("jax.numpy")
        actions, outputs = self.agent.act(jnp.array(observations), None, timestep=1000, timesteps=1000)
        return np.array(outputs["mean_actions"] if deterministic else actions)

    def save(self, path: Path) -> None:
        self.agent.save(str(path))

    def load(self, path: Path) -> None:
        self.agent.load(str(path))

    def versions(self) -> Mapping[str, str]:
        return version("skrl", "jax", "flax", "optax")


def _model(name: str, problem: Problem, spaces: Mapping[str, Any]) -> Any:
    """A policy or a critic, as skrl's documentation writes them."""
    nn, jnp, skrl = (importlib.import_module(each) for each in ("flax.linen", "jax.numpy", "skrl.models.jax"))

    def network(x: Any, outputs: int) -> Any:
        for width in problem.hidden:
            x = nn.relu(nn.Dense(width)(x))
        return nn.Dense(outputs)(x)

    # Classes whose bases are known when skrl is there.
    def initialise(self: Any, **kwargs: Any) -> None:
        skrl.Model.__init__(self, **kwargs)
        mixin.__init__(self, **({"clip_actions": True} if name == "policy" else {}))

    def policy(self: Any, inputs: Mapping[str, Any], role: str = "") -> tuple[Any, dict[str, Any]]:
        mean, log_std = jnp.split(network(inputs["observations"], 2 * problem.action), 2, axis=-1)
        return mean, {"log_std": log_std}

    def critic(self: Any, inputs: Mapping[str, Any], role: str = "") -> tuple[Any, dict[str, Any]]:
        return network(jnp.concatenate([inputs["observations"], inputs["taken_actions"]], axis=-1), 1), {}

    mixin, call = (skrl.GaussianMixin, policy) if name == "policy" else (skrl.DeterministicMixin, critic)
    return type("Model", (mixin, skrl.Model), {"__init__": initialise, "__call__": nn.compact(call)})(**spaces)
