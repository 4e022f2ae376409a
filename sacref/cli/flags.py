"""The flags of each command: dataclasses that tyro reads, and how their values are read from text and written as defaults."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, TypeAlias, Union, get_args, get_origin

import tyro
from tyro.conf import Positional, arg, subcommand
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

import sacref
from sacref.config import SACConfig, as_json, from_json, paper_config, presets
from sacref.config.callables import NotFoundError, description, find, has_no_name, why_lost
from sacref.config.train_config import OTHER_NAMES, RunOptions, base_config, options_of, widths_of
from sacref.ranks import launched

TRACEBACK = "SACREF_TRACEBACK"
"""Environment variable; at 1, an error shows its traceback."""

DESCRIPTION = f"""Soft Actor-Critic as a trusted baseline, on PyTorch and on JAX (sacref {sacref.__version__}).

`sacref COMMAND --help` lists a command's flags, `sacref --version` prints the version.
With {TRACEBACK}=1 in the environment, an error shows its traceback."""

BESIDE_SWEEP = ("--sweep", "--sweep-on", "--sweep-jobs", "--run-dir", "--progress", "--no-progress")
"""Flags that may stand beside `--sweep`; those of the runs stand in the file, so that it says all that was run."""


class SweepError(ValueError):
    """A sweep that cannot be started as asked; the message says why, and the fix."""


@dataclass(frozen=True, kw_only=True)
class Train(RunOptions):
    """Train an agent, evaluate it, and draw its curve.

    Defaults are the paper's settings: the first 5,000 environment steps are random, and learning starts after them. A timestep is a
    step of all environments together. --resume takes all settings from the run. Ctrl-C stops cleanly, with everything written.
    """

    env: str = "HalfCheetah-v5"
    """Gymnasium id, or module:id to import the module that registers it, or module:name of a callable that makes one, with arguments as in
    'module:name(size=3)'."""
    vector_env: str | None = None
    """Callable that makes a gymnasium.vector.VectorEnv, instead of --env, as module:name, with arguments as in 'module:name(size=3)': it is
    called with num_envs, with --env-kwargs, and with seed if it takes one. Arrays of PyTorch or JAX stay on their device."""
    run_dir: Path | None = None
    preset: Literal["paper", "sb3", "cleanrl", "jaxrl", "tianshou", "spinningup", "crossq-baseline", "redq", "droq"] | None = None
    env_kwargs: dict[str, object] = field(default_factory=dict)
    wrappers: tuple[str, ...] = ()
    """Wrappers put around each environment, the first one innermost, each as module:name, with arguments as in
    'gymnasium.wrappers:TimeLimit(max_episode_steps=7)'."""
    callbacks: tuple[str, ...] = ()
    """Callbacks of the run, each as module:Class of a sacref.training.callbacks.Callback, with arguments as in
    'sacref.training.callbacks:StopAtReturn(mean=300)'."""
    log: tuple[str, ...] = ("tensorboard", "jsonl")
    """Loggers of the metrics: tensorboard, jsonl, csv, wandb, mlflow, or module:Class of your own."""
    hidden: tuple[int, ...] | None = None
    critic_hidden: tuple[int, ...] | None = None
    num_critics: int = 2
    layer_norm: bool = False
    dropout: float = 0.0
    feed_previous: tuple[Literal["actions", "rewards"], ...] = ("actions",)
    ranks: int = 1
    """Processes of this machine that train the agent together, each with --num-envs environments and a batch of its own."""
    seeds: str | None = None
    """Seeds of agents that learn together in this process, as 0:10 (ten) or 0,3,5: each is the run of --seed, in RUN_DIR/seed=<seed>."""
    sweep: Path | None = None
    """TOML or JSON file of many runs, each trained in a process of its own; its flags stand in the file, as docs/seeds.md says."""
    sweep_on: Literal["local", "slurm"] = "local"
    """Place of the runs of --sweep: processes of this machine, or jobs of a Slurm cluster."""
    sweep_jobs: int | None = None
    """Runs of --sweep at a time; None is one on this machine, and as many as Slurm lets run."""
    # Without a name of its own: --batch-size, not --cfg.batch-size.
    cfg: Annotated[SACConfig, arg(name="")] = field(default_factory=paper_config)

    def directory(self) -> Path | None:
        """Return where the run is written: --run-dir, or what the experiment's two fields say.

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

    def defaults(self, *, by_gradient_steps: bool = False) -> "Train":
        """Return the defaults that follow from these flags: a preset's, random steps by the number of environments, all of a resumed run.

        Where the environment says how many ranks there are, that is their number.

        Args:
            by_gradient_steps: whether --gradient-steps is given, which takes the place of a default of --update-to-data.
        """
        place = launched()
        if self.ranks < 1:
            raise ValueError(f"--ranks is {self.ranks}, expected an integer of at least 1")
        if not self.resume:
            ranks = self.ranks if place is None else place.size
            hidden, critic_hidden = widths_of(self.network, self.hidden, self.critic_hidden)
            cfg = base_config(self.preset, self.network, self.num_envs * ranks)
            if by_gradient_steps:
                cfg.update_to_data = None
            return Train(
                cfg=cfg,
                preset=self.preset,
                ranks=ranks,
                network=self.network,
                hidden=tuple(hidden),
                critic_hidden=None if critic_hidden is None else tuple(critic_hidden),
                **presets.find(self.preset).critics,
            )
        from sacref.training.run_directory import read_config

        directory = self.directory()
        if directory is None:
            raise ValueError("--resume is given without --run-dir: name the directory of the run")
        if self.seeds is not None:
            from sacref.training.population import parse_seeds

            # Members share their settings: those of the first one that has a run are read.
            members = [directory / f"seed={seed}" for seed in parse_seeds(self.seeds)]
            directory = next((member for member in members if (member / "config.json").is_file()), members[0])
        stored = read_config(directory)
        if self.preset is not None and self.preset != (own := stored.get("preset")):
            raise ValueError(
                f"--preset is {self.preset} beside --resume, and the run has {own}: a resumed run keeps its settings, leave --preset out"
            )
        try:
            cfg = SACConfig.from_dict(stored["cfg"])
            cfg.experiment.directory = cfg.experiment.experiment_name = ""
            cfg.seed = cfg.seed if self.seeds is None else 0
            return Train(cfg=cfg, ranks=stored.get("ranks", 1) if place is None else place.size, **options_of(stored))
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"{directory / 'config.json'} is damaged ({type(error).__name__}: {error}): restore it, or train again"
            ) from error


@dataclass(kw_only=True)
class Evaluate:
    """Run deterministic episodes with the agent of a run, and print their returns."""

    run_dir: Positional[Annotated[Path, arg(metavar="RUN_DIR")]]
    """Run directory, as `sacref train` wrote it, or one of its checkpoints, as RUN_DIR/best."""
    episodes: int = 10
    """Number of episodes."""
    seed: int = 0
    """Seed of the episodes' starts."""
    evaluation_max_steps: int | None = None
    """Steps after which an episode is cut; None is what the run was trained with."""
    checkpoint: str | None = None
    """Name of one of the run's checkpoints, such as best; None is the newest."""
    device: str | None = None
    """Device by the backend's name for it (cpu, cuda:0); None lets the backend choose."""
    import_callables: bool = False
    """Import what the agent needs of the run's own code, as a preprocessor. Environment and wrappers are imported in any case."""


@dataclass(kw_only=True)
class Video(Evaluate):
    """Draw deterministic episodes of the agent of a run into a GIF or an MP4 file, and print their returns.

    MuJoCo's tasks draw by OpenGL. Where MUJOCO_GL is not set, the first of glfw (with a display), egl and osmesa that draws is taken.
    """

    episodes: int = 1
    """Number of episodes, one after the other."""
    seed: int = 0
    """Seed of the first episode's start; the next ones have the next seeds."""
    output: Path | None = None
    """The file; its suffix chooses the format, .gif or .mp4. None is RUN_DIR/video.gif."""
    fps: float | None = None
    """Frames per second; None is real time, with at most 30."""
    seconds: float | None = None
    """Seconds of each episode that are shown, from its start on; None for all. The return is that of the whole."""
    width: int | None = None
    """Pixels; None leaves it to the environment."""
    height: int | None = None
    """Pixels; None leaves it to the environment."""


@dataclass(kw_only=True)
class Export:
    """Write the deterministic policy of a run, with its preprocessors inside, to a file that runs without sacref.

    The new file is loaded again, and held against the agent's own actions.
    """

    run_dir: Positional[Annotated[Path, arg(metavar="RUN_DIR")]]
    """Run directory, as `sacref train` wrote it, or one of its checkpoints, as RUN_DIR/best."""
    to: Literal["onnx", "torch", "stablehlo"]
    """ONNX; a program of torch.export, of a run on PyTorch; or StableHLO as of jax.export, of a run on JAX."""
    output: Path
    """The file."""
    checkpoint: str | None = None
    """Name of one of the run's checkpoints, such as best; None is the newest."""
    import_callables: bool = False
    """Import what the agent needs of the run's own code, as a preprocessor."""


@dataclass(kw_only=True)
class Plot:
    """Draw the evaluation returns of runs: a panel per environment, a curve per backend and settings.

    Runs of one environment that differ in nothing but the seed are one curve: their mean and its 95% interval are drawn.
    """

    run_dirs: Positional[Annotated[tuple[Path, ...], arg(metavar="RUN_DIR [RUN_DIR ...]")]]
    """Run directories, as `sacref train` wrote them, folders of them, or tables (.csv) such as results/learning/curves.csv."""
    output: Path
    """The picture; its suffix chooses the format (.png, .pdf, .svg)."""


@dataclass(kw_only=True)
class Report:
    """Write one interactive HTML file about runs: returns, losses, Q-values, entropy, temperature, speed, and the settings that differ.

    It opens from a disk and needs no network. Runs may be unfinished. Needs plotly: pip install 'sacref[report]'.
    """

    run_dirs: Positional[Annotated[tuple[Path, ...], arg(metavar="RUN_DIR [RUN_DIR ...]")]]
    """Run directories, as `sacref train` wrote them, or folders of them."""
    output: Path = Path("report.html")
    """The file."""


@dataclass(kw_only=True)
class Parity:
    """Compare torch, JAX and a NumPy oracle over updates of the same weights, batches and noise.

    Prints the largest differences in losses, gradients, parameters and optimizer moments. In float64 all but the gradients, whose elements
    pass through zero, must agree to 1e-9 relative: exit status 1 where they do not. In float32 the drift is shown.
    """

    updates: int = 1000
    """Number of updates."""
    dtype: Literal["float64", "float32"] = "float64"
    """Precision that is computed in."""
    seed: int = 0
    """Seed of weights, batches and noise."""
    backends: tuple[Literal["torch", "jax"], ...] = ()
    """Backends beside NumPy; without any, those that are installed."""
    json: Path | None = None
    """File to write the record to, every update's differences included; the plot of the drift goes beside it."""


@dataclass(kw_only=True)
class Examine:
    """Say which SAC an implementation is: its choices, its mistakes, and what could not be checked.

    NAME is an adapter that comes with sacref (sacref-torch, sacref-jax, stable-baselines3, sbx, skrl-torch, skrl-jax, tianshou, torchrl,
    cleanrl), or module:Adapter of your own, as docs/examine.md describes it. Exit status 1 if a known mistake is present, 2 if it
    could not be examined.
    """

    name: Positional[Annotated[str, arg(metavar="NAME")]]
    """Adapter."""
    json: Path | None = None
    """File to write the record to."""
    markdown: Path | None = None
    """File to write the tables to."""


@dataclass(kw_only=True)
class Doctor:
    """Say which backends, devices and versions this machine has. Exit status 0 if a backend works, else 1."""

    json: bool = False
    """Print JSON instead of tables."""


@dataclass(kw_only=True)
class Presets:
    """List the settings of published SACs that `sacref train --preset` starts from: sources, what they change, what is not reproduced."""

    json: bool = False
    """Print JSON instead of a table."""


Command: TypeAlias = Train | Evaluate | Video | Export | Plot | Report | Parity | Examine | Presets | Doctor


def parse(arguments: Sequence[str]) -> Command:
    """Read the flags of a command.

    Raises:
        SystemExit: after --help, and for flags that do not exist or hold no value of their type. ConfigError: for a value out of range.
        ValueError: for a flag that has another name here. SweepError: for flags beside --sweep that are not the sweep's own.
    """
    if arguments[:1] == ["train"]:
        for word in arguments:
            name = word.removeprefix("--").partition("=")[0].replace("-", "_")
            if word.startswith("--") and name in OTHER_NAMES:
                raise ValueError(f"sacref train has no --{name.replace('_', '-')}: here it is --{OTHER_NAMES[name].replace('_', '-')}")
    command = _parse(arguments, Train())
    if not isinstance(command, Train):
        return command
    if command.sweep is not None:
        _refuse_beside_sweep(arguments)
        return command
    # Some defaults follow from other flags: read once for those, and once more with the defaults that follow.
    given = any(argument.partition("=")[0].replace("_", "-") == "--gradient-steps" for argument in arguments)
    return _parse(arguments, command.defaults(by_gradient_steps=given))


def _parse(arguments: Sequence[str], train: Train) -> Command:
    commands: Any = (
        Annotated[Train, subcommand("train", default=train)]
        | Annotated[Evaluate, subcommand("eval")]
        | Annotated[Video, subcommand("video")]
        | Annotated[Export, subcommand("export")]
        | Annotated[Plot, subcommand("plot")]
        | Annotated[Report, subcommand("report")]
        | Annotated[Parity, subcommand("parity")]
        | Annotated[Examine, subcommand("examine")]
        | Annotated[Presets, subcommand("presets")]
        | Annotated[Doctor, subcommand("doctor")]
    )
    command: Command = tyro.cli(commands, prog="sacref", description=DESCRIPTION, args=list(arguments), registry=_types())
    return command


def _refuse_beside_sweep(arguments: Sequence[str]) -> None:
    if launched() is not None:
        raise SweepError("--sweep under torchrun (WORLD_SIZE is set): call it without, as it starts its runs by itself")
    given = [word.partition("=")[0].replace("_", "-") for word in arguments if word.startswith("--")]
    if others := [word for word in given if word not in BESIDE_SWEEP]:
        raise SweepError(
            f"{', '.join(others)} beside --sweep: write flags of the runs into the file, under [train] or [grid]; "
            f"beside it stand {', '.join(BESIDE_SWEEP[1:])}"
        )


def _types() -> ConstructorRegistry:
    """Return how flags are read whose types tyro does not know."""
    registry = ConstructorRegistry()

    @registry.primitive_rule
    def rule(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[object] | None:
        parts = get_args(info.type) if get_origin(info.type) in (Union, UnionType) else (info.type,)
        kinds = {get_origin(part) for part in parts}
        if dict in kinds:
            return _spec("JSON", _json_for_each if tuple in kinds else _json, lambda value: json.dumps(as_json("flag", value)))
        if Callable in kinds and tuple in kinds:
            return _spec("NAME", _scheduler, _schedulers_name)
        if Callable in kinds:
            return _spec("MODULE:NAME", lambda text: None if text == "None" else named(text), _name)
        return None

    return registry


def _spec(metavar: str, read: Callable[[str], object], write: Callable[[object], str]) -> PrimitiveConstructorSpec[object]:
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=metavar,
        instance_from_str=lambda texts: read(texts[0]),
        is_instance=lambda value: True,
        str_from_instance=lambda value: [write(value)],
    )


def _json(text: str) -> dict[str, object]:
    value = from_json(json.loads(text))
    if not isinstance(value, dict):
        raise ValueError(f'expected a JSON object, such as {{"name": 1}}, got {text}')
    return value


def _json_for_each(text: str) -> dict[str, object] | tuple[dict[str, object], ...]:
    return tuple(_json(json.dumps(element)) for element in json.loads(text)) if text.lstrip().startswith("[") else _json(text)


def _scheduler(text: str) -> object:
    """Read a schedule's name, module:name, None, or a JSON list of three of those; the configuration finds what they name."""
    return tuple(json.loads(text)) if text.lstrip().startswith("[") else None if text == "None" else text


def _schedulers_name(schedule: object) -> str:
    return json.dumps([None if one is None else _name(one) for one in schedule]) if isinstance(schedule, tuple) else _name(schedule)


def _name(function: object) -> str:
    return description(function) if callable(function) else str(function)


def named(name: str, where: str = "") -> object:
    """Find what `module:name` names. `where` begins the message of the error.

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
