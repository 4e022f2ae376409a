"""The options of a run, each declared once: `sacref.train` takes them, `sacref train` has a flag for each, `config.json` holds them."""

import copy
import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeAlias, TypeVar

import numpy as np

from sacref.config import presets, sac_config
from sacref.config.callables import description
from sacref.config.fields import ExpectedError, Rule, as_json, choice, flag, from_json, is_integer, plain, rule
from sacref.config.sac_config import SACConfig

if TYPE_CHECKING:
    from gymnasium import Env
    from gymnasium.vector import VectorEnv

    Environment: TypeAlias = Env[Any, Any]
    VectorEnvironment: TypeAlias = VectorEnv[Any, Any, Any]
else:
    Environment = VectorEnvironment = object  # the command line reads these types, and is there before Gymnasium is loaded

EnvironmentFactory: TypeAlias = Callable[..., Environment]
VectorEnvironmentFactory: TypeAlias = Callable[..., VectorEnvironment]
Wrapper: TypeAlias = Callable[[Environment], Environment]
Logger: TypeAlias = str | object
"""A logger's name, what makes one, or one."""
Backend: TypeAlias = Literal["torch", "jax"]
Network: TypeAlias = Literal["mlp", "simba"]
Recurrent: TypeAlias = Literal["rnn", "gru", "lstm"]
Vectorization: TypeAlias = Literal["sync", "async", "batched"]

P = ParamSpec("P")
R = TypeVar("R")

NETWORKS: Mapping[str, tuple[Sequence[int], Sequence[int] | None]] = {"mlp": ((256, 256), None), "simba": ((128,), (512, 512))}
"""Kind of network -> the usual widths of the hidden layers, or residual blocks, and those of the critics; None where they are the same."""
NORMALISER = "sacref.preprocessing:RunningStandardScaler"
"""Preprocessor of observations that is a part of SimBa, by name."""


def widths_of(
    network: str, hidden: Sequence[int] | None, critic_hidden: Sequence[int] | None
) -> tuple[Sequence[int], Sequence[int] | None]:
    """Return the widths that were asked for, or the network's; those of the critics are None where they are the same."""
    if hidden is not None:
        return hidden, critic_hidden
    usual, usual_of_critics = NETWORKS[network]
    return usual, usual_of_critics if critic_hidden is None else critic_hidden


def base_config(preset: str | None, network: str, num_envs: int) -> SACConfig:
    """Make the configuration that a preset, or the paper's settings, and the kind of network begin with.

    Args:
        num_envs: environments of a timestep, of all ranks together.
    """
    base = presets.find(preset).config(num_envs)
    if network == "simba":
        base.observation_preprocessor = NORMALISER
    return base


_ANY = rule("", lambda value: True)
_POSITIVE = rule("an integer of at least 1", lambda value: is_integer(value) and value >= 1)
_POSITIVE_OR_NONE = rule("an integer of at least 1", lambda value: is_integer(value) and value >= 1, none=True)
_WIDTHS = rule(
    "the widths of the hidden layers, as (256, 256)",
    lambda value: isinstance(value, list) and np.ndim(value) == 1,
    read=lambda value: np.asarray(value).tolist(),
    none=True,
)
_NETWORK = choice(*NETWORKS)
_FLAG = flag()
_PATH = rule("a path, or None for one of its own below runs", lambda value: isinstance(value, str | Path), none=True)
_CALLABLE = rule("a callable that makes a gymnasium.vector.VectorEnv: factory(num_envs=...)", callable, none=True)
_ARGUMENTS = rule(
    "a dict of the environment's arguments by their names",
    lambda value: isinstance(value, Mapping),
    read=lambda value: {} if value is None else value,
)
_WRAPPERS = rule(
    "a list of callables, each of which wraps an environment",
    lambda value: isinstance(value, list | tuple) and all(map(callable, value)),
)
_CALLBACKS = rule(
    "a list of callbacks: subclasses of sacref.training.callbacks.Callback, functions that make one, or instances",
    lambda value: isinstance(value, list | tuple),
)
_LOGGERS = rule(
    "a list of loggers: tensorboard, jsonl, csv, wandb, mlflow, or objects with a method write(step, scalars)",
    lambda value: isinstance(value, list | tuple),
)


def _option(
    values: Rule = _ANY, *, error: type[Exception] = TypeError, changeable: bool = False, stored: bool = True, model: bool = False
) -> Rule:
    """Return the metadata of an option's field.

    Args:
        values: the rule of its values.
        error: raised for others.
        changeable: whether a run may be resumed with another value.
        stored: whether `config.json` holds it.
        model: whether it is an argument of `default_models`, which stand together in `config.json`, under "models".
    """
    return {**values, "error": error, "changeable": changeable, "stored": stored, "model": model}


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Options that Python and the command line say alike."""

    backend: Backend = field(default="torch", metadata=_option(changeable=True))
    """Library that computes."""
    env: str | EnvironmentFactory = field(default="HalfCheetah-v5", metadata=_option())
    """Gymnasium id, or a callable that makes one environment. It and the wrappers are written by their names, a `functools.partial` with
    its arguments (numbers, text, lists, dicts, NumPy arrays, importable callables); a run with one that has no name (a lambda, a local
    function, an instance) cannot be resumed, nor evaluated from the command line."""
    steps: int = field(default=1_000_000, metadata=_option(_POSITIVE, error=ValueError, changeable=True))
    """Environment steps of the whole run, of all environments of all ranks together; rounded up to whole vector steps."""
    run_dir: str | Path | None = field(default=None, metadata=_option(_PATH, stored=False))
    """Directory to write to; None makes runs/<env>-<backend>-<seed>-<date>."""
    preset: str | None = field(default=None, metadata=_option(changeable=True))
    """Published settings to start from, instead of the paper's and the critics' defaults; options given beside it win.
    `sacref presets` lists them."""
    overwrite: bool = field(default=False, metadata=_option(_FLAG, stored=False))
    """Delete the run that is in the directory, once this one has recorded its first step. Files of others stay, and it is refused where a
    run's file would take the place of one."""
    resume: bool = field(default=False, metadata=_option(_FLAG, stored=False))
    """Go on from the last whole checkpoint of the run in the directory. Imports all code that the run names."""
    num_envs: int = field(default=1, metadata=_option(_POSITIVE, error=ValueError))
    """Environments stepped together, of each rank: a timestep is so many environment steps."""
    vectorization: Vectorization = field(default="sync", metadata=_option(changeable=True))
    """Step the environments in turn, in a process each, or (Gymnasium's MuJoCo tasks) together in threads, with the numbers of sync."""
    env_kwargs: Mapping[str, object] | None = field(default=None, metadata=_option(_ARGUMENTS))
    """Arguments of the environment: numbers (infinity, and NumPy's, too), text, paths, NumPy arrays, lists and dicts."""
    network: Network = field(default="mlp", metadata=_option(_NETWORK, error=ValueError, model=True))
    """Kind of the networks: multilayer perceptrons, or SimBa's residual blocks (Lee et al. 2025, arXiv:2410.09754). A running normaliser is
    a part of SimBa, so that it is the default of observation_preprocessor there."""
    hidden: Sequence[int] | None = field(default=None, metadata=_option(_WIDTHS, error=ValueError))
    """Widths of the networks' hidden layers; of simba one for each residual block. None is 256 256, of simba 128."""
    critic_hidden: Sequence[int] | None = field(default=None, metadata=_option(_WIDTHS, error=ValueError, model=True))
    """Widths of the critics' hidden layers. None is those of hidden; of simba, where hidden is None too, 512 512."""
    num_critics: int | None = field(default=None, metadata=_option(model=True))
    """Critics; the target takes the minimum of all, or of target_subset of them. None is the preset's; without one 2."""
    layer_norm: bool | None = field(default=None, metadata=_option(_FLAG, model=True))
    """Normalise the critics' hidden layers. None is the preset's; without one False."""
    dropout: float | None = field(default=None, metadata=_option(model=True))
    """Fraction of the critics' hidden units that is dropped; 0.01 with layer_norm is DroQ's. None is the preset's; without one 0."""
    recurrent: Recurrent | None = field(default=None, metadata=_option(model=True))
    """Cell of recurrent networks, which SAC_RNN trains on sequences of sequence_length; None for feed-forward ones."""
    recurrent_size: int = field(default=128, metadata=_option(model=True))
    """Width of the cell's hidden state."""
    feed_previous: Sequence[str] = field(default=("actions",), metadata=_option(model=True))
    """Inputs of the cell beside the observations, from the step before: "actions", "rewards"."""
    memory_capacity: int = field(default=1_000_000, metadata=_option(_POSITIVE, error=ValueError))
    """Transitions in the replay memory of a rank, of its environments together; no more than its steps are allocated."""
    evaluation_interval: int | None = field(default=None, metadata=_option(_POSITIVE_OR_NONE, error=ValueError, changeable=True))
    """Environment steps between evaluations; None is a twentieth of the steps. The end is always evaluated."""
    evaluation_episodes: int = field(default=10, metadata=_option(_POSITIVE, error=ValueError, changeable=True))
    """Deterministic episodes of an evaluation, on environments of its own. One that diverges is left out."""
    evaluation_max_steps: int | None = field(default=None, metadata=_option(_POSITIVE_OR_NONE, error=ValueError, changeable=True))
    """Steps after which an episode of an evaluation is cut; None is the task's time limit, and 10,000 where it has none."""
    keep_checkpoints: int = field(default=3, metadata=_option(_POSITIVE, error=ValueError, changeable=True))
    """Last checkpoints that stay, each with its replay memory; beside them `best`, of the best evaluation."""
    device: str | None = field(default=None, metadata=_option(changeable=True))
    """Device by the backend's name for it (cpu, cuda:0); None lets the backend choose."""
    progress: bool = field(default=True, metadata=_option(_FLAG, stored=False))
    """Show a bar, or a line every few percent where there is no terminal."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig(RunOptions):
    """All options of a run, as `sacref.train` takes them."""

    seed: int = field(default=0, metadata=_option())
    """Seed of everything: weights, agent, environments, evaluations. It replaces the configuration's."""
    cfg: SACConfig | Mapping[str, object] | None = field(default=None, metadata=_option())
    """The agent's configuration. A dict changes the paper's settings, which None stands for: of several environments, too, one gradient
    step for each environment step (`update_to_data`), unless the dict says others. Its `experiment` has the intervals; directory and name
    are replaced by the run directory's."""
    vector_env: VectorEnvironmentFactory | None = field(default=None, metadata=_option(_CALLABLE))
    """Callable that makes a `gymnasium.vector.VectorEnv`, instead of `env`: called with `num_envs`, `env_kwargs`, and `seed` if it takes
    one. Arrays of PyTorch or JAX that its environments return stay on their device. It is written by its name, as `env` is."""
    wrappers: Sequence[Wrapper] = field(default=(), metadata=_option(_WRAPPERS))
    """Wrappers put around each environment, the first one innermost. Evaluations have the same, but for the rewards of Gymnasium's
    `NormalizeReward`, which are evaluated as they are."""

    callbacks: Sequence[object] = field(default=(), metadata=_option(_CALLBACKS, changeable=True))
    """Callbacks of the run: subclasses of `sacref.training.callbacks.Callback`, functions that make one, or instances."""
    log: Sequence[Logger] = field(default=("tensorboard", "jsonl"), metadata=_option(_LOGGERS, changeable=True))
    """Loggers of the metrics: tensorboard, jsonl, csv, wandb, mlflow, "module:Class" of your own, or a class or an object with a method
    `write(step, scalars)`; see `sacref.training.loggers`."""

    def checked(self) -> "TrainConfig":
        """Return the options with Python's scalars for NumPy's, and the critics' from the preset.

        The configuration of a resumed run, which is not known yet, is not looked at.

        Raises:
            ConfigError, TypeError, ValueError: if no run could have them, before anything is made or deleted: naming the argument or the
                field, what it holds, and what was expected.
        """
        values = {name: plain(value) for name, value in vars(self).items()}
        critics = presets.find(self.preset).critics
        values |= {name: critic for name, critic in critics.items() if values[name] is None}
        for option in fields(self):
            value = values[option.name]
            try:
                values[option.name] = option.metadata["check"](value)
            except ExpectedError as expected:
                raise option.metadata["error"](f"{option.name} is {value!r}, expected {expected}") from None
        values["hidden"], values["critic_hidden"] = widths_of(values["network"], values["hidden"], values["critic_hidden"])
        config = replace(self, **values)
        if config.vector_env is not None:
            usual = RunOptions()
            given = {"env": config.env != usual.env, "wrappers": len(config.wrappers), "vectorization": config.vectorization != "sync"}
            for name in (name for name, said in given.items() if said):
                raise ValueError(
                    f"{name} is {getattr(config, name)!r} and vector_env is given too, expected one of them: vector_env makes all of the "
                    f"environments by itself; leave out {name}, or vector_env"
                )
        if config.preset is not None and isinstance(config.cfg, SACConfig):
            raise ValueError(
                f"preset is {config.preset!r} and cfg a SACConfig, which holds a value of every field, so that nothing of the preset would "
                f"be left: give as cfg a dict of the fields that differ from the preset, or leave out preset"
            )
        as_json("env_kwargs", config.env_kwargs)
        if config.cfg is not None or not config.resume:
            settings = config.settings(config.num_envs)
            settings.seed = config.seed
            settings.validate()
        return config

    def settings(self, num_envs: int, stored: Mapping[str, object] | None = None) -> SACConfig:
        """Make the agent's configuration, so that the caller's stays as it is.

        Args:
            num_envs: environments of a timestep, of all ranks together.
            stored: configuration of the run that is resumed, which `cfg=None` takes; None for a new run.
        """
        if isinstance(self.cfg, SACConfig):
            return copy.deepcopy(self.cfg)
        if self.cfg is None and self.preset is None and stored is not None:
            return SACConfig.from_dict(stored)
        given = {} if self.cfg is None else self.cfg
        SACConfig.from_dict(given)  # which says what is wrong with it
        base = base_config(self.preset, self.network, num_envs)
        if "gradient_steps" in given:
            base.update_to_data = None  # the given one takes its place
        return SACConfig.from_dict({**base.to_dict(), **given})

    @property
    def task(self) -> str:
        """The environment's name."""
        made = self.env if self.vector_env is None else self.vector_env
        return made if isinstance(made, str) else description(made)

    @property
    def model_options(self) -> dict[str, object]:
        """Arguments of `default_models`, as `config.json` holds them."""
        return {option.name: _written(getattr(self, option.name)) for option in fields(self) if option.metadata["model"]}

    def to_dict(self) -> dict[str, object]:
        """Return the options as `config.json` holds them."""
        names = [option.name for option in fields(self) if option.metadata["stored"] and not option.metadata["model"]]
        return {**{name: _written(getattr(self, name)) for name in names}, "env": self.task, "models": self.model_options}


CHANGEABLE = frozenset(option.name for option in fields(TrainConfig) if option.metadata["changeable"])
"""Options that a run may be resumed with other values of."""
LATER = ("evaluation_max_steps", "preset", "network", "critic_hidden", "vector_env", "callbacks", "log")
"""Options that the first versions of `config.json` do not hold: they had the defaults."""
OTHER_NAMES: Mapping[str, str] = {
    **sac_config.OTHER_NAMES,
    "buffer_size": "memory_capacity",
    "env_id": "env",
    "n_envs": "num_envs",
    "replay_size": "memory_capacity",
    "total_timesteps": "steps",
}
"""Name in other libraries -> the option or field of the configuration that it is here."""


def options_of(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Read the options that flags can say from what `config.json` holds; environment and wrappers stay text.

    Raises:
        KeyError, TypeError: if one is missing, or is none.
    """
    found = {}
    for option in fields(TrainConfig):
        if option.metadata["stored"] and option.name not in ("seed", "cfg"):
            values = stored["models"] if option.metadata["model"] else stored
            value = values.get(option.name, option.default) if option.name in LATER else values[option.name]
            found[option.name] = tuple(value) if isinstance(value, list | tuple) else from_json(value)
    if found["vector_env"] is not None:
        del found["env"]  # which is the same name
    return found


def takes_options(options: Callable[P, TrainConfig]) -> Callable[[Callable[[TrainConfig], R]], Callable[P, R]]:
    """Decorate a function of the options so that it takes each as a keyword argument."""

    def decorate(function: Callable[[TrainConfig], R]) -> Callable[P, R]:
        @wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            require_options(function.__name__, kwargs)
            return function(options(*args, **kwargs))

        returned = inspect.signature(function).return_annotation
        vars(call)["__signature__"] = inspect.signature(options).replace(return_annotation=returned)
        return call

    return decorate


def require_options(function: str, names: Iterable[str]) -> None:
    """Refuse an argument that is no option, with what it is called here, or the nearest option or field of the configuration.

    Raises:
        TypeError: naming the function and the argument.
    """
    options, settings = TrainConfig.__dataclass_fields__, SACConfig.__dataclass_fields__
    for name in names:
        if name in options:
            continue
        meant = OTHER_NAMES.get(name, name)
        if meant not in options and meant not in settings:
            meant = "".join(difflib.get_close_matches(name, [*options, *settings], n=1))
        if not meant:
            raise TypeError(f"{function} got {name!r}: its arguments are {', '.join(options)}, and cfg holds the fields of SACConfig")
        where = f"cfg={{{meant!r}: ...}}" if meant in settings and meant not in options else f"{meant}=..."
        raise TypeError(f"{function} got {name!r}, expected an argument of its own or a field of SACConfig in cfg: did you mean {where}?")


def _written(value: object) -> object:
    if isinstance(value, SACConfig):
        return value.to_dict()
    if isinstance(value, Mapping):
        return as_json("env_kwargs", value)
    if isinstance(value, list | tuple):
        return [_written(entry) for entry in value]
    return value if value is None or isinstance(value, str | int | float | Path) else description(value)
