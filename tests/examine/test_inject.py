"""The helpers of adapters: noise in torch and in compiled JAX functions, gradients that optimizers take, weights by shape and order."""

import re

import numpy as np
import pytest

from sacref.examine.inject import (
    GradientsOfMoments,
    Noise,
    adam_moments,
    jax_noise,
    read,
    torch_gradients,
    torch_noise,
    torch_places,
    write,
)
from sacref.examine.problem import Problem, ordinary

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


def test_weights_go_into_torch_modules_by_shape_and_order_and_gradients_come_out() -> None:
    torch = pytest.importorskip("torch")
    problem = Problem(hidden=(4,))
    weights = ordinary(problem).weights

    policy = torch.nn.ModuleList([torch.nn.Linear(5, 4), torch.nn.Linear(4, 3), torch.nn.Linear(4, 3)]).double()
    models = {"policy": policy, "critic_1": torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.Linear(4, 1)).double()}
    log_alpha = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    places = torch_places(models, log_alpha)
    write(places, weights)
    got = read(places)
    assert set(got) == {name for name in weights if name.startswith(("policy.", "critic_1.")) or name == "log_alpha"}
    for name, array in got.items():
        np.testing.assert_array_equal(array, weights[name], err_msg=name)
    np.testing.assert_array_equal(policy[1].weight.detach().numpy(), weights["policy.head.kernel"][:, :3].T)
    optimizer = torch.optim.Adam([*models["policy"].parameters(), log_alpha], lr=0.1)
    sum((i + 1) * parameter.sum() for i, parameter in enumerate(models["policy"].parameters())).backward()
    with torch_gradients(lambda: places) as seen:
        optimizer.step()
    (step,) = seen
    assert set(step) == {name for name in weights if name.startswith("policy.")}
    np.testing.assert_array_equal(step["policy.head.bias"], [4, 4, 4, 6, 6, 6])


def test_gradients_are_told_by_adams_moments() -> None:
    optax, jnp = pytest.importorskip("optax"), pytest.importorskip("jax.numpy")
    optimizer = optax.chain(optax.clip_by_global_norm(1e9), optax.adam(0.1))
    parameters, gradients = {"w": jnp.zeros(3)}, GradientsOfMoments()
    state = optimizer.init(parameters)
    for scale in (1.0, -2.0):
        _, state = optimizer.update({"w": jnp.array([1.0, 2.0, 3.0]) * scale}, state, parameters)
        np.testing.assert_allclose(gradients(adam_moments(state))["w"], np.array([1.0, 2.0, 3.0]) * scale, rtol=1e-12)
    with pytest.raises(ValueError, match="adam_moments: 0 parts of the optimizer's state have moments, expected one"):
        adam_moments(optax.sgd(0.1).init(parameters))
