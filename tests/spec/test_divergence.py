"""The divergence of two policies: by hand, against mpmath, and where the two all but agree."""

import inspect
import re
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from mpmath import mp, mpf

from sacref.spec import kl_divergence, log_prob

if TYPE_CHECKING:
    from tests.conftest import Backend

mp.dps = 60


def test_by_hand(xp: "Backend") -> None:
    """Row by row: the mean moves by one deviation; std 1 to 2, log 2 - 3/8; std 2 to 1, 3/2 - log 2; the first two as two actions."""
    log_2 = np.log(2.0)
    divergence = kl_divergence(
        xp.asarray([[1.0, 0.0], [0.0, 0.0], [0.0, 0.0], [1.0, 0.0]]),
        xp.asarray([[0.0, 0.0], [0.0, 0.0], [0.0, log_2], [0.0, 0.0]]),
        xp.asarray([[2.0, 0.0], [0.0, 0.0], [0.0, 0.0], [2.0, 0.0]]),
        xp.asarray([[0.0, 0.0], [0.0, log_2], [0.0, 0.0], [0.0, log_2]]),
    )
    wanted = [0.5, log_2 - 3 / 8, 3 / 2 - log_2, 0.5 + log_2 - 3 / 8]
    np.testing.assert_allclose(xp.numpy(divergence), wanted, rtol=8 * xp.eps)


def test_it_is_the_mean_of_the_difference_of_log_probs(xp: "Backend") -> None:
    """KL(old || new) = E_old[log old - log new], also of the squashed actions: the tanh is the same for both. A million draws."""
    mean, log_std, new_mean, new_log_std = (np.array([[value]]) for value in (0.3, -0.5, 0.1, -0.2))
    u = mean + np.exp(log_std) * np.random.default_rng(0).normal(size=(1_000_000, 1))

    def log_density(
        mean: "np.ndarray[tuple[int, ...], np.dtype[np.float64]]", log_std: float
    ) -> "np.ndarray[tuple[int], np.dtype[np.float64]]":
        found: np.ndarray[tuple[int], np.dtype[np.float64]] = log_prob(np.broadcast_to(mean, u.shape), np.full_like(u, log_std), u)
        return found

    sampled = (log_density(mean, -0.5) - log_density(new_mean, -0.2)).mean()
    exact = kl_divergence(*(xp.asarray(value) for value in (mean, log_std, new_mean, new_log_std)))
    assert float(xp.numpy(exact)[0]) == pytest.approx(sampled, abs=2e-3)
    reverse = kl_divergence(*(xp.asarray(value) for value in (new_mean, new_log_std, mean, log_std)))
    assert abs(float(xp.numpy(reverse)[0]) - sampled) > 0.03, "the other direction is another number"


@given(data=st.data())
def test_against_mpmath(xp: "Backend", data: st.DataObject) -> None:
    def draw(low: float, high: float) -> "np.ndarray[tuple[int, ...], np.dtype[np.floating]]":
        elements = st.floats(low, high, width=xp.width, allow_subnormal=False)
        found: np.ndarray[tuple[int, ...], np.dtype[np.floating]] = data.draw(hnp.arrays(xp.dtype, (2, 3), elements=elements))
        return found

    mean, log_std, new_mean, new_log_std = draw(-50.0, 50.0), draw(-8.0, 2.0), draw(-50.0, 50.0), draw(-8.0, 2.0)
    got = xp.numpy(kl_divergence(*(xp.asarray(array) for array in (mean, log_std, new_mean, new_log_std))))
    for row in range(2):
        exact, size = mpf(0), mpf(0)
        for m, s, n, t in zip(*(map(mpf, array[row].tolist()) for array in (mean, log_std, new_mean, new_log_std)), strict=True):
            shift = ((n - m) / mp.exp(t)) ** 2
            exact += shift / 2 + mp.expm1(2 * (s - t)) / 2 - (s - t)
            # What a relative error of eps in each argument and in each term moves.
            size += shift * (1 + abs(t)) + (abs(m) + abs(n)) * abs(n - m) / mp.exp(2 * t) + abs(mp.expm1(2 * (s - t))) + 2 * abs(s - t)
            size += (abs(s) + abs(t)) * (1 + mp.exp(2 * (s - t)))
        assert abs(mpf(float(got[row])) - exact) <= 16 * mpf(xp.eps) * (size + mpf(2) ** -100)


def test_a_small_step_is_measured_where_a_ratio_of_variances_is_not(xp: "Backend") -> None:
    """Log stds that differ by d: d^2 (1 - 2 d / 3 + ...). At d = 1e-3 the ratio less 1 has lost four digits in float32."""
    zeros = np.zeros((1, 1))
    for step in (1e-2, 1e-3):
        d = float(np.asarray(step, xp.dtype))
        got = kl_divergence(xp.asarray(zeros), xp.asarray(zeros), xp.asarray(zeros), xp.asarray(zeros + step))
        assert float(xp.numpy(got)[0]) == pytest.approx(float(mp.expm1(-2 * mpf(d)) / 2 + mpf(d)), rel=4 * xp.eps / d)


def test_a_policy_that_took_no_step_is_at_exactly_zero(xp: "Backend") -> None:
    generator = np.random.default_rng(1)
    mean, log_std = xp.asarray(generator.normal(size=(64, 6))), xp.asarray(generator.normal(size=(64, 6)))
    assert not xp.numpy(kl_divergence(mean, log_std, mean, log_std)).any()


@pytest.mark.parametrize("argument", ["log_std", "new_mean", "new_log_std"])
def test_unequal_shapes_are_refused(argument: str) -> None:
    arguments = {name: np.zeros((2, 3)) for name in ("mean", "log_std", "new_mean", "new_log_std")} | {argument: np.zeros((2, 1))}
    with pytest.raises(ValueError, match=re.escape(f"kl_divergence: {argument} has shape (2, 1), expected (2, 3) (as mean)")):
        inspect.unwrap(kl_divergence)(**arguments)


def test_time_and_batch_are_elements(xp: "Backend") -> None:
    """The sum is over the actions, the last axis, of however many."""
    arrays = np.random.default_rng(2).normal(size=(4, 2, 3, 5))
    whole = xp.numpy(kl_divergence(*(xp.asarray(array) for array in arrays)))
    flattened = xp.numpy(kl_divergence(*(xp.asarray(array) for array in arrays.reshape(4, 6, 5))))
    assert whole.shape == (2, 3)
    np.testing.assert_allclose(whole.reshape(6), flattened, rtol=4 * xp.eps)
