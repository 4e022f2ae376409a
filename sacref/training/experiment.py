"""Whole runs: a backend, a task, a run directory. `sacref.train`."""

import contextlib
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium

from sacref.agent.checkpoints import rank_part
from sacref.algorithm.replay import AnyReplayMemory
from sacref.config.callables import why_lost
from sacref.config.train_config import TrainConfig, takes_options
from sacref.envs.interface import layers_of
from sacref.envs.states import have
from sacref.storage import checkpoint
from sacref.storage.replay_log import Entry
from sacref.training import checkpoints, loop, resume, run_directory
from sacref.training.callbacks import Callback, Callbacks, RunView, hand_back, make_callbacks
from sacref.training.checkpoints import AnyAgent
from sacref.training.evaluation import AllDivergedError, Evaluation, evaluate
from sacref.training.load import refuse_large_models
from sacref.training.loggers import make_sinks
from sacref.training.plan import Environments, Plan, derive_seed, prepare
from sacref.training.progress import TrainingProgress
from sacref.training.run_directory import named_callables, on_every_rank, reading_config_of, require_same

logger: logging.Logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingResult:
    """The outcome of a training."""

    run_dir: Path
    """Directory that it is written to."""
    evaluations: tuple[tuple[int, Evaluation], ...]
    """(environment steps, evaluation), in order, those before a resumption included."""
    agent: AnyAgent
    """The trained agent, in evaluation mode."""
    config: Mapping[str, Any]
    """The content of `config.json`."""
    steps: int
    """Environment steps finished."""
    steps_per_second: float
    """Environment steps of all ranks per second of training, without the evaluations; NaN if there was nothing left to train."""
    interrupted: bool
    """Ctrl-C ended it early."""
    stopped_by: str | None = None
    """Name of the callback that ended it early; None if none did."""


@takes_options(TrainConfig)
def train(config: TrainConfig) -> TrainingResult:
    """Train an agent on a task and write the run to a directory: configuration, metrics, evaluations, checkpoints and curve.

    The keyword arguments are the fields of `sacref.TrainConfig`, which says what each means: `train(env="Hopper-v5", steps=100_000)`.

    Ctrl-C stops cleanly, with everything written (a second one at once).

    Where this process is one of several ranks (`sacref.ranks`), all of them make this call, with the same arguments, on a file system
    that they share; `sacref train --ranks` and torchrun do. Each has `num_envs` environments and a memory of its own. A gradient is the
    mean over the ranks, each of which draws `cfg.batch_size`; a gradient step is taken as often as this rank's environments alone ask
    for, so that as many samples are drawn for each environment step as by one process. Rank 0 writes.

    With `resume`, a run goes on from its last whole checkpoint, on the same machine to the bit as if it had never stopped: in the middle of
    its episodes, where all of its environments can be captured (`sacref.envs.snapshots`; the log says where not). All arguments must be
    what they were, but for `steps`, the evaluations', `keep_checkpoints`, `backend`, `device`, `vectorization`, `preset`,
    `callbacks`, `log` and `progress`; `cfg=None` takes the run's own. On the other backend, or with another number of
    ranks, the weights, moments and memories go on, and the random streams are drawn from new seeds: see `Agent.load`.

    Returns:
        The evaluations, the agent and the speed.

    Raises:
        BackendError: if the backend is not installed. RunError: if the directory holds a run and neither `overwrite` nor `resume`
            is given, or that run cannot be resumed. EnvError, ConfigError, ValueError: if an argument cannot be used.
    """
    return run(config)


def run(options: TrainConfig) -> TrainingResult:
    """Run `train`."""
    with contextlib.ExitStack() as closed_at_end:
        whole = Run(options, closed_at_end)
        whole.make_agent(whole.plan.make_memory(whole.plan.memory_capacity(whole.entry)))
        plan = whole.plan
        with whole.bar:
            outcome = loop.run(
                whole.agent,
                whole.made.training,
                timesteps=plan.timesteps,
                start=plan.start,
                seed=plan.env_seed,
                state_space=whole.made.spaces["state_space"],
                after_timestep=whole.after_timestep,
                begin_again=whole.begin_again,
                after_all=whole.after_all,
                begin=whole.resumption.begin,
                on_begin=whole.begin,
                on_recorded=whole.take_directory,
                ranks=plan.ranks,
            )
        return whole.finish(outcome)


def _warn(made: Environments, config: Mapping[str, object]) -> None:
    """Warn of what a resumed or loaded run will not have."""
    of_vectors = any(isinstance(layer, gymnasium.wrappers.vector.NormalizeObservation) for layer in layers_of(made.training))
    if of_vectors or have(made.training, "obs_rms"):
        logger.warning(
            "NormalizeObservation learns moments of its own in each environment that it is around, which evaluations, a resumed run's "
            "evaluations and a loaded agent do not have: leave it out, and set observation_preprocessor to "
            "sacref.preprocessing:RunningStandardScaler, which is a part of the agent"
        )
    for option, text in named_callables(config).items():
        if (reason := why_lost(text)) is not None:
            logger.warning("%s is %s, so that sacref eval, sacref video and --resume will not find it: it %s", option, text, reason)
    if made.uncaptured is not None:
        logger.warning("a resumed run would begin its episodes anew: %s", made.uncaptured)


class Run:
    """A run: its environments, its agent, and the evaluations and checkpoints between the timesteps and after the last one.

    Args:
        closed_at_end: takes what is to be closed.
        warns: whether what is wrong with the settings is said, as by the first member of a population alone.
    """

    agent: AnyAgent
    """The agent, once `make_agent` has made it."""
    bar: TrainingProgress

    def __init__(self, options: TrainConfig, closed_at_end: contextlib.ExitStack, *, warns: bool = True) -> None:
        self.plan: Plan = prepare(options)
        self._given, self._sinks = make_callbacks(self.plan.options.callbacks), make_sinks(self.plan.options.log)
        self.ranks, resumed = self.plan.ranks, self.plan.resumed
        self._closed_at_end, self._holds = closed_at_end, False
        self._hold()
        self.made: Environments = on_every_rank(self.ranks, lambda: self.plan.make_environments(closed_at_end))
        self.config: dict[str, object] = self.plan.config(self.made.spaces)
        if self.ranks.rank == 0 and warns:
            _warn(self.made, self.config)
        self.entry: Entry | None = None
        """Place in the replay log that the run goes on with."""
        if resumed is not None:
            options, directory = self.plan.options, self.plan.directory
            require_same(directory, resumed, self.config)
            with reading_config_of(directory):
                refuse_large_models([resumed.checkpoint], self.made.spaces, options.hidden, options.model_options)
            self.entry = checkpoints.entry_of(rank_part(resumed.checkpoint, self.ranks.rank % resumed.ranks))
        self.resumption = resume.Resumption(None, None)
        self.callbacks: Callbacks | None = None
        self._restored: list[tuple[Callback, int]] = []
        self.evaluations: list[tuple[int, Evaluation]] = []
        self.state: loop.LoopState | None = None  # before the first timestep of this process
        self.evaluated = False
        self._best = -math.inf
        """Mean of the evaluation that `checkpoints/best` is of; rank 0 decides by it."""
        self._every = math.ceil(self.plan.evaluation_interval / self.plan.steps_per_timestep)

    def make_agent(self, memory: AnyReplayMemory) -> None:
        """Make the agent, as the checkpoint of a resumed run says, and what shows and writes it."""
        plan, made, resumed = self.plan, self.made, self.plan.resumed
        self.agent = plan.make_agent(made.spaces, memory)
        self.agent.metrics.write_to(self._sinks, self.config)
        if self._given:
            self.callbacks = Callbacks(self._given, RunView(self.agent, plan.directory, plan.timesteps, self.evaluations))
        if resumed is not None:
            self.agent.load(resumed.checkpoint)
            self.resumption = resume.resume(resumed.checkpoint, self.agent, self.ranks, made.training, plan.start, made.uncaptured)
            self._restored = hand_back(self.resumption.callbacks, self._given)
        self.writer = checkpoints.CheckpointWriter(
            self.agent,
            self.ranks,
            plan.directory,
            made.training,
            every=plan.checkpoint_interval,
            keep=plan.options.keep_checkpoints,
            entry=self.entry if resumed is not None and resumed.ranks == self.ranks.size else None,
            uncaptured=made.uncaptured,
            callbacks=self.callbacks,
        )
        self.bar = TrainingProgress(
            self.agent,
            timesteps=plan.timesteps,
            start=plan.start,
            num_envs=plan.steps_per_timestep,
            steps_offset=plan.steps_offset,
            random_timesteps=plan.settings.random_timesteps,
            learning_starts=plan.settings.learning_starts,
            enabled=plan.options.progress and self.ranks.rank == 0,
        )
        self.bar.say(str(plan.update_to_data))

    def begin(self) -> None:
        """Restore what the agent was in the middle of, and start the callbacks."""
        if self.resumption.on_begin is not None:
            self.resumption.on_begin()
        if self.callbacks is not None:
            self.callbacks.start(self.plan.start)

    def _hold(self, *, make: bool = False) -> None:
        """Hold the directory against other runs, until this one ends: a new one from when it is made."""

        def hold() -> None:
            directory = self.plan.directory
            if self._holds or self.ranks.rank > 0:
                return
            if make:
                directory.mkdir(parents=True, exist_ok=True)
            if directory.is_dir():
                self._closed_at_end.enter_context(run_directory.held(directory))
                self._holds = True

        on_every_rank(self.ranks, hold)

    def take_directory(self) -> None:
        """Take the directory: only now, as the first step is recorded, is anything in it changed."""
        plan = self.plan
        self._hold(make=True)
        self.evaluations += run_directory.begin(self.ranks, plan.directory, self.config, plan.resumed, overwrite=plan.options.overwrite)
        best = checkpoints.evaluation_of_best(plan.directory)
        self._best = -math.inf if best is None else best[1]
        if self.callbacks is not None:
            written = plan.resumed is not None and self.writer.is_due(plan.start, plan.timesteps)
            self.callbacks.catch_up(self._restored, written=written)

    def after_timestep(self, finished: int) -> bool:
        self.bar.update(finished)
        if self.callbacks is not None:
            self.callbacks.after_timestep(finished)
        if self.evaluates_after(finished):
            self.evaluate(finished)
        return self.callbacks is None or self.callbacks.stopped_by is None

    def evaluates_after(self, finished: int) -> bool:
        """Tell whether an evaluation follows a timestep. The last one's is made by `finish`, when the checkpoint is written."""
        return finished % self._every == 0 and finished < self.plan.timesteps

    def begin_again(self) -> bool:
        """Tell whether an evaluation has used the environments of training since the last call."""
        evaluated, self.evaluated = self.evaluated, False
        return evaluated and self.made.evaluation is self.made.training

    def after_all(self, state: loop.LoopState) -> None:
        self.state = state
        self.writer.after_timestep(state, self.plan.timesteps)

    def evaluate(self, finished: int) -> None:
        self.evaluated = True
        try:
            evaluation = evaluate(
                self.agent,
                self.made.evaluation,
                episodes=self.plan.options.evaluation_episodes,
                seed=derive_seed(self.plan.options.seed, 1),
                max_episode_steps=self.plan.options.evaluation_max_steps,
                state_space=self.made.spaces["state_space"],
                ranks=self.ranks,
            )
        except AllDivergedError as error:  # of all ranks together
            if finished >= self.plan.timesteps:
                raise
            if self.ranks.rank == 0:
                logger.warning("there is no evaluation after timestep %d: %s. Training goes on", finished, error)
            return
        if evaluation.truncated and self.ranks.rank == 0 and not any(before.truncated for _, before in self.evaluations):
            logger.warning(
                "%d of %d episodes of the evaluation did not end within %d steps and were cut: their returns are those until then. "
                "evaluation_max_steps sets another limit",
                evaluation.truncated,
                len(evaluation.returns),
                max(evaluation.lengths),
            )
        steps = self.agent.environment_steps(finished)
        self.evaluations.append((steps, evaluation))
        better = self.ranks.gather(evaluation.mean > self._best)[0]
        try:
            # The best one first: what evaluation.json names is not evaluated again by a run that was killed in between.
            if better:
                self.writer.write_best(steps, evaluation.mean)
                self._best = evaluation.mean
            self.write_evaluations()
        except (OSError, checkpoint.CheckpointError) as error:
            if self.ranks.size > 1 or finished >= self.plan.timesteps:
                raise
            logger.warning("the evaluation after timestep %d is not written yet: %s. Training goes on", finished, error)
        if self.callbacks is not None:
            self.callbacks.call("on_evaluation")

    def write_evaluations(self) -> None:
        if self.ranks.rank > 0:
            return
        checkpoint.write_json(self.plan.directory / "evaluation.json", [evaluation.to_entry(step) for step, evaluation in self.evaluations])

    def finish(self, outcome: loop.Outcome, *, plot: bool = True) -> TrainingResult:
        """Write and evaluate what is left to be; the checkpoint first, as it cannot be made again. The curve is drawn if `plot`."""
        directory = self.plan.directory
        if self.ranks.rank == 0 and not (directory / "config.json").is_file():
            logger.warning("%s is gone, and written again", directory / "config.json")
            checkpoint.write_json(directory / "config.json", self.config)
        clock = {"timestep": outcome.timesteps, "timesteps": self.plan.timesteps}
        written = outcome.timesteps in checkpoints.finished_checkpoints(self.plan.directory)
        if not self.ranks.gather(written)[0] and self.state is not None:
            self.writer.write(self.state)
        else:
            self.writer.delete_old()  # which a run that was killed after its last checkpoint had still to do
        # Before the last evaluation, whose statistics would be a second line of the same timestep: evaluation.json has its returns.
        self.agent.write_tracking_data(**clock)
        steps = self.agent.environment_steps(outcome.timesteps)
        missing = not outcome.interrupted and (not self.evaluations or self.evaluations[-1][0] < steps)
        if self.ranks.gather(missing)[0]:
            self.evaluate(outcome.timesteps)
        self.write_evaluations()
        self.agent.close()
        if plot and self.evaluations and self.ranks.rank == 0:
            from sacref.training.plots import plot_runs  # which takes as long to import as all of the rest, and one rank needs it

            plot_runs([self.plan.directory], output=self.plan.directory / "curve.png")
        self.agent.enable_training_mode(False, apply_to_models=True)
        stopped_by = self._end(outcome)
        trained = (outcome.timesteps - self.plan.start) * self.plan.steps_per_timestep
        return TrainingResult(
            run_dir=directory,
            evaluations=tuple(self.evaluations),
            agent=self.agent,
            config=self.config,
            steps=outcome.timesteps * self.plan.steps_per_timestep + self.plan.steps_offset,
            steps_per_second=trained / outcome.seconds if trained else math.nan,
            interrupted=outcome.interrupted and stopped_by is None,
            stopped_by=stopped_by,
        )

    def _end(self, outcome: loop.Outcome) -> str | None:
        """Return the name of the callback that ended the run early, of any rank.

        Raises:
            Exception: that a callback raised.
        """
        early = outcome.timesteps < self.plan.timesteps
        told = self.ranks.gather(self.callbacks.stopped_by if self.callbacks is not None and early else None)
        if self.callbacks is not None:
            self.callbacks.call("on_end")
            if self.callbacks.failure is not None:
                raise self.callbacks.failure
        return next((name for name in told if name is not None), None)
