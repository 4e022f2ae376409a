"""Whole runs: a backend, a task, a run directory. `sacref.train`."""

import contextlib
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from sacref.agent.checkpoints import rank_part
from sacref.config.callables import why_lost
from sacref.config.train_config import TrainConfig, takes_options
from sacref.envs.states import have
from sacref.storage import checkpoint
from sacref.training import checkpoints, loop, resume, run_directory
from sacref.training.callbacks import Callback, Callbacks, RunView, hand_back, make_callbacks
from sacref.training.checkpoints import AnyAgent
from sacref.training.evaluation import Evaluation, evaluate
from sacref.training.load import refuse_large_models
from sacref.training.loggers import make_sinks
from sacref.training.plan import Environments, Plan, derive_seed, prepare
from sacref.training.progress import TrainingProgress
from sacref.training.run_directory import named_callables, on_every_rank, reading_config_of, require_same

logger: logging.Logger = logging.getLogger(__name__)


class Membership(Protocol):
    """Calls that a member of a population takes from its run; see `sacref.training.population`."""

    first: bool
    """This is the member that warns of what all share."""

    def on_ready(self, agent: AnyAgent) -> None:
        """Receive the agent before its first step, with all that it was restored to."""
        ...

    def on_end(self, agent: AnyAgent) -> None:
        """Receive the agent after its last step."""
        ...

    def interrupted(self) -> bool:
        """Return whether the run is to end."""
        ...


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


def run(options: TrainConfig, member: Membership | None = None) -> TrainingResult:
    """Run `train`, alone or as a member of a population."""
    plan = prepare(options)
    given, sinks = make_callbacks(plan.options.callbacks), make_sinks(plan.options.log)
    options, ranks, directory, resumed = plan.options, plan.ranks, plan.directory, plan.resumed
    with contextlib.ExitStack() as closed_at_end:
        made = on_every_rank(ranks, lambda: plan.make_environments(closed_at_end))
        config = plan.config(made.spaces)
        if ranks.rank == 0 and (member is None or member.first):
            _warn(made, config)
        entry, resumption, restored = None, resume.Resumption(None, None), list[tuple[Callback, int]]()
        if resumed is not None:
            require_same(directory, resumed, config)
            with reading_config_of(directory):
                refuse_large_models([resumed.checkpoint], made.spaces["observation_space"], options.hidden, options.model_options)
            entry = checkpoints.entry_of(rank_part(resumed.checkpoint, ranks.rank % resumed.ranks))
        agent = plan.make_agent(made.spaces, entry)
        agent.metrics.write_to(sinks, config)
        evaluations: list[tuple[int, Evaluation]] = []
        callbacks = Callbacks(given, RunView(agent, directory, plan.timesteps, evaluations)) if given else None
        if resumed is not None:
            agent.load(resumed.checkpoint)
            resumption = resume.resume(resumed.checkpoint, agent, ranks, made.training, plan.start, made.uncaptured)
            restored = hand_back(resumption.callbacks, given)
        writer = checkpoints.CheckpointWriter(
            agent,
            ranks,
            directory,
            made.training,
            every=plan.checkpoint_interval,
            keep=options.keep_checkpoints,
            entry=entry if resumed is not None and resumed.ranks == ranks.size else None,
            uncaptured=made.uncaptured,
            callbacks=callbacks,
        )
        bar = TrainingProgress(
            agent,
            timesteps=plan.timesteps,
            start=plan.start,
            num_envs=plan.steps_per_timestep,
            steps_offset=plan.steps_offset,
            random_timesteps=plan.settings.random_timesteps,
            learning_starts=plan.settings.learning_starts,
            enabled=options.progress and ranks.rank == 0,
        )
        between = _Run(plan, agent, made, writer, config, bar, evaluations, callbacks, resumption.on_begin, restored)
        if member is not None:
            member.on_ready(agent)
        bar.say(str(plan.update_to_data))
        with bar:
            outcome = loop.run(
                agent,
                made.training,
                timesteps=plan.timesteps,
                start=plan.start,
                seed=plan.env_seed,
                state_space=made.spaces["state_space"],
                after_timestep=between.after_timestep,
                begin_again=between.begin_again,
                after_all=between.after_all,
                begin=resumption.begin,
                on_begin=between.begin,
                on_recorded=between.take_directory,
                ranks=ranks,
                interrupted=None if member is None else member.interrupted,
            )
        if ranks.rank == 0 and not (directory / "config.json").is_file():
            logger.warning("%s is gone, and written again", directory / "config.json")
            checkpoint.write_json(directory / "config.json", config)
        between.finish(outcome, plot=member is None)
        if member is not None:
            member.on_end(agent)
        agent.enable_training_mode(False, apply_to_models=True)
        stopped_by = between.end(outcome)
    trained = (outcome.timesteps - plan.start) * plan.steps_per_timestep
    return TrainingResult(
        run_dir=directory,
        evaluations=tuple(evaluations),
        agent=agent,
        config=config,
        steps=outcome.timesteps * plan.steps_per_timestep + plan.steps_offset,
        steps_per_second=trained / outcome.seconds if trained else math.nan,
        interrupted=outcome.interrupted and stopped_by is None,
        stopped_by=stopped_by,
    )


def _warn(made: Environments, config: Mapping[str, object]) -> None:
    """Warn of what a resumed or loaded run will not have."""
    if have(made.training, "obs_rms"):
        logger.warning(
            "NormalizeObservation learns moments of its own in each copy of the environment, which evaluations, a resumed run's "
            "evaluations and a loaded agent do not have: leave it out, and set observation_preprocessor to "
            "sacref.preprocessing:RunningStandardScaler, which is a part of the agent"
        )
    for option, text in named_callables(config).items():
        if (reason := why_lost(text)) is not None:
            logger.warning("%s is %s, so that sacref eval, sacref video and --resume will not find it: it %s", option, text, reason)
    if made.uncaptured is not None:
        logger.warning("a resumed run would begin its episodes anew: %s", made.uncaptured)


class _Run:
    """The evaluations and checkpoints between the timesteps of a run, and after the last one."""

    def __init__(
        self,
        plan: Plan,
        agent: AnyAgent,
        made: Environments,
        writer: checkpoints.CheckpointWriter,
        config: Mapping[str, object],
        bar: TrainingProgress,
        evaluations: list[tuple[int, Evaluation]],
        callbacks: Callbacks | None,
        restore: Callable[[], None] | None,
        restored: Sequence[tuple[Callback, int]],
    ) -> None:
        self.plan, self.agent, self.made, self.writer, self.ranks = plan, agent, made, writer, plan.ranks
        self.config, self.bar = config, bar
        self.every = math.ceil(plan.evaluation_interval / plan.steps_per_timestep)
        self.evaluations, self.callbacks, self.restore, self.restored = evaluations, callbacks, restore, restored
        self.state: loop.LoopState | None = None  # before the first timestep of this process
        self.evaluated = False

    def begin(self) -> None:
        if self.restore is not None:
            self.restore()
        if self.callbacks is not None:
            self.callbacks.start(self.plan.start)

    def take_directory(self) -> None:
        """Take the directory: only now, as the first step is recorded, is anything in it changed."""
        plan = self.plan
        self.evaluations += run_directory.begin(self.ranks, plan.directory, self.config, plan.resumed, overwrite=plan.options.overwrite)
        if self.callbacks is not None:
            self.callbacks.catch_up(self.restored)

    def after_timestep(self, finished: int) -> bool:
        self.bar.update(finished)
        if self.callbacks is not None:
            self.callbacks.after_timestep(finished)
        # The last one is evaluated by `finish`, when the checkpoint is written.
        if finished % self.every == 0 and finished < self.plan.timesteps:
            self.evaluate(finished)
        return self.callbacks is None or self.callbacks.stopped_by is None

    def begin_again(self) -> bool:
        """Tell whether an evaluation has used the environments of training since the last call."""
        evaluated, self.evaluated = self.evaluated, False
        return evaluated and self.made.evaluation is self.made.training

    def after_all(self, state: loop.LoopState) -> None:
        self.state = state
        self.writer.after_timestep(state, self.plan.timesteps)

    def evaluate(self, finished: int) -> None:
        self.evaluated = True
        evaluation = evaluate(
            self.agent,
            self.made.evaluation,
            episodes=self.plan.options.evaluation_episodes,
            seed=derive_seed(self.plan.options.seed, 1),
            max_episode_steps=self.plan.options.evaluation_max_steps,
            state_space=self.made.spaces["state_space"],
            ranks=self.ranks,
        )
        if evaluation.truncated and self.ranks.rank == 0 and not any(before.truncated for _, before in self.evaluations):
            logger.warning(
                "%d of %d episodes of the evaluation did not end within %d steps and were cut: their returns are those until then. "
                "evaluation_max_steps sets another limit",
                evaluation.truncated,
                len(evaluation.returns),
                max(evaluation.lengths),
            )
        best = max((before.mean for _, before in self.evaluations), default=-math.inf)
        self.evaluations.append((self.agent.environment_steps(finished), evaluation))
        better = self.ranks.gather(evaluation.mean > best)[0]
        try:
            # The best one first: what evaluation.json names is not evaluated again by a run that was killed in between.
            if better:
                self.writer.write_best()
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

    def finish(self, outcome: loop.Outcome, *, plot: bool) -> None:
        """Write the checkpoint first: it cannot be made again. The curve is drawn if `plot`: Matplotlib's figures are not for threads."""
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

    def end(self, outcome: loop.Outcome) -> str | None:
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
