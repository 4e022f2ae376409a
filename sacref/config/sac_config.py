"""The configuration of an agent: every field with its default, its meaning and what it may hold.

A field is written once: its metadata holds the rule (`sacref.config.fields`) that is checked whenever the field is assigned, and again in
`validate`.
"""

import difflib
import inspect
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal, NamedTuple, Self, TypeAlias, TypeVar, get_args

import numpy as np

from sacref.config.callables import MODULE, NotFoundError, UnnamedError, text_of
from sacref.config.fields import (
    PARTS,
    ExpectedError,
    arguments,
    as_json,
    choice,
    flag,
    from_json,
    integer,
    integer_or,
    named,
    number,
    plain,
    rule,
    scheduler,
    shortened,
    text,
)
from sacref.spec.schedules import FACTORS, SCHEDULES, KLAdaptive

RewardsShaper: TypeAlias = Callable[[Any, int, int], Any]
"""`(rewards, timestep, timesteps) -> rewards`, both arrays of shape `(envs, 1)`."""

Scheduler: TypeAlias = str | Callable[..., Any]
"""A name of `sacref.spec.schedules` ("linear"), "module:name", or the callable itself; see `SACConfig.schedules`."""

Preprocessor: TypeAlias = str | Callable[..., Any]
"""A class with the protocol of `sacref.preprocessing`, or its name as "module:name"."""

Execution: TypeAlias = Literal["auto", "plain", "scan", "traced", "cuda_graph"]

ConfigT = TypeVar("ConfigT", bound="_Config")

LARGEST_SEED = 2**32 - 1
"""Largest seed that every library's generator takes without folding two seeds into one."""


HARMLESS = frozenset({*SCHEDULES, "sacref.preprocessing:RunningStandardScaler"})
"""Names of sacref's own callables, which a file that may not import others may name."""


class Schedule(NamedTuple):
    """A learning-rate schedule and its arguments, which the backend puts together."""

    function: Callable[..., Any]
    """One of `sacref.spec.schedules` gives the factor of the base rate; any other is the backend's own and gives the rate."""
    kwargs: Mapping[str, Any]


class ConfigError(ValueError):
    """A configuration that cannot be used; the message says what came, what was expected, and the fix."""


class CallableError(ConfigError):
    """A name of code in a configuration that was not imported: it may not be, or there is no such thing."""


def _require_arguments(path: str, function: Callable[..., object], positional: int, kwargs: Mapping[str, object]) -> None:
    """Refuse arguments that `function` does not take, or lacks, behind `positional` others.

    Raises:
        ConfigError: naming those that it takes.
    """
    try:
        signature = inspect.signature(function)
    except ValueError:  # what is written in C may have none
        return
    try:
        signature.bind(*[None] * positional, **kwargs)
    except TypeError as error:
        name = getattr(function, "__name__", repr(function))
        takes = [str(parameter.replace(annotation=parameter.empty)) for parameter in list(signature.parameters.values())[positional:]]
        raise ConfigError(f"{path} is {dict(kwargs)}, and {name} has {error}; expected {', '.join(takes) or 'none at all'}") from error


class _Config:
    """Base of the two configurations: checks on assignment, and the way to and from dicts and JSON."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def __new__(cls, **values: object) -> Self:
        for name in values:
            _require_field(cls, name)
        return super().__new__(cls)

    def __setattr__(self, name: str, value: object) -> None:
        cls = type(self)
        _require_field(cls, name)
        try:
            checked = self.__dataclass_fields__[name].metadata["check"](value)
        except ExpectedError as expected:
            kind = CallableError if isinstance(expected.__cause__, NotFoundError) else ConfigError
            raise kind(f"{cls.__name__}.{name} is {shortened.repr(value)}, expected {expected}") from expected.__cause__
        object.__setattr__(self, name, checked)

    def validate(self) -> None:
        """Check every field again, for what was changed inside a field (a dict's entry) and not by assignment.

        Raises:
            ConfigError: naming the field, what it holds, and what was expected.
        """
        for entry in fields(self):
            setattr(self, entry.name, getattr(self, entry.name))

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as values that JSON can hold; a callable becomes its name, "module:name".

        Raises:
            ConfigError: if a callable has no importable name (a lambda, a local function, an instance).
        """
        return {entry.name: _written(f"{type(self).__name__}.{entry.name}", getattr(self, entry.name)) for entry in fields(self)}

    @classmethod
    def from_dict(cls: type[ConfigT], values: Mapping[str, object], *, import_callables: bool = True) -> ConfigT:
        """Make a configuration from the fields in `values`; those left out keep their defaults.

        Args:
            values: field -> value; `experiment` may be a dict.
            import_callables: whether a name "module:name" may be imported, which runs that module. Pass False for a file that a stranger
                may have written: such a name is then refused.

        Raises:
            ConfigError: for an unknown key (with the nearest right name) and for a value that its field does not take.
        """
        if not isinstance(values, Mapping):
            raise ConfigError(f"{cls.__name__} cannot be made of {shortened.repr(values)}, expected a dict of its fields")
        cfg = cls()
        for name, value in values.items():
            _require_field(cls, name)
            if name in CALLABLES and not import_callables:
                for text in value if isinstance(value, list | tuple) else [value]:
                    if isinstance(text, str) and text not in HARMLESS:
                        raise CallableError(
                            f"{cls.__name__}.{name} is {text!r}, which names code to import, and importing is off here: "
                            f"set {name} to None, or load with import_callables=True (--import-callables) if you trust the source"
                        )
            try:
                setattr(cfg, name, from_json(value) if name.endswith("_kwargs") else value)
            except ConfigError:
                raise
            except (ValueError, TypeError) as error:
                raise ConfigError(
                    f"{cls.__name__}.{name} cannot be read ({error}): expected what to_json wrote, or plain values"
                ) from error
        return cfg

    def to_json(self) -> str:
        """Return `to_dict` as JSON text, indented for reading."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls: type[ConfigT], text: str, *, import_callables: bool = True) -> ConfigT:
        """Invert `to_json`; for the arguments and the refusals see `from_dict`."""
        try:
            values = json.loads(text)
        except (ValueError, TypeError, RecursionError) as error:
            raise ConfigError(f"{cls.__name__}.from_json got text that is not JSON ({error}): pass what to_json wrote") from error
        return cls.from_dict(values, import_callables=import_callables)


def _require_field(cls: type[_Config], name: object) -> None:
    """Refuse an unknown name, with what it is called here, or the nearest right one; a field of `experiment` is named with its path."""
    known = list(cls.__dataclass_fields__)
    if name in known:
        return
    if "experiment" in known:
        known += [f"experiment.{inner}" for inner in ExperimentConfig.__dataclass_fields__]
    meant = OTHER_NAMES.get(str(name))
    near = [meant] if meant in known else difflib.get_close_matches(str(name), known, n=1)
    expected = f"did you mean {near[0]!r}?" if near else f"its fields are {', '.join(known)}"
    raise ConfigError(f"{cls.__name__} has no field {name!r}: {expected}")


def _written(path: str, value: object) -> object:
    if isinstance(value, _Config):
        return value.to_dict()
    if isinstance(value, tuple):
        return [_written(path, element) for element in value]
    if isinstance(value, dict):
        try:
            return json.loads(json.dumps(as_json(path, value), allow_nan=False))
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"{path} is {value}, which cannot be written ({error}): expected numbers, strings, lists and dicts"
            ) from error
    if not callable(value):
        return value
    try:
        return next((name for name, schedule in SCHEDULES.items() if schedule is value), None) or text_of(value)
    except UnnamedError as error:
        raise ConfigError(
            f"{path} is {value!r}, which has no importable name ({error}), so it cannot be written: {MODULE} and assign that"
        ) from error


OTHER_NAMES: Mapping[str, str] = {
    "alpha": "initial_entropy_value",
    "discount": "discount_factor",
    "gamma": "discount_factor",
    "lr": "learning_rate",
    "start_steps": "random_timesteps",
    "tau": "polyak",
    "utd": "update_to_data",
    "utd_ratio": "update_to_data",
}
"""Name in other libraries -> the field that it is here."""
CALLABLES = ("learning_rate_scheduler", "observation_preprocessor", "state_preprocessor", "rewards_shaper")
"""Fields that hold callables, which are written by their names."""


def _schedule(path: str, part: str, rate: float, function: Callable[..., object], kwargs: Mapping[str, object]) -> Schedule:
    if function in SCHEDULES.values():
        is_factor = function in FACTORS.values()
        _require_arguments(path, function, 1 if is_factor else 0, kwargs)
        try:
            made = function(np.asarray(0.0), **kwargs) if is_factor else function(**kwargs)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{path} is {dict(kwargs)}: {error}") from error
        if isinstance(made, KLAdaptive) and not made.min_lr <= rate <= made.max_lr:
            raise ConfigError(
                f"SACConfig.learning_rate is {rate} for {part}, expected from {made.min_lr} to {made.max_lr}, between which kl_adaptive "
                f"moves it: change it, or min_lr or max_lr in learning_rate_scheduler_kwargs, or give {part} no schedule"
            )
    return Schedule(function, kwargs)


_INTERVAL = integer_or('an integer number of timesteps (<= 0 disables) or "auto"', None, "auto")
_RATES = "a finite number >= 0, or three of them in the order (policy, critic, entropy)"
_METHODS = ("update", "arrays", "set_arrays", "transform")
_PREPROCESSOR = named(f'a class with the methods {", ".join(_METHODS)}, its name as "module:name", or None', *_METHODS)
_REWARDS_SHAPER = named('a callable (rewards, timestep, timesteps) -> rewards, its name as "module:name", or None')


@dataclass(kw_only=True)
class ExperimentConfig(_Config):
    """Directory and intervals of an agent's metrics and checkpoints."""

    directory: str = field(default="", metadata=text())
    """Folder that the runs' folders are made in; empty means `runs` in the working directory."""
    experiment_name: str = field(default="", metadata=text())
    """Name of this run's folder; empty means the date and time."""
    write_interval: int | Literal["auto"] = field(default="auto", metadata=_INTERVAL)
    """Timesteps between two writes of the tracked data; auto is timesteps / 100, and <= 0 writes none."""
    checkpoint_interval: int | Literal["auto"] = field(default="auto", metadata=_INTERVAL)
    """Timesteps between two checkpoints; auto is timesteps / 10, and <= 0 writes none."""
    store_separately: bool = field(default=False, metadata=flag())
    """Write each model to a file of its own in the checkpoint, in place of one file for all."""


def _experiment(value: object) -> object:
    if isinstance(value, ExperimentConfig):
        value.validate()
    return ExperimentConfig.from_dict(value) if isinstance(value, Mapping) else value


_EXPERIMENT = rule("an ExperimentConfig, or a dict of its fields", lambda value: isinstance(value, ExperimentConfig), read=_experiment)


@dataclass(kw_only=True)
class SACConfig(_Config):
    """Configuration of Soft Actor-Critic, the same on both backends.

    An ordinary mutable dataclass: `cfg = SACConfig(batch_size=256); cfg.learning_rate = 3e-4`. An assignment is checked at once, and
    what does not fit raises `ConfigError`. Timesteps count calls of the agent, vector steps.
    """

    experiment: ExperimentConfig = field(default_factory=ExperimentConfig, metadata=_EXPERIMENT)
    """Directory and intervals of what the agent writes."""
    gradient_steps: int = field(default=1, metadata=integer(0))
    """Gradient steps after each timestep; 0 collects without learning."""
    update_to_data: float | None = field(
        default=None,
        metadata=number("a number >= 1e-6, or None for gradient_steps after each timestep", lambda value: value >= 1e-6, none=True),
    )
    """Gradient steps for each environment step, instead of gradient_steps (then left at 1); fractions add up over the timesteps."""
    chunk: int = field(default=1, metadata=integer(1))
    """Timesteps between two updates, which then take all their gradient steps at once; with 1, each action follows the newest update."""
    overlap: bool = field(default=False, metadata=flag())
    """Choose the next action before the update that precedes it, so that JAX learns while the environments step; PyTorch gains nothing."""
    execution: Execution = field(default="auto", metadata=choice(*get_args(Execution)))
    """Execution of updates: auto chooses for the device, plain is the simple twin; scan is JAX's, traced and cuda_graph are PyTorch's."""
    batch_size: int = field(default=64, metadata=integer(1))
    """Transitions in the batch of one gradient step."""
    discount_factor: float = field(default=0.99, metadata=number("a number from 0 to 1", lambda value: 0 <= value <= 1))
    """Gamma, the discount of the next step's value, from 0 to 1."""
    n_step: int = field(default=1, metadata=integer(1))
    """Steps whose rewards the target sums, discounted, before it bootstraps; an episode's end cuts the sum short."""
    polyak: float = field(default=0.005, metadata=number("a number from 0 to 1", lambda value: 0 <= value <= 1))
    """Share of the online critics in their targets' moving average; 0 keeps the targets, 1 copies."""
    target_subset: int | None = field(default=None, metadata=integer_or("an integer >= 1, or None for all target critics", 1))
    """Number of target critics, drawn for each gradient step, whose minimum is the target (REDQ); None takes all."""
    policy_value: Literal["min", "mean"] = field(default="min", metadata=choice("min", "mean"))
    """The policy maximises the minimum of the critics, or their mean (REDQ, DroQ)."""
    policy_delay: int = field(default=1, metadata=integer(1))
    """The policy and the entropy coefficient step at every policy_delay-th gradient step of the critics only."""
    sequence_length: int = field(default=32, metadata=integer(1))
    """Only SAC_RNN: steps that are learned from in each sequence of a batch."""
    burn_in: int = field(default=0, metadata=integer(0))
    """Only SAC_RNN: steps before those, which warm up the carries and are not learned from."""
    stored_carry: bool = field(default=True, metadata=flag())
    """Only SAC_RNN: start the policy of a sequence from the carry that it had there; else from its initial one, as critics always do."""
    learning_rate: float | tuple[float, float, float] = field(default=1e-3, metadata=number(_RATES, lambda rate: rate >= 0, three=True))
    """Adam's learning rate: one for all, or three for policy, critic and entropy; 0 leaves that part as it is."""
    learning_rate_scheduler: Scheduler | tuple[Scheduler | None, ...] | None = field(default=None, metadata=scheduler())
    """Schedule of the learning rates, stepped once a gradient step: one for all, or three for policy, critic and entropy (JSON list).
    constant, linear, cosine, exponential, warm_up, piecewise, kl_adaptive, or the backend's own as module:name (in torch.optim, optax)."""
    learning_rate_scheduler_kwargs: dict[str, object] | tuple[dict[str, object], ...] = field(
        default_factory=dict, metadata=arguments(three=True)
    )
    """Keyword arguments of the schedule: for all, or three for policy, critic and entropy (a flag takes JSON: an object, or a list)."""
    observation_preprocessor: Preprocessor | None = field(default=None, metadata=_PREPROCESSOR)
    """Class that standardises observations before the models see them, or its name, as sacref.preprocessing:RunningStandardScaler."""
    observation_preprocessor_kwargs: dict[str, object] = field(default_factory=dict, metadata=arguments())
    """Keyword arguments of the observation preprocessor, behind the space."""
    state_preprocessor: Preprocessor | None = field(default=None, metadata=_PREPROCESSOR)
    """Class that standardises the states that the critics see, or its name."""
    state_preprocessor_kwargs: dict[str, object] = field(default_factory=dict, metadata=arguments())
    """Keyword arguments of the state preprocessor, behind the space."""
    random_timesteps: int = field(default=0, metadata=integer(0))
    """Timesteps at the start whose actions are drawn uniformly from the action space."""
    learning_starts: int = field(default=0, metadata=integer(0))
    """First timestep that is followed by gradient steps."""
    grad_norm_clip: float = field(default=0.0, metadata=number("a finite number (<= 0 is off)"))
    """Largest global norm of the policy's and of the critics' gradients; <= 0 is off."""
    learn_entropy: bool = field(default=True, metadata=flag())
    """Learn the entropy coefficient; else it stays at its initial value."""
    initial_entropy_value: float = field(default=0.2, metadata=number("a finite number > 0", lambda value: value > 0))
    """Initial entropy coefficient, alpha, above 0."""
    target_entropy: float | None = field(default=None, metadata=number("a finite number in nats, or None for -dim(A)", none=True))
    """Entropy that alpha is steered to, in nats; None means target_entropy_per_dimension times the number of action dimensions."""
    target_entropy_per_dimension: float = field(default=-1.0, metadata=number("a finite number in nats"))
    """Entropy per action dimension that alpha is steered to where target_entropy is None: -1 is the paper's, -0.5 jaxrl's and REDQ's."""
    reward_scale: float = field(default=1.0, metadata=number("a finite number > 0", lambda value: value > 0))
    """Factor of the rewards, before the rewards shaper and before storing; above 0."""
    rewards_shaper: RewardsShaper | None = field(default=None, metadata=_REWARDS_SHAPER)
    """Function (rewards, timestep, timesteps) -> rewards applied before storing, or its name module:name. SAC_RNN calls it in evaluations,
    too, whose previous rewards the policy reads: it is to keep no state."""
    mixed_precision: bool = field(default=False, metadata=flag())
    """Compute the networks in `precision`; parameters, log-probabilities, targets, losses and the optimizers stay float32."""
    precision: Literal["bfloat16", "float16"] = field(default="bfloat16", metadata=choice("bfloat16", "float16"))
    """Precision of mixed precision, unused without it; float16 scales its losses (dynamically), bfloat16 needs no scale."""
    seed: int = field(default=0, metadata=integer(0, LARGEST_SEED))
    """Seed that all random streams of the agent are derived from."""

    def validate(self) -> None:
        """Check every field again, and those that exclude each other.

        Raises:
            ConfigError: naming the field, what it holds, and what was expected.
        """
        super().validate()
        if self.update_to_data is not None and self.gradient_steps != 1:
            raise ConfigError(
                f"SACConfig.update_to_data is {self.update_to_data} and gradient_steps {self.gradient_steps}, expected one of them: "
                f"leave gradient_steps at 1, or update_to_data at None"
            )
        for name in ("observation_preprocessor", "state_preprocessor"):
            preprocessor, kwargs = getattr(self, name), getattr(self, f"{name}_kwargs")
            if preprocessor is not None:
                _require_arguments(f"SACConfig.{name}_kwargs", preprocessor, 1, kwargs)
            elif kwargs:
                raise ConfigError(f"SACConfig.{name}_kwargs is {kwargs} and {name} None: set {name}, or leave {name}_kwargs empty")
        _ = self.schedules

    def gradient_steps_per_timestep(self, num_envs: int) -> float:
        """Return the gradient steps for each timestep of `num_envs` environments."""
        return self.gradient_steps if self.update_to_data is None else self.update_to_data * num_envs

    def target_entropy_of(self, action_size: int) -> float:
        """Return the entropy that alpha is steered to, in nats, with so many action dimensions."""
        return self.target_entropy_per_dimension * action_size if self.target_entropy is None else self.target_entropy

    @property
    def schedules(self) -> dict[str, Schedule | None]:
        """Map policy, critic and entropy to their learning-rate schedules, or None.

        Raises:
            ConfigError: for arguments that a schedule does not take, and for a schedule or arguments that nothing would read.
        """
        path, given, kwargs = "SACConfig.learning_rate_scheduler", self.learning_rate_scheduler, self.learning_rate_scheduler_kwargs
        functions: Any = given if isinstance(given, tuple) else (given,) * len(PARTS)
        if isinstance(given, tuple) and given[-1] is not None and not self.learn_entropy:
            raise ConfigError(f"{path} has one for entropy and learn_entropy is False: make it None, since nothing is learned there")
        if not isinstance(kwargs, tuple):
            if kwargs and not any(functions):
                raise ConfigError(f"{path}_kwargs is {kwargs} and {path.partition('.')[2]} None: set one, or leave the arguments empty")
            kwargs = tuple({} if function is None else kwargs for function in functions)
        schedules: dict[str, Schedule | None] = {}
        for part, function, own, rate in zip(PARTS, functions, kwargs, self.learning_rates, strict=True):
            if function is None and own:
                raise ConfigError(f"{path}_kwargs has {own} for {part}, which has no schedule: set one, or leave them empty")
            learned = part != "entropy" or self.learn_entropy
            schedules[part] = _schedule(f"{path}_kwargs", part, rate, function, own) if function is not None and learned else None
        return schedules

    @property
    def scales_losses(self) -> bool:
        """Return whether losses are scaled so that gradients do not vanish in the precision."""
        return self.mixed_precision and self.precision == "float16"

    @property
    def learning_rates(self) -> tuple[float, float, float]:
        """Return the learning rates of (policy, critic, entropy), one each."""
        rate = self.learning_rate
        return rate if isinstance(rate, tuple) else (rate, rate, rate)


def paper_config(num_envs: int = 1) -> SACConfig:
    """Return the settings of the paper, which `sacref.train`, the command line and the benchmarks start from.

    Haarnoja et al. 2018b (arXiv:1812.05905), appendix D, with 5,000 random environment steps before learning.

    Args:
        num_envs: environments stepped together, so that 5,000 environment steps take ceil(5000 / num_envs) timesteps.

    Raises:
        ConfigError: if `num_envs` is not an integer >= 1.
    """
    num_envs = plain(num_envs)
    if not isinstance(num_envs, int) or isinstance(num_envs, bool) or num_envs < 1:
        raise ConfigError(f"paper_config: num_envs is {num_envs!r}, expected an integer >= 1")
    first_steps = math.ceil(5000 / num_envs)
    return SACConfig(
        batch_size=256,
        learning_rate=3e-4,
        random_timesteps=first_steps,
        learning_starts=first_steps,
        initial_entropy_value=1.0,
        # A gradient step for each environment step, however many of those are taken together.
        update_to_data=None if num_envs == 1 else 1.0,
    )
