"""The products that gradient steps are held to are computed, and stay finite."""

import numpy as np
import pytest

from bench import products


@pytest.mark.parametrize(("size", "count"), [(64, 1_908), (256, 30), (1_024, 2)])
def test_a_call_is_about_a_billion_operations(size: int, count: int) -> None:
    assert 2 * products.pairs_of(size) == count


def test_multiplying_by_the_second_matrix_keeps_the_norm() -> None:
    left, right = products.matrices(64)
    assert left.dtype == right.dtype == np.float32
    many = left.astype(np.float64)
    for _ in range(100):
        many = many @ right
    assert np.linalg.norm(many) == pytest.approx(np.linalg.norm(left), rel=1e-4)


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_a_call_multiplies_as_often_as_it_counts(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(backend)
    monkeypatch.setattr(products, "pairs_of", lambda size: 2)
    made = (products.TorchProducts if backend == "torch" else products.JaxProducts)(16)
    left, right = products.matrices(16)
    made.timed.call()
    made.timed.synchronise()
    assert made.timed.count == 4
    found = made.left if backend == "jax" else made.left.cpu()
    np.testing.assert_allclose(np.asarray(found), left @ right @ right @ right @ right, rtol=1e-3, atol=1e-3)
