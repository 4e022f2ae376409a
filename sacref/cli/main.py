"""The command line: `sacref train`, `eval`, `video`, `plot`, `parity`, `examine`, `presets` and `doctor`.

A command is a dataclass whose fields are its flags. Backends, environments and plots are imported by the command that needs them, so that
`sacref --help` is there at once.
"""

import json
import math
import os
import statistics
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Protocol, Union, get_args, get_origin, runtime_checkable

import tyro
from tyro.conf import Positional, arg, subcommand
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

import sacref
from sacref.cli import launch
from sacref.config import SACConfig, as_json, from_json, paper_config, presets
from sacref.config.callables import NotFoundError, description, find, has_no_name, why_lost
from sacref.ranks import LostRankError, launched, speaks_of_a_lost_rank

TRACEBACK = "SACREF_TRACEBACK"
"""Environment variable; at 1, an error shows its traceback."""

PARITY_TOLERANCE = 1e-9
"""Largest relative difference that rounding explains in float64, after 1,000 updates."""

DESCRIPTION = f"""Soft Actor-Critic as a trusted baseline, on PyTorch and on JAX (sacref {sacref.__version__}).

`sacref COMMAND --help` lists a command's flags, `sacref --version` prints the version.
With {TRACEBACK}=1 in the environment, an error shows its traceback."""


@runtime_checkable
class Command(Protocol):
    """What `main` runs; returns the exit status."""

    def run(self) -> int: ...


@dataclass(kw_only=True)
class Train:
    """Train an agent, evaluate it, and draw its curve.

    Defaults are the paper's settings: the first 5,000 environment steps are random, and learning starts after them. A timestep is a
    step of all environments together. --resume takes all settings from the run. Ctrl-C stops cleanly, with everything written.
    """

    backend: Literal["torch", "jax"] = "torch"
    """Library that computes."""
    env: str = "HalfCheetah-v5"
    """Gymnasium id, or module:id to import the module that registers it, or module:name of a callable that makes one, with arguments as in
    'module:name(size=3)'."""
    steps: int = 1_000_000
    """Environment steps of the whole run, of all environments of all ranks together."""
    run_dir: Path | None = None
    """Directory to write to; None makes runs/<env>-<backend>-<seed>-<date>."""
    preset: Literal["paper", "sb3", "cleanrl", "jaxrl", "tianshou", "spinningup", "crossq-baseline", "redq", "droq"] | None = None
    """Published settings to start from in the place of the paper's; a flag beside it wins. `sacref presets` lists them."""
    overwrite: bool = False
    """Delete the run that is in the directory."""
    resume: bool = False
    """Go on from the last checkpoint of the run in the directory. Imports all code that the run names."""
    num_envs: int = 1
    """Environments stepped together: a timestep is so many environment steps."""
    vectorization: Literal["sync", "async", "batched"] = "sync"
    """Step the environments in turn, in a process each, or (Gymnasium's MuJoCo tasks) together in threads, with the numbers of sync."""
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    """Arguments of the environment."""
    wrappers: tuple[str, ...] = ()
    """Wrappers put around each environment, the first one innermost, each as module:name, with arguments as in
    'gymnasium.wrappers:TimeLimit(max_episode_steps=7)'."""
    hidden: tuple[int, ...] = (256, 256)
    """Widths of the networks' hidden layers."""
    num_critics: int = 2
    """Critics; the target takes the minimum of all, or of --target-subset of them."""
    layer_norm: bool = False
    """Normalise the critics' hidden layers."""
    dropout: float = 0.0
    """Fraction of the critics' hidden units that is dropped; 0.01 with --layer-norm is DroQ's."""
    recurrent: Literal["rnn", "gru", "lstm"] | None = None
    """Cell of recurrent networks, which SAC_RNN trains on sequences of --sequence-length; None for feed-forward ones."""
    recurrent_size: int = 128
    """Width of the cell's hidden state."""
    feed_previous: tuple[Literal["actions", "rewards"], ...] = ("actions",)
    """What of the step before enters the cell beside the observations."""
    memory_capacity: int = 1_000_000
    """Transitions in the replay memory; no more than the steps are allocated."""
    evaluation_interval: int | None = None
    """Environment steps between evaluations; None is a twentieth of the steps. The end is always evaluated."""
    evaluation_episodes: int = 10
    """Deterministic episodes of an evaluation."""
    evaluation_max_steps: int | None = None
    """Steps after which an episode of an evaluation is cut; None is the task's time limit, and 10,000 where it has none."""
    keep_checkpoints: int = 3
    """Last checkpoints that stay; beside them best, of the best evaluation."""
    device: str | None = None
    """Device by the backend's name for it (cpu, cuda:0); None lets the backend choose."""
    ranks: int = 1
    """Processes of this machine that train the agent together, each with --num-envs environments and a batch of its own."""
    progress: bool = True
    """Show a bar, or lines where there is no terminal."""
    seeds: str | None = None
    """Seeds of agents that learn together in this process, as 0:10 (ten) or 0,3,5: each is the run of --seed, in RUN_DIR/seed=<seed>."""
    sweep: Path | None = None
    """TOML or JSON file of many runs, each trained in a process of its own; its flags stand in the file, as the README says."""
    sweep_on: Literal["local", "slurm"] = "local"
    """Where the runs of --sweep run: processes of this machine, or jobs of a Slurm cluster."""
    sweep_jobs: int | None = None
    """Runs of --sweep at a time; None is one on this machine, and as many as Slurm lets run."""
    # Without a name of its own: --batch-size, not --cfg.batch-size.
    cfg: Annotated[SACConfig, arg(name="")] = field(default_factory=paper_config)

    def run(self) -> int:
        if self.sweep is not None:
            from sacref.cli import sweep

            return sweep.run(self.sweep, directory=self.run_dir, on=self.sweep_on, jobs=self.sweep_jobs, progress=self.progress)
        if self.sweep_on != "local" or self.sweep_jobs is not None:
            raise ValueError("--sweep-on or --sweep-jobs is given without --sweep: name the file of the sweep, or leave them out")
        seeds = self._seeds()
        from sacref.training import experiment

        experiment.prepare_process(self.backend, self.device)
        arguments: dict[str, Any] = {
            "backend": self.backend,
            "env": _environment(self.env),
            "steps": self.steps,
            "run_dir": self.directory(),
            "num_envs": self.num_envs,
            "cfg": self.cfg,
            "preset": self.preset,
            "hidden": self.hidden,
            "num_critics": self.num_critics,
            "layer_norm": self.layer_norm,
            "dropout": self.dropout,
            "recurrent": self.recurrent,
            "recurrent_size": self.recurrent_size,
            "feed_previous": self.feed_previous,
            "memory_capacity": self.memory_capacity,
            "evaluation_interval": self.evaluation_interval,
            "evaluation_episodes": self.evaluation_episodes,
            "evaluation_max_steps": self.evaluation_max_steps,
            "keep_checkpoints": self.keep_checkpoints,
            "device": self.device,
            "vectorization": self.vectorization,
            "env_kwargs": self.env_kwargs,
            "wrappers": [_named(name, "--wrappers: ") for name in self.wrappers],
            "overwrite": self.overwrite,
            "resume": self.resume,
            "progress": self.progress,
        }
        if seeds is not None:
            return self._train_population(seeds, arguments)
        result = experiment.train(seed=self.cfg.seed, **arguments)
        place = launched()
        if place is not None and place.rank > 0:
            return 130 if result.interrupted else 0
        state = "interrupted" if result.interrupted else "finished"
        print(f"{state} after {result.steps:,} steps of {self.env} on {self.backend}{_speed(result.steps_per_second)}")
        self._explain(result.steps, trained=not math.isnan(result.steps_per_second), interrupted=result.interrupted)
        if result.evaluations:
            step, evaluation = result.evaluations[-1]
            print(f"evaluation at step {step:,}: {_summary(evaluation)}")
        print(f"written to {result.run_dir}: {', '.join(sorted(path.name for path in result.run_dir.iterdir()))}")
        if result.interrupted:
            print(f"to go on: sacref train --resume --run-dir {result.run_dir}")
            return 130
        return 0

    def _explain(self, steps: int, *, trained: bool, interrupted: bool) -> None:
        """Say why a run of so many environment steps has learned nothing, where that may surprise."""
        if interrupted:
            return
        place = launched()
        timesteps = steps // (self.num_envs * (self.ranks if place is None else place.size))
        if not trained:
            print("nothing was left to train: to go on, give more --steps")
        elif not self.resume and self.cfg.gradient_steps and timesteps <= self.cfg.learning_starts:
            print(
                f"nothing was learned: gradient steps begin after timestep {self.cfg.learning_starts:,}, and the run has {timesteps:,};"
                f" give more --steps, or lower --learning-starts and --random-timesteps"
            )

    def _seeds(self) -> list[int] | None:
        """What --seeds says; None where it is left out."""
        if self.seeds is None:
            return None
        place = launched()
        if self.cfg.seed != 0:
            raise ValueError(f"--seeds is {self.seeds}, and --seed is {self.cfg.seed} too: leave out one or the other")
        if self.ranks > 1 or place is not None:
            ranks = self.ranks if place is None else place.size
            raise ValueError(f"--seeds is {self.seeds}, and there are {ranks} ranks: a population has one process, leave out the ranks")
        from sacref.training.population import parse_seeds

        return parse_seeds(self.seeds)

    def _train_population(self, seeds: Sequence[int], arguments: dict[str, Any]) -> int:
        """An agent for each of `seeds`."""
        from sacref.training.population import train_population

        population = train_population(seeds=seeds, **arguments)
        results = population.members.values()
        interrupted = any(result.interrupted for result in results)
        speeds = [result.steps_per_second for result in results if not math.isnan(result.steps_per_second)]
        steps, speed = min(result.steps for result in results), sum(speeds) if speeds else math.nan
        state = "interrupted" if interrupted else "finished"
        print(f"{state} after {steps:,} steps each of {len(results)} x {self.env} on {self.backend}{_speed(speed, ' together')}")
        self._explain(steps, trained=not math.isnan(speed), interrupted=interrupted)
        for name, result in population.members.items():
            if result.evaluations:
                step, evaluation = result.evaluations[-1]
                print(f"{name}: evaluation at step {step:,}: {_summary(evaluation)}")
        final = [result.evaluations[-1][1].mean for result in results if result.evaluations]
        if len(final) > 1:
            mean, low, high = _interval(final)
            print(f"over {len(final)} seeds: mean {mean:,.1f}, 95% interval of the mean [{low:,.1f}, {high:,.1f}]")
        print(f"written to {population.run_dir}")
        if interrupted:
            print(f"to go on: sacref train --resume --seeds {self.seeds} --run-dir {population.run_dir}")
            return 130
        return 0

    def directory(self) -> Path | None:
        """Where the run is written: --run-dir, or what the experiment's two fields say.

        Raises:
            ValueError: if both are given.
        """
        experiment = self.cfg.experiment
        if not experiment.directory and not experiment.experiment_name:
            return self.run_dir
        if self.run_dir is not None:
            raise ValueError(
                f"--run-dir is {self.run_dir}, and --experiment.directory or --experiment.experiment-name is set too: "
                f"leave out one or the other, as each says where to write"
            )
        return Path(experiment.directory or "runs") / (experiment.experiment_name or f"{datetime.now():%Y%m%d-%H%M%S-%f}")

    def defaults(self) -> "Train":
        """The defaults that follow from these flags: a preset's, the random steps from the number of environments, all from a resumed run.

        Where the environment says how many ranks there are, that is their number.
        """
        place = launched()
        if self.ranks < 1:
            raise ValueError(f"--ranks is {self.ranks}, expected an integer of at least 1")
        if not self.resume:
            ranks = self.ranks if place is None else place.size
            preset = presets.find(self.preset)
            return Train(cfg=preset.config(self.num_envs * ranks), preset=self.preset, ranks=ranks, **preset.critics)
        from sacref.training.run_directory import read_config

        directory = self.directory()
        if directory is None:
            raise ValueError("--resume is given without --run-dir: name the directory of the run")
        if self.seeds is not None:
            from sacref.training.population import parse_seeds

            # Of the first member, which the others were trained with.
            directory = directory / f"seed={parse_seeds(self.seeds)[0]}"
        stored = read_config(directory)
        names = ["backend", "env", "steps", "num_envs", "vectorization", "env_kwargs", "memory_capacity"]
        names += ["evaluation_interval", "evaluation_episodes", "keep_checkpoints", "device"]
        try:
            cfg = SACConfig.from_dict(stored["cfg"])
            cfg.experiment.directory = cfg.experiment.experiment_name = ""
            cfg.seed = cfg.seed if self.seeds is None else 0
            models = {**stored["models"], "feed_previous": tuple(stored["models"]["feed_previous"])}
            return Train(
                cfg=cfg,
                ranks=stored.get("ranks", 1) if place is None else place.size,
                hidden=tuple(stored["hidden"]),
                wrappers=tuple(stored["wrappers"]),
                **models,
                **{name: from_json(stored[name]) for name in names},
                evaluation_max_steps=stored.get("evaluation_max_steps"),
                preset=stored.get("preset"),
            )
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"{directory / 'config.json'} is damaged ({type(error).__name__}: {error}): restore it, or train again"
            ) from error


@dataclass(kw_only=True)
class Evaluate:
    """Run deterministic episodes with the agent of a run, and print their returns."""

    run_dir: Positional[Annotated[Path, arg(metavar="RUN_DIR")]]
    """Run directory, as `sacref train` wrote it."""
    episodes: int = 10
    """Number of episodes."""
    seed: int = 0
    """Seed of the episodes' starts."""
    evaluation_max_steps: int | None = None
    """Steps after which an episode is cut; None is what the run was trained with."""
    checkpoint: str | None = None
    """Name of one of the run's checkpoints; None is the newest."""
    device: str | None = None
    """Device by the backend's name for it (cpu, cuda:0); None lets the backend choose."""
    import_callables: bool = False
    """Import what the agent needs of the run's own code, as a preprocessor. Environment and wrappers are imported in any case."""

    def run(self) -> int:
        from sacref.envs.vector import closing, make
        from sacref.training import experiment, run_directory
        from sacref.training.evaluation import evaluate

        config = run_directory.read_config(self.run_dir)
        agent = experiment.load(self.run_dir, checkpoint=self.checkpoint, device=self.device, import_callables=self.import_callables)
        copies = max(1, min(self.episodes, experiment.EVALUATION_COPIES))
        task = _task(config)
        with closing(make(task.pop("env"), copies, **task)) as environments:
            evaluation = evaluate(
                agent,
                environments,
                episodes=self.episodes,
                seed=self.seed,
                max_episode_steps=self.evaluation_max_steps or config.get("evaluation_max_steps"),
                state_space=run_directory.states_space(config),
            )
        print(f"{config['env']} on {config['backend']}: {_summary(evaluation)}")
        print("returns: " + ", ".join(f"{value:,.1f}" for value in evaluation.returns))
        return 0


@dataclass(kw_only=True)
class Video:
    """Draw deterministic episodes of the agent of a run into a GIF or an MP4 file, and print their returns.

    MuJoCo's tasks draw by OpenGL. Where MUJOCO_GL is not set, the first of glfw (with a display), egl and osmesa that draws is taken.
    """

    run_dir: Positional[Annotated[Path, arg(metavar="RUN_DIR")]]
    """Run directory, as `sacref train` wrote it."""
    output: Path | None = None
    """The file; its suffix chooses the format, .gif or .mp4. None is RUN_DIR/video.gif."""
    episodes: int = 1
    """Number of episodes, one after the other."""
    seed: int = 0
    """Seed of the first episode's start; the next ones have the next seeds."""
    evaluation_max_steps: int | None = None
    """Steps after which an episode is cut; None is what the run was trained with."""
    checkpoint: str | None = None
    """Name of one of the run's checkpoints, such as best; None is the newest."""
    fps: float | None = None
    """Frames per second; None is real time, with at most 30."""
    seconds: float | None = None
    """How much of each episode is shown, from its start on; None for all. The return is that of the whole."""
    width: int | None = None
    """Pixels; None leaves it to the environment."""
    height: int | None = None
    """Pixels; None leaves it to the environment."""
    device: str | None = None
    """Device by the backend's name for it (cpu, cuda:0); None lets the backend choose."""
    import_callables: bool = False
    """Import what the agent needs of the run's own code, as a preprocessor. Environment and wrappers are imported in any case."""

    def run(self) -> int:
        from gymnasium import registry
        from rich.console import Console
        from rich.progress import Progress

        from sacref.training import experiment, run_directory
        from sacref.training.video import render_episodes

        config = run_directory.read_config(self.run_dir)
        agent = experiment.load(self.run_dir, checkpoint=self.checkpoint, device=self.device, import_callables=self.import_callables)
        output, task = self.output or self.run_dir / "video.gif", _task(config)
        spec = registry.get(config["env"])
        longest = None if spec is None or spec.max_episode_steps is None else self.episodes * spec.max_episode_steps
        with Progress(console=Console(stderr=True), transient=True) as bar:
            steps = bar.add_task("steps", total=longest)
            video = render_episodes(
                agent,
                output,
                **task,
                state_space=run_directory.states_space(config),
                episodes=self.episodes,
                seed=self.seed,
                max_episode_steps=self.evaluation_max_steps or config.get("evaluation_max_steps"),
                fps=self.fps,
                seconds=self.seconds,
                width=self.width,
                height=self.height,
                on_step=lambda: bar.advance(steps),
            )
        seeds = [seed for seed in range(self.seed, self.seed + self.episodes) if seed not in video.evaluation.diverged]
        for seed, value, length in zip(seeds, video.evaluation.returns, video.evaluation.lengths, strict=True):
            print(f"{config['env']} on {config['backend']}, seed {seed}: return {value:,.1f} in {length:,} steps")
        print(f"written to {output}: {video.frames:,} frames of {video.width} x {video.height}, {video.fps:g} a second")
        return 0


@dataclass(kw_only=True)
class Plot:
    """Draw the evaluation returns of runs: a panel per environment, a curve per backend.

    Runs of one environment and backend are its seeds: their mean and its 95% interval are drawn.
    """

    run_dirs: Positional[Annotated[tuple[Path, ...], arg(metavar="RUN_DIR [RUN_DIR ...]")]]
    """Run directories, as `sacref train` wrote them."""
    output: Path
    """The picture; its suffix chooses the format (.png, .pdf, .svg)."""

    def run(self) -> int:
        from sacref.training.plots import plot_runs

        plot_runs(self.run_dirs, output=self.output)
        print(f"written to {self.output}")
        return 0


@dataclass(kw_only=True)
class Parity:
    """Compare torch, JAX and a NumPy oracle over updates of the same weights, batches and noise.

    Prints the largest differences in losses, gradients, parameters and optimizer moments. In float64 they must agree to rounding: exit
    status 1 where they do not. In float32 the drift is shown.
    """

    updates: int = 1000
    """Number of updates."""
    dtype: Literal["float64", "float32"] = "float64"
    """What is computed in."""
    seed: int = 0
    """Seed of weights, batches and noise."""
    backends: tuple[Literal["torch", "jax"], ...] = ()
    """Backends beside NumPy; without any, those that are installed."""
    json: Path | None = None
    """File to write the record to, every update's differences included; the plot of the drift goes beside it."""

    def run(self) -> int:
        from rich.console import Console
        from rich.progress import Progress

        from sacref import parity

        with Progress(console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("updates", total=self.updates)
            report = parity.run(
                updates=self.updates,
                dtype=self.dtype,
                seed=self.seed,
                json=self.json,
                backends=self.backends or None,
                on_update=lambda: bar.advance(task),
            )
        Console().print(report.table())
        if self.json is not None:
            print(f"written to {self.json} and {self.json.with_suffix('.png')}")
        if self.dtype == "float64" and not report.within(PARITY_TOLERANCE):
            print(f"sacref: the implementations do not agree to {PARITY_TOLERANCE:g} relative", file=sys.stderr)
            return 1
        return 0


@dataclass(kw_only=True)
class Examine:
    """Say which SAC an implementation is: its choices, its mistakes, and what could not be checked.

    NAME is an adapter that comes with sacref (sacref-torch, sacref-jax, stable-baselines3, sbx, skrl-torch, skrl-jax, tianshou, torchrl,
    cleanrl), or module:Adapter of your own, as docs/examine.md describes it. Exit status 1 if a known mistake is present.
    """

    name: Positional[Annotated[str, arg(metavar="NAME")]]
    """Adapter."""
    json: Path | None = None
    """File to write the record to."""
    markdown: Path | None = None
    """File to write the tables to."""

    def run(self) -> int:
        from rich.console import Console

        from sacref import examine
        from sacref.examine import adapters, report

        progress = Console(stderr=True)
        with progress.status("examine") as status:
            found = examine.examine(adapters.load(self.name), on_stage=lambda stage: status.update(f"examine: {stage}"))
        Console().print(report.table(found))
        if self.json is not None:
            report.write(report.record(found), self.json)
        if self.markdown is not None:
            self.markdown.write_text(report.markdown(found), encoding="utf-8")
        return 1 if found.mistakes else 0


@dataclass(kw_only=True)
class Doctor:
    """Say which backends, devices and versions this machine has. Exit status 0 if a backend works, else 1."""

    json: bool = False
    """Print JSON instead of tables."""

    def run(self) -> int:
        from sacref.cli import doctor

        report = doctor.examine()
        if self.json:
            print(json.dumps(report, indent=2))
        else:
            doctor.show(report)
        return 0 if report["healthy"] else 1


@dataclass(kw_only=True)
class Presets:
    """List the settings of published SACs that `sacref train --preset` starts from: sources, what they change, what is not reproduced."""

    json: bool = False
    """Print JSON instead of a table."""

    def run(self) -> int:
        if self.json:
            print(json.dumps([{**asdict(preset), "differences": preset.differences} for preset in presets.PRESETS.values()], indent=2))
            return 0
        from rich.console import Console
        from rich.table import Table

        table = Table("preset", "source", "other than the paper's", "not reproduced", show_lines=True)
        for preset in presets.PRESETS.values():
            source = f"{preset.title}\n{preset.source}: {', '.join(preset.files)}"
            changed = "\n".join(f"{name} {json.dumps(value)}" for name, value in preset.differences.items())
            table.add_row(preset.name, source, changed, "\n".join(f"- {part}" for part in preset.not_reproduced))
        Console(soft_wrap=False).print(table)
        return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit status.

    Args:
        arguments: those of the command line unless given.

    Returns:
        0 if all went well; 2 if what was asked cannot be done, with one message on standard error; 3 if another rank was lost; 130 after
        Ctrl-C. A rank that fails ends its process.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if arguments == ["--version"]:
        print(f"sacref {sacref.__version__}")
        return 0
    try:
        return _run(arguments)
    except Exception:
        if _is_alone():
            raise
        traceback.print_exc()
        return _failed(1)


def _is_alone() -> bool:
    """Whether no other rank may wait for this process."""
    return os.environ.get("WORLD_SIZE", "1") in ("", "1")


def _failed(status: int) -> int:
    """The exit status after an error. A rank ends at once: an orderly exit would wait for the others, which wait for this one."""
    if not _is_alone():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status


def _lost(error: LostRankError) -> int:
    if os.environ.get(launch.STARTED_HERE) != "1":  # else the launcher says which rank was lost
        print(f"sacref: {error}", file=sys.stderr)
    return _failed(launch.LOST_STATUS)


def _run(arguments: Sequence[str]) -> int:
    try:
        command = parse(arguments)
        if isinstance(command, Train):
            place = launched()
            if place is None and command.ranks > 1:
                return launch.run(arguments, command.ranks, run_dir=str(command.run_dir or "RUN_DIR"))
            if place is not None and command.ranks != place.size:
                raise ValueError(
                    f"--ranks is {command.ranks}, and {place.size} processes were started together (WORLD_SIZE): leave --ranks out"
                )
        return command.run()
    except LostRankError as error:
        return _lost(error)
    except KeyboardInterrupt:
        print("sacref: interrupted at once; what was written before stays in the run directory", file=sys.stderr)
        return _failed(130)
    except (ValueError, TypeError, ImportError, OSError, RuntimeError) as error:
        if not _is_alone() and speaks_of_a_lost_rank(error):
            return _lost(LostRankError(f"another rank ended or did not answer in time ({error})"))
        if os.environ.get(TRACEBACK) == "1":
            raise
        print(f"sacref: {error}\n({type(error).__name__}; {TRACEBACK}=1 shows where)", file=sys.stderr)
        return _failed(2)


def parse(arguments: Sequence[str]) -> Command:
    """The command that the arguments ask for.

    Raises:
        SystemExit: after --help, and for flags that do not exist or hold no value of their type. ConfigError: for a value out of range.
    """
    command = _parse(arguments, Train())
    if isinstance(command, Train) and command.sweep is not None:
        from sacref.cli import sweep

        sweep.refuse_others(arguments)
        return command
    # Some defaults follow from other flags: read once for those, and once more with the defaults that follow.
    return _parse(arguments, command.defaults()) if isinstance(command, Train) else command


def _parse(arguments: Sequence[str], train: Train) -> Command:
    commands: Any = (
        Annotated[Train, subcommand("train", default=train)]
        | Annotated[Evaluate, subcommand("eval")]
        | Annotated[Video, subcommand("video")]
        | Annotated[Plot, subcommand("plot")]
        | Annotated[Parity, subcommand("parity")]
        | Annotated[Examine, subcommand("examine")]
        | Annotated[Presets, subcommand("presets")]
        | Annotated[Doctor, subcommand("doctor")]
    )
    command: Command = tyro.cli(commands, prog="sacref", description=DESCRIPTION, args=list(arguments), registry=_types())
    return command


def _types() -> ConstructorRegistry:
    """How flags are read whose types tyro does not know, or reads otherwise than we wish."""
    registry = ConstructorRegistry()

    @registry.primitive_rule
    def rule(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
        parts = get_args(info.type) if get_origin(info.type) in (Union, UnionType) else (info.type,)
        kinds = {get_origin(part) for part in parts}
        if dict in kinds:
            return _spec("JSON", _json_for_each if tuple in kinds else _json, lambda value: json.dumps(as_json("flag", value)))
        if Callable in kinds and tuple in kinds:
            return _spec("NAME", _scheduler, _schedulers_name)
        if Callable in kinds:
            return _spec("MODULE:NAME", lambda text: None if text == "None" else _named(text), _name)
        return None

    return registry


def _spec(metavar: str, read: Callable[[str], Any], write: Callable[[Any], str]) -> PrimitiveConstructorSpec[Any]:
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=metavar,
        instance_from_str=lambda texts: read(texts[0]),
        is_instance=lambda value: True,
        str_from_instance=lambda value: [write(value)],
    )


def _json(text: str) -> dict[str, Any]:
    value = from_json(json.loads(text))
    if not isinstance(value, dict):
        raise ValueError(f'expected a JSON object, such as {{"name": 1}}, got {text}')
    return value


def _json_for_each(text: str) -> dict[str, Any] | tuple[dict[str, Any], ...]:
    return tuple(_json(json.dumps(element)) for element in json.loads(text)) if text.lstrip().startswith("[") else _json(text)


def _scheduler(text: str) -> Any:
    """A schedule's name, module:name, None, or a JSON list of three of those; the configuration finds what they name."""
    return tuple(json.loads(text)) if text.lstrip().startswith("[") else None if text == "None" else text


def _schedulers_name(schedule: Any) -> str:
    return json.dumps([None if one is None else _name(one) for one in schedule]) if isinstance(schedule, tuple) else _name(schedule)


def _name(function: Any) -> str:
    return description(function) if callable(function) else str(function)


def _named(name: str, where: str = "") -> Any:
    """What `sacref.config.callables.find` finds. `where` begins the message of the error.

    Raises:
        ValueError: if there is no such thing.
    """
    if (reason := has_no_name(name)) is not None:
        raise ValueError(f"{where}got {name}, which {reason}")
    try:
        return find(name)
    except NotFoundError as error:
        reason = why_lost(name)
        raise ValueError(f"{where}got {name}, expected {error}" if reason is None else f"{where}got {name}, which {reason}") from error


def _task(config: dict[str, Any]) -> dict[str, Any]:
    """The environment that a run names, with its arguments and wrappers: what `sacref.envs.make` takes."""
    from sacref.training.evaluation import with_plain_rewards

    wrappers = [_named(name, "wrappers of the run: ") for name in config["wrappers"]]
    return {
        "env": _environment(config["env"], "env of the run: "),
        "env_kwargs": from_json(config["env_kwargs"]),
        "wrappers": [*wrappers, with_plain_rewards],
    }


def _environment(name: str, where: str = "--env: ") -> Any:
    """A Gymnasium id as it is; the callable that makes an environment where "module:name" names one.

    Raises:
        ValueError: if the name is that of a callable, which is not there.
    """
    if "(" in name or why_lost(name) is not None:
        return _named(name, where)
    try:
        found = find(name)
    except NotFoundError:
        return name
    return found if callable(found) else name


def _interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean of several values, and the 95% confidence interval of the mean (Student's t)."""
    from scipy import stats

    found = stats.ttest_1samp(values, 0.0)
    low, high = found.confidence_interval(0.95)
    return statistics.fmean(values), float(low), float(high)


def _summary(evaluation: Any) -> str:
    several = f"mean return {evaluation.mean:,.1f}, standard deviation {evaluation.std:,.1f}, {len(evaluation.returns)} episodes"
    said = f"return {evaluation.mean:,.1f}, 1 episode" if len(evaluation.returns) == 1 else several
    if evaluation.truncated:
        said += f", {evaluation.truncated} of them cut after {max(evaluation.lengths):,} steps"
    return f"{said}; {len(evaluation.diverged)} diverged and left out" if evaluation.diverged else said


def _speed(steps_per_second: float, together: str = "") -> str:
    """Of the training alone: the progress bar's is that of everything. Nothing where nothing was trained."""
    return "" if math.isnan(steps_per_second) else f" ({steps_per_second:,.0f} steps/s{together}, evaluations left out)"
