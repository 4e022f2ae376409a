"""What recurrent agents have beyond the others: carries that are acted with, reset and stored, and models that run over sequences.

A model without a carry takes part: `()` fills the slot.
"""

import logging
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from sacref.agent.agent import Agent
from sacref.agent.model_checks import check_carry_output, check_critic_output, check_parts, check_policy_output, check_reads_states
from sacref.agent.transitions import Rows
from sacref.algorithm.data import Inputs, Transition, Window
from sacref.algorithm.replay import Follow
from sacref.algorithm.tree import Tree, leaves, map_leaves
from sacref.config import ConfigError
from sacref.spec.arrays import ArrayT, namespace
from sacref.storage.values import Like, Maybe

logger = logging.getLogger(__name__)


def refuse_carries(models: Mapping[str, Any]) -> None:
    """Refuse models with a carry, for an agent that keeps none.

    Raises:
        ValueError: naming the models.
    """
    recurrent = sorted(name for name, model in models.items() if hasattr(model, "initial_carry"))
    if recurrent:
        raise ValueError(f"models {recurrent} have an initial_carry, expected models without one for SAC: give them to SAC_RNN")


def policy_with_carry(function: Callable[..., Any], *, recurrent: bool) -> Callable[..., Any]:
    """A policy as `(parameters, inputs, carry) -> (mean, raw log_std, carry)` on `(time, batch, ...)`."""

    def plain(parameters: Any, inputs: Inputs[Any], carry: Tree) -> tuple[Any, Any, Tree]:
        time, batch = leaves(inputs["observations"])[0].shape[:2]
        outputs = function(parameters, map_leaves(_rows, inputs))
        if not isinstance(outputs, tuple) or len(outputs) != 2:
            raise ValueError(f"model 'policy' returned {type(outputs).__name__}, expected a tuple (mean, raw log_std)")
        mean, raw_log_std = (output.reshape((time, batch, *output.shape[1:])) for output in outputs)
        return mean, raw_log_std, ()

    return function if recurrent else plain


def critic_with_carry(function: Callable[..., Any], *, recurrent: bool) -> Callable[..., Any]:
    """A critic as `(parameters, inputs, actions, carry, *draws) -> (values, carry)` on `(time, batch, ...)`."""

    def plain(parameters: Any, inputs: Inputs[Any], actions: Any, carry: Tree, *draws: Any) -> tuple[Any, Tree]:
        time, batch = actions.shape[:2]
        values = function(
            parameters, map_leaves(_rows, inputs), _rows(actions), *(_rows(draw) if _of_steps(draw) else draw for draw in draws)
        )
        return values.reshape((time, batch, *values.shape[1:])), ()

    return function if recurrent else plain


def _rows(array: Any) -> Any:
    """`(time, batch, ...)` as `(time * batch, ...)`."""
    return array.reshape((array.shape[0] * array.shape[1], *array.shape[2:]))


def _of_steps(draw: Any) -> bool:
    """Whether a draw has numbers for each step; a key, of a model of a user's own in JAX, is one for all."""
    return bool(draw.ndim > 1)


def over_window_policy(policy: Callable[..., Any], *, recurrent: bool) -> Callable[..., Any]:
    """The policy as the update calls it: `(parameters, window) -> (mean, raw log_std)` of the window's steps."""

    def run(parameters: Any, window: Window[Any]) -> tuple[Any, Any]:
        mean, raw_log_std, _ = policy(parameters, window.sequence, window.carry)
        return _steps_of(window, mean), _steps_of(window, raw_log_std)

    def plain(parameters: Any, window: Window[Any]) -> tuple[Any, Any]:
        mean, raw_log_std, _ = policy(parameters, map_leaves(partial(_steps_of, window), window.sequence), ())
        return mean, raw_log_std

    return run if recurrent else plain


def over_window_critic(critic: Callable[..., Any], initial_carry: Callable[[int], Tree], *, recurrent: bool) -> Callable[..., Any]:
    """The critic as the update calls it: `(parameters, window, actions, *draws) -> values` of the window's steps.

    Its carry starts from its own initial one, never from the policy's.
    """

    def run(parameters: Any, window: Window[Any], actions: Any, *draws: Any) -> Any:
        # The step that is not asked for is evaluated at zeros, which nothing sees: evaluated actions do not enter the carry.
        filled = [_with_blank(window, draw) if _of_steps(draw) else draw for draw in draws]
        values, _ = critic(parameters, window.sequence, _with_blank(window, actions), initial_carry(actions.shape[1]), *filled)
        return _steps_of(window, values)

    def plain(parameters: Any, window: Window[Any], actions: Any, *draws: Any) -> Any:
        values, _ = critic(parameters, map_leaves(partial(_steps_of, window), window.sequence), actions, (), *draws)
        return values

    return run if recurrent else plain


def _steps_of(window: Window[Any], array: Any) -> Any:
    return array[window.shift : array.shape[0] - 1 + window.shift]


def _with_blank(window: Window[Any], array: Any) -> Any:
    xp: Any = namespace(array)
    blank = xp.zeros_like(array[:1])
    return xp.concat([blank, array] if window.shift else [array, blank])


@dataclass
class Ongoing:
    """What a policy remembers of the episodes that run, in one mode; NumPy, or the backend's arrays where the environments give those."""

    carry: Tree = None
    """The policy's, `(envs, ...)` each, after the last observation; None before the first."""
    before: Tree = None
    """The carry before the last observation, which belongs to the row that is recorded next; None once it is."""
    previous: tuple[Any, Any] | None = None
    """Actions in [-1, 1], `(envs, action)`, and rewards, `(envs,)`, of the last row; None before the first."""
    starts: Any = None
    """`(envs,)`, bool: where the next observation begins an episode; None where nothing has begun since the last reset."""


def zero_where(starts: Any, array: Any, initial: Any = None) -> Any:
    """`array`, `(envs, ...)`, with `initial` (else zeros) in the rows of `starts`."""
    xp: Any = namespace(starts, array)
    rows = starts.reshape((array.shape[0], *(1 for _ in array.shape[1:])))
    return xp.where(rows, xp.zeros_like(array) if initial is None else initial, array)


class RecurrentAgent(Agent[ArrayT]):
    """The part of SAC_RNN that knows no backend. For the arguments see `Agent`."""

    def _set_up(self) -> None:
        self._ongoing = {True: Ongoing(), False: Ongoing()}
        self._initial_carries: dict[tuple[int, bool], Tree] = {}
        """(environments, whether on the device) -> the policy's carry before an episode."""
        self._recorded_timesteps = 0
        """Timesteps in the memory, at least while they are fewer than a sequence's."""
        self._said_waiting = self._said_padded = False
        self._episode_lengths: Any = None

    # The models, as the update and acting call them.

    def _is_recurrent(self, name: str) -> bool:
        return hasattr(self._models[name], "initial_carry")

    def _policy(self) -> Any:
        """The backend's `update.Policy`."""
        recurrent = self._is_recurrent("policy")
        return over_window_policy(policy_with_carry(self._functions["policy"], recurrent=recurrent), recurrent=recurrent)

    def _critic(self, name: str) -> Any:
        """The backend's `update.Critic`."""
        recurrent = self._is_recurrent(name)
        critic = critic_with_carry(self._functions[name], recurrent=recurrent)
        return over_window_critic(critic, partial(self._initial_carry, name), recurrent=recurrent)

    def _actor(self) -> Any:
        """Return the policy as acting calls it (`Actor`): one step, as a sequence of one."""
        policy = policy_with_carry(self._functions["policy"], recurrent=self._is_recurrent("policy"))

        def actor(parameters: Any, acting: Any) -> tuple[Any, Any, Tree]:
            inputs = map_leaves(lambda leaf: leaf[None], self._prepare_inputs(acting.moments, acting.inputs))
            mean, raw_log_std, carry = policy(parameters, inputs, acting.carry)
            return mean[0], raw_log_std[0], carry

        return actor

    def _check_outputs(self, parameters: Mapping[str, Any]) -> None:
        """Try the models on sequences of two steps."""
        time, rows = 2, 3
        inputs = self._example_sequences(time, rows)
        actions, carry = inputs["previous_actions"], self._initial_carry("policy", rows)
        policy = policy_with_carry(self._functions["policy"], recurrent=self._is_recurrent("policy"))
        mean, raw_log_std, after = check_parts("policy", self._try("policy", policy, parameters["policy"], inputs, carry), 3)
        check_policy_output((mean, raw_log_std), rows=(time, rows), action_size=self.spaces.action_size, dtype=self.dtype)
        check_carry_output("policy", carry, after)
        values, others = {}, {}
        for name in (name for name in self._functions if name != "policy"):
            draws, carry = self._example_draws(name, (time, rows)), self._initial_carry(name, rows)
            critic = critic_with_carry(self._functions[name], recurrent=self._is_recurrent(name))
            output, after = check_parts(name, self._try(name, critic, parameters[name], inputs, actions, carry, *draws), 2)
            check_critic_output(name, output, rows=(time, rows), dtype=self.dtype)
            check_carry_output(name, carry, after)
            if self.spaces.states is not None:
                other = {**inputs, "states": self._example_sequences(time, rows, other=1)["states"]}
                values[name] = self.to_numpy(output)
                others[name] = self.to_numpy(critic(parameters[name], other, actions, carry, *draws)[0])
        check_reads_states(values, others)

    def _example_sequences(self, time: int, rows: int, other: int = 0) -> Any:
        inputs = map_leaves(lambda leaf: namespace(leaf).stack([leaf] * time), self._example_inputs(rows, other))
        actions = self._upload(np.zeros((time, rows, self.spaces.action_size)))
        return {**inputs, "previous_actions": actions, "previous_rewards": actions[..., 0]}

    # What a backend provides.

    _models: Any
    _functions: Any
    """Model -> the model as a function of its parameters."""
    dtype: Any

    # Of the backend's SAC, which comes after this class: annotations alone, so that they do not hide it.
    _example_inputs: Callable[..., Any]
    _example_draws: Callable[..., Any]
    _try: Callable[..., Any]

    @abstractmethod
    def _act_with_carry(
        self, way: str, observations: Tree, states: Tree | None, previous: tuple[Any, Any], carry: Tree
    ) -> tuple[Any, Any, Tree]:
        """Actions, mean actions and the carry after the observations."""

    # Acting and recording.

    def _initial_carry(self, model: str, batch: int) -> Tree:
        """A model's carry before an episode, `(batch, ...)` each; () of a model without.

        Raises:
            ValueError: if its parts do not have a row for each environment or sequence.
        """
        carry = self._models[model].initial_carry(batch) if hasattr(self._models[model], "initial_carry") else ()
        shapes = [tuple(leaf.shape) for leaf in leaves(carry)]
        if any(shape[:1] != (batch,) for shape in shapes):
            raise ValueError(
                f"model {model!r} gives initial_carry({batch}) of shapes {shapes}, expected ({batch}, ...): put the batch axis first, "
                f"before that of layers"
            )
        return carry

    def _check_options(self) -> None:
        if self.cfg.n_step != 1:
            raise ConfigError(
                f"n_step is {self.cfg.n_step}, expected 1 for SAC_RNN: its targets come from one pass over a sequence, a step ahead each"
            )
        if self.cfg.overlap:
            raise ConfigError(
                "overlap is True, expected False for SAC_RNN: an action that is chosen ahead and then not taken would move the carry"
            )

    @property
    def _follow(self) -> Follow:
        cfg = self.cfg
        return Follow(sequence_length=cfg.sequence_length, burn_in=cfg.burn_in, stored_carry=cfg.stored_carry)

    @property
    def _shapes_rewards(self) -> bool:
        return True  # in evaluation too: the policy may see the previous reward

    def _begin(self, training: bool) -> None:
        super()._begin(training)
        self._ongoing[training] = Ongoing()

    def _act(self, way: str, observations: Tree, states: Tree | None) -> tuple[Any, Any]:
        now = self._ongoing[self.training]
        sample = leaves(observations)[0]
        envs, on_device = int(sample.shape[0]), self._is_device_array(sample)
        convert = self._upload if on_device else self.to_numpy
        if (envs, on_device) not in self._initial_carries:
            self._initial_carries[envs, on_device] = map_leaves(convert, self._initial_carry("policy", envs))
        initial = self._initial_carries[envs, on_device]
        if now.previous is None or now.previous[1].shape[0] != envs:
            now.previous = (np.zeros((envs, self.spaces.action_size)), np.zeros(envs))
        now.previous = (convert(now.previous[0]), convert(now.previous[1]))  # rows may have come in arrays of the other kind
        if now.carry is None or leaves((now.carry, now.previous))[0].shape[0] != envs:
            now.carry = initial
        elif now.starts is not None:
            starts = convert(now.starts)
            now.carry = map_leaves(lambda array, fresh: zero_where(starts, convert(array), fresh), now.carry, initial)
            now.previous = (zero_where(starts, now.previous[0]), zero_where(starts, now.previous[1]))
        now.starts, now.before = None, now.carry
        actions, mean_actions, carry = self._act_with_carry(way, observations, states, now.previous, now.carry)
        now.carry = carry if on_device else map_leaves(self.to_numpy, carry)
        return actions, mean_actions

    def _stored(self, rows: Rows[Any]) -> Transition[Any]:
        now, transition = self._ongoing[self.training], rows.transition
        envs, on_device = rows.keep.shape[0], self._is_device_array(rows.keep)
        convert = self._upload if on_device else self.to_numpy
        before, now.before = now.before, None
        if before is None:  # recorded without an act: nobody knows what a policy would have carried
            before = self._initial_carry("policy", envs)
        previous = now.previous or (np.zeros((envs, self.spaces.action_size)), np.zeros(envs))
        previous_actions, previous_rewards = (zero_where(rows.first, convert(array)) for array in previous)
        now.previous, now.starts = (transition.actions, transition.rewards), rows.starts
        if self.training:
            self._recorded_timesteps += 1
            if not on_device:
                self._note_short_episodes(rows)
        return transition._replace(
            first=rows.first,
            previous_actions=previous_actions,
            previous_rewards=previous_rewards,
            carry=map_leaves(convert, before),
        )

    def _note_short_episodes(self, rows: Rows[Any]) -> None:
        if self._said_padded:
            return
        lengths = np.zeros(rows.keep.shape[0], np.int64) if self._episode_lengths is None else self._episode_lengths
        lengths = np.where(rows.first, 0, lengths) + rows.keep
        short = rows.ended & rows.keep & (lengths < self.cfg.sequence_length)
        if short.any():
            self._said_padded = True
            logger.warning(
                "an episode ended after %d steps, sequence_length is %d: its sequences are padded, and the padding counts for nothing",
                int(lengths[short].min()),
                self.cfg.sequence_length,
            )
        self._episode_lengths = lengths

    def _learn_if_due(self, *, timestep: int, timesteps: int) -> None:
        if self.training and timestep >= self.cfg.learning_starts and self._recorded_timesteps < self.cfg.sequence_length:
            if not self._said_waiting:
                self._said_waiting = True
                logger.info(
                    "learning waits: %d timesteps are stored, sequence_length is %d", self._recorded_timesteps, self.cfg.sequence_length
                )
            return
        super()._learn_if_due(timestep=timestep, timesteps=timesteps)

    def live_state(self) -> dict[str, Any]:
        """As of `Agent`, with the carries of the episodes that run."""
        now = self._ongoing[True]
        return {
            **super().live_state(),
            "ongoing": map_leaves(self.to_numpy, (now.carry, now.before, now.previous, now.starts)),
            "recorded_timesteps": self._recorded_timesteps,
            "episode_lengths": self._episode_lengths,
        }

    def live_like(self) -> dict[str, Any]:
        """As of `Agent`."""
        envs = self._num_envs
        carry = Maybe(map_leaves(lambda array: Like(tuple(array.shape), "f"), self._initial_carry("policy", envs)))
        previous = Maybe((Like((envs, self.spaces.action_size), "f"), Like((envs,), "f")))
        return {
            **super().live_like(),
            "ongoing": (carry, carry, previous, Maybe(Like((envs,), "b"))),
            "recorded_timesteps": int,
            "episode_lengths": Maybe(Like((envs,), "i")),
        }

    def set_live_state(self, state: Mapping[str, Any]) -> None:
        """As of `Agent`."""
        super().set_live_state(state)
        self._ongoing[True] = Ongoing(*state["ongoing"])
        self._recorded_timesteps, self._episode_lengths = state["recorded_timesteps"], state["episode_lengths"]

    def load(self, path: Any) -> None:
        """Restore what `save` wrote; see `Agent.load`."""
        super().load(path)
        if self.memory is not None:
            self._recorded_timesteps = -(-len(self.memory) // self.memory.num_envs)
