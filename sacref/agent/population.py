"""Populations: agents that share nothing, driven as one agent whose rows are those of all members' environments."""

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Generic, cast

import gymnasium
import numpy as np

from sacref.agent.acting import Chosen, equal_inputs
from sacref.agent.agent import Agent
from sacref.agent.episodes import EpisodeStatistics
from sacref.agent.members import Mask, MemberRunner, Members, Together
from sacref.agent.numerics import require_finite_actions
from sacref.agent.transitions import Transitions
from sacref.algorithm.replay import AnyReplayMemory
from sacref.algorithm.tree import Tree, concatenate, leaves, map_leaves
from sacref.envs.episodes import DROPPED
from sacref.spec.arrays import ArrayT, NumpyArray

FLUSH_SECONDS = 0.5
"""Members are given what was measured of them at least so often: a progress bar shows it."""
CARRY_ROWS = ("ongoing", "episode_lengths")
"""Parts of a carry's state that have a row for each environment."""


class Population(Generic[ArrayT]):
    """Agents, each in environments of its own, that act, record and learn together.

    Arrays have a row for each environment: those of the first member, then those of the second, ... Between `settle` and the next call of
    another method each agent has all that is its own, and can be saved and evaluated like any other.

    A member that fails is written to `failures`, and takes no part from then on; its rows are not read.

    Args:
        agents: in training mode, alike but for their seeds and what `members.VARYING` names; None for a member that is not there.
        memory: that the agents' memories are parts of.
        make: `sacref.<backend>.population.Together`.
        timesteps: of each member's whole run.
    """

    def __init__(
        self,
        agents: Sequence[Agent[ArrayT] | None],
        memory: AnyReplayMemory,
        make: Callable[[Members[ArrayT, Any, Any]], Together[ArrayT, Any]],
        timesteps: Sequence[int],
    ) -> None:
        first = next(agent for agent in agents if agent is not None)
        self._agents = [agent or first for agent in agents]  # in the slot of one that is not there lies a copy
        self._memory, self._timesteps = memory, timesteps
        self._cfg, self._spaces = first.cfg, first.spaces
        self.active: Mask = np.array([agent is not None for agent in agents])
        """`(members,)`: who takes part now; see `activate`."""
        self.failures: dict[int, Exception] = {}
        """Number of a member -> why it takes no part any more."""
        learners = [agent.learner for agent in self._agents]
        for learner in learners:
            learner.switch_mode(True)
        self._together = make(
            Members(
                [learner.update for learner in learners],
                [learner.draw_spec() for learner in learners],
                first.carry.follow,
                learners[0].actor(),
                learners[0].bounds,
                [learner.state for learner in learners],
                [learner.streams for learner in learners],
                memory,
                learners[0].execution,
                learners[0].block,
            )
        )
        self._present = [number for number, agent in enumerate(agents) if agent is not None]
        for number in self._present:
            self._agents[number].learner.runner = MemberRunner(self._together, number)
        self._hold_moments()
        self._envs = memory.num_envs // len(agents)
        self._shapes = self._cfg.reward_scale != 1.0 or self._cfg.rewards_shaper is not None
        self._shaped = np.empty(0)
        cfg = copy.copy(self._cfg)
        cfg.reward_scale, cfg.rewards_shaper = 1.0, (lambda rewards, timestep, timesteps: self._shaped) if self._shapes else None
        backend = learners[0].backend
        self._backend = backend
        self._transitions: Transitions[ArrayT] = Transitions(
            backend,
            cfg,
            self._spaces,
            observation_space=first.observation_space,
            state_space=first.state_space,
            action_space=cast(gymnasium.spaces.Box, first.action_space),
            memory_envs=memory.num_envs,
            check_numbers=lambda: None,
        )
        self._carry = first.carry_type(backend, self._cfg, self._spaces, first.own_models, first.normalisers, None)
        self._statistics = EpisodeStatistics()
        self._next: _Next | None = None
        self._packed: list[ArrayT] = []
        self._packed_of: tuple[int, ...] = ()
        self._settled = True
        self._flushed = time.perf_counter()
        self.take_over()

    def __getitem__(self, number: int) -> Agent[ArrayT]:
        """Return a member's agent."""
        return self._agents[number]

    # Who takes part.

    def fail(self, number: int, error: Exception) -> None:
        """Let a member take no part any more."""
        self.failures.setdefault(number, error)
        self.active[number] = False

    def activate(self, which: Mask) -> None:
        """Let these members take part from now on, `(members,)`, and the others wait; those that failed stay out."""
        if (which != self.active).any():
            self.settle()
            self.active = which & ~np.isin(np.arange(len(which)), list(self.failures))
            self.take_over()

    def _members(self) -> list[int]:
        numbers: list[int] = np.flatnonzero(self.active).tolist()
        return numbers

    def _rows(self, number: int) -> slice:
        return slice(number * self._envs, (number + 1) * self._envs)

    def rows_of(self, which: Mask) -> Mask:
        """Return the rows of members, `(members * envs,)`."""
        return np.repeat(which, self._envs)

    def _each(self, function: Callable[[int, Agent[ArrayT]], object]) -> list[int]:
        """Call a function of each member that takes part; return those in which it raised, and let them fail."""
        failed = []
        for number in self._members():
            try:
                function(number, self._agents[number])
            except Exception as error:
                self.fail(number, error)
                failed.append(number)
        return failed

    def to_numpy(self, array: NumpyArray) -> NumpyArray:
        """Return an array, which is on the host already."""
        return array

    # Acting.

    def act(self, observations: Tree, states: Tree | None, *, timestep: int, timesteps: int) -> tuple[NumpyArray, dict[str, NumpyArray]]:
        """Choose the actions of training; see `Agent.act`. They are on the host, and 0 in the rows of members that do not take part."""
        mode = self._mode(timestep)
        shape = (self._memory.num_envs, *self._spaces.action_shape)
        chosen = self._chosen_after(observations, states, mode)
        if chosen is None:
            observations, states = self._finite_inputs(observations, states)
            chosen = self._chosen_before(observations, states, mode) or self._choose(mode, observations, states, self.active)
        actions, mean_actions = (self._backend.to_numpy(self._transitions.narrow(array)).reshape(shape) for array in chosen)
        if not np.isfinite(actions).all():
            self.flush()
            self._each(lambda number, agent: require_finite_actions(agent, actions[self._rows(number)]))
        actions[~self.rows_of(self.active)] = 0.0
        return actions, {"mean_actions": mean_actions}

    def _mode(self, timestep: int) -> str:
        return "random" if timestep < self._cfg.random_timesteps else "sampled"

    def _finite_inputs(self, observations: Tree, states: Tree | None) -> tuple[Tree, Tree | None]:
        """Check observations and states; members with others than an agent takes fail."""
        try:
            return self._transitions.check_inputs(observations, states)
        except ValueError as error:

            def check(number: int, agent: Agent[ArrayT]) -> None:
                agent.transitions.check_inputs(*map_leaves(lambda leaf: leaf[self._rows(number)], (observations, states)))

            if not self._each(check) and self.active.all():
                raise error
        inputs = map_leaves(np.array, (observations, states))
        for leaf in leaves(inputs):
            leaf[~self.rows_of(self.active)] = 0
        return self._transitions.check_inputs(*inputs)

    def _choose(self, mode: str, observations: Tree, states: Tree | None, which: Mask) -> Chosen[ArrayT]:
        self._settled = False
        inputs, before = self._carry.inputs(observations, states, True)
        convert = self._backend.act_inputs
        actions, mean_actions, after = self._together.act(mode, convert(inputs), convert(before), which)
        self._carry.acted(inputs, before, after, True)
        return actions, mean_actions

    def _chosen_after(self, observations: Tree, states: Tree | None, mode: str) -> Chosen[Any] | None:
        """Return actions that were chosen with the parameters after the update; None where none are, or not on these inputs.

        All members choose again where one's inputs are not what was expected: their carries go on from one timestep.
        """
        ahead = self._next
        if self._cfg.overlap or ahead is None or ahead.chosen is None:
            return None
        same = equal_inputs((ahead.observations, ahead.states), (observations, states))
        if not same or ahead.mode not in (None, mode) or not ahead.chosen_for[self.active].all():
            self.put_back()
            return None
        self._settled, self._next = False, None
        inputs, before = self._carry.inputs(ahead.observations, ahead.states, True)
        self._carry.acted(inputs, before, ahead.carry, True)
        return ahead.chosen

    def put_back(self) -> None:
        """Forget actions that were chosen with the parameters after an update, and put back what they drew, as an evaluation does."""
        ahead = self._next
        if ahead is None or ahead.exploration is None:
            return
        self._settled, self._next = False, None
        for number in np.flatnonzero(ahead.chosen_for & self.active).tolist():  # those of others wait in their agents
            streams = self._backend.with_exploration(self._together.streams(number), ahead.exploration[number])
            self._together.set_streams(number, streams)

    def _chosen_before(self, observations: Tree, states: Tree | None, mode: str) -> Chosen[Any] | None:
        """Return actions, the known ones chosen before the update under `overlap`; None where none are known."""
        ahead, self._next = self._next, None
        if ahead is None or ahead.chosen is None:
            return None
        known = ahead.chosen_for.copy()
        for then, now in zip(leaves((ahead.observations, ahead.states)), leaves((observations, states)), strict=False):
            known &= (then == now).reshape(len(known), -1).all(axis=1)
        missing = self.active & ~known
        if not missing.any():
            return ahead.chosen
        chosen = self._choose(mode, observations, states, missing) if known.any() else None
        if chosen is None:
            return None
        rows = self.rows_of(known)[:, None]
        pairs = (map(self._backend.to_numpy, pair) for pair in zip(ahead.chosen, chosen, strict=True))
        actions, mean_actions = (np.where(rows, *pair) for pair in pairs)
        return actions, mean_actions

    # Recording.

    def record_transition(
        self,
        *,
        observations: Tree,
        states: Tree | None,
        actions: object,
        rewards: NumpyArray,
        next_observations: Tree,
        next_states: Tree | None,
        terminated: object,
        truncated: object,
        infos: Mapping[str, object],
        timestep: int,
        timesteps: int,
    ) -> None:
        """Record one step of all environments; see `Agent.record_transition`. Arrays are NumPy's."""
        self._settled = False
        if self._shapes:
            self._shaped = np.zeros((self._memory.num_envs, 1))

            def shape(number: int, agent: Agent[ArrayT]) -> None:
                shaped = agent.transitions.shape_rewards(
                    rewards[self._rows(number)], self._envs, timestep=timestep, timesteps=self._timesteps[number]
                )
                self._shaped[self._rows(number), 0] = shaped

            self._each(shape)
        idle = ~self.rows_of(self.active)
        if idle.any():
            infos = {**infos, DROPPED: idle | np.asarray(infos.get(DROPPED, False))}
        rows = self._transitions.check(
            observations=observations,
            states=states,
            actions=actions,
            rewards=rewards,
            next_observations=next_observations,
            next_states=next_states,
            terminated=terminated,
            truncated=truncated,
            infos=infos,
            timestep=timestep,
            timesteps=timesteps,
            training=True,
            shapes_rewards=self._shapes,
        )
        self._statistics.add(rewards=rows.rewards, ended=rows.ended, keep=rows.keep, dropped=rows.dropped)
        stored = self._carry.stored(rows, True)
        if self._agents[0].normalisers.preprocessors:
            parts = (rows.transition, rows.keep, rows.first)

            def feed(number: int, agent: Agent[ArrayT]) -> None:
                transition, keep, first = map_leaves(lambda leaf: leaf[self._rows(number)], parts)
                agent.normalisers.feed(rows._replace(transition=transition, keep=keep, first=first))

            self._each(feed)
            self._hold_moments()
        self._memory.add(stored, rows.keep)
        for number in self._members():
            agent = self._agents[number]
            agent.carry.count_timestep()
            if agent.memory is not None:
                agent.memory.added += 1
                agent.memory.written = True
        self.put_back()
        self._next = None
        following = None if self._together.fused_steps is None else rows.following
        if self._cfg.overlap:
            following = self._transitions.check_observations(next_observations), self._transitions.check_states(next_states)
        if following is not None:
            known = self.active.copy()
            if rows.following is None:  # Some members' are not finite.
                known &= [
                    self._transitions.are_finite(map_leaves(itemgetter(self._rows(number)), following)) for number in range(len(known))
                ]
            next_observations, next_states = map_leaves(np.array, following)
            self._next = _Next(next_observations, next_states, known, np.zeros_like(self.active))

    def _hold_moments(self) -> None:
        held = self._together.hold_moments([agent.normalisers.moments for agent in self._agents])
        for number in self._present:
            self._agents[number].normalisers.moments = held[number]

    # Learning.

    def post_interaction(self, *, timestep: int, timesteps: int) -> None:
        """Learn where gradient steps are due, then track where an interval ends; see `Agent.post_interaction`."""
        due: dict[int, list[int]] = {}
        ahead = np.zeros(len(self.active), np.bool_)
        finished = timestep + 1
        for number in self._members():
            agent, last = self._agents[number], finished >= self._timesteps[number]
            agent.health.timestep = finished
            if timestep >= self._cfg.learning_starts and agent.carry.is_ready():
                steps = agent.update_schedule.after_timestep(last=last)
                due.setdefault(steps, []).append(number)
                ahead[number] = steps > 0 and not last
        due.pop(0, None)
        if self._cfg.overlap and self._next is not None and ahead.any():
            self._next.chosen_for = ahead & self._next.known
            self._next.chosen = self._choose(self._mode(finished), self._next.observations, self._next.states, self._next.chosen_for)
        for steps, numbers in due.items():
            began = time.perf_counter()
            self.learn(numbers, steps, timestep=timestep)
            milliseconds = 1e3 * (time.perf_counter() - began)
            for number in numbers:
                agent = self._agents[number]
                agent.metrics.track_update_end(agent.gradient_step_count, finished, milliseconds)
        ending = [number for number in self._members() if self._agents[number].interval_ends(finished, self._timesteps[number])]
        if ending or time.perf_counter() - self._flushed > FLUSH_SECONDS:
            self.flush()

        def track(number: int, agent: Agent[ArrayT]) -> None:
            if number in ending:
                Agent.post_interaction(agent, timestep=timestep, timesteps=self._timesteps[number])

        if ending:
            self._each(track)

    def learn(self, numbers: Sequence[int], steps: int, *, timestep: int | None = None) -> None:
        """Take gradient steps of these members, each on batches from its own memory.

        Args:
            timestep: after which they are taken; the actions of the next one are chosen in the same call where that can be, which is where
                all members learn. None where no action follows.
        """
        self.put_back()
        self._settled = False
        which, together = np.isin(np.arange(len(self.active)), numbers), self._together
        if tuple(numbers) != self._packed_of:
            self._hand_out_metrics()
        self._packed_of = tuple(numbers)
        ahead, fused = self._next, together.fused_steps
        if timestep is None or self._cfg.overlap or ahead is None or fused is None or steps % fused or not which.all():
            self._packed += together.learn(which, steps)
        else:
            if steps > fused:
                self._packed += together.learn(which, steps - fused)
            ahead.mode, ahead.exploration = self._mode(timestep + 1), together.exploration()
            inputs = self._carry.inputs(ahead.observations, ahead.states, True)
            metrics, (*chosen, ahead.carry) = together.learn_and_act(ahead.mode, *inputs)
            ahead.chosen, ahead.chosen_for = (chosen[0], chosen[1]), which
            self._packed.append(metrics)
        for number in numbers:
            self._agents[number].learner.gradient_step_count += steps

    def track_data(self, tag: str, value: float) -> None:
        """Add a scalar to what each member writes next."""
        for number in self._members():
            self._agents[number].metrics.track(tag, value)

    def synchronise(self) -> None:
        """Wait until the device has done all that it was asked for."""
        self._together.synchronise()

    # State of single members.

    def flush(self) -> None:
        """Give each member what was measured of it since the last call."""
        self._flushed = time.perf_counter()
        self._hand_out_metrics()
        metrics = [(self._rows(number), self._agents[number].metrics) for number in self._members()]
        self._statistics.hand_out([(rows, own.statistics[True], own.tracking) for rows, own in metrics])

    def _hand_out_metrics(self) -> None:
        packed, self._packed = self._packed, []
        if packed:
            apart = self._together.apart(packed)
            for number in self._packed_of:
                self._agents[number].metrics.track_updates([apart[number]])

    def settle(self) -> None:
        """Give each member that takes part all that is its own."""
        if self._settled:
            return
        self._settled = True
        self.flush()
        boundaries: Tree = self._transitions.state()["boundaries"]
        ongoing = self._carry.state()
        for number in self._members():
            agent, rows = self._agents[number], self._rows(number)

            def own(tree: Tree, rows: slice = rows) -> Tree:
                return map_leaves(lambda leaf: np.array(leaf[rows]), tree)

            agent.learner.take()  # of an action that waited when this was last called
            agent.learner.streams = self._together.streams(number)
            agent.transitions.set_state({"boundaries": own(boundaries)})
            if ongoing:
                agent.carry.set_state({**agent.carry.state(), **{name: own(ongoing[name]) for name in CARRY_ROWS}})
            agent.acting.reset(True)
            ahead = self._next
            if ahead is not None and ahead.known[number]:
                chosen: Tree = own(map_leaves(self._backend.to_numpy, ahead.chosen)) if ahead.chosen_for[number] else None
                if chosen is not None and ahead.exploration is not None:
                    after = self._backend.to_numpy(self._backend.exploration(agent.learner.streams))
                    agent.learner.streams = self._backend.with_exploration(agent.learner.streams, ahead.exploration[number])
                    chosen = (*chosen, own(map_leaves(self._backend.to_numpy, ahead.carry)), after)
                agent.acting.set_state({"next_action": (own(ahead.observations), own(ahead.states), chosen)})

    def take_over(self) -> None:
        """Go on with what is each member's own, after it was loaded or set."""
        boundaries: list[Any] = [agent.transitions.state()["boundaries"] for agent in self._agents]
        expects, latest, starts = ([each[name] for each in boundaries] for name in ("expects_reset", "last_observations", "starts"))
        joined = {"expects_reset": concatenate(expects), "last_observations": concatenate(latest), "starts": concatenate(starts, fill=1)}
        self._transitions.set_state({"boundaries": joined})
        ongoing: list[Any] = [agent.carry.state() for agent in self._agents]
        if ongoing[0]:
            carries, _, previous, begun = ([each["ongoing"][part] for each in ongoing] for part in range(4))
            # An episode that goes on where nothing says so: none begins; of one that has not begun, all do.
            begun = [np.full(self._envs, carry is None) if starts is None else starts for carry, starts in zip(carries, begun, strict=True)]
            self._carry.set_state(
                {
                    "ongoing": (concatenate(carries), None, concatenate(previous), concatenate(begun)),
                    "recorded_timesteps": 0,
                    "episode_lengths": concatenate([each["episode_lengths"] for each in ongoing]),
                }
            )
        self._statistics.take_over([agent.metrics.statistics[True] for agent in self._agents], self._envs, self._backend.to_numpy)
        ahead: list[Any] = [agent.acting.state()["next_action"] for agent in self._agents]
        known = np.array([each is not None for each in ahead])
        self._next = None
        if known.any():
            observations, states, chosen = ([None if each is None else each[part] for each in ahead] for part in range(3))
            chosen_for = np.array([each is not None for each in chosen])
            actions = concatenate([None if each is None else each[:2] for each in chosen])
            self._next = _Next(concatenate(observations), concatenate(states), known, chosen_for, actions)
            if actions is not None and not self._cfg.overlap:
                self._next.carry = map_leaves(self._backend.upload, concatenate([None if each is None else each[2] for each in chosen]))
                self._next.exploration = [agent.learner.stream_states()["exploration"] for agent in self._agents]
        for number, agent in enumerate(self._agents):
            self._together.set_streams(number, agent.learner.streams)

    def depart(self, number: int) -> None:
        """Let a member go on alone, from a copy of its state."""
        learner, memory = self._agents[number].learner, self._agents[number].memory
        learner.runner = learner.backend.runner(map_leaves(self._backend.copy, learner.state))
        if memory is not None:
            memory.detach()
        learner.take_functions()


@dataclass
class _Next:
    """Inputs of the next actions, and the actions once they are chosen."""

    observations: Tree
    states: Tree | None
    known: Mask
    """`(members,)`: whose inputs they are."""
    chosen_for: Mask
    """`(members,)`: whose actions are chosen."""
    chosen: Chosen[Any] | None = None
    mode: str | None = None
    """In which they were chosen after an update; None for any, as of agents that were restored."""
    carry: Tree = ()
    """The carry after them, where they were chosen after an update."""
    exploration: Sequence[object] | None = None
    """State of each member's exploration stream before them, where they were chosen after an update; else None."""
