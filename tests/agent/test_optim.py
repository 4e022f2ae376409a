"""The one path of a gradient, on both backends: Adam, clipping, schedules and delay against numbers by hand."""

import importlib
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from sacref.algorithm.optimizer import KeepGradients, batch_mean
from sacref.algorithm.tree import map_leaves
from sacref.config import ConfigError, SACConfig, Schedule
from sacref.spec.schedules import FACTORS, SCHEDULES, KLAdaptive
from tests.backends import BACKENDS, Backend, installed_backends, load_backend

backend = pytest.fixture(params=BACKENDS)(load_backend)

PARAMETERS = {"a": {"w": [[1.0, -2.0]]}, "b": {"w": [0.5]}}
GRADIENTS = [{"a": {"w": [[3.0, 0.0]]}, "b": {"w": [-4.0]}}, {"a": {"w": [[-1.0, 2.0]]}, "b": {"w": [0.5]}}]


def host(tree: Any) -> Any:
    return {name: host(branch) for name, branch in tree.items()} if isinstance(tree, dict) else np.asarray(tree).copy()


def flat(tree: Any) -> NDArray[Any]:
    """The numbers of a tree in the order of its keys."""
    return np.concatenate([flat(branch) for branch in tree.values()]) if isinstance(tree, dict) else np.ravel(np.array(tree))


def adam(parameters: NDArray[Any], gradients: list[NDArray[Any]], rate: float) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Kingma & Ba 2015, algorithm 1."""
    first, second = np.zeros_like(parameters), np.zeros_like(parameters)
    for count, gradient in enumerate(gradients, start=1):
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        parameters = parameters - rate * (first / (1 - 0.9**count)) / (np.sqrt(second / (1 - 0.999**count)) + 1e-8)
    return parameters, first, second


def test_two_steps_of_adam(backend: Backend) -> None:
    optimizer = backend.module("optim").Optimizer(0.01)
    parameters = backend.tree(PARAMETERS)
    state = optimizer.init(parameters)
    for gradients in GRADIENTS:
        parameters, state = optimizer.step(parameters, backend.tree(gradients), state)
    moments = optimizer.moments(parameters, state)
    wanted, first, second = adam(flat(PARAMETERS), [flat(g) for g in GRADIENTS], 0.01)
    np.testing.assert_allclose(flat(host(parameters)), wanted, rtol=1e-12)
    np.testing.assert_allclose(flat(host(moments["first_moment"])), first, rtol=1e-12)
    np.testing.assert_allclose(flat(host(moments["second_moment"])), second, rtol=1e-12)
    assert int(moments["count"]) == 2
    assert host(moments["first_moment"]).keys() == PARAMETERS.keys()


def test_steps_of_a_constant_gradient_have_the_size_of_the_rate(backend: Backend) -> None:
    optimizer = backend.module("optim").Optimizer(0.01)
    parameters = backend.tree({"w": [1.0, 1.0]})
    state = optimizer.init(parameters)
    for count in range(1, 51):
        parameters, state = optimizer.step(parameters, backend.tree({"w": [5.0, -0.2]}), state)
        np.testing.assert_allclose(host(parameters)["w"], [1 - 0.01 * count, 1 + 0.01 * count], rtol=1e-6)


@pytest.mark.parametrize(("clip", "factor"), [(1.0, 0.2), (2.5, 0.5), (5.0, 1.0), (50.0, 1.0), (0.0, 1.0), (-1.0, 1.0)])
def test_trap_07_clipping_is_by_the_norm_of_the_whole_tree(backend: Backend, clip: float, factor: float) -> None:
    """The gradient's norm is 5."""
    optimizer = backend.module("optim").Optimizer(0.01, clip)
    parameters = backend.tree(PARAMETERS)
    parameters, state = optimizer.step(parameters, backend.tree(GRADIENTS[0]), optimizer.init(parameters))
    first = flat(host(optimizer.moments(parameters, state)["first_moment"]))
    np.testing.assert_allclose(first, 0.1 * factor * flat(GRADIENTS[0]), rtol=1e-12)


def test_clipping_leaves_a_gradient_of_zero(backend: Backend) -> None:
    optimizer = backend.module("optim").Optimizer(0.01, 1.0)
    parameters = backend.tree({"w": [1.0]})
    parameters, _ = optimizer.step(parameters, backend.tree({"w": [0.0]}), optimizer.init(parameters))
    assert host(parameters)["w"].tolist() == [1.0]


@pytest.mark.parametrize("steps", [0, 3])
def test_moments_carry_on_where_they_were_taken(backend: Backend, steps: int) -> None:
    optimizer = backend.module("optim").Optimizer(0.01, 2.0)

    def go_on(parameters: Any, state: Any, count: int) -> tuple[Any, Any]:
        for i in range(count):
            parameters, state = optimizer.step(parameters, backend.tree(GRADIENTS[i % 2]), state)
        return parameters, state

    parameters = backend.tree(PARAMETERS)
    parameters, state = go_on(parameters, optimizer.init(parameters), steps)
    moments = optimizer.moments(parameters, state)
    if steps == 0:
        assert int(moments["count"]) == 0
        assert not flat(host(moments["first_moment"])).any()
    copied = backend.tree(host(parameters))
    restored = optimizer.with_moments(
        copied, {name: host(tree) if name == "count" else backend.tree(host(tree)) for name, tree in moments.items()}
    )
    wanted, _ = go_on(parameters, state, 2)
    got, restored = go_on(copied, restored, 2)
    np.testing.assert_array_equal(flat(host(got)), flat(host(wanted)))
    assert int(optimizer.moments(got, restored)["count"]) == steps + 2


def test_frozen_steps_nowhere_and_remembers_nothing(backend: Backend) -> None:
    optimizer = backend.module("optim").Frozen()
    parameters = backend.tree(PARAMETERS)
    state = optimizer.init(parameters)
    parameters, state = optimizer.step(parameters, backend.tree(GRADIENTS[0]), state)
    assert flat(host(parameters)).tolist() == flat(PARAMETERS).tolist()
    assert optimizer.moments(parameters, state) is None
    assert optimizer.with_moments(parameters, {}) is None
    assert optimizer.measured(state) == {}
    assert optimizer.adapt(state, unreachable) is None
    if backend.name == "torch":
        optimizer.prepare(state)


def test_kept_gradients_are_those_before_clipping_and_change_nothing(backend: Backend) -> None:
    optim = backend.module("optim")
    plain, keeping = optim.Optimizer(0.01, 1.0), KeepGradients(optim.Optimizer(0.01, 1.0))
    results = []
    for optimizer in (plain, keeping):
        parameters = backend.tree(PARAMETERS)
        state = optimizer.init(parameters)
        if optimizer is keeping:
            assert not flat(host(state[1])).any()
        for gradients in GRADIENTS:
            parameters, state = optimizer.step(parameters, backend.tree(gradients), state)
        results.append((parameters, optimizer.moments(parameters, state)))
    np.testing.assert_array_equal(flat(host(results[0][0])), flat(host(results[1][0])))
    np.testing.assert_array_equal(flat(host(results[0][1]["second_moment"])), flat(host(results[1][1]["second_moment"])))
    np.testing.assert_array_equal(flat(host(state[1])), flat(GRADIENTS[1]))
    restored = keeping.with_moments(parameters, results[1][1])
    assert int(keeping.moments(parameters, restored)["count"]) == 2
    assert not flat(host(restored[1])).any()


def test_value_and_grad_differentiates_by_its_argument_alone(backend: Backend) -> None:
    """A parameter that the objective does not read has the gradient 0."""
    optim = backend.module("optim")
    parameters = backend.tree({"used": [1.0, 2.0], "unused": [3.0]})
    other = backend.array(np.array([4.0, 5.0]))

    def objective(tree: Any) -> tuple[Any, Any]:
        product = tree["used"] * other
        return (product * product).sum(), product

    (value, aux), gradients = optim.value_and_grad(objective, parameters)
    assert float(value) == 116.0
    assert host(aux).tolist() == [4.0, 10.0]
    assert host(gradients)["used"].tolist() == [32.0, 100.0]
    assert host(gradients)["unused"].tolist() == [0.0]


# Scaled losses, and several ranks.


def objective_of(backend: Backend, slopes: Any) -> Any:
    """A function whose gradient is `slopes` everywhere."""
    constants = backend.tree(slopes)

    def objective(tree: Any) -> tuple[Any, Any]:
        return sum((tree[name]["w"] * constants[name]["w"]).sum() for name in tree), tree["b"]["w"]

    return objective


@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_a_scale_changes_no_step(backend: Backend, clip: float) -> None:
    """Being a power of two, it changes no bit."""
    results = []
    for scales_losses in (False, True):
        optimizer = backend.module("optim").Optimizer(0.01, clip, scales_losses=scales_losses)
        parameters = backend.tree(PARAMETERS)
        state = optimizer.init(parameters)
        for gradients in GRADIENTS:
            value, _, parameters, state = optimizer.minimise(objective_of(backend, gradients), parameters, state)
        results.append((host(parameters), float(value)))
    np.testing.assert_array_equal(flat(results[0][0]), flat(results[1][0]))
    assert results[0][1] == results[1][1]


@pytest.mark.parametrize("every", [1, 2])
def test_an_overflow_skips_the_step_and_halves_the_scale(backend: Backend, every: int) -> None:
    optimizer = backend.module("optim").Optimizer(0.01, 1.0, every=every, scales_losses=True)
    parameters = backend.tree(PARAMETERS)
    state = optimizer.init(parameters)
    sound, infinite = GRADIENTS[0], {"a": {"w": [[np.inf, 0.0]]}, "b": {"w": [1.0]}}
    applied, norms = [], []
    for gradients in (sound, infinite, infinite, sound, sound):
        before = flat(host(parameters))
        _, _, parameters, state = optimizer.minimise(objective_of(backend, gradients), parameters, state)
        applied.append(not np.array_equal(flat(host(parameters)), before))
        norms.append(float(optimizer.measured(state)["gradient_norm"]))
    assert applied == ([True, False, False, True, True] if every == 1 else [False, False, False, True, False])
    assert norms == [5.0] * 5  # that of the last step whose gradients did not overflow
    moments = optimizer.moments(parameters, state)
    assert int(moments["count"]) == sum(applied)
    assert float(moments["loss_scale"]) == 2.0**14 and int(moments["skipped_steps"]) == 2 and int(moments["good_steps"]) == 2
    measured = optimizer.measured(state)
    assert float(measured["loss_scale"]) == 2.0**14 and float(measured["skipped_steps"]) == 2.0
    restored = optimizer.moments(parameters, optimizer.with_moments(parameters, moments))
    assert [float(restored[name]) for name in ("loss_scale", "good_steps", "skipped_steps")] == [2.0**14, 2, 2]


def test_gradients_are_averaged_before_they_are_unscaled_and_clipped(backend: Backend) -> None:
    """As if the other of two ranks had the gradient 3 at every parameter."""
    optim = backend.module("optim")
    seen: list[float] = []

    def average(tree: Any) -> Any:
        scale = 2.0**16
        seen.extend(flat(host(tree)).tolist())
        return map_leaves(lambda leaf: (leaf + 3.0 * scale) / 2.0, tree)

    optimizer = KeepGradients(optim.Optimizer(0.01, 0.5, scales_losses=True, average=average))
    parameters = backend.tree(PARAMETERS)
    state = optimizer.init(parameters)
    _, _, parameters, state = optimizer.minimise(objective_of(backend, GRADIENTS[0]), parameters, state)
    assert seen[:3] == [3.0 * 2.0**16, 0.0, -4.0 * 2.0**16]
    assert flat(host(state[1])).tolist() == [3.0, 1.5, -0.5]
    assert float(optimizer.measured(state)["gradient_norm"]) == pytest.approx(math.sqrt(9 + 2.25 + 0.25))


def test_an_adaptive_rate_follows_the_divergence_over_all_ranks(backend: Backend) -> None:
    optimizer = backend.module("optim").Optimizer(
        1e-3, schedule=Schedule(KLAdaptive, {"kl_threshold": 1e-2}), average=lambda tree: 10 * tree
    )
    state = optimizer.init(backend.tree(PARAMETERS))
    moved = optimizer.adapt(state, lambda: backend.array(np.array(5e-3)))  # 5e-3 here, 5e-2 over all: too far
    assert float(moved["learning_rate"]) == pytest.approx(1e-3 / 1.5)


def test_the_mean_over_parts_is_that_of_the_whole(backend: Backend) -> None:
    mask = backend.array(np.array([True, False, True]))
    values = backend.array(np.array([[1.0, 5.0, 3.0]]))
    assert batch_mean(None)(values, mask).tolist() == [2.0]
    counts: list[float] = []

    def average(count: Any) -> Any:
        counts.append(float(count))
        return count * 2.0  # the other ranks have more rows that count

    assert batch_mean(average)(values, mask).tolist() == [1.0]
    assert counts == [2.0]
    assert batch_mean(average)(values, None).tolist() == [3.0]


# What is beside Adam and clipping.


def unreachable() -> Any:
    raise AssertionError("a divergence is computed that nobody asks for")


def gradients_of(backend: Backend, steps: int, dtype: str = "float64") -> list[Any]:
    generator = np.random.default_rng(0)
    return [
        backend.tree({"a": {"w": generator.normal(size=(3, 2)).astype(dtype)}, "b": generator.normal(size=2).astype(dtype)})
        for _ in range(steps)
    ]


def zeros(backend: Backend, dtype: str = "float64") -> Any:
    return backend.tree({"a": {"w": np.zeros((3, 2), dtype)}, "b": np.zeros(2, dtype)})


def go(backend: Backend, optimizer: Any, parameters: Any, state: Any, gradients: Sequence[Any], divergences: Sequence[float] = ()) -> Any:
    """Parameters, state, and what each step measured, after steps as the update takes them."""
    dtype = backend.numpy(parameters["b"]).dtype
    measured = []
    for i, gradient in enumerate(gradients):
        if backend.name == "torch":
            optimizer.prepare(state)
        parameters, state = optimizer.step(parameters, gradient, state)
        measured.append({name: float(value) for name, value in optimizer.measured(state).items()})
        divergence = backend.array(np.asarray(divergences[i], dtype)) if divergences else None
        state = optimizer.adapt(state, unreachable if divergence is None else partial(lambda kl: kl, divergence))
    return parameters, state, measured


def rates(backend: Backend, schedule: Schedule | None, steps: int, rate: float = 0.01, **options: Any) -> list[float]:
    optimizer = backend.module("optim").Optimizer(rate, schedule=schedule, **options)
    parameters = zeros(backend)
    *_, measured = go(backend, optimizer, parameters, optimizer.init(parameters), gradients_of(backend, steps))
    return [step["learning_rate"] for step in measured]


ARGUMENTS: dict[str, dict[str, Any]] = {
    "constant": {},
    "linear": {"steps": 30, "end": 0.1},
    "cosine": {"steps": 60, "end": 0.1},
    "exponential": {"decay": 0.95},
    "warm_up": {"steps": 20},
    "piecewise": {"boundaries": [10, 30], "factors": [1.0, 0.3, 2.0]},
    "kl_adaptive": {"max_lr": 0.05},
}
DIVERGENCES = [0.008 * 4.0 ** math.sin(i) for i in range(50)]
"""Above, within and below the range that leaves a rate."""


def scheduled(name: str) -> Schedule:
    return Schedule(SCHEDULES[name], ARGUMENTS[name])


def test_every_schedule_is_tested() -> None:
    assert set(ARGUMENTS) == set(SCHEDULES)


PARTS = ("policy", "critic", "entropy")


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("name", FACTORS)
def test_trap_08_a_factor_multiplies_the_base_rate_of_each_part(backend: Backend, part: str, name: str) -> None:
    """Steps of a constant gradient have the size of the rate: base * factor(t), and not base * factor(0) ... factor(t)."""
    cfg = SACConfig(
        learning_rate=(0.01, 0.02, 0.04),
        learning_rate_scheduler=tuple(name if part == other else None for other in PARTS),
        learning_rate_scheduler_kwargs=ARGUMENTS[name],
    )
    base = dict(zip(PARTS, cfg.learning_rates, strict=True))
    factors = FACTORS[name](np.arange(50.0), **ARGUMENTS[name])
    for other in PARTS:
        optimizer = backend.module("optim").Optimizer(base[other], schedule=cfg.schedules[other])
        parameters = backend.tree({"w": [1.0]})
        state, previous, steps = optimizer.init(parameters), 1.0, []
        for _ in range(50):
            parameters, state = optimizer.step(parameters, backend.tree({"w": [5.0]}), state)
            steps.append(previous - float(parameters["w"][0]))
            previous = float(parameters["w"][0])
        np.testing.assert_allclose(steps, base[other] * factors if other == part else [base[other]] * 50, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", FACTORS)
def test_the_rate_in_force_is_measured(backend: Backend, name: str) -> None:
    factors = FACTORS[name](np.arange(50.0), **ARGUMENTS[name])
    np.testing.assert_allclose(rates(backend, scheduled(name), 50), 0.01 * factors, rtol=1e-14)


def test_the_adaptive_rate_by_hand(backend: Backend) -> None:
    """From 0.01, by 1.5 at a time: too far, hardly moved, in between, exactly nothing, far too far; not above max_lr."""
    optimizer = backend.module("optim").Optimizer(0.01, schedule=Schedule(KLAdaptive, {"max_lr": 0.012}))
    parameters = zeros(backend)
    divergences = [0.017, 0.0039, 0.0039, 0.016, 0.0, 1e6, 0.004]
    *_, state, measured = go(backend, optimizer, parameters, optimizer.init(parameters), gradients_of(backend, 7), divergences)
    in_force = [step["learning_rate"] for step in measured]
    np.testing.assert_allclose(in_force, [0.01, 0.01 / 1.5, 0.01, 0.012, 0.012, 0.012, 0.008], rtol=1e-14)
    assert float(optimizer.moments(parameters, state)["learning_rate"]) == pytest.approx(0.008, rel=1e-14)


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("name", SCHEDULES)
def test_both_backends_take_the_same_50_steps(name: str, every: int) -> None:
    results = []
    for backend in installed_backends():
        optimizer = backend.module("optim").Optimizer(0.01, 1.0, scheduled(name), every)
        parameters = zeros(backend)
        parameters, state, measured = go(backend, optimizer, parameters, optimizer.init(parameters), gradients_of(backend, 50), DIVERGENCES)
        moments = optimizer.moments(parameters, state)
        scalars = [[step["learning_rate"], step["gradient_norm"]] for step in measured]
        numbers = [
            parameters,
            moments["first_moment"],
            moments["second_moment"],
            scalars,
            moments["count"],
            moments["calls"],
            moments["learning_rate"],
        ]
        results.append([flat(host(part)) for part in numbers])
    for one, other in zip(*results, strict=True):
        assert np.abs(one).max() > 0
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-13 * np.abs(other).max())


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("name", SCHEDULES)
def test_moments_carry_a_schedule_on(backend: Backend, name: str, every: int) -> None:
    carry_on(backend, lambda: backend.module("optim").Optimizer(0.01, 1.0, scheduled(name), every))


def carry_on(backend: Backend, make: Callable[[], Any]) -> None:
    """Another optimizer goes on from the moments after 10 steps, bit for bit."""
    gradients = gradients_of(backend, 20)
    optimizer = make()
    parameters = zeros(backend)
    parameters, state, _ = go(backend, optimizer, parameters, optimizer.init(parameters), gradients[:10], DIVERGENCES[:10])
    moments = {name: host(tree) for name, tree in optimizer.moments(parameters, state).items()}
    copied, other = backend.tree(host(parameters)), make()
    trees = {name: backend.tree(tree) if isinstance(tree, dict) else tree for name, tree in moments.items()}
    restored = other.with_moments(copied, trees)
    wanted = go(backend, optimizer, parameters, state, gradients[10:], DIVERGENCES[10:20])
    got = go(backend, other, copied, restored, gradients[10:], DIVERGENCES[10:20])
    np.testing.assert_array_equal(flat(host(got[0])), flat(host(wanted[0])))
    assert got[2] == wanted[2]
    for one, another in zip(optimizer.moments(wanted[0], wanted[1]).items(), other.moments(got[0], got[1]).items(), strict=True):
        assert one[0] == another[0]
        np.testing.assert_array_equal(flat(host(one[1])), flat(host(another[1])))


@pytest.mark.parametrize("schedule", [None, "linear", "kl_adaptive"])
def test_a_delayed_step_is_applied_at_every_third_call(backend: Backend, schedule: str | None) -> None:
    """Between them nothing moves, not by a bit, be the gradients what they are; and the clock of a schedule runs on."""
    optim = backend.module("optim")
    delayed = optim.Optimizer(0.01, 1.0, None if schedule is None else scheduled(schedule), every=3)
    gradients = gradients_of(backend, 9)
    for i in (0, 3):
        gradients[i] = map_leaves(lambda leaf: leaf * math.nan, gradients[i])
    parameters = zeros(backend)
    state = delayed.init(parameters)
    seen, measured = [], []
    for gradient in gradients:
        parameters, state = delayed.step(parameters, gradient, state)
        measured.append({name: float(value) for name, value in delayed.measured(state).items()})
        state = delayed.adapt(state, lambda: backend.array(np.asarray(1e-3)))
        moments = delayed.moments(parameters, state)
        seen.append(flat(host({**{name: moments[name] for name in ("count", "first_moment", "second_moment")}, "parameters": parameters})))
    assert [float(numbers[0]) for numbers in seen] == [0, 0, 1, 1, 1, 2, 2, 2, 3]
    for i in (1, 3, 4, 6, 7):
        np.testing.assert_array_equal(seen[i], seen[i - 1])
    assert "calls" in moments and int(moments["calls"]) == 9
    if schedule is None:
        undelayed = optim.Optimizer(0.01, 1.0)
        alone = zeros(backend)
        alone, _, _ = go(backend, undelayed, alone, undelayed.init(alone), gradients[2::3])
        np.testing.assert_allclose(flat(host(parameters)), flat(host(alone)), rtol=1e-14)
    elif schedule == "linear":
        wanted = 0.01 * FACTORS["linear"](np.arange(9.0), **ARGUMENTS["linear"])
        np.testing.assert_allclose([step["learning_rate"] for step in measured], wanted, rtol=1e-14)
    else:
        in_force = [0.01] * 3 + [0.015] * 3 + [0.0225] * 3
        np.testing.assert_allclose([step["learning_rate"] for step in measured], in_force, rtol=1e-14)
        assert float(state["learning_rate"]) == pytest.approx(0.03375, rel=1e-14)


def test_the_norm_before_clipping_is_measured(backend: Backend) -> None:
    for clip in (1.0, 50.0):
        optimizer = backend.module("optim").Optimizer(0.01, clip)
        parameters = backend.tree(PARAMETERS)
        state = optimizer.init(parameters)
        assert {name: float(value) for name, value in optimizer.measured(state).items()} == {"gradient_norm": 0.0}
        parameters, state = optimizer.step(parameters, backend.tree(GRADIENTS[0]), state)
        (name, norm), *others = optimizer.measured(state).items()
        assert (name, others, tuple(norm.shape), float(norm)) == ("gradient_norm", [], (), 5.0)
        assert set(optimizer.moments(parameters, state)) == {"count", "first_moment", "second_moment"}


def test_without_options_the_state_holds_nothing_for_them(backend: Backend) -> None:
    optimizer = backend.module("optim").Optimizer(0.01)
    parameters = backend.tree(PARAMETERS)
    parameters, state = optimizer.step(parameters, backend.tree(GRADIENTS[0]), optimizer.init(parameters))
    assert optimizer.measured(state) == {}
    assert optimizer.adapt(state, unreachable) is state
    if backend.name == "torch":
        optimizer.prepare(state)
        assert set(state) == {"count", "first_moment", "second_moment"}
    else:
        optax, jax = (importlib.import_module(name) for name in ("optax", "jax"))
        assert jax.tree.structure(state) == jax.tree.structure(optax.chain(optax.identity(), optax.adam(0.01)).init(parameters))


@pytest.mark.parametrize("name", ["linear", "kl_adaptive"])
def test_keeping_gradients_changes_no_schedule_and_no_delay(backend: Backend, name: str) -> None:
    optim = backend.module("optim")
    gradients = gradients_of(backend, 10)
    results = []
    for wrap in (lambda optimizer: optimizer, KeepGradients):
        optimizer = wrap(optim.Optimizer(0.01, 1.0, scheduled(name), 2))
        parameters = zeros(backend)
        parameters, state, measured = go(backend, optimizer, parameters, optimizer.init(parameters), gradients, DIVERGENCES[:10])
        results.append(
            (flat(host(parameters)).tolist(), measured, flat(host(optimizer.moments(parameters, state)["second_moment"])).tolist())
        )
    assert results[0] == results[1]
    np.testing.assert_array_equal(flat(host(state[1])), flat(host(gradients[-1])))
    assert (optimizer.schedule, optimizer.every, optimizer.grad_norm_clip) == (scheduled(name), 2, 1.0)


def harmonic(step: Any) -> Any:
    """A schedule of a user's own: step -> rate."""
    return 0.5 / (step + 1)


def harmonic_from(rate: float) -> Any:
    """A factory of such schedules."""
    return lambda step: rate / (step + 1)


def test_a_function_of_the_step_is_the_rate_itself(backend: Backend) -> None:
    for schedule in (Schedule(harmonic, {}), Schedule(harmonic_from, {"rate": 0.5})):
        np.testing.assert_allclose(rates(backend, schedule, 4), [0.5, 0.25, 0.5 / 3, 0.125], rtol=1e-14)
    assert rates(backend, Schedule(constant_rate, {}), 2) == [0.3, 0.3]


def constant_rate(step: Any) -> float:
    return 0.3


def of_shape_one(step: Any) -> Any:
    return step.reshape(1) * 0.5


def decided_by_the_step(step: Any) -> float:
    return 1e-3 if step < 100 else 1e-4


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (
            Schedule(decided_by_the_step, {}),
            r"(?s)decided_by_the_step .* fails as step -> rate .*\(where in place of if\)",
        ),
        (Schedule(harmonic_from, {}), r"harmonic_from with arguments {}, which fails as step -> rate .*expected a schedule of sacref.spec"),
        (Schedule(harmonic_from, {"steps": 3}), r"harmonic_from with arguments {'steps': 3}, which fails .*unexpected keyword"),
        (Schedule(of_shape_one, {}), r"of_shape_one, which gives a rate of shape \(1,\), expected \(\)"),
    ],
)
def test_what_is_no_schedule_is_refused(backend: Backend, schedule: Schedule, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        backend.module("optim").Optimizer(0.01, schedule=schedule)


# The backends' own.


@pytest.fixture
def torch_backend() -> Backend:
    pytest.importorskip("torch")
    return Backend("torch")


@pytest.fixture
def jax_backend() -> Backend:
    pytest.importorskip("jax")
    return Backend("jax")


def torch_scheduler(name: str, **kwargs: Any) -> Schedule:
    return Schedule(getattr(importlib.import_module("torch.optim.lr_scheduler"), name), kwargs)


@pytest.mark.parametrize(
    ("name", "kwargs", "wanted"),
    [
        ("StepLR", {"step_size": 2, "gamma": 0.5}, [0.01, 0.01, 0.005, 0.005, 0.0025]),
        ("LinearLR", {"start_factor": 0.5, "total_iters": 2}, [0.005, 0.0075, 0.01, 0.01, 0.01]),
        ("CosineAnnealingLR", {"T_max": 4}, [0.005 * (1 + math.cos(math.pi * i / 4)) for i in range(5)]),
        (
            "OneCycleLR",
            {"max_lr": 0.1, "total_steps": 5, "anneal_strategy": "linear", "pct_start": 0.6},
            [0.004, 0.052, 0.1, 0.0500002, 4e-7],
        ),
    ],
)
def test_a_scheduler_of_torch_s(torch_backend: Backend, name: str, kwargs: dict[str, Any], wanted: list[float]) -> None:
    schedule = torch_scheduler(name, **kwargs)
    np.testing.assert_allclose(rates(torch_backend, schedule, 5), wanted, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("every", [1, 2])
def test_moments_carry_a_scheduler_of_torch_s_on(torch_backend: Backend, every: int) -> None:
    carry_on(torch_backend, lambda: torch_backend.module("optim").Optimizer(0.01, 1.0, torch_scheduler("StepLR", step_size=3), every))


def test_a_scheduler_of_torch_s_begins_anew_with_a_new_state(torch_backend: Backend) -> None:
    optimizer = KeepGradients(torch_backend.module("optim").Optimizer(0.01, schedule=torch_scheduler("ExponentialLR", gamma=0.5)))
    for _ in range(2):
        parameters = zeros(torch_backend)
        *_, measured = go(torch_backend, optimizer, parameters, optimizer.init(parameters), gradients_of(torch_backend, 3))
        assert [step["learning_rate"] for step in measured] == [0.01, 0.005, 0.0025]


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("ReduceLROnPlateau", {}, "ReduceLROnPlateau, whose step needs metrics, which a gradient step cannot have: .* or kl_adaptive"),
        ("StepLR", {}, r"kwargs is {}, which StepLR refuses \(.*'step_size'\): expected arguments of StepLR"),
        ("StepLR", {"step_size": 3, "decay": 2}, "which StepLR refuses .*'decay'"),
        ("OneCycleLR", {"max_lr": 0.1}, "which OneCycleLR refuses .*total_steps"),
    ],
)
def test_a_scheduler_of_torch_s_that_cannot_run_is_refused(torch_backend: Backend, name: str, kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        torch_backend.module("optim").Optimizer(0.01, schedule=torch_scheduler(name, **kwargs))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", [*SCHEDULES, "StepLR", "harmonic"])
def test_a_recorded_step_takes_the_same_numbers(torch_backend: Backend, name: str, dtype: str) -> None:
    """With clipping, schedule and delay, bit for bit, from one recording: nothing was decided while it was made."""
    optim, graph = torch_backend.module("optim"), torch_backend.module("graph")
    own = {"StepLR": torch_scheduler("StepLR", step_size=4), "harmonic": Schedule(harmonic, {})}
    schedule = own[name] if name in own else scheduled(name)
    results = []
    for record in (False, True):
        optimizer = optim.Optimizer(0.01, 1.0, schedule, 2)

        def step(state: Any, gradients: Any, divergence: Any, optimizer: Any = optimizer) -> Any:
            parameters, stepped = optimizer.step(state[0], gradients, state[1])
            measured = optimizer.measured(stepped)
            stepped = optimizer.adapt(stepped, lambda: divergence)
            for old, new in zip(graph.leaves_of(state), graph.leaves_of((parameters, stepped)), strict=True):
                if old is not new:
                    old.copy_(new)
            return measured["learning_rate"], measured["gradient_norm"]

        recorded = graph.Recorded(step)
        run: Callable[..., Any] = recorded if record else step
        parameters = zeros(torch_backend, dtype)
        state = (parameters, optimizer.init(parameters))
        measured = []
        for gradients, divergence in zip(gradients_of(torch_backend, 12, dtype), DIVERGENCES, strict=False):
            optimizer.prepare(state[1])
            measured.append([float(value) for value in run(state, gradients, torch_backend.array(np.asarray(divergence, dtype)))])
        results.append((flat(host(state[0])).tolist(), measured, float(state[1]["count"])))
        assert recorded.recordings == int(record)
    assert results[0] == results[1]
    assert results[0][2] == 6.0


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_rate_in_a_tensor_is_the_same_rate(torch_backend: Backend, dtype: str) -> None:
    """The kernel with the rate as a tensor, against the one with the rate as a number that this dtype has."""
    rate = float(np.asarray(0.01, dtype))
    results = []
    for schedule in (None, Schedule(FACTORS["constant"], {})):
        optimizer = torch_backend.module("optim").Optimizer(rate, schedule=schedule)
        parameters = zeros(torch_backend, dtype)
        parameters, *_ = go(torch_backend, optimizer, parameters, optimizer.init(parameters), gradients_of(torch_backend, 20, dtype))
        results.append(flat(host(parameters)).tolist())
    assert results[0] == results[1]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_rate_in_a_tensor_is_not_rounded_on_cuda(torch_backend: Backend, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose kernel reads it in float32, which a stand-in does here."""
    torch, optim = importlib.import_module("torch"), torch_backend.module("optim")
    kernel, step_of = torch._fused_adam_, optim._step_of

    def kernel_of_cuda(*lists: Any, lr: Any, **given: Any) -> None:
        kernel(*lists, lr=lr.to(torch.float32) if isinstance(lr, torch.Tensor) else lr, **given)

    monkeypatch.setattr(torch, "_fused_adam_", kernel_of_cuda)
    monkeypatch.setattr(optim, "_step_of", lambda device, *given, **named: step_of("cuda", *given, **named))
    assert (step_of("cpu", torch.float64, tensor_rate=True), step_of("cuda", torch.float64, tensor_rate=False)) == (kernel_of_cuda,) * 2
    results = []
    for schedule in (None, Schedule(FACTORS["constant"], {})):
        optimizer = optim.Optimizer(0.01, schedule=schedule)
        parameters = zeros(torch_backend, dtype)
        parameters, *_ = go(torch_backend, optimizer, parameters, optimizer.init(parameters), gradients_of(torch_backend, 20, dtype))
        results.append(flat(host(parameters)))
    np.testing.assert_allclose(results[0], results[1], rtol={"float32": 1e-6, "float64": 1e-12}[dtype])


def test_a_schedule_of_optax_s(jax_backend: Backend) -> None:
    optax = importlib.import_module("optax")
    made = Schedule(optax.cosine_decay_schedule, {"init_value": 0.2, "decay_steps": 4})
    np.testing.assert_allclose(rates(jax_backend, made, 5), [0.1 * (1 + math.cos(math.pi * i / 4)) for i in range(5)], rtol=1e-6, atol=1e-9)
    itself = Schedule(optax.piecewise_constant_schedule(0.2, {2: 0.5}), {})
    np.testing.assert_allclose(rates(jax_backend, itself, 4), [0.2, 0.2, 0.1, 0.1], rtol=1e-6)
    with pytest.raises(ConfigError, match=r"cosine_decay_schedule with arguments {}, which fails as step -> rate on JAX arrays"):
        jax_backend.module("optim").Optimizer(0.01, schedule=Schedule(optax.cosine_decay_schedule, {}))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", SCHEDULES)
def test_a_scan_of_steps_takes_the_same_numbers(jax_backend: Backend, name: str, dtype: str) -> None:
    """The state keeps its types from step to step, which a scan insists on."""
    jax = importlib.import_module("jax")
    optimizer = jax_backend.module("optim").Optimizer(0.01, 1.0, scheduled(name), 2)
    parameters, gradients = zeros(jax_backend, dtype), gradients_of(jax_backend, 12, dtype)
    stacked = jax.tree.map(lambda *leaves: jax.numpy.stack(leaves), *gradients)

    def step(carry: Any, inputs: Any) -> Any:
        parameters, state = optimizer.step(carry[0], inputs[0], carry[1])
        return (parameters, optimizer.adapt(state, lambda: inputs[1])), None

    divergences = jax_backend.array(np.asarray(DIVERGENCES[:12], dtype))
    (scanned, state), _ = jax.lax.scan(step, (parameters, optimizer.init(parameters)), (stacked, divergences))
    wanted, plain, _ = go(jax_backend, optimizer, parameters, optimizer.init(parameters), gradients, DIVERGENCES[:12])
    eps = float(np.finfo(dtype).eps)
    np.testing.assert_allclose(flat(host(scanned)), flat(host(wanted)), rtol=100 * eps, atol=0.01 * eps)
    assert float(state["learning_rate"]) == pytest.approx(float(plain["learning_rate"]), rel=4 * eps)
