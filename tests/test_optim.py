"""The one path of a gradient, on both backends: Adam and clipping against numbers by hand."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.backends import BACKENDS, Backend, load_backend

backend = pytest.fixture(params=BACKENDS)(load_backend)

PARAMETERS = {"a": {"w": [[1.0, -2.0]]}, "b": {"w": [0.5]}}
GRADIENTS = [{"a": {"w": [[3.0, 0.0]]}, "b": {"w": [-4.0]}}, {"a": {"w": [[-1.0, 2.0]]}, "b": {"w": [0.5]}}]


def host(tree: Any) -> Any:
    return {name: host(branch) for name, branch in tree.items()} if isinstance(tree, dict) else np.asarray(tree).copy()


def flat(tree: Any) -> NDArray[Any]:
    """The numbers of a tree in the order of its keys."""
    return np.concatenate([flat(branch) for branch in tree.values()]) if isinstance(tree, dict) else np.ravel(np.array(tree))


def adam(parameters: NDArray[Any], gradients: list[NDArray[Any]], rate: float) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Kingma & Ba 2015, algorithm 1."""
    first, second = np.zeros_like(parameters), np.zeros_like(parameters)
    for count, gradient in enumerate(gradients, start=1):
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        parameters = parameters - rate * (first / (1 - 0.9**count)) / (np.sqrt(second / (1 - 0.999**count)) + 1e-8)
    return parameters, first, second


def test_two_steps_of_adam(backend: Backend) -> None:
    optimizer = backend.module("optim").Optimizer(0.01)
    parameters = backend.tree(PARAMETERS)
    state = optimizer.init(parameters)
    for gradients in GRADIENTS:
        parameters, state = optimizer.step(parameters, backend.tree(gradients), state)
    moments = optimizer.moments(parameters, state)
    wanted, first, second = adam(flat(PARAMETERS), [flat(g) for g in GRADIENTS], 0.01)
    np.testing.assert_allclose(flat(host(parameters)), wanted, rtol=1e-12)
    np.testing.assert_allclose(flat(host(moments["first_moment"])), first, rtol=1e-12)
    np.testing.assert_allclose(flat(host(moments["second_moment"])), second, rtol=1e-12)
    assert int(moments["count"]) == 2
    assert host(moments["first_moment"]).keys() == PARAMETERS.keys()


def test_steps_of_a_constant_gradient_have_the_size_of_the_rate(backend: Backend) -> None:
    optimizer = backend.module("optim").Optimizer(0.01)
    parameters = backend.tree({"w": [1.0, 1.0]})
    state = optimizer.init(parameters)
    for count in range(1, 51):
        parameters, state = optimizer.step(parameters, backend.tree({"w": [5.0, -0.2]}), state)
        np.testing.assert_allclose(host(parameters)["w"], [1 - 0.01 * count, 1 + 0.01 * count], rtol=1e-6)


@pytest.mark.parametrize(("clip", "factor"), [(1.0, 0.2), (2.5, 0.5), (5.0, 1.0), (50.0, 1.0), (0.0, 1.0), (-1.0, 1.0)])
def test_trap_07_clipping_is_by_the_norm_of_the_whole_tree(backend: Backend, clip: float, factor: float) -> None:
    """The gradient's norm is 5."""
    optimizer = backend.module("optim").Optimizer(0.01, clip)
    parameters = backend.tree(PARAMETERS)
    parameters, state = optimizer.step(parameters, backend.tree(GRADIENTS[0]), optimizer.init(parameters))
    first = flat(host(optimizer.moments(parameters, state)["first_moment"]))
    np.testing.assert_allclose(first, 0.1 * factor * flat(GRADIENTS[0]), rtol=1e-12)


def test_clipping_leaves_a_gradient_of_zero(backend: Backend) -> None:
    optimizer = backend.module("optim").Optimizer(0.01, 1.0)
    parameters = backend.tree({"w": [1.0]})
    parameters, _ = optimizer.step(parameters, backend.tree({"w": [0.0]}), optimizer.init(parameters))
    assert host(parameters)["w"].tolist() == [1.0]


@pytest.mark.parametrize("steps", [0, 3])
def test_moments_carry_on_where_they_were_taken(backend: Backend, steps: int) -> None:
    optimizer = backend.module("optim").Optimizer(0.01, 2.0)

    def go_on(parameters: Any, state: Any, count: int) -> tuple[Any, Any]:
        for i in range(count):
            parameters, state = optimizer.step(parameters, backend.tree(GRADIENTS[i % 2]), state)
        return parameters, state

    parameters = backend.tree(PARAMETERS)
    parameters, state = go_on(parameters, optimizer.init(parameters), steps)
    moments = optimizer.moments(parameters, state)
    if steps == 0:
        assert int(moments["count"]) == 0
        assert not flat(host(moments["first_moment"])).any()
    copied = backend.tree(host(parameters))
    restored = optimizer.with_moments(
        copied, {name: host(tree) if name == "count" else backend.tree(host(tree)) for name, tree in moments.items()}
    )
    wanted, _ = go_on(parameters, state, 2)
    got, restored = go_on(copied, restored, 2)
    np.testing.assert_array_equal(flat(host(got)), flat(host(wanted)))
    assert int(optimizer.moments(got, restored)["count"]) == steps + 2


def test_frozen_steps_nowhere_and_remembers_nothing(backend: Backend) -> None:
    optimizer = backend.module("optim").Frozen()
    parameters = backend.tree(PARAMETERS)
    state = optimizer.init(parameters)
    parameters, state = optimizer.step(parameters, backend.tree(GRADIENTS[0]), state)
    assert flat(host(parameters)).tolist() == flat(PARAMETERS).tolist()
    assert optimizer.moments(parameters, state) is None
    assert optimizer.with_moments(parameters, {}) is None


def test_kept_gradients_are_those_before_clipping_and_change_nothing(backend: Backend) -> None:
    optim = backend.module("optim")
    plain, keeping = optim.Optimizer(0.01, 1.0), optim.KeepGradients(optim.Optimizer(0.01, 1.0))
    results = []
    for optimizer in (plain, keeping):
        parameters = backend.tree(PARAMETERS)
        state = optimizer.init(parameters)
        if optimizer is keeping:
            assert not flat(host(state[1])).any()
        for gradients in GRADIENTS:
            parameters, state = optimizer.step(parameters, backend.tree(gradients), state)
        results.append((parameters, optimizer.moments(parameters, state)))
    np.testing.assert_array_equal(flat(host(results[0][0])), flat(host(results[1][0])))
    np.testing.assert_array_equal(flat(host(results[0][1]["second_moment"])), flat(host(results[1][1]["second_moment"])))
    np.testing.assert_array_equal(flat(host(state[1])), flat(GRADIENTS[1]))
    restored = keeping.with_moments(parameters, results[1][1])
    assert int(keeping.moments(parameters, restored)["count"]) == 2
    assert not flat(host(restored[1])).any()


def test_value_and_grad_differentiates_by_its_argument_alone(backend: Backend) -> None:
    """A parameter that the objective does not read has the gradient 0."""
    optim = backend.module("optim")
    parameters = backend.tree({"used": [1.0, 2.0], "unused": [3.0]})
    other = backend.array(np.array([4.0, 5.0]))

    def objective(tree: Any) -> tuple[Any, Any]:
        product = tree["used"] * other
        return (product * product).sum(), product

    (value, aux), gradients = optim.value_and_grad(objective, parameters)
    assert float(value) == 116.0
    assert host(aux).tolist() == [4.0, 10.0]
    assert host(gradients)["used"].tolist() == [32.0, 100.0]
    assert host(gradients)["unused"].tolist() == [0.0]


def test_tree_map_takes_several_trees(backend: Backend) -> None:
    total = backend.module("optim").tree_map(lambda a, b: a + 2 * b, backend.tree(PARAMETERS), backend.tree(GRADIENTS[0]))
    assert flat(host(total)).tolist() == [7.0, -2.0, -7.5]
