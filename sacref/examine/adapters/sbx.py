"""SBX's SAC: Stable-Baselines3 in JAX."""

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sacref.algorithm.data import Batch
from sacref.examine.adapters import version
from sacref.examine.inject import LOG_STD, MEAN, GradientsOfMoments, Noise, adam_moments, jax_noise, merge_heads, split_heads
from sacref.examine.problem import Problem, Still
from sacref.parity.networks import Arrays, Floats, Named


class SBX:
    """Its compiled `_train` with one gradient step, on a batch of ours."""

    name = "SBX"

    def make(self, problem: Problem) -> None:
        jax, sbx = importlib.import_module("jax"), importlib.import_module("sbx")
        jax.config.update("jax_enable_x64", problem.dtype == "float64")
        self._problem, self._noise, self._gradients = problem, Noise(), GradientsOfMoments()
        self.model: Any = sbx.SAC(
            "MlpPolicy",
            Still(problem),
            learning_rate=problem.learning_rate,
            buffer_size=1,
            tau=problem.tau,
            gamma=problem.discount,
            ent_coef=f"auto_{problem.alpha}",
            policy_kwargs={"net_arch": list(problem.hidden)},
            seed=problem.seed,
        )
        # It holds twins in one array, and the head in two layers.
        depth = len(problem.hidden)
        hidden = {f"hidden.{i}.": f"Dense_{i}" for i in range(depth)}
        self._critic_layers = hidden | {"head.": f"Dense_{depth}"}
        self._policy_layers = {f"policy.{name}": flax for name, flax in hidden.items()} | {
            MEAN: f"Dense_{depth}",
            LOG_STD: f"Dense_{depth + 1}",
        }

    def set_weights(self, weights: Named) -> None:
        jnp, policy, split = importlib.import_module("jax.numpy"), self.model.policy, split_heads(weights)
        kinds = ("kernel", "bias")
        actor = {layer: {kind: jnp.array(split[common + kind]) for kind in kinds} for common, layer in self._policy_layers.items()}

        def critics(prefix: str) -> Any:
            stacked = {
                layer: {kind: jnp.stack([weights[f"{prefix}critic_{i}.{common}{kind}"] for i in (1, 2)]) for kind in kinds}
                for common, layer in self._critic_layers.items()
            }
            return {"params": {"VmapContinuousCritic_0": stacked}}

        states = {"actor_state": ({"params": actor}, {}), "qf_state": (critics(""), {"target_params": critics("target_")})}
        for name, (params, others) in states.items():
            state = getattr(policy, name)
            setattr(policy, name, state.replace(params=params, opt_state=state.tx.init(params), **others))
        params, state = {"log_ent_coef": jnp.array(weights["log_alpha"])}, self.model.ent_coef_state
        self.model.ent_coef_state = state.replace(params=params, opt_state=state.tx.init(params))

    def update(self, batch: Batch[Floats], draws: Floats) -> None:
        jax, model, problem = importlib.import_module("jax"), self.model, self._problem
        data = importlib.import_module("sbx.common.type_aliases").ReplayBufferSamplesNp(
            batch.observations,
            batch.actions,
            batch.next_observations,
            problem.cast(batch.terminated),
            batch.rewards,
            problem.cast(np.full(problem.batch_size, problem.discount)),
        )
        self._noise.fill(draws)
        with jax_noise(self._noise):
            states = (model.policy.qf_state, model.policy.actor_state, model.ent_coef_state)
            qf, actor, alpha, model.key, _ = model._train(problem.tau, model.target_entropy, 1, data, 1, 0, *states, model.key)
            jax.block_until_ready(actor.params)
        model.policy.qf_state, model.policy.actor_state, model.ent_coef_state = qf, actor, alpha

    def _common(self, actor: Any, critics: Mapping[str, Any], alpha: Any) -> Arrays:
        """Trees by common names."""
        kinds = ("kernel", "bias")
        found = {common + kind: np.array(actor["params"][layer][kind]) for common, layer in self._policy_layers.items() for kind in kinds}
        for prefix, tree in critics.items():
            for common, layer in self._critic_layers.items():
                for kind in kinds:
                    both: NDArray[Any] = np.array(tree["params"]["VmapContinuousCritic_0"][layer][kind])
                    found |= {f"{prefix}critic_{i + 1}.{common}{kind}": both[i] for i in range(2)}
        return merge_heads(found) | {"log_alpha": np.array(alpha["log_ent_coef"]).reshape(())}

    def weights(self) -> Arrays:
        policy = self.model.policy
        critics = {"": policy.qf_state.params, "target_": policy.qf_state.target_params}
        return self._common(policy.actor_state.params, critics, self.model.ent_coef_state.params)

    def gradients(self) -> Sequence[Named]:
        policy = self.model.policy
        actor, critics, alpha = (adam_moments(s.opt_state) for s in (policy.actor_state, policy.qf_state, self.model.ent_coef_state))
        return [self._gradients(self._common(actor, {"": critics}, alpha))]

    def act(self, observations: NDArray[Any], *, deterministic: bool) -> NDArray[Any]:
        actions: NDArray[Any] = self.model.predict(observations, deterministic=deterministic)[0]
        return actions

    def versions(self) -> Mapping[str, str]:
        return version("sbx-rl", "jax", "flax", "optax")
