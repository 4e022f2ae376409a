"""How a difference is measured, and what a comparison refuses."""

import math
from collections.abc import Iterator

import numpy as np
import pytest

from sacref.parity.compare import compare, difference, kind_of, side_by_side
from sacref.parity.drivers import Oracle, Outcome, Problem

SMALL = Problem(observation=3, action=2, hidden=(4,), batch_size=8, replay_size=32)


def test_arrays_are_compared_relative_to_their_largest_element() -> None:
    found = difference(np.array([[1.0, 2.0], [3.0, 10.5]]), np.array([[1.0, 2.25], [3.0, -10.0]]) * np.array([[1, 1], [1, -1]]), "w")
    assert found == (0.5, 0.05, "w[1, 1]")


def test_scalars_are_compared_relative_to_one_or_more() -> None:
    assert difference(np.array(0.5), np.array(0.25), "log_alpha") == (0.25, 0.25, "log_alpha")
    assert difference(np.array(5.0), np.array(-4.0), "log_alpha") == (9.0, 2.25, "log_alpha")


def test_float32_is_compared_in_float64() -> None:
    a, b = np.array([1.0], np.float32), np.array([1.0 + 2.0**-40])
    assert difference(a, b, "w").absolute == 2.0**-40


def test_what_is_not_finite_is_infinitely_far() -> None:
    for a in (np.array([math.nan, 1.0]), np.array([math.inf, 1.0])):
        assert difference(a, np.ones(2), "w").relative == math.inf
        assert difference(np.ones(2), a, "w").relative == math.inf
    assert difference(np.array([0.0, 1e-30]), np.zeros(2), "w") == (1e-30, math.inf, "w[1]")
    assert difference(np.zeros(2), np.zeros(2), "w")[:2] == (0.0, 0.0)


def test_a_shape_or_a_name_that_differs_is_refused() -> None:
    with pytest.raises(ValueError, match=r"w has shape \(2,\) on one side and \(2, 1\)"):
        difference(np.zeros(2), np.zeros((2, 1)), "w")
    with pytest.raises(ValueError, match=r"only one side has \['entropy'\]"):
        compare(Outcome({"entropy": np.zeros(())}, {}, {}), Outcome({}, {}, {}))


def test_every_name_has_its_kind() -> None:
    kinds = {name: kind_of(name) for name in SMALL.initial_state()}
    assert kinds["policy.head.bias"] == kinds["critic_2.hidden.0.kernel"] == "parameters"
    assert kinds["target_critic_1.head.bias"] == "targets"
    assert kinds["critic_optimizer.second_moment.critic_1.head.bias"] == kinds["temperature_optimizer.count"] == "moments"
    assert kinds["gradient_steps"] == "moments"
    assert kinds["log_alpha"] == "alpha"


def test_the_largest_difference_is_found_with_its_update_and_its_place() -> None:
    """One oracle is disturbed at its third update, in one weight and its gradient's moment."""

    class Disturbed(Oracle):
        def update(self, batch, noise):  # type: ignore[no-untyped-def]
            outcome = super().update(batch, noise)
            if self.state["gradient_steps"] == 3:
                moved = self.state["policy.head.bias"].copy()
                moved[1] += 0.25
                return outcome._replace(state={**self.state, "policy.head.bias": moved})
            return outcome

    state = SMALL.initial_state()
    draws = SMALL.draws()

    def five() -> Iterator[object]:
        for _ in range(5):
            yield next(draws)

    traces = side_by_side({"torch": Disturbed(SMALL, state), "numpy": Oracle(SMALL, state)}, five())  # type: ignore[arg-type]
    kinds = traces.pairs["torch", "numpy"]
    assert kinds["parameters"].absolute == [0.0, 0.0, pytest.approx(0.25, rel=1e-12), 0.0, 0.0]
    assert kinds["parameters"].largest_absolute[1:] == (3, "policy.head.bias[1]")
    assert kinds["parameters"].largest_relative.value > 0.25
    assert {kind: trace.largest_relative.value for kind, trace in kinds.items() if kind != "parameters"} == dict.fromkeys(
        ("losses", "gradients", "targets", "moments", "alpha"), 0.0
    )
    assert len(traces.metrics["numpy"]["critic_loss"]) == 5
    assert traces.metrics["numpy"]["critic_loss"] == traces.metrics["torch"]["critic_loss"]
