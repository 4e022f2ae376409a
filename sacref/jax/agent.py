"""Soft Actor-Critic on JAX: the life cycle around one update."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from numpy.typing import NDArray

from sacref.agent import Agent
from sacref.config import SACConfig
from sacref.jax.device import device_of
from sacref.jax.fuse import Bounds, Streams, actors, choose, learner, stepper
from sacref.jax.memory import ReplayMemory
from sacref.jax.optim import Frozen, KeepGradients, Optimizer, tree_map
from sacref.jax.update import State, Update
from sacref.jax.weights import CommonLayout, from_common, functional, parameters_of, refuse_hidden_state, to_common, with_parameters
from sacref.model_checks import check_critic_output, check_policy_output, check_targets, split_models
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

    _backend = "jax"

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
        check_targets(parameters)
        low, high = (self._upload(bound) for bound in self._bounds)
        self._action_bounds = Bounds(low, high)
        self._functions = {name: functional(model) for name, model in self._models.items()}
        self._check_outputs(parameters)
        self._update = self._make_update(critics)
        self._state = self._make_state(parameters, critics, targets)
        self._random = Streams(*(self._generator(stream) for stream in range(3)))
        self.execution = choose(self.cfg.execution)
        self._fuse()
        if memory is not None:
            self._check_batch_fits(memory.capacity)
            memory.allocate(self.spaces, self.dtype, self.device, staged_timesteps=self.cfg.chunk)

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
        block = max(1, int(self.cfg.chunk * self.cfg.gradient_steps_per_timestep(self._num_envs)))
        self._learn = learner(self._update, batch_size=self.cfg.batch_size, execution=self.execution, block=block)
        self._ways = actors(self._functions["policy"], self._action_bounds)

    def _generator(self, stream: int) -> Array:
        seed = np.random.SeedSequence([self.cfg.seed, 0, stream]).generate_state(2, np.uint32)
        return self._key(seed)

    def _key(self, data: NDArray[Any]) -> Array:
        key: Array = jax.device_put(np.array(data, np.uint32), self.device)
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
        check_policy_output(outputs, rows=rows, action_size=self.spaces.action_size, dtype=self.dtype)
        for name in self._functions:
            if name != "policy":
                check_critic_output(
                    name, jax.eval_shape(self._functions[name], parameters[name], inputs, actions), rows=rows, dtype=self.dtype
                )

    # The life cycle.

    def post_interaction(self, *, timestep: int, timesteps: int) -> None:
        """Learn, while training and from `learning_starts` on; then track and checkpoint."""
        self._learn_if_due(timestep=timestep, timesteps=timesteps)
        super().post_interaction(timestep=timestep, timesteps=timesteps)

    def update(self, *, timestep: int, timesteps: int) -> None:
        """Take `gradient_steps` gradient steps, each on a fresh batch from the memory."""
        self._take_gradient_steps(self.cfg.gradient_steps)

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

    def synchronise(self) -> None:
        """Wait until the device has done all that it was asked for."""
        wait: Callable[[Any], Any] = jax.block_until_ready
        wait((self._state, self._random, None if self.memory is None else self.memory.state))

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
        self._state, metrics = self._step(self._state, batch.map(self._upload), noise.map(self._upload))
        self.gradient_step_count += 1
        return {name: self.to_numpy(value) for name, value in metrics.items()}

    def keep_gradients(self) -> None:
        """From now on, `gradients` shows those of the last step. Meant for comparisons; it costs a copy a step."""
        state = self._state
        for slot, (_, tree) in self._optimized(state).items():
            wrapped: dict[str, Any] = {slot: KeepGradients(getattr(self._update, slot))}
            self._update = replace(self._update, **wrapped)
            state = state._replace(**{slot: KeepGradients.around(tree, getattr(state, slot))})
        self._state = state
        self._fuse()

    def gradients(self) -> dict[str, NDArray[Any]]:
        """The gradients of the last step, before clipping, under common names: `policy.<name>`, `critic_1.<name>`, `log_alpha`."""
        if not isinstance(self._update.policy_optimizer, KeepGradients):
            raise ValueError("gradients: they are not kept: call keep_gradients() before the step")
        state = self._state
        policy = self._flatten("policy", state.policy_optimizer[1], "policy")
        critics = self._flatten("", state.critic_optimizer[1], "critics")
        return {**policy, **critics, "log_alpha": self.to_numpy(state.temperature_optimizer[1])}

    # Hooks of the life cycle.

    def _act(self, way: str, observations: Any) -> tuple[Array, Array]:
        # Host arrays go into the compiled call as they are: an upload of its own costs more than the call.
        uploaded = self._upload(observations) if isinstance(observations, Array) else self._in_own_dtype(observations)
        inputs: Inputs[Any] = {"observations": uploaded, "states": None}
        actions, mean_actions, self._random = self._ways[way](self._state.policy, self._random, inputs)
        return actions, mean_actions

    def _is_device_array(self, value: Any) -> bool:
        return isinstance(value, Array)

    def _upload(self, array: Any) -> Array:
        dtype = self.dtype if array.dtype in (np.float32, np.float64) else array.dtype
        uploaded: Array = jax.device_put(jnp.asarray(array, dtype) if isinstance(array, Array) else self._in_own_dtype(array), self.device)
        return uploaded

    def _in_own_dtype(self, array: Any) -> NDArray[Any]:
        """A copy of a host array, in the dtype it has on the device."""
        return np.array(array, self.dtype if array.dtype in (np.float32, np.float64) else array.dtype)

    def _as_floats(self, array: Array) -> Array:
        return array.astype(self.dtype)

    def _export(self, model: str, parameters: Any) -> dict[str, NDArray[Any]]:
        return to_common(self._models[model], parameters)

    def _import(self, model: str, arrays: Mapping[str, NDArray[Any]], like: Any) -> Any:
        return from_common(self._models[model], arrays, like=like)

    def _like(self, array: NDArray[Any], like: Array) -> Array:
        uploaded: Array = jax.device_put(np.array(array, like.dtype), self.device)
        return uploaded

    def to_numpy(self, array: Any) -> NDArray[Any]:
        """An array of this agent's on the host, as a copy."""
        return np.array(array)

    def _fetch(self, metrics: Sequence[Any]) -> NDArray[Any]:
        return np.concatenate(jax.device_get(list(metrics)))

    def _streams(self) -> dict[str, NDArray[Any]]:
        return {name: np.array(key) for name, key in self._random._asdict().items()}

    def _set_streams(self, streams: Mapping[str, NDArray[Any]]) -> None:
        self._random = Streams(*(self._key(streams[name]) for name in Streams._fields))

    @property
    def _layouts(self) -> dict[str, str]:
        return {name: "common" if isinstance(model, CommonLayout) else "jax" for name, model in self._models.items()}
