"""Learning-rate schedules: numbers by hand, ends, and the rule of the adaptive rate."""

import inspect
import math
from dataclasses import FrozenInstanceError
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import sacref.spec
from sacref.spec import schedules
from sacref.spec.schedules import FACTORS, SCHEDULES, KLAdaptive

if TYPE_CHECKING:
    from tests.conftest import Backend

STEPS = [0.0, 1.0, 2.0, 4.0, 5.0, 10.0, 1e6]
HALF, EIGHTH = math.sqrt(0.5), math.cos(math.pi / 8)
BY_HAND: list[tuple[str, dict[str, Any], list[float]]] = [
    ("constant", {}, [1.0] * 7),
    ("linear", {"steps": 4}, [1.0, 0.75, 0.5, 0.0, 0.0, 0.0, 0.0]),
    ("linear", {"steps": 4, "end": 0.5}, [1.0, 0.875, 0.75, 0.5, 0.5, 0.5, 0.5]),
    ("linear", {"steps": 10, "end": 2.0}, [1.0, 1.1, 1.2, 1.4, 1.5, 2.0, 2.0]),
    ("cosine", {"steps": 4}, [1.0, (1 + HALF) / 2, 0.5, 0.0, 0.0, 0.0, 0.0]),
    ("cosine", {"steps": 8, "end": 0.2}, [1.0, 0.6 + 0.4 * EIGHTH, 0.6 + 0.4 * HALF, 0.6, 0.6 - 0.4 * math.cos(3 * math.pi / 8), 0.2, 0.2]),
    ("exponential", {"decay": 0.5}, [1.0, 0.5, 0.25, 0.0625, 0.03125, 2.0**-10, 0.0]),
    ("exponential", {"decay": 1}, [1.0] * 7),
    ("warm_up", {"steps": 4}, [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0]),
    ("warm_up", {"steps": 1}, [1.0] * 7),
    ("piecewise", {"boundaries": [2, 5], "factors": [1.0, 0.5, 0.2]}, [1.0, 1.0, 0.5, 0.5, 0.2, 0.2, 0.2]),
    ("piecewise", {"boundaries": (4,), "factors": (0.25, 0.75)}, [0.25, 0.25, 0.25, 0.75, 0.75, 0.75, 0.75]),
    ("piecewise", {"boundaries": (1,), "factors": (0, 3)}, [0.0, 3.0, 3.0, 3.0, 3.0, 3.0, 3.0]),
]


@pytest.mark.parametrize(("name", "arguments", "factors"), BY_HAND)
def test_by_hand(xp: "Backend", name: str, arguments: dict[str, Any], factors: list[float]) -> None:
    got = xp.numpy(FACTORS[name](xp.asarray(STEPS), **arguments))
    np.testing.assert_allclose(got, factors, rtol=32 * xp.eps, atol=4 * xp.eps)
    for step, factor in zip(STEPS, factors, strict=True):
        scalar = xp.numpy(FACTORS[name](xp.asarray(step), **arguments))
        assert scalar.shape == () and float(scalar) == pytest.approx(factor, rel=32 * xp.eps, abs=4 * xp.eps)


def test_every_factor_is_tested_and_in_the_table() -> None:
    assert {name for name, _, _ in BY_HAND} == set(FACTORS)
    assert sacref.spec.__doc__ is not None
    for schedule in SCHEDULES.values():
        rows = [line for line in sacref.spec.__doc__.splitlines() if line.startswith(f"{schedule.__name__}  ")]
        assert len(rows) == 1, schedule.__name__


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("linear", {"steps": 0}, "linear: steps is 0, expected a number > 0"),
        ("linear", {"steps": -4}, "linear: steps is -4, expected a number > 0"),
        ("linear", {"steps": 4, "end": -0.1}, "linear: end is -0.1, expected a number >= 0"),
        ("cosine", {"steps": -1}, "cosine: steps is -1, expected a number > 0"),
        ("cosine", {"steps": 0}, "cosine: steps is 0, expected a number > 0"),
        ("cosine", {"steps": 4, "end": -0.1}, "cosine: end is -0.1, expected a number >= 0"),
        ("cosine", {"steps": 4, "end": math.nan}, "cosine: end is nan, expected a number >= 0"),
        ("exponential", {"decay": 0}, "exponential: decay is 0, expected a number above 0 and at most 1"),
        ("exponential", {"decay": -0.5}, "exponential: decay is -0.5, expected a number above 0 and at most 1"),
        ("exponential", {"decay": 1.1}, "exponential: decay is 1.1"),
        ("warm_up", {"steps": 0}, "warm_up: steps is 0, expected a number > 0"),
        ("warm_up", {"steps": -4}, "warm_up: steps is -4, expected a number > 0"),
        ("piecewise", {"boundaries": [], "factors": [1.0]}, r"piecewise: boundaries is \[\], expected numbers in rising order"),
        ("piecewise", {"boundaries": [3, 3], "factors": [1.0, 1.0, 1.0]}, r"boundaries is \[3, 3\]"),
        ("piecewise", {"boundaries": [5, 3], "factors": [1.0, 1.0, 1.0]}, r"boundaries is \[5, 3\]"),
        ("piecewise", {"boundaries": [3], "factors": [1.0] * 3}, "expected 2 numbers >= 0, one more than boundaries"),
        ("piecewise", {"boundaries": [3, 5], "factors": [1.0] * 2}, "expected 3 numbers >= 0, one more than boundaries"),
        ("piecewise", {"boundaries": [3], "factors": [1.0]}, r"factors is \[1.0\], expected 2 numbers >= 0, one more than boundaries"),
        ("piecewise", {"boundaries": [3], "factors": [1.0, -1.0]}, "expected 2 numbers >= 0"),
        ("kl_adaptive", {"kl_threshold": 0}, "KLAdaptive: kl_threshold is 0, expected a number > 0"),
        ("kl_adaptive", {"kl_threshold": -1}, "KLAdaptive: kl_threshold is -1, expected a number > 0"),
        ("kl_adaptive", {"kl_factor": 0.5}, "KLAdaptive: kl_factor is 0.5, expected a number >= 1"),
        ("kl_adaptive", {"lr_factor": 0.9}, "KLAdaptive: lr_factor is 0.9, expected a number >= 1"),
        ("kl_adaptive", {"min_lr": -1}, "KLAdaptive: min_lr is -1, expected a number >= 0"),
        ("kl_adaptive", {"max_lr": 1e-7}, "KLAdaptive: max_lr is 1e-07, expected a number >= min_lr, 1e-06"),
    ],
)
def test_arguments_out_of_range_are_refused(name: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SCHEDULES[name](*([np.asarray(0.0)] if name in FACTORS else []), **arguments)


def test_arguments_at_the_ends_of_their_ranges_are_accepted() -> None:
    zero = np.asarray(0.0)
    for name in ("linear", "cosine"):
        assert FACTORS[name](zero, steps=0.5, end=0.0) == FACTORS[name](zero, steps=0.5, end=0.5) == 1.0
    assert FACTORS["warm_up"](zero, steps=0.5) == 1.0
    still = KLAdaptive(kl_factor=1, lr_factor=1, min_lr=0.0, max_lr=0.0)
    assert (still.kl_factor, still.lr_factor, still.min_lr, still.max_lr) == (1, 1, 0.0, 0.0)
    assert KLAdaptive(kl_threshold=1e-9).kl_threshold == 1e-9


def test_there_may_be_many_pieces() -> None:
    many = FACTORS["piecewise"](np.asarray(299.0), boundaries=range(1, 301), factors=range(301))
    assert float(many) == 299.0


@pytest.mark.parametrize("name", FACTORS)
def test_all_but_the_step_is_told_by_name(name: str) -> None:
    step, *others = inspect.signature(FACTORS[name]).parameters.values()
    assert (step.name, step.kind) == ("step", step.POSITIONAL_OR_KEYWORD)
    assert all(one.kind is one.KEYWORD_ONLY for one in others)


def test_a_rule_does_not_change() -> None:
    with pytest.raises(FrozenInstanceError):
        KLAdaptive().kl_threshold = 1.0  # type: ignore[misc] # it is what is tested


@pytest.mark.parametrize("name", FACTORS)
def test_a_step_must_be_of_the_agents_dtype(name: str) -> None:
    arguments = next(arguments for tested, arguments, _ in BY_HAND if tested == name)
    with pytest.raises(TypeError, match=f"{name}: step has dtype int64, expected float32 or float64"):
        inspect.unwrap(FACTORS[name])(np.asarray(1), **arguments)


RULE = KLAdaptive(kl_threshold=0.01, kl_factor=2.0, lr_factor=1.5, min_lr=1e-4, max_lr=1e-2)


@pytest.mark.parametrize(
    ("rate", "kl", "following"),
    [
        (3e-3, 0.021, 2e-3),
        (3e-3, 0.019, 3e-3),
        (3e-3, 0.0051, 3e-3),
        (3e-3, 0.0049, 4.5e-3),
        (3e-3, 1e-12, 4.5e-3),
        (3e-3, -1e-9, 4.5e-3),
        (3e-3, 0.0, 3e-3),
        (3e-3, math.nan, 3e-3),
        (3e-3, math.inf, 2e-3),
        (1.2e-4, 0.1, 1e-4),
        (1e-4, 0.1, 1e-4),
        (8e-3, 0.001, 1e-2),
        (1e-2, 0.001, 1e-2),
    ],
)
def test_the_adaptive_rate_by_hand(xp: "Backend", rate: float, kl: float, following: float) -> None:
    got = xp.numpy(RULE.next_rate(xp.asarray(rate), xp.asarray(kl)))
    assert got.shape == () and float(got) == pytest.approx(following, rel=4 * xp.eps)


def test_the_adaptive_rate_stays_at_the_ends_of_its_range(xp: "Backend") -> None:
    """Numbers that binary fractions hold: kl_threshold times and divided by kl_factor are 0.5 and 0.125 exactly."""
    rule = KLAdaptive(kl_threshold=0.25, kl_factor=2.0, lr_factor=2.0, max_lr=64.0)
    found = [float(xp.numpy(rule.next_rate(xp.asarray(1.0), xp.asarray(kl)))) for kl in (0.5625, 0.5, 0.125, 0.0625)]
    assert found == [0.5, 1.0, 1.0, 2.0]


def test_the_adaptive_rate_s_defaults_are_those_of_the_rule_s_authors() -> None:
    assert KLAdaptive() == KLAdaptive(kl_threshold=0.008, kl_factor=2.0, lr_factor=1.5, min_lr=1e-6, max_lr=1e-2)


def test_schedules_trace_without_a_branch() -> None:
    jax = pytest.importorskip("jax")
    for name, arguments, factors in BY_HAND:
        traced = jax.jit(lambda step, name=name, arguments=arguments: FACTORS[name](step, **arguments))(jax.numpy.asarray(STEPS))
        np.testing.assert_allclose(traced, factors, rtol=1e-14, atol=1e-15)
    assert float(jax.jit(RULE.next_rate)(jax.numpy.asarray(3e-3), jax.numpy.asarray(0.021))) == pytest.approx(2e-3, rel=1e-15)


def test_a_configuration_names_them_all() -> None:
    functions = {name for name, found in vars(schedules).items() if inspect.isfunction(found) and found.__module__ == schedules.__name__}
    assert {name for name in functions if not name.startswith("_")} == set(FACTORS)
    assert set(SCHEDULES) == {*FACTORS, "kl_adaptive"}
