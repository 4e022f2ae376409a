"""The oracle's cells and layers, forward and backward, against central differences and against PyTorch's own."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from sacref.parity import data, networks
from sacref.parity.networks import Arrays, Seen, sigmoid

Array = NDArray[Any]
TIME, BATCH, INPUTS, SIZE, HIDDEN = 5, 3, 4, 3, (6, 5)
KINDS = ("rnn", "gru", "lstm")


def network(recurrent: str | None, *, action: int = 2, seed: int = 0) -> tuple[Arrays, Array, Array, tuple[Array, ...]]:
    """A critic's parameters, all away from their first values; the inputs, the action and the carry it is given."""
    state = data.initial_state(
        observation=INPUTS, action=action, hidden=HIDDEN, seed=seed, layer_norm=True, recurrent=recurrent, recurrent_size=SIZE
    )
    generator = np.random.default_rng(seed)
    state = {name: value + 0.3 * generator.standard_normal(value.shape) for name, value in state.items() if name.startswith("critic_1.")}
    leading = (BATCH,) if recurrent is None else (TIME, BATCH)
    carry = tuple(generator.standard_normal((2 if recurrent == "lstm" else 1, BATCH, SIZE)))
    return state, generator.standard_normal((*leading, INPUTS)), generator.standard_normal((*leading, action)), carry


@pytest.mark.parametrize(("recurrent", "skip"), [(None, 0), *((kind, skip) for kind in KINDS for skip in (0, 1))])
def test_the_backward_pass_is_the_central_difference_of_the_forward_pass(recurrent: str | None, skip: int) -> None:
    """Of a random weighting of the outputs, by every parameter and by the action."""
    state, inputs, action, carry = network(recurrent)
    action = action[skip:]
    seen = Seen(inputs, None, carry, skip)
    generator = np.random.default_rng(1)
    draws = tuple(generator.random((*action.shape[:-1], width)) for width in HIDDEN)
    weight = generator.standard_normal((*action.shape[:-1], 1))

    def value(parameters: Arrays, action: Array) -> float:
        output, _ = networks.forward(parameters, "critic_1", seen, action, draws, 0.3)
        return float((weight * output).sum())

    def difference(array: Array, name: str | None) -> Array:
        derivative = np.zeros_like(array)
        for index in np.ndindex(array.shape):
            ends = []
            for step in (1e-5, -1e-5):
                moved = array.copy()
                moved[index] += step
                ends.append(value(state, moved) if name is None else value({**state, name: moved}, action))
            derivative[index] = (ends[0] - ends[1]) / 2e-5
        return derivative

    _, tape = networks.forward(state, "critic_1", seen, action, draws, 0.3)
    gradients, by_parts = networks.backward(state, "critic_1", tape, weight)
    assert set(gradients) == set(state)
    for name, gradient in gradients.items():
        assert np.abs(gradient).max() > 1e-3, name
        np.testing.assert_allclose(gradient, difference(state[name], name), rtol=1e-6, atol=1e-8, err_msg=name)
    np.testing.assert_allclose(by_parts[..., -action.shape[-1] :], difference(action, None), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("kind", KINDS)
def test_cells_are_those_of_pytorch(kind: str) -> None:
    """Outputs, and gradients by all four parameters, from a carry that is not zero and from none."""
    torch = pytest.importorskip("torch")
    state, x, _, carry = network(kind)
    weight = np.random.default_rng(2).standard_normal((TIME, BATCH, SIZE))
    theirs = getattr(torch.nn, {"rnn": "RNN", "gru": "GRU", "lstm": "LSTM"}[kind])(INPUTS, SIZE, dtype=torch.float64)
    places = {"weight_ih_l0": "input.kernel", "bias_ih_l0": "input.bias", "weight_hh_l0": "hidden.kernel", "bias_hh_l0": "hidden.bias"}
    with torch.no_grad():
        for place, name in places.items():
            getattr(theirs, place).copy_(torch.as_tensor(state[f"critic_1.cell.{name}"].T))
    for first in (carry, None):
        if first is None:
            expected, _ = theirs(torch.as_tensor(x))
        else:
            given = tuple(torch.as_tensor(array)[None] for array in first)
            expected, _ = theirs(torch.as_tensor(x), given if kind == "lstm" else given[0])
        output, tape = networks.unroll(state, "critic_1.cell", x, first)
        np.testing.assert_allclose(output, expected.detach().numpy(), rtol=1e-12, atol=1e-14)
        gradients = networks.unroll_backward(state, "critic_1.cell", tape, weight)
        by_torch = torch.autograd.grad((torch.as_tensor(weight) * expected).sum(), [getattr(theirs, place) for place in places])
        for gradient, name in zip(by_torch, places.values(), strict=True):
            np.testing.assert_allclose(gradients[f"critic_1.cell.{name}"], gradient.numpy().T, rtol=1e-10, atol=1e-13, err_msg=name)


def test_a_gradient_reaches_the_first_step_from_the_last_output() -> None:
    """One unit, h' = tanh(x w + h u): with x = (1, 0, 0) and all of the loss at the end, dL/dw = product of u (1 - h^2) over the steps."""
    u, w = 0.7, 0.4
    state = {"cell.input.kernel": [[w]], "cell.input.bias": [0.0], "cell.hidden.kernel": [[u]], "cell.hidden.bias": [0.0]}
    arrays = {name: np.array(value) for name, value in state.items()}
    x = np.array([1.0, 0.0, 0.0]).reshape(3, 1, 1)
    output, tape = networks.unroll(arrays, "cell", x, None)
    h = [np.tanh(w)]
    for _ in range(2):
        h.append(np.tanh(u * h[-1]))
    np.testing.assert_allclose(output[:, 0, 0], h, rtol=1e-15)
    gradients = networks.unroll_backward(arrays, "cell", tape, np.array([0.0, 0.0, 1.0]).reshape(3, 1, 1))
    slopes = [1 - each**2 for each in h]
    assert gradients["cell.input.kernel"][0, 0] == pytest.approx(slopes[0] * u * slopes[1] * u * slopes[2], rel=1e-14)
    assert gradients["cell.hidden.kernel"][0, 0] == pytest.approx((h[1] + h[0] * u * slopes[1]) * slopes[2], rel=1e-14)


def test_layer_norm_by_hand() -> None:
    """(1, 3): mean 2, variance 1, so -+1 / sqrt(1 + 1e-5)."""
    state = {"n.scale": np.array([2.0, 3.0]), "n.bias": np.array([0.5, -0.5])}
    y, tape = networks.layer_norm(state, "n", np.array([[1.0, 3.0]]))
    one = 1 / np.sqrt(1.00001)
    np.testing.assert_allclose(y, [[0.5 - 2 * one, 3 * one - 0.5]], rtol=1e-15)
    gradients, _ = networks.layer_norm_backward(state, "n", tape, np.array([[1.0, 10.0]]))
    np.testing.assert_allclose(gradients["n.scale"], [-one, 10 * one], rtol=1e-15)
    np.testing.assert_allclose(gradients["n.bias"], [1.0, 10.0], rtol=1e-15)


def test_dropout_keeps_a_unit_at_its_rate_and_doubles_it() -> None:
    """Units 1, 2, 3 with draws below, at and above a rate of 1/2; the head adds them up."""
    state = {"m.hidden.0.kernel": np.eye(3), "m.hidden.0.bias": np.zeros(3), "m.head.kernel": np.ones((3, 1)), "m.head.bias": np.zeros(1)}
    x, draws = np.array([[1.0, 2.0, 3.0]]), (np.array([[0.499, 0.5, 0.9]]),)
    output, tape = networks.layers(state, "m", x, draws, 0.5)
    assert output.tolist() == [[10.0]]
    assert networks.layers_backward(state, "m", tape, np.ones((1, 1)))[1].tolist() == [[0.0, 2.0, 2.0]]


def test_sigmoid_far_out() -> None:
    assert sigmoid(np.array([-800.0, 0.0, 800.0])).tolist() == [0.0, 0.5, 1.0]
    assert sigmoid(np.array([1.5])) == pytest.approx(1 / (1 + np.exp(-1.5)), rel=1e-15)


@pytest.mark.parametrize("kind", KINDS)
def test_float32_stays_float32(kind: str) -> None:
    state, x, action, carry = network(kind)
    state, x, action = {name: value.astype(np.float32) for name, value in state.items()}, x.astype(np.float32), action.astype(np.float32)
    draws = tuple(np.full((TIME, BATCH, width), 0.7, np.float32) for width in HIDDEN)
    seen = Seen(x, None, tuple(array.astype(np.float32) for array in carry))
    output, tape = networks.forward(state, "critic_1", seen, action, draws, 0.3)
    gradients, by_parts = networks.backward(state, "critic_1", tape, output)
    assert {array.dtype for array in (output, by_parts, *gradients.values())} == {np.dtype(np.float32)}
