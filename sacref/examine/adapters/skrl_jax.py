"""skrl's SAC on JAX, with models of its Gaussian and deterministic mixins."""

import importlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from sacref.algorithm.data import Batch
from sacref.examine.adapters import version
from sacref.examine.adapters.skrl import MODELS, Skrl
from sacref.examine.inject import Noise, jax_noise, read_flax, write_flax
from sacref.examine.problem import Problem
from sacref.parity.networks import Arrays, Floats, Named


class SkrlJax(Skrl):
    """skrl's SAC on JAX."""

    name = "skrl jax"
    backend: str = "jax"

    def make(self, problem: Problem) -> None:
        importlib.import_module("jax").config.update("jax_enable_x64", problem.dtype == "float64")
        self._noise = Noise()
        self.make_with(problem, **({"learning_rate_scheduler": lambda **_: lambda step: problem.decay**step} if problem.decay < 1 else {}))

    def set_weights(self, weights: Named) -> None:
        jax, agent, hidden = importlib.import_module("jax"), self.agent, len(self.problem.hidden)
        trees = {name: jax.tree.map(jax.numpy.array, write_flax(weights, name, hidden)) for name in MODELS}
        alpha = agent.log_entropy_coefficient
        for model, params in (
            *((self.models[name], tree) for name, tree in trees.items()),
            (alpha, jax.numpy.array(weights["log_alpha"])[None]),
        ):
            model.state_dict = model.state_dict.replace(params={"params": params})
        agent._entropy_coefficient = jax.numpy.exp(alpha.value)
        for name, model in (*((f"{each}_optimizer", self.models[each]) for each in MODELS[:3]), ("entropy_optimizer", alpha)):
            old = getattr(agent, name)
            setattr(agent, name, old.replace(state=old.transformation.init(model.state_dict.params)))

    def update(self, batch: Batch[Floats], draws: Floats) -> None:
        self._noise.fill(draws)
        with jax_noise(self._noise):
            self.learn_from(batch._replace(terminated=batch.terminated.astype(np.int8)))

    def array(self, value: Floats) -> object:
        return importlib.import_module("jax.numpy").array(value)

    def weights(self) -> Arrays:
        found = {"log_alpha": np.array(self.agent.log_entropy_coefficient.value).reshape(())}
        for name, model in self.models.items():
            found |= read_flax(model.state_dict.params["params"], name, len(self.problem.hidden))
        return found

    def versions(self) -> Mapping[str, str]:
        return version("skrl", "jax", "flax", "optax")

    def build_model(self, name: str, spaces: Mapping[str, object]) -> object:
        """Make a policy or a critic, as skrl's documentation writes them."""
        nn, jnp, skrl = (importlib.import_module(each) for each in ("flax.linen", "jax.numpy", "skrl.models.jax"))
        problem = self.problem

        def network(x: object, outputs: int) -> Any:
            for width in problem.hidden:
                x = nn.relu(nn.Dense(width)(x))
            return nn.Dense(outputs)(x)

        # Classes whose bases are known when skrl is there.
        def initialise(model: object, **kwargs: object) -> None:
            skrl.Model.__init__(model, **kwargs)
            mixin.__init__(model, **({"clip_actions": True} if name == "policy" else {}))

        def policy(model: object, inputs: Mapping[str, object], role: str = "") -> tuple[object, dict[str, object]]:
            mean, log_std = jnp.split(network(inputs["observations"], 2 * problem.action), 2, axis=-1)
            return mean, {"log_std": log_std}

        def critic(model: object, inputs: Mapping[str, object], role: str = "") -> tuple[object, dict[str, object]]:
            return network(jnp.concatenate([inputs["observations"], inputs["taken_actions"]], axis=-1), 1), {}

        mixin, call = (skrl.GaussianMixin, policy) if name == "policy" else (skrl.DeterministicMixin, critic)
        made = type("Model", (mixin, skrl.Model), {"__init__": initialise, "__call__": nn.compact(call)})(**spaces)
        made.init_state_dict(
            {"observations": jnp.zeros((1, problem.observation)), "taken_actions": jnp.zeros((1, problem.action))}, role=name
        )
        return made
