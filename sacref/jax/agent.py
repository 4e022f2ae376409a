"""Soft Actor-Critic on JAX: the life cycle around one update."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from numpy.typing import NDArray

from sacref.agent import Agent, prefixed, require_same_arrays, split_models, under
from sacref.config import SACConfig
from sacref.jax.device import device_of
from sacref.jax.fuse import Bounds, Streams, actors, learner, stepper
from sacref.jax.memory import ReplayMemory
from sacref.jax.optim import Frozen, KeepGradients, Optimizer, tree_map
from sacref.jax.update import State, Update
from sacref.jax.weights import CommonLayout, from_common, functional, parameters_of, refuse_hidden_state, to_common, with_parameters
from sacref.types import Batch, Inputs, Noise


class SAC(Agent[Array]):
    """Soft Actor-Critic (Haarnoja et al. 2018b, arXiv:1812.05905).

    Args:
        models: `policy`, and for training `critic_1` ... `critic_N`; `target_critic_1` ... are copied from the critics when left
            out. Every array is copied: the caller's objects stay as they are.
        memory: a `ReplayMemory` of its own, or None for an agent that only acts.
        observation_space, action_space: Boxes of one environment. state_space: must be None.
        device: where to compute; None for JAX's default device.
        cfg: a `SACConfig`, or a dict of its fields.

    Raises:
        ValueError, TypeError: if a model is missing or returns a wrong shape, a space is not supported, the device is unknown, or
            the batch is larger than the memory.
    """

    def __init__(
        self,
        *,
        models: Mapping[str, nnx.Module],
        memory: ReplayMemory | None = None,
        observation_space: gymnasium.Space[Any],
        state_space: gymnasium.Space[Any] | None = None,
        action_space: gymnasium.Space[Any],
        device: str | jax.Device | None = None,
        cfg: SACConfig | Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(memory=memory, observation_space=observation_space, state_space=state_space, action_space=action_space, cfg=cfg)
        self.device = device_of(device)
        critics, targets = split_models(models, learns=memory is not None)
        for name in ("policy", *critics, *targets):
            refuse_hidden_state(name, models[name])
        self._models = {name: nnx.clone(models[name]) for name in ("policy", *critics)}
        parameters = {name: parameters_of(models[name], self.device) for name in ("policy", *critics, *targets)}
        self.dtype = self._check_dtypes(parameters)
        low, high = (self._upload(bound) for bound in self._bounds)
        self._action_bounds = Bounds(low, high)
        self._functions = {name: functional(model) for name, model in self._models.items()}
        self._check_outputs(parameters)
        self._update = self._make_update(critics)
        self._state = self._make_state(parameters, critics, targets)
        self._random = Streams(*(self._generator(stream) for stream in range(3)))
        self._fuse()
        if memory is not None:
            self._check_batch_fits(memory.capacity)
            memory.allocate(self.spaces, self.dtype, self.device)

    # Construction.

    def _make_update(self, critics: Sequence[str]) -> Update:
        cfg = self.cfg
        policy_rate, critic_rate, entropy_rate = cfg.learning_rates
        return Update(
            policy=self._functions["policy"],
            critics={name: self._functions[name] for name in critics},
            policy_optimizer=Optimizer(policy_rate, cfg.grad_norm_clip),
            critic_optimizer=Optimizer(critic_rate, cfg.grad_norm_clip),
            temperature_optimizer=Optimizer(entropy_rate) if cfg.learn_entropy else Frozen(),
            discount_factor=cfg.discount_factor,
            polyak=cfg.polyak,
            target_entropy=-float(self.spaces.action_size) if cfg.target_entropy is None else cfg.target_entropy,
        )

    def _make_state(self, parameters: Mapping[str, Any], critics: Sequence[str], targets: Sequence[str]) -> State:
        online = {name: parameters[name] for name in critics}
        given = {name.removeprefix("target_"): parameters[name] for name in targets}
        log_alpha = self._upload(np.log(self.cfg.initial_entropy_value))
        return State(
            policy=parameters["policy"],
            critics=online,
            target_critics=given or tree_map(lambda array: jnp.array(array, copy=True), online),
            log_alpha=log_alpha,
            policy_optimizer=self._update.policy_optimizer.init(parameters["policy"]),
            critic_optimizer=self._update.critic_optimizer.init(online) if online else None,
            temperature_optimizer=self._update.temperature_optimizer.init(log_alpha),
        )

    def _fuse(self) -> None:
        self._step = stepper(self._update)
        self._learn = learner(self._update, batch_size=self.cfg.batch_size)
        self._ways = actors(self._functions["policy"], self._action_bounds)

    def _generator(self, stream: int) -> Array:
        seed = np.random.SeedSequence([self.cfg.seed, 0, stream]).generate_state(2, np.uint32)
        key: Array = jax.device_put(jax.random.wrap_key_data(jnp.asarray(seed), impl="threefry2x32"), self.device)
        return key

    def _check_dtypes(self, parameters: Mapping[str, Mapping[str, Array]]) -> np.dtype[Any]:
        found = {name: {np.dtype(p.dtype) for p in tensors.values()} for name, tensors in parameters.items()}
        dtypes = set.union(*found.values())
        if len(dtypes) != 1 or not dtypes <= {np.dtype(np.float32), np.dtype(np.float64)}:
            raise TypeError(f"models have parameters of dtypes {found}, expected all float32 or all float64: build them with one dtype")
        return dtypes.pop()

    def _check_outputs(self, parameters: Mapping[str, Any]) -> None:
        rows = 3
        stored = self.spaces.stored_dtype(self.dtype)
        inputs = {"observations": np.zeros((rows, *self.spaces.observation_shape), stored), "states": None}
        actions = np.zeros((rows, self.spaces.action_size), self.dtype)
        outputs = jax.eval_shape(self._functions["policy"], parameters["policy"], inputs)
        self._check_policy_output(outputs, rows, self.dtype)
        for name in self._functions:
            if name != "policy":
                self._check_critic_output(name, jax.eval_shape(self._functions[name], parameters[name], inputs, actions), rows, self.dtype)

    # The life cycle.

    def post_interaction(self, *, timestep: int, timesteps: int) -> None:
        """Learn, while training and from `learning_starts` on; then track and checkpoint."""
        if self.training and timestep >= self.cfg.learning_starts:
            started = time.perf_counter()
            self.update(timestep=timestep, timesteps=timesteps)
            self.track_data("Stats / Algorithm update time (ms)", 1e3 * (time.perf_counter() - started))
        super().post_interaction(timestep=timestep, timesteps=timesteps)

    def update(self, *, timestep: int, timesteps: int) -> None:
        """Take `gradient_steps` gradient steps, each on a fresh batch from the memory."""
        memory = self._require_memory()
        for _ in range(self.cfg.gradient_steps):
            self._state, self._random, metrics = self._learn(self._state, memory.state, self._random)
            self.gradient_step_count += 1
            self._track_metrics(metrics)

    def enable_models_training_mode(self, enabled: bool = True) -> None:
        """Set the models' own training mode (`flax.nnx.Module.train` and `eval`)."""
        before = [nnx.graphdef(model) for model in self._models.values()]
        for model in self._models.values():
            switch: Any = model.train if enabled else model.eval
            switch()
        if [nnx.graphdef(model) for model in self._models.values()] == before:
            return  # nothing that the compiled functions have read has changed
        self._functions = {name: functional(model) for name, model in self._models.items()}
        critics = {name: self._functions[name] for name in self._update.critics}
        self._update = replace(self._update, policy=self._functions["policy"], critics=critics)
        self._fuse()

    @property
    def models(self) -> dict[str, nnx.Module]:
        """The models with their current parameters, as copies: what was read once stays as it was."""
        parameters = {"policy": self._state.policy, **self._state.critics}
        models = {name: with_parameters(model, parameters[name]) for name, model in self._models.items()}
        for name, target in self._state.target_critics.items():
            models[f"target_{name}"] = with_parameters(self._models[name], target)
        return models

    @property
    def alpha(self) -> float:
        """The entropy coefficient in force."""
        return float(jnp.exp(self._state.log_alpha))

    # One step on data of the caller's.

    def update_on(self, batch: Batch[Any], noise: Noise[Any]) -> dict[str, NDArray[Any]]:
        """Take one gradient step on a given batch and noise; return the metrics on the host.

        Args:
            batch: NumPy or JAX arrays; `(batch, ...)`, actions in (-1, 1). noise: standard normal draws, `(batch, action)`.
        """
        self._state, metrics = self._step(self._state, batch.map(self._upload), Noise(*map(self._upload, noise)))
        self.gradient_step_count += 1
        return {name: self.to_numpy(value) for name, value in metrics.items()}

    def keep_gradients(self) -> None:
        """From now on, `gradients` shows those of the last step. Meant for comparisons; it costs a copy a step."""
        state, update = self._state, self._update
        slots: dict[str, Any] = {"policy_optimizer": state.policy, "critic_optimizer": state.critics, "temperature_optimizer": state.log_alpha}
        wrapped: dict[str, Any] = {slot: KeepGradients(getattr(update, slot)) for slot in slots}
        self._update = replace(update, **wrapped)
        self._state = state._replace(**{slot: KeepGradients.around(tree, getattr(state, slot)) for slot, tree in slots.items()})
        self._fuse()

    def gradients(self) -> dict[str, NDArray[Any]]:
        """The gradients of the last step, before clipping, under common names: `policy.<name>`, `critic_1.<name>`, `log_alpha`."""
        if not isinstance(self._update.policy_optimizer, KeepGradients):
            raise ValueError("gradients: they are not kept: call keep_gradients() before the step")
        state = self._state
        gradients = prefixed("policy", to_common(self._models["policy"], state.policy_optimizer[1]))
        for name, tree in state.critic_optimizer[1].items():
            gradients |= prefixed(name, to_common(self._models[name], tree))
        return {**gradients, "log_alpha": self.to_numpy(state.temperature_optimizer[1])}

    # State under common names.

    def arrays(self) -> dict[str, NDArray[Any]]:
        """All that learning has changed, under common names: parameters, log alpha, optimizer moments, counters."""
        state, update, models = self._state, self._update, self._models
        arrays = prefixed("policy", to_common(models["policy"], state.policy))
        for name in state.critics:
            arrays |= prefixed(name, to_common(models[name], state.critics[name]))
            arrays |= prefixed(f"target_{name}", to_common(models[name], state.target_critics[name]))
        arrays["log_alpha"] = self.to_numpy(state.log_alpha)
        arrays["gradient_steps"] = np.array(self.gradient_step_count, np.int64)
        if not state.critics:
            return arrays
        policy = update.policy_optimizer.moments(state.policy, state.policy_optimizer)
        critic = update.critic_optimizer.moments(state.critics, state.critic_optimizer)
        temperature = update.temperature_optimizer.moments(state.log_alpha, state.temperature_optimizer)
        for optimizer, moments in {"policy_optimizer": policy, "critic_optimizer": critic, "temperature_optimizer": temperature}.items():
            if moments is not None:
                arrays[f"{optimizer}.count"] = self.to_numpy(moments["count"]).astype(np.int64)
        for moment in ("first_moment", "second_moment"):
            if policy is not None:
                arrays |= prefixed(f"policy_optimizer.{moment}", to_common(models["policy"], policy[moment]))
            if critic is not None:
                for name, tree in critic[moment].items():
                    arrays |= prefixed(f"critic_optimizer.{moment}.{name}", to_common(models[name], tree))
            if temperature is not None:
                arrays[f"temperature_optimizer.{moment}"] = self.to_numpy(temperature[moment])
        return arrays

    def set_arrays(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Go on from what `arrays` gave, on this backend or the other.

        Raises:
            ValueError: if a name or a shape is not this agent's. Nothing is changed then.
        """
        require_same_arrays(arrays, self.arrays())
        state, update, models = self._state, self._update, self._models
        policy = from_common(models["policy"], under(arrays, "policy"), like=state.policy)
        critics = {name: from_common(models[name], under(arrays, name), like=like) for name, like in state.critics.items()}
        targets = {name: from_common(models[name], under(arrays, f"target_{name}"), like=like) for name, like in state.critics.items()}
        log_alpha = self._like(arrays["log_alpha"], state.log_alpha)
        self.gradient_step_count = int(arrays["gradient_steps"])
        if not critics:
            self._state = state._replace(policy=policy, log_alpha=log_alpha)
            return

        def moments(optimizer: str, read: Any) -> dict[str, Any]:
            trees = {moment: read(under(arrays, optimizer), moment) for moment in ("first_moment", "second_moment")}
            return {"count": arrays[f"{optimizer}.count"], **trees}

        def policy_tree(found: Mapping[str, NDArray[Any]], moment: str) -> Any:
            return from_common(models["policy"], under(found, moment), like=policy)

        def critic_tree(found: Mapping[str, NDArray[Any]], moment: str) -> Any:
            return {name: from_common(models[name], under(found, f"{moment}.{name}"), like=like) for name, like in critics.items()}

        def temperature_tree(found: Mapping[str, NDArray[Any]], moment: str) -> Any:
            return self._like(found[moment], log_alpha)

        temperature_optimizer = state.temperature_optimizer
        if "temperature_optimizer.count" in arrays:
            temperature_moments = moments("temperature_optimizer", temperature_tree)
            temperature_optimizer = update.temperature_optimizer.with_moments(log_alpha, temperature_moments)
        else:
            temperature_optimizer = update.temperature_optimizer.init(log_alpha)
        self._state = State(
            policy=policy,
            critics=critics,
            target_critics=targets,
            log_alpha=log_alpha,
            policy_optimizer=update.policy_optimizer.with_moments(policy, moments("policy_optimizer", policy_tree)),
            critic_optimizer=update.critic_optimizer.with_moments(critics, moments("critic_optimizer", critic_tree)),
            temperature_optimizer=temperature_optimizer,
        )

    # Hooks of the life cycle.

    def _act(self, way: str, observations: Array) -> tuple[Array, Array]:
        inputs: Inputs[Array] = {"observations": observations, "states": None}
        actions, mean_actions, self._random = self._ways[way](self._state.policy, self._random, inputs)
        return actions, mean_actions

    def _is_device_array(self, value: Any) -> bool:
        return isinstance(value, Array)

    def _upload(self, array: Any) -> Array:
        dtype = self.dtype if array.dtype in (np.float32, np.float64) else array.dtype
        uploaded: Array = jax.device_put(jnp.asarray(array, dtype) if isinstance(array, Array) else np.array(array, dtype), self.device)
        return uploaded

    def _like(self, array: NDArray[Any], like: Array) -> Array:
        uploaded: Array = jax.device_put(np.array(array, like.dtype), self.device)
        return uploaded

    def to_numpy(self, array: Any) -> NDArray[Any]:
        """An array of this agent's on the host, as a copy."""
        return np.array(array)

    def _fetch(self, metrics: Sequence[Mapping[str, Any]]) -> dict[str, NDArray[Any]]:
        rows = jax.device_get(metrics)
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}

    def _streams(self) -> dict[str, NDArray[Any]]:
        return {name: np.array(jax.random.key_data(key)) for name, key in self._random._asdict().items()}

    def _set_streams(self, streams: Mapping[str, NDArray[Any]]) -> None:
        keys = (jax.random.wrap_key_data(jnp.asarray(streams[name]), impl="threefry2x32") for name in Streams._fields)
        self._random = Streams(*(jax.device_put(key, self.device) for key in keys))

    @property
    def _layouts(self) -> dict[str, str]:
        return {name: "common" if isinstance(model, CommonLayout) else "jax" for name, model in self._models.items()}
