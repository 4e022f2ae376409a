"""Polyak averaging: between its end points, exact at both ends, linear, and a known value after n steps."""

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sacref.spec import polyak

if TYPE_CHECKING:
    from tests.conftest import Backend


def values(backend: "Backend") -> st.SearchStrategy[float]:
    """Parameters: zero, or of a size whose products with tau do not underflow (JAX flushes subnormal numbers to zero)."""
    size = st.floats(2.0**-60, 2.0**60, width=backend.width)
    return st.one_of(st.just(0.0), size, size.map(lambda x: -x))


taus = st.one_of(st.sampled_from([0.0, 1.0, 0.005]), st.floats(2.0**-30, 1.0))


def test_by_hand(xp: "Backend") -> None:
    moved = polyak(xp.asarray([[0.0, 8.0], [-4.0, 1.0]]), xp.asarray([[4.0, 0.0], [4.0, 1.0]]), 0.25)
    assert xp.numpy(moved).tolist() == [[1.0, 6.0], [-2.0, 1.0]]


def test_tau_is_the_share_of_the_online_parameter(xp: "Backend") -> None:
    assert float(xp.numpy(polyak(xp.asarray(0.0), xp.asarray(1.0), 0.005))) == pytest.approx(0.005, rel=xp.eps)


def test_tau_may_be_an_array(xp: "Backend") -> None:
    target, online = xp.asarray([0.0, 8.0]), xp.asarray([4.0, 0.0])
    assert xp.numpy(polyak(target, online, xp.asarray(0.25))).tolist() == [1.0, 6.0]


@given(data=st.data())
def test_it_stays_between_its_end_points(xp: "Backend", data: st.DataObject) -> None:
    target, online = (np.asarray(data.draw(values(xp)), xp.dtype) for _ in range(2))
    moved = xp.numpy(polyak(xp.asarray(target), xp.asarray(online), data.draw(taus)))
    ulp = np.spacing(np.maximum(np.abs(target), np.abs(online)))
    assert np.minimum(target, online) - ulp <= moved <= np.maximum(target, online) + ulp


@given(data=st.data())
def test_it_is_exact_at_both_ends(xp: "Backend", data: st.DataObject) -> None:
    target, online = (np.asarray(data.draw(values(xp)), xp.dtype) for _ in range(2))
    assert xp.numpy(polyak(xp.asarray(target), xp.asarray(online), 0.0)) == target
    assert xp.numpy(polyak(xp.asarray(target), xp.asarray(online), 1.0)) == online


@given(data=st.data())
def test_it_is_linear(xp: "Backend", data: st.DataObject) -> None:
    tau = data.draw(taus)
    target, online = ([np.asarray(data.draw(values(xp)), xp.dtype) for _ in range(2)] for _ in range(2))
    parts = [xp.numpy(polyak(xp.asarray(old), xp.asarray(new), tau)) for old, new in zip(target, online, strict=True)]
    whole = xp.numpy(polyak(xp.asarray(target[0] + 2.0 * target[1]), xp.asarray(online[0] + 2.0 * online[1]), tau))
    size = sum(float(np.abs(value)) for value in (*target, *online))
    assert float(whole) == pytest.approx(float(parts[0]) + 2.0 * float(parts[1]), rel=0.0, abs=16.0 * xp.eps * size)


@given(data=st.data(), steps=st.integers(1, 50))
def test_closed_form_after_n_steps(xp: "Backend", data: st.DataObject, steps: int) -> None:
    """Towards a fixed online parameter the distance shrinks by 1 - tau a step."""
    tau = data.draw(taus)
    start, online = (np.asarray(data.draw(values(xp)), xp.dtype) for _ in range(2))
    target = xp.asarray(start)
    for _ in range(steps):
        target = polyak(target, xp.asarray(online), tau)
    expected = float(online) + (1.0 - tau) ** steps * (float(start) - float(online))
    size = max(abs(float(start)), abs(float(online)))
    assert float(xp.numpy(target)) == pytest.approx(expected, rel=0.0, abs=2.0 * (steps + 1) * xp.eps * size)
