"""The proof of the instrument: what is put into the oracle is named, nothing else is, and what no variant explains is said to be none."""

import functools
import itertools
import random
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sacref.algorithm.data import Batch, Noise
from sacref.examine import examine, oracle
from sacref.examine.adapter import record
from sacref.examine.adapters.oracle import OracleAdapter
from sacref.examine.choices import AFTER, VALUES, Choices, canonical
from sacref.examine.identify import identify, replay, step_intervals
from sacref.examine.inject import patched
from sacref.examine.oracle import Oracle
from sacref.examine.problem import Problem, Scene, ordinary, wide
from sacref.parity import data
from sacref.parity import oracle as parity
from sacref.parity.networks import Arrays, Floats, Named
from tests.examine import planted


def test_the_oracle_without_choices_is_that_of_parity() -> None:
    problem = Problem()
    scene = ordinary(problem)
    agent = Oracle(problem, scene.weights)
    sizes: dict[str, Any] = {"observation": problem.observation, "action": problem.action, "hidden": problem.hidden}
    state = data.initial_state(**sizes) | scene.weights
    numbers = parity.Settings(
        target_entropy=-3.0, discount_factor=problem.discount, polyak=problem.tau, learning_rates=(problem.learning_rate,) * 3
    )
    for batch, draws in scene.data():
        agent.update(batch, draws)
        state, _, gradients = parity.update(state, batch, Noise(draws[0], draws[1]), numbers)
        for name, array in agent.weights.items():
            np.testing.assert_allclose(array, state[name], rtol=0, atol=1e-14, err_msg=name)
        for step in agent.gradients:
            for name, array in step.items():
                np.testing.assert_allclose(array, gradients[name], rtol=0, atol=1e-14, err_msg=name)


TOGETHER = list(planted.together())


def test_every_value_is_planted_with_others() -> None:
    seen = {(name, value) for named in TOGETHER for name, value in named.items()}
    expected = {(name, value) for name, values in VALUES.items() if name not in planted.WITH_OPTIONS for value in values[1:]}
    assert expected - seen == set()


@pytest.mark.parametrize("named", TOGETHER, ids=range(len(TOGETHER)))
def test_many_planted_values_are_named_together(named: dict[str, str]) -> None:
    found = planted.examined(named)
    assert found.left is None
    assert list(found.combinations) == [canonical(Choices(**named))]


def test_weights_alone_name_what_gradients_do() -> None:
    for named in (
        {},
        {"target_value": "mean", "policy_noise": "that of the first update, for ever", "temperature_loss": "alpha (log pi + H)"},
    ):
        assert planted.agrees(planted.examined(named, shown=False), named)


SINGLES = list(planted.singles())
TWICE = {"policy_steps": "every second update, two"}


def in_words(named: dict[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in named.items())


@pytest.mark.full
@pytest.mark.parametrize("named", SINGLES, ids=in_words)
def test_each_planted_value_is_named(named: dict[str, str]) -> None:
    assert planted.agrees(planted.examined(named), named)


@pytest.mark.full
@pytest.mark.parametrize("named", [named for named in SINGLES if not TWICE.items() <= named.items()], ids=in_words)
def test_each_planted_value_is_named_from_weights_alone(named: dict[str, str]) -> None:
    assert planted.agrees(planted.examined(named, shown=False), named)


ALIKE = {
    "log_prob": ("log(1 - a^2 + 1e-6)", "log(max(1 - a^2, 1e-6))"),
    "std": ("exp, cut to [-20, 2]", "exp, cut to [-10, 2]"),
}
"""Log-densities, and bounds of the standard deviation, that float32 cannot tell apart."""


@pytest.mark.full
@pytest.mark.parametrize("named", SINGLES, ids=in_words)
def test_each_planted_value_is_named_in_float32(named: dict[str, str]) -> None:
    found = set(planted.examined(named, Problem(dtype="float32")).combinations)
    alike = [named]
    for name, values in ALIKE.items():
        if named.get(name, VALUES[name][0]) in values:
            alike = [each | {name: value} for each in alike for value in values]
    assert {canonical(Choices(**named))} <= found <= {canonical(Choices(**each)) for each in alike}
    assert len(found) == len(alike) or named.get("target_policy") == AFTER  # Its target says more.


@pytest.mark.parametrize("number", [3, pytest.param(300, marks=pytest.mark.full)])
def test_planted_pairs_are_named(number: int) -> None:
    chosen = random.Random(0).sample(list(planted.pairs()), number)
    missed = [named for named in chosen if not planted.agrees(planted.examined(named), named)]
    assert len(missed) <= 0.05 * len(chosen), missed


def test_noise_is_seen_where_a_tanh_bounds_the_deviation_and_the_box_cuts_actions() -> None:
    named = {"squash": "cut at the Box's bounds, not squashed", "std": "exp, bounded to [-20, 2] by a tanh"}
    assert planted.agrees(planted.examined(named), named)


def test_two_steps_of_the_policy_need_gradients() -> None:
    left = planted.examined(TWICE, shown=False).left
    assert left is not None
    assert (left.quantity, left.update) == ("new policy: no optimizer makes this step of one gradient, as weights alone show it", 1)


@pytest.mark.parametrize("examples", [2, pytest.param(50, marks=pytest.mark.full)])
def test_there_is_no_false_alarm(examples: int) -> None:
    @settings(max_examples=examples, database=None)
    @given(st.integers(0, 2**32))
    def clean(seed: int) -> None:
        found = examine(OracleAdapter(), problem=Problem(seed=seed))
        assert (list(found.combinations), found.mistakes) == ([Choices()], [])

    clean()


def test_the_oracle_follows_what_was_identified() -> None:
    named = {"target_alpha": "after its step", "temperature_noise": "its own", "critic_loss": "Huber, summed over critics"}
    trajectory = record(OracleAdapter(**named), ordinary(Problem()))
    ((chosen, order),) = identify([trajectory, record(OracleAdapter(**named), wide(Problem()))]).combinations.items()
    assert order == (0, 1, 2)
    assert max(replay(trajectory, chosen, order).values()) == 0.0
    assert max(replay(trajectory, replace(chosen, critic_loss="(Q - y)^2, summed over critics"), order).values()) > 1e-3


class Twisted(OracleAdapter):
    """An oracle whose gradients or weights are changed on the way."""

    def __init__(self, network: str, *, gradient: float = 1.0, rows: bool = False) -> None:
        super().__init__()
        self.network, self.gradient, self.rows = network, gradient, rows

    def gradients(self) -> Sequence[Named]:
        found: list[Arrays] = []
        for step in super().gradients():
            scale = self.gradient if next(iter(step)).startswith(self.network) else 1.0
            found.append({name: array * scale + (self.rows and name == "critic_1.hidden.0.bias") for name, array in step.items()})
        return found


class Unknown(OracleAdapter):
    """An oracle that computes one quantity as no variant does, by one that replaces the module's own while it updates."""

    def __init__(self, name: str, value: object, **choices: str) -> None:
        super().__init__(**choices)
        self._patch = (oracle, name, value)

    def update(self, batch: Batch[Floats], draws: Floats) -> None:
        with patched([self._patch]):
            super().update(batch, draws)


class Hotter(OracleAdapter):
    """An oracle whose alpha is larger by a factor than exp(log_alpha)."""

    def set_weights(self, weights: Named) -> None:
        super().set_weights({**weights, "log_alpha": weights["log_alpha"] + np.log(1.5)})

    def weights(self) -> Arrays:
        found = super().weights()
        return {**found, "log_alpha": found["log_alpha"] - np.log(1.5)}


def huber(q: Floats, y: Floats, kind: str, *, number: int, size: int) -> Floats:
    """Differentiate a Huber loss of another width."""
    return np.asarray(np.clip(q - y, -0.6, 0.6) / size)


def twins_apart(q: Floats, y: Floats, kind: str, *, number: int, size: int) -> Floats:
    """Differentiate a known loss whose critics have a target each."""
    return np.asarray((q - y + np.array([[0.5], [-0.5]])) / size)


def rewarded(batch: Batch[Floats], *arguments: Any) -> Floats:
    """Add a bonus to the target."""
    bonus: Floats = oracle_target(batch, *arguments) + 0.1 * np.tanh(batch.observations[:, 0])
    return bonus


def wider(u: Floats, kind: str, scale: float) -> tuple[Floats, Floats]:
    """Compute the tanh's correction with an epsilon that no variant has."""
    a = np.tanh(u)
    return np.log(1 - a**2 + 1e-3), -2 * a * (1 - a**2) / (1 - a**2 + 1e-3)


def cloned(drawn: oracle.Draw, gradient: oracle.Gradient, slopes: Floats, alpha: float, choices: Choices) -> Arrays:
    """Add a squared distance of the actions to the policy's loss."""
    return policy_gradients(drawn, gradient, slopes - 0.1 * drawn.action, alpha, choices)


def decayed(drawn: oracle.Draw, gradient: oracle.Gradient, slopes: Floats, alpha: float, choices: Choices) -> Arrays:
    """Add a norm of the weights to the policy's loss."""
    return {name: array + 0.01 for name, array in policy_gradients(drawn, gradient, slopes, alpha, choices).items()}


oracle_target, policy_gradients = oracle.target, oracle.policy_gradients
HUBER = "Huber, summed over critics"
ROWS = "it is not one of these rows of the batch"
SHOWN_UNKNOWN: list[object] = [
    (f"critic gradient: {ROWS}", Twisted("", rows=True)),
    pytest.param("critic loss", Twisted("critic_", gradient=1.3), marks=pytest.mark.full),
    pytest.param("actor loss", Twisted("policy", gradient=1.3), marks=pytest.mark.full),
    ("temperature gradient", Twisted("log_alpha", gradient=1.3)),
]
UNKNOWN: list[object] = [
    ("critic loss", Unknown("critic_errors", huber)),
    ("target", Unknown("target", rewarded)),
    pytest.param("target", Unknown("target", rewarded, critic_loss=HUBER), marks=pytest.mark.full),
    pytest.param("target or critic loss", Unknown("critic_errors", twins_apart), marks=pytest.mark.full),
    pytest.param("alpha: the target is a known one with an alpha of 0.45", Hotter(), marks=pytest.mark.full),
    ("log-density", Unknown("tanh_correction", wider)),
    ("actor loss", Unknown("policy_gradients", cloned)),
    (f"policy gradient: {ROWS}", Unknown("policy_gradients", decayed)),
]


@pytest.mark.parametrize(("quantity", "adapter"), SHOWN_UNKNOWN + UNKNOWN, ids=lambda value: value if isinstance(value, str) else "")
@pytest.mark.parametrize("dtype", ["float64", pytest.param("float32", marks=pytest.mark.full)])
def test_the_first_quantity_that_leaves_every_variant_is_named(quantity: str, adapter: OracleAdapter, dtype: str) -> None:
    first_left(quantity, adapter, ordinary(Problem(dtype=dtype), updates=1), shown=True)


@pytest.mark.full
@pytest.mark.parametrize(("quantity", "adapter"), UNKNOWN, ids=lambda value: value if isinstance(value, str) else "")
def test_the_first_quantity_that_leaves_every_variant_is_named_from_weights_alone(quantity: str, adapter: OracleAdapter) -> None:
    first_left(quantity, adapter, ordinary(Problem(), updates=1), shown=False)


def first_left(quantity: str, adapter: OracleAdapter, scene: Scene, *, shown: bool) -> None:
    observe = functools.partial(planted.observed, adapter, shown=shown)
    found = identify([observe(scene)], observe)
    assert not found.combinations
    assert found.left is not None
    assert (found.left.quantity, found.left.update) == (quantity, 0)


class Halved(OracleAdapter):
    """An oracle whose steps are half as long as its learning rate says, or whose target networks move twice as fast."""

    def __init__(self, network: str) -> None:
        super().__init__()
        self.network = network

    def update(self, batch: Batch[Floats], draws: Floats) -> None:
        before = self.weights()
        super().update(batch, draws)
        for name, array in self.agent.weights.items():
            if name.startswith(self.network):
                self.agent.weights[name] = before[name] + (array - before[name]) / 2


@pytest.mark.parametrize(
    ("network", "quantity"),
    [
        ("critic_", "new critics: no optimizer makes this step of its gradient"),
        ("policy", "new policy: no optimizer makes this step of its gradient"),
        ("log_alpha", "new alpha: no optimizer makes this step of its gradient"),
        ("target_", "target networks"),
    ],
)
def test_steps_that_do_not_follow_from_their_gradients_are_named(network: str, quantity: str) -> None:
    found = identify([record(Halved(network), ordinary(Problem(), updates=1))])
    assert found.left is not None
    assert found.left.quantity == quantity


def left_of(adapter: OracleAdapter, *, dtype: str = "float64", shown: bool = True) -> dict[str, tuple[str, int]]:
    """Name the step intervals of an adapter that are no variant, and the updates that say so."""
    _, lefts = step_intervals([planted.observed(adapter, ordinary(Problem(dtype=dtype)), shown=shown)])
    return {network: (left.quantity, left.update) for network, left in lefts.items()}


@pytest.mark.parametrize(("dtype", "shown"), [("float64", True), ("float64", False), ("float32", True)])
def test_step_intervals_that_are_no_variant_are_named(dtype: str, shown: bool) -> None:
    for delay, parts, network, update in (
        (2, ("critic_",), "critics", 0),
        (3, ("policy", "log_alpha"), "policy", 1),
        (2, ("policy",), "temperature", 0),
        (3, ("target_",), "target networks", 1),
    ):
        found = left_of(planted.Delayed(delay, *parts), dtype=dtype, shown=shown)
        assert found == {network: (f"step interval of the {network}", update)}


def test_two_steps_of_the_policy_at_every_update_are_no_variant() -> None:
    assert left_of(Unknown("steps_at", lambda *_: 2, **TWICE))["policy"] == ("step interval of the policy", 0)


def test_step_intervals_of_variants_are_named() -> None:
    for policy, averaging in itertools.product(VALUES["policy_steps"], VALUES["averaging_interval"]):
        named = {"policy_steps": policy, "averaging_interval": averaging}
        scenes = [record(OracleAdapter(**named), scene) for scene in (ordinary(Problem()), wide(Problem()))]
        assert step_intervals(scenes) == (named, {})


@pytest.mark.parametrize("parts", [("policy", "log_alpha"), pytest.param(("target_",), marks=pytest.mark.full)])
def test_an_agent_in_float32_that_steps_at_every_third_update_is_no_variant(parts: tuple[str, ...]) -> None:
    found = identify([record(planted.Delayed(3, *parts), ordinary(Problem(dtype="float32"), updates=3))])
    assert not found.combinations
    assert found.left is not None
    network, field = ("policy", "policy_steps") if "policy" in parts else ("target networks", "averaging_interval")
    assert found.left.quantity == f"step interval of the {network}"
    assert field not in found.partial


def test_choices_that_do_not_follow_all_updates_are_no_variant() -> None:
    # Adam's first step, which is all that weights show the gradient of, does not depend on its decays.
    adam = oracle.Adam.of(Choices())._replace(decays=(0.7, 0.999))
    other = Unknown("Adam", SimpleNamespace(of=lambda _: adam))
    found = identify([planted.observed(other, ordinary(Problem(), updates=3), shown=False)])
    assert not found.combinations
    assert found.left is not None
    assert found.left.quantity == "policy, after several updates"


def test_values_of_other_words_are_refused() -> None:
    with pytest.raises(ValueError, match="Choices: target_value is 'median', expected one of 'min', 'mean', 'the first'"):
        Choices(target_value="median")


def test_choices_that_no_order_of_steps_gives_are_refused() -> None:
    with pytest.raises(
        ValueError, match="Oracle: target_policy and policy_critics are both after their step, which no order of steps gives"
    ):
        Oracle(Problem(), ordinary(Problem()).weights, Choices(target_policy="after its step"))
