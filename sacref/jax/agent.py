"""Soft Actor-Critic on JAX: the life cycle around one update."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from numpy.typing import NDArray

from sacref.agent.agent import Agent
from sacref.agent.carry import (
    RecurrentAgent,
    refuse_carries,
)
from sacref.agent.execution import ActInputs, Actor, AgentRunner, Bounds, Streams
from sacref.agent.model_checks import (
    call_on_trial,
    check_critic_output,
    check_policy_output,
    check_reads_states,
    check_targets,
    draw_widths,
    example_inputs,
    held_values,
    refuse_changed,
    refuse_shared,
    require_learning,
    split_models,
    warn_of_quantisation,
)
from sacref.algorithm.data import Batch, Noise, Sequences
from sacref.algorithm.tree import Tree, map_leaves
from sacref.algorithm.update import Critic, Policy
from sacref.config import ConfigError, SACConfig
from sacref.jax.device import device_of, devices_of
from sacref.jax.execution import DrawSpec, actors, choose, learner, stepper
from sacref.jax.memory import ReplayMemory, sampler
from sacref.jax.mesh import DataParallel, average
from sacref.jax.optim import Average, Frozen, KeepGradients, Optimizer, State, Update, batch_mean, tree_map
from sacref.jax.precision import has_head, low_precision
from sacref.jax.ranks import ranks
from sacref.jax.weights import (
    CommonLayout,
    constants_of,
    fingerprint,
    from_common,
    functional,
    identities_of,
    own_copies,
    parameters_of,
    random_state,
    refuse_hidden_state,
    set_constants,
    to_common,
    with_parameters,
)
from sacref.ranks import Ranks
from sacref.spec.arrays import as_numpy
from sacref.spec.policy_value import POLICY_VALUES


class SAC(Agent[Array]):
    """Soft Actor-Critic (Haarnoja et al. 2018b, arXiv:1812.05905).

    Args:
        models: `policy`, and for training `critic_1` ... `critic_N`; `target_critic_1` ... are copied from the critics when left
            out. Every array is copied: the caller's objects stay as they are.
            Variables that are no nnx.Param, and plain arrays, stay as they are, and are saved; target critics have those of their critics.
        memory: a `ReplayMemory` of its own, or None for an agent that only acts.
        observation_space: a Box, or a Dict of such, of one environment. action_space: a Box.
        state_space: what the critics see in the place of the observations, a Box or a Dict, or None.
        device: where to compute, as "cuda" or "cuda:1"; None for JAX's default device. Of several, "cuda:0,cuda:1" or "cuda:all", each
            computes a part of every batch; acting and the memory are on the first.
        cfg: a `SACConfig`, or a dict of its fields.

    Raises:
        ValueError, TypeError: if a model is missing or returns a wrong shape, a space is not supported, the device is unknown, or
            the batch is larger than the memory.
    """

    backend = "jax"

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
        if memory is not None and not isinstance(memory, ReplayMemory):
            raise TypeError(f"memory is a {type(memory).__name__}, expected a sacref.jax.ReplayMemory, which lies where the agent learns")
        super().__init__(memory=memory, observation_space=observation_space, state_space=state_space, action_space=action_space, cfg=cfg)
        self.device = device_of(device)
        critics, targets = split_models(models, learns=memory is not None)
        self._check_subset_fits(len(critics))
        for name in ("policy", *critics, *targets):
            refuse_hidden_state(name, models[name])
        if random_state(models["policy"]):
            raise ValueError(
                "model 'policy' has random layers (nnx.RngState), expected them in critics alone: an update's own noise makes the policy "
                "stochastic. Leave them out of it"
            )
        refuse_shared(models, {name: identities_of(models[name]) for name in ("policy", *critics, *targets)})
        self._models = own_copies({name: models[name] for name in ("policy", *critics)})
        parameters = {name: parameters_of(models[name], self.device) for name in ("policy", *critics)}
        for target in targets:
            parameters[target] = parameters_of(models[target], self.device, parameters[target.removeprefix("target_")])
        constants = {name: constants_of(models[name], own) for name, own in parameters.items()}
        self._constants = {name: constants_of(model, parameters[name]) for name, model in self._models.items()}
        self.dtype = self._check_dtypes({name: parameters[name] or constants[name] for name in parameters})
        require_learning(parameters, critics)
        check_targets(parameters, {name: {key: self.to_numpy(a) for key, a in held.items()} for name, held in constants.items()})
        self._action_bounds = Bounds(*(self._upload(bound) for bound in self._take_bounds(self.dtype)))
        self._functions = {name: self._functional(name) for name in self._models}
        if self.cfg.mixed_precision:
            warn_of_quantisation([name for name, model in self._models.items() if not has_head(model)], self.cfg.precision)
        self._moments: dict[str, Any] = {}
        self._take_moments()
        self._check_outputs(parameters)
        devices = devices_of(device)
        self._parallel = DataParallel(devices) if self.ranks.size > 1 or len(devices) > 1 else None
        self._average: Average | None = average if self._parallel is not None else None
        self._update = self._make_update(critics)
        self._runner = AgentRunner(self._make_state(parameters, critics, targets))
        self._random = Streams(*(self._generator(stream) for stream in range(3)))
        self.execution = choose(self.cfg.execution)
        self._fuse()
        if memory is not None:
            self._check_batch_fits(memory.capacity)
            self._allocate(memory)
        self._begin_alike()

    # Construction.

    def _allocate(self, memory: ReplayMemory) -> None:
        memory.allocate(self.spaces, self.dtype, self.device, staged_timesteps=self.cfg.chunk, settings=self._follow)

    def _functional(self, name: str) -> Callable[..., Any]:
        """A model as a function of its parameters, computed in the precision of the configuration."""
        model = self._models[name]
        arguments = 1 + (name != "policy") + hasattr(model, "initial_carry")
        return low_precision(model, self.cfg.precision, arguments=arguments) if self.cfg.mixed_precision else functional(model)

    def _policy(self) -> Policy[Array]:
        """The policy as the update calls it."""
        policy: Policy[Array] = self._functions["policy"]
        return policy

    def _critic(self, name: str) -> Critic[Array]:
        """A critic as the update calls it."""
        critic: Critic[Array] = self._functions[name]
        return critic

    def _actor(self) -> Actor[Array]:
        """The policy as acting calls it."""
        policy = self._functions["policy"]

        def actor(parameters: Any, acting: ActInputs[Array]) -> tuple[Array, Array, Tree]:
            mean, raw_log_std = policy(parameters, self._prepare_inputs(acting.moments, acting.inputs))
            return mean, raw_log_std, ()

        return actor

    def _make_update(self, critics: Sequence[str]) -> Update:
        cfg = self.cfg
        policy_rate, critic_rate, entropy_rate = cfg.learning_rates
        schedules = cfg.schedules
        optimizer = partial(Optimizer, scales_losses=cfg.scales_losses, average=self._average)
        return Update(
            policy=self._policy(),
            critics={name: self._critic(name) for name in critics},
            policy_optimizer=optimizer(policy_rate, cfg.grad_norm_clip, schedules["policy"], cfg.policy_delay),
            critic_optimizer=optimizer(critic_rate, cfg.grad_norm_clip, schedules["critic"]),
            temperature_optimizer=optimizer(entropy_rate, 0.0, schedules["entropy"], cfg.policy_delay) if cfg.learn_entropy else Frozen(),
            discount_factor=cfg.discount_factor,
            polyak=cfg.polyak,
            target_entropy=cfg.target_entropy_of(self.spaces.action_size),
            mean=batch_mean(self._average),
            policy_value=POLICY_VALUES[cfg.policy_value],
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
            policy_optimizer=self._update.policy_optimizer.init(parameters["policy"]) if online else None,
            critic_optimizer=self._update.critic_optimizer.init(online) if online else None,
            temperature_optimizer=self._update.temperature_optimizer.init(log_alpha),
        )

    def _fuse(self) -> None:
        self._step = stepper(self._update, self._parallel)
        drawing = self._drawing()
        learn = learner(self._update, drawing, execution=self.execution, block=self._block, parallel=self._parallel)
        self._runner.use(learn, actors(self._actor(), self._action_bounds))

    @property
    def _block(self) -> int:
        """Gradient steps between two actions, as a rule."""
        return max(1, int(self.cfg.chunk * self.cfg.gradient_steps_per_timestep(self._num_envs)))

    def _drawing(self) -> DrawSpec:
        return DrawSpec(
            sample=sampler(self._follow),
            batch_size=self.cfg.batch_size,
            prepare=self._prepare,
            num_critics=len(self._update.critics),
            target_subset=self.cfg.target_subset,
            draw_widths={name: widths for name in self._update.critics if (widths := draw_widths(self._models[name]))},
            keyed=frozenset(name for name in self._update.critics if random_state(self._models[name])),
        )

    def _take_moments(self) -> None:
        # Host arrays go into compiled calls as they are.
        self._moments = {
            name: {key: array.astype(self.dtype) for key, array in preprocessor.arrays().items()}
            for name, preprocessor in self._preprocessors.items()
        }

    def _generator(self, stream: int) -> Array:
        seed = self._stream_seed(stream).generate_state(2, np.uint32)
        return self._key(seed)

    def _key(self, data: NDArray[Any]) -> Array:
        key: Array = jax.device_put(np.array(data, np.uint32), self.device)
        return key

    def _check_dtypes(self, parameters: Mapping[str, Mapping[str, Array]]) -> np.dtype[Any]:
        found = {
            name: {np.dtype(p.dtype) for p in tensors.values() if jnp.issubdtype(p.dtype, jnp.floating)}
            for name, tensors in parameters.items()
        }
        dtypes = set.union(*found.values())
        if len(dtypes) != 1 or not dtypes <= {np.dtype(np.float32), np.dtype(np.float64)}:
            raise TypeError(f"models have parameters of dtypes {found}, expected all float32 or all float64: build them with one dtype")
        if self.cfg.mixed_precision and dtypes != {np.dtype(np.float32)}:
            raise ConfigError("mixed_precision is True and the models are float64, expected float32 parameters: build the models with them")
        return dtypes.pop()

    def _try(self, name: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a model on example inputs; it stays as it is."""
        before = held_values(self._models[name], fingerprint)
        outputs = call_on_trial(name, function, *arguments)
        refuse_changed(name, before, held_values(self._models[name], fingerprint))
        return outputs

    def _check_outputs(self, parameters: Mapping[str, Any]) -> None:
        """Try the models on a few rows."""
        refuse_carries(self._models)
        rows = 3
        inputs = self._example_inputs(rows)
        actions = jnp.zeros((rows, self.spaces.action_size), self.dtype)
        outputs = self._try("policy", partial(jax.eval_shape, self._functions["policy"]), parameters["policy"], inputs)
        check_policy_output(outputs, rows=(rows,), action_size=self.spaces.action_size, dtype=self.dtype)
        values, others = {}, {}
        for name in (name for name in self._functions if name != "policy"):
            draws = self._example_draws(name, (rows,))
            output = self._try(name, partial(jax.eval_shape, self._functions[name]), parameters[name], inputs, actions, *draws)
            check_critic_output(name, output, rows=(rows,), dtype=self.dtype)
            if self.spaces.states is not None:
                other = {**inputs, "states": self._example_inputs(rows, other=1)["states"]}
                values[name] = self.to_numpy(self._functions[name](parameters[name], inputs, actions, *draws))
                others[name] = self.to_numpy(self._functions[name](parameters[name], other, actions, *draws))
        check_reads_states(values, others)

    def _example_inputs(self, rows: int, other: int = 0) -> Any:
        inputs = {kind: self._upload_tree(tree) for kind, tree in example_inputs(self.spaces, rows, self.cfg.seed ^ other).items()}
        return self._prepare_inputs(self._upload_tree(self._moments), inputs)

    def _example_draws(self, name: str, rows: tuple[int, ...]) -> list[Array]:
        draws = [jnp.ones((*rows, width), self.dtype) for width in draw_widths(self._models[name])]
        return [*draws, jnp.zeros(2, jnp.uint32)] if random_state(self._models[name]) else draws

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
        self._take_models()

    def _take_models(self) -> None:
        """Learn and act with the models as they are now: their mode and their constants are in what is compiled."""
        self._functions = {name: self._functional(name) for name in self._models}
        critics = {name: self._critic(name) for name in self._update.critics}
        self._update = replace(self._update, policy=self._policy(), critics=critics)
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

    def update_on(self, batch: Batch[Any] | Sequences[Any], noise: Noise[Any]) -> dict[str, NDArray[Any]]:
        """Take one gradient step on a given batch and noise; return the metrics on the host.

        Args:
            batch: NumPy or JAX arrays; `(batch, ...)`, actions in (-1, 1), before preprocessing; of SAC_RNN sequences.
            noise: standard normal draws, `(batch, action)`, and what else the configuration draws.
        """
        prepared = self._prepare(self._upload_tree(self._moments), batch.map(self._upload))
        self._state, metrics = self._step(self._state, prepared, noise.map(self._upload))
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

    def _ranks(self) -> Ranks:
        return ranks()

    def _act(self, way: str, observations: Tree, states: Tree | None) -> tuple[Array, Array]:
        inputs = {"observations": self._given(observations), "states": self._given(states)}
        actions, mean_actions, _ = self._run_actor(way, inputs, ())
        return actions, mean_actions

    def _run_actor(self, way: str, inputs: Any, carry: Tree) -> tuple[Array, Array, Tree]:
        acting = ActInputs(inputs, self._moments, carry)
        actions, mean_actions, carry, self._random = self._runner.act(way, self._random, acting)
        return actions, mean_actions, carry

    def _given(self, tree: Tree) -> Tree:
        # Host arrays go into the compiled call as they are: an upload of its own costs more than the call.
        return map_leaves(lambda leaf: self._upload(leaf) if isinstance(leaf, Array) else self._in_own_dtype(leaf), tree)

    @staticmethod
    def _longest_integer() -> np.dtype[Any]:
        return np.dtype(jax.dtypes.canonicalize_dtype(np.int64))

    def _is_device_array(self, value: Any) -> bool:
        if not isinstance(value, Array):
            return False
        if isinstance(value, jax.core.Tracer):
            raise TypeError(
                f"an array is traced ({value.aval}), expected one that holds numbers, since they are stored: call the agent outside of "
                f"functions under jax.jit, jax.grad or jax.vmap"
            )
        return True

    def _upload(self, array: Any, *, copy: bool = False) -> Array:
        # JAX's own arrays cannot be written into: they need no copy.
        if isinstance(array, Array):
            dtype = self.dtype if array.dtype in (np.float32, np.float64) else array.dtype
            uploaded: Array = jax.device_put(jnp.asarray(array, dtype), self.device)
            return uploaded
        with np.errstate(over="ignore"):  # what is infinite then is looked for on the device
            host = self._in_own_dtype(as_numpy(array, "the array"))
        uploaded = jax.device_put(host, self.device)
        return uploaded

    def _in_own_dtype(self, array: Any) -> NDArray[Any]:
        """A copy of a host array, in the dtype it has on the device."""
        return np.array(array, self.dtype if array.dtype in (np.float32, np.float64) else array.dtype)

    def _as_floats(self, array: Array) -> Array:
        return array.astype(self.dtype)

    def _export(self, model: str, parameters: Any) -> dict[str, NDArray[Any]]:
        return to_common(self._models[model], parameters)

    def _set_constants(self, constants: Mapping[str, Any]) -> None:
        same = all(np.array_equal(own[key], array) for name, own in self._constants.items() for key, array in constants[name].items())
        if same:
            return  # nothing is compiled anew
        self._models = {name: set_constants(model, constants[name]) for name, model in self._models.items()}
        self._constants = {name: dict(own) for name, own in constants.items()}
        self._take_models()

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

    def _begin_streams(self) -> None:
        self._random = Streams(*(self._generator(stream) for stream in range(3)))

    def _set_streams(self, streams: Mapping[str, NDArray[Any]]) -> None:
        self._random = Streams(*(self._key(streams[name]) for name in Streams._fields))

    @property
    def _layouts(self) -> dict[str, str]:
        return {name: "common" if isinstance(model, CommonLayout) else "jax" for name, model in self._models.items()}


class SAC_RNN(RecurrentAgent[Array], SAC):
    """Soft Actor-Critic whose models may have a carry: `SAC`, over sequences. For the arguments see there.

    A model with a carry has `initial_carry(batch)`, and is called on `(time, batch, ...)`: `policy(inputs, carry) -> (mean, raw log_std,
    carry)`, `critic(inputs, actions, carry) -> (values, carry)` (`default_models(recurrent=...)`). Models without one take part.

    `batch_size` counts sequences. The policy starts from its stored carry (Kapturowski et al. 2019, R2D2), the critics from their initial
    one; `burn_in` steps warm both up and have no loss of their own, though gradients pass through them.
    """

    def _allocate(self, memory: ReplayMemory) -> None:
        memory.allocate(
            self.spaces,
            self.dtype,
            self.device,
            staged_timesteps=self.cfg.chunk,
            settings=self._follow,
            carry=self._initial_carry("policy", 1),
        )

    def _act_with_carry(
        self, way: str, observations: Tree, states: Tree | None, previous: tuple[Any, Any], carry: Tree
    ) -> tuple[Array, Array, Tree]:
        inputs = {
            "observations": self._given(observations),
            "states": self._given(states),
            "previous_actions": self._given(previous[0]),
            "previous_rewards": self._given(previous[1]),
        }
        return self._run_actor(way, inputs, self._given(carry))
