"""The first weights of the default models: their shapes, their distribution and their seeds."""

import math
import zlib

import numpy as np
import pytest

from sacref.agent.networks import Cell, dense_layers, residual_layers


def test_layers_have_the_common_names_and_shapes() -> None:
    layers = dense_layers(inputs=3, hidden=(5, 7), outputs=2, seed=0, model="policy")
    assert {name: array.shape for name, array in layers.items()} == {
        "hidden.0.kernel": (3, 5),
        "hidden.0.bias": (5,),
        "hidden.1.kernel": (5, 7),
        "hidden.1.bias": (7,),
        "head.kernel": (7, 2),
        "head.bias": (2,),
    }
    assert {array.dtype for array in layers.values()} == {np.dtype(np.float64)}
    assert list(dense_layers(inputs=3, hidden=(), outputs=2, seed=0, model="policy")) == ["head.kernel", "head.bias"]


@pytest.mark.parametrize(
    ("part", "inputs", "outputs"), [("hidden.0.kernel", 16, 900), ("hidden.1.kernel", 900, 800), ("head.kernel", 800, 700)]
)
def test_kernels_are_uniform_within_glorots_bound_and_biases_zero(part: str, inputs: int, outputs: int) -> None:
    layers = dense_layers(inputs=16, hidden=(900, 800), outputs=700, seed=1, model="policy")
    array = layers[part] / math.sqrt(6 / (inputs + outputs))
    assert 0.99 < array.max() <= 1.0
    assert -1.0 <= array.min() < -0.99
    # Mean 0 and standard deviation 1 / sqrt(3), within five standard errors.
    assert abs(array.mean()) < 5 / math.sqrt(3 * array.size)
    assert array.std() == pytest.approx(1 / math.sqrt(3), rel=5 / math.sqrt(array.size))
    assert not layers[part.replace("kernel", "bias")].any()


def test_trap_02_each_model_and_seed_has_a_draw_of_its_own() -> None:
    draws = [dense_layers(inputs=3, hidden=(4,), outputs=1, seed=s, model=m) for s in (0, 1) for m in ("critic_1", "critic_2", "policy")]
    for name in ("hidden.0.kernel", "head.kernel"):
        assert len({draw[name].tobytes() for draw in draws}) == 6
    assert np.unique(np.concatenate([array.ravel() for name, array in draws[0].items() if "kernel" in name])).size == 3 * 4 + 4


def test_a_draw_does_not_depend_on_what_was_drawn_before() -> None:
    first = dense_layers(inputs=3, hidden=(4,), outputs=1, seed=0, model="critic_1")
    dense_layers(inputs=3, hidden=(4,), outputs=1, seed=0, model="critic_2")
    second = dense_layers(inputs=3, hidden=(4,), outputs=1, seed=0, model="critic_1")
    assert all(np.array_equal(first[name], second[name]) for name in first)


def test_a_seed_gives_these_numbers() -> None:
    """A change of the stream would change every published run."""
    layers = dense_layers(inputs=4, hidden=(2,), outputs=1, seed=0, model="critic_1")
    np.testing.assert_allclose(layers["hidden.0.kernel"][0], [-0.40899767930585584, -0.8204689650940613], rtol=1e-12)


# Recurrent cells and norms.


@pytest.mark.parametrize(("kind", "gates"), [("rnn", 1), ("gru", 3), ("lstm", 4)])
def test_a_cell_is_uniform_within_pytorchs_bound(kind: str, gates: int) -> None:
    layers = dense_layers(inputs=403, hidden=(5,), outputs=2, seed=0, model="policy", cell=Cell(kind, 300, 400))
    assert {name: array.shape for name, array in layers.items() if name.startswith("cell.")} == {
        "cell.input.kernel": (300, gates * 400),
        "cell.input.bias": (gates * 400,),
        "cell.hidden.kernel": (400, gates * 400),
        "cell.hidden.bias": (gates * 400,),
    }
    for name in [name for name in layers if name.startswith("cell.")]:
        array = layers[name] * math.sqrt(400)
        assert 0.98 < array.max() <= 1.0
        assert -1.0 <= array.min() < -0.98
        assert abs(array.mean()) < 5 / math.sqrt(3 * array.size)
        assert array.std() == pytest.approx(1 / math.sqrt(3), rel=5 / math.sqrt(array.size))
    assert np.unique(np.concatenate([layers[name].ravel() for name in layers if name.startswith("cell.")])).size == gates * 400 * 702


def test_a_cell_is_drawn_before_the_dense_layers() -> None:
    layers = dense_layers(inputs=5, hidden=(4,), outputs=1, seed=3, model="critic_1", cell=Cell("gru", 6, 2))
    stream = np.random.default_rng([3, zlib.crc32(b"critic_1")])
    for name, shape in (("input.kernel", (6, 6)), ("input.bias", (6,)), ("hidden.kernel", (2, 6)), ("hidden.bias", (6,))):
        np.testing.assert_array_equal(layers[f"cell.{name}"], stream.uniform(-1 / math.sqrt(2), 1 / math.sqrt(2), shape))
    bound = math.sqrt(6 / 9)
    np.testing.assert_array_equal(layers["hidden.0.kernel"], stream.uniform(-bound, bound, (5, 4)))


def test_norms_begin_as_the_identity_and_change_no_other_draw() -> None:
    plain = dense_layers(inputs=3, hidden=(5, 7), outputs=2, seed=0, model="critic_1")
    normed = dense_layers(inputs=3, hidden=(5, 7), outputs=2, seed=0, model="critic_1", layer_norm=True)
    for i, width in enumerate((5, 7)):
        np.testing.assert_array_equal(normed.pop(f"norms.{i}.scale"), np.ones(width))
        np.testing.assert_array_equal(normed.pop(f"norms.{i}.bias"), np.zeros(width))
    assert set(plain) == set(normed)
    assert all(np.array_equal(plain[name], normed[name]) for name in plain)


# Residual networks.


def test_residual_layers_have_the_common_names_and_shapes() -> None:
    layers = residual_layers(inputs=3, blocks=(5, 5), outputs=4, heads=2, seed=0, model="policy", cell=Cell("gru", 2, 3))
    assert {name: array.shape for name, array in layers.items() if not name.startswith("cell.")} == {
        "hidden.0.kernel": (3, 5),
        "hidden.0.bias": (5,),
        **{f"norms.{i}.{part}": (5,) for i in (0, 1, 2) for part in ("scale", "bias")},
        **{f"expand.{i}.kernel": (5, 20) for i in (0, 1)},
        **{f"expand.{i}.bias": (20,) for i in (0, 1)},
        **{f"contract.{i}.kernel": (20, 5) for i in (0, 1)},
        **{f"contract.{i}.bias": (5,) for i in (0, 1)},
        "head.kernel": (5, 4),
        "head.bias": (4,),
    }
    drawn = dense_layers(inputs=3, hidden=(5,), outputs=4, seed=0, model="policy", cell=Cell("gru", 2, 3))
    assert all(np.array_equal(array, drawn[name]) for name, array in layers.items() if name.startswith("cell."))
    assert not any(array.any() for name, array in layers.items() if name.endswith("bias") and not name.startswith("cell."))
    assert all((layers[f"norms.{i}.scale"] == 1.0).all() for i in (0, 1, 2))


def test_embeddings_and_heads_are_orthogonal_and_blocks_hes_normal() -> None:
    layers = residual_layers(inputs=20, blocks=(300,), outputs=12, heads=2, seed=1, model="policy")
    embedding, head = layers["hidden.0.kernel"], layers["head.kernel"]
    np.testing.assert_allclose(embedding @ embedding.T, np.eye(20), atol=1e-12)  # wider than high: its rows
    for half in (head[:, :6], head[:, 6:]):
        np.testing.assert_allclose(half.T @ half, np.eye(6), atol=1e-12)
    assert np.abs(head[:, :6].T @ head[:, 6:]).max() > 1e-2  # the mean's and the log std's are drawn apart
    for name, fan_in in (("expand.0.kernel", 300), ("contract.0.kernel", 1200)):
        standard = layers[name] * math.sqrt(fan_in / 2)
        assert abs(standard.mean()) < 5 / math.sqrt(standard.size)
        assert standard.std() == pytest.approx(1.0, rel=5 / math.sqrt(standard.size))
        assert 2.2 < np.abs(standard).max() <= 2 / 0.8796


def test_a_seed_gives_these_residual_layers_and_each_model_its_own() -> None:
    """A change of the stream would change every published run."""
    first, second = (residual_layers(inputs=4, blocks=(2,), outputs=1, heads=1, seed=0, model=f"critic_{i}") for i in (1, 2))
    np.testing.assert_allclose(first["expand.0.kernel"][0, :2], [-2.0754576273468763, -1.4069648924523082], rtol=1e-12)
    assert all(not np.array_equal(first[name], second[name]) for name in first if name.endswith("kernel"))
