"""Whole runs: a backend, a task, a run directory. `sacref.train` and `sacref.load`."""

import contextlib
import copy
import importlib
import itertools
import json
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, Protocol, TypeAlias

import gymnasium
import numpy as np
from numpy.typing import NDArray

import sacref
from sacref import checkpoint, envs, training
from sacref import resumption as resuming
from sacref.agent import LIVE, rank_part
from sacref.config import SACConfig, paper_config
from sacref.envs.spaces import boxes, check_spaces
from sacref.envs.states import state_space_of
from sacref.envs.vector import EnvironmentFactory, Vectorization, Wrapper
from sacref.evaluation import Evaluation, evaluate
from sacref.progress import TrainingProgress
from sacref.ranks import Ranks
from sacref.tree import leaves
from sacref.types import Agent

Backend: TypeAlias = Literal["torch", "jax"]
Recurrent: TypeAlias = Literal["rnn", "gru", "lstm"]

BACKENDS: Mapping[str, tuple[str, ...]] = {"torch": ("torch",), "jax": ("jax", "jaxlib", "flax", "optax")}
"""Backend -> the packages that its extra installs."""

EVALUATION_COPIES = 10
"""Copies of the environment that an evaluation runs side by side, at most."""

OTHER_GROUPS = {"streams", "memory", *LIVE}
"""Of a checkpoint, that hold nothing of what was learned."""
MOST_STEPS = 2**53
LARGEST_RETURN = 1e100
LARGEST_SPACE = 10_000_000
"""Numbers of one Box that a run's configuration may ask for."""

RUN_FILES = ("config.json", "evaluation.json", "metrics.jsonl", "curve.png")
"""What a run writes into its directory, beside `checkpoints/agent_*` and TensorBoard's `events.out.tfevents.*`."""

logger = logging.getLogger(__name__)


class BackendError(ImportError):
    """A backend that is not installed, or that there is none of; the message names the fix."""


class RunError(ValueError):
    """A run directory that cannot be used as asked; the message says why, and the fix."""


class Membership(Protocol):
    """What a run that is one of several in this process asks for; see `sacref.population`."""

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


def train(
    *,
    backend: Backend = "torch",
    env: str | EnvironmentFactory = "HalfCheetah-v5",
    steps: int = 1_000_000,
    seed: int = 0,
    run_dir: str | Path | None = None,
    num_envs: int = 1,
    cfg: SACConfig | Mapping[str, Any] | None = None,
    hidden: Sequence[int] = (256, 256),
    num_critics: int = 2,
    layer_norm: bool = False,
    dropout: float = 0.0,
    recurrent: Recurrent | None = None,
    recurrent_size: int = 128,
    feed_previous: Sequence[str] = ("actions",),
    memory_capacity: int = 1_000_000,
    evaluation_interval: int | None = None,
    evaluation_episodes: int = 10,
    keep_checkpoints: int = 3,
    device: str | None = None,
    vectorization: Vectorization = "sync",
    env_kwargs: Mapping[str, Any] | None = None,
    wrappers: Sequence[Wrapper] = (),
    overwrite: bool = False,
    resume: bool = False,
    progress: bool = True,
) -> TrainingResult:
    """Train an agent on a task and write the run to a directory: configuration, metrics, evaluations, checkpoints and curve.

    Ctrl-C stops cleanly, with everything written (a second one at once).

    Where this process is one of several ranks (`sacref.ranks`), all of them make this call, with the same arguments, on a file system
    that they share; `sacref train --ranks` and torchrun do. Each has `num_envs` environments and a memory of its own. A gradient is the
    mean over the ranks, each of which draws `cfg.batch_size`; a gradient step is taken as often as this rank's environments alone ask
    for, so that as many samples are drawn for each environment step as by one process. Rank 0 writes.

    Args:
        backend: "torch" or "jax".
        env: a Gymnasium id, or a callable that makes one environment (to be importable by its name, if the run shall be resumed).
        steps: environment steps, of all environments of all ranks together; rounded up to whole vector steps.
        seed: of everything: weights, agent, environments, evaluations. It replaces the configuration's.
        run_dir: where to write; None makes `runs/<env>-<backend>-<seed>-<date>`.
        num_envs: environments stepped together, of each rank.
        cfg: the agent's configuration; a dict changes the paper's settings, which None stands for: of several environments, too, one
            gradient step for each environment step (`update_to_data`), unless the dict says others. Its `experiment` has the intervals;
            directory and name are replaced by the run directory's.
        hidden: widths of the networks' hidden layers.
        num_critics, layer_norm, dropout: of the critics; see `default_models`.
        recurrent: the cell of recurrent networks, "rnn", "gru" or "lstm", which `SAC_RNN` trains on sequences; None for `SAC`.
        recurrent_size, feed_previous: of those; see `default_models`.
        memory_capacity: transitions in the replay memory of a rank, of its environments together; no more than its steps are allocated.
        evaluation_interval: environment steps between evaluations; None is a twentieth of `steps`. The end is always evaluated.
        evaluation_episodes: episodes of an evaluation, deterministic, on environments of its own.
        keep_checkpoints: how many of the last checkpoints stay, each with its replay memory; beside them `best`, of the best evaluation.
        device: the backend's name of a device; None lets the backend choose.
        vectorization, env_kwargs, wrappers: see `sacref.envs.make`.
        overwrite: delete the run that is in the directory. Files that are no run's stay.
        resume: go on from the last sound checkpoint of the run in the directory, on the same machine to the bit as if it had never stopped:
            in the middle of its episodes, where all of its environments can be captured (`sacref.envs.snapshots`; the log says where
            not). All arguments must be what they were, but for `steps`, the evaluations', `keep_checkpoints`, `backend`, `device`,
            `vectorization` and `progress`; `cfg=None` takes the run's own. On the other backend, or with another number of ranks, the
            weights, moments and memories go on, and the random streams begin anew: see `Agent.load`.
        progress: show a bar (on a terminal), or a line every few percent.

    Returns:
        The evaluations, the agent and the speed.

    Raises:
        BackendError: if the backend is not installed. RunError: if the directory holds a run and neither `overwrite` nor `resume`
            is given, or that run cannot be resumed. EnvError, ConfigError, ValueError: if an argument cannot be used.
    """
    return run_training(None, **locals())


def run_training(
    member: Membership | None,
    *,
    backend: Backend,
    env: str | EnvironmentFactory,
    steps: int,
    seed: int,
    run_dir: str | Path | None,
    num_envs: int,
    cfg: SACConfig | Mapping[str, Any] | None,
    hidden: Sequence[int],
    num_critics: int,
    layer_norm: bool,
    dropout: float,
    recurrent: Recurrent | None,
    recurrent_size: int,
    feed_previous: Sequence[str],
    memory_capacity: int,
    evaluation_interval: int | None,
    evaluation_episodes: int,
    keep_checkpoints: int,
    device: str | None,
    vectorization: Vectorization,
    env_kwargs: Mapping[str, Any] | None,
    wrappers: Sequence[Wrapper],
    overwrite: bool,
    resume: bool,
    progress: bool,
) -> TrainingResult:
    """`train`, alone or as a member of a population."""
    interval = evaluation_interval if evaluation_interval is not None else math.ceil(steps / 20)
    _require_positive(
        steps=steps,
        num_envs=num_envs,
        memory_capacity=memory_capacity,
        evaluation_interval=interval,
        evaluation_episodes=evaluation_episodes,
        keep_checkpoints=keep_checkpoints,
    )
    module = import_backend(backend)
    env_name = name_of(env)
    ranks: Ranks = importlib.import_module(f"{module.__name__}.ranks").ranks()
    directory = Path(run_dir) if run_dir is not None else fresh_directory(env_name, backend, seed)
    directory = Path(ranks.gather(str(directory.absolute()))[0])
    resumed = _prepare_together(ranks, directory, overwrite=overwrite, resume=resume)

    together = num_envs * ranks.size
    settings = _configuration(cfg, resumed, together)
    settings.seed = seed
    seed = settings.seed  # checked, and Python's own integer where it was NumPy's: it is written to a file
    settings.experiment.directory, settings.experiment.experiment_name = str(directory.parent), directory.name
    start, offset = 0, 0
    if resumed is not None:
        # Timesteps of before may have had another number of environment steps.
        start, offset = resumed.timestep, resumed.steps - resumed.timestep * together
    timesteps = math.ceil((steps - offset) / together)

    make = partial(envs.make, env, vectorization=vectorization, env_kwargs=env_kwargs, wrappers=wrappers)
    training_envs = make(num_envs)
    try:
        observation_space, action_space = training_envs.single_observation_space, training_envs.single_action_space
        # A look at what the environments hand over; the training resets them again.
        state_space = state_space_of(training_envs, training_envs.reset(seed=_derive(seed, 0, start, ranks.rank))[1])
        check_spaces(observation_space, state_space, action_space)
        options = {
            "num_critics": num_critics,
            "layer_norm": layer_norm,
            "dropout": dropout,
            "recurrent": recurrent,
            "recurrent_size": recurrent_size,
            "feed_previous": list(feed_previous),
        }
        config = {
            "sacref": sacref.__version__,
            "backend": backend,
            "env": env_name,
            "env_kwargs": dict(env_kwargs or {}),
            "wrappers": [_name(wrapper) for wrapper in wrappers],
            "steps": steps,
            "seed": seed,
            "num_envs": num_envs,
            "ranks": ranks.size,
            "steps_offset": offset,
            "hidden": np.asarray(hidden).tolist(),
            "models": options,
            "memory_capacity": memory_capacity,
            "evaluation_interval": interval,
            "evaluation_episodes": evaluation_episodes,
            "keep_checkpoints": keep_checkpoints,
            "device": device,
            "vectorization": vectorization,
            "cfg": settings.to_dict(),
            "observation_space": _write_space(observation_space),
            "state_space": None if state_space is None else _write_space(state_space),
            "action_space": _write_space(action_space),
        }
        if resumed is not None:
            _require_same(directory, resumed, config)
            with _config_of(directory):
                _refuse_large([resumed.checkpoint], observation_space, hidden, options)
        entry = None if resumed is None else resuming.entry_of(rank_part(resumed.checkpoint, ranks.rank % resumed.ranks))
        # One timestep more than the run fills: a ring that was never full also fits into the larger one of a run resumed with more steps.
        # With less steps than were once asked for, it is as large as it was.
        capacity = min(memory_capacity, max((timesteps + 1) * num_envs, settings.batch_size, resuming.slots_of(entry) * num_envs))
        spaces = {"observation_space": observation_space, "state_space": state_space, "action_space": action_space}
        agent = _algorithm(module, options)(
            models=module.default_models(**spaces, hidden=tuple(hidden), seed=seed, **options),
            memory=module.ReplayMemory(capacity, num_envs, device=device),
            **spaces,
            device=device,
            cfg=settings,
        )
        agent.environment_steps_offset = offset
        agent.checkpoint_interval = 0  # the run writes them, with its environments
        evaluations: list[tuple[int, Evaluation]] = []
        resumption = resuming.Resumption(None, None)
        if resumed is not None:
            agent.load(resumed.checkpoint)
            resumption = resuming.resume(resumed.checkpoint, agent, ranks, training_envs, start)
        ranks.wait()  # what all of them read, rank 0 changes
        if ranks.rank == 0:
            if resumed is not None:
                evaluations = _drop_after(directory, resumed)
            directory.mkdir(parents=True, exist_ok=True)
            checkpoint.write_json(directory / "config.json", config)
        copies = _copies(min(evaluation_episodes, EVALUATION_COPIES), ranks)
        evaluation_envs = make(copies) if copies else None
        try:
            every = math.ceil(interval / together)
            checkpoint_interval = settings.experiment.checkpoint_interval
            keeper = resuming.Keeper(
                agent,
                ranks,
                directory,
                training_envs,
                every=max(1, timesteps // 10) if checkpoint_interval == "auto" else int(checkpoint_interval),
                keep=keep_checkpoints,
                entry=entry if resumed is not None and resumed.ranks == ranks.size else None,
            )
            run = _Run(
                agent,
                ranks,
                keeper,
                directory,
                timesteps,
                every,
                evaluation_envs,
                evaluation_episodes,
                _derive(seed, 1),
                state_space,
                evaluations,
            )
            bar = TrainingProgress(
                agent,
                timesteps=timesteps,
                start=start,
                num_envs=together,
                steps_offset=offset,
                enabled=progress and ranks.rank == 0,
            )
            if member is not None:
                member.join(agent)
            with bar:

                def after_timestep(finished: int) -> None:
                    bar.update(finished)
                    run.after_timestep(finished)

                outcome = training.run(
                    agent,
                    training_envs,
                    timesteps=timesteps,
                    start=start,
                    seed=_derive(seed, 0, start, ranks.rank),
                    state_space=state_space,
                    after_timestep=after_timestep,
                    after_all=run.after_all,
                    begin=resumption.begin,
                    on_begin=resumption.on_begin,
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
        finally:
            if evaluation_envs is not None:
                evaluation_envs.close()
    finally:
        training_envs.close()
    trained = (outcome.timesteps - start) * together
    return TrainingResult(
        run_dir=directory,
        evaluations=tuple(run.evaluations),
        agent=agent,
        config=config,
        steps=outcome.timesteps * together + offset,
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


def load(run_dir: str | Path, *, checkpoint: str | Path | None = None, device: str | None = None) -> Agent:
    """The agent of a run, ready to act: in evaluation mode, without a replay memory. It runs no code that the run names.

    Args:
        run_dir: as `train` wrote it.
        checkpoint: the name of one of its checkpoints ("best" is that of the best evaluation), or a path to one; None is the newest that
            is sound.
        device: the backend's name of a device; None lets the backend choose.

    Raises:
        RunError: if the directory holds no run, or no such checkpoint. BackendError: if its backend is not installed.
        CheckpointError: if the checkpoint is damaged.
    """
    directory = Path(run_dir).absolute()
    config = read_config(directory)
    paths = _find_checkpoints(directory, checkpoint)
    with _config_of(directory):
        if config["backend"] not in list(BACKENDS):
            raise ValueError(f"backend is {config['backend']!r}, expected one of {', '.join(BACKENDS)}")
        backend, hidden, seed = config["backend"], _widths(config["hidden"]), int(config["seed"])
        spaces = {
            "observation_space": _read_space(config["observation_space"]),
            "state_space": states_space(config),
            "action_space": _read_space(config["action_space"]),
        }
        options = dict(config["models"])
        # What shapes the rewards and the rates is not needed to act, and its name would be imported.
        unneeded: dict[str, Any] = {"rewards_shaper": None, "learning_rate_scheduler": None, "learning_rate_scheduler_kwargs": {}}
        cfg = SACConfig.from_dict({**config["cfg"], **unneeded}, import_callables=False)
        _refuse_large(paths, spaces["observation_space"], hidden, options)
    cfg.experiment.directory, cfg.experiment.experiment_name = str(directory.parent), directory.name
    module = import_backend(backend)
    with _config_of(directory):
        models = module.default_models(**spaces, hidden=hidden, seed=seed, **options)
        agent: Agent = _algorithm(module, options)(models=models, **spaces, device=device, cfg=cfg)
    _load_first(agent, paths)
    agent.enable_training_mode(False, apply_to_models=True)
    return agent


@contextmanager
def _config_of(directory: Path) -> Iterator[None]:
    """Say of a run's configuration that it is damaged, in the place of what using it raises."""
    try:
        yield
    except RunError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, AssertionError, ArithmeticError, RuntimeError) as error:
        said = f"{type(error).__name__}: {checkpoint.one_line(error)}"
        raise RunError(f"{directory / 'config.json'} is damaged ({said}): restore it, or train again") from error


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


def read_config(run_dir: str | Path) -> dict[str, Any]:
    """What a run's `config.json` holds.

    Raises:
        RunError: if there is none, or it is no JSON object.
    """
    path = Path(run_dir) / "config.json"
    if not path.is_file():
        raise RunError(f"{path.parent} holds no run: expected {path.name} in it, as `sacref train --run-dir` writes it")
    try:
        config = checkpoint.read_json(path)
    except ValueError as error:
        raise RunError(f"{path} is damaged ({error}): restore it, or train again") from error
    if not isinstance(config, dict):
        raise RunError(f"{path} holds a {type(config).__name__}, expected an object: restore it, or train again")
    return config


def states_space(config: Mapping[str, Any]) -> gymnasium.Space[Any] | None:
    """The space of the privileged states that a run's environments hand over, from what `read_config` gives; None for none."""
    stored = config["state_space"]
    return None if stored is None else _read_space(stored)


@dataclass
class _Resumed:
    """Where a run is taken up."""

    config: dict[str, Any]
    checkpoint: Path
    timestep: int
    steps: int
    """Environment steps, of all ranks together."""
    ranks: int
    """How many wrote the checkpoint."""


@dataclass
class _Run:
    """What happens between the timesteps of a run, and after the last one."""

    agent: Any
    ranks: Ranks
    keeper: resuming.Keeper
    directory: Path
    timesteps: int
    every: int
    envs: gymnasium.vector.VectorEnv[Any, Any, Any] | None
    episodes: int
    seed: int
    state_space: gymnasium.Space[Any] | None
    evaluations: list[tuple[int, Evaluation]]
    standing: training.Standing | None = None
    """After the last timestep; None before the first one of this process."""

    def after_timestep(self, finished: int) -> None:
        # The last one is evaluated by `finish`, when the checkpoint is written.
        if finished % self.every == 0 and finished < self.timesteps:
            self.evaluate(finished)

    def after_all(self, standing: training.Standing) -> None:
        self.standing = standing
        self.keeper.after_timestep(standing, self.timesteps)

    def evaluate(self, finished: int) -> None:
        evaluation = evaluate(self.agent, self.envs, episodes=self.episodes, seed=self.seed, state_space=self.state_space, ranks=self.ranks)
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

    def finish(self, outcome: training.Outcome, *, plot: bool) -> None:
        """Write the checkpoint first: it cannot be made again. The curve is drawn if `plot`: Matplotlib's figures are not for threads."""
        clock = {"timestep": outcome.timesteps, "timesteps": self.timesteps}
        written = outcome.timesteps in resuming.finished_checkpoints(self.directory)
        if not self.ranks.gather(written)[0] and self.standing is not None:
            self.keeper.write(self.standing)
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
            from sacref.plotting import plot_runs  # which takes as long to import as all of the rest, and one rank needs it

            plot_runs([self.directory], output=self.directory / "curve.png")


def _require_positive(**values: Any) -> None:
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} is {value!r}, expected an integer of at least 1")


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


def _name(function: Any) -> str:
    return f"{getattr(function, '__module__', '')}:{getattr(function, '__qualname__', type(function).__qualname__)}"


def _configuration(cfg: SACConfig | Mapping[str, Any] | None, resumed: _Resumed | None, num_envs: int) -> SACConfig:
    """A configuration of the run's own, so that the caller's stays as it is."""
    if isinstance(cfg, SACConfig):
        return copy.deepcopy(cfg)
    if cfg is None and resumed is not None:
        with _config_of(resumed.checkpoint.parent.parent):
            return SACConfig.from_dict(resumed.config["cfg"])
    paper = paper_config(num_envs)
    if "gradient_steps" in (cfg or {}):
        paper.update_to_data = None  # what is said takes its place
    return SACConfig.from_dict({**paper.to_dict(), **(cfg or {})})


def name_of(env: str | EnvironmentFactory) -> str:
    """The id of a task, or the name by which its callable is imported."""
    return env if isinstance(env, str) else f"{env.__module__}:{getattr(env, '__qualname__', type(env).__qualname__)}"


def fresh_directory(env_name: str, backend: str, seed: int) -> Path:
    """Where a run is written that was given no directory."""
    slug = "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in env_name)
    return Path("runs") / f"{slug}-{backend}-{seed}-{datetime.now():%Y%m%d-%H%M%S-%f}"


def _find_checkpoints(directory: Path, name: str | Path | None) -> list[Path]:
    """The checkpoint of that name; all, the newest first, for None."""
    found = resuming.finished_checkpoints(directory)
    if name is None:
        if not found:
            raise RunError(f"{directory} holds no checkpoint yet: train longer, or with a shorter checkpoint_interval")
        return list(found.values())[::-1]
    for path in (resuming.checkpoints_of(directory) / name, Path(name)):
        if path.is_dir():
            return [path.absolute()]
    names = ", ".join(path.name for path in found.values()) or "none"
    raise RunError(
        f"checkpoint {str(name)!r} is neither in {resuming.checkpoints_of(directory)} (there: {names}) nor a directory: name one of those"
    )


def _prepare_together(ranks: Ranks, directory: Path, *, overwrite: bool, resume: bool) -> _Resumed | None:
    """Rank 0 prepares the directory, and what it refuses all refuse; the others then read what is to be resumed."""
    config, refusal = None, None
    if ranks.rank == 0:
        try:
            config = _prepare(directory, overwrite=overwrite, resume=resume)
        except (ValueError, OSError) as error:
            refusal = error
    message = ranks.gather(None if refusal is None else str(refusal))[0]
    if refusal is not None:
        raise refusal
    if message is not None:
        raise RunError(message)
    config = _prepare(directory, overwrite=False, resume=True) if ranks.rank > 0 and resume else config
    return None if config is None else _sound(ranks, directory, config)


def _sound(ranks: Ranks, directory: Path, config: dict[str, Any]) -> _Resumed:
    """The newest checkpoint that is sound on all ranks."""
    try:
        timestep = resuming.choose(ranks, directory)
    except checkpoint.CheckpointError as error:
        raise RunError(f"{error}: start anew with overwrite") from error
    path = resuming.finished_checkpoints(directory)[timestep]
    if not resuming.holds_memory(path):
        raise RunError(f"{path} holds no replay memory, so it cannot be resumed: start anew with overwrite")
    with _config_of(directory):
        numbers = [config["num_envs"], config.get("ranks", 1), config.get("steps_offset", 0)]
        if any(type(number) is not int or abs(number) > MOST_STEPS for number in [*numbers, timestep]):
            raise TypeError(f"num_envs, ranks and steps_offset are {numbers}, expected integers")
        steps = timestep * numbers[0] * numbers[1] + numbers[2]
    written_by = checkpoint.read(path, only=()).metadata.get("ranks", 1)
    return _Resumed(config, path, timestep, steps, written_by)


def _prepare(directory: Path, *, overwrite: bool, resume: bool) -> dict[str, Any] | None:
    """Clear the run directory, or read the configuration of the run in it that is to be resumed; None for a fresh run."""
    if overwrite and resume:
        raise RunError("overwrite and resume are both set: leave one of them out")
    if directory.exists() and not directory.is_dir():
        raise RunError(f"run_dir {directory} is a file, expected a directory: choose another")
    files = [directory / name for name in RUN_FILES if (directory / name).exists()]
    files += sorted(directory.glob(resuming.EVENTS))
    holds_checkpoints = bool(resuming.finished_checkpoints(directory))
    if resume:
        config = read_config(directory)
        try:
            resuming.require_own(directory)
        except checkpoint.CheckpointError as error:
            raise RunError(str(error)) from error
        if not holds_checkpoints:
            raise RunError(f"{directory} holds a run without a checkpoint, so there is nothing to resume: start anew with overwrite")
        return config
    if (files or holds_checkpoints) and not overwrite:
        raise RunError(f"run_dir {directory} already holds a run: choose another, or pass overwrite (deletes it) or resume (goes on)")
    for path in files:
        path.unlink()
    resuming.clear(directory)
    return None


def _require_same(directory: Path, resumed: _Resumed, config: Mapping[str, Any]) -> None:
    """Refuse to resume a run with other settings than its own."""
    free = {"sacref", "steps", "ranks", "steps_offset", "backend", "device", "vectorization"}
    free |= {"evaluation_interval", "evaluation_episodes", "keep_checkpoints"}
    # Through JSON, as the stored one went: a tuple is a list there.
    wanted, stored = _flat(json.loads(json.dumps(config))), _flat(resumed.config)
    changed = [
        f"  {checkpoint.short.repr(key)[1:-1]}: the run has {_said(stored.get(key, 'none'))}, asked is {_said(wanted.get(key, 'none'))}"
        for key in sorted(wanted.keys() | stored.keys())
        if key.split(".")[0] not in free and not key.startswith("cfg.experiment.") and wanted.get(key) != stored.get(key)
    ]
    if changed:
        raise RunError(
            f"{directory} cannot be resumed with other settings than its own:\n" + "\n".join(changed[:20]) + "\n"
            "pass the run's own (cfg=None takes its configuration), or choose another run_dir"
        )
    together = config["num_envs"] * config["ranks"]
    if math.ceil((config["steps"] - resumed.steps) / together) < 0:
        raise RunError(
            f"{directory} has {resumed.steps} steps already, asked are {config['steps']}: ask for at least as many, or load the run instead"
        )


def _said(value: Any) -> str:
    """The value as Python writes it, of a stranger's length no more than a line."""
    text = repr(value)
    return text if len(text) < 500 else f"{text[:500]}..."


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _drop_after(directory: Path, resumed: _Resumed) -> list[tuple[int, Evaluation]]:
    """Take back what the run wrote after the checkpoint: those steps come again. Returns the evaluations that stay."""
    evaluations = _read_evaluations(directory / "evaluation.json")
    files = checkpoint.read(resumed.checkpoint, only=()).metadata.get("files")
    resuming.drop_after(directory, resumed.timestep, files if isinstance(files, dict) else {})
    return [(step, evaluation) for step, evaluation in evaluations if step <= resumed.steps]


def _read_evaluations(path: Path) -> list[tuple[int, Evaluation]]:
    try:
        entries = checkpoint.read_json(path) if path.is_file() else []
        found = [(entry["step"], Evaluation(tuple(map(float, entry["returns"])), ())) for entry in entries]
        for step, evaluation in found:
            if type(step) is not int or not evaluation.returns or max(map(abs, evaluation.returns)) > LARGEST_RETURN:
                raise TypeError(f"step is {step} and returns are {evaluation.returns}, expected an integer, and numbers that can be drawn")
        return found
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        said = f"{type(error).__name__}: {checkpoint.one_line(error)}"
        raise RunError(f"{path} is damaged ({said}): restore it, or move it away") from error


def _write_space(space: Any) -> dict[str, Any]:
    """A Box, or a Dict of such, as JSON can hold it; infinity is a string there."""
    if isinstance(space, gymnasium.spaces.Dict):
        return {"spaces": {key: _write_space(inner) for key, inner in space.spaces.items()}}
    return {
        "low": _write_bound(space.low),
        "high": _write_bound(space.high),
        "shape": list(space.shape),
        "dtype": np.dtype(space.dtype).name,
    }


def _write_bound(bound: NDArray[Any]) -> Any:
    numbers = [number if math.isfinite(number) else str(number) for number in bound.reshape(-1).tolist()]
    return numbers[0] if len(set(numbers)) == 1 else numbers


def _read_space(stored: Mapping[str, Any]) -> gymnasium.Space[Any]:
    if "spaces" in stored:
        return gymnasium.spaces.Dict([(key, _read_space(inner)) for key, inner in stored["spaces"].items()])
    shape = tuple(int(size) for size in stored["shape"])
    if stored["dtype"] not in list(checkpoint.DTYPES) or not 0 <= math.prod(shape) <= LARGEST_SPACE or min(shape, default=0) < 0:
        raise ValueError(f"a space has shape {shape} and dtype {stored['dtype']}, expected at most {LARGEST_SPACE} numbers")
    dtype = np.dtype(stored["dtype"])
    bounds = []
    for name in ("low", "high"):
        numbers = stored[name] if isinstance(stored[name], list) else [stored[name]] * math.prod(shape)
        with np.errstate(over="raise"):
            bounds.append(np.array([float(number) if isinstance(number, str) else number for number in numbers], dtype).reshape(shape))
    return gymnasium.spaces.Box(bounds[0], bounds[1], shape, dtype.type)
