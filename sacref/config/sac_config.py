"""The configuration of an agent: every field with its default, its meaning and what it may hold.

A field is written once: its metadata holds the check that runs whenever the field is assigned, and again in `validate`.
"""

import difflib
import inspect
import json
import math
import os
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path, PurePath
from typing import Any, ClassVar, Literal, NamedTuple, TypeAlias, TypeVar, get_args

import numpy as np

from sacref.config.callables import MODULE, NotFoundError, UnnamedError, find, text_of
from sacref.spec.schedules import FACTORS, SCHEDULES, KLAdaptive

RewardsShaper: TypeAlias = Callable[[Any, int, int], Any]
"""`(rewards, timestep, timesteps) -> rewards`, both arrays of shape `(envs, 1)`."""

Scheduler: TypeAlias = str | Callable[..., Any]
"""A name of `sacref.spec.schedules` ("linear"), "module:name", or the callable itself; see `SACConfig.schedules`."""

Preprocessor: TypeAlias = str | Callable[..., Any]
"""A class with the protocol of `sacref.preprocessing`, or its name as "module:name"."""

Execution: TypeAlias = Literal["auto", "plain", "scan", "traced", "cuda_graph"]

ConfigT = TypeVar("ConfigT", bound="_Config")

_short = reprlib.Repr()
_short.maxstring = _short.maxother = 160
LARGEST_SEED = 2**32 - 1
"""What every library's generator takes without folding two seeds into one."""


PARTS = ("policy", "critic", "entropy")
"""What learns, in the order of whatever is one for each."""

HARMLESS = frozenset({*SCHEDULES, "sacref.preprocessing:RunningStandardScaler"})
"""Names of sacref's own that stand for a callable: what a stranger's file may name."""


class Schedule(NamedTuple):
    """A learning-rate schedule and its arguments, which the backend puts together."""

    function: Callable[..., Any]
    """Of `sacref.spec.schedules`: -> factor of the base rate. Any other is the backend's own: -> rate."""
    kwargs: Mapping[str, Any]


class ConfigError(ValueError):
    """A configuration that cannot be used; the message says what came, what was expected, and the fix."""


class CallableError(ConfigError):
    """A name of code in a configuration that was not imported: it may not be, or there is no such thing."""


class _ExpectedError(ValueError):
    """Raised by a check: what the field should have held. `_Config` adds the field's name and the value that came."""


Metadata: TypeAlias = dict[str, Callable[[Any], Any]]


def _checked(check: Callable[[Any], Any]) -> Metadata:
    return {"check": check}


def _plain(value: Any) -> Any:
    """A NumPy scalar as the Python scalar that it stands for."""
    return value.item() if isinstance(value, np.generic) else value


def _integer(low: int, high: int | None = None) -> Metadata:
    wanted = f"an integer >= {low}" if high is None else f"an integer from {low} to {high}"

    def check(value: Any) -> int:
        value = _plain(value)
        if not isinstance(value, int) or isinstance(value, bool) or value < low or (high is not None and value > high):
            raise _ExpectedError(wanted)
        return value

    return _checked(check)


def _as_number(value: Any, accept: Callable[[float], bool], wanted: str) -> float:
    value = _plain(value)
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise _ExpectedError(wanted)
    try:
        number = float(value)
    except OverflowError:
        raise _ExpectedError(wanted) from None
    if not (math.isfinite(number) and accept(number)):
        raise _ExpectedError(wanted)
    return number


def _number(wanted: str, accept: Callable[[float], bool] = lambda number: True) -> Metadata:
    return _checked(lambda value: _as_number(value, accept, wanted))


def _number_or_none(wanted: str, accept: Callable[[float], bool] = lambda number: True) -> Metadata:
    return _checked(lambda value: None if value is None else _as_number(value, accept, wanted))


def _flag() -> Metadata:
    def check(value: Any) -> bool:
        value = _plain(value)
        if not isinstance(value, bool):
            raise _ExpectedError("True or False")
        return value

    return _checked(check)


def _text() -> Metadata:
    def check(value: Any) -> str:
        text = os.fspath(value) if isinstance(value, os.PathLike) else _plain(value)
        if not isinstance(text, str):
            raise _ExpectedError("a string")
        return text

    return _checked(check)


def _interval() -> Metadata:
    def check(value: Any) -> int | str:
        value = _plain(value)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        if isinstance(value, str) and value == "auto":
            return value
        raise _ExpectedError('an integer number of timesteps (<= 0 disables) or "auto"')

    return _checked(check)


def _choice(*names: str) -> Metadata:
    def check(value: Any) -> str:
        value = _plain(value)
        if not isinstance(value, str) or value not in names:
            raise _ExpectedError(f"one of {', '.join(names)}")
        return value

    return _checked(check)


def _learning_rate() -> Metadata:
    wanted = "a finite number >= 0, or three of them in the order (policy, critic, entropy)"

    def check(value: Any) -> float | tuple[float, ...]:
        if isinstance(value, np.ndarray):
            value = value.tolist()
        if not isinstance(value, list | tuple):
            return _as_number(value, lambda number: number >= 0, wanted)
        if len(value) != 3:
            raise _ExpectedError(f"{wanted}; {len(value)} came")
        return tuple(_as_number(element, lambda number: number >= 0, wanted) for element in value)

    return _checked(check)


def _count_or_none(wanted: str) -> Metadata:
    integer = _integer(1)["check"]

    def check(value: Any) -> int | None:
        try:
            return None if value is None else int(integer(value))
        except _ExpectedError:
            raise _ExpectedError(wanted) from None

    return _checked(check)


def _three(value: Any, check: Callable[[Any], Any], wanted: str) -> Any:
    """`check` of one value, or of three in a list or tuple."""
    if not isinstance(value, list | tuple):
        return check(value)
    if len(value) != len(PARTS):
        raise _ExpectedError(f"{wanted}; {len(value)} came")
    return tuple(check(element) for element in value)


def _scheduler() -> Metadata:
    wanted = (
        f'one of {", ".join(SCHEDULES)}, a callable, its name as "module:name", or None; '
        "or three of those in the order (policy, critic, entropy)"
    )

    def one(value: Any) -> Any:
        value = _plain(value)
        if isinstance(value, str):
            found = SCHEDULES.get(value) or (_resolve(value) if ":" in value else None)
        elif value is None:
            return None
        else:
            found = value
        if not callable(found):
            raise _ExpectedError(wanted)
        return found

    return _checked(lambda value: _three(value, one, wanted))


def _preprocessor() -> Metadata:
    methods = ("update", "arrays", "set_arrays", "transform")

    def check(value: Any) -> Any:
        found = _resolve(value) if isinstance(value, str) else value
        if found is not None and not (callable(found) and all(callable(getattr(found, method, None)) for method in methods)):
            raise _ExpectedError(f'a class with the methods {", ".join(methods)}, its name as "module:name", or None')
        return found

    return _checked(check)


def _arguments(*, three: bool = False) -> Metadata:
    wanted = "a dict of keyword arguments" + (", or three of them in the order (policy, critic, entropy)" if three else "")

    def one(value: Any) -> dict[str, Any]:
        if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
            raise _ExpectedError(wanted)
        return {name: _as_json_has_it(argument) for name, argument in value.items()}

    return _checked((lambda value: _three(value, one, wanted)) if three else one)


def as_json(name: str, value: Any) -> Any:
    """What strict JSON can hold in the place of an argument: NumPy's scalars are Python's there, and tuples lists.

    Args:
        name: of the argument, for the message.

    Raises:
        TypeError: for what is, or holds, something else than numbers, text, paths, arrays, lists and dicts with keys of text.
    """
    value = _plain(value)
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        written = {key: as_json(f"{name}[{key!r}]", entry) for key, entry in value.items()}
        return {"is": "dict", "of": written} if written.keys() == {"is", "of"} else written
    if isinstance(value, list | tuple):
        return [as_json(f"{name}[{number}]", entry) for number, entry in enumerate(value)]
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        return {"is": "array", "of": [value.dtype.name, as_json(name, value.tolist())]}
    if isinstance(value, PurePath):
        return {"is": "path", "of": str(value)}
    if isinstance(value, float) and not math.isfinite(value):
        return {"is": "float", "of": str(value)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(
        f"{name} is {_short.repr(value)}, which cannot be written to a file: expected numbers, text, paths, NumPy arrays, or lists and "
        f"dicts of those"
    )


def from_json(value: Any) -> Any:
    """The inverse of `as_json`.

    Raises:
        ValueError, TypeError: if it is nothing that `as_json` writes.
    """
    if isinstance(value, list):
        return [from_json(entry) for entry in value]
    if not isinstance(value, dict):
        return value
    if value.keys() != {"is", "of"}:
        return {key: from_json(entry) for key, entry in value.items()}
    kind, of = value["is"], value["of"]
    if kind == "dict" and isinstance(of, dict):
        return {key: from_json(entry) for key, entry in of.items()}
    if kind == "path" and isinstance(of, str):
        return Path(of)
    if kind == "float" and of in ("inf", "-inf", "nan"):
        return float(of)
    if kind == "array" and isinstance(of, list) and len(of) == 2 and np.dtype(of[0]).kind in "biuf":
        return np.array(from_json(of[1]), of[0])
    raise ValueError(f"{_short.repr(value)} stands for no value")


def _as_json_has_it(value: Any) -> Any:
    """With lists in the place of tuples and arrays, and text in that of paths, so that what is written and read again is equal."""
    if isinstance(value, Mapping):
        return {name: _as_json_has_it(entry) for name, entry in value.items()}
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, list | tuple):
        return [_as_json_has_it(entry) for entry in value]
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def _require_arguments(path: str, function: Callable[..., Any], positional: int, kwargs: Mapping[str, Any]) -> None:
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


def _resolve(name: str) -> Any:
    if ":" not in name:
        raise _ExpectedError('a callable, or its name as "module:name"')
    try:
        return find(name)
    except NotFoundError as error:
        raise _ExpectedError(str(error)) from error


def _rewards_shaper() -> Metadata:
    def check(value: Any) -> Any:
        shaper = _resolve(value) if isinstance(value, str) else value
        if shaper is not None and not callable(shaper):
            raise _ExpectedError('a callable (rewards, timestep, timesteps) -> rewards, its name as "module:name", or None')
        return shaper

    return _checked(check)


def _name_of(path: str, function: Any) -> str:
    """The text by which a callable is found again.

    Raises:
        ConfigError: if the callable has no name that would find it again.
    """
    try:
        return text_of(function)
    except UnnamedError as error:
        raise ConfigError(
            f"{path} is {function!r}, which has no importable name ({error}), so it cannot be written: {MODULE} and assign that"
        ) from error


def _experiment() -> Metadata:
    def check(value: Any) -> "ExperimentConfig":
        if isinstance(value, Mapping):
            return ExperimentConfig.from_dict(value)
        if not isinstance(value, ExperimentConfig):
            raise _ExpectedError("an ExperimentConfig, or a dict of its fields")
        value.validate()
        return value

    return _checked(check)


class _Config:
    """What the two configurations share: checks on assignment, and the way to and from dicts and JSON."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def __setattr__(self, name: str, value: Any) -> None:
        cls = type(self)
        if name not in self.__dataclass_fields__:
            raise ConfigError(f"{cls.__name__} has no field {_unknown(cls, name)}")
        try:
            checked = self.__dataclass_fields__[name].metadata["check"](value)
        except _ExpectedError as expected:
            kind = CallableError if isinstance(expected.__cause__, NotFoundError) else ConfigError
            raise kind(f"{cls.__name__}.{name} is {_short.repr(value)}, expected {expected}") from expected.__cause__
        object.__setattr__(self, name, checked)

    def validate(self) -> None:
        """Check every field again, for what was changed inside a field (a dict's entry) and not by assignment.

        Raises:
            ConfigError: naming the field, what it holds, and what was expected.
        """
        for entry in fields(self):
            setattr(self, entry.name, getattr(self, entry.name))

    def to_dict(self) -> dict[str, Any]:
        """The fields as values that JSON can hold; a callable becomes its name, "module:name".

        Raises:
            ConfigError: if a callable has no importable name (a lambda, a local function, an instance).
        """
        return {entry.name: _written(f"{type(self).__name__}.{entry.name}", getattr(self, entry.name)) for entry in fields(self)}

    @classmethod
    def from_dict(cls: type[ConfigT], values: Mapping[str, Any], *, import_callables: bool = True) -> ConfigT:
        """A configuration from the fields in `values`; those left out keep their defaults.

        Args:
            values: field -> value; `experiment` may be a dict.
            import_callables: whether a name "module:name" may be imported, which runs that module. Pass False for a file that a stranger
                may have written: such a name is then refused.

        Raises:
            ConfigError: for an unknown key (with the nearest right name) and for a value that its field does not take.
        """
        return _filled(cls, values, import_callables)

    def to_json(self) -> str:
        """`to_dict` as JSON text, indented for reading."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls: type[ConfigT], text: str, *, import_callables: bool = True) -> ConfigT:
        """The inverse of `to_json`; for the arguments and the refusals see `from_dict`."""
        try:
            values = json.loads(text)
        except (ValueError, TypeError, RecursionError) as error:
            raise ConfigError(f"{cls.__name__}.from_json got text that is not JSON ({error}): pass what to_json wrote") from error
        return _filled(cls, values, import_callables)


def _filled(cls: type[ConfigT], values: Any, import_callables: bool) -> ConfigT:
    if not isinstance(values, Mapping):
        raise ConfigError(f"{cls.__name__} cannot be made of {_short.repr(values)}, expected a dict of its fields")
    cfg = cls()
    for name, value in values.items():
        if name not in cls.__dataclass_fields__:
            raise ConfigError(f"{cls.__name__} has no field {_unknown(cls, name)}")
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
            raise ConfigError(f"{cls.__name__}.{name} cannot be read ({error}): expected what to_json wrote, or plain values") from error
    return cfg


def _unknown(cls: type[_Config], name: Any) -> str:
    """The unknown name, and the nearest right one; a field of `experiment` is named with its path."""
    known = list(cls.__dataclass_fields__)
    if "experiment" in known:
        known += [f"experiment.{inner}" for inner in ExperimentConfig.__dataclass_fields__]
    near = difflib.get_close_matches(str(name), known, n=1)
    return f"{name!r}: did you mean {near[0]!r}?" if near else f"{name!r}: its fields are {', '.join(known)}"


def _written(path: str, value: Any) -> Any:
    if isinstance(value, _Config):
        return value.to_dict()
    if isinstance(value, tuple):
        return [_written(path, element) for element in value]
    if isinstance(value, dict):
        return _written_arguments(path, value)
    if callable(value):
        return next((name for name, schedule in SCHEDULES.items() if schedule is value), None) or _name_of(path, value)
    return value


def _written_arguments(path: str, kwargs: dict[str, Any]) -> Any:
    try:
        return json.loads(json.dumps(as_json(path, kwargs), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{path} is {kwargs}, which cannot be written ({error}): expected numbers, strings, lists and dicts") from error


CALLABLES = ("learning_rate_scheduler", "observation_preprocessor", "state_preprocessor", "rewards_shaper")
"""Fields that hold callables, which are written by their names."""


def _schedule(path: str, part: str, rate: float, function: Callable[..., Any], kwargs: Mapping[str, Any]) -> Schedule:
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


@dataclass(kw_only=True)
class ExperimentConfig(_Config):
    """Where and how often an agent writes what it tracks."""

    directory: str = field(default="", metadata=_text())
    """Folder that the runs' folders are made in; empty means `runs` in the working directory."""
    experiment_name: str = field(default="", metadata=_text())
    """Name of this run's folder; empty means the date and time."""
    write_interval: int | Literal["auto"] = field(default="auto", metadata=_interval())
    """Timesteps between two writes of the tracked data; auto is timesteps / 100, and <= 0 writes none."""
    checkpoint_interval: int | Literal["auto"] = field(default="auto", metadata=_interval())
    """Timesteps between two checkpoints; auto is timesteps / 10, and <= 0 writes none."""
    store_separately: bool = field(default=False, metadata=_flag())
    """Write each model to a file of its own in the checkpoint, in place of one file for all."""


@dataclass(kw_only=True)
class SACConfig(_Config):
    """Configuration of Soft Actor-Critic, the same on both backends.

    An ordinary mutable dataclass: `cfg = SACConfig(batch_size=256); cfg.learning_rate = 3e-4`. An assignment is checked at once, and
    what does not fit raises `ConfigError`. Timesteps count calls of the agent, vector steps.
    """

    experiment: ExperimentConfig = field(default_factory=ExperimentConfig, metadata=_experiment())
    """Where and how often the agent writes."""
    gradient_steps: int = field(default=1, metadata=_integer(0))
    """Gradient steps after each timestep; 0 collects without learning."""
    update_to_data: float | None = field(
        default=None,
        metadata=_number_or_none("a number >= 1e-6, or None for gradient_steps after each timestep", lambda number: number >= 1e-6),
    )
    """Gradient steps for each environment step, in the place of gradient_steps (then left at 1); fractions add up over the timesteps."""
    chunk: int = field(default=1, metadata=_integer(1))
    """Timesteps between two updates, which then take all their gradient steps at once; with 1, each action follows the newest update."""
    overlap: bool = field(default=False, metadata=_flag())
    """Choose the next action before the update that precedes it, so that JAX learns while the environments step; PyTorch gains nothing."""
    execution: Execution = field(default="auto", metadata=_choice(*get_args(Execution)))
    """How updates run: auto chooses for the device, plain is the simple twin; scan is JAX's, traced and cuda_graph are PyTorch's."""
    batch_size: int = field(default=64, metadata=_integer(1))
    """Transitions in the batch of one gradient step."""
    discount_factor: float = field(default=0.99, metadata=_number("a number from 0 to 1", lambda number: 0 <= number <= 1))
    """Gamma, the discount of the next step's value, from 0 to 1."""
    n_step: int = field(default=1, metadata=_integer(1))
    """Steps whose rewards the target sums, discounted, before it bootstraps; an episode's end cuts the sum short."""
    polyak: float = field(default=0.005, metadata=_number("a number from 0 to 1", lambda number: 0 <= number <= 1))
    """Share of the online critics in their targets' moving average; 0 keeps the targets, 1 copies."""
    target_subset: int | None = field(default=None, metadata=_count_or_none("an integer >= 1, or None for all target critics"))
    """Number of target critics, drawn anew for each gradient step, whose minimum is the target (REDQ); None takes all."""
    policy_value: Literal["min", "mean"] = field(default="min", metadata=_choice("min", "mean"))
    """What the policy maximises: the minimum of the critics, or their mean (REDQ, DroQ)."""
    policy_delay: int = field(default=1, metadata=_integer(1))
    """The policy and the entropy coefficient step at every policy_delay-th gradient step of the critics only."""
    sequence_length: int = field(default=32, metadata=_integer(1))
    """Only SAC_RNN: steps that are learned from in each sequence of a batch."""
    burn_in: int = field(default=0, metadata=_integer(0))
    """Only SAC_RNN: steps before those, which warm up the carries and are not learned from."""
    stored_carry: bool = field(default=True, metadata=_flag())
    """Only SAC_RNN: start the policy of a sequence from the carry that it had there; else from zeros, as the critics always do."""
    learning_rate: float | tuple[float, float, float] = field(default=1e-3, metadata=_learning_rate())
    """Adam's learning rate: one for all, or three for policy, critic and entropy; 0 leaves that part as it is."""
    learning_rate_scheduler: Scheduler | tuple[Scheduler | None, ...] | None = field(default=None, metadata=_scheduler())
    """Schedule of the learning rates, stepped once a gradient step: one for all, or three for policy, critic and entropy (JSON list).
    constant, linear, cosine, exponential, warm_up, piecewise, kl_adaptive, or the backend's own as module:name (in torch.optim, optax)."""
    learning_rate_scheduler_kwargs: dict[str, Any] | tuple[dict[str, Any], ...] = field(
        default_factory=dict, metadata=_arguments(three=True)
    )
    """Keyword arguments of the schedule: for all, or three for policy, critic and entropy (a flag takes JSON: an object, or a list)."""
    observation_preprocessor: Preprocessor | None = field(default=None, metadata=_preprocessor())
    """Class that standardises observations before the models see them, or its name, as sacref.preprocessing:RunningStandardScaler."""
    observation_preprocessor_kwargs: dict[str, Any] = field(default_factory=dict, metadata=_arguments())
    """Keyword arguments of the observation preprocessor, behind the space."""
    state_preprocessor: Preprocessor | None = field(default=None, metadata=_preprocessor())
    """The same for the states that the critics see."""
    state_preprocessor_kwargs: dict[str, Any] = field(default_factory=dict, metadata=_arguments())
    """Keyword arguments of the state preprocessor, behind the space."""
    random_timesteps: int = field(default=0, metadata=_integer(0))
    """Timesteps at the start whose actions are drawn uniformly from the action space."""
    learning_starts: int = field(default=0, metadata=_integer(0))
    """First timestep that is followed by gradient steps."""
    grad_norm_clip: float = field(default=0.0, metadata=_number("a finite number (<= 0 is off)"))
    """Largest global norm of the policy's and of the critics' gradients; <= 0 is off."""
    learn_entropy: bool = field(default=True, metadata=_flag())
    """Learn the entropy coefficient; else it stays at its initial value."""
    initial_entropy_value: float = field(default=0.2, metadata=_number("a finite number > 0", lambda number: number > 0))
    """Initial entropy coefficient, alpha, above 0."""
    target_entropy: float | None = field(default=None, metadata=_number_or_none("a finite number in nats, or None for -dim(A)"))
    """Entropy that alpha is steered to, in nats; None means target_entropy_per_dimension times the number of action dimensions."""
    target_entropy_per_dimension: float = field(default=-1.0, metadata=_number("a finite number in nats"))
    """Entropy per action dimension that alpha is steered to where target_entropy is None: -1 is the paper's, -0.5 jaxrl's and REDQ's."""
    reward_scale: float = field(default=1.0, metadata=_number("a finite number > 0", lambda number: number > 0))
    """What rewards are multiplied by, before the rewards shaper and before storing; above 0."""
    rewards_shaper: RewardsShaper | None = field(default=None, metadata=_rewards_shaper())
    """Function (rewards, timestep, timesteps) -> rewards applied before storing, or its name module:name."""
    mixed_precision: bool = field(default=False, metadata=_flag())
    """Compute the networks in `precision`; parameters, log-probabilities, targets, losses and the optimizers stay float32."""
    precision: Literal["bfloat16", "float16"] = field(default="bfloat16", metadata=_choice("bfloat16", "float16"))
    """What mixed precision computes in, and nothing without it; float16 scales its losses (dynamically), bfloat16 needs no scale."""
    seed: int = field(default=0, metadata=_integer(0, LARGEST_SEED))
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
        """Gradient steps for each timestep of `num_envs` environments."""
        return self.gradient_steps if self.update_to_data is None else self.update_to_data * num_envs

    def target_entropy_of(self, action_size: int) -> float:
        """Entropy that alpha is steered to, in nats, with so many action dimensions."""
        return self.target_entropy_per_dimension * action_size if self.target_entropy is None else self.target_entropy

    @property
    def schedules(self) -> dict[str, Schedule | None]:
        """Part (policy, critic, entropy) -> its learning-rate schedule, or None.

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
        for part, function, arguments, rate in zip(PARTS, functions, kwargs, self.learning_rates, strict=True):
            if function is None and arguments:
                raise ConfigError(f"{path}_kwargs has {arguments} for {part}, which has no schedule: set one, or leave them empty")
            learned = part != "entropy" or self.learn_entropy
            schedules[part] = _schedule(f"{path}_kwargs", part, rate, function, arguments) if function is not None and learned else None
        return schedules

    @property
    def scales_losses(self) -> bool:
        """Whether losses are scaled so that gradients do not vanish in the precision."""
        return self.mixed_precision and self.precision == "float16"

    @property
    def learning_rates(self) -> tuple[float, float, float]:
        """The learning rates of (policy, critic, entropy), one each."""
        rate = self.learning_rate
        return rate if isinstance(rate, tuple) else (rate, rate, rate)


def paper_config(num_envs: int = 1) -> SACConfig:
    """The settings of the paper, which `sacref.train`, the command line and the benchmarks start from.

    Haarnoja et al. 2018b (arXiv:1812.05905), appendix D, with 5,000 random environment steps before learning.

    Args:
        num_envs: environments stepped together, so that 5,000 environment steps take ceil(5000 / num_envs) timesteps.

    Raises:
        ConfigError: if `num_envs` is not an integer >= 1.
    """
    num_envs = _plain(num_envs)
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
