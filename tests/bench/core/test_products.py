"""The products that gradient steps are held to are computed, and stay finite."""

import numpy as np
import pytest

from bench.core import products


@pytest.mark.parametrize(("shape", "count"), [((64, 64, 64), 1_908), ((256,) * 3, 30), ((1_024,) * 3, 2), ((32, 128, 384), 318)])
def test_a_call_is_about_a_billion_operations(shape: tuple[int, int, int], count: int) -> None:
    assert 2 * products.pairs_of(products.Shape(*shape)) == count


def test_there_and_back_keeps_the_norm_and_is_no_identity() -> None:
    left, there, back = products.matrices(products.Shape(8, 16, 48))
    assert left.dtype == there.dtype == back.dtype == np.float32
    assert (left.shape, there.shape, back.shape) == ((8, 16), (16, 48), (48, 16))
    many = left.astype(np.float64)
    for _ in range(50):
        many = many @ there @ back
    assert np.linalg.norm(many) == pytest.approx(np.linalg.norm(left), rel=1e-4)
    assert np.linalg.norm(left @ there @ back - left) > 0.5 * np.linalg.norm(left)


@pytest.mark.parametrize("backend", ["torch", "jax"])
@pytest.mark.parametrize("shape", [products.Shape(16, 16, 16), products.Shape(4, 16, 48)])
def test_a_call_multiplies_as_often_as_it_counts(backend: str, shape: products.Shape, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(backend)
    monkeypatch.setattr(products, "pairs_of", lambda shape: 2)
    made = (products.TorchProducts if backend == "torch" else products.JaxProducts)(shape)
    left, there, back = products.matrices(shape)
    made.timed.call()
    made.timed.synchronise()
    assert made.timed.count == 4
    found = made.left if backend == "jax" else made.left.cpu()
    np.testing.assert_allclose(np.asarray(found), left @ there @ back @ there @ back, rtol=1e-3, atol=1e-3)
