"""Whole runs: a backend, a task, a run directory. `sacref.train` and `sacref.load`."""

import contextlib
import importlib
import itertools
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, TypeAlias

import gymnasium
import numpy as np

import sacref
from sacref import envs
from sacref.agent.backend import BackendError as BackendError
from sacref.agent.checkpoints import LIVE, rank_part
from sacref.agent.protocol import Agent
from sacref.algorithm.tree import leaves
from sacref.config import SACConfig, presets
from sacref.config.callables import description, why_lost
from sacref.config.train_config import Backend, EnvironmentFactory, TrainConfig, Wrapper, takes_options
from sacref.envs import snapshots
from sacref.envs.space_records import read_space, write_space
from sacref.envs.spaces import boxes, check_spaces
from sacref.envs.states import have, state_space_of
from sacref.envs.vector import closing, require_separate
from sacref.ranks import Ranks
from sacref.storage import checkpoint
from sacref.storage.replay_log import Entry
from sacref.training import loop, run_directory
from sacref.training import resumption as resuming
from sacref.training.evaluation import Evaluation, evaluate, with_plain_rewards
from sacref.training.progress import TrainingProgress
from sacref.training.run_directory import (
    Resumed,
    find_checkpoints,
    fresh_directory,
    named_callables,
    read_config,
    reading_config_of,
    require_same,
    states_space,
)

VectorEnv: TypeAlias = gymnasium.vector.VectorEnv[Any, Any, Any]

BACKENDS: Mapping[str, tuple[str, ...]] = {"torch": ("torch",), "jax": ("jax", "jaxlib", "flax", "optax")}
"""Backend -> the packages that its extra installs."""

EVALUATION_COPIES = 10
"""Copies of the environment that an evaluation runs side by side, at most."""

OTHER_GROUPS = {"streams", "memory", *LIVE}
"""Of a checkpoint, that hold nothing of what was learned."""

logger = logging.getLogger(__name__)


class Membership(Protocol):
    """What a run that is one of several in this process asks for; see `sacref.training.population`."""

    def join(self, agent: Any) -> None:
        """Called when the agent is ready, with all that it was restored to."""
        ...

    def leave(self, agent: Any) -> None:
        """Called when the agent has done its last step."""
        ...

    def interrupted(self) -> bool:
        """Whether the run is to end."""
        ...


@dataclass(frozen=True)
class TrainingResult:
    """What a training gave."""

    run_dir: Path
    """Where it is written."""
    evaluations: tuple[tuple[int, Evaluation], ...]
    """(environment steps, evaluation), in order, those before a resumption included."""
    agent: Agent
    """The trained agent, in evaluation mode."""
    config: Mapping[str, Any]
    """What `config.json` holds."""
    steps: int
    """Environment steps finished."""
    steps_per_second: float
    """Environment steps of all ranks per second of training, without the evaluations; NaN if there was nothing left to train."""
    interrupted: bool
    """Whether Ctrl-C ended it early."""


@takes_options(TrainConfig)
def train(config: TrainConfig) -> TrainingResult:
    """Train an agent on a task and write the run to a directory: configuration, metrics, evaluations, checkpoints and curve.

    The arguments are the fields of `sacref.config.train_config.TrainConfig`, which say what each means.

    Ctrl-C stops cleanly, with everything written (a second one at once).

    Where this process is one of several ranks (`sacref.ranks`), all of them make this call, with the same arguments, on a file system
    that they share; `sacref train --ranks` and torchrun do. Each has `num_envs` environments and a memory of its own. A gradient is the
    mean over the ranks, each of which draws `cfg.batch_size`; a gradient step is taken as often as this rank's environments alone ask
    for, so that as many samples are drawn for each environment step as by one process. Rank 0 writes.

    With `resume`, a run goes on from its last whole checkpoint, on the same machine to the bit as if it had never stopped: in the middle of
    its episodes, where all of its environments can be captured (`sacref.envs.snapshots`; the log says where not). All arguments must be
    what they were, but for `CHANGEABLE` and `progress`; `cfg=None` takes the run's own. On the other backend, or with another number of
    ranks, the weights, moments and memories go on, and the random streams are drawn from new seeds: see `Agent.load`.

    Returns:
        The evaluations, the agent and the speed.

    Raises:
        BackendError: if the backend is not installed. RunError: if the directory holds a run and neither `overwrite` nor `resume`
            is given, or that run cannot be resumed. EnvError, ConfigError, ValueError: if an argument cannot be used.
    """
    return run_training(None, config)


@dataclass(frozen=True)
class _Plan:
    """What is trained, by whom, where it is written, and from where it goes on."""

    asked: TrainConfig
    module: ModuleType
    """The backend."""
    ranks: Ranks
    directory: Path
    resumed: Resumed | None
    settings: SACConfig
    """The run's own."""

    @property
    def together(self) -> int:
        """Environment steps of a timestep, of all ranks together."""
        return self.asked.num_envs * self.ranks.size

    @property
    def start(self) -> int:
        """Timesteps finished before."""
        return 0 if self.resumed is None else self.resumed.timestep

    @property
    def offset(self) -> int:
        """Environment steps beyond those of a timestep of today: timesteps of before may have had another number of them."""
        return 0 if self.resumed is None else self.resumed.steps - self.resumed.timestep * self.together

    @property
    def timesteps(self) -> int:
        """Of the whole run."""
        return math.ceil((self.asked.steps - self.offset) / self.together)

    @property
    def evaluation_interval(self) -> int:
        """Environment steps."""
        return self.asked.evaluation_interval if self.asked.evaluation_interval is not None else math.ceil(self.asked.steps / 20)

    def make_envs(self, copies: int, *more: Wrapper) -> VectorEnv:
        asked, wrappers = self.asked, (*self.asked.wrappers, *more)
        return envs.make(asked.env, copies, vectorization=asked.vectorization, env_kwargs=asked.env_kwargs, wrappers=wrappers)

    def spaces_of(self, training_envs: VectorEnv) -> dict[str, Any]:
        """The spaces of one environment, by the names that an agent takes. The environments are reset, and will be once more."""
        observation_space, action_space = training_envs.single_observation_space, training_envs.single_action_space
        training_envs.reset(seed=self.seed_of_envs)
        state_space = state_space_of(training_envs)
        check_spaces(observation_space, state_space, action_space)
        return {"observation_space": observation_space, "state_space": state_space, "action_space": action_space}

    def uncaptured(self, training_envs: VectorEnv) -> str | None:
        """Why the methods by which users' environments are captured cannot be used; tried on one that nothing else uses."""
        if not snapshots.with_methods(training_envs):
            return None
        with closing(self.make_envs(1)) as tried:
            tried.reset(seed=self.seed_of_envs)
            return snapshots.refused(tried)

    @property
    def seed_of_envs(self) -> int:
        return _derive(self.asked.seed, 0, self.start, self.ranks.rank)

    def config(self, spaces: Mapping[str, Any]) -> dict[str, Any]:
        """What `config.json` holds."""
        asked = replace(self.asked, cfg=self.settings, evaluation_interval=self.evaluation_interval)
        return {
            "sacref": sacref.__version__,
            **asked.to_dict(),
            "ranks": self.ranks.size,
            "steps_offset": self.offset,
            "beside_preset": presets.changes(asked.preset, self.settings, asked.model_options, self.together),
            **{name: None if space is None else write_space(space) for name, space in spaces.items()},
        }

    def make_agent(self, spaces: Mapping[str, Any], entry: Entry | None) -> Any:
        """The agent as it begins, with a memory that takes what a replay log's entry holds."""
        asked, settings = self.asked, self.settings
        # One timestep more than the run fills: a ring that was never full also fits into the larger one of a run resumed with more steps.
        # With less steps than were once asked for, it is as large as it was.
        room = max((self.timesteps + 1) * asked.num_envs, settings.batch_size, resuming.slots_of(entry) * asked.num_envs)
        agent = _algorithm(self.module, asked.model_options)(
            models=self.module.default_models(**spaces, hidden=tuple(asked.hidden), seed=asked.seed, **asked.model_options),
            memory=self.module.ReplayMemory(min(asked.memory_capacity, room), asked.num_envs, device=asked.device),
            **spaces,
            device=asked.device,
            cfg=settings,
        )
        agent.environment_steps_offset = self.offset
        agent.checkpoint_interval = 0  # the run writes them, with its environments
        return agent

    def make_keeper(self, agent: Any, training_envs: VectorEnv, entry: Entry | None, uncaptured: str | None) -> resuming.Keeper:
        interval = self.settings.experiment.checkpoint_interval
        return resuming.Keeper(
            agent,
            self.ranks,
            self.directory,
            training_envs,
            every=max(1, self.timesteps // 10) if interval == "auto" else int(interval),
            keep=self.asked.keep_checkpoints,
            entry=entry if self.resumed is not None and self.resumed.ranks == self.ranks.size else None,
            uncaptured=uncaptured,
        )


def _plan(asked: TrainConfig) -> _Plan:
    """Check what is asked for and prepare the directory.

    Raises:
        BackendError, RunError, ConfigError, TypeError, ValueError: if it cannot be trained, or not there.
    """
    asked = asked.checked()
    module = import_backend(asked.backend)
    ranks: Ranks = importlib.import_module(f"{module.__name__}.ranks").ranks()
    chosen = asked.run_dir if asked.run_dir is not None else fresh_directory(name_of(asked.env), asked.backend, asked.seed)
    directory = Path(ranks.gather(str(Path(chosen).expanduser().absolute()))[0])
    resumed = run_directory.prepare(ranks, directory, overwrite=asked.overwrite, resume=asked.resume)
    with reading_config_of(directory) if resumed is not None and asked.cfg is None else contextlib.nullcontext():
        settings = asked.settings(asked.num_envs * ranks.size, None if resumed is None else resumed.config["cfg"])
    settings.seed = asked.seed
    asked = replace(asked, seed=settings.seed)
    settings.experiment.directory, settings.experiment.experiment_name = str(directory.parent), directory.name
    return _Plan(asked, module, ranks, directory, resumed, settings)


def run_training(member: Membership | None, asked: TrainConfig) -> TrainingResult:
    """`train`, alone or as a member of a population."""
    plan = _plan(asked)
    asked, ranks, directory, resumed = plan.asked, plan.ranks, plan.directory, plan.resumed
    copies = _copies(min(asked.evaluation_episodes, EVALUATION_COPIES), ranks)
    with closing(plan.make_envs(asked.num_envs)) as training_envs:
        spaces = plan.spaces_of(training_envs)
        if have(training_envs, "obs_rms") and ranks.rank == 0:
            logger.warning(
                "NormalizeObservation learns moments of its own in each copy of the environment, which evaluations, a resumed run's "
                "evaluations and a loaded agent do not have: leave it out, and set observation_preprocessor to "
                "sacref.preprocessing:RunningStandardScaler, which is a part of the agent"
            )
        config = plan.config(spaces)
        for option, text in named_callables(config).items() if ranks.rank == 0 else ():
            if (reason := why_lost(text)) is not None:
                logger.warning("%s is %s, so that sacref eval, sacref video and --resume will not find it: it %s", option, text, reason)
        uncaptured = plan.uncaptured(training_envs)
        if uncaptured is not None and ranks.rank == 0:
            logger.warning("a resumed run would begin its episodes anew: %s", uncaptured)
        entry = None
        if resumed is not None:
            require_same(directory, resumed, config)
            with reading_config_of(directory):
                _refuse_large([resumed.checkpoint], spaces["observation_space"], asked.hidden, asked.model_options)
            entry = resuming.entry_of(rank_part(resumed.checkpoint, ranks.rank % resumed.ranks))
        with closing(plan.make_envs(copies, with_plain_rewards) if copies else None) as evaluation_envs:
            require_separate(training_envs, evaluation_envs)
            agent = plan.make_agent(spaces, entry)
            resumption = resuming.Resumption(None, None)
            if resumed is not None:
                agent.load(resumed.checkpoint)
                resumption = resuming.resume(resumed.checkpoint, agent, ranks, training_envs, plan.start, uncaptured)
            run = _Run(
                agent,
                ranks,
                plan.make_keeper(agent, training_envs, entry, uncaptured),
                directory,
                plan.timesteps,
                math.ceil(plan.evaluation_interval / plan.together),
                evaluation_envs,
                asked.evaluation_episodes,
                asked.evaluation_max_steps,
                _derive(asked.seed, 1),
                spaces["state_space"],
                [],
            )
            bar = TrainingProgress(
                agent,
                timesteps=plan.timesteps,
                start=plan.start,
                num_envs=plan.together,
                steps_offset=plan.offset,
                enabled=asked.progress and ranks.rank == 0,
            )
            if member is not None:
                member.join(agent)
            with bar:

                def take_directory() -> None:
                    """Take the directory: only now, as the first step is recorded, is anything in it changed."""
                    run.evaluations += run_directory.begin(ranks, directory, config, resumed, overwrite=asked.overwrite)

                def after_timestep(finished: int) -> None:
                    bar.update(finished)
                    run.after_timestep(finished)

                outcome = loop.run(
                    agent,
                    training_envs,
                    timesteps=plan.timesteps,
                    start=plan.start,
                    seed=plan.seed_of_envs,
                    state_space=spaces["state_space"],
                    after_timestep=after_timestep,
                    after_all=run.after_all,
                    begin=resumption.begin,
                    on_begin=resumption.on_begin,
                    on_recorded=take_directory,
                    ranks=ranks,
                    interrupted=None if member is None else member.interrupted,
                )
            if ranks.rank == 0 and not (directory / "config.json").is_file():
                logger.warning("%s is gone, and written again", directory / "config.json")
                checkpoint.write_json(directory / "config.json", config)
            run.finish(outcome, plot=member is None)
            if member is not None:
                member.leave(agent)
            agent.enable_training_mode(False, apply_to_models=True)
    trained = (outcome.timesteps - plan.start) * plan.together
    return TrainingResult(
        run_dir=directory,
        evaluations=tuple(run.evaluations),
        agent=agent,
        config=config,
        steps=outcome.timesteps * plan.together + plan.offset,
        steps_per_second=trained / outcome.seconds if trained else math.nan,
        interrupted=outcome.interrupted,
    )


def prepare_process(backend: Backend, device: str | None = None) -> None:
    """Set what is the process's own to set. For programs, not for libraries.

    Where the environment names other ranks, meet them; on JAX, keep what is compiled for the next run.

    Raises:
        BackendError: if the backend is not installed. ValueError: if the environment names ranks and is incomplete. LostRankError: if they
            do not come.
    """
    module = import_backend(backend)
    importlib.import_module(f"{module.__name__}.ranks").join(device)
    if backend == "jax":
        importlib.import_module("sacref.jax.compilation").keep_compilations()


def load(run_dir: str | Path, *, checkpoint: str | Path | None = None, device: str | None = None, import_callables: bool = False) -> Agent:
    """The agent of a run, ready to act: in evaluation mode, without a replay memory. It runs no code that the run names, unless allowed.

    Args:
        run_dir: as `train` wrote it.
        checkpoint: the name of one of its checkpoints ("best" is that of the best evaluation), or a path to one; None is the newest that
            is sound.
        device: the backend's name of a device; None lets the backend choose.
        import_callables: whether what acting needs of the run's own code may be imported, which runs it: its preprocessors, and the
            rewards shaper of a recurrent policy that sees rewards.

    Raises:
        RunError: if the directory holds no run, or no such checkpoint, or the run names code that may not be imported.
        BackendError: if its backend is not installed.
        CheckpointError: if the checkpoint is damaged.
    """
    directory = Path(run_dir).expanduser().absolute()
    config = read_config(directory)
    paths = find_checkpoints(directory, checkpoint)
    with reading_config_of(directory):
        if config["backend"] not in list(BACKENDS):
            raise ValueError(f"backend is {config['backend']!r}, expected one of {', '.join(BACKENDS)}")
        backend, hidden, seed = config["backend"], _widths(config["hidden"]), int(config["seed"])
        spaces = {
            "observation_space": read_space(config["observation_space"]),
            "state_space": states_space(config),
            "action_space": read_space(config["action_space"]),
        }
        options = dict(config["models"])
        # What shapes the rates is not needed to act, nor what shapes rewards that the policy does not see, and its name would be imported.
        unneeded: dict[str, Any] = {"learning_rate_scheduler": None, "learning_rate_scheduler_kwargs": {}}
        if options.get("recurrent") is None or "rewards" not in options.get("feed_previous", ()):
            unneeded["rewards_shaper"] = None
        cfg = SACConfig.from_dict({**config["cfg"], **unneeded}, import_callables=import_callables)
        _refuse_large(paths, spaces["observation_space"], hidden, options)
    cfg.experiment.directory, cfg.experiment.experiment_name = str(directory.parent), directory.name
    module = import_backend(backend)
    with reading_config_of(directory):
        models = module.default_models(**spaces, hidden=hidden, seed=seed, **options)
        agent: Agent = _algorithm(module, options)(models=models, **spaces, device=device, cfg=cfg)
    _load_first(agent, paths)
    agent.enable_training_mode(False, apply_to_models=True)
    return agent


def _widths(stored: Any) -> tuple[int, ...]:
    if not isinstance(stored, list) or any(type(width) is not int for width in stored):
        raise TypeError(f"hidden is {stored}, expected a list of integers")
    return tuple(stored)


def _refuse_large(paths: Sequence[Path], observation_space: Any, hidden: Sequence[int], options: Mapping[str, Any]) -> None:
    """Refuse models that none of the checkpoints could fill, before they are made: a file may ask for any size."""
    observations = sum(math.prod(box.shape) for box in leaves(boxes(observation_space)))
    one = sum(before * after for before, after in itertools.pairwise([observations, *hidden]))
    if options.get("recurrent") is not None:
        one += options["recurrent_size"] ** 2
    needed, most = one * (1 + options["num_critics"]), 0
    for path in paths:
        with contextlib.suppress(checkpoint.CheckpointError):  # which loading it says
            groups = checkpoint.declared(path).groups
            most = max(most, sum(array.size for name in groups.keys() - OTHER_GROUPS for array in groups[name].values()))
    if most and needed > most:
        raise ValueError(f"its models have over {needed} parameters, and no checkpoint has as many")


def _load_first(agent: Any, paths: Sequence[Path]) -> None:
    """Load the first checkpoint that is sound, and warn of those that are not."""
    for path, following in zip(paths, [*paths[1:], None], strict=True):
        try:
            agent.load(path)
            return
        except checkpoint.CheckpointError as error:
            if following is None:
                raise
            logger.warning("%s is left out, and %s taken: %s", path.name, following.name, error)


@dataclass
class _Run:
    """What happens between the timesteps of a run, and after the last one."""

    agent: Any
    ranks: Ranks
    keeper: resuming.Keeper
    directory: Path
    timesteps: int
    every: int
    envs: VectorEnv | None
    episodes: int
    max_steps: int | None
    seed: int
    state_space: gymnasium.Space[Any] | None
    evaluations: list[tuple[int, Evaluation]]
    state: loop.LoopState | None = None
    """After the last timestep; None before the first one of this process."""

    def after_timestep(self, finished: int) -> None:
        # The last one is evaluated by `finish`, when the checkpoint is written.
        if finished % self.every == 0 and finished < self.timesteps:
            self.evaluate(finished)

    def after_all(self, state: loop.LoopState) -> None:
        self.state = state
        self.keeper.after_timestep(state, self.timesteps)

    def evaluate(self, finished: int) -> None:
        evaluation = evaluate(
            self.agent,
            self.envs,
            episodes=self.episodes,
            seed=self.seed,
            max_episode_steps=self.max_steps,
            state_space=self.state_space,
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
                self.keeper.write_best()
            self.write_evaluations()
        except (OSError, checkpoint.CheckpointError) as error:
            if self.ranks.size > 1 or finished >= self.timesteps:
                raise
            logger.warning("the evaluation after timestep %d is not written yet: %s. Training goes on", finished, error)

    def write_evaluations(self) -> None:
        if self.ranks.rank > 0:
            return
        checkpoint.write_json(self.directory / "evaluation.json", [evaluation.to_entry(step) for step, evaluation in self.evaluations])

    def finish(self, outcome: loop.Outcome, *, plot: bool) -> None:
        """Write the checkpoint first: it cannot be made again. The curve is drawn if `plot`: Matplotlib's figures are not for threads."""
        clock = {"timestep": outcome.timesteps, "timesteps": self.timesteps}
        written = outcome.timesteps in resuming.finished_checkpoints(self.directory)
        if not self.ranks.gather(written)[0] and self.state is not None:
            self.keeper.write(self.state)
        else:
            self.keeper.tidy()  # which a run that was killed after its last checkpoint had still to do
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

            plot_runs([self.directory], output=self.directory / "curve.png")


def import_backend(backend: str) -> ModuleType:
    """`sacref.<backend>`.

    Raises:
        BackendError: if there is none of that name, or it is not installed.
    """
    if backend not in BACKENDS:
        raise BackendError(f"backend is {backend!r}, expected one of {', '.join(BACKENDS)}")
    try:
        return importlib.import_module(f"sacref.{backend}")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] not in BACKENDS[backend]:
            raise
        raise BackendError(f'backend {backend!r} is not installed ({error}): pip install "sacref[{backend}]"') from error


def _algorithm(module: ModuleType, options: Mapping[str, Any]) -> Any:
    """The agent's class for models of these options."""
    return module.SAC if options.get("recurrent") is None else module.SAC_RNN


def _derive(seed: int, stream: int, step: int = 0, rank: int = 0) -> int:
    """A seed for a purpose of its own: 0 a rank's training environments from a timestep on, 1 the evaluations."""
    key = (stream, step, rank) if rank else (stream, step)
    # Of 31 bits: an environment may hand it to a library that wants a signed integer.
    return int(np.random.SeedSequence(seed, spawn_key=key).generate_state(1)[0] >> 1)


def _copies(copies: int, ranks: Ranks) -> int:
    """How many of the evaluation environments are this rank's: the first ranks have one more."""
    return copies // ranks.size + (ranks.rank < copies % ranks.size)


def name_of(env: str | EnvironmentFactory) -> str:
    """The id of a task, or the text of its callable."""
    return env if isinstance(env, str) else description(env)
