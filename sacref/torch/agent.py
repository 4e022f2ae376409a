"""Soft Actor-Critic on PyTorch: the life cycle around one update."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

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
from sacref.algorithm.tree import Tree
from sacref.algorithm.update import Critic, Policy
from sacref.config import ConfigError, SACConfig
from sacref.ranks import Ranks
from sacref.spec.arrays import as_numpy
from sacref.spec.policy_value import POLICY_VALUES
from sacref.torch.device import device_of
from sacref.torch.execution import DrawSpec, actors, advance_schedules, choose, learner, stepper
from sacref.torch.memory import ReplayMemory, sampler
from sacref.torch.modes import in_no_mode
from sacref.torch.optim import Average, Frozen, KeepGradients, Optimizer, State, Update, average_over_ranks, batch_mean, tree_map
from sacref.torch.precision import has_head, low_precision
from sacref.torch.ranks import ranks
from sacref.torch.weights import (
    CommonLayout,
    constants_of,
    fingerprint,
    from_common,
    functional,
    generators,
    identities_of,
    own_copies,
    parameters_of,
    refuse_draws,
    refuse_hidden_state,
    set_constants,
    to_common,
    with_parameters,
)


@in_no_mode
class SAC(Agent[Tensor]):
    """Soft Actor-Critic (Haarnoja et al. 2018b, arXiv:1812.05905).

    Args:
        models: `policy`, and for training `critic_1` ... `critic_N`; `target_critic_1` ... are copied from the critics when left
            out. Every array is copied: the caller's objects stay as they are.
            Parameters that do not require gradients, and buffers, stay as they are, and are saved; target critics have those of their
            critics.
        memory: a `ReplayMemory` of its own, or None for an agent that only acts.
        observation_space: a Box, or a Dict of such, of one environment. action_space: a Box.
        state_space: what the critics see in the place of the observations, a Box or a Dict, or None.
        device: where to compute; None for the first CUDA device where there is one, else the CPU.
        cfg: a `SACConfig`, or a dict of its fields.

    Raises:
        ValueError, TypeError: if a model is missing or returns a wrong shape, a space is not supported, the device is unknown, or
            the batch is larger than the memory.
    """

    backend = "torch"

    def __init__(
        self,
        *,
        models: Mapping[str, nn.Module],
        memory: ReplayMemory | None = None,
        observation_space: gymnasium.Space[Any],
        state_space: gymnasium.Space[Any] | None = None,
        action_space: gymnasium.Space[Any],
        device: str | torch.device | None = None,
        cfg: SACConfig | Mapping[str, Any] | None = None,
    ) -> None:
        if memory is not None and not isinstance(memory, ReplayMemory):
            raise TypeError(f"memory is a {type(memory).__name__}, expected a sacref.torch.ReplayMemory, which lies where the agent learns")
        super().__init__(memory=memory, observation_space=observation_space, state_space=state_space, action_space=action_space, cfg=cfg)
        self.device = device_of(device)
        critics, targets = split_models(models, learns=memory is not None)
        self._check_subset_fits(len(critics))
        for name in ("policy", *critics, *targets):
            refuse_hidden_state(name, models[name])
        refuse_shared(models, {name: identities_of(models[name]) for name in ("policy", *critics, *targets)})
        self._models = own_copies({name: models[name] for name in ("policy", *critics)}, self.device)
        parameters = {name: parameters_of(models[name], self.device) for name in ("policy", *critics)}
        for target in targets:
            parameters[target] = parameters_of(models[target], self.device, parameters[target.removeprefix("target_")])
        constants = {name: constants_of(models[name], own) for name, own in parameters.items()}
        self._constants = {name: constants_of(model, parameters[name]) for name, model in self._models.items()}
        self.dtype = self._check_dtypes({name: parameters[name] or constants[name] for name in parameters})
        require_learning(parameters, critics)
        check_targets(parameters, {name: {key: self.to_numpy(a) for key, a in held.items()} for name, held in constants.items()})
        bounds = self._take_bounds(np.float64 if self.dtype == torch.float64 else np.float32)
        self._action_bounds = Bounds(*(torch.as_tensor(bound, device=self.device) for bound in bounds))
        self._functions = {name: self._functional(name) for name in self._models}
        if self.cfg.mixed_precision:
            warn_of_quantisation([name for name, model in self._models.items() if not has_head(model)], self.cfg.precision)
        self._moments: dict[str, Any] = {}
        self._take_moments()
        self._check_outputs(parameters)
        self._average: Average | None = average_over_ranks if self.ranks.size > 1 else None
        self._update = self._make_update(critics)
        self._runner = AgentRunner(self._make_state(parameters, critics, targets))
        self._random = Streams(*(self._generator(stream) for stream in range(3)))
        self.execution = choose(self.cfg.execution, self.device, own_models=self._own_models, ranks=self.ranks.size)
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
        return low_precision(model, self.cfg.precision, self.device) if self.cfg.mixed_precision else functional(model)

    def _policy(self) -> Policy[Tensor]:
        """The policy as the update calls it."""
        policy: Policy[Tensor] = self._functions["policy"]
        return policy

    def _critic(self, name: str) -> Critic[Tensor]:
        """A critic as the update calls it."""
        critic: Critic[Tensor] = self._functions[name]
        return critic

    def _actor(self) -> Actor[Tensor]:
        """The policy as acting calls it."""
        policy = self._functions["policy"]

        def actor(parameters: Any, acting: ActInputs[Tensor]) -> tuple[Tensor, Tensor, Tree]:
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
        log_alpha = torch.as_tensor(np.log(self.cfg.initial_entropy_value), dtype=self.dtype, device=self.device)
        return State(
            policy=parameters["policy"],
            critics=online,
            target_critics=given or tree_map(torch.clone, online),
            log_alpha=log_alpha,
            policy_optimizer=self._update.policy_optimizer.init(parameters["policy"]) if online else None,
            critic_optimizer=self._update.critic_optimizer.init(online) if online else None,
            temperature_optimizer=self._update.temperature_optimizer.init(log_alpha),
        )

    def _fuse(self) -> None:
        self._step = stepper(self._update)
        learn = learner(self._update, self._drawing(), execution=self.execution)
        self._runner.use(learn, actors(self._actor(), self._action_bounds, execution=self.execution))

    def _drawing(self) -> DrawSpec:
        return DrawSpec(
            sample=sampler(self._follow),
            batch_size=self.cfg.batch_size,
            prepare=self._prepare,
            num_critics=len(self._update.critics),
            target_subset=self.cfg.target_subset,
            draw_widths={name: widths for name in self._update.critics if (widths := draw_widths(self._models[name]))},
            generators=tuple(dict.fromkeys(self._model_generators().values())),
        )

    def _take_moments(self) -> None:
        for name, preprocessor in self._preprocessors.items():
            held = self._moments.setdefault(name, {})
            for key, array in preprocessor.arrays().items():
                tensor = torch.as_tensor(array, dtype=self.dtype)
                if key in held:
                    held[key].copy_(tensor)  # where it is: a captured graph reads it there
                else:
                    held[key] = tensor.to(self.device, copy=True)

    @property
    def _own_models(self) -> bool:
        return all(isinstance(model, CommonLayout) for model in self._models.values())

    def _generator(self, stream: int) -> torch.Generator:
        seed = self._stream_seed(stream).generate_state(1, np.uint64)[0]
        return torch.Generator(self.device).manual_seed(int(seed >> 1))

    def _check_dtypes(self, parameters: Mapping[str, Mapping[str, Tensor]]) -> torch.dtype:
        found = {name: {p.dtype for p in tensors.values() if p.is_floating_point()} for name, tensors in parameters.items()}
        dtypes = set.union(*found.values())
        if len(dtypes) != 1 or not dtypes <= {torch.float32, torch.float64}:
            raise TypeError(f"models have parameters of dtypes {found}, expected all float32 or all float64: convert them, model.float()")
        if self.cfg.mixed_precision and dtypes != {torch.float32}:
            raise ConfigError("mixed_precision is True and the models are float64, expected float32 parameters: build the models with them")
        return dtypes.pop()

    def _try(self, name: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a model on example inputs; it stays as it is, and draws from generators of its own alone."""
        before = held_values(self._models[name], fingerprint)
        with refuse_draws():
            outputs = call_on_trial(name, function, *arguments)
        refuse_changed(name, before, held_values(self._models[name], fingerprint))
        return outputs

    @torch.no_grad()
    def _check_outputs(self, parameters: Mapping[str, Any]) -> None:
        """Try the models on a few rows."""
        refuse_carries(self._models)
        rows = 3
        inputs = self._example_inputs(rows)
        actions = torch.zeros((rows, self.spaces.action_size), dtype=self.dtype, device=self.device)
        outputs = self._try("policy", self._functions["policy"], parameters["policy"], inputs)
        check_policy_output(outputs, rows=(rows,), action_size=self.spaces.action_size, dtype=self.dtype)
        values, others = {}, {}
        for name in (name for name in self._functions if name != "policy"):
            draws = self._example_draws(name, (rows,))
            output = self._try(name, self._functions[name], parameters[name], inputs, actions, *draws)
            check_critic_output(name, output, rows=(rows,), dtype=self.dtype)
            if self.spaces.states is not None:
                other = {**inputs, "states": self._example_inputs(rows, other=1)["states"]}
                values[name] = self.to_numpy(output)
                others[name] = self.to_numpy(self._functions[name](parameters[name], other, actions, *draws))
        check_reads_states(values, others)

    def _example_inputs(self, rows: int, other: int = 0) -> Any:
        inputs = {kind: self._upload_tree(tree) for kind, tree in example_inputs(self.spaces, rows, self.cfg.seed ^ other).items()}
        return self._prepare_inputs(self._moments, inputs)

    def _example_draws(self, name: str, rows: tuple[int, ...]) -> list[Tensor]:
        return [torch.ones((*rows, width), dtype=self.dtype, device=self.device) for width in draw_widths(self._models[name])]

    # The life cycle.

    def post_interaction(self, *, timestep: int, timesteps: int) -> None:
        """Learn, while training and from `learning_starts` on; then track and checkpoint."""
        self._learn_if_due(timestep=timestep, timesteps=timesteps)
        super().post_interaction(timestep=timestep, timesteps=timesteps)

    def update(self, *, timestep: int, timesteps: int) -> None:
        """Take `gradient_steps` gradient steps, each on a fresh batch from the memory."""
        self._take_gradient_steps(self.cfg.gradient_steps)

    def enable_models_training_mode(self, enabled: bool = True) -> None:
        """Set the models' own training mode (`torch.nn.Module.train`)."""
        changed = any(layer.training != enabled for model in self._models.values() for layer in model.modules())
        for model in self._models.values():
            model.train(enabled)
        if changed and not self._own_models:
            self._try_in_this_mode()
            self._fuse()  # what was recorded may have read the mode

    def _try_in_this_mode(self) -> None:
        """Try the models once more; their generators stay where they are."""
        states = {generator: generator.get_state() for generator in self._model_generators().values()}
        self._check_outputs({"policy": self._state.policy, **self._state.critics})
        for generator, state in states.items():
            generator.set_state(state)

    def synchronise(self) -> None:
        """Wait until the device has done all that it was asked for."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    @property
    def models(self) -> dict[str, nn.Module]:
        """The models with their current parameters, as copies: what was read once stays as it was."""
        parameters = {"policy": self._state.policy, **self._state.critics}
        models = {name: with_parameters(model, parameters[name]) for name, model in self._models.items()}
        for name, target in self._state.target_critics.items():
            models[f"target_{name}"] = with_parameters(self._models[name], target)
        return models

    @property
    def alpha(self) -> float:
        """The entropy coefficient in force."""
        return float(torch.exp(self._state.log_alpha))

    # One step on data of the caller's.

    def update_on(self, batch: Batch[Any] | Sequences[Any], noise: Noise[Any]) -> dict[str, NDArray[Any]]:
        """Take one gradient step on a given batch and noise; return the metrics on the host.

        Args:
            batch: NumPy or torch arrays; `(batch, ...)`, actions in (-1, 1), before preprocessing; of SAC_RNN sequences.
            noise: standard normal draws, `(batch, action)`, and what else the configuration draws.
        """
        advance_schedules(self._update, self._state)
        prepared = self._prepare(self._moments, batch.map(self._upload))
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

    def _act(self, way: str, observations: Tree, states: Tree | None) -> tuple[Tensor, Tensor]:
        inputs = {"observations": self._upload_tree(observations), "states": self._upload_tree(states)}
        actions, mean_actions, _ = self._run_actor(way, inputs, ())
        return actions, mean_actions

    def _run_actor(self, way: str, inputs: Any, carry: Tree) -> tuple[Tensor, Tensor, Tree]:
        acting = ActInputs(inputs, self._moments, carry)
        actions, mean_actions, carry, self._random = self._runner.act(way, self._random, acting)
        return actions, mean_actions, carry

    @staticmethod
    def _longest_integer() -> np.dtype[Any]:
        return np.dtype(np.int64)

    def _is_device_array(self, value: Any) -> bool:
        return isinstance(value, Tensor)

    def _upload(self, array: Any, *, copy: bool = False) -> Tensor:
        own = isinstance(array, Tensor)
        # Detached: what is handed over is data, whatever it was computed from.
        tensor = array.detach() if own else torch.from_numpy(np.array(as_numpy(array, "the array"), copy=True))
        dtype = self.dtype if tensor.dtype in (torch.float32, torch.float64) else tensor.dtype
        return tensor.to(device=self.device, dtype=dtype, copy=copy and own)

    def _as_floats(self, array: Tensor) -> Tensor:
        return array.to(self.dtype)

    def _export(self, model: str, parameters: Any) -> dict[str, NDArray[Any]]:
        return to_common(self._models[model], parameters)

    def _set_constants(self, constants: Mapping[str, Any]) -> None:
        for name, own in constants.items():
            set_constants(self._models[name], own)

    def _import(self, model: str, arrays: Mapping[str, NDArray[Any]], like: Any) -> Any:
        return from_common(self._models[model], arrays, like=like)

    def _like(self, array: NDArray[Any], like: Tensor) -> Tensor:
        return torch.as_tensor(np.array(array, copy=True)).to(like)

    def to_numpy(self, array: Any) -> NDArray[Any]:
        """An array of this agent's on the host, as a copy."""
        return np.array(array.detach().cpu().numpy() if isinstance(array, Tensor) else array)

    def _fetch(self, metrics: Sequence[Any]) -> NDArray[Any]:
        return self.to_numpy(torch.cat(list(metrics)))

    def _streams(self) -> dict[str, NDArray[Any]]:
        return {name: generator.get_state().numpy() for name, generator in self._all_generators().items()}

    def _begin_streams(self) -> None:
        for stream, generator in enumerate(self._random):
            generator.set_state(self._generator(stream).get_state())  # in place: a captured graph draws from it

    def _set_streams(self, streams: Mapping[str, NDArray[Any]]) -> None:
        for name, generator in self._all_generators().items():
            generator.set_state(torch.as_tensor(np.array(streams[name])))

    def _all_generators(self) -> dict[str, torch.Generator]:
        return {**self._random._asdict(), **self._model_generators()}

    def _model_generators(self) -> dict[str, torch.Generator]:
        """Those that layers of a user's own models draw from, as `<model>.<layer>`."""
        return {f"{name}.{path}": generator for name, model in self._models.items() for path, generator in generators(model).items()}

    @property
    def _layouts(self) -> dict[str, str]:
        return {name: "common" if isinstance(model, CommonLayout) else "torch" for name, model in self._models.items()}


@in_no_mode
class SAC_RNN(RecurrentAgent[Tensor], SAC):
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
    ) -> tuple[Tensor, Tensor, Tree]:
        inputs = {
            "observations": self._upload_tree(observations),
            "states": self._upload_tree(states),
            "previous_actions": self._upload(previous[0]),
            "previous_rewards": self._upload(previous[1]),
        }
        return self._run_actor(way, inputs, self._upload_tree(carry))

    @torch.no_grad()
    def _check_outputs(self, parameters: Mapping[str, Any]) -> None:
        super()._check_outputs(parameters)
