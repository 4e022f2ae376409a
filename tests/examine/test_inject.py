"""The helpers of adapters: noise in torch and in compiled JAX functions, gradients that optimizers take, weights by shape and order."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from sacref.algorithm.data import Batch
from sacref.examine.inject import Noise, Places, TorchAdapter, jax_noise, read_flax, torch_noise, torch_places, write_flax
from sacref.examine.problem import Problem, ordinary
from sacref.parity.networks import Floats

DRAWS = np.random.default_rng(0).standard_normal((4, 2, 3))


def test_more_draws_than_there_are_and_other_shapes_are_refused() -> None:
    noise = Noise()
    with pytest.raises(RuntimeError, match="noise: the update draws more normal arrays than the examiner has"):
        noise.draw((2, 3))
    noise.fill(DRAWS)
    with pytest.raises(RuntimeError, match=re.escape("noise: a normal array of shape (3, 3) is drawn, expected (2, 3), (batch, action)")):
        noise.draw((3, 3))


def test_a_key_gets_its_array_again() -> None:
    noise = Noise()
    noise.fill(DRAWS)
    np.testing.assert_array_equal(noise.draw((3, 2), b"turned"), DRAWS[0].T)
    noise.fill(DRAWS)
    first = noise.draw((2, 3), b"a")
    np.testing.assert_array_equal(noise.draw((2, 3), b"b"), DRAWS[1])
    noise.fill(DRAWS[2:])
    np.testing.assert_array_equal(noise.draw((2, 3), b"a"), first)
    np.testing.assert_array_equal(noise.draw((2, 3), b"c"), DRAWS[3])


def test_torch_draws_what_it_is_given_and_has_its_own_functions_back() -> None:
    torch = pytest.importorskip("torch")
    noise, usual = Noise(), torch.randn
    noise.fill(DRAWS)
    mean, std = torch.ones(2, 3, dtype=torch.float64), torch.full((2, 3), 2.0, dtype=torch.float64)
    with torch_noise(noise):
        drawn = [
            torch.distributions.Normal(mean, std).rsample(),
            torch.randn(2, 3, dtype=torch.float64),
            torch.randn_like(mean),
            torch.normal(mean, std),
        ]
    for got, expected in zip(drawn, (1 + 2 * DRAWS[0], DRAWS[1], DRAWS[2], 1 + 2 * DRAWS[3]), strict=True):
        np.testing.assert_allclose(got.numpy(), expected, rtol=1e-15)
    assert torch.randn is usual


def test_other_ways_to_draw_in_torch_are_given_noise() -> None:
    torch = pytest.importorskip("torch")
    noise, usual = Noise(), torch.Tensor.normal_
    noise.fill(DRAWS)
    mean = torch.ones(2, 3, dtype=torch.float64)
    with torch_noise(noise):
        drawn = [
            torch.randn(size=(2, 3), dtype=torch.float64),
            torch.distributions.MultivariateNormal(mean, scale_tril=2 * torch.eye(3, dtype=torch.float64)).rsample(),
            torch.empty_like(mean).normal_(),
            torch.empty_like(mean).normal_(mean=1.0, std=2.0),
        ]
    for got, expected in zip(drawn, (DRAWS[0], 1 + 2 * DRAWS[1], DRAWS[2], 1 + 2 * DRAWS[3]), strict=True):
        np.testing.assert_allclose(got.numpy(), expected, rtol=1e-15)
    assert torch.Tensor.normal_ is usual


def test_normal_numbers_that_torch_draws_pass_no_gradient_to_their_mean() -> None:
    torch = pytest.importorskip("torch")
    noise = Noise()
    noise.fill(DRAWS)
    mean, std = (torch.full((2, 3), value, dtype=torch.float64, requires_grad=True) for value in (1.0, 2.0))
    gradients = []
    for fill in (False, True):
        if fill:
            with torch_noise(noise):
                drawn = torch.normal(mean, std)
        else:
            drawn = torch.normal(mean, std)
        gradients += torch.autograd.grad(drawn.sum(), (mean, std))
    assert [gradient.abs().max().item() for gradient in gradients] == [0, 0, 0, 0]


def test_compiled_functions_draw_by_key_each_time_they_run() -> None:
    jax = pytest.importorskip("jax")
    noise = Noise()
    noise.fill(DRAWS)
    frozen = jax.random.key(7)
    both = jax.jit(lambda key: (jax.random.normal(key, (2, 3)), jax.random.normal(frozen, (2, 3))))
    with jax_noise(noise):
        one, two = both(jax.random.key(0)), both(jax.random.key(1))
    np.testing.assert_array_equal(one[0], DRAWS[0])
    np.testing.assert_array_equal(two[0], DRAWS[2])
    np.testing.assert_array_equal(one[1], DRAWS[1])
    np.testing.assert_array_equal(two[1], DRAWS[1])  # a key that is frozen in the compiled function


class Held(TorchAdapter):
    """Some tensors, and what an update does."""

    def __init__(self, problem: Problem, places: Places, learn: Callable[[], object]) -> None:
        self.problem, self._places, self._learn = problem, places, learn

    def places(self) -> Places:
        return self._places

    def learn_from(self, batch: Batch[Floats]) -> None:
        self._learn()


def test_weights_go_into_torch_modules_by_shape_and_order_and_gradients_come_out() -> None:
    torch = pytest.importorskip("torch")
    problem = Problem(hidden=(4,))
    weights = ordinary(problem).weights

    drawn: list[Any] = []
    policy = torch.nn.ModuleList([torch.nn.Linear(5, 4), torch.nn.Linear(4, 3), torch.nn.Linear(4, 3)]).double()
    models = {"policy": policy, "critic_1": torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.Linear(4, 1)).double()}
    log_alpha = torch.zeros(1, dtype=torch.float64, requires_grad=True)

    def learn() -> None:
        drawn.append(torch.randn(2, 3))
        optimizer.step()

    held = Held(problem, torch_places(models, log_alpha), learn)
    held.set_weights(weights)
    got = held.weights()
    assert set(got) == {name for name in weights if name.startswith(("policy.", "critic_1.")) or name == "log_alpha"}
    for name, array in got.items():
        np.testing.assert_array_equal(array, weights[name], err_msg=name)
    np.testing.assert_array_equal(policy[1].weight.detach().numpy(), weights["policy.head.kernel"][:, :3].T)
    optimizer = torch.optim.Adam([*models["policy"].parameters(), log_alpha], lr=0.1)
    sum((i + 1) * parameter.sum() for i, parameter in enumerate(models["policy"].parameters())).backward()
    held.update(next(ordinary(problem).data())[0], DRAWS)
    np.testing.assert_array_equal(drawn[0], DRAWS[0])
    (step,) = held.gradients()
    assert set(step) == {name for name in weights if name.startswith("policy.")}
    np.testing.assert_array_equal(step["policy.head.bias"], [4, 4, 4, 6, 6, 6])


@pytest.mark.parametrize("two_heads", [True, False])
def test_weights_go_into_trees_of_flax_and_come_out(two_heads: bool) -> None:
    problem = Problem()
    weights = {name: array for name, array in ordinary(problem).weights.items() if name.startswith("policy.")}
    tree = write_flax(weights, "policy", len(problem.hidden), two_heads=two_heads)
    assert list(tree) == [f"Dense_{i}" for i in range(3 + two_heads)]
    assert tree["Dense_2"]["bias"].shape == ((3,) if two_heads else (6,))
    got = read_flax(tree, "policy", len(problem.hidden))
    assert set(got) == set(weights)
    for name, array in got.items():
        np.testing.assert_array_equal(array, weights[name], err_msg=name)
