"""PyTorch, JAX and the NumPy oracle on the same weights, batches and noise. Which pairs there are depends on what is installed."""

import importlib
import itertools
import math
from typing import Any

import gymnasium
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sacref import parity
from sacref.algorithm.data import Noise
from sacref.config import SACConfig
from sacref.parity import oracle
from sacref.parity.compare import KINDS, compare, side_by_side
from sacref.parity.drivers import BackendAgent, Implementation, Oracle, Problem, implementations, installed_backends
from sacref.parity.networks import Arrays

Array = NDArray[Any]
SMALL = Problem(observation=5, action=3, hidden=(16, 12), batch_size=24, replay_size=128, initial_entropy_value=0.5)
BACKENDS = installed_backends()
needs_both = pytest.mark.skipif(len(BACKENDS) < 2, reason="torch and jax are not both installed")


def make(name: str, problem: Problem, state: Arrays) -> Implementation:
    return Oracle(problem, state, problem.dtype) if name == "numpy" else BackendAgent(name, problem, state)


def relative(a: Array, b: Array) -> float:
    return float(np.abs(a - b).max() / np.abs(b).max())


@pytest.mark.parametrize("updates", [20, pytest.param(1000, marks=pytest.mark.full)])
def test_float64_agrees_over_many_updates(updates: int) -> None:
    """Networks of 256-256 on a task of HalfCheetah's size; `sacref parity` does the same with its batch of 256."""
    report = parity.run(updates=updates, dtype="float64", problem=Problem(batch_size=32))
    for kinds in report.traces.pairs.values():
        assert set(kinds) == set(KINDS)
        for kind in ("losses", "parameters", "targets", "moments", "alpha"):
            assert kinds[kind].largest_relative.value < 1e-9, (kind, kinds[kind].largest_relative)
    assert report.within(1e-9)


@st.composite
def configurations(draw: st.DrawFn) -> dict[str, Any]:
    """Fields of a `Problem`. The test builds it: the shape checks draw random numbers, which a strategy may not."""
    rates = st.sampled_from([0.0, 1e-4, 3e-4, 1e-3, 1e-2])
    return {
        "observation": draw(st.integers(1, 6)),
        "action": draw(st.integers(1, 4)),
        "hidden": tuple(draw(st.lists(st.integers(1, 12), min_size=0, max_size=3))),
        "critics": draw(st.integers(1, 3)),
        "batch_size": draw(st.integers(1, 16)),
        "replay_size": 64,
        "seed": draw(st.integers(0, 1000)),
        "discount_factor": draw(st.sampled_from([0.0, 0.9, 0.99, 1.0])),
        "polyak": draw(st.sampled_from([0.0, 0.005, 0.5, 1.0])),
        "learning_rate": draw(st.tuples(rates, rates, rates)),
        "grad_norm_clip": draw(st.sampled_from([0.0, -1.0, 1e-3, 0.5, 10.0])),
        "learn_entropy": draw(st.booleans()),
        "initial_entropy_value": draw(st.sampled_from([1e-3, 0.2, 1.0, 5.0])),
        "target_entropy": draw(st.sampled_from([None, -7.5, 0.0, 2.0])),
    }


EXTREMES = ("plain", "huge rewards", "saturated actions", "saturated policy", "log_std above", "log_std below", "ties", "all terminated")


def disturb(problem: Problem, extreme: str) -> tuple[Arrays, list[tuple[oracle.Data, Noise[Array]]]]:
    """The state to start from and three batches, with one thing driven to its end."""
    state = problem.initial_state()
    bias = state["policy.head.bias"]
    offset = {"saturated policy": (30.0, 0.0), "log_std above": (0.0, 40.0), "log_std below": (0.0, -60.0)}.get(extreme, (0.0, 0.0))
    signs = np.where(np.arange(problem.action) % 2 == 0, 1.0, -1.0)
    state["policy.head.bias"] = bias + np.concatenate([offset[0] * signs, np.full(problem.action, offset[1])])
    if extreme == "ties":
        for name in [name for name in state if name.startswith(("critic_1.", "target_critic_1."))]:
            for i in range(2, problem.critics + 1):
                state[name.replace("critic_1.", f"critic_{i}.")] = state[name].copy()
    batches = []
    for batch, noise in itertools.islice(problem.draws(), 3):
        if extreme == "huge rewards":
            batch = batch._replace(rewards=1e6 * batch.rewards)
        if extreme == "saturated actions":
            batch = batch._replace(actions=np.sign(batch.actions))
        if extreme == "all terminated":
            batch = batch._replace(terminated=np.ones_like(batch.terminated))
        batches.append((batch, noise))
    return state, batches


def require_agreement(found: dict[str, Implementation], batches: list[tuple[oracle.Data, Noise[Array]]]) -> None:
    traces = side_by_side(found, batches)
    for pair, kinds in traces.pairs.items():
        for kind, trace in kinds.items():
            # An array of sums that cancel, such as a gradient near zero, is as exact as their terms: to rounding of 1, not of itself.
            close = trace.largest_relative.value < 1e-9 or trace.largest_absolute.value < 1e-12
            assert close, (pair, kind, trace.largest_relative, trace.largest_absolute)


@pytest.fixture(scope="module")
def agents() -> dict[str, BackendAgent]:
    """One agent of each backend, to be set to another state by each test: JAX compiles once."""
    return {name: BackendAgent(name, SMALL, SMALL.initial_state()) for name in BACKENDS}


@pytest.mark.parametrize("extreme", EXTREMES)
def test_float64_agrees_at_the_extremes(extreme: str, agents: dict[str, BackendAgent]) -> None:
    state, batches = disturb(SMALL, extreme)
    for agent in agents.values():
        agent.reset(state)
    require_agreement({**agents, "numpy": Oracle(SMALL, state)}, batches)


@pytest.mark.parametrize("examples", [3, pytest.param(8, marks=pytest.mark.full)])
def test_float64_agrees_for_any_configuration(examples: int) -> None:
    """JAX compiles each example."""

    @settings(max_examples=examples, suppress_health_check=[HealthCheck.too_slow])
    @given(configuration=configurations(), extreme=st.sampled_from(EXTREMES))
    def agree(configuration: dict[str, Any], extreme: str) -> None:
        problem = Problem(**configuration)
        state, batches = disturb(problem, extreme)
        require_agreement({name: make(name, problem, state) for name in (*BACKENDS, "numpy")}, batches)

    agree()


@pytest.mark.parametrize("name", BACKENDS)
def test_one_float32_update_is_off_by_rounding_alone(name: str) -> None:
    problem = Problem(dtype="float32")
    found = implementations(problem, [name])
    batch, noise = next(problem.draws())
    outcomes = {each: implementation.update(batch, noise) for each, implementation in found.items()}
    assert {array.dtype for array in outcomes[name].state.values()} == {np.dtype("float32"), np.dtype("int64")}
    ours, control = (compare(outcomes[each], outcomes["numpy"]) for each in (name, "numpy_float32"))
    for kind in ("losses", "gradients"):
        # The control is NumPy in float32: no backend may be much worse than that.
        assert ours[kind][1].relative < max(10 * control[kind][1].relative, 1e-6), (kind, ours[kind][1], control[kind][1])


@pytest.mark.parametrize("name", [*BACKENDS, "numpy"])
def test_trap_01_each_critic_steps_by_its_own_gradient(name: str) -> None:
    state = SMALL.initial_state()
    batch, noise = next(SMALL.draws())
    outcome, truth = (make(each, SMALL, state).update(batch, noise) for each in (name, "numpy"))
    for parameter, gradient in outcome.gradients.items():
        if parameter.startswith("critic_"):
            twin = parameter.replace("critic_1.", "critic_3.").replace("critic_2.", "critic_1.").replace("critic_3.", "critic_2.")
            assert relative(outcome.gradients[twin], gradient) > 0.01
            assert relative(gradient, truth.gradients[parameter]) < 1e-12
            moment = outcome.state[f"critic_optimizer.first_moment.{parameter}"]
            np.testing.assert_allclose(moment, 0.1 * gradient, rtol=1e-12, atol=1e-18)
            # The first step of Adam: the learning rate, against the gradient's sign.
            step = outcome.state[parameter] - state[parameter]
            np.testing.assert_allclose(step, -3e-4 * gradient / (np.abs(gradient) + 1e-8), rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("updates", [50, pytest.param(1000, marks=pytest.mark.full)])
@pytest.mark.parametrize("name", [*BACKENDS, "numpy"])
def test_trap_02_critics_differ_at_first_and_after_many_updates(name: str, updates: int) -> None:
    problem = Problem(observation=3, action=2, hidden=(8,), batch_size=8, replay_size=64)
    implementation = make(name, problem, problem.initial_state())
    draws = list(itertools.islice(problem.draws(), updates))
    if isinstance(implementation, BackendAgent):
        first = implementation.agent.arrays()
        for batch, noise in draws[:-1]:
            implementation.agent.update_on(batch, noise)
    else:
        first = problem.initial_state()
        for batch, noise in draws[:-1]:
            implementation.update(batch, noise)
    outcome = implementation.update(*draws[-1])
    assert outcome.state["gradient_steps"] == updates
    for state in (first, outcome.state):
        for prefix in ("", "target_"):
            one, two = (state[f"{prefix}critic_{i}.hidden.0.kernel"] for i in (1, 2))
            assert relative(one, two) > 0.1


@pytest.mark.parametrize("name", BACKENDS)
def test_trap_02_default_models_draw_each_critic_apart(name: str) -> None:
    agent = BackendAgent(name, SMALL, SMALL.initial_state()).agent
    module = importlib.import_module(f"sacref.{name}")
    spaces = {"observation_space": agent.observation_space, "action_space": agent.action_space}
    models = module.default_models(**spaces, hidden=SMALL.hidden, dtype="float64", num_critics=3, seed=5)
    state = module.SAC(models=models, memory=None, **spaces, cfg=SACConfig()).arrays()
    kernels = [state[f"critic_{i}.hidden.0.kernel"] for i in (1, 2, 3)]
    assert min(relative(a, b) for a, b in itertools.combinations(kernels, 2)) > 0.1
    for i in (1, 2, 3):
        np.testing.assert_array_equal(state[f"target_critic_{i}.head.kernel"], state[f"critic_{i}.head.kernel"])


@pytest.mark.parametrize("name", [*BACKENDS, "numpy"])
def test_trap_03_an_update_has_no_randomness_but_its_noise(name: str) -> None:
    state = SMALL.initial_state()
    batch, noise = next(SMALL.draws())
    other = Noise(noise.next_actions[::-1].copy(), noise.actions[::-1].copy())
    implementation = make(name, SMALL, state)
    outcomes = []
    for each in (noise, noise, other):
        implementation.reset(state)
        outcomes.append(implementation.update(batch, each))
    first, again, different = outcomes
    for field in range(3):
        for key, value in first[field].items():
            np.testing.assert_array_equal(again[field][key], value)
    for loss in ("critic_loss", "policy_loss", "entropy_loss"):
        assert abs(float(different.metrics[loss]) - float(first.metrics[loss])) > 1e-6


@pytest.mark.parametrize("name", BACKENDS)
def test_trap_06_the_box_has_no_part_in_the_update(name: str) -> None:
    """Bounds of 0.4, as Humanoid's, and of 1 give one log-prob, one target entropy and one update."""
    module = importlib.import_module(f"sacref.{name}")
    batch, noise = next(SMALL.draws())
    observation_space = gymnasium.spaces.Box(-math.inf, math.inf, (SMALL.observation,), np.float64)
    found = []
    for low, high in ((-1.0, 1.0), (-0.4, 0.4)):
        spaces = {"observation_space": observation_space, "action_space": gymnasium.spaces.Box(low, high, (SMALL.action,), np.float64)}
        models = module.default_models(**spaces, hidden=SMALL.hidden, dtype="float64")
        agent = module.SAC(models=models, memory=None, **spaces, cfg=SMALL.config())
        found.append((agent.update_on(batch, noise), agent.arrays()))
    expected, first = found[0]
    for metrics, arrays in found[1:]:
        for key, value in expected.items():
            np.testing.assert_array_equal(metrics[key], value)
        assert arrays["log_alpha"] == first["log_alpha"] != math.log(0.5)


@pytest.mark.parametrize("name", [*BACKENDS, "numpy"])
def test_trap_07_gradients_are_clipped_by_the_norm_of_their_group(name: str) -> None:
    """Adam's first moment after one step is 0.1 times the gradient that it was given."""
    limit = 0.01
    for grad_norm_clip, active in ((limit, True), (1e6, False), (0.0, False)):
        problem = Problem(observation=4, action=2, hidden=(8,), batch_size=16, replay_size=64, grad_norm_clip=grad_norm_clip)
        batch, noise = next(problem.draws())
        outcome = make(name, problem, problem.initial_state()).update(batch, noise)
        for optimizer, models in (("policy_optimizer", ("policy.",)), ("critic_optimizer", ("critic_1.", "critic_2."))):
            group = {key: value for key, value in outcome.gradients.items() if key.startswith(models)}
            norm = math.sqrt(sum(float((gradient**2).sum()) for gradient in group.values()))
            assert norm > 10 * limit
            scale = limit / norm if active else 1.0
            for key, gradient in group.items():
                given = outcome.state[oracle.moment_name(optimizer, "first_moment", key)] / 0.1
                np.testing.assert_allclose(given, scale * gradient, rtol=1e-9, atol=1e-18)
        temperature = outcome.gradients["log_alpha"]
        assert abs(temperature) > 10 * limit
        assert outcome.state["temperature_optimizer.first_moment"] == pytest.approx(0.1 * float(temperature), rel=1e-12)


def test_pytorch_multiplies_in_float32_meanwhile_whatever_the_process_has_set(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")

    def settings() -> tuple[str, bool]:
        return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32

    def update_on(*_: object) -> Arrays:
        within.append(settings())
        return {}

    driven, before = BackendAgent("torch", SMALL, SMALL.initial_state()), settings()
    within: list[tuple[str, bool]] = []
    monkeypatch.setattr(driven.agent, "update_on", update_on)
    try:
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = True
        driven.update(*next(SMALL.draws()))
        assert (within, settings()) == ([("highest", False)], ("high", True))
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


@needs_both
def test_both_backends_act_alike_on_the_same_weights() -> None:
    state = SMALL.initial_state()
    observations = np.random.default_rng(0).standard_normal((7, SMALL.observation))
    actions = []
    for name in BACKENDS:
        agent = BackendAgent(name, SMALL, state).agent
        agent.enable_training_mode(False)
        chosen, extra = agent.act(observations, None, timestep=0, timesteps=1)
        np.testing.assert_array_equal(agent.to_numpy(chosen), agent.to_numpy(extra["mean_actions"]))
        actions.append(agent.to_numpy(chosen))
    assert actions[0].shape == (7, SMALL.action)
    assert relative(actions[0], actions[1]) < 1e-14
    assert np.abs(actions[0]).max() > 0.01
