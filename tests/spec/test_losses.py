"""The three losses and the target: by hand first, then what must hold for every input."""

import math
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sacref.spec import actor_loss, critic_loss, td_target, temperature_loss

if TYPE_CHECKING:
    from tests.conftest import Backend


def arrays(backend: "Backend", *shape: int, size: float = 1000.0) -> st.SearchStrategy[np.ndarray[Any, Any]]:
    """Values of the size of returns and log-probs, none so small that its products underflow."""
    positive = st.floats(2.0**-20, size, width=backend.width)
    return hnp.arrays(backend.dtype, shape, elements=st.one_of(st.just(0.0), positive, positive.map(lambda x: -x)))


def test_td_target_by_hand(xp: "Backend") -> None:
    """1 + 0.9 (min(3, 4) - 0.5 (-1)) = 4.15, and a terminated transition."""
    target = td_target(
        reward=xp.asarray([1.0, 2.0]),
        discount=xp.asarray([0.9, 0.0]),
        next_q=xp.asarray([[3.0, 5.0], [4.0, 1.0]]),
        next_log_prob=xp.asarray([-1.0, 2.0]),
        alpha=xp.asarray(0.5),
    )
    assert xp.numpy(target).tolist() == pytest.approx([4.15, 2.0], rel=2 * xp.eps)


def test_critic_loss_by_hand(xp: "Backend") -> None:
    loss = critic_loss(xp.asarray([[1.0, 2.0], [3.0, 5.0]]), xp.asarray([2.0, 2.0]))
    assert xp.numpy(loss).tolist() == [[0.5, 0.0], [0.5, 4.5]]


def test_actor_loss_by_hand(xp: "Backend") -> None:
    loss = actor_loss(xp.asarray([[1.0, 4.0], [2.0, 3.0]]), xp.asarray([0.5, -1.0]), xp.asarray(0.25))
    assert xp.numpy(loss).tolist() == [0.125 - 1.0, -0.25 - 3.0]


def test_temperature_loss_by_hand(xp: "Backend") -> None:
    loss = temperature_loss(xp.asarray(-0.5), xp.asarray([1.0, -3.0]), -1.0)
    assert xp.numpy(loss).tolist() == [0.0, -2.0]


def test_alpha_may_differ_by_row(xp: "Backend") -> None:
    alpha = xp.asarray([0.25, 2.0])
    q, log_prob = xp.asarray([[1.0, 4.0]]), xp.asarray([0.5, -1.0])
    assert xp.numpy(actor_loss(q, log_prob, alpha)).tolist() == [0.125 - 1.0, -2.0 - 4.0]
    target = td_target(xp.asarray([1.0, 1.0]), xp.asarray([1.0, 0.5]), q, log_prob, alpha)
    assert xp.numpy(target).tolist() == [1.0 + 1.0 - 0.125, 1.0 + 0.5 * 6.0]
    assert xp.numpy(temperature_loss(alpha, log_prob, xp.asarray([-1.0, -2.0]))).tolist() == [0.125, 6.0]


@settings(max_examples=20)
@given(data=st.data())
def test_time_and_batch_are_elements(xp: "Backend", data: st.DataObject) -> None:
    """`(time, batch)` gives what the flattened batch gives."""
    reward, discount, log_prob = (data.draw(arrays(xp, 3, 4)) for _ in range(3))
    q = data.draw(arrays(xp, 2, 3, 4))
    alpha = xp.asarray(0.2)

    def flat(array: np.ndarray[Any, Any]) -> Any:
        return xp.asarray(array.reshape(*array.shape[:-2], 12))

    pairs = [
        (
            td_target(xp.asarray(reward), xp.asarray(discount), xp.asarray(q), xp.asarray(log_prob), alpha),
            td_target(flat(reward), flat(discount), flat(q), flat(log_prob), alpha),
        ),
        (critic_loss(xp.asarray(q), xp.asarray(reward)), critic_loss(flat(q), flat(reward))),
        (actor_loss(xp.asarray(q), xp.asarray(log_prob), alpha), actor_loss(flat(q), flat(log_prob), alpha)),
        (temperature_loss(alpha, xp.asarray(log_prob), -6.0), temperature_loss(alpha, flat(log_prob), -6.0)),
    ]
    for whole, flattened in pairs:
        np.testing.assert_array_equal(xp.numpy(whole).reshape(xp.numpy(flattened).shape), xp.numpy(flattened))


@given(data=st.data())
def test_td_target_of_a_terminated_transition_is_its_reward(xp: "Backend", data: st.DataObject) -> None:
    reward = data.draw(arrays(xp, 4))
    target = td_target(
        xp.asarray(reward),
        xp.asarray(0.99 * (1.0 - np.ones(4))),
        xp.asarray(data.draw(arrays(xp, 2, 4))),
        xp.asarray(data.draw(arrays(xp, 4))),
        xp.asarray(0.2),
    )
    np.testing.assert_array_equal(xp.numpy(target), reward)


def test_trap_11_a_task_that_only_truncates_is_worth_never_ending(xp: "Backend") -> None:
    """Truncated transitions bootstrap, so the target's fixed point is r / (1 - gamma); terminated ones are worth r."""
    reward, gamma = 1.5, 0.9
    rewards, zeros, alpha = xp.asarray([reward, reward]), xp.asarray([0.0, 0.0]), xp.asarray(0.0)
    terminated = np.asarray([False, True])
    q = xp.asarray([[0.0, 0.0]])
    for _ in range(400):
        q = td_target(rewards, xp.asarray(gamma * (1.0 - terminated)), q, zeros, alpha)[None, ...]
    assert xp.numpy(q)[0].tolist() == pytest.approx([reward / (1.0 - gamma), reward], rel=32 * xp.eps)


@given(data=st.data(), critics=st.integers(1, 5))
def test_the_least_critic_counts_in_any_order(xp: "Backend", data: st.DataObject, critics: int) -> None:
    q = data.draw(arrays(xp, critics, 4))
    log_prob = data.draw(arrays(xp, 4))
    order = data.draw(st.permutations(range(critics)))
    zeros, ones, alpha = xp.asarray(np.zeros(4)), xp.asarray(np.ones(4)), xp.asarray(0.5)
    half = np.asarray(0.5, xp.dtype)
    for values in (q, q[list(order)]):
        np.testing.assert_array_equal(
            xp.numpy(td_target(zeros, ones, xp.asarray(values), xp.asarray(log_prob), alpha)), q.min(axis=0) - half * log_prob
        )
        np.testing.assert_array_equal(
            xp.numpy(actor_loss(xp.asarray(values), xp.asarray(log_prob), alpha)), half * log_prob - q.min(axis=0)
        )


@given(data=st.data())
def test_td_target_is_the_reward_and_the_discounted_soft_value(xp: "Backend", data: st.DataObject) -> None:
    """Against float64 element by element, with every input drawn."""
    reward, log_prob = data.draw(arrays(xp, 3)), data.draw(arrays(xp, 3))
    discount, alpha = np.abs(data.draw(arrays(xp, 3, size=1.0))), np.abs(data.draw(arrays(xp, size=1.0)))
    q = data.draw(arrays(xp, 2, 3))
    got = xp.numpy(td_target(*(xp.asarray(array) for array in (reward, discount, q, log_prob, alpha))))
    for i in range(3):
        r, d, a, lp = float(reward[i]), float(discount[i]), float(alpha), float(log_prob[i])
        least = min(float(q[0, i]), float(q[1, i]))
        size = abs(r) + d * (abs(least) + a * abs(lp))
        assert float(got[i]) == pytest.approx(r + d * (least - a * lp), rel=0.0, abs=4 * xp.eps * size)


@settings(max_examples=20)
@given(data=st.data())
def test_the_gradient_of_the_critic_loss_is_the_error(autodiff_xp: "Backend", data: st.DataObject) -> None:
    """Which is what the half is for."""
    xp = autodiff_xp
    q, target = data.draw(arrays(xp, 2, 3)), data.draw(arrays(xp, 3))
    np.testing.assert_allclose(xp.gradient(lambda values: critic_loss(values, xp.asarray(target)), q), q - target[None], rtol=2 * xp.eps)


def test_the_gradient_of_the_actor_loss_reaches_the_least_critic(autodiff_xp: "Backend") -> None:
    xp = autodiff_xp
    q, log_prob, alpha = [[1.0, 4.0], [2.0, 3.0]], [0.5, -1.0], 0.25
    by_q = xp.gradient(lambda x: actor_loss(x, xp.asarray(log_prob), xp.asarray(alpha)), q)
    by_log_prob = xp.gradient(lambda x: actor_loss(xp.asarray(q), x, xp.asarray(alpha)), log_prob)
    assert by_q.tolist() == [[-1.0, 0.0], [0.0, -1.0]]
    assert by_log_prob.tolist() == [0.25, 0.25]


@pytest.mark.parametrize("critics", [2, 4])
def test_critics_that_tie_share_the_gradient(autodiff_xp: "Backend", critics: int) -> None:
    """Equally, on both libraries: one that picks the first drifts from one that halves."""
    xp = autodiff_xp
    tied = np.full((critics + 1, 2), 3.0)
    tied[-1] = 5.0
    zeros, alpha = xp.asarray([0.0, 0.0]), xp.asarray(0.2)
    share = [[1.0 / critics] * 2] * critics + [[0.0, 0.0]]
    assert xp.gradient(lambda q: -actor_loss(q, zeros, alpha), tied).tolist() == share
    assert xp.gradient(lambda q: td_target(zeros, xp.asarray([1.0, 1.0]), q, zeros, alpha), tied).tolist() == share


@given(data=st.data(), target_entropy=st.floats(-20.0, 20.0))
def test_the_temperature_gradient_has_the_sign_of_the_entropy_gap(xp: "Backend", data: st.DataObject, target_entropy: float) -> None:
    """Autodiff on torch and JAX, central differences on the others: entropy - target, so that descent raises alpha when entropy lacks."""
    log_prob = data.draw(arrays(xp, 4, size=50.0))
    log_alpha = data.draw(st.floats(-5.0, 2.0, width=32))
    gradient = float(xp.gradient(lambda x: temperature_loss(x, xp.asarray(log_prob), target_entropy), log_alpha)) / 4.0
    gap = float(np.mean(-log_prob.astype(np.float64))) - target_entropy
    size = float(np.mean(np.abs(log_prob))) + abs(target_entropy)
    rounding = (8.0 * xp.eps if xp.differentiates else 32.0 * xp.eps ** (2 / 3)) * (1.0 + size)
    assert gradient == pytest.approx(gap, rel=0.0, abs=rounding)
    if abs(gap) > rounding:
        assert math.copysign(1.0, gradient) == math.copysign(1.0, gap)


@pytest.mark.parametrize("start", [-3.0, 3.0])
@pytest.mark.parametrize("target_entropy", [-1.0, 0.5])
def test_alpha_moves_towards_the_target(xp: "Backend", start: float, target_entropy: float) -> None:
    """A policy whose entropy is log_alpha: descent brings the entropy to its target, from above and from below, and never away from it."""
    log_alpha = start
    for _ in range(100):
        log_prob = xp.asarray([-log_alpha])
        gradient = xp.gradient(partial(temperature_loss, log_prob=log_prob, target_entropy=target_entropy), log_alpha)
        moved = log_alpha - 0.25 * float(gradient)
        assert abs(moved - target_entropy) <= abs(log_alpha - target_entropy) + 1e-3
        log_alpha = moved
    assert log_alpha == pytest.approx(target_entropy, abs=1e-3)
