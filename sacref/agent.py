"""What the life cycles of the two backends share: recording transitions, tracking, checkpoints. No backend."""

import logging
import secrets
import time
from abc import abstractmethod
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from fractions import Fraction
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Generic

import numpy as np
from numpy.typing import NDArray

import sacref
from sacref import checkpoint, numerics, replay_log
from sacref.border import Border, Rows
from sacref.config import PARTS, ConfigError, Execution, SACConfig
from sacref.envs.episodes import EpisodeBoundaries
from sacref.envs.spaces import boxes, check_spaces, rows_like
from sacref.envs.values import Like, Maybe, refuse_unlike
from sacref.naming import prefixed, require_same_arrays, under
from sacref.numerics import NumericalError
from sacref.preprocessing import Preprocessor
from sacref.ranks import Ranks
from sacref.replay import Follow
from sacref.replay_log import ReplayLog
from sacref.spec.arrays import ArrayT, namespace
from sacref.statistics import EpisodeStatistics
from sacref.tracking import Tracker
from sacref.tree import Tree, leaves, map_leaves, named_leaves
from sacref.types import METRICS, Transition

logger = logging.getLogger(__name__)

TAGS: Mapping[str, str] = {
    "critic_loss": "Loss / Critic loss",
    "policy_loss": "Loss / Policy loss",
    "entropy_loss": "Loss / Entropy loss",
    "alpha": "Coefficient / Entropy coefficient",
    "entropy": "Policy / Entropy",
    "q_max": "Q-network / Q{critic} (max)",
    "q_min": "Q-network / Q{critic} (min)",
    "q_mean": "Q-network / Q{critic} (mean)",
    "target_max": "Target / Target (max)",
    "target_min": "Target / Target (min)",
    "target_mean": "Target / Target (mean)",
    "policy_gradient_norm": "Gradient / Policy norm before clipping",
    "critic_gradient_norm": "Gradient / Critics norm before clipping",
    "policy_learning_rate": "Learning / Policy learning rate",
    "critic_learning_rate": "Learning / Critic learning rate",
    "entropy_learning_rate": "Learning / Entropy learning rate",
    "policy_loss_scale": "Precision / Policy loss scale",
    "critic_loss_scale": "Precision / Critic loss scale",
    "entropy_loss_scale": "Precision / Entropy loss scale",
    "policy_skipped_steps": "Precision / Policy skipped steps (max)",
    "critic_skipped_steps": "Precision / Critic skipped steps (max)",
    "entropy_skipped_steps": "Precision / Entropy skipped steps (max)",
}
"""Metric of an update -> tag of its curve. Tags that end in (max) or (min) show that of the interval, all others the mean."""


LIVE = ("live", "environment")
"""Groups of a checkpoint that are of what a run was in the middle of: see `Agent.live_state`."""
REPLAY = "replay"
"""Directory of a replay log, beside the checkpoints that it belongs to."""
MOST_RANKS = 2**20
"""That a checkpoint may say have written it."""
LARGEST_STREAMS = 2**20
"""Bytes of random streams' states that are read."""
_KEPT = ("_next_action", "_sound_until", "_skipped_before", "_learned_at", "_streams_key")
"""What `set_arrays` and `_begin_streams` change beside arrays and streams."""
MOMENTS = ("first_moment", "second_moment")
FLOATS = ("learning_rate", "loss_scale")
"""What an optimizer holds beside its moments that is no integer."""


def all_values(q: ArrayT) -> ArrayT:
    """The values of all critics, `(critic, *batch)`, as they are: the actor takes their minimum."""
    return q


def mean_value(q: ArrayT) -> ArrayT:
    """The mean over the critics as that of a single one, `(1, *batch)` (REDQ: Chen et al. 2021, arXiv:2101.05982, algorithm 1)."""
    mean: ArrayT = namespace(q).mean(q, axis=0)[None, ...]
    return mean


POLICY_VALUES: Mapping[str, Callable[[Any], Any]] = {"min": all_values, "mean": mean_value}
"""What `cfg.policy_value` shows the actor of the critics."""

FINEST = 1_000_000
"""Gradient steps for each timestep are counted exactly, in fractions with denominators up to this."""

UNTRACKED_CHECK_INTERVAL = 1000
"""Timesteps between two looks at the device for rows and parameters that are not finite, where nothing is written."""


@dataclass
class NextAction:
    """What `overlap` chooses before an update, for the timestep after it."""

    observations: Tree
    """`(envs, *observation)`: as the environments returned them; NumPy arrays."""
    states: Tree | None
    """`(envs, *state)`, or None."""
    chosen: tuple[Any, Any] | None = None
    """Actions and mean actions."""


class Watch(Generic[ArrayT]):
    """What is remembered of the rows of one mode, training or evaluation, so that neither is mistaken for the other."""

    def __init__(self) -> None:
        self.boundaries: EpisodeBoundaries[ArrayT] = EpisodeBoundaries()
        self.statistics = EpisodeStatistics()


class Agent(Border[ArrayT]):
    """An agent's life cycle without its algorithm. Any trainer that makes these calls can drive it; `timestep` counts calls, from 0.

    Args:
        memory: a replay memory, or None for an agent that only acts.
        observation_space, action_space: of one environment. state_space: what the critics see beyond the observations, or None.
        cfg: a `SACConfig`, or a dict of its fields.
    """

    def __init__(
        self, *, memory: Any, observation_space: Any, state_space: Any, action_space: Any, cfg: SACConfig | Mapping[str, Any] | None
    ) -> None:
        self.spaces = check_spaces(observation_space, state_space, action_space)
        self.observation_space, self.state_space, self.action_space = observation_space, state_space, action_space
        self.cfg = cfg if isinstance(cfg, SACConfig) else SACConfig.from_dict(dict(cfg or {}))
        self.cfg.validate()
        self._check_options()
        self._set_up()
        self.ranks = self._ranks()
        self.memory = memory
        self.training = False
        self._preprocessors: dict[str, Preprocessor] = {
            **self._make_preprocessors("observation", observation_space),
            **self._make_preprocessors("state", state_space),
        }
        experiment = self.cfg.experiment
        name = experiment.experiment_name or f"{datetime.now().strftime('%y-%m-%d_%H-%M-%S-%f')}_{type(self).__name__}"
        self.experiment_dir = Path(experiment.directory or "runs").absolute() / name
        self.write_interval: int | None = None if experiment.write_interval == "auto" else int(experiment.write_interval)
        self.checkpoint_interval: int | None = None if experiment.checkpoint_interval == "auto" else int(experiment.checkpoint_interval)
        self._watches: dict[bool, Watch[Any]] = {True: Watch(), False: Watch()}
        self._tracked: defaultdict[str, list[float]] = defaultdict(list)
        self._metrics: list[Any] = []
        self._tracker: Tracker | None = None
        self._newest_checkpoint: Path | None = None
        self._good_checkpoint: Path | None = None
        """The last one that was saved or loaded, with a memory where there is one."""
        self._timestep = 0
        """Timesteps finished, as the trainer counts them."""
        self._learned_at: list[tuple[int, int]] = []
        """Gradient steps so far and timesteps finished, after each update whose metrics were not written yet."""
        self._sound_until = 0
        """Gradient steps after which all that was learned was seen to be finite."""
        self._skipped_before: dict[str, tuple[int, int]] = {}
        """Optimizer -> gradient steps so far, and those of them that were skipped, when last one was not."""
        self._num_envs = 1 if memory is None else int(memory.num_envs)
        self.environment_steps_offset = 0
        """Environment steps beyond those of a timestep of today: of timesteps that another number of ranks took."""
        self.gradient_step_count = 0
        self._streams_key: tuple[int, ...] = ()
        """Empty for streams that began with the agent; else when they began anew."""
        self._due = Fraction(0)
        """Gradient steps that the timesteps so far ask for and no update has taken."""
        self._timesteps_to_learn_from = 0
        """Timesteps of the chunk at hand."""
        self._next_action: NextAction | None = None

    def _check_options(self) -> None:
        """Refuse fields of the configuration that do not go together with this algorithm."""

    def _set_up(self) -> None:
        """Make what this algorithm holds beside the models, before those are tried."""

    def _make_preprocessors(self, kind: str, space: Any) -> dict[str, Preprocessor]:
        """Name of an array -> its preprocessor, for each Box of a space; none where none is asked for.

        Raises:
            ValueError: if one is asked for states and there is no state_space.
        """
        factory, kwargs = getattr(self.cfg, f"{kind}_preprocessor"), getattr(self.cfg, f"{kind}_preprocessor_kwargs")
        if factory is None:
            return {}
        if space is None:
            raise ValueError(f"{kind}_preprocessor is set and there is no {kind}_space: construct the agent with one, or leave it at None")
        return {name: factory(box, **kwargs) for name, box in named_leaves(boxes(space), f"{kind}s").items()}

    @property
    def _state(self) -> Any:
        """The backend's `update.State`."""
        return self._runner.state

    @_state.setter
    def _state(self, state: Any) -> None:
        self._runner.state = state

    # What a backend provides.

    @abstractmethod
    def _ranks(self) -> Ranks:
        """The processes that train this agent together: those that have joined, or this one alone."""

    @abstractmethod
    def _act(self, way: str, observations: Tree, states: Tree | None) -> tuple[Any, Any]:
        """Actions and mean actions in the Box's units, `(envs, action)`; `way` is "greedy", "random" or "sampled"."""

    @abstractmethod
    def _take_moments(self) -> None:
        """Take what the preprocessors know to the device."""

    _moments: Tree
    """What the preprocessors know, on the device in the agent's dtype: name of an array -> their arrays."""

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

    @abstractmethod
    def _fetch(self, metrics: Sequence[Any]) -> NDArray[Any]:
        """Packed metrics of the updates so far, `(update, metric)`, read from the device at once."""

    execution: Execution
    """How updates run: what `cfg.execution` asks for, or what was chosen for the device."""

    backend: str
    """The backend's name, which a checkpoint remembers."""
    _runner: Any
    """The backend's `fuse.Alone`, or `fuse.Member` of a population: what holds the state, learns and acts."""
    _update: Any
    """The backend's `update.Update`."""
    _random: Any
    """The backend's `fuse.Streams`."""

    @abstractmethod
    def _export(self, model: str, parameters: Any) -> dict[str, NDArray[Any]]:
        """Parameters, gradients or moments of a model under common names."""

    @abstractmethod
    def _import(self, model: str, arrays: Mapping[str, NDArray[Any]], like: Any) -> Any:
        """The inverse of `_export`, in the dtypes of `like`."""

    @abstractmethod
    def _like(self, array: NDArray[Any], like: Any) -> Any:
        """A backend array of the dtype and device of `like`."""

    @abstractmethod
    def _streams(self) -> dict[str, NDArray[Any]]:
        """The random streams' states."""

    @abstractmethod
    def _begin_streams(self) -> None:
        """Put the random streams to where `_stream_seed` has them begin."""

    @abstractmethod
    def _set_streams(self, streams: Mapping[str, NDArray[Any]]) -> None: ...

    @property
    @abstractmethod
    def _layouts(self) -> dict[str, str]:
        """Model -> "common", or the backend whose own layout its parameters have."""

    def _stream_seed(self, stream: int) -> np.random.SeedSequence:
        """Where a random stream of this rank begins."""
        return np.random.SeedSequence([self.cfg.seed, self.ranks.rank, stream], spawn_key=self._streams_key)

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

    def _begin(self, training: bool) -> None:
        """What comes next in this mode comes from freshly reset environments."""
        self._watches[training].boundaries.reset()
        self._watches[training].statistics.forget_running()

    def enable_training_mode(self, enabled: bool = True, *, apply_to_models: bool = False) -> None:
        """Train (explore, store, learn) or evaluate (act deterministically, store nothing, learn nothing).

        An evaluation begins with freshly reset environments; training goes on where it was.
        """
        if not enabled:
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
            Actions in the Box's units, `(envs, *action)`, and a dict that holds `mean_actions`, the deterministic ones. They are the
            backend's arrays; `to_numpy` brings them to the host.

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
        return actions, {"mean_actions": mean_actions}

    def _way(self, timestep: int) -> str:
        return "greedy" if not self.training else "random" if timestep < self.cfg.random_timesteps else "sampled"

    def _choose_ahead(self, timestep: int) -> None:
        """Choose the next timestep's actions now, where the next observations are known (host arrays)."""
        ahead = self._next_action
        if ahead is not None and ahead.chosen is None:
            ahead.chosen = self._act(self._way(timestep + 1), ahead.observations, ahead.states)

    def _chosen_before(self, observations: Tree, states: Tree | None) -> tuple[Any, Any] | None:
        if not self.training or self._next_action is None:
            return None
        ahead, self._next_action = self._next_action, None
        pairs = zip(leaves((ahead.observations, ahead.states)), leaves((observations, states)), strict=False)
        return ahead.chosen if all(not self._is_device_array(now) and np.array_equal(then, now) for then, now in pairs) else None

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
            watch.statistics.convert(self._upload if device else self.to_numpy)
        watch.statistics.add(rewards=rows.rewards, ended=rows.ended, keep=rows.keep, dropped=rows.dropped, for_summary=self._tracking)
        stored = self._stored(rows)
        if self.training:
            if self.memory is None:
                raise ValueError("record_transition: this agent has no memory to store in: construct it with memory=ReplayMemory(...)")
            self._feed_preprocessors(rows)
            self.memory.add(stored, rows.keep)
            if self.cfg.overlap and not any(map(self._is_device_array, leaves(next_observations))):
                # As they were returned: where an episode ended, the next action may be on the next episode's first observation.
                self._next_action = NextAction(map_leaves(np.array, next_observations), map_leaves(np.array, next_states))

    def _stored(self, rows: Rows[Any]) -> Transition[Any]:
        """The rows as the memory keeps them. Called for each, in evaluation too, where it keeps none."""
        transition: Transition[Any] = rows.transition
        return transition._replace(first=rows.first) if self._follow.needs_first else transition

    def _feed_preprocessors(self, rows: Rows[Any]) -> None:
        """Show each observation that the environments produced to the preprocessors, once: successors, and what episodes began with.

        Those of all ranks, in one order: the moments stay equal everywhere.
        """
        if not self._preprocessors:
            return
        transition = rows.transition
        keep, begun = (self.to_numpy(mask) for mask in (rows.keep, rows.keep & rows.first))
        now = {**named_leaves(transition.observations, "observations"), **named_leaves(transition.states, "states")}
        then = {**named_leaves(transition.next_observations, "observations"), **named_leaves(transition.next_states, "states")}
        for name, preprocessor in self._preprocessors.items():
            preprocessor.update(self.ranks.rows(np.concatenate([self.to_numpy(now[name])[begun], self.to_numpy(then[name])[keep]])))
        self._take_moments()

    def _preprocessed(self, moments: Tree, kind: str, tree: Tree) -> Tree:
        """Observations or states (`kind`) as the models see them."""
        names = iter(named_leaves(tree, kind))

        def transform(values: Any) -> Any:
            name = next(names)
            if name not in self._preprocessors:
                return values
            return self._preprocessors[name].transform(moments[name], self._as_floats(values))

        return map_leaves(transform, tree)

    def _prepare_inputs(self, moments: Tree, inputs: Any) -> Any:
        """What a model is called with as it sees it."""
        if not self._preprocessors:
            return inputs
        return {**inputs, **{kind: self._preprocessed(moments, kind, inputs[kind]) for kind in ("observations", "states")}}

    def _prepare(self, moments: Tree, batch: Any) -> Any:
        """A batch, or sequences, as the models see them."""
        if not self._preprocessors:
            return batch
        fields = {"observations": "observations", "states": "states", "next_observations": "observations", "next_states": "states"}
        return batch._replace(
            **{field: self._preprocessed(moments, kind, getattr(batch, field)) for field, kind in fields.items() if hasattr(batch, field)}
        )

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

    def _learn_if_due(self, *, timestep: int, timesteps: int) -> None:
        if not self.training or timestep < self.cfg.learning_starts:
            return
        steps = self._due_steps(timestep, timesteps)
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

    def _due_steps(self, timestep: int, timesteps: int) -> int:
        """Count a timestep that is learned from; the gradient steps to take now, at the end of a chunk or of the run, else 0."""
        self._due += Fraction(self.cfg.gradient_steps_per_timestep(self._num_envs)).limit_denominator(FINEST)
        self._timesteps_to_learn_from += 1
        if self._timesteps_to_learn_from < self.cfg.chunk and timestep + 1 < timesteps:
            return 0
        self._timesteps_to_learn_from = 0
        steps = int(self._due)
        self._due -= steps
        return steps

    # Tracking.

    @property
    def recent_returns(self) -> tuple[float, ...]:
        """Returns (undiscounted sums of rewards) of the last finished training episodes, oldest first, at most 100."""
        return tuple(self._watches[True].statistics.recent_returns)

    def track_data(self, tag: str, value: float) -> None:
        """Add a scalar to what is written next, also before `init`. A tag that ends in (max) or (min) shows that, others the mean."""
        if self._tracking:
            self._tracked[tag].append(float(value))

    def environment_steps(self, timestep: int) -> int:
        """Steps of the environments of all ranks together, after so many timesteps."""
        return timestep * self._num_envs * self.ranks.size + self.environment_steps_offset

    def write_tracking_data(self, *, timestep: int, timesteps: int) -> None:
        """Fetch what was measured since the last call from the device, and write it to TensorBoard and metrics.jsonl.

        Of several ranks all make this call, at the same timestep: rank 0 writes what all of them measured, scalars reduced over the ranks
        as they are over time, rewards and episodes together.

        Raises:
            NumericalError: if a loss, or what else updates measured since the last call, is NaN or infinite. ValueError: if rows of device
                arrays were. The data is written first.
        """
        rows = self._fetch(self._metrics) if self._metrics else None
        fault = self._fault_of(rows)
        self._write_tracked(timestep, rows, self.ranks)
        faults = self.ranks.gather(None if fault is None else str(fault))
        if fault is not None:
            raise fault
        for rank, message in enumerate(faults):
            if message is not None:
                raise NumericalError(f"rank {rank}: {message}")
        self._raise_for_bad_rows()

    def _write_tracked(self, timestep: int, rows: NDArray[Any] | None, ranks: Ranks) -> None:
        """Write what was measured since the last call, by these ranks, and forget it. `rows` are the metrics of this one's updates."""
        scalars = {tag: _reduce(tag, values) for tag, values in self._tracked.items()}
        self._tracked.clear()
        self._metrics, self._learned_at = [], []
        if rows is not None:
            for tag, samples in zip(self._metric_tags(), rows.T, strict=True):
                if tag != TAGS["entropy_loss"] or self.cfg.learn_entropy:  # else nothing minimises it
                    scalars[tag] = _reduce(tag, samples)
        told = ranks.gather(scalars)
        scalars = {tag: _reduce(tag, [each[tag] for each in told if tag in each]) for tag in dict.fromkeys(chain.from_iterable(told))}
        for training, watch in self._watches.items():
            prefix = "" if training else "Evaluation / "
            summary = watch.statistics.summary(self.to_numpy)
            kinds = {"Reward / Instantaneous reward": summary.rewards, "Reward / Total reward": summary.returns}
            for tag, own in {**kinds, "Episode / Total timesteps": summary.lengths}.items():
                values = ranks.rows(own)
                if values.size:
                    for kind in ("max", "min", "mean"):
                        scalars[f"{prefix}{tag} ({kind})"] = _reduce(f"({kind})", values)
        if scalars and self.ranks.rank == 0:
            if self._tracker is None:
                self._tracker = Tracker(self.experiment_dir)
            try:
                self._tracker.write(timestep, self.environment_steps(timestep), scalars)
            except OSError as error:  # which a run of days shall not end of
                logger.warning("what was measured up to timestep %d is not written: %s. Training goes on", timestep, error)

    def close(self) -> None:
        """Close the files of the tracking. What was not written yet is lost; `write_tracking_data` writes it."""
        if self._tracker is not None:
            self._tracker.close()
            self._tracker = None

    @property
    def _tracking(self) -> bool:
        return self.write_interval is None or self.write_interval > 0

    def _track_metrics(self, metrics: Sequence[Any]) -> None:
        """Keep the packed metrics of updates, on the device, until the next write."""
        if self._tracking:
            self._metrics.extend(metrics)

    def _metric_names(self) -> list[str]:
        """The name of each element of an update's packed metrics."""
        critics = len(self._state.critics)
        names = [name for name in METRICS if name not in self._unmeasured]
        return [name for name in names for _ in range(critics if "{critic}" in TAGS[name] else 1)]

    def _metric_tags(self) -> list[str]:
        """The tag of each element of an update's packed metrics."""
        critics = range(1, len(self._state.critics) + 1)
        tags = [TAGS[name] for name in METRICS if name not in self._unmeasured]
        return [tag.format(critic=critic) for tag in tags for critic in (critics if "{critic}" in tag else (0,))]

    @property
    def _unmeasured(self) -> set[str]:
        """Those of `METRICS` that an update of this configuration does not measure."""
        absent = {f"{part}_learning_rate" for part, schedule in self.cfg.schedules.items() if schedule is None}
        if self.cfg.grad_norm_clip <= 0:
            absent |= {"policy_gradient_norm", "critic_gradient_norm"}
        scaled = [part for part in PARTS if self.cfg.scales_losses and (part != "entropy" or self.cfg.learn_entropy)]
        return absent | {f"{part}_{name}" for part in PARTS if part not in scaled for name in ("loss_scale", "skipped_steps")}

    def _resolve_intervals(self, timesteps: int) -> None:
        if self.write_interval is None:
            self.write_interval = max(1, timesteps // 100)
        if self.checkpoint_interval is None:
            self.checkpoint_interval = max(1, timesteps // 10)

    def _begin_alike(self) -> None:
        """Let all ranks begin with what rank 0 does, whatever their models were drawn from."""
        if self.ranks.size > 1:
            self.set_arrays(self.ranks.from_first(self.arrays()))

    # Numbers that are not finite.

    def check_numbers(self) -> None:
        """Look at all that was learned, and at what updates measured since the last write. This waits for the device.

        Raises:
            NumericalError: if any of it is NaN or infinite. What was tracked up to then is written first, of this rank alone.
        """
        self._require_finite(self.arrays())

    def _require_finite(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        rows = self._fetch(self._metrics) if self._metrics else None
        fault = self._fault_of(rows, arrays)
        if fault is None:
            return
        if self._tracking:
            self._write_tracked(self._timestep, rows, Ranks())
        raise fault

    def _fault_of(self, rows: NDArray[Any] | None, arrays: Mapping[str, NDArray[Any]] | None = None) -> NumericalError | None:
        """What is at fault, if anything is.

        Args:
            rows: metrics of the last gradient steps, `(gradient step, metric)`; None for none.
            arrays: as of `arrays`. None to fetch them only where the metrics leave something to ask: where they are not finite, and where
                losses are scaled, as a step that overflows in float16 is skipped and its losses tell nothing.
        """
        scaled = self.cfg.scales_losses
        if rows is not None and scaled:
            finite = np.flatnonzero(np.isfinite(rows).all(axis=1))
            rows = rows[finite[-1] + 1 :] if finite.size else None  # those since the last step that did not overflow
        first = None if rows is None else numerics.first_fault(self._metric_names(), rows)
        if arrays is None and first is None and not scaled:
            return None
        arrays = self.arrays() if arrays is None else arrays
        bad, stuck = numerics.not_finite(arrays), self._stuck(arrays)
        if bad or (first is not None and not scaled):
            since = self._since(first, rows, [name for name in bad if "_moment" not in name])
            by_now = f"; parameters, moments or counters that are not finite by now: {numerics.listed(bad)}" if bad else ""
            said = f"training is not finite any more (NaN or infinity) {since}{by_now}"
        elif stuck:
            said = f"training does not go on any more: {stuck}"
        else:
            self._sound_until = self.gradient_step_count
            return None
        return NumericalError(f"{said}. {numerics.advice(self.cfg, self._good_checkpoint)}")

    def _since(self, first: numerics.Fault | None, rows: NDArray[Any] | None, parameters: list[str]) -> str:
        """Which gradient step it began with, as exactly as is known."""
        steps = self.gradient_step_count
        if first is not None and rows is not None:
            step = steps - len(rows) + 1 + first.row
            when = next((f" (timestep {timestep})" for count, timestep in self._learned_at if count >= step), "")
            return f"since gradient step {step}{when}: {numerics.listed(first.names)}; at fault is {first.cause}"
        if self._tracking and not self.cfg.scales_losses and parameters and steps > self._sound_until:
            return f"since gradient step {steps} (timestep {self._timestep}), whose losses are finite and whose step is not"
        if steps == self._sound_until:
            return f"since before gradient step {steps + 1}: what was loaded is not"
        return f"since a gradient step from {self._sound_until + 1} to {steps} (timestep {self._timestep})"

    def _stuck(self, arrays: Mapping[str, NDArray[Any]]) -> str | None:
        """What is to be said of optimizers all of whose last steps overflowed, where losses are scaled: no scale helps them."""
        found = []
        for name, array in arrays.items():
            slot, _, field = name.partition(".")
            if field == "skipped_steps":
                now = self.gradient_step_count, int(array)
                before = self._skipped_before.setdefault(slot, now)
                if now[1] - before[1] < now[0] - before[0]:
                    self._skipped_before[slot] = now
                elif now[0] - before[0] >= numerics.MOST_SKIPPED:
                    found.append(f"the last {now[0] - before[0]} steps of the {slot} overflowed in float16 and were skipped")
        return "; ".join(found) or None

    def _refuse_not_finite(self, parts: Mapping[str, Any], keep: Any, device: bool) -> Any:
        if not device and "actions" in parts and not np.isfinite(parts["actions"]).all():
            self.check_numbers()  # which the policy's come from
        return super()._refuse_not_finite(parts, keep, device)

    def _raise_for_bad_rows(self) -> None:
        if self._bad_rows is not None and self.to_numpy(self._bad_rows).any():
            self.check_numbers()  # whose actions may be why
        super()._raise_for_bad_rows()

    # State under common names.

    def arrays(self) -> dict[str, NDArray[Any]]:
        """All that learning has changed, under common names: parameters, log alpha, optimizer moments, counters.

        `policy.<name>`, `critic_1.<name>`, `target_critic_1.<name>`, `log_alpha`, `gradient_steps`, and per optimizer `<optimizer>.count`,
        `<optimizer>.first_moment...` and `<optimizer>.second_moment...`; of preprocessors `preprocessor.observations...`.
        """
        state = self._state
        arrays = self._flatten("policy", state.policy, "policy") | self._flatten("", state.critics, "critics")
        arrays |= {f"target_{name}": array for name, array in self._flatten("", state.target_critics, "critics").items()}
        arrays |= {"log_alpha": self.to_numpy(state.log_alpha), "gradient_steps": np.array(self.gradient_step_count, np.int64)}
        for slot, (kind, tree) in self._optimized(state).items():
            moments = getattr(self._update, slot).moments(tree, getattr(state, slot))
            for name, moment in (moments or {}).items():
                if name in MOMENTS:
                    arrays |= self._flatten(f"{slot}.{name}", moment, kind)
                else:
                    scalar = self.to_numpy(moment)
                    arrays[f"{slot}.{name}"] = scalar if name in FLOATS else scalar.astype(np.int64)
        for name, preprocessor in self._preprocessors.items():
            arrays |= prefixed(f"preprocessor.{name}", preprocessor.arrays())
        return arrays

    def set_arrays(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Go on from what `arrays` gave, on this backend or the other.

        Raises:
            ValueError: if a name or a shape is not this agent's. Nothing is changed then.
        """
        require_same_arrays(arrays, self.arrays())
        old = self._state
        critics = self._unflatten("", arrays, old.critics, "critics")
        targets = {name: self._import(name, under(arrays, f"target_{name}"), like) for name, like in old.target_critics.items()}
        state = old._replace(
            policy=self._unflatten("policy", arrays, old.policy, "policy"),
            critics=critics,
            target_critics=targets,
            log_alpha=self._like(arrays["log_alpha"], old.log_alpha),
        )
        for slot, (kind, tree) in self._optimized(state).items():
            optimizer = getattr(self._update, slot)
            if f"{slot}.count" in arrays:
                trees = {moment: self._unflatten(f"{slot}.{moment}", arrays, tree, kind) for moment in MOMENTS}
                scalars = {name: array for name, array in under(arrays, slot).items() if name.partition(".")[0] not in MOMENTS}
                state = state._replace(**{slot: optimizer.with_moments(tree, {**scalars, **trees})})
            else:
                state = state._replace(**{slot: optimizer.init(tree)})
        for name, preprocessor in self._preprocessors.items():
            preprocessor.set_arrays(under(arrays, f"preprocessor.{name}"))
        self._take_moments()
        self._state, self.gradient_step_count = state, int(arrays["gradient_steps"])
        self._sound_until, self._skipped_before, self._learned_at = self.gradient_step_count, {}, []
        self._next_action = None  # it was chosen by other parameters

    @staticmethod
    def _optimized(state: Any) -> dict[str, tuple[str, Any]]:
        """Optimizer -> what kind of tree it steps, and the tree. None without critics: such an agent only acts."""
        if not state.critics:
            return {}
        return {
            "policy_optimizer": ("policy", state.policy),
            "critic_optimizer": ("critics", state.critics),
            "temperature_optimizer": ("scalar", state.log_alpha),
        }

    def _flatten(self, prefix: str, tree: Any, kind: str) -> dict[str, NDArray[Any]]:
        if kind == "scalar":
            return {prefix: self.to_numpy(tree)}
        if kind == "policy":
            return prefixed(prefix, self._export("policy", tree))
        flat: dict[str, NDArray[Any]] = {}
        for name, branch in tree.items():
            flat |= prefixed(f"{prefix}.{name}" if prefix else name, self._export(name, branch))
        return flat

    def _unflatten(self, prefix: str, arrays: Mapping[str, NDArray[Any]], like: Any, kind: str) -> Any:
        if kind == "scalar":
            return self._like(arrays[prefix], like)
        if kind == "policy":
            return self._import("policy", under(arrays, prefix), like)
        return {name: self._import(name, under(arrays, f"{prefix}.{name}" if prefix else name), branch) for name, branch in like.items()}

    # Checkpoints.

    def write_checkpoint(self, *, timestep: int, timesteps: int) -> None:
        """Save to `<experiment>/checkpoints/agent_<timestep>`. Only the newest checkpoint of a run keeps its replay memory.

        Of several ranks all make this call, at the same timestep.
        """
        path = self.experiment_dir / "checkpoints" / f"agent_{timestep}"
        self.save(path)
        previous, self._newest_checkpoint = self._newest_checkpoint, path
        if previous is not None and previous != path:
            part = rank_part(previous, self.ranks.rank)
            if part.is_dir():
                checkpoint.drop_group(part, "memory")

    def save(
        self,
        path: str | Path,
        *,
        replay: ReplayLog | None = None,
        keep_memory: bool = True,
        live: tuple[Mapping[str, Mapping[str, NDArray[Any]]], Mapping[str, Any]] | None = None,
    ) -> None:
        """Write the whole agent to a checkpoint directory: safetensors for arrays, JSON for the rest, nothing that runs code.

        Parameters, optimizer moments, log alpha, step counters, random streams, and the replay memory where there is one.

        Args:
            path: the directory.
            replay: a log, in the directory beside `path`, that takes the memory's new rows in the place of a copy of all of it.
            keep_memory: whether the replay memory is written.
            live: groups of arrays, and metadata, of what the agent is in the middle of: see `live_state`.

        Of several ranks all make this call. Each writes its own part, its streams and its memory: rank 1 to `<path>.rank_1`, and so on;
        rank 0 writes `path` last, so that a checkpoint that is there is whole.

        Raises:
            NumericalError: if anything that was learned is NaN or infinite. Nothing is written then.
        """
        groups: dict[str, dict[str, NDArray[Any]]] = defaultdict(dict)
        arrays = self.arrays()
        self._require_finite(arrays)  # equal on all ranks, and so is what they decide
        for name, array in arrays.items() if self.ranks.rank == 0 else ():
            groups[name.split(".")[0] if self.cfg.experiment.store_separately else "agent"][name] = array
        groups["streams"] = self._streams()
        remembers = self.memory is not None and keep_memory
        entry, added = replay.append(self.memory) if remembers and replay is not None else (None, 0)
        if remembers and replay is None:
            groups["memory"] = self.memory.arrays(copy=False)
        metadata = {
            "algorithm": type(self).__name__,
            "backend": self.backend,
            "sacref": sacref.__version__,
            "layouts": self._layouts,
            "memory_capacity": None if self.memory is None else self.memory.capacity,
            "gradient_steps_due": [self._due.numerator, self._due.denominator],
            "timesteps_to_learn_from": self._timesteps_to_learn_from,
        }
        if entry is not None:
            metadata["replay"] = entry
        if live is not None:
            groups |= {name: dict(arrays) for name, arrays in live[0].items()}
            metadata |= live[1]
        self._write_parts(path, groups, metadata)
        if replay is not None and entry is not None:
            replay.commit(entry, added)
        if keep_memory or self._good_checkpoint is None:
            self._good_checkpoint = Path(path)

    def _write_parts(self, path: str | Path, groups: Mapping[str, Any], metadata: dict[str, Any]) -> None:
        if self.ranks.size == 1:
            checkpoint.write(path, groups, metadata)
            return
        # The parts of one writing know each other, should a later one be killed between them.
        metadata |= {"ranks": self.ranks.size, "writing": self.ranks.gather(secrets.token_hex(8))[0]}
        if self.ranks.rank > 0:
            checkpoint.write(rank_part(path, self.ranks.rank), groups, metadata)
        self.ranks.wait()
        if self.ranks.rank == 0:
            checkpoint.write(path, groups, metadata)
        self.ranks.wait()

    def load(self, path: str | Path) -> None:
        """Restore what `save` wrote. A memory that the checkpoint does not hold stays as it is.

        A checkpoint of the other backend gives its weights, moments, temperature and memory; the random streams begin anew from (seed,
        rank, the gradient steps so far), and the log says so.

        As many ranks as wrote it go on exactly. Of another number, rank r takes the memory of the old rank r modulo their number, random
        streams begin anew from (seed, rank, the gradient steps so far), and a warning says so.

        Raises:
            checkpoint.CheckpointError: if the directory is not a whole and sound checkpoint of an agent of this shape. The agent
                is then as it was before.
        """
        path = Path(path)
        before, streams_before = self.arrays(), self._streams()
        read, written_by = self._read_parts(path, partial(self._refuse_others, path, before))
        metadata = read.metadata
        due, waiting = self._read_pace(path, metadata)
        groups = dict(read.groups)
        streams, memory = groups.pop("streams", {}), groups.pop("memory", None)
        kept = {name: getattr(self, name) for name in _KEPT}
        try:
            self.set_arrays({name: array for group in groups.values() for name, array in group.items()})
            if written_by != self.ranks.size:
                self._streams_key = (written_by, self.ranks.size, self.gradient_step_count)
                self._begin_streams()
            elif metadata.get("backend") != self.backend:
                self._streams_key = (self.gradient_step_count,)
                self._begin_streams()
                logger.warning(
                    "%s was written by %s: the random streams begin anew, from the seed, the rank and the %d gradient steps so far",
                    path,
                    checkpoint.short.repr(metadata.get("backend")).strip("'"),
                    self.gradient_step_count,
                )
            elif {name: state.shape for name, state in streams.items()} != {name: state.shape for name, state in streams_before.items()}:
                # A GPU's generator has another state than a CPU's.
                logger.info("%s was written on another kind of device: the random streams stay as they are", path)
            else:
                require_same_arrays(streams, streams_before)
                self._set_streams(streams)
            if memory is not None and self.memory is not None:
                self.memory.set_arrays(memory)
            for watch in self._watches.values():
                watch.boundaries.starts = None  # what is recorded next does not continue what the memory holds now
        except (ValueError, TypeError, KeyError, RuntimeError) as error:
            self.set_arrays(before)
            self._set_streams(streams_before)
            for name, value in kept.items():
                setattr(self, name, value)
            raise checkpoint.CheckpointError(f"{path} does not fit this agent: {checkpoint.one_line(error)}") from error
        self._good_checkpoint = path
        self._due, self._timesteps_to_learn_from = due, waiting
        for training in self._watches:
            self._begin(training)  # the next row does not continue the rows of before
        if written_by != self.ranks.size and self.ranks.rank == 0:
            logger.warning("%s", self._other_ranks(path, written_by))

    def _refuse_others(self, path: Path, own: Mapping[str, NDArray[Any]], found: checkpoint.Checkpoint) -> None:
        """Refuse a checkpoint of another agent while only its names, types and shapes are known, as its arrays may have any size."""
        metadata = found.metadata
        if metadata.get("algorithm") != type(self).__name__:
            said = checkpoint.short.repr(metadata.get("algorithm"))
            raise checkpoint.CheckpointError(f"{path} holds {said}, expected {type(self).__name__!r}")
        if metadata.get("layouts") != self._layouts:
            raise checkpoint.CheckpointError(
                f"{path} holds models of layouts {checkpoint.short.repr(metadata.get('layouts'))}, this agent's are {self._layouts}: "
                f"models of your own move only within a backend"
            )
        learned = {name: array for key, group in found.groups.items() if key not in ("streams", "memory") for name, array in group.items()}
        try:
            require_same_arrays(learned, own)
            self._refuse_large(found.groups)
        except ValueError as error:
            raise checkpoint.CheckpointError(f"{path} does not fit this agent: {checkpoint.one_line(error)}") from error

    def _refuse_large(self, groups: Mapping[str, Mapping[str, NDArray[Any]]]) -> None:
        """Refuse streams and a memory that need more room than this agent's."""
        most = {"streams": max(LARGEST_STREAMS, 2 * _bytes(self._streams()))}
        if self.memory is not None:
            rows = self.memory.rows(np.zeros(1, np.int64))
            most["memory"] = self.memory.slots * self.memory.num_envs * _bytes(rows) + 16 * self.memory.num_envs
        for group, room in most.items():
            if (needed := _bytes(groups.get(group, {}))) > room:
                raise ValueError(f"{group} has {needed} bytes, expected at most {room}: use the capacity and types it was saved with")

    def _read_parts(self, path: Path, check: Callable[[checkpoint.Checkpoint], None]) -> tuple[checkpoint.Checkpoint, int]:
        """A checkpoint with the streams and the memory that are for this rank, and how many ranks wrote it."""
        others = ("streams", "memory") if self.ranks.rank > 0 else () if self.memory is not None else ("memory",)
        read = checkpoint.read(path, without=(*LIVE, *others), check=check)
        written_by = read.metadata.get("ranks", 1)
        if type(written_by) is not int or not 1 <= written_by <= MOST_RANKS:
            said = checkpoint.short.repr(written_by)
            raise checkpoint.CheckpointError(f"{path} says {said} ranks wrote it, expected an integer of at least 1")
        if self.memory is None:
            return read, self.ranks.size  # it only acts: the streams and memories of others are nothing to it
        own = self.ranks.rank % written_by
        entry = read.metadata.get("replay")
        if self.ranks.rank > 0:
            part = checkpoint.read(rank_part(path, own), only=("streams", "memory"), check=lambda found: self._refuse_large(found.groups))
            entry = part.metadata.get("replay")
            if part.metadata.get("writing") != read.metadata.get("writing"):
                raise checkpoint.CheckpointError(f"{rank_part(path, own)} is no part of {path}: use another checkpoint")
            read = checkpoint.Checkpoint({**read.groups, **_own(part.groups)}, read.metadata)
        if isinstance(entry, dict):
            read.groups["memory"] = replay_log.read(rank_part(path.parent / REPLAY, own), entry, self.memory)
        return read, written_by

    # What a run is in the middle of.

    def live_state(self) -> dict[str, Any]:
        """What is in the air between two timesteps, beyond what `save` writes: what is tracked and not written yet, the episodes that run.

        Numbers, text, NumPy arrays, and lists, tuples and dicts of those. With it, and with the environments as they were, a run goes on
        as if it had never stopped.
        """
        ahead = self._next_action
        return {
            "tracked": {tag: np.array(values, np.float64) for tag, values in self._tracked.items()},
            "metrics": self._fetch(self._metrics) if self._metrics else None,
            "boundaries": self._watches[True].boundaries.state(self.to_numpy),
            "statistics": [self._watches[training].statistics.state(self.to_numpy) for training in (True, False)],
            "next_action": None if ahead is None else map_leaves(self.to_numpy, (ahead.observations, ahead.states, ahead.chosen)),
        }

    def live_like(self) -> dict[str, Any]:
        """What `live_state` gives, for `refuse_unlike`."""
        envs = self._num_envs
        observations, states = (rows_like(space, envs) for space in (self.observation_space, self.state_space))
        flags, actions = Like((envs,), "b"), Like((envs, *self.spaces.action_shape), "f")

        def statistics(envs: int | None) -> dict[str, Any]:
            rows = Like((None, envs), "f")
            masks = Like((None, envs), "b")
            return {
                "recent_returns": [float],
                "running": Maybe((Like((envs,), "f"),) * 2),
                "rows": Maybe((rows, masks, masks, rows, rows)),
            }

        return {
            "tracked": {...: Like((None,), "f")},
            "metrics": Maybe(Like((None, len(self._metric_names())), "f")),
            "boundaries": {"expects_reset": Maybe(flags), "last_observations": Maybe(observations), "starts": Maybe(flags)},
            "statistics": (statistics(envs), statistics(None)),
            "next_action": Maybe((observations, states, Maybe((actions, actions)))),
        }

    def set_live_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what `live_state` gave; after `init`, and with the environments as they were.

        Raises:
            ValueError: if it is of another agent, or of other environments. Nothing is changed then.
        """
        refuse_unlike("what the agent was in the middle of", state, self.live_like())
        self._tracked.clear()
        self._tracked.update({tag: values.tolist() for tag, values in state["tracked"].items()})
        self._metrics = [] if state["metrics"] is None else [self._upload(state["metrics"])]
        self._watches[True].boundaries.set_state(state["boundaries"])
        for training, statistics in zip((True, False), state["statistics"], strict=True):
            self._watches[training].statistics.set_state(statistics)
        if state["next_action"] is not None:
            observations, states, chosen = state["next_action"]
            self._next_action = NextAction(observations, states, None if chosen is None else map_leaves(self._upload, chosen))

    def _other_ranks(self, path: Path, before: int) -> str:
        """What changes when another number of ranks goes on."""
        now = self.ranks.size
        if now > before:
            memories = f"ranks {before} to {now - 1} begin with copies of the memories of the first ones"
        else:
            memories = f"the memories of ranks {now} to {before - 1} are left out"
        return (
            f"{path} was written by {before} ranks, and {now} go on: {memories}, environments and random streams begin anew, "
            f"and a gradient step averages over {now} x {self.cfg.batch_size} rows in the place of {before} x {self.cfg.batch_size}"
        )

    def _read_pace(self, path: Path, metadata: Mapping[str, Any]) -> tuple[Fraction, int]:
        """Gradient steps due and timesteps of the chunk at hand; none for a checkpoint that does not say.

        Raises:
            checkpoint.CheckpointError: if they are no numbers of steps.
        """
        due, waiting = metadata.get("gradient_steps_due", [0, 1]), metadata.get("timesteps_to_learn_from", 0)
        numbers = [*due, waiting] if isinstance(due, list) and len(due) == 2 else []
        if not numbers or not all(type(number) is int and number >= 0 for number in numbers) or not 0 < due[1] <= FINEST:
            raise checkpoint.CheckpointError(
                f"{path} says gradient steps {checkpoint.short.repr(due)} are due after {checkpoint.short.repr(waiting)} timesteps, "
                f"expected two integers and one"
            )
        most = self.cfg.chunk * Fraction(self.cfg.gradient_steps_per_timestep(self._num_envs)) + 1
        if due[0] > due[1] * most or waiting >= self.cfg.chunk:
            # Of an agent with longer chunks or more environments; or a stranger's number, which would keep an update busy for ever.
            logger.info("%s was written within a chunk that this agent does not have: a new one begins", path)
            return Fraction(0), 0
        return Fraction(*due), waiting

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


def _bytes(arrays: Mapping[str, NDArray[Any]]) -> int:
    return sum(array.nbytes for array in arrays.values())


def _own(groups: Mapping[str, Any]) -> dict[str, Any]:
    """Those groups of a checkpoint that are a rank's own."""
    return {name: group for name, group in groups.items() if name in ("streams", "memory")}


def rank_part(path: str | Path, rank: int) -> Path:
    """Where a rank keeps its part of a checkpoint: rank 0 in the checkpoint itself."""
    path = Path(path)
    return path if rank == 0 else path.with_name(f"{path.name}.rank_{rank}")


def _reduce(tag: str, values: Any) -> float:
    reduce = np.max if tag.endswith("(max)") else np.min if tag.endswith("(min)") else np.mean
    return float(reduce(np.asarray(values, np.float64)))
