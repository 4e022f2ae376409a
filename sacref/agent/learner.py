"""The learner: parameters, optimizers, temperature and random streams, the gradient steps that change them, and their common names."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Generic

import numpy as np

from sacref.agent.backend import Backend, Functions
from sacref.agent.carry import AnyCarry
from sacref.agent.execution import Acted, ActInputs, Actor, AgentRunner, AnyStreams, Bounds, DrawSpec
from sacref.agent.members import MemberRunner
from sacref.agent.model_checks import draw_widths
from sacref.agent.models import Models
from sacref.agent.normalisers import Normalisers
from sacref.algorithm.data import Inputs, Noise, Sampled
from sacref.algorithm.optimizer import KeepGradients, Parameters, batch_mean
from sacref.algorithm.replay import AnyReplayMemory
from sacref.algorithm.tree import Tree, map_leaves
from sacref.algorithm.update import State
from sacref.config import Execution, SACConfig
from sacref.spec.arrays import Array, ArrayT, NumpyArray
from sacref.spec.policy_value import POLICY_VALUES
from sacref.storage.naming import prefixed, require_same_arrays, under

MOMENTS = ("first_moment", "second_moment")
FLOATS = ("learning_rate", "loss_scale")
"""Numbers of an optimizer, beside its moments, that are no integers."""
NOT_NEGATIVE = ("count", "second_moment")
"""Numbers of an optimizer that are never below 0: the next step would divide by 0 or take the root of a negative number."""
STREAMS = 3
"""Random streams of an agent: noise, sampling, exploration."""


class Learner(Generic[ArrayT]):
    """Holds what an agent learns, takes gradient steps and chooses actions.

    Args:
        action_size: dimensions of the actions. bounds: low and high of them on the device.
        memory: the replay memory, or None for an agent that only acts.
    """

    def __init__(
        self,
        backend: Backend[ArrayT],
        cfg: SACConfig,
        models: Models[ArrayT],
        normalisers: Normalisers[ArrayT],
        carry: AnyCarry[ArrayT],
        *,
        action_size: int,
        bounds: Bounds[ArrayT],
        memory: AnyReplayMemory | None,
    ) -> None:
        self.backend: Backend[ArrayT] = backend
        self._cfg, self._action_size = cfg, action_size
        self._models, self._normalisers, self._carry, self._memory = models, normalisers, carry, memory
        self.bounds = bounds
        self.gradient_step_count: int = 0
        parameters, models.initial_parameters = models.initial_parameters, {}
        self.check_models(parameters)
        self.update: Any = self._make_update()
        """The gradient step, `sacref.algorithm.update.Update`."""
        self.runner: AgentRunner[ArrayT, Any, Any] | MemberRunner[ArrayT, Any, Any] = backend.runner(self._initial_state(parameters))
        """What holds the state, learns and acts: of this agent alone, or of a population."""
        self.streams_key: tuple[int, ...] = ()
        """Key that the streams began from beside the seed and the rank; () for streams that began with the agent."""
        self.streams: AnyStreams = backend.streams(self._seeds())
        self._exploration_before: object = None
        """State of the exploration stream before an action that was chosen ahead; None where none waits to be taken."""
        self.execution: Execution = backend.choose_execution(cfg.execution, models.are_common)
        """How updates run: what `cfg.execution` asks for, or what was chosen for the device."""
        envs = 1 if memory is None else memory.num_envs
        self.block: int = max(1, int(cfg.chunk * cfg.gradient_steps_per_timestep(envs)))
        """Gradient steps between two actions, as a rule."""
        self._mode: bool | None = None
        """The models' training mode, once it was set."""
        self._by_mode: dict[bool, tuple[dict[str, Callable[..., Any]], Any, Functions[ArrayT]]] = {}
        """Mode that was left -> the models' functions, the update, and the functions that were made of them."""
        self.compile()

    # Construction.

    def _make_update(self) -> Any:
        cfg, optim, average = self._cfg, self.backend.optim, self.backend.average
        optimizer = partial(optim.Optimizer, scales_losses=cfg.scales_losses, average=average)
        policy_rate, critic_rate, entropy_rate = cfg.learning_rates
        schedules, clip, delay = cfg.schedules, cfg.grad_norm_clip, cfg.policy_delay
        return optim.Update(
            policy=self._carry.policy(),
            critics={name: self._carry.critic(name) for name in self._models.critics},
            policy_optimizer=optimizer(policy_rate, clip, schedules["policy"], delay),
            critic_optimizer=optimizer(critic_rate, clip, schedules["critic"]),
            temperature_optimizer=optimizer(entropy_rate, 0.0, schedules["entropy"], delay) if cfg.learn_entropy else optim.Frozen(),
            discount_factor=cfg.discount_factor,
            polyak=cfg.polyak,
            target_entropy=cfg.target_entropy_of(self._action_size),
            mean=batch_mean(average),
            policy_value=POLICY_VALUES[cfg.policy_value],
        )

    def _initial_state(self, parameters: Mapping[str, Parameters[ArrayT]]) -> State[ArrayT]:
        critics = {name: parameters[name] for name in self._models.critics}
        targets = {name: parameters[f"target_{name}"] for name in critics if f"target_{name}" in parameters}
        log_alpha = self.backend.upload(np.log(self._cfg.initial_entropy_value))
        return State(
            policy=parameters["policy"],
            critics=critics,
            target_critics=targets or map_leaves(self.backend.copy, critics),
            log_alpha=log_alpha,
            policy_optimizer=self.update.policy_optimizer.init(parameters["policy"]) if critics else None,
            critic_optimizer=self.update.critic_optimizer.init(critics) if critics else None,
            temperature_optimizer=self.update.temperature_optimizer.init(log_alpha),
        )

    def compile(self) -> None:
        """Make the functions that learn and act, of the update and the models as they are now."""
        self._by_mode.clear()
        self._use(self.backend.functions(self.update, self.draw_spec(), self.actor(), self.bounds, self.execution, self.block))

    def _use(self, functions: Functions[ArrayT]) -> None:
        self._functions = functions
        self.runner.use(functions.learn, functions.act, functions.fused)

    def draw_spec(self) -> DrawSpec[ArrayT, Any, Any]:
        """Return where the batch of a gradient step and its random numbers come from."""
        modules, critics = self._models.modules, self._models.critics
        return self.backend.draw_spec(
            modules,
            self._carry.follow,
            batch_size=self._cfg.batch_size,
            prepare=self._normalisers.prepare,
            num_critics=len(critics),
            target_subset=self._cfg.target_subset,
            draw_widths={name: widths for name in critics if (widths := draw_widths(modules[name]))},
        )

    def actor(self) -> Actor[ArrayT]:
        """Return the policy as acting calls it."""
        return self._carry.actor(self._models.functions["policy"])

    # Learning and acting.

    @property
    def state(self) -> State[ArrayT]:
        """Parameters, log alpha and the optimizers' states, on the device."""
        return self.runner.state

    def fuses(self, steps: int) -> bool:
        """Tell whether so many gradient steps, and an action after them, can be one call."""
        fused = self.runner.fused if isinstance(self.runner, AgentRunner) else None
        return fused is not None and steps % fused.steps == 0

    def take_gradient_steps(self, steps: int) -> Sequence[ArrayT]:
        """Take gradient steps on batches from the memory; return their packed metrics, `(gradient step, metric)` each.

        Raises:
            ValueError: if there is no memory, or nothing in it.
        """
        if self._memory is None:
            raise ValueError("update: this agent has no memory to learn from: construct it with memory=ReplayMemory(...)")
        if not self._memory.written:
            raise ValueError("update: the memory is empty: record transitions in training mode first, or raise learning_starts")
        self.streams, packed = self.runner.learn(self._memory.state, self._normalisers.moments, self.streams, steps)
        self.gradient_step_count += steps
        return packed

    def learn_and_act(self, steps: int, mode: str, inputs: Inputs[Array], carry: Tree) -> tuple[Sequence[ArrayT], Acted[ArrayT]]:
        """Take gradient steps, and choose an action with the new parameters, which waits to be taken: see `take_back`.

        Rows that wait on the host are written, the last steps taken and the action chosen in one call.

        Args:
            steps: as many as `fuses` says. mode, inputs, carry: as of `act`; host arrays.

        Returns:
            Packed metrics, as of `take_gradient_steps`; actions, mean actions and the carry after them.
        """
        runner, memory = self.runner, self._memory
        assert memory is not None and isinstance(runner, AgentRunner) and runner.fused is not None
        before = steps - runner.fused.steps
        packed = list(self.take_gradient_steps(before)) if before else []
        self._exploration_before = self.backend.exploration(self.streams)
        rings, rows = memory.hand_over()
        given = ActInputs(inputs, self._normalisers.moments, carry)
        rings, self.streams, metrics, acted = runner.learn_and_act(rings, rows, self.streams, mode, given)
        memory.take_back(rings)
        self.gradient_step_count += runner.fused.steps
        return [*packed, metrics], acted

    def take_back(self) -> None:
        """Put the exploration stream back to where it was before the action that was chosen ahead, as that is not taken."""
        if self._exploration_before is not None:
            self.streams, self._exploration_before = self.backend.with_exploration(self.streams, self._exploration_before), None

    def go_on_from(self, exploration: NumpyArray) -> bool:
        """Let an action that was chosen ahead wait, which left the exploration stream at this state; tell whether the stream has such.

        Raises:
            ValueError: if it is no state of a random stream. Nothing is changed then.
        """
        before = self.backend.exploration(self.streams)
        if self.backend.to_numpy(before).shape != exploration.shape:
            return False  # of another kind of device
        self.streams = self.backend.with_exploration(self.streams, exploration)
        self._exploration_before = before
        return True

    def take(self) -> None:
        """Let the exploration stream go on from the action that was chosen ahead."""
        self._exploration_before = None

    def take_gradient_step_on(self, batch: Sampled[Array], noise: Noise[Array]) -> dict[str, NumpyArray]:
        """Take one gradient step on a given batch and noise; return the metrics on the host."""
        self.backend.prepare_step(self.update, self.state)
        prepared = self._normalisers.prepare(self._uploaded_moments(), batch.map(self.backend.upload))
        self.runner.state, metrics = self._functions.step(self.state, prepared, noise.map(self.backend.upload))
        self.gradient_step_count += 1
        return {name: self.backend.to_numpy(value) for name, value in metrics.items()}

    def act(self, mode: str, inputs: Inputs[ArrayT], carry: Tree) -> tuple[ArrayT, ArrayT, Tree]:
        """Return actions and mean actions in the Box's units, `(envs, action)`, and the carry after them.

        Args:
            mode: "greedy", "random" or "sampled". inputs: `(envs, ...)`, before preprocessing.
        """
        given = ActInputs(inputs, self._normalisers.moments, carry)
        actions, mean_actions, carry, self.streams = self.runner.act(mode, self.streams, given)
        return actions, mean_actions, carry

    def keep_gradients(self) -> None:
        """Keep the gradients of the last step from now on."""
        state, update = self.state, self.update
        for slot, (_, tree) in _optimized(state).items():
            update = replace(update, **{slot: KeepGradients(getattr(update, slot))})
            state = state._replace(**{slot: KeepGradients.around(tree, getattr(state, slot))})
        self.update, self.runner.state = update, state
        self.compile()

    def gradients(self) -> dict[str, NumpyArray]:
        """Return the gradients of the last step, before clipping, under common names.

        Raises:
            ValueError: if they are not kept.
        """
        if not isinstance(self.update.policy_optimizer, KeepGradients):
            raise ValueError("gradients: they are not kept: call keep_gradients() before the step")
        state = self.state
        policy = self._flatten("policy", state.policy_optimizer[1], "policy")
        critics = self._flatten("", state.critic_optimizer[1], "critics")
        return {**policy, **critics, "log_alpha": self.backend.to_numpy(state.temperature_optimizer[1])}

    def check_models(self, parameters: Mapping[str, Any]) -> None:
        """Try the models on a few rows."""
        self._carry.check_models(parameters, self._uploaded_moments())

    def switch_mode(self, training: bool) -> None:
        """Set the models' own training mode.

        A member of a population keeps its functions, made in training mode: it is evaluated in between, and no usual policy reads the mode.
        """
        left, self._mode = self._mode, training
        if not self.backend.switch_mode(self._models.modules, training, self._check_current):
            return
        if isinstance(self.runner, MemberRunner) and self._models.are_common:
            return
        by_mode = self._by_mode
        if left is not None and self.backend.reuses_functions:
            by_mode = {**by_mode, left: (self._models.functions, self.update, self._functions)}
        if training in by_mode:
            self._models.functions, self.update, functions = by_mode[training]
            self._use(functions)
        else:
            self.take_functions()
        self._by_mode = by_mode

    def _check_current(self) -> None:
        self.check_models({"policy": self.state.policy, **self.state.critics})

    def take_functions(self) -> None:
        """Learn and act with the models as they are now, which functions may have read once."""
        self._models.take_functions()
        critics = {name: self._carry.critic(name) for name in self._models.critics}
        self.update = replace(self.update, policy=self._carry.policy(), critics=critics)
        self.compile()

    def current_models(self) -> dict[str, Any]:
        """Return copies of the models with their current parameters."""
        modules, state, fill = self._models.modules, self.state, self.backend.weights.with_parameters
        models = {name: fill(modules[name], own) for name, own in {"policy": state.policy, **state.critics}.items()}
        return models | {f"target_{name}": fill(modules[name], own) for name, own in state.target_critics.items()}

    def synchronise(self) -> None:
        """Wait until the device has done all that it was asked for."""
        self.backend.synchronise((self.state, self.streams, None if self._memory is None else self._memory.state))

    def _uploaded_moments(self) -> Tree:
        return map_leaves(self.backend.upload, self._normalisers.moments)

    # Arrays under common names.

    def arrays(self) -> dict[str, NumpyArray]:
        """Return all that the agent knows; see `Agent.arrays`."""
        return {**self.learned_arrays(), **self.constant_arrays()}

    def constant_arrays(self) -> dict[str, NumpyArray]:
        """Return the models' constants. They may be infinite, as masks are."""
        return self._flatten("", self._models.constants, "critics")

    def learned_arrays(self) -> dict[str, NumpyArray]:
        """Return `arrays` without the models' constants."""
        state, to_numpy = self.state, self.backend.to_numpy
        arrays = self._flatten("policy", state.policy, "policy") | self._flatten("", state.critics, "critics")
        arrays |= {f"target_{name}": array for name, array in self._flatten("", state.target_critics, "critics").items()}
        arrays |= {"log_alpha": to_numpy(state.log_alpha), "gradient_steps": np.array(self.gradient_step_count, np.int64)}
        for slot, (kind, tree) in _optimized(state).items():
            moments = getattr(self.update, slot).moments(tree, getattr(state, slot))
            for name, moment in (moments or {}).items():
                if name in MOMENTS:
                    arrays |= self._flatten(f"{slot}.{name}", moment, kind)
                else:
                    scalar = to_numpy(moment)
                    arrays[f"{slot}.{name}"] = scalar if name in FLOATS else scalar.astype(np.int64)
        return arrays | self._normalisers.arrays()

    def set_arrays(self, arrays: Mapping[str, NumpyArray]) -> None:
        """Go on from what `arrays` gave, on this backend or the other.

        Raises:
            ValueError: if a name or a shape is not this agent's, or an optimizer's count or second moments are negative. Nothing is
                changed then.
        """
        own = self.arrays()
        require_same_arrays(arrays, own)
        try:
            self._take_arrays(arrays)
        except Exception:
            self._take_arrays(own)
            raise

    def _take_arrays(self, arrays: Mapping[str, NumpyArray]) -> None:
        old, constants_before = self.state, self._models.constants
        held = {"policy": old.policy, **old.critics}
        models = {name: self._from_common(name, under(arrays, name), {**own, **constants_before[name]}) for name, own in held.items()}
        learned = {name: {key: models[name][key] for key in own} for name, own in held.items()}
        constants = {name: {key: models[name][key] for key in own} for name, own in constants_before.items()}
        targets = {name: self._from_common(name, under(arrays, f"target_{name}"), like) for name, like in old.target_critics.items()}
        state = old._replace(
            policy=learned.pop("policy"),
            critics=learned,
            target_critics=targets,
            log_alpha=self.backend.like(arrays["log_alpha"], old.log_alpha),
        )
        for slot, (kind, tree) in _optimized(state).items():
            optimizer = getattr(self.update, slot)
            if f"{slot}.count" in arrays:
                _require_not_negative(slot, under(arrays, slot))
                trees = {moment: self._unflatten(f"{slot}.{moment}", arrays, tree, kind) for moment in MOMENTS}
                scalars = {name: array for name, array in under(arrays, slot).items() if name.partition(".")[0] not in MOMENTS}
                state = state._replace(**{slot: optimizer.with_moments(tree, {**scalars, **trees})})
            else:
                state = state._replace(**{slot: optimizer.init(tree)})
        self._normalisers.set_arrays(arrays)
        if self._models.set_constants(constants):
            self.take_functions()
        self.runner.state, self.gradient_step_count = state, int(arrays["gradient_steps"])

    def _from_common(self, model: str, arrays: Mapping[str, NumpyArray], like: Tree) -> Tree:
        return self.backend.weights.from_common(self._models.modules[model], arrays, like=like)

    def _flatten(self, prefix: str, tree: Tree, kind: str) -> dict[str, NumpyArray]:
        if kind == "scalar":
            return {prefix: self.backend.to_numpy(tree)}
        branches = {"policy": tree} if kind == "policy" else tree
        flat: dict[str, NumpyArray] = {}
        for name, branch in branches.items():
            path = prefix if kind == "policy" else f"{prefix}.{name}" if prefix else name
            flat |= prefixed(path, self.backend.weights.to_common(self._models.modules[name], branch))
        return flat

    def _unflatten(self, prefix: str, arrays: Mapping[str, NumpyArray], like: Tree, kind: str) -> Tree:
        if kind == "scalar":
            return self.backend.like(arrays[prefix], like)
        if kind == "policy":
            return self._from_common("policy", under(arrays, prefix), like)
        return {name: self._from_common(name, under(arrays, f"{prefix}.{name}"), branch) for name, branch in like.items()}

    # Random streams.

    def stream_states(self) -> dict[str, NumpyArray]:
        """Return the states of the random streams, on the host, as they are without an action that waits to be taken."""
        states = self.backend.stream_states(self.streams, self._models.modules)
        before = self._exploration_before
        return states if before is None else {**states, "exploration": self.backend.to_numpy(before)}

    def set_stream_states(self, states: Mapping[str, NumpyArray]) -> None:
        """Go on from the states that `stream_states` gave."""
        self._exploration_before = None
        self.streams = self.backend.set_stream_states(self.streams, self._models.modules, states)

    def begin_streams(self, *key: int) -> None:
        """Begin other random streams, from the seed, the rank and `key`."""
        self._exploration_before = None
        self.streams_key = key
        self.streams = self.backend.streams(self._seeds(), self.streams)

    def _seeds(self) -> list[np.random.SeedSequence]:
        entropy = self._cfg.seed, self.backend.ranks.rank
        return [np.random.SeedSequence([*entropy, stream], spawn_key=self.streams_key) for stream in range(STREAMS)]


def _optimized(state: State[ArrayT]) -> dict[str, tuple[str, Tree]]:
    """Return, by optimizer, the kind of tree that it steps and the tree; none without critics, as such an agent only acts."""
    if not state.critics:
        return {}
    return {
        "policy_optimizer": ("policy", state.policy),
        "critic_optimizer": ("critics", state.critics),
        "temperature_optimizer": ("scalar", state.log_alpha),
    }


def _require_not_negative(slot: str, arrays: Mapping[str, NumpyArray]) -> None:
    for name, array in arrays.items():
        if name.partition(".")[0] in NOT_NEGATIVE and (array < 0).any():
            raise ValueError(f"{slot}.{name} has {array.min()}, expected numbers >= 0: take another checkpoint, or what arrays() gave")
