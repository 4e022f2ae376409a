"""The life cycle of an agent, which the backends share. An agent has parts, each in a file of this folder; none of them knows the agent."""

import time
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar, Generic, NoReturn, cast, overload

import gymnasium

from sacref.agent.acting import Acting
from sacref.agent.backend import Backend
from sacref.agent.carry import AnyCarry, Carry, NoCarry, Prediction
from sacref.agent.checkpoints import Checkpoints
from sacref.agent.health import Health
from sacref.agent.learner import Learner
from sacref.agent.metrics import AgentMetrics
from sacref.agent.models import Models
from sacref.agent.normalisers import Normalisers, make_preprocessors
from sacref.agent.numerics import require_finite_actions
from sacref.agent.prediction import NO_CARRY, ExportablePolicy, Predictor
from sacref.agent.transitions import Transitions
from sacref.agent.update_schedule import UpdateSchedule
from sacref.algorithm.data import Noise, Sampled
from sacref.algorithm.replay import AnyReplayMemory
from sacref.algorithm.tree import Tree
from sacref.config import SACConfig
from sacref.envs.interface import Space
from sacref.envs.space_records import records_of
from sacref.envs.spaces import Spaces, check_spaces
from sacref.ranks import Ranks
from sacref.spec.arrays import Array, ArrayT, NumpyArray, namespace
from sacref.storage.replay_log import ReplayLog
from sacref.storage.values import refuse_unlike

UNTRACKED_CHECK_INTERVAL = 1000
"""Timesteps between two looks at the device for rows and parameters that are not finite, where nothing is written."""


class Agent(Generic[ArrayT]):
    """An agent's life cycle. Any trainer that makes these calls can drive it; `timestep` counts calls, from 0.

    Args:
        backend: what computes.
        models: `policy`, and for training `critic_1` ... `critic_N`; `target_critic_1` ... are copied from the critics when left out.
            Every array is copied: the caller's objects stay as they are. Arrays that do not learn stay as they are, and are saved; target
            critics have those of their critics.
        memory: a `ReplayMemory` of its own, or None for an agent that only acts.
        observation_space: a Box, or a Dict of such, of one environment. action_space: a Box.
        state_space: what the critics see instead of the observations, a Box or a Dict, or None.
        cfg: a `SACConfig`, or a dict of its fields.

    Raises:
        ValueError, TypeError: if a model is missing or returns a wrong shape, a space is not supported, the device is unknown, or the batch
            is larger than the memory.
    """

    backend: ClassVar[str]
    """Name of the backend, "torch" or "jax"."""
    carry_type: ClassVar[type[NoCarry[Any]] | type[Carry[Any]]] = NoCarry

    def __init__(
        self,
        backend: Backend[ArrayT],
        *,
        models: Mapping[str, object],
        memory: AnyReplayMemory | None,
        observation_space: Space,
        state_space: Space | None,
        action_space: Space,
        cfg: SACConfig | Mapping[str, object] | None,
    ) -> None:
        self.spaces: Spaces = check_spaces(observation_space, state_space, action_space, longest_integer=backend.longest_integer)
        self.observation_space: Space = observation_space
        self.state_space: Space | None = state_space
        self.action_space: Space = action_space
        given = cfg if isinstance(cfg, SACConfig) else SACConfig.from_dict({} if cfg is None else cfg)
        # Its own: what is set in the given one afterwards is for the next agent.
        self.cfg: SACConfig = replace(given, experiment=replace(given.experiment))
        self.cfg.validate()
        self.carry_type.check_options(self.cfg, type(self).__name__)
        self.memory = memory
        self.training: bool = False
        self.environment_steps_offset = 0
        """Environment steps beyond those of a timestep of today: of timesteps that another number of ranks took."""
        experiment = self.cfg.experiment
        name = experiment.experiment_name or f"{datetime.now().strftime('%y-%m-%d_%H-%M-%S-%f')}_{type(self).__name__}"
        self.experiment_dir: Path = Path(experiment.directory or "runs").expanduser().absolute() / name
        self.checkpoint_interval: int | None = None if experiment.checkpoint_interval == "auto" else int(experiment.checkpoint_interval)
        self._resolved_intervals: tuple[int | None, int | None] = (None, None)
        """The write and the checkpoint interval that "auto" stands for in this run, once its timesteps are known."""

        preprocessors = make_preprocessors(self.cfg, observation_space, state_space)
        self._backend = backend
        self.ranks: Ranks = backend.ranks
        self.device: Any = backend.device
        self.own_models: Models[ArrayT] = Models(backend, self.cfg, models, learns=memory is not None)
        own_models = self.own_models
        self.dtype: Any = backend.dtype
        """float32 or float64, as the backend names it: the parameters' dtype."""
        self.transitions: Transitions[ArrayT] = Transitions(
            backend,
            self.cfg,
            self.spaces,
            observation_space=observation_space,
            state_space=state_space,
            action_space=cast(gymnasium.spaces.Box, action_space),
            memory_envs=None if memory is None else int(memory.num_envs),
            check_numbers=self.check_numbers,
        )
        self.float_limit: float = self.transitions.float_limit
        """The largest number that is finite in the dtype of the parameters; larger ones are refused wherever they are handed over."""
        self.normalisers: Normalisers[ArrayT] = Normalisers(backend, preprocessors)
        self.carry: AnyCarry[ArrayT] = self.carry_type(backend, self.cfg, self.spaces, own_models, self.normalisers, memory)
        self.learner: Learner[ArrayT] = Learner(
            backend,
            self.cfg,
            own_models,
            self.normalisers,
            self.carry,
            action_size=self.spaces.action_size,
            bounds=self.transitions.bounds,
            memory=memory,
        )
        self.execution = self.learner.execution
        self.metrics: AgentMetrics[ArrayT] = AgentMetrics(
            backend,
            self.cfg,
            critics=len(own_models.critics),
            directory=self.experiment_dir,
            write_interval=None if experiment.write_interval == "auto" else int(experiment.write_interval),
            keeps_rows=memory is not None,  # else no run writes curves, and what waits to be written would grow for ever
            environment_steps=self.environment_steps,
        )
        self.health: Health[ArrayT] = Health(self.cfg, self.learner, self.metrics)
        self.acting: Acting[ArrayT] = Acting(backend, self.cfg, self.spaces, self.learner, self.carry, self.transitions)
        self._predictor: Predictor[ArrayT] = Predictor(
            backend,
            self.cfg,
            self.spaces,
            action_space,
            models=own_models,
            normalisers=self.normalisers,
            learner=self.learner,
            carry=self.carry,
            transitions=self.transitions,
        )
        self.update_schedule: UpdateSchedule = UpdateSchedule(self.cfg, self.transitions.num_envs)
        self.checkpoints: Checkpoints[ArrayT] = Checkpoints(
            backend,
            self.cfg,
            learner=self.learner,
            layouts=own_models.layouts,
            memory=memory,
            update_schedule=self.update_schedule,
            health=self.health,
            has_states=state_space is not None,
            space_records=lambda: records_of(self),
        )
        self._in_flight = (self.acting, self.metrics, self.transitions, self.carry)
        """Parts with `state`, `set_state` and `reset`: what runs between two timesteps, beside what a checkpoint holds.

        Acting is the first: it alone may refuse a state of the right form, that of a random stream.
        """
        if memory is not None:
            self._allocate(memory)
        if self.ranks.size > 1:  # all begin with what rank 0 does, whatever their models were drawn from
            self.set_arrays(self.ranks.from_first(self.arrays()))

    def _allocate(self, memory: AnyReplayMemory) -> None:
        if self.cfg.batch_size > memory.capacity:
            raise ValueError(
                f"batch_size is {self.cfg.batch_size}, the memory's capacity {memory.capacity}: lower batch_size or make the memory larger"
            )
        memory.allocate(
            self.spaces,
            self.dtype,
            self.device,
            staged_timesteps=self.cfg.chunk,
            settings=self.carry.follow,
            carry=self.carry.stored_carry(),
        )

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        """Refuse to be copied and pickled, which `save` and `load` do.

        Raises:
            TypeError: always.
        """
        raise TypeError(
            f"{type(self).__name__} cannot be copied or pickled: what it learns with is compiled, recorded or captured for arrays of its "
            f"own, and a copy would share them. Write it with agent.save(path), construct another one with the same arguments and a memory "
            f"of its own, and load(path) there; agent.models gives copies of the models"
        )

    # The life cycle.

    def init(self, *, trainer_cfg: object = None) -> None:
        """Prepare for a run in freshly reset environments.

        Args:
            trainer_cfg: the trainer's settings, a dict or a dataclass; `timesteps` sets the intervals that are "auto".
        """
        timesteps = trainer_cfg.get("timesteps") if isinstance(trainer_cfg, Mapping) else getattr(trainer_cfg, "timesteps", None)
        if timesteps is not None:
            # Of an earlier run, which may have been of another length; one that was set by hand since then stays.
            write, checkpoint = self._resolved_intervals
            self.metrics.write_interval = None if self.metrics.write_interval == write else self.metrics.write_interval
            self.checkpoint_interval = None if self.checkpoint_interval == checkpoint else self.checkpoint_interval
            self._resolve_intervals(int(timesteps))
        self._reset(True)
        self._reset(False)

    def _reset(self, training: bool) -> None:
        for part in self._in_flight:
            part.reset(training)

    def _resolve_intervals(self, timesteps: int) -> None:
        write, checkpoint = self._resolved_intervals
        if self.metrics.write_interval is None:
            self.metrics.write_interval = write = max(1, timesteps // 100)
        if self.checkpoint_interval is None:
            self.checkpoint_interval = checkpoint = max(1, timesteps // 10)
        self._resolved_intervals = write, checkpoint

    def enable_training_mode(self, enabled: bool = True, *, apply_to_models: bool = False) -> None:
        """Train (explore, store, learn) or evaluate (act deterministically, store nothing, learn nothing).

        An evaluation begins with freshly reset environments; training goes on where it was. The statistics of an evaluation are written
        with the next ones of training; those that no training has followed are forgotten where another one begins.
        """
        if not enabled:
            if not self.training:
                self.metrics.statistics[False].forget_rows()
            self._reset(False)
        self.training = enabled
        if apply_to_models:
            self.enable_models_training_mode(enabled)

    def enable_models_training_mode(self, enabled: bool = True) -> None:
        """Set the models' own training mode (`train` and `eval` of their modules)."""
        self.acting.put_back()
        self.learner.switch_mode(enabled)

    def act(self, observations: Tree, states: Tree | None, *, timestep: int, timesteps: int) -> tuple[ArrayT, dict[str, ArrayT]]:
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
        actions, mean_actions = self.acting.act(observations, states, timestep, self.training)
        return actions, {"mean_actions": mean_actions}

    @overload
    def predict(self, observations: object, states: object = None, *, deterministic: bool = True) -> NumpyArray: ...
    @overload
    def predict(
        self,
        observations: object,
        states: object = None,
        *,
        carry: Prediction | None,
        episode_start: object = None,
        rewards: object = None,
        deterministic: bool = True,
    ) -> tuple[NumpyArray, Prediction]: ...
    def predict(
        self,
        observations: object,
        states: object = None,
        *,
        carry: object = NO_CARRY,
        episode_start: object = None,
        rewards: object = None,
        deterministic: bool = True,
    ) -> NumpyArray | tuple[NumpyArray, Prediction]:
        """Return the policy's actions for one observation, or for several. It may be called at any time and changes nothing of a training.

        The policy acts in evaluation mode, behind the preprocessors as they are. A recurrent one needs its `carry`, which a call returns:

            actions, carry = agent.predict(observations, carry=None)
            actions, carry = agent.predict(observations, carry=carry, episode_start=ended)

        Args:
            observations: `(*observation)` for one, or `(n, *observation)` for n; an array of any library, (nested) lists, or of a Dict
                space a dict of such.
            states: `(*state)` or `(n, *state)`; None for a policy that does not read them.
            carry: of the call before; None before the first one. Given, it is returned, by agents without one too.
            episode_start: whether this observation begins an episode, so that its carry begins: True, False, or `(n,)`.
            rewards: of the step before, a number or `(n,)`, for a policy that sees them (`feed_previous`).
            deterministic: False to draw actions from the policy, by a random stream of predictions alone; checkpoints do not hold it.

        Returns:
            Actions in the units and the dtype of the Box and inside it, `(*action)` for one observation and else `(n, *action)`; where
            `carry` was given, a tuple of them and the carry.

        Raises:
            ValueError: if a shape is wrong, values are not finite, or a recurrent policy is called without carry, or without rewards that
                it sees. NumericalError: if the policy's actions are not finite.
        """
        actions, carried, batched = self._predictor.predict(
            observations, states, carry=carry, episode_start=episode_start, rewards=rewards, deterministic=deterministic
        )
        require_finite_actions(self, actions)
        actions = actions if batched else actions[0]
        return actions if carry is NO_CARRY else (actions, carried)

    def exportable_policy(self) -> ExportablePolicy[ArrayT]:
        """Return the deterministic policy as a function of arrays, for `sacref.export_policy`."""
        return self._predictor.exportable()

    def pre_interaction(self, *, timestep: int, timesteps: int) -> None:
        """Called before the step of the environments. There is nothing to do."""

    def record_transition(
        self,
        *,
        observations: Tree,
        states: Tree | None,
        actions: object,
        rewards: object,
        next_observations: Tree,
        next_states: Tree | None,
        terminated: object,
        truncated: object,
        infos: object,
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
            infos: of the environments; `final_obs`, and of states `final_info`, is read where it is there. A trainer that has found an
                environment diverged says so in `sacref.dropped`, `(envs,)`, bool: its row is left out, its episode counts for nothing, and
                its next row begins another one.

        Raises:
            ValueError: if a shape is wrong, or a host array holds NaN or infinity: nothing of the row is stored then. In device
                arrays such an environment's row is left out, and the error is raised at the next write interval.
        """
        training, memory = self.training, self.memory
        if training:
            if memory is None:
                raise ValueError("record_transition: this agent has no memory to store in: construct it with memory=ReplayMemory(...)")
            self._resolve_intervals(timesteps)
        rows = self.transitions.check(
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
            training=training,
            shapes_rewards=training or self.carry.shapes_evaluation,
        )
        self.metrics.add_rows(rows, training)
        stored = self.carry.stored(rows, training)
        if training and memory is not None:
            self.normalisers.feed(rows)
            memory.add(stored, rows.keep)
            self.acting.expect(rows)

    def post_interaction(self, *, timestep: int, timesteps: int) -> None:
        """Track and checkpoint where an interval ends. It does not learn: that is for the algorithm to add.

        Raises:
            NumericalError: if training has become NaN or infinite. A look is taken at each write interval (without any, every 1,000
                timesteps), before each checkpoint, and at the end.
        """
        self._resolve_intervals(timesteps)
        timestep += 1
        self.health.timestep = timestep
        write_interval, tracking = self.metrics.write_interval, self.metrics.tracking
        if self.checkpoint_interval and self.checkpoint_interval > 0 and timestep % self.checkpoint_interval == 0:
            self.write_checkpoint(timestep=timestep, timesteps=timesteps)
        if tracking and write_interval and timestep % write_interval == 0:
            self.write_tracking_data(timestep=timestep, timesteps=timesteps)
        if timestep >= timesteps or (not tracking and timestep % UNTRACKED_CHECK_INTERVAL == 0):
            self.check_numbers()
            self.transitions.raise_for_bad_rows()

    def interval_ends(self, finished: int, timesteps: int) -> bool:
        """Tell whether anything is written or checked after so many timesteps, by `post_interaction`."""
        intervals = [self.checkpoint_interval, self.write_interval if self.metrics.tracking else UNTRACKED_CHECK_INTERVAL]
        return finished >= timesteps or any(every and every > 0 and finished % every == 0 for every in intervals)

    # Learning.

    def learn_if_due(self, *, timestep: int, timesteps: int) -> None:
        """Take the gradient steps that are due after this timestep, while training and from `learning_starts` on."""
        if not self.training or timestep < self.cfg.learning_starts or not self.carry.is_ready():
            return
        last = timestep + 1 >= timesteps
        steps = self.update_schedule.after_timestep(last=last)
        if steps == 0:
            return
        if not last:
            self.acting.choose_ahead(timestep)
        started = time.perf_counter()
        if steps == self.cfg.gradient_steps:
            self.update(timestep=timestep, timesteps=timesteps)
        else:
            self._take_gradient_steps(steps, timestep)
        self.metrics.track_update_end(self.learner.gradient_step_count, timestep + 1, 1e3 * (time.perf_counter() - started))

    def _take_gradient_steps(self, steps: int, timestep: int) -> None:
        self.metrics.track_updates(self.acting.learn(steps, timestep))

    def update(self, *, timestep: int, timesteps: int) -> None:
        """Take `gradient_steps` gradient steps, each on a fresh batch from the memory."""
        self._take_gradient_steps(self.cfg.gradient_steps, timestep)

    def update_on(self, batch: Sampled[Array], noise: Noise[Array]) -> dict[str, NumpyArray]:
        """Take one gradient step on a given batch and noise; return the metrics on the host.

        Args:
            batch: NumPy or the backend's arrays; `(batch, ...)`, actions in (-1, 1), before preprocessing; of SAC_RNN sequences.
            noise: standard normal draws, `(batch, action)`, and what else the configuration draws.
        """
        self.acting.put_back()
        return self.learner.take_gradient_step_on(batch, noise)

    def keep_gradients(self) -> None:
        """Keep the gradients of each step from now on, for `gradients`. Meant for comparisons; it costs a copy a step."""
        self.learner.keep_gradients()

    def gradients(self) -> dict[str, NumpyArray]:
        """Return the gradients of the last step, before clipping, under common names: `policy.<name>`, `critic_1.<name>`, `log_alpha`."""
        return self.learner.gradients()

    @property
    def gradient_step_count(self) -> int:
        """Gradient steps so far."""
        return self.learner.gradient_step_count

    @property
    def models(self) -> dict[str, Any]:
        """The models with their current parameters, as copies: what was read once stays as it was."""
        return self.learner.current_models()

    @property
    def alpha(self) -> float:
        """The entropy coefficient in force."""
        log_alpha = self.learner.state.log_alpha
        return float(cast(Any, namespace(log_alpha).exp(log_alpha)))

    def synchronise(self) -> None:
        """Wait until the device has done all that it was asked for."""
        self.learner.synchronise()

    def upload(self, array: object) -> ArrayT:
        """Put an array of any library on this agent's device, as one that nobody else writes into: the counterpart of `to_numpy`.

        An array of PyTorch or JAX on that device stays on it.
        """
        return self._backend.upload(array, copy=True)

    def to_numpy(self, array: object) -> NumpyArray:
        """Bring an array of this agent's to the host, as a copy."""
        return self._backend.to_numpy(array)

    # Metrics.

    @property
    def write_interval(self) -> int | None:
        """Timesteps between two writes of metrics; None before it is known, and at most 0 where nothing is tracked."""
        return self.metrics.write_interval

    @write_interval.setter
    def write_interval(self, timesteps: int | None) -> None:
        self.metrics.write_interval = timesteps

    @property
    def recent_returns(self) -> tuple[float, ...]:
        """Returns (undiscounted sums of rewards) of the last finished training episodes, oldest first, at most 100."""
        return self.metrics.recent_returns()

    def track_data(self, tag: str, value: float) -> None:
        """Add a scalar to what is written next, also before `init`. A tag that ends in (max) or (min) shows that, others the mean."""
        self.metrics.track(tag, value)

    def environment_steps(self, timestep: int) -> int:
        """Return the steps of the environments of all ranks together, after so many timesteps."""
        return timestep * self.transitions.num_envs * self.ranks.size + self.environment_steps_offset

    def write_tracking_data(self, *, timestep: int, timesteps: int) -> None:
        """Fetch what was measured since the last call from the device, and write it to TensorBoard and metrics.jsonl.

        Of several ranks all make this call, at the same timestep: rank 0 writes what all of them measured, scalars reduced over the ranks
        as they are over time, rewards and episodes together.

        Raises:
            NumericalError: if a loss, or what else updates measured since the last call, is NaN or infinite. ValueError: if rows of device
                arrays were. The data is written first.
        """
        self.health.write_metrics(timestep, self.ranks)
        self.transitions.raise_for_bad_rows()

    def check_numbers(self) -> None:
        """Look at all that was learned, and at what updates measured since the last write. This waits for the device.

        Raises:
            NumericalError: if any of it is NaN or infinite. What was tracked up to then is written first, of this rank alone.
        """
        self.health.check()

    def close(self) -> None:
        """Close the files of the tracking. What was not written yet is lost; `write_tracking_data` writes it."""
        self.metrics.close()

    # State.

    def arrays(self) -> dict[str, NumpyArray]:
        """Return all that the agent knows, under common names: parameters, log alpha, optimizer moments, counters, models' constants.

        `policy.<name>`, `critic_1.<name>`, `target_critic_1.<name>`, `log_alpha`, `gradient_steps`, and per optimizer `<optimizer>.count`,
        `<optimizer>.first_moment...` and `<optimizer>.second_moment...`; of preprocessors `preprocessor.observations...`. Buffers and
        frozen parameters are `policy.<name>` and `critic_1.<name>`; target critics have those of their critics.
        """
        return self.learner.arrays()

    def set_arrays(self, arrays: Mapping[str, NumpyArray]) -> None:
        """Go on from what `arrays` gave, on this backend or the other.

        Raises:
            ValueError: if a name or a shape is not this agent's, or an optimizer's count or second moments are negative. Nothing is
                changed then.
        """
        self.learner.set_arrays(arrays)
        self._forget_updates()

    def _forget_updates(self) -> None:
        """Forget what is known of parameters that others have replaced."""
        self.metrics.forget_updates()
        self.health.forget_updates()
        self.acting.forget_updates()
        self._predictor.forget()

    def write_checkpoint(self, *, timestep: int, timesteps: int) -> None:
        """Save to `<experiment>/checkpoints/agent_<timestep>`. Only the newest checkpoint of a run keeps its replay memory.

        Of several ranks all make this call, at the same timestep.
        """
        path = self.experiment_dir / "checkpoints" / f"agent_{timestep}"
        self.save(path)
        self.checkpoints.drop_former_memory(path)

    def save(
        self,
        path: str | Path,
        *,
        replay: ReplayLog | None = None,
        keep_memory: bool = True,
        live: tuple[Mapping[str, Mapping[str, NumpyArray]], Mapping[str, object]] | None = None,
    ) -> None:
        """Write the whole agent to a checkpoint directory: safetensors for arrays, JSON for the rest, nothing that runs code.

        Parameters, optimizer moments, log alpha, step counters, random streams, and the replay memory where there is one.

        Args:
            path: the directory.
            replay: a log, in the directory beside `path`, that takes the memory's new rows instead of a copy of all of it.
            keep_memory: whether the replay memory is written.
            live: groups of arrays, and metadata, of the in-flight state: see `live_state`.

        Of several ranks all make this call. Each writes its own part, its streams and its memory: rank 1 to `<path>.rank_1`, and so on;
        rank 0 writes `path` last, so that a checkpoint that is there is whole.

        Raises:
            NumericalError: if anything that was learned is NaN or infinite. Nothing is written then.
        """
        self.checkpoints.save(Path(path).expanduser(), type(self).__name__, replay=replay, keep_memory=keep_memory, live=live)

    def load(self, path: str | Path) -> None:
        """Restore what `save` wrote. A memory that the checkpoint does not hold stays as it is.

        A checkpoint of the other backend gives its weights, moments, temperature and memory; the random streams restart from (seed,
        rank, the gradient steps so far), and the log says so.

        An agent without a memory only acts, and asks for what acting reads: the policy and the preprocessors. Of critics and optimizers it
        takes what both have, and keeps its own of what the checkpoint does not have. Without a state_space it leaves out what is of states.

        As many ranks as wrote it go on exactly. Of another number, rank r takes the memory of the old rank r modulo their number, random
        streams restart from (seed, rank, the gradient steps so far), and a warning says so.

        Raises:
            checkpoint.CheckpointError: if the directory is not a whole and sound checkpoint of an agent of this shape. The agent
                is then as it was before.
        """
        self.acting.put_back()
        self.checkpoints.load(Path(path).expanduser(), type(self).__name__)
        self._forget_updates()
        self._reset(True)  # the next row does not continue the rows of before, nor those that the memory holds now
        self._reset(False)
        self.carry.count_stored()

    def live_state(self) -> dict[str, object]:
        """Return the in-flight state that exact resume needs in addition to a checkpoint: unwritten metrics, unfinished episodes.

        Numbers, text, NumPy arrays, and lists, tuples and dicts of those. With it, and with the environments as they were, a run goes on
        as if it had never stopped.
        """
        return {name: value for part in self._in_flight for name, value in part.state().items()}

    def live_like(self) -> dict[str, object]:
        """Describe what `live_state` gives, for `refuse_unlike`."""
        envs = self.transitions.num_envs
        return {name: like for part in self._in_flight for name, like in part.state_like(envs).items()}

    def set_live_state(self, state: Mapping[str, object]) -> None:
        """Go on from what `live_state` gave; after `init`, and with the environments as they were.

        Raises:
            ValueError: if it is of another agent, or of other environments. Nothing is changed then.
        """
        refuse_unlike("what the agent was in the middle of", state, self.live_like())
        for part in self._in_flight:
            part.set_state(state)
