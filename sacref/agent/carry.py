"""Carries of recurrent models: they are acted with, reset and stored, and run over sequences.

A model without a carry takes part in `SAC_RNN`: `()` fills its slot. `NoCarry` fills that of an agent without any.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from sacref.agent.backend import Backend
from sacref.agent.execution import ActInputs, Actor
from sacref.agent.model_checks import (
    check_carry_output,
    check_critic_output,
    check_parts,
    check_policy_output,
    check_reads_states,
    example_inputs,
)
from sacref.agent.models import Models
from sacref.agent.normalisers import Normalisers
from sacref.agent.transitions import Rows
from sacref.algorithm.data import Inputs, Transition, Window
from sacref.algorithm.optimizer import Parameters
from sacref.algorithm.replay import AnyReplayMemory
from sacref.algorithm.sequences import Follow
from sacref.algorithm.tree import Tree, leaves, map_leaves
from sacref.config import ConfigError, SACConfig
from sacref.envs.spaces import Spaces
from sacref.spec.arrays import Array, ArrayT, namespace
from sacref.storage.values import Like, Maybe

logger: logging.Logger = logging.getLogger(__name__)

Function: TypeAlias = Callable[..., Any]
"""A model as a function of its parameters, and of what it is called with."""


def refuse_carries(models: Mapping[str, object]) -> None:
    """Refuse models with a carry, for an agent that keeps none.

    Raises:
        ValueError: naming the models.
    """
    recurrent = sorted(name for name, model in models.items() if hasattr(model, "initial_carry"))
    if recurrent:
        raise ValueError(f"models {recurrent} have an initial_carry, expected models without one for SAC: give them to SAC_RNN")


def policy_with_carry(function: Function, *, recurrent: bool) -> Function:
    """Return a policy as `(parameters, inputs, carry) -> (mean, raw log_std, carry)` on `(time, batch, ...)`."""

    def plain(parameters: Parameters[ArrayT], inputs: Inputs[ArrayT], carry: Tree) -> tuple[ArrayT, ArrayT, Tree]:
        time, batch = leaves(inputs["observations"])[0].shape[:2]
        outputs = function(parameters, map_leaves(_rows, inputs))
        if not isinstance(outputs, tuple) or len(outputs) != 2:
            raise ValueError(f"model 'policy' returned {type(outputs).__name__}, expected a tuple (mean, raw log_std)")
        mean, raw_log_std = (output.reshape((time, batch, *output.shape[1:])) for output in outputs)
        return mean, raw_log_std, ()

    return function if recurrent else plain


def critic_with_carry(function: Function, *, recurrent: bool) -> Function:
    """Return a critic as `(parameters, inputs, actions, carry, *draws) -> (values, carry)` on `(time, batch, ...)`."""

    def plain(parameters: Parameters[ArrayT], inputs: Inputs[ArrayT], actions: ArrayT, carry: Tree, *draws: ArrayT) -> tuple[ArrayT, Tree]:
        time, batch = actions.shape[:2]
        values = function(
            parameters, map_leaves(_rows, inputs), _rows(actions), *(_rows(draw) if _of_steps(draw) else draw for draw in draws)
        )
        return values.reshape((time, batch, *values.shape[1:])), ()

    return function if recurrent else plain


def _rows(array: ArrayT) -> ArrayT:
    """Reshape `(time, batch, ...)` to `(time * batch, ...)`."""
    return namespace(array).reshape(array, (array.shape[0] * array.shape[1], *array.shape[2:]))


def _of_steps(draw: ArrayT) -> bool:
    """Tell a draw with numbers for each step from a key, as user-written models of JAX take, which is one for all."""
    return bool(draw.ndim > 1)


def over_window_policy(policy: Function, *, recurrent: bool) -> Function:
    """Return the policy as the update calls it: `(parameters, window) -> (mean, raw log_std)` of the window's steps."""

    def run(parameters: Parameters[ArrayT], window: Window[ArrayT]) -> tuple[ArrayT, ArrayT]:
        mean, raw_log_std, _ = policy(parameters, window.sequence, window.carry)
        return _steps_of(window, mean), _steps_of(window, raw_log_std)

    def plain(parameters: Parameters[ArrayT], window: Window[ArrayT]) -> tuple[ArrayT, ArrayT]:
        mean, raw_log_std, _ = policy(parameters, map_leaves(partial(_steps_of, window), window.sequence), ())
        return mean, raw_log_std

    return run if recurrent else plain


def over_window_critic(critic: Function, initial_carry: Callable[[int], Tree], *, recurrent: bool) -> Function:
    """Return a critic as the update calls it: `(parameters, window, actions, *draws) -> values` of the window's steps.

    Its carry starts from its own initial one, never from the policy's.
    """

    def run(parameters: Parameters[ArrayT], window: Window[ArrayT], actions: ArrayT, *draws: ArrayT) -> ArrayT:
        # The step that is not asked for is evaluated at zeros, which nothing sees: evaluated actions do not enter the carry.
        filled = [_with_blank(window, draw) if _of_steps(draw) else draw for draw in draws]
        values, _ = critic(parameters, window.sequence, _with_blank(window, actions), initial_carry(actions.shape[1]), *filled)
        steps: ArrayT = _steps_of(window, values)
        return steps

    def plain(parameters: Parameters[ArrayT], window: Window[ArrayT], actions: ArrayT, *draws: ArrayT) -> ArrayT:
        values: ArrayT
        values, _ = critic(parameters, map_leaves(partial(_steps_of, window), window.sequence), actions, (), *draws)
        return values

    return run if recurrent else plain


def _steps_of(window: Window[ArrayT], array: ArrayT) -> ArrayT:
    steps: ArrayT = array[window.shift : array.shape[0] - 1 + window.shift]
    return steps


def _with_blank(window: Window[ArrayT], array: ArrayT) -> ArrayT:
    xp = namespace(array)
    blank: ArrayT = xp.zeros_like(array[:1])
    return namespace(array).concat([blank, array] if window.shift else [array, blank])


def zero_where(starts: ArrayT, array: ArrayT, initial: ArrayT | None = None) -> ArrayT:
    """Return `array`, `(envs, ...)`, with `initial` (else zeros) in the rows of `starts`."""
    xp = namespace(starts, array)
    rows = xp.reshape(starts, (array.shape[0], *(1 for _ in array.shape[1:])))
    changed: ArrayT = xp.where(rows, xp.zeros_like(array) if initial is None else initial, array)
    return changed


class Prediction(NamedTuple):
    """State of a recurrent policy between two calls of `Agent.predict`, on the host."""

    carry: Tree
    """The policy's, `(n, ...)` each."""
    previous: Tree
    """Its inputs beside observations and states: `previous_actions` in [-1, 1], `(n, action)`; {} for an agent without a carry."""


class NoCarry(Generic[ArrayT]):
    """The carry of an agent whose models have none.

    Args:
        memory: the replay memory, or None.
    """

    shapes_evaluation = False
    """True where rewards are shaped in evaluation too."""

    def __init__(
        self,
        backend: Backend[ArrayT],
        cfg: SACConfig,
        spaces: Spaces,
        models: Models[ArrayT],
        normalisers: Normalisers[ArrayT],
        memory: AnyReplayMemory | None,
    ) -> None:
        self._backend, self._cfg, self._spaces = backend, cfg, spaces
        self._models, self._normalisers = models, normalisers
        self.follow: Follow = Follow(n_step=cfg.n_step, discount_factor=cfg.discount_factor)
        """Settings by which the memory makes batches."""

    @staticmethod
    def check_options(cfg: SACConfig, algorithm: str) -> None:
        """Raise ConfigError for fields that this algorithm does not read."""
        usual = SACConfig()
        for name in ("sequence_length", "burn_in", "stored_carry"):
            if getattr(cfg, name) != getattr(usual, name):
                raise ConfigError(
                    f"{name} is {getattr(cfg, name)}, which SAC_RNN alone reads, and this is {algorithm}: leave it at "
                    f"{getattr(usual, name)}, or train recurrent models with SAC_RNN (sacref train --recurrent gru)"
                )

    def policy(self) -> Function:
        """Return the policy as the update calls it."""
        return self._models.functions["policy"]

    def critic(self, name: str) -> Function:
        """Return a critic as the update calls it."""
        return self._models.functions[name]

    def actor(self, policy: Function) -> Actor[ArrayT]:
        """Return a policy as acting calls it: `(parameters, inputs) -> (mean, raw log_std, carry)`."""
        prepare = self._normalisers.prepare_inputs

        def actor(parameters: Parameters[ArrayT], acting: ActInputs[ArrayT]) -> tuple[ArrayT, ArrayT, Tree]:
            mean, raw_log_std = policy(parameters, prepare(acting.moments, acting.inputs))
            return mean, raw_log_std, ()

        return actor

    def check_models(self, parameters: Mapping[str, Parameters[ArrayT]], moments: Tree) -> None:
        """Try the models on a few rows; raise ValueError if they cannot be used."""
        refuse_carries(self._models.modules)
        backend, functions, rows = self._backend, self._models.functions, 3
        inputs = self._examples(moments, rows)
        actions = backend.upload(np.zeros((rows, self._spaces.action_size)))
        outputs = self._models.try_out("policy", backend.on_trial(functions["policy"]), parameters["policy"], inputs)
        check_policy_output(outputs, rows=(rows,), action_size=self._spaces.action_size, dtype=backend.dtype)
        values, others = {}, {}
        for name in self._models.critics:
            function, draws = functions[name], backend.example_draws(self._models.modules[name], (rows,))
            output = self._models.try_out(name, backend.on_trial(function), parameters[name], inputs, actions, *draws)
            check_critic_output(name, output, rows=(rows,), dtype=backend.dtype)
            if self._spaces.states is not None:
                known = output if backend.is_array(output) else function(parameters[name], inputs, actions, *draws)
                other = {**inputs, "states": self._examples(moments, rows, other=1)["states"]}
                values[name] = backend.to_numpy(known)
                others[name] = backend.to_numpy(function(parameters[name], other, actions, *draws))
        check_reads_states(values, others)

    def _examples(self, moments: Tree, rows: int, other: int = 0) -> Any:
        inputs = map_leaves(self._backend.upload, example_inputs(self._spaces, rows, self._cfg.seed ^ other))
        return self._normalisers.prepare_inputs(moments, inputs)

    def stored_carry(self) -> Tree:
        """Return the carry that the memory stores, for one environment."""
        return None

    def initial_prediction(self, rows: int) -> Prediction:
        """Return what `Agent.predict` carries before the first observations of so many episodes."""
        return Prediction((), {})

    def inputs(self, observations: Tree, states: Tree | None, training: bool) -> tuple[Inputs[Array], Tree]:
        """Return what the policy acts on, and its carry before that; for the arguments see `Acting.choose`."""
        return {"observations": observations, "states": states}, ()

    def acted(self, inputs: Inputs[Array], before: Tree, after: Tree, training: bool) -> None:
        """Go on from actions that are taken: the policy acted on `inputs`, its carry was `before` and is `after`."""

    def carry_like(self, envs: int) -> Tree:
        """Describe the carry of so many environments, for `refuse_unlike`."""
        return ()

    def stored(self, rows: Rows[Array], training: bool) -> Transition[Array]:
        """Return the rows as the memory keeps them. Called for each, in evaluation too, where it keeps none."""
        transition: Transition[Array] = rows.transition
        return transition._replace(first=rows.first) if self.follow.needs_first else transition

    def count_timestep(self) -> None:
        """Count a timestep whose rows were stored."""

    def is_ready(self) -> bool:
        """Tell whether the memory holds what a gradient step needs."""
        return True

    def count_stored(self) -> None:
        """Count what the memory holds, after it was loaded."""

    def reset(self, training: bool) -> None:
        """Forget the episodes of this mode, as after a reset of all environments."""

    def state(self) -> dict[str, object]:
        """Return the in-flight state, on the host."""
        return {}

    def state_like(self, envs: int) -> dict[str, object]:
        """Describe `state`, for `refuse_unlike`."""
        return {}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave."""


@dataclass
class Ongoing:
    """A policy's memory of unfinished episodes, in one mode; NumPy, or the backend's arrays where the environments give those."""

    carry: Tree = None
    """The policy's, `(envs, ...)` each, after the last observation; None before the first."""
    before: Tree = None
    """The carry before the last observation, which belongs to the row that is recorded next; None once it is."""
    previous: tuple[Array, Array] | None = None
    """Actions in [-1, 1], `(envs, action)`, and rewards, `(envs,)`, of the last row; None before the first."""
    starts: Array | None = None
    """`(envs,)`, bool: where the next observation begins an episode; None where nothing has begun since the last reset."""


class Carry(Generic[ArrayT]):
    """The carries of the policy's episodes, and the models over sequences. For arguments and methods see `NoCarry`.

    A model with a carry has `initial_carry(batch)`, and is called on `(time, batch, ...)`: `policy(inputs, carry) -> (mean, raw log_std,
    carry)`, `critic(inputs, actions, carry) -> (values, carry)` (`default_models(recurrent=...)`). Models without one take part.

    `batch_size` counts sequences. The policy starts from its stored carry (Kapturowski et al. 2019, R2D2), or from its initial one, as the
    critics do; `burn_in` steps warm both up and have no loss of their own, though gradients pass through them.
    """

    shapes_evaluation = True  # the policy may see the previous reward

    def __init__(
        self,
        backend: Backend[ArrayT],
        cfg: SACConfig,
        spaces: Spaces,
        models: Models[ArrayT],
        normalisers: Normalisers[ArrayT],
        memory: AnyReplayMemory | None,
    ) -> None:
        self._backend, self._cfg, self._spaces, self._memory = backend, cfg, spaces, memory
        self._models, self._normalisers = models, normalisers
        self.follow: Follow = Follow(sequence_length=cfg.sequence_length, burn_in=cfg.burn_in)
        self.ongoing: dict[bool, Ongoing] = {True: Ongoing(), False: Ongoing()}
        """The unfinished episodes of training, and of evaluation."""
        self._initial_carries: dict[tuple[int, bool], Tree] = {}
        """(environments, whether on the device) -> the policy's carry before an episode."""
        self._recorded_timesteps = 0
        """Timesteps in the memory, at least while they are fewer than a sequence's."""
        self._said_waiting = self._said_padded = False
        self._episode_lengths: NDArray[np.int64] | None = None

    @staticmethod
    def check_options(cfg: SACConfig, algorithm: str) -> None:
        if cfg.n_step != 1:
            raise ConfigError(
                f"n_step is {cfg.n_step}, expected 1 for SAC_RNN: its targets come from one pass over a sequence, a step ahead each"
            )
        if cfg.overlap:
            raise ConfigError(
                "overlap is True, expected False for SAC_RNN: an action that is chosen ahead and then not taken would move the carry"
            )

    # The models.

    def policy(self) -> Function:
        recurrent = self._models.is_recurrent("policy")
        policy = over_window_policy(self._policy_with_carry(), recurrent=recurrent)
        if self._cfg.stored_carry or not recurrent:
            return policy

        def from_initial_carry(parameters: Parameters[ArrayT], window: Window[ArrayT]) -> tuple[ArrayT, ArrayT]:
            rows = leaves(window.carry)[0].shape[0]
            outputs: tuple[ArrayT, ArrayT] = policy(parameters, window._replace(carry=self._models.initial_carry("policy", rows)))
            return outputs

        return from_initial_carry

    def critic(self, name: str) -> Function:
        initial = partial(self._models.initial_carry, name)
        return over_window_critic(self._critic_with_carry(name), initial, recurrent=self._models.is_recurrent(name))

    def actor(self, policy: Function) -> Actor[ArrayT]:
        policy = policy_with_carry(policy, recurrent=self._models.is_recurrent("policy"))
        prepare = self._normalisers.prepare_inputs

        def actor(parameters: Parameters[ArrayT], acting: ActInputs[ArrayT]) -> tuple[ArrayT, ArrayT, Tree]:
            inputs = map_leaves(lambda leaf: leaf[None], prepare(acting.moments, acting.inputs))  # a sequence of one step
            mean, raw_log_std, carry = policy(parameters, inputs, acting.carry)
            return mean[0], raw_log_std[0], carry

        return actor

    def _policy_with_carry(self) -> Function:
        return policy_with_carry(self._models.functions["policy"], recurrent=self._models.is_recurrent("policy"))

    def _critic_with_carry(self, name: str) -> Function:
        return critic_with_carry(self._models.functions[name], recurrent=self._models.is_recurrent(name))

    def check_models(self, parameters: Mapping[str, Parameters[ArrayT]], moments: Tree) -> None:
        models, backend, action_size = self._models, self._backend, self._spaces.action_size
        time, rows = 2, 3
        inputs = self._examples(moments, time, rows)
        actions, carry = inputs["previous_actions"], models.initial_carry("policy", rows)
        outputs = models.try_out("policy", self._policy_with_carry(), parameters["policy"], inputs, carry)
        mean, raw_log_std, after = check_parts("policy", outputs, 3)
        check_policy_output((mean, raw_log_std), rows=(time, rows), action_size=action_size, dtype=backend.dtype)
        check_carry_output("policy", carry, after)
        values, others = {}, {}
        for name in models.critics:
            draws, carry = backend.example_draws(models.modules[name], (time, rows)), models.initial_carry(name, rows)
            critic = self._critic_with_carry(name)
            output, after = check_parts(name, models.try_out(name, critic, parameters[name], inputs, actions, carry, *draws), 2)
            check_critic_output(name, output, rows=(time, rows), dtype=backend.dtype)
            check_carry_output(name, carry, after)
            if self._spaces.states is not None:
                other = {**inputs, "states": self._examples(moments, time, rows, other=1)["states"]}
                values[name] = backend.to_numpy(output)
                others[name] = backend.to_numpy(critic(parameters[name], other, actions, carry, *draws)[0])
        check_reads_states(values, others)

    def _examples(self, moments: Tree, time: int, rows: int, other: int = 0) -> Any:
        inputs = map_leaves(self._backend.upload, example_inputs(self._spaces, rows, self._cfg.seed ^ other))
        prepared = self._normalisers.prepare_inputs(moments, inputs)
        actions = self._backend.upload(np.zeros((time, rows, self._spaces.action_size)))
        sequences = map_leaves(lambda leaf: namespace(leaf).stack([leaf] * time), prepared)
        return {**sequences, "previous_actions": actions, "previous_rewards": actions[..., 0]}

    # Acting and recording.

    def stored_carry(self) -> Tree:
        return self._models.initial_carry("policy", 1)

    def initial_prediction(self, rows: int) -> Prediction:
        carry = map_leaves(self._backend.to_numpy, self._models.initial_carry("policy", rows))
        return Prediction(carry, {"previous_actions": np.zeros((rows, self._spaces.action_size))})

    def inputs(self, observations: Tree, states: Tree | None, training: bool) -> tuple[Inputs[Array], Tree]:
        now, backend = self.ongoing[training], self._backend
        sample = leaves(observations)[0]
        envs, on_device = int(sample.shape[0]), backend.is_array(sample)
        convert: Callable[[object], Array] = backend.upload if on_device else backend.to_numpy
        if (envs, on_device) not in self._initial_carries:
            self._initial_carries[envs, on_device] = map_leaves(convert, self._models.initial_carry("policy", envs))
        initial = carry = self._initial_carries[envs, on_device]
        actions, rewards = map(convert, self._previous(now, envs))  # rows may have come in arrays of the other kind
        if now.carry is not None and leaves((now.carry, actions))[0].shape[0] == envs:
            carry = now.carry
            if now.starts is not None:
                starts = convert(now.starts)
                carry = map_leaves(lambda array, fresh: zero_where(starts, convert(array), fresh), carry, initial)
                actions, rewards = zero_where(starts, actions), zero_where(starts, rewards)
        inputs: Inputs[Array] = {"observations": observations, "states": states, "previous_actions": actions, "previous_rewards": rewards}
        return inputs, carry

    def acted(self, inputs: Inputs[Array], before: Tree, after: Tree, training: bool) -> None:
        now, backend = self.ongoing[training], self._backend
        now.previous, now.starts, now.before = (inputs["previous_actions"], inputs["previous_rewards"]), None, before
        now.carry = after if backend.is_array(inputs["previous_actions"]) else map_leaves(backend.to_numpy, after)

    def carry_like(self, envs: int) -> Tree:
        carry = map_leaves(self._backend.to_numpy, self._models.initial_carry("policy", envs))
        return map_leaves(lambda array: Like(array.shape, array.dtype.kind), carry)

    def _previous(self, now: Ongoing, envs: int) -> tuple[Array, Array]:
        """Return actions and rewards of the last row, or zeros before the first one of so many environments."""
        if now.previous is None or now.previous[1].shape[0] != envs:
            return np.zeros((envs, self._spaces.action_size)), np.zeros(envs)
        return now.previous

    def stored(self, rows: Rows[Array], training: bool) -> Transition[Array]:
        now, transition = self.ongoing[training], rows.transition
        envs = rows.keep.shape[0]
        convert: Callable[[object], Array] = self._backend.upload if rows.on_device else self._backend.to_numpy
        before, now.before = now.before, None
        if before is None:  # recorded without an act: nobody knows what a policy would have carried
            before = self._models.initial_carry("policy", envs)
        previous = now.previous or (np.zeros((envs, self._spaces.action_size)), np.zeros(envs))
        previous_actions, previous_rewards = (zero_where(rows.first, convert(array)) for array in previous)
        now.previous, now.starts = (transition.actions, transition.rewards), rows.starts
        if training:
            self.count_timestep()
            if not rows.on_device:
                self._note_short_episodes(rows)
        stored: Transition[Array] = transition._replace(
            first=rows.first,
            previous_actions=previous_actions,
            previous_rewards=previous_rewards,
            carry=map_leaves(convert, before),
        )
        return stored

    def _note_short_episodes(self, rows: Rows[Any]) -> None:
        if self._said_padded:
            return
        lengths = np.zeros(rows.keep.shape[0], np.int64) if self._episode_lengths is None else self._episode_lengths
        lengths = np.where(rows.first, 0, lengths) + rows.keep
        short = rows.ended & rows.keep & (lengths < self._cfg.sequence_length)
        if short.any():
            self._said_padded = True
            logger.warning(
                "an episode ended after %d steps, sequence_length is %d: its sequences are padded, and the padding counts for nothing",
                int(lengths[short].min()),
                self._cfg.sequence_length,
            )
        self._episode_lengths = lengths

    def count_timestep(self) -> None:
        self._recorded_timesteps += 1

    def is_ready(self) -> bool:
        if self._recorded_timesteps >= self._cfg.sequence_length:
            return True
        if not self._said_waiting:
            self._said_waiting = True
            logger.info(
                "learning waits: %d timesteps are stored, sequence_length is %d", self._recorded_timesteps, self._cfg.sequence_length
            )
        return False

    # State.

    def count_stored(self) -> None:
        if self._memory is not None:
            self._recorded_timesteps = -(-len(self._memory) // self._memory.num_envs)

    def reset(self, training: bool) -> None:
        self.ongoing[training] = Ongoing()

    def state(self) -> dict[str, object]:
        now = self.ongoing[True]
        return {
            "ongoing": map_leaves(self._backend.to_numpy, (now.carry, now.before, now.previous, now.starts)),
            "recorded_timesteps": self._recorded_timesteps,
            "episode_lengths": self._episode_lengths,
        }

    def state_like(self, envs: int) -> dict[str, object]:
        carry = Maybe(self.carry_like(envs))
        previous = Maybe((Like((envs, self._spaces.action_size), "f"), Like((envs,), "f")))
        return {
            "ongoing": (carry, carry, previous, Maybe(Like((envs,), "b"))),
            "recorded_timesteps": int,
            "episode_lengths": Maybe(Like((envs,), "i")),
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        self.ongoing[True] = Ongoing(*state["ongoing"])
        self._recorded_timesteps, self._episode_lengths = state["recorded_timesteps"], state["episode_lengths"]


AnyCarry: TypeAlias = NoCarry[ArrayT] | Carry[ArrayT]
"""The carry of an agent, which may be empty."""
