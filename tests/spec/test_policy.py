"""The squashed Gaussian: against mpmath from its own float inputs, as a density, and where its gradient is delicate."""

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from mpmath import mp, mpf
from numpy.typing import NDArray

from sacref.spec import bound_log_std, log_prob, squash

if TYPE_CHECKING:
    from tests.conftest import Backend

mp.dps = 60  # cosh^2 50 has 43 digits, and float64 needs 16 beyond them
Floats = NDArray[Any]


def assert_accurate(got: float, exact: Any, weighted_gradients: list[Any], eps: float) -> None:
    """|got - f| <= 32 eps (1 + condition) |f|, where condition = sum_i |x_i df/dx_i| / |f| over all inputs x_i.

    Multiplied out, so that f = 0 needs no case of its own. What is under the smallest normal number may be flushed to zero.
    """
    bound = 32 * mpf(eps) * (abs(exact) + sum(abs(term) for term in weighted_gradients)) + mpf(2) ** (-126 if eps > 1e-10 else -1022)
    error = abs(mpf(float(got)) - exact)
    assert error <= bound, f"got {got}, exact {mp.nstr(exact, 20)}: error {mp.nstr(error, 5)}, bound {mp.nstr(bound, 5)}"


def exact_log_prob(mean: Floats, log_std: Floats, pre_tanh: Floats) -> tuple[Any, list[Any]]:
    """log pi of one row and x df/dx of each input, from its definition: log N(u) - log(1 - tanh^2 u)."""
    total, weighted_gradients = mpf(0), []
    for m, s, u in zip(*(map(mpf, row.tolist()) for row in (mean, log_std, pre_tanh)), strict=True):
        z = (u - m) / mp.exp(s)
        total += -z * z / 2 - s - mp.log(2 * mp.pi) / 2 - mp.log(1 / mp.cosh(u) ** 2)
        weighted_gradients += [m * z / mp.exp(s), s * (z * z - 1), u * (2 * mp.tanh(u) - z / mp.exp(s))]
    return total, weighted_gradients


def exact_squash(mean: Floats, log_std: Floats, noise: Floats) -> tuple[Any, list[Any], list[tuple[Any, list[Any]]]]:
    """log pi of one row and its x df/dx, and for each action the same."""
    total, weighted_gradients, actions = mpf(0), [], []
    for m, s, n in zip(*(map(mpf, row.tolist()) for row in (mean, log_std, noise)), strict=True):
        std = mp.exp(s)
        u = m + std * n
        total += -n * n / 2 - s - mp.log(2 * mp.pi) / 2 - mp.log(1 / mp.cosh(u) ** 2)
        slope = 2 * mp.tanh(u)
        weighted_gradients += [m * slope, s * (slope * std * n - 1), n * (slope * std - n)]
        actions.append((mp.tanh(u), [term / mp.cosh(u) ** 2 for term in (m, s * std * n, std * n)]))
    return total, weighted_gradients, actions


@st.composite
def rows(draw: st.DrawFn, backend: "Backend", log_std_low: float = -20.0) -> tuple[Floats, Floats, Floats]:
    """mean in [-50, 50], log_std in [low, 2] and pre_tanh in [-50, 50], of one shape (batch, action)."""
    shape = draw(st.sampled_from([(1, 1), (3, 1), (2, 6)]))

    def array(low: float, high: float) -> Floats:
        elements = st.floats(low, high, width=backend.width, allow_subnormal=False)
        return draw(hnp.arrays(backend.dtype, shape, elements=elements))

    return array(-50.0, 50.0), array(log_std_low, 2.0), array(-50.0, 50.0)


def as_noise(mean: Floats, log_std: Floats, wanted: Floats) -> Floats:
    """A draw of at most 10 standard deviations that keeps |mean + e^log_std noise| <= 50."""
    reach = np.minimum(10.0, (50.0 - np.abs(mean)) / np.exp(log_std))
    noise: Floats = (wanted / 50.0 * reach).astype(mean.dtype)
    return noise


def test_log_prob_by_hand(xp: "Backend") -> None:
    """Row by row: the standard normal at 0; one action at u = 1; the two together; std 2 at one deviation."""
    mean = xp.asarray([[0.0, 0.0], [0.0, 0.0], [-2.0, 0.0]])
    log_std = xp.asarray([[0.0, 0.0], [0.0, 0.0], [math.log(2.0), 0.0]])
    pre_tanh = xp.asarray([[0.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    at_zero = -0.9189385332046727  # -log(2 pi) / 2
    at_one = -0.5 + at_zero + 0.8675616609660546  # log(1 - tanh^2 1) = log 0.4199743416
    expected = [2.0 * at_zero, at_zero + at_one, -0.5 - 0.6931471805599453 + 2.0 * at_zero]
    assert xp.numpy(log_prob(mean, log_std, pre_tanh)).tolist() == pytest.approx(expected, rel=4 * xp.eps)


def test_squash_by_hand(xp: "Backend") -> None:
    """u = 0.5 + 2 (-0.25) = 0 and u = 1: actions 0 and tanh 1."""
    action, density = squash(xp.asarray([[0.5, 0.0]]), xp.asarray([[math.log(2.0), 0.0]]), xp.asarray([[-0.25, 1.0]]))
    assert xp.numpy(action)[0].tolist() == pytest.approx([0.0, 0.7615941559557649], rel=4 * xp.eps, abs=xp.eps)
    expected = (-0.03125 - 0.6931471805599453 - 0.9189385332046727) + (-0.5 - 0.9189385332046727 + 0.8675616609660546)
    assert xp.numpy(density).tolist() == pytest.approx([expected], rel=4 * xp.eps)


def test_time_and_batch_axes_are_kept(xp: "Backend") -> None:
    generator = np.random.default_rng(0)
    mean, log_std, noise = (xp.asarray(generator.normal(size=(4, 5, 3))) for _ in range(3))
    action, density = squash(mean, log_std, noise)
    assert (xp.numpy(action).shape, xp.numpy(density).shape) == ((4, 5, 3), (4, 5))
    for step in range(4):
        step_action, step_density = squash(mean[step, ...], log_std[step, ...], noise[step, ...])
        np.testing.assert_allclose(xp.numpy(action)[step], xp.numpy(step_action), rtol=4 * xp.eps)
        np.testing.assert_allclose(xp.numpy(density)[step], xp.numpy(step_density), rtol=32 * xp.eps)


@given(data=st.data())
def test_log_prob_is_accurate(xp: "Backend", data: st.DataObject) -> None:
    mean, log_std, pre_tanh = data.draw(rows(xp))
    got = xp.numpy(log_prob(xp.asarray(mean), xp.asarray(log_std), xp.asarray(pre_tanh)))
    for row, density in enumerate(got):
        exact, weighted_gradients = exact_log_prob(mean[row], log_std[row], pre_tanh[row])
        assert_accurate(density, exact, weighted_gradients, xp.eps)


@given(data=st.data())
def test_squash_is_accurate(xp: "Backend", data: st.DataObject) -> None:
    mean, log_std, wanted = data.draw(rows(xp))
    noise = as_noise(mean, log_std, wanted)
    actions, densities = squash(xp.asarray(mean), xp.asarray(log_std), xp.asarray(noise))
    for row, (action, density) in enumerate(zip(xp.numpy(actions), xp.numpy(densities), strict=True)):
        exact, weighted_gradients, exact_actions = exact_squash(mean[row], log_std[row], noise[row])
        assert_accurate(density, exact, weighted_gradients, xp.eps)
        for one, (exact_action, action_gradients) in zip(action, exact_actions, strict=True):
            assert_accurate(one, exact_action, action_gradients, xp.eps)


@given(data=st.data())
def test_round_trip(xp: "Backend", data: st.DataObject) -> None:
    """The log-density that `squash` gives from the noise is `log_prob`'s of the u that it used.

    Float64 and log_std >= -5 only: u = mean + std noise forgets the noise's last digits, |u| / std of them.
    """
    if xp.dtype == "float32":
        pytest.skip("float32 keeps too little of the noise in u")
    mean, log_std, wanted = data.draw(rows(xp, log_std_low=-5.0))
    noise = as_noise(mean, log_std, wanted)
    _, from_noise = squash(xp.asarray(mean), xp.asarray(log_std), xp.asarray(noise))
    pre_tanh = mean + np.exp(log_std) * noise
    of_pre_tanh = xp.numpy(log_prob(xp.asarray(mean), xp.asarray(log_std), xp.asarray(pre_tanh)))
    forgotten = xp.eps * (np.abs(pre_tanh) + np.abs(mean)) / np.exp(log_std) + 8.0 * xp.eps * np.abs(noise)
    size = 0.5 * noise**2 + np.abs(log_std) + 2.0 * np.abs(pre_tanh) + 1.0
    bound = (np.abs(noise) * forgotten + 0.5 * forgotten**2 + 8.0 * xp.eps * size).sum(axis=-1)
    assert (np.abs(of_pre_tanh - xp.numpy(from_noise)) <= bound).all()


@given(data=st.data())
def test_the_action_is_the_tanh_of_what_is_scored(xp: "Backend", data: st.DataObject) -> None:
    """Where tanh is not saturated, u is found again from the action."""
    if xp.dtype == "float32":
        pytest.skip("float32 keeps too little of u in the action")
    mean, log_std, wanted = data.draw(rows(xp, log_std_low=-5.0))
    mean = mean / 50.0
    noise = np.clip(as_noise(mean, log_std, wanted), -2.0 / np.exp(log_std), 2.0 / np.exp(log_std))
    action, from_noise = squash(xp.asarray(mean), xp.asarray(log_std), xp.asarray(noise))
    of_action = log_prob(xp.asarray(mean), xp.asarray(log_std), xp.asarray(np.arctanh(xp.numpy(action))))
    # 1e-16 of an action is 1e-14 of u at |u| <= 3, 1.5e-12 standard deviations at log_std = -5, and 10 of those are 1.5e-11 nats.
    np.testing.assert_allclose(xp.numpy(of_action), xp.numpy(from_noise), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("log_std", [-5.0, -1.0, 0.0, 2.0])
@pytest.mark.parametrize("mean", [-30.0, -1.0, 0.0, 2.5, 30.0])
def test_the_density_integrates_to_one(xp: "Backend", mean: float, log_std: float) -> None:
    """Over the pre-tanh variable, whose density is pi(tanh u) (1 - tanh^2 u).

    The trapezoid rule, which for a Gaussian is exact to rounding at 8 points a standard deviation.
    """
    std = math.exp(log_std)
    nodes = np.linspace(mean - 10.0 * std, mean + 10.0 * std, 161)[:, None]
    pre_tanh = nodes.astype(xp.dtype)
    ones = np.ones_like(pre_tanh)
    density = xp.numpy(log_prob(xp.asarray(mean * ones), xp.asarray(log_std * ones), xp.asarray(pre_tanh))).astype(np.float64)
    log_jacobian = -2.0 * np.log(np.cosh(pre_tanh[:, 0].astype(np.float64)))
    total = np.sum(np.exp(density + log_jacobian)) * std / 8.0
    # A float32 node is off by up to 30 eps / std standard deviations.
    assert total == pytest.approx(1.0, abs=200.0 * xp.eps * (1.0 + abs(mean) / std))


def test_two_actions_integrate_to_one(xp: "Backend") -> None:
    axis = np.linspace(-12.0, 12.0, 97)
    pre_tanh = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1)
    mean, log_std = np.broadcast_to([0.5, -1.0], pre_tanh.shape), np.broadcast_to([0.2, -0.3], pre_tanh.shape)
    density = xp.numpy(log_prob(xp.asarray(mean), xp.asarray(log_std), xp.asarray(pre_tanh))).astype(np.float64)
    total = np.sum(np.exp(density - 2.0 * np.log(np.cosh(pre_tanh)).sum(axis=-1))) * 0.25**2
    assert total == pytest.approx(1.0, abs=100.0 * xp.eps)


@pytest.mark.parametrize("sign", [-1.0, 1.0])
@pytest.mark.parametrize("size", [20.0, 50.0])
def test_trap_05_a_saturated_tanh_is_scored_exactly(xp: "Backend", size: float, sign: float) -> None:
    """-log(1 - a^2 + 1e-6) would add 13.8 nats at either; the truth is 38.6 at 20 and 98.6 at 50."""
    pre_tanh = xp.asarray([[sign * size]])
    expected = -0.9189385332046727 + 2.0 * (size - 0.6931471805599453)
    assert xp.numpy(log_prob(pre_tanh, xp.asarray([[0.0]]), pre_tanh)).tolist() == pytest.approx([expected], rel=4 * xp.eps)
    action, density = squash(pre_tanh, xp.asarray([[0.0]]), xp.asarray([[0.0]]))
    assert xp.numpy(action).tolist() == [[sign]]
    assert xp.numpy(density).tolist() == pytest.approx([expected], rel=4 * xp.eps)


@pytest.mark.parametrize("pre_tanh", [-50.0, -20.0, -1.0, 0.0, 1e-3, 1.0, 20.0, 50.0])
def test_trap_05_gradients_where_tanh_saturates(autodiff_xp: "Backend", pre_tanh: float) -> None:
    """d log pi / d u = 2 tanh u - (u - mean) / std^2, at zero and far out: neither 0 / 0 nor a lost digit."""
    xp = autodiff_xp
    mean, log_std = pre_tanh - 0.5, -0.25
    gradient = xp.gradient(lambda u: log_prob(xp.asarray([[mean]]), xp.asarray([[log_std]]), u), [[pre_tanh]])
    u, m = float(np.asarray(pre_tanh, xp.dtype)), float(np.asarray(mean, xp.dtype))
    expected = 2.0 * math.tanh(u) - (u - m) * math.exp(0.5)
    assert gradient.tolist() == [[pytest.approx(expected, rel=0.0, abs=32 * xp.eps)]]


@pytest.mark.parametrize("mean", [-50.0, -1.0, 0.0, 0.3, 50.0])
def test_gradients_of_the_reparameterised_density(autodiff_xp: "Backend", mean: float) -> None:
    """With the noise held: d log pi / d mean = 2 tanh u, and d log pi / d log_std = 2 tanh u std noise - 1."""
    xp = autodiff_xp
    log_std, noise = -0.5, 0.75
    std = math.exp(log_std)
    slope = 2.0 * math.tanh(float(np.asarray(mean, xp.dtype)) + std * noise)
    by_mean = xp.gradient(lambda x: squash(x, xp.asarray([[log_std]]), xp.asarray([[noise]]))[1], [[mean]])
    by_log_std = xp.gradient(lambda x: squash(xp.asarray([[mean]]), x, xp.asarray([[noise]]))[1], [[log_std]])
    assert by_mean.tolist() == [[pytest.approx(slope, rel=0.0, abs=16 * xp.eps)]]
    assert by_log_std.tolist() == [[pytest.approx(slope * std * noise - 1.0, rel=0.0, abs=16 * xp.eps)]]


def test_trap_06_the_log_prob_is_in_units_of_the_unit_interval(xp: "Backend") -> None:
    """Over the action itself the density integrates to one on (-1, 1), whatever the bounds of a task are."""
    nodes, weights = np.polynomial.legendre.leggauss(60)
    pre_tanh = xp.asarray(np.arctanh(nodes)[:, None])
    mean, log_std = xp.asarray(np.full((60, 1), 0.2)), xp.asarray(np.full((60, 1), -0.7))
    density = np.exp(xp.numpy(log_prob(mean, log_std, pre_tanh)).astype(np.float64))
    assert float(np.sum(weights * density)) == pytest.approx(1.0, abs=max(1e-7, 16 * xp.eps))


def test_trap_06_seventeen_actions_are_seventeen_times_one(xp: "Backend") -> None:
    """Humanoid's bounds of 0.4 would add -17 log 0.4 = 15.6 nats if the scale were inside."""
    one = log_prob(*(xp.asarray([[value]]) for value in (0.1, -0.5, 0.7)))
    all_actions = log_prob(*(xp.asarray([[value] * 17]) for value in (0.1, -0.5, 0.7)))
    assert float(xp.numpy(all_actions)[0]) == pytest.approx(17.0 * float(xp.numpy(one)[0]), rel=32 * xp.eps)
    z = (0.7 - 0.1) * math.exp(0.5)
    expected = -0.5 * z * z + 0.5 - 0.9189385332046727 - math.log(1.0 - math.tanh(0.7) ** 2)
    assert float(xp.numpy(one)[0]) == pytest.approx(expected, rel=32 * xp.eps)


def test_bound_log_std_by_hand(xp: "Backend") -> None:
    raw = xp.asarray([[-math.inf, -20.5, -20.0, -19.5, 0.0, 1.5, 2.0, 2.5, math.inf]])
    assert xp.numpy(bound_log_std(raw)).tolist() == [[-20.0, -20.0, -20.0, -19.5, 0.0, 1.5, 2.0, 2.0, 2.0]]
    assert xp.numpy(bound_log_std(raw, low=-5.0, high=1.0)).tolist() == [[-5.0, -5.0, -5.0, -5.0, 0.0, 1.0, 1.0, 1.0, 1.0]]


def test_bound_log_std_hides_no_nan(xp: "Backend") -> None:
    assert np.isnan(xp.numpy(bound_log_std(xp.asarray([[math.nan]])))).all()


def test_bound_log_std_refuses_crossed_bounds(xp: "Backend") -> None:
    with pytest.raises(ValueError, match=r"low is 2\.0 and high is -20\.0, expected low <= high: swap them"):
        bound_log_std(xp.asarray([[0.0]]), low=2.0, high=-20.0)
    assert xp.numpy(bound_log_std(xp.asarray([[-1.0, 3.0]]), low=0.5, high=0.5)).tolist() == [[0.5, 0.5]]


def test_bound_log_std_has_one_gradient_on_both_libraries(autodiff_xp: "Backend") -> None:
    """1 inside and at either bound, 0 outside."""
    gradient = autodiff_xp.gradient(bound_log_std, [[-20.5, -20.0, -19.5, 0.0, 2.0, 2.5]])
    assert gradient.tolist() == [[0.0, 1.0, 1.0, 1.0, 1.0, 0.0]]
