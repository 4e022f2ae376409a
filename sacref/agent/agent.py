"""The life cycle that the agents of the two backends share. No backend.

`Agent` is the last of a chain of classes, each of one concern and in a file of its own, that know only those before them: `Border` checks
what a trainer hands over, `Prepared` is what the models see of it, `Learned` the arrays that learning changes, `Measured` the curves of a
run, `Sound` the looks at its numbers, `Live` what it is in the middle of, and `Saved` its checkpoints.
"""

import time
from abc import abstractmethod
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from sacref.agent.checkpoints import Saved
from sacref.agent.in_flight import NextAction
from sacref.agent.transitions import Rows
from sacref.algorithm.data import Transition
from sacref.algorithm.replay import Follow
from sacref.algorithm.tree import leaves, map_leaves, named_leaves
from sacref.config import ConfigError, Execution, SACConfig
from sacref.envs.spaces import check_spaces
from sacref.ranks import Ranks
from sacref.spec.arrays import ArrayT

UNTRACKED_CHECK_INTERVAL = 1000
"""Timesteps between two looks at the device for rows and parameters that are not finite, where nothing is written."""


class Agent(Saved[ArrayT]):
    """An agent's life cycle without its algorithm. Any trainer that makes these calls can drive it; `timestep` counts calls, from 0.

    Args:
        memory: a replay memory, or None for an agent that only acts.
        observation_space, action_space: of one environment. state_space: what the critics see beyond the observations, or None.
        cfg: a `SACConfig`, or a dict of its fields.
    """

    def __init__(
        self, *, memory: Any, observation_space: Any, state_space: Any, action_space: Any, cfg: SACConfig | Mapping[str, Any] | None
    ) -> None:
        super().__init__()
        self.spaces = check_spaces(observation_space, state_space, action_space, longest_integer=self._longest_integer())
        self.observation_space, self.state_space, self.action_space = observation_space, state_space, action_space
        self.cfg = cfg if isinstance(cfg, SACConfig) else SACConfig.from_dict({} if cfg is None else cfg)
        self.cfg.validate()
        self._check_options()
        self._set_up()
        self.ranks = self._ranks()
        self.memory = memory
        self.training = False
        self._preprocessors = {
            **self._make_preprocessors("observation", observation_space),
            **self._make_preprocessors("state", state_space),
        }
        experiment = self.cfg.experiment
        name = experiment.experiment_name or f"{datetime.now().strftime('%y-%m-%d_%H-%M-%S-%f')}_{type(self).__name__}"
        self.experiment_dir = Path(experiment.directory or "runs").expanduser().absolute() / name
        self.write_interval: int | None = None if experiment.write_interval == "auto" else int(experiment.write_interval)
        self.checkpoint_interval: int | None = None if experiment.checkpoint_interval == "auto" else int(experiment.checkpoint_interval)
        self._num_envs = 1 if memory is None else int(memory.num_envs)
        self._timestep = 0

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Refuse to be copied and pickled, which `save` and `load` do.

        Raises:
            TypeError: always.
        """
        raise TypeError(
            f"{type(self).__name__} cannot be copied or pickled: what it learns with is compiled, recorded or captured for arrays of its "
            f"own, and a copy would share them. Write it with agent.save(path), construct another one with the same arguments and a memory "
            f"of its own, and load(path) there; agent.models gives copies of the models"
        )

    def _check_options(self) -> None:
        """Refuse fields of the configuration that do not go together with this algorithm.

        Raises:
            ConfigError: naming the field.
        """
        usual = SACConfig()
        for name in ("sequence_length", "burn_in", "stored_carry"):
            if getattr(self.cfg, name) != getattr(usual, name):
                raise ConfigError(
                    f"{name} is {getattr(self.cfg, name)}, which SAC_RNN alone reads, and this is {type(self).__name__}: leave it at "
                    f"{getattr(usual, name)}, or train recurrent models with SAC_RNN (sacref train --recurrent gru)"
                )

    def _set_up(self) -> None:
        """Make what this algorithm holds beside the models, before those are tried."""

    # What a backend provides.

    execution: Execution
    """How updates run: what `cfg.execution` asks for, or what was chosen for the device."""

    @abstractmethod
    def _ranks(self) -> Ranks:
        """The processes that train this agent together: those that have joined, or this one alone."""

    @abstractmethod
    def update(self, *, timestep: int, timesteps: int) -> None: ...

    @abstractmethod
    def enable_models_training_mode(self, enabled: bool = True) -> None: ...

    @property
    @abstractmethod
    def alpha(self) -> float:
        """The entropy coefficient in force."""

    @abstractmethod
    def synchronise(self) -> None:
        """Wait until the device has done all that it was asked for."""

    # The life cycle.

    def init(self, *, trainer_cfg: Any = None) -> None:
        """Prepare for a run in freshly reset environments.

        Args:
            trainer_cfg: the trainer's settings, a dict or a dataclass; `timesteps` sets the intervals that are "auto".
        """
        timesteps = trainer_cfg.get("timesteps") if isinstance(trainer_cfg, Mapping) else getattr(trainer_cfg, "timesteps", None)
        if timesteps is not None:
            self._resolve_intervals(int(timesteps))
        for training in self._watches:
            self._begin(training)
        self._next_action = None

    def _resolve_intervals(self, timesteps: int) -> None:
        if self.write_interval is None:
            self.write_interval = max(1, timesteps // 100)
        if self.checkpoint_interval is None:
            self.checkpoint_interval = max(1, timesteps // 10)

    def enable_training_mode(self, enabled: bool = True, *, apply_to_models: bool = False) -> None:
        """Train (explore, store, learn) or evaluate (act deterministically, store nothing, learn nothing).

        An evaluation begins with freshly reset environments; training goes on where it was. The statistics of an evaluation are written
        with the next ones of training; those that no training has followed are forgotten where another one begins.
        """
        if not enabled:
            if not self.training:
                self._watches[False].statistics.forget_rows()
            self._begin(False)
        self.training = enabled
        if apply_to_models:
            self.enable_models_training_mode(enabled)

    def act(self, observations: Any, states: Any, *, timestep: int, timesteps: int) -> tuple[Any, dict[str, Any]]:
        """Choose actions: uniform ones before `random_timesteps`, then the policy's; outside of training its deterministic ones.

        Args:
            observations: `(envs, *observation)`, NumPy or the backend's arrays; of a Dict space a dict of such.
            states: `(envs, *state)`, or None: a policy that does not read them acts without.
            timestep: the call's number, from 0. timesteps: how many there will be.

        Returns:
            Actions in the Box's units and inside it, `(envs, *action)`, and a dict that holds `mean_actions`, the deterministic ones. They
            are the backend's arrays, in the agent's dtype or, where that has fewer digits, the Box's; `to_numpy` brings them to the host.

        Raises:
            ValueError: if the observations have another shape than the space, or (NumPy) hold NaN or infinity.
        """
        observations = self._check_observations(observations)
        states = None if states is None else self._check_states(states)
        arrays = {**named_leaves(observations, "observations"), **named_leaves(states, "states")}
        envs = int(leaves(observations)[0].shape[0])
        if not any(map(self._is_device_array, arrays.values())):
            self._refuse_not_finite(arrays, np.ones(envs, np.bool_), device=False)
        actions, mean_actions = self._chosen_before(observations, states) or self._act(self._way(timestep), observations, states)
        shape = (envs, *self.spaces.action_shape)
        if tuple(actions.shape) != shape:
            actions, mean_actions = actions.reshape(shape), mean_actions.reshape(shape)
        return self._narrowed(actions), {"mean_actions": self._narrowed(mean_actions)}

    def pre_interaction(self, *, timestep: int, timesteps: int) -> None:
        """Called before the step of the environments. There is nothing to do."""

    def record_transition(
        self,
        *,
        observations: Any,
        states: Any,
        actions: Any,
        rewards: Any,
        next_observations: Any,
        next_states: Any,
        terminated: Any,
        truncated: Any,
        infos: Any,
        timestep: int,
        timesteps: int,
    ) -> None:
        """Record one step of all environments; while training, also store it in the memory.

        Right under every autoreset mode: see `EpisodeBoundaries`. In evaluation mode it feeds the statistics only.

        Args:
            observations, next_observations: `(envs, *observation)`; of a Dict space dicts of such.
            states, next_states: `(envs, *state)`; None without a state_space.
            actions: `(envs, *action)`, in the Box's own units.
            rewards, terminated, truncated: `(envs, 1)`.
            infos: what the environments said beside; `final_obs`, and of states `final_info`, is read where it is there. A trainer
                that has found an environment diverged says so in `sacref.dropped`, `(envs,)`, bool: its row is left out, its episode
                counts for nothing, and its next row begins another one.

        Raises:
            ValueError: if a shape is wrong, or a host array holds NaN or infinity: nothing of the row is stored then. In device
                arrays such an environment's row is left out, and the error is raised at the next write interval.
        """
        if self.training:
            if self.memory is None:
                raise ValueError("record_transition: this agent has no memory to store in: construct it with memory=ReplayMemory(...)")
            self._resolve_intervals(timesteps)
        watch = self._watches[self.training]
        rows = self._check_rows(
            watch.boundaries,
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
        )
        if self.memory is None:
            self._num_envs = rows.keep.shape[0]
        device = self._is_device_array(rows.rewards)
        if watch.statistics.latest is not None and self._is_device_array(watch.statistics.latest) != device:
            watch.statistics.convert(self._upload if device else self.to_numpy, self.to_numpy)
        # Without a memory there is no run that writes curves, and what waited to be written would grow for ever.
        for_summary = self._tracking and self.memory is not None
        watch.statistics.add(rewards=rows.rewards, ended=rows.ended, keep=rows.keep, dropped=rows.dropped, for_summary=for_summary)
        stored = self._stored(rows)
        if self.training:
            self._feed_preprocessors(rows)
            self.memory.add(stored, rows.keep)
            if self.cfg.overlap and not any(map(self._is_device_array, leaves(next_observations))):
                # As they were returned: where an episode ended, the next action may be on the next episode's first observation.
                ahead = self._check_observations(next_observations), self._check_states(next_states)
                self._next_action = NextAction(*(map_leaves(np.array, tree) for tree in ahead))

    def _stored(self, rows: Rows[Any]) -> Transition[Any]:
        """The rows as the memory keeps them. Called for each, in evaluation too, where it keeps none."""
        transition: Transition[Any] = rows.transition
        return transition._replace(first=rows.first) if self._follow.needs_first else transition

    @property
    def _follow(self) -> Follow:
        """How the memory makes batches for this agent."""
        return Follow(n_step=self.cfg.n_step, discount_factor=self.cfg.discount_factor)

    def post_interaction(self, *, timestep: int, timesteps: int) -> None:
        """Track and checkpoint where an interval ends. It does not learn: that is for the algorithm to add.

        Raises:
            NumericalError: if training has become NaN or infinite. A look is taken at each write interval (without any, every 1,000
                timesteps), before each checkpoint, and at the end.
        """
        self._resolve_intervals(timesteps)
        timestep += 1
        self._timestep = timestep
        if self.checkpoint_interval and self.checkpoint_interval > 0 and timestep % self.checkpoint_interval == 0:
            self.write_checkpoint(timestep=timestep, timesteps=timesteps)
        if self._tracking and self.write_interval and timestep % self.write_interval == 0:
            self.write_tracking_data(timestep=timestep, timesteps=timesteps)
        if timestep >= timesteps or (not self._tracking and timestep % UNTRACKED_CHECK_INTERVAL == 0):
            self.check_numbers()
            self._raise_for_bad_rows()

    # Learning.

    def _learn_if_due(self, *, timestep: int, timesteps: int) -> None:
        if not self.training or timestep < self.cfg.learning_starts:
            return
        steps = self._pace.after_timestep(self.cfg, self._num_envs, last=timestep + 1 >= timesteps)
        if steps == 0:
            return
        if timestep + 1 < timesteps:
            self._choose_ahead(timestep)
        started = time.perf_counter()
        if steps == self.cfg.gradient_steps:
            self.update(timestep=timestep, timesteps=timesteps)
        else:
            self._take_gradient_steps(steps)
        if self._tracking:
            self._learned_at.append((self.gradient_step_count, timestep + 1))
        self.track_data("Stats / Algorithm update time (ms)", 1e3 * (time.perf_counter() - started))

    def _take_gradient_steps(self, steps: int) -> None:
        memory = self._require_memory()
        self._random, metrics = self._runner.learn(memory.state, self._moments, self._random, steps)
        self.gradient_step_count += steps
        self._track_metrics(metrics)

    def _require_memory(self) -> Any:
        if self.memory is None:
            raise ValueError("update: this agent has no memory to learn from: construct it with memory=ReplayMemory(...)")
        if not self.memory.written:
            raise ValueError("update: the memory is empty: record transitions in training mode first, or raise learning_starts")
        return self.memory

    def _check_subset_fits(self, critics: int) -> None:
        if self.cfg.target_subset is not None and self.cfg.target_subset > critics > 0:
            raise ConfigError(
                f"target_subset is {self.cfg.target_subset} and there are {critics} critics, expected at most as many: lower it, or give "
                f"more critics, default_models(num_critics={self.cfg.target_subset})"
            )

    def _check_batch_fits(self, capacity: int) -> None:
        if self.cfg.batch_size > capacity:
            raise ValueError(
                f"batch_size is {self.cfg.batch_size}, the memory's capacity {capacity}: lower batch_size or make the memory larger"
            )
