"""SBX's SAC: Stable-Baselines3 in JAX."""

import importlib
from collections.abc import Mapping

import numpy as np

from sacref.algorithm.data import Batch
from sacref.examine.adapters import version
from sacref.examine.adapters.stable_baselines3 import Family
from sacref.examine.inject import Noise, jax_noise, read_flax, write_flax
from sacref.examine.problem import Problem
from sacref.parity.networks import Arrays, Floats, Named

TWINS = "VmapContinuousCritic_0"
"""It holds both critics in one array."""


class SBX(Family):
    """SBX's SAC, in float64 throughout."""

    name = "SBX"
    package: str = "sbx"

    def make(self, problem: Problem) -> None:
        importlib.import_module("jax").config.update("jax_enable_x64", problem.dtype == "float64")
        self._noise = Noise()
        super().make(problem)

    def set_weights(self, weights: Named) -> None:
        jax, hidden = importlib.import_module("jax"), len(self.problem.hidden)

        def critics(prefix: str) -> object:
            one, two = (write_flax(weights, f"{prefix}critic_{i}", hidden) for i in (1, 2))
            return {"params": {TWINS: jax.tree.map(lambda *both: jax.numpy.stack(both), one, two)}}

        actor = {"params": jax.tree.map(jax.numpy.array, write_flax(weights, "policy", hidden, two_heads=True))}
        policy, alpha = self.model.policy, {"log_ent_coef": jax.numpy.array(weights["log_alpha"])}
        for owner, name, params in (
            (policy, "actor_state", actor),
            (policy, "qf_state", critics("")),
            (self.model, "ent_coef_state", alpha),
        ):
            state = getattr(owner, name)
            setattr(owner, name, state.replace(params=params, opt_state=state.tx.init(params)))
        policy.qf_state = policy.qf_state.replace(target_params=critics("target_"))

    def update(self, batch: Batch[Floats], draws: Floats) -> None:
        self._noise.fill(draws)
        with jax_noise(self._noise):
            self.learn_from(batch)

    def weights(self) -> Arrays:
        policy, hidden = self.model.policy, len(self.problem.hidden)
        found = read_flax(policy.actor_state.params["params"], "policy", hidden)
        for prefix, tree in (("", policy.qf_state.params), ("target_", policy.qf_state.target_params)):
            for name, both in read_flax(tree["params"][TWINS], "critic", hidden).items():
                found |= {f"{prefix}{name.replace('critic', f'critic_{i + 1}')}": both[i] for i in range(2)}
        return found | {"log_alpha": np.array(self.model.ent_coef_state.params["log_ent_coef"]).reshape(())}

    def versions(self) -> Mapping[str, str]:
        return version("sbx-rl", "jax", "flax", "optax")
