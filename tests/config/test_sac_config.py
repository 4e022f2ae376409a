"""The configuration: its contract of names and defaults, what it refuses, and the way to a dict or JSON and back."""

import dataclasses
import functools
import inspect
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sacref.config import HARMLESS, ConfigError, ExperimentConfig, SACConfig, Schedule, as_json, from_json, paper_config
from sacref.spec.schedules import SCHEDULES, KLAdaptive, linear

DEFAULTS = {
    "experiment": {
        "directory": "",
        "experiment_name": "",
        "write_interval": "auto",
        "checkpoint_interval": "auto",
        "store_separately": False,
    },
    "gradient_steps": 1,
    "update_to_data": None,
    "chunk": 1,
    "overlap": False,
    "execution": "auto",
    "batch_size": 64,
    "discount_factor": 0.99,
    "n_step": 1,
    "polyak": 0.005,
    "target_subset": None,
    "policy_value": "min",
    "policy_delay": 1,
    "sequence_length": 32,
    "burn_in": 0,
    "stored_carry": True,
    "learning_rate": 1e-3,
    "learning_rate_scheduler": None,
    "learning_rate_scheduler_kwargs": {},
    "observation_preprocessor": None,
    "observation_preprocessor_kwargs": {},
    "state_preprocessor": None,
    "state_preprocessor_kwargs": {},
    "random_timesteps": 0,
    "learning_starts": 0,
    "grad_norm_clip": 0,
    "learn_entropy": True,
    "initial_entropy_value": 0.2,
    "target_entropy": None,
    "target_entropy_per_dimension": -1.0,
    "reward_scale": 1.0,
    "rewards_shaper": None,
    "mixed_precision": False,
    "precision": "bfloat16",
    "seed": 0,
}


def halve(rewards: Any, timestep: int, timesteps: int) -> Any:
    """A rewards shaper that has a name."""
    return rewards / 2


class Scaler:
    """A preprocessor by its methods, no more."""

    def __init__(self, space: Any, *, clip: float = 10.0) -> None: ...
    def update(self, rows: Any) -> None: ...
    def arrays(self) -> Any: ...
    def set_arrays(self, arrays: Any) -> None: ...
    def transform(self, arrays: Any, values: Any) -> Any: ...


def step_schedule(step: Any) -> Any:
    """A schedule that has a name: step -> rate."""
    return 1e-3 / (1 + step)


# importlib mode gives a test's module a name under which it is in sys.modules, so `halve` can be found again.
HALVE = f"{__name__}:halve"
SCALER = f"{__name__}:Scaler"
STEP_SCHEDULE = f"{__name__}:step_schedule"


def test_names_and_defaults_are_the_contract() -> None:
    assert SACConfig().to_dict() == DEFAULTS
    assert list(SACConfig().to_dict()) == list(DEFAULTS)


@pytest.mark.parametrize(
    ("name", "value", "stored"),
    [
        ("gradient_steps", 0, 0),
        ("gradient_steps", np.int64(4), 4),
        ("update_to_data", 2, 2.0),
        ("update_to_data", None, None),
        ("chunk", np.int64(64), 64),
        ("overlap", np.bool_(True), True),
        ("execution", np.str_("plain"), "plain"),
        ("batch_size", 1, 1),
        ("batch_size", np.uint8(200), 200),
        ("discount_factor", 0, 0.0),
        ("discount_factor", 1, 1.0),
        ("discount_factor", np.float64(0.5), 0.5),
        ("polyak", 0, 0.0),
        ("polyak", 1, 1.0),
        ("learning_rate", 0, 0.0),
        ("learning_rate", np.float32(0.5), 0.5),
        ("learning_rate", [1, 2.5, np.float64(3)], (1.0, 2.5, 3.0)),
        ("learning_rate", np.array([0.5, 0.25, 0.125]), (0.5, 0.25, 0.125)),
        ("n_step", np.int64(3), 3),
        ("target_subset", np.int64(2), 2),
        ("target_subset", None, None),
        ("policy_value", np.str_("mean"), "mean"),
        ("policy_delay", np.uint8(2), 2),
        ("sequence_length", 1, 1),
        ("burn_in", np.int64(0), 0),
        ("stored_carry", np.bool_(False), False),
        ("learning_rate_scheduler", "kl_adaptive", KLAdaptive),
        ("learning_rate_scheduler", np.str_("linear"), linear),
        ("learning_rate_scheduler", STEP_SCHEDULE, step_schedule),
        ("learning_rate_scheduler", step_schedule, step_schedule),
        ("learning_rate_scheduler", ["linear", None, STEP_SCHEDULE], (linear, None, step_schedule)),
        ("learning_rate_scheduler_kwargs", {"steps": np.int64(3)}, {"steps": 3}),
        ("learning_rate_scheduler_kwargs", {"boundaries": (1, 2), "factors": np.ones(2)}, {"boundaries": [1, 2], "factors": [1.0, 1.0]}),
        ("learning_rate_scheduler_kwargs", {"max_lr": np.float32(np.inf), "table": Path("a/b")}, {"max_lr": math.inf, "table": "a/b"}),
        ("learning_rate_scheduler_kwargs", [{"steps": 3}, {}, {}], ({"steps": 3}, {}, {})),
        ("observation_preprocessor", Scaler, Scaler),
        ("observation_preprocessor", SCALER, Scaler),
        ("observation_preprocessor_kwargs", {"clip": np.float32(0.5)}, {"clip": 0.5}),
        ("state_preprocessor", SCALER, Scaler),
        ("state_preprocessor_kwargs", {"clip": 5.0}, {"clip": 5.0}),
        ("reward_scale", np.float32(0.5), 0.5),
        ("random_timesteps", 0, 0),
        ("learning_starts", 10**6, 10**6),
        ("grad_norm_clip", -1, -1.0),
        ("grad_norm_clip", 0.5, 0.5),
        ("learn_entropy", np.bool_(False), False),
        ("initial_entropy_value", 1, 1.0),
        ("target_entropy", -6, -6.0),
        ("target_entropy", None, None),
        ("mixed_precision", np.bool_(True), True),
        ("precision", "float16", "float16"),
        ("seed", 2**32 - 1, 2**32 - 1),
        ("experiment.directory", Path("runs/here"), "runs/here"),
        ("experiment.experiment_name", np.str_("name"), "name"),
        ("experiment.write_interval", -1, -1),
        ("experiment.write_interval", "auto", "auto"),
        ("experiment.checkpoint_interval", np.int32(7), 7),
        ("experiment.store_separately", True, True),
    ],
)
def test_accepted_values_are_stored_as_plain_python(name: str, value: Any, stored: Any) -> None:
    cfg = SACConfig()
    owner, field = (cfg.experiment, name.removeprefix("experiment.")) if "." in name else (cfg, name)
    setattr(owner, field, value)
    assert getattr(owner, field) == stored
    assert type(getattr(owner, field)) is type(stored)
    if name == "learning_rate" and isinstance(stored, tuple):
        assert [type(element) for element in getattr(owner, field)] == [float, float, float]


def test_arguments_that_json_has_no_numbers_for_survive_it() -> None:
    values: Any = {"clip": math.inf, "file": Path("/a"), "nested": {"is": [-math.inf], "of": {"is": "float", "of": "inf"}}}
    cfg = SACConfig(observation_preprocessor_kwargs=values)
    read = SACConfig.from_json(cfg.to_json())
    assert read.observation_preprocessor_kwargs == cfg.observation_preprocessor_kwargs
    assert read.observation_preprocessor_kwargs == {**values, "file": "/a"}
    assert from_json(json.loads(json.dumps(as_json("values", values), allow_nan=False))) == values
    with pytest.raises(ConfigError, match=r"observation_preprocessor_kwargs cannot be read .*stands for no value"):
        SACConfig.from_dict({"observation_preprocessor_kwargs": {"clip": {"is": "number", "of": "inf"}}})
    with pytest.raises(TypeError, match=r"values\['a'\]\[1\] is 1j, which cannot be written to a file"):
        as_json("values", {"a": [1, 1j]})


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("gradient_steps", -1, "integer >= 0"),
        ("gradient_steps", True, "integer >= 0"),
        ("gradient_steps", 1.0, "integer >= 0"),
        ("update_to_data", 0, "a number >= 1e-6, or None"),
        ("update_to_data", 1e-7, "a number >= 1e-6, or None"),
        ("chunk", 0, "integer >= 1"),
        ("overlap", 1, "True or False"),
        ("execution", "fast", "one of auto, plain, scan, traced, cuda_graph"),
        ("execution", None, "one of auto, plain, scan, traced, cuda_graph"),
        ("batch_size", 0, "integer >= 1"),
        ("batch_size", np.bool_(True), "integer >= 1"),
        ("batch_size", "64", "integer >= 1"),
        ("batch_size", None, "integer >= 1"),
        ("discount_factor", -0.01, "from 0 to 1"),
        ("discount_factor", 1.01, "from 0 to 1"),
        ("discount_factor", math.nan, "from 0 to 1"),
        ("discount_factor", True, "from 0 to 1"),
        ("polyak", -1e-9, "from 0 to 1"),
        ("polyak", 1.01, "from 0 to 1"),
        ("polyak", "0.5", "from 0 to 1"),
        ("learning_rate", -1e-3, "finite number >= 0"),
        ("learning_rate", math.inf, "finite number >= 0"),
        pytest.param("learning_rate", 10**400, "finite number >= 0", id="learning_rate-huge"),
        ("learning_rate", False, "finite number >= 0"),
        ("learning_rate", (1e-3, 1e-3), r"\(policy, critic, entropy\); 2 came"),
        ("learning_rate", [1e-3] * 4, r"\(policy, critic, entropy\); 4 came"),
        ("learning_rate", (1e-3, -1.0, 1e-3), "finite number >= 0"),
        ("learning_rate", (1e-3, [1e-3], 1e-3), "finite number >= 0"),
        ("random_timesteps", -1, "integer >= 0"),
        ("learning_starts", 2.5, "integer >= 0"),
        ("grad_norm_clip", math.inf, "finite number"),
        ("learn_entropy", 1, "True or False"),
        ("initial_entropy_value", 0, "finite number > 0"),
        ("initial_entropy_value", math.inf, "finite number > 0"),
        ("target_entropy", math.nan, "finite number in nats, or None"),
        ("target_entropy", "auto", "finite number in nats, or None"),
        ("rewards_shaper", 3, "a callable"),
        ("rewards_shaper", "halve", '"module:name"'),
        ("rewards_shaper", "sacref.config:nothing_of_this_name", "something that exists"),
        ("rewards_shaper", "sacref.no_such_module:halve", "something that can be imported"),
        ("rewards_shaper", "math:pi", "a callable"),
        ("n_step", 0, "integer >= 1"),
        ("target_subset", 0, "an integer >= 1, or None for all target critics"),
        ("target_subset", 1.0, "an integer >= 1, or None for all target critics"),
        ("policy_value", "max", "one of min, mean"),
        ("policy_delay", 0, "integer >= 1"),
        ("sequence_length", 0, "integer >= 1"),
        ("burn_in", -1, "integer >= 0"),
        ("stored_carry", 1, "True or False"),
        ("reward_scale", 0, "a finite number > 0"),
        ("reward_scale", math.inf, "a finite number > 0"),
        ("learning_rate_scheduler", "linaer", "one of constant, linear, cosine, exponential, warm_up, piecewise, kl_adaptive, a callable"),
        ("learning_rate_scheduler", 3, "one of constant"),
        ("learning_rate_scheduler", "math:pi", "one of constant"),
        ("learning_rate_scheduler", "sacref.config:nothing_of_this_name", "something that exists"),
        ("learning_rate_scheduler", ("linear", "linear"), r"in the order \(policy, critic, entropy\); 2 came"),
        ("learning_rate_scheduler", ("linear", None, 3), "one of constant"),
        ("learning_rate_scheduler_kwargs", "steps=3", "a dict of keyword arguments, or three of them"),
        ("learning_rate_scheduler_kwargs", {3: 4}, "a dict of keyword arguments"),
        ("learning_rate_scheduler_kwargs", ({}, {}), r"in the order \(policy, critic, entropy\); 2 came"),
        ("learning_rate_scheduler_kwargs", ({}, {}, None), "a dict of keyword arguments"),
        ("observation_preprocessor", halve, "a class with the methods update, arrays, set_arrays, transform, its name"),
        ("observation_preprocessor", "RunningStandardScaler", '"module:name"'),
        ("observation_preprocessor_kwargs", [{}, {}, {}], "a dict of keyword arguments"),
        ("state_preprocessor", "math:hypot", "a class with the methods update"),
        ("state_preprocessor_kwargs", None, "a dict of keyword arguments"),
        ("mixed_precision", 0, "True or False"),
        ("precision", "float32", "one of bfloat16, float16"),
        ("seed", -1, "integer from 0 to 4294967295"),
        ("seed", 2**32, "integer from 0 to 4294967295"),
        ("experiment", None, "an ExperimentConfig, or a dict"),
        ("experiment.directory", 3, "a string"),
        ("experiment.experiment_name", None, "a string"),
        ("experiment.write_interval", "never", 'or "auto"'),
        ("experiment.write_interval", 2.0, 'or "auto"'),
        ("experiment.write_interval", True, 'or "auto"'),
        ("experiment.checkpoint_interval", None, 'or "auto"'),
        ("experiment.store_separately", "yes", "True or False"),
    ],
)
def test_bad_values_are_refused_and_change_nothing(name: str, value: Any, expected: str) -> None:
    cfg = SACConfig()
    owner, field = (cfg.experiment, name.removeprefix("experiment.")) if "." in name else (cfg, name)
    with pytest.raises(ConfigError, match=rf"{type(owner).__name__}\.{field} is .*{expected}"):
        setattr(owner, field, value)
    assert cfg == SACConfig()
    with pytest.raises(ConfigError, match=expected):
        inspect.unwrap(type(owner).__init__)(owner, **{field: value})  # unwrapped: the tests' own type checks come first otherwise
    with pytest.raises(ConfigError, match=expected):
        SACConfig.from_dict({"experiment": {field: value}} if "." in name else {field: value})


def test_every_field_refuses_an_object_of_no_meaning() -> None:
    for owner in (SACConfig(), ExperimentConfig()):
        for field in dataclasses.fields(owner):
            with pytest.raises(ConfigError, match=rf"\.{field.name} is <object"):
                setattr(owner, field.name, object())


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("batchsize", "'batch_size'"),
        ("discount", "'discount_factor'"),
        ("learning_rates_", "'learning_rate'"),
        ("write_interval", "'experiment.write_interval'"),
        ("gamma", "'discount_factor'"),
        ("tau", "'polyak'"),
        ("huber", "its fields are experiment, gradient_steps"),
    ],
)
def test_unknown_names_are_refused_with_the_nearest_right_one(name: str, nearest: str) -> None:
    cfg, given = SACConfig(), dict[str, Any]({name: 1})
    with pytest.raises(ConfigError, match=rf"SACConfig has no field '{name}': .*{nearest}"):
        setattr(cfg, name, 1)
    with pytest.raises(ConfigError, match=rf"SACConfig has no field '{name}': .*{nearest}"):
        SACConfig.from_dict(given)
    with pytest.raises(ConfigError, match=rf"SACConfig has no field '{name}': .*{nearest}"):
        SACConfig(**given)
    with pytest.raises(ConfigError, match="ExperimentConfig has no field 'write_intervall': did you mean 'write_interval'"):
        SACConfig.from_dict({"experiment": {"write_intervall": 1}})
    assert not hasattr(cfg, name)


def test_experiment_takes_a_dict() -> None:
    cfg = SACConfig.from_dict({"experiment": {"write_interval": 5}})
    assert cfg.experiment == ExperimentConfig(write_interval=5)
    assert SACConfig().experiment is not SACConfig().experiment


def test_validate_sees_what_was_changed_inside_a_field() -> None:
    cfg = SACConfig()
    cfg.validate()
    assert isinstance(cfg.learning_rate_scheduler_kwargs, dict)
    cfg.learning_rate_scheduler_kwargs["gamma"] = 0.9
    with pytest.raises(ConfigError, match=r"learning_rate_scheduler_kwargs is {'gamma': 0.9} and learning_rate_scheduler None"):
        cfg.validate()
    cfg = SACConfig()
    vars(cfg.experiment)["write_interval"] = "never"
    with pytest.raises(ConfigError, match="write_interval is 'never'"):
        cfg.validate()


def test_learning_rates_are_one_each() -> None:
    assert SACConfig(learning_rate=0.5).learning_rates == (0.5, 0.5, 0.5)
    assert SACConfig(learning_rate=(1.0, 2.0, 3.0)).learning_rates == (1.0, 2.0, 3.0)


LINEAR = Schedule(linear, {"steps": 10})


@pytest.mark.parametrize(
    ("given", "kwargs", "schedules"),
    [
        (None, {}, (None, None, None)),
        ("linear", {"steps": 10}, (LINEAR, LINEAR, LINEAR)),
        (("linear", None, "linear"), {"steps": 10}, (LINEAR, None, LINEAR)),
        (("kl_adaptive", None, "linear"), ({}, {}, {"steps": 10}), (Schedule(KLAdaptive, {}), None, LINEAR)),
        (step_schedule, {}, (Schedule(step_schedule, {}),) * 3),
        ("functools:partial", {"anything": 1}, (Schedule(functools.partial, {"anything": 1}),) * 3),
    ],
)
def test_schedules_are_one_each(given: Any, kwargs: Any, schedules: Any) -> None:
    cfg = SACConfig(learning_rate_scheduler=given, learning_rate_scheduler_kwargs=kwargs)
    cfg.validate()
    assert cfg.schedules == dict(zip(("policy", "critic", "entropy"), schedules, strict=True))
    cfg = SACConfig.from_json(cfg.to_json())
    assert cfg.schedules == dict(zip(("policy", "critic", "entropy"), schedules, strict=True))


def test_a_temperature_that_is_not_learned_has_no_schedule() -> None:
    cfg = SACConfig(learning_rate_scheduler="linear", learning_rate_scheduler_kwargs={"steps": 10}, learn_entropy=False)
    assert cfg.schedules == {"policy": LINEAR, "critic": LINEAR, "entropy": None}
    cfg.learning_rate_scheduler = ("linear", "linear", None)
    assert cfg.schedules == {"policy": LINEAR, "critic": LINEAR, "entropy": None}
    cfg.learning_rate_scheduler = (None, None, "linear")
    with pytest.raises(ConfigError, match="has one for entropy and learn_entropy is False: make it None"):
        cfg.validate()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"learning_rate_scheduler": "linear"},
            r"kwargs is {}, and linear has missing a required (keyword-only )?argument: 'steps'; expected steps, end=0.0",
        ),
        ({"learning_rate_scheduler": "linear", "learning_rate_scheduler_kwargs": {"decay": 1}}, "linear has .*; expected steps, end=0.0"),
        (
            {"learning_rate_scheduler": "linear", "learning_rate_scheduler_kwargs": {"steps": -1}},
            "linear: steps is -1, expected a number > 0",
        ),
        ({"learning_rate_scheduler": "linear", "learning_rate_scheduler_kwargs": {"steps": "many"}}, r"kwargs is {'steps': 'many'}: "),
        ({"learning_rate_scheduler": "constant", "learning_rate_scheduler_kwargs": {"steps": 1}}, "constant has .*; expected none at all"),
        (
            {"learning_rate_scheduler": "kl_adaptive", "learning_rate_scheduler_kwargs": {"threshold": 1}},
            "KLAdaptive has .*; expected kl_threshold=0.008, kl_factor=2.0, lr_factor=1.5, min_lr=1e-06, max_lr=0.01",
        ),
        ({"learning_rate_scheduler": "kl_adaptive", "learning_rate_scheduler_kwargs": {"kl_factor": 0}}, "KLAdaptive: kl_factor is 0"),
        (
            {"learning_rate_scheduler": "kl_adaptive", "learning_rate": (1e-3, 1e-3, 0.0)},
            r"learning_rate is 0.0 for entropy, expected from 1e-06 to 0.01, between which kl_adaptive moves it",
        ),
        (
            {"learning_rate_scheduler": ("linear", None, None), "learning_rate_scheduler_kwargs": ({"steps": 1}, {"steps": 1}, {})},
            r"kwargs has {'steps': 1} for critic, which has no schedule",
        ),
        ({"learning_rate_scheduler_kwargs": {"steps": 1}}, "learning_rate_scheduler None: set one"),
        (
            {"observation_preprocessor_kwargs": {"clip": 5.0}},
            "observation_preprocessor_kwargs is {'clip': 5.0} and observation_preprocessor None",
        ),
        ({"state_preprocessor_kwargs": {"clip": 5.0}}, "state_preprocessor_kwargs is {'clip': 5.0} and state_preprocessor None"),
        (
            {"state_preprocessor": Scaler, "state_preprocessor_kwargs": {"size": 5}},
            "state_preprocessor_kwargs is {'size': 5}, and Scaler has got an unexpected keyword argument 'size'; expected clip=10.0",
        ),
    ],
)
def test_arguments_that_nothing_takes_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SACConfig(**fields).validate()


def test_preprocessors_and_their_arguments_are_valid_together() -> None:
    cfg = SACConfig(observation_preprocessor=SCALER, observation_preprocessor_kwargs={"clip": 5.0}, state_preprocessor=Scaler)
    cfg.validate()
    assert (cfg.to_dict()["observation_preprocessor"], cfg.to_dict()["state_preprocessor"]) == (SCALER, SCALER)


def test_arguments_that_json_cannot_hold_are_not_written() -> None:
    cfg = SACConfig(learning_rate_scheduler=step_schedule, learning_rate_scheduler_kwargs={"function": halve})
    with pytest.raises(ConfigError, match=r"learning_rate_scheduler_kwargs is .* which cannot be written .*expected numbers, strings"):
        cfg.to_dict()


rates = st.floats(0, 1e300)
intervals = st.one_of(st.just("auto"), st.integers())
schedulers = st.sampled_from([None, linear, KLAdaptive, step_schedule])
arguments = st.dictionaries(
    st.text(), st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.lists(st.booleans()) | st.text()
)
configs = st.fixed_dictionaries(
    {},
    optional={
        "experiment": st.fixed_dictionaries(
            {},
            optional={
                "directory": st.text(),
                "write_interval": intervals,
                "checkpoint_interval": intervals,
                "store_separately": st.booleans(),
            },
        ),
        "gradient_steps": st.integers(0),
        "batch_size": st.integers(1),
        "discount_factor": st.floats(0, 1),
        "polyak": st.floats(0, 1),
        "learning_rate": st.one_of(rates, st.tuples(rates, rates, rates)),
        "grad_norm_clip": st.floats(allow_nan=False, allow_infinity=False),
        "learn_entropy": st.booleans(),
        "initial_entropy_value": st.floats(0, exclude_min=True, allow_infinity=False),
        "target_entropy": st.one_of(st.none(), st.floats(allow_nan=False, allow_infinity=False)),
        "n_step": st.integers(1),
        "target_subset": st.none() | st.integers(1),
        "policy_value": st.sampled_from(["min", "mean"]),
        "stored_carry": st.booleans(),
        "learning_rate_scheduler": schedulers | st.tuples(schedulers, schedulers, schedulers),
        "learning_rate_scheduler_kwargs": arguments | st.tuples(arguments, arguments, arguments),
        "observation_preprocessor": st.sampled_from([None, Scaler]),
        "observation_preprocessor_kwargs": arguments,
        "reward_scale": st.floats(0, exclude_min=True, allow_infinity=False),
        "rewards_shaper": st.sampled_from([None, halve, math.floor]),
        "seed": st.integers(0, 2**32 - 1),
    },
)


@given(configs)
def test_round_trips_are_exact(values: dict[str, Any]) -> None:
    cfg = SACConfig.from_dict(values)
    for name in values.keys() - {"experiment"}:
        assert getattr(cfg, name) == values[name]
    assert SACConfig.from_dict(cfg.to_dict()) == cfg
    assert SACConfig.from_json(cfg.to_json()) == cfg
    assert json.loads(cfg.to_json()) == cfg.to_dict()


def test_rewards_shaper_by_name_is_resolved_and_written_back() -> None:
    cfg = SACConfig.from_dict({"rewards_shaper": HALVE})
    assert cfg.rewards_shaper is halve
    assert cfg.to_dict()["rewards_shaper"] == HALVE
    assert SACConfig(rewards_shaper=np.linalg.norm).to_dict()["rewards_shaper"].endswith(":norm")


def scaled(rewards: Any, timestep: int, timesteps: int, *, by: float) -> Any:
    return by * rewards


def test_a_partial_is_written_with_its_arguments_and_found_again() -> None:
    cfg = SACConfig(rewards_shaper=functools.partial(scaled, by=0.5))
    text = f"{__name__}:scaled(by=0.5)"
    assert cfg.to_dict()["rewards_shaper"] == text
    again: Any = SACConfig.from_json(cfg.to_json()).rewards_shaper
    assert (again.func, again.args, again.keywords, again(4.0, 0, 1)) == (scaled, (), {"by": 0.5}, 2.0)
    with pytest.raises(ConfigError, match=r"which names code to import, and importing is off here"):
        SACConfig.from_json(cfg.to_json(), import_callables=False)
    with pytest.raises(ConfigError, match=r"an instance of .*:Shaper\), so it cannot be written"):
        SACConfig(rewards_shaper=functools.partial(Shaper(), 1)).to_dict()


class Shaper:
    """A callable instance has no name of its own."""

    def __call__(self, rewards: Any, timestep: int, timesteps: int) -> Any:
        return rewards


def test_a_callable_without_an_importable_name_cannot_be_written() -> None:
    def local(rewards: Any, timestep: int, timesteps: int) -> Any:
        return rewards

    # The last one has the name of another function, as a decorator gives it.
    shapers = (lambda rewards, timestep, timesteps: rewards, local, Shaper(), functools.wraps(halve)(lambda *arguments: arguments[0]))
    for shaper in shapers:
        cfg = SACConfig(rewards_shaper=shaper)
        assert cfg.rewards_shaper is shaper
        with pytest.raises(ConfigError, match=r"SACConfig.rewards_shaper is .* has no importable name.*top level of a module"):
            cfg.to_dict()


def test_a_stranger_s_configuration_imports_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sacref_test_trap.py").write_text("def shaper(): ...")
    monkeypatch.syspath_prepend(tmp_path)
    text = json.dumps({"rewards_shaper": "sacref_test_trap:shaper"})
    with pytest.raises(ConfigError, match="names code to import, and importing is off here: set rewards_shaper to None"):
        SACConfig.from_json(text, import_callables=False)
    assert "sacref_test_trap" not in sys.modules
    assert SACConfig.from_json('{"batch_size": 3, "rewards_shaper": null}', import_callables=False) == SACConfig(batch_size=3)
    for value in ("sacref_test_trap:shaper", ["linear", None, "sacref_test_trap:shaper"]):
        with pytest.raises(ConfigError, match="learning_rate_scheduler is 'sacref_test_trap:shaper', which names code to import"):
            SACConfig.from_dict({"learning_rate_scheduler": value}, import_callables=False)
    for name in ("observation_preprocessor", "state_preprocessor"):
        with pytest.raises(ConfigError, match=f"{name} is 'sacref_test_trap:shaper', which names code to import"):
            SACConfig.from_dict({name: "sacref_test_trap:shaper"}, import_callables=False)
    assert "sacref_test_trap" not in sys.modules
    assert SACConfig.from_json(text).rewards_shaper is sys.modules["sacref_test_trap"].shaper


def test_a_stranger_s_configuration_may_name_what_is_sacref_s_own() -> None:
    cfg = SACConfig.from_dict({"learning_rate_scheduler": ["linear", None, "kl_adaptive"]}, import_callables=False)
    assert cfg.learning_rate_scheduler == (linear, None, KLAdaptive)
    assert cfg.to_dict()["learning_rate_scheduler"] == ["linear", None, "kl_adaptive"]
    assert {*SCHEDULES, "sacref.preprocessing:RunningStandardScaler"} == HARMLESS


@pytest.mark.parametrize(
    "text", ["", "{", "[1]", "3", "null", '"x"', "[" * 100_000, '{"batch_size": 0}', '{"polyak": NaN}', '{"polyak": 1e999}']
)
def test_bad_json_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        SACConfig.from_json(text)


@pytest.mark.parametrize(("num_envs", "first_steps"), [(1, 5000), (2, 2500), (3, 1667), (8, 625), (10_000, 1)])
def test_paper_config(num_envs: int, first_steps: int) -> None:
    paper = {"batch_size": 256, "learning_rate": 3e-4, "random_timesteps": first_steps, "learning_starts": first_steps}
    ratio = None if num_envs == 1 else 1.0
    assert paper_config(num_envs).to_dict() == DEFAULTS | paper | {"initial_entropy_value": 1.0, "update_to_data": ratio}


@pytest.mark.parametrize("num_envs", [0, -1, True])
def test_paper_config_refuses(num_envs: int) -> None:
    with pytest.raises(ConfigError, match=r"num_envs is .*, expected an integer >= 1"):
        paper_config(num_envs)


def test_the_command_line_can_be_made_of_it() -> None:
    import tyro

    # Each field's docstring is its help. A callable has no meaning as text here: the command line adds the rule for it.
    arguments = ["--learning-rate", "1", "2", "3", "--experiment.write-interval", "5", "--target-entropy", "-3", "--no-learn-entropy"]
    cfg = tyro.cli(SACConfig, args=arguments, default=paper_config())
    expected = paper_config()
    expected.learning_rate, expected.target_entropy, expected.learn_entropy = (1.0, 2.0, 3.0), -3.0, False
    expected.experiment.write_interval = 5
    assert cfg == expected
    help_text = subprocess.run(
        [sys.executable, "-c", "import tyro; from sacref.config import SACConfig; tyro.cli(SACConfig, args=['--help'])"],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": ":".join(sys.path), "COLUMNS": "200"},
    ).stdout
    assert "Transitions in the batch of one gradient step" in help_text
    assert help_text.count("--") >= len(DEFAULTS) - 3
