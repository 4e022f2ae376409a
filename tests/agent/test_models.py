"""Models on both backends: the default ones, and those that a user writes."""

import importlib
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest
from numpy.typing import NDArray

from sacref.agent.model_checks import example_inputs
from sacref.algorithm.tree import map_leaves
from sacref.config import ConfigError
from sacref.envs.spaces import check_spaces
from tests.backends import (
    BACKENDS,
    Backend,
    Spaces,
    assert_same_arrays,
    box,
    draw_batch,
    draw_row,
    fill,
    forward,
    installed_backends,
    load_backend,
    without_shape_checks,
)

backend = pytest.fixture(params=BACKENDS)(load_backend)


def user(backend: Backend) -> Any:
    """The module with the user's models."""
    return importlib.import_module(f"tests.{backend.name}.user_models")


def defaults(backend: Backend, **options: Any) -> dict[str, Any]:
    spaces = Spaces()
    models: dict[str, Any] = backend.package.default_models(
        **{"observation_space": spaces.observation, "action_space": spaces.action, "hidden": (8,), **options}
    )
    return models


def call(backend: Backend, model: Any, observations: NDArray[Any], *actions: NDArray[Any]) -> NDArray[Any]:
    """What a model gives, on the host; a policy's two results side by side."""
    inputs = {"observations": backend.array(observations.astype(np.float32)), "states": None}
    outputs = model(inputs, *(backend.array(action.astype(np.float32)) for action in actions))
    parts = outputs if isinstance(outputs, tuple) else (outputs,)
    return np.concatenate([part.detach().numpy() if backend.name == "torch" else np.asarray(part) for part in parts], axis=-1)


def test_models_are_tried_on_values_of_their_spaces() -> None:
    """Of each integer space two that are next to each other, as near to 0 as it has them."""
    integers = {(1, 9): {1, 2}, (0, 255): {0, 1}, (-5, 0): {-1, 0}, (-9, -3): {-4, -3}, (5, 5): {5}, (-(2**63), 2**63 - 1): {0, 1}}
    for (low, high), wanted in integers.items():
        space = gymnasium.spaces.Box(low, high, (40,), np.int64)
        tried = example_inputs(check_spaces(space, None, Spaces().action), 3, 0)["observations"]
        assert tried.dtype == np.int64 and set(tried.ravel().tolist()) == wanted
    numbers = example_inputs(check_spaces(gymnasium.spaces.Box(0, 255, (), np.uint8), None, Spaces().action), 40, 0)["observations"]
    assert numbers.dtype == np.uint8 and set(numbers.tolist()) == {0, 1}
    tried = example_inputs(check_spaces(box(0.0, 0.5, (40,)), None, Spaces().action), 3, 0)["observations"]
    assert tried.min() == 0.0 and tried.max() == 0.5 and len(np.unique(tried)) > 10


# The default ones.


def test_default_models_are_those_asked_for(backend: Backend) -> None:
    assert list(defaults(backend)) == ["policy", "critic_1", "critic_2"]
    assert list(defaults(backend, num_critics=3)) == ["policy", "critic_1", "critic_2", "critic_3"]
    arrays = backend.agent(models=defaults(backend, hidden=(7, 5))).arrays()
    shapes = {name: array.shape for name, array in arrays.items() if name.startswith(("policy.", "critic_1."))}
    assert shapes == {
        "policy.hidden.0.kernel": (3, 7),
        "policy.hidden.0.bias": (7,),
        "policy.hidden.1.kernel": (7, 5),
        "policy.hidden.1.bias": (5,),
        "policy.head.kernel": (5, 4),
        "policy.head.bias": (4,),
        "critic_1.hidden.0.kernel": (5, 7),
        "critic_1.hidden.0.bias": (7,),
        "critic_1.hidden.1.kernel": (7, 5),
        "critic_1.hidden.1.bias": (5,),
        "critic_1.head.kernel": (5, 1),
        "critic_1.head.bias": (1,),
    }


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_default_models_compute_what_the_arrays_say(backend: Backend, dtype: str) -> None:
    models = defaults(backend, hidden=(7, 5), dtype=dtype)
    agent = backend.agent(models=models)
    arrays = agent.arrays()
    assert {array.dtype.name for name, array in arrays.items() if not name.endswith(("count", "gradient_steps"))} == {dtype}
    generator = np.random.default_rng(0)
    observations, actions = generator.normal(size=(4, 3)), generator.normal(size=(4, 2))
    convert = np.dtype(dtype).type
    inputs = {"observations": backend.array(convert(observations)), "states": None}
    mean, log_std = models["policy"](inputs)
    wanted = forward(arrays, "policy", observations)
    got = np.hstack([agent.to_numpy(mean), agent.to_numpy(log_std)])
    assert got.dtype == dtype
    np.testing.assert_allclose(got, wanted, rtol=1e-4 if dtype == "float32" else 1e-12)
    values = agent.to_numpy(models["critic_2"](inputs, backend.array(convert(actions))))
    np.testing.assert_allclose(values, forward(arrays, "critic_2", np.hstack([observations, actions]))[:, 0], rtol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_one_seed_gives_the_same_networks_on_both_backends(dtype: str) -> None:
    torch, jax = (backend.agent(dtype=dtype, seed=5, hidden=(7, 5)).arrays() for backend in installed_backends())
    assert_same_arrays(torch, jax)
    other = installed_backends()[0].agent(dtype=dtype, seed=6, hidden=(7, 5)).arrays()
    assert not np.array_equal(other["policy.head.kernel"], torch["policy.head.kernel"])


@pytest.mark.parametrize(
    ("options", "policy", "critic"),
    [
        ({}, (256, 256), (256, 256)),
        ({"hidden": (7,)}, (7,), (7,)),
        ({"hidden": (7,), "critic_hidden": (9, 5)}, (7,), (9, 5)),
        ({"critic_hidden": (9, 5)}, (256, 256), (9, 5)),
        ({"network": "simba"}, (128,), (512, 512)),
        ({"network": "simba", "hidden": (7, 7)}, (7, 7), (7, 7)),
        ({"network": "simba", "critic_hidden": (9,)}, (128,), (9,)),
    ],
)
def test_widths_are_those_asked_for_or_the_networks(options: dict[str, Any], policy: tuple[int, ...], critic: tuple[int, ...]) -> None:
    models = defaults(installed_backends()[0], **{"hidden": None, "num_critics": 1, **options})
    assert (models["policy"].network.hidden, models["critic_1"].network.hidden) == (policy, critic)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"network": "resnet"}, r"network is 'resnet', expected one of \['mlp', 'simba'\]"),
        (
            {"network": "simba", "hidden": (8, 4)},
            r"hidden is \(8, 4\), expected the width of each residual block of simba, one for all, as",
        ),
        ({"network": "simba", "critic_hidden": ()}, r"critic_hidden is \(\), expected the width of each residual block of simba"),
        ({"critic_hidden": (0,)}, r"critic_hidden is \(0,\), expected the widths of the hidden layers"),
        ({"network": "simba", "layer_norm": True}, r"expected neither beside network 'simba', which has LayerNorms of its own"),
        ({"network": "simba", "dropout": 0.1}, r"layer_norm is False and dropout 0.1, expected neither beside network 'simba'"),
        ({"dtype": "float16"}, "dtype is float16, expected float32 or float64"),
        ({"num_critics": 0}, "num_critics is 0, expected at least 1"),
        ({"num_critics": 2.5}, "num_critics is 2.5, expected an integer >= 1"),
        ({"num_critics": True}, "num_critics is True, expected an integer >= 1"),
        ({"recurrent": "gru", "recurrent_size": 2.5}, "recurrent_size is 2.5, expected an integer >= 1"),
        ({"hidden": 8}, "hidden is 8, expected the widths of the hidden layers"),
        ({"hidden": (8, 0)}, r"hidden is \(8, 0\), expected the widths of the hidden layers, integers >= 1"),
        ({"hidden": (4.5,)}, r"hidden is \(4.5,\), expected the widths"),
        ({"hidden": "64"}, "hidden is '64', expected the widths"),
        ({"seed": -1}, "seed is -1, expected an integer >= 0"),
        ({"seed": None}, "seed is None, expected an integer >= 0"),
        ({"dropout": 1.0}, "dropout is 1.0, expected at least 0 and less than 1"),
        ({"dropout": -0.1}, "dropout is -0.1, expected at least 0"),
        ({"hidden": (), "layer_norm": True}, "hidden is empty, so that layer_norm and dropout have no layer: give at least one width"),
        ({"hidden": (), "dropout": 0.1}, "hidden is empty, so that layer_norm and dropout have no layer"),
        ({"recurrent": "GRU"}, r"recurrent is 'GRU', expected None or one of \['rnn', 'gru', 'lstm'\]"),
        ({"recurrent": "gru", "recurrent_size": 0}, "recurrent_size is 0, expected at least 1"),
        (
            {"recurrent": "gru", "feed_previous": ("action",)},
            r"feed_previous is \('action',\), expected a tuple of some of \('actions', 'rew",
        ),
        ({"recurrent": "gru", "feed_previous": "actions"}, "feed_previous is 'actions', expected a tuple"),
        ({"recurrent_size": 64}, r"recurrent is None, so that recurrent_size 64 and .* have no cell: leave them out, or choose recurrent"),
        ({"feed_previous": ("rewards",)}, r"feed_previous \('rewards',\) have no cell"),
        ({"observation_space": box(0, 255, (4, 4), np.uint8)}, r"observations are images, uint8 of shape \(4, 4\).*encoder.*flatten"),
        (
            {"state_space": gymnasium.spaces.Dict({"eye": box(0, 255, (4, 4, 3), np.uint8)})},
            r"states at 'eye' are images, uint8 of shape \(4, 4, 3\).*write a policy and critics of your own with an encoder",
        ),
    ],
)
def test_arguments_of_default_models_that_do_not_fit_are_refused(backend: Backend, options: dict[str, Any], message: str) -> None:
    with without_shape_checks(), pytest.raises(ValueError, match=message):
        defaults(backend, **options)


def test_models_and_memories_of_the_other_backend_are_refused() -> None:
    torch, jax = installed_backends()
    for backend, other, library in ((torch, jax, "torch.nn.Module"), (jax, torch, "flax.nnx.Module")):
        with without_shape_checks(), pytest.raises(TypeError, match=f"model 'policy' is a GaussianPolicy, expected a {library}"):
            backend.agent(models=defaults(other))
        spaces = Spaces()
        with (
            without_shape_checks(),
            pytest.raises(TypeError, match=f"memory is a ReplayMemory, expected a sacref.{backend.name}.ReplayMemory"),
        ):
            backend.package.SAC(
                models=defaults(backend),
                memory=other.package.ReplayMemory(64, 1),
                observation_space=spaces.observation,
                action_space=spaces.action,
            )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"memory": 100_000}, "memory is a int, expected a sacref.*ReplayMemory"),
        ({"models": None}, "models is a NoneType, expected a dict with 'policy'"),
        ({"models": ["policy"]}, "models is a list, expected a dict with 'policy'"),
        ({"cfg": "SACConfig"}, "SACConfig cannot be made of 'SACConfig', expected a dict of its fields"),
        ({"cfg": []}, r"SACConfig cannot be made of \[\], expected a dict of its fields"),
    ],
)
def test_arguments_of_agents_of_another_kind_are_refused(backend: Backend, given: dict[str, Any], message: str) -> None:
    spaces = Spaces()
    usual = {"models": defaults(backend), "observation_space": spaces.observation, "action_space": spaces.action}
    with without_shape_checks(), pytest.raises((TypeError, ConfigError), match=message):
        backend.package.SAC(**{**usual, **given})


# Dict spaces and privileged critics.


DICT = gymnasium.spaces.Dict(
    # Not in the order of the alphabet, into which Gymnasium brings a dict that is not an OrderedDict, and JAX every dict.
    OrderedDict(
        [
            ("wheels", gymnasium.spaces.Dict(OrderedDict([("speed", box(-1, 1, (2,), np.float64)), ("angle", box(-4, 4, ()))]))),
            ("touch", box(0, 1, (3,), np.int8)),
            ("body", box(-1, 1, (2, 2))),
        ]
    )
)
SIZE = 2 + 1 + 3 + 4


def draw_dict(rows: int = 5) -> tuple[dict[str, Any], NDArray[np.float32]]:
    """A batch of the Dict space, and the same numbers side by side."""
    generator = np.random.default_rng(3)
    tree: dict[str, Any] = {
        "body": generator.normal(size=(rows, 2, 2)).astype(np.float32),
        "touch": generator.integers(0, 2, (rows, 3)).astype(np.int8),
        "wheels": {
            "angle": generator.normal(size=rows).astype(np.float32),
            "speed": generator.normal(size=(rows, 2)).astype(np.float32),
        },
    }
    parts = [tree["wheels"]["speed"], tree["wheels"]["angle"][:, None], tree["touch"], tree["body"].reshape(rows, 4)]
    return tree, np.concatenate(parts, axis=-1, dtype=np.float32, casting="unsafe")


def values_of(backend: Backend, model: Any, inputs: Any, *arguments: Any) -> list[NDArray[Any]]:
    """What a model gives in its functional form, compiled on JAX, on the host."""
    weights = backend.module("weights")
    function = weights.functional(model)
    if backend.name == "jax":
        function = importlib.import_module("jax").jit(function)
    parameters = weights.parameters_of(model, _cpu(backend))
    outputs = function(parameters, map_leaves(backend.array, inputs), *(backend.array(argument) for argument in arguments))
    return [backend.numpy(output) for output in (outputs if isinstance(outputs, tuple) else (outputs,))]


def _cpu(backend: Backend) -> Any:
    library = importlib.import_module(backend.name)
    return library.device("cpu") if backend.name == "torch" else library.local_devices(backend="cpu")[0]


def parameters(backend: Backend, model: Any) -> dict[str, NDArray[Any]]:
    """Under their common names."""
    weights = backend.module("weights")
    arrays: dict[str, NDArray[Any]] = weights.to_common(model, weights.parameters_of(model, _cpu(backend)))
    return arrays


def test_a_dict_gives_the_numbers_of_the_box_of_its_keys_side_by_side(backend: Backend) -> None:
    of_dict, of_box = (defaults(backend, observation_space=space) for space in (DICT, box(-9, 9, (SIZE,))))
    tree, flat = draw_dict()
    actions = np.random.default_rng(4).uniform(-1, 1, (5, 2)).astype(np.float32)
    for name in of_dict:
        assert_same_arrays(parameters(backend, of_dict[name]), parameters(backend, of_box[name]))
        given = [] if name == "policy" else [actions]
        got = values_of(backend, of_dict[name], {"observations": tree, "states": None}, *given)
        wanted = values_of(backend, of_box[name], {"observations": flat, "states": None}, *given)
        for a, b in zip(got, wanted, strict=True):
            assert np.abs(b).max() > 1e-3
            np.testing.assert_array_equal(a, b)


def test_privileged_critics_read_the_states_and_the_policy_does_not(backend: Backend) -> None:
    models = defaults(backend, state_space=DICT)
    tree, flat = draw_dict()
    generator = np.random.default_rng(5)
    observations, actions = generator.normal(size=(5, 3)).astype(np.float32), generator.uniform(-1, 1, (5, 2)).astype(np.float32)
    inputs = {"observations": observations, "states": tree}
    arrays = {f"critic_1.{name}": array for name, array in parameters(backend, models["critic_1"]).items()}
    assert arrays["critic_1.hidden.0.kernel"].shape == (SIZE + 2, 8)
    (values,) = values_of(backend, models["critic_1"], inputs, actions)
    np.testing.assert_allclose(values, forward(arrays, "critic_1", np.hstack([flat, actions]))[:, 0], rtol=1e-4, atol=1e-6)
    plain = defaults(backend)["policy"]
    for a, b in zip(
        values_of(backend, models["policy"], inputs),
        values_of(backend, plain, {"observations": observations, "states": None}),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tree: None, r"states are None, expected a dict of \['body', 'touch', 'wheels\.angle', 'wheels\.speed'\]: build .* agent"),
        (
            lambda tree: {**tree, "nose": tree["body"]},
            r"states are a dict of \['body', 'nose', 'touch', .*expected a dict of \['body', 'touch'",
        ),
        (lambda tree: {key: tree[key] for key in ("body", "wheels")}, r"states are a dict of \['body', 'wheels\.angle', 'wheels\.speed'\]"),
        (lambda tree: tree["body"], "states are one array, expected a dict of"),
    ],
)
def test_inputs_that_are_not_of_the_space_are_refused(backend: Backend, change: Callable[[Any], Any], message: str) -> None:
    critic = defaults(backend, state_space=DICT)["critic_1"]
    inputs = {"observations": np.zeros((5, 3), np.float32), "states": change(draw_dict()[0])}
    with pytest.raises(ValueError, match=message):
        values_of(backend, critic, inputs, np.zeros((5, 2), np.float32))


# Critics with LayerNorm and Dropout.


def by_hand(arrays: dict[str, NDArray[Any]], x: NDArray[Any], draws: list[NDArray[Any]], rate: float) -> NDArray[Any]:
    """DroQ's critic: Linear -> Dropout -> LayerNorm -> ReLU."""
    for i, draw in enumerate(draws):
        x = x @ arrays[f"hidden.{i}.kernel"] + arrays[f"hidden.{i}.bias"]
        x = np.where(draw >= rate, x / (1 - rate), 0.0)
        if f"norms.{i}.scale" in arrays:
            normal = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
            x = normal * arrays[f"norms.{i}.scale"] + arrays[f"norms.{i}.bias"]
        x = np.maximum(x, 0.0)
    values: NDArray[Any] = (x @ arrays["head.kernel"] + arrays["head.bias"])[:, 0]
    return values


@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_norms_and_dropout_are_those_written_by_hand(backend: Backend, layer_norm: bool, rate: float) -> None:
    models = defaults(backend, hidden=(7, 5), layer_norm=layer_norm, dropout=rate, dtype="float64")
    critic, weights, generator = models["critic_1"], backend.module("weights"), np.random.default_rng(6)
    assert models["policy"].draw_widths == ()
    assert critic.draw_widths == ((7, 5) if rate else ())
    assert not any("norms" in name for name in parameters(backend, models["policy"]))
    # Scales and biases that are not ones and zeros; inputs so small that the epsilon counts.
    arrays = {name: array + generator.normal(scale=0.1, size=array.shape) for name, array in parameters(backend, critic).items()}
    assert {name for name in arrays if "norms" in name} == (
        {f"norms.{i}.{part}" for i in (0, 1) for part in ("scale", "bias")} if layer_norm else set()
    )
    arrays["hidden.0.kernel"] *= 1e-3
    arrays["hidden.0.bias"] *= 1e-3
    critic = weights.with_parameters(critic, weights.from_common(critic, arrays, like=weights.parameters_of(critic, _cpu(backend))))
    observations, actions = generator.normal(size=(6, 3)), generator.uniform(-1, 1, (6, 2))
    draws = [generator.random((6, width)) for width in (7, 5)]
    inputs = {"observations": observations, "states": None}
    x = np.hstack([observations, actions])
    (values,) = values_of(backend, critic, inputs, actions, *(draws if rate else []))
    np.testing.assert_allclose(values, by_hand(arrays, x, draws, rate), rtol=1e-12)
    critic.eval()
    for given in ([], draws if rate else []):
        (values,) = values_of(backend, critic, inputs, actions, *given)
        np.testing.assert_allclose(values, by_hand(arrays, x, draws, 0.0), rtol=1e-12)


def test_a_unit_is_kept_where_its_draw_is_at_least_the_rate(backend: Backend) -> None:
    layer = backend.module("models").Dropout(0.25)
    x = backend.array(np.array([[1.0, 2.0, 3.0, -4.0]]))
    draws = backend.array(np.array([[0.0, np.nextafter(0.25, 0), 0.25, 0.9]]))
    np.testing.assert_array_equal(backend.numpy(layer(x, draws)), [[0.0, 0.0, 3.0 / 0.75, -4.0 / 0.75]])
    layer.eval()
    np.testing.assert_array_equal(backend.numpy(layer(x)), backend.numpy(x))


def test_draws_that_do_not_fit_are_refused(backend: Backend) -> None:
    critic = defaults(backend, hidden=(7, 5), dropout=0.1)["critic_1"]
    inputs, actions = {"observations": np.zeros((6, 3), np.float32), "states": None}, np.zeros((6, 2), np.float32)
    draws = [np.zeros((6, width), np.float32) for width in (7, 5)]
    with pytest.raises(ValueError, match=r"Dropout: draws are None, expected an array \(6, 7\) of uniform numbers: call the model with"):
        values_of(backend, critic, inputs, actions)
    with pytest.raises(ValueError, match=r"Dropout: draws are \(6, 5\), expected an array \(6, 7\)"):
        values_of(backend, critic, inputs, actions, *draws[::-1])
    with pytest.raises(ValueError, match=r"got 1 draws, expected uniform arrays of the widths \(7, 5\): one per Dropout layer"):
        values_of(backend, critic, inputs, actions, draws[0])
    with pytest.raises(ValueError, match=r"got 2 draws, expected uniform arrays of the widths \(\)"):
        values_of(backend, defaults(backend)["critic_1"], inputs, actions, *draws)
    for rate in (1.0, -0.5, float("nan")):
        with pytest.raises(ValueError, match=f"Dropout: rate is {rate}, expected at least 0 and less than 1"):
            backend.module("models").Dropout(rate)


@pytest.mark.parametrize("options", [{}, {"layer_norm": True, "dropout": 0.3}])
def test_outputs_and_gradients_are_the_same_on_both_backends(options: dict[str, Any]) -> None:
    generator = np.random.default_rng(7)
    observations, actions = generator.normal(size=(6, 3)), generator.uniform(-1, 1, (6, 2))
    draws = [generator.random((6, width)) for width in (7, 5)] if options else []
    found = []
    for backend in installed_backends():
        critic, weights = defaults(backend, hidden=(7, 5), dtype="float64", **options)["critic_1"], backend.module("weights")
        function, own = weights.functional(critic), weights.parameters_of(critic, _cpu(backend))
        given = [{"observations": backend.array(observations), "states": None}, *map(backend.array, (actions, *draws))]
        if backend.name == "torch":
            own = {name: parameter.requires_grad_() for name, parameter in own.items()}
            values = function(own, *given)
            (values**2).sum().backward()
            gradient = {name: parameter.grad for name, parameter in own.items()}
        else:
            values = function(own, *given)
            grad: Any = importlib.import_module("jax").grad
            gradient = grad(lambda p, function=function, given=given: (function(p, *given) ** 2).sum())(own)
        found.append({**weights.to_common(critic, gradient), "values": backend.numpy(values)})
    torch, jax = found
    assert set(torch) == set(jax)
    for name in torch:
        assert np.abs(jax[name]).max() > 1e-6, name
        assert np.abs(torch[name] - jax[name]).max() < 1e-12 * np.abs(jax[name]).max(), name


# Residual networks.


def simba_by_hand(arrays: dict[str, NDArray[Any]], x: NDArray[Any]) -> NDArray[Any]:
    """Lee et al. 2025: a linear embedding; x + Linear(ReLU(Linear(LayerNorm(x)))) for each block; a LayerNorm; a linear head."""

    def linear(x: NDArray[Any], name: str) -> NDArray[Any]:
        y: NDArray[Any] = x @ arrays[f"{name}.kernel"] + arrays[f"{name}.bias"]
        return y

    def norm(x: NDArray[Any], i: int) -> NDArray[Any]:
        standard = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
        y: NDArray[Any] = standard * arrays[f"norms.{i}.scale"] + arrays[f"norms.{i}.bias"]
        return y

    x, blocks = linear(x, "hidden.0"), 2
    for i in range(blocks):
        x = x + linear(np.maximum(linear(norm(x, i), f"expand.{i}"), 0.0), f"contract.{i}")
    return linear(norm(x, blocks), "head")


def test_residual_networks_are_those_written_by_hand_under_their_common_names(backend: Backend) -> None:
    models = defaults(backend, network="simba", hidden=(6, 6), critic_hidden=(5, 5), dtype="float64")
    generator, weights = np.random.default_rng(6), backend.module("weights")
    observations, actions = generator.normal(size=(6, 3)), generator.uniform(-1, 1, (6, 2))
    inputs = {"observations": observations, "states": None}
    for name, width, given in (("policy", 6, []), ("critic_1", 5, [actions])):
        model = models[name]
        # Scales and biases that are not ones and zeros; an embedding so small that the epsilon counts.
        arrays = {key: array + generator.normal(scale=0.1, size=array.shape) for key, array in parameters(backend, model).items()}
        arrays["hidden.0.kernel"] *= 1e-3
        arrays["hidden.0.bias"] *= 1e-3
        assert (arrays["expand.1.kernel"].shape, arrays["contract.0.kernel"].shape) == ((width, 4 * width), (4 * width, width))
        model = weights.with_parameters(model, weights.from_common(model, arrays, like=weights.parameters_of(model, _cpu(backend))))
        got = np.stack(values_of(backend, model, inputs, *given), axis=-1).reshape(6, -1)
        wanted = simba_by_hand(arrays, np.hstack([observations, *given]))
        if name == "policy":
            wanted = np.stack(np.split(wanted, 2, axis=-1), axis=-1).reshape(6, -1)
        np.testing.assert_allclose(got, wanted, rtol=1e-11, atol=1e-13)


# Observations of any kind.


STORED = [
    (box(-np.inf, np.inf, (3,), np.float64), "float32"),
    (box(-np.inf, np.inf, (3,), np.float32), "float32"),
    (box(-10, 10, (3,), np.float16), "float16"),
    (box(0, 255, (12,), np.uint8), "uint8"),
    (box(0, 255, (3,), np.int32), "int32"),
    (box(0, 255, (3,), np.int64), "int64"),
]


@pytest.mark.parametrize(
    ("backend", "observation", "stored"),
    [
        # JAX compiles an update for each kind. tests/test_agent.py stores all in one agent, and test_fused_step learns from bytes, too.
        pytest.param(
            name,
            *case,
            marks=pytest.mark.full if name == "jax" and case[1] in ("float16", "uint8", "int32") else (),
            id=f"{name}-{case[1]}-of-{case[0].dtype}",
        )
        for name in BACKENDS
        for case in STORED
    ],
    indirect=["backend"],
)
def test_observations_are_stored_in_the_dtype_of_their_kind(backend: Backend, observation: Any, stored: str) -> None:
    agent = backend.agent(Spaces(observation=observation))
    row = draw_row(
        agent, np.random.default_rng(0), observations=np.full((1, *observation.shape), 200 if stored == "uint8" else 9, observation.dtype)
    )
    agent.act(row["observations"], None, timestep=0, timesteps=1)
    agent.record_transition(**row)
    arrays = agent.memory.arrays()
    assert arrays["observations"].dtype == arrays["next_observations"].dtype == stored
    np.testing.assert_array_equal(arrays["observations"], row["observations"])
    np.testing.assert_allclose(arrays["next_observations"], row["next_observations"], rtol=1e-6)
    agent.update(timestep=0, timesteps=1)
    assert np.isfinite(agent.arrays()["critic_1.head.kernel"]).all()


def test_images_are_stored_as_they_are_for_models_with_an_encoder(backend: Backend) -> None:
    module = user(backend)
    models = {name: module.Encoded(model) for name, model in module.user_models(12, 2).items()}
    agent = backend.agent(Spaces(observation=box(0, 255, (2, 2, 3), np.uint8)), models=models, learning_rate=1e-2)
    before = agent.arrays()
    row = draw_row(agent, np.random.default_rng(0))
    agent.record_transition(**row)
    assert agent.memory.arrays()["observations"].dtype == np.uint8
    np.testing.assert_array_equal(agent.memory.arrays()["observations"], row["observations"])
    agent.update(timestep=0, timesteps=1)
    after = agent.arrays()
    assert all(not np.array_equal(before[name], after[name]) for name in before if name.startswith("policy."))


def test_float64_models_store_float64(backend: Backend) -> None:
    agent = backend.agent(dtype="float64")
    value = 1.0 + 2.0**-40
    agent.record_transition(
        **draw_row(agent, np.random.default_rng(0), observations=np.full((1, 3), value), rewards=np.full((1, 1), value))
    )
    arrays = agent.memory.arrays()
    assert arrays["observations"].dtype == arrays["rewards"].dtype == arrays["actions"].dtype == np.float64
    assert arrays["observations"][0, 0] == arrays["rewards"][0] == value


# Those that a user writes.


def test_models_of_a_users_own_learn_under_their_own_names(backend: Backend) -> None:
    models = user(backend).user_models(3, 2)
    agent = backend.agent(models=models, learning_rate=1e-2)
    fill(agent, 16)
    before = agent.arrays()
    kernel = "critic_1.body.0.weight" if backend.name == "torch" else "critic_1.dense.kernel"
    assert {kernel, "policy.spread", f"target_{kernel}", f"critic_optimizer.first_moment.{kernel}"} <= set(before)
    assert before[kernel].shape == ((8, 5) if backend.name == "torch" else (5, 8))
    for _ in range(3):
        agent.update(timestep=0, timesteps=1)
    after = agent.arrays()
    for name in before:
        if not name.startswith("target_") and "optimizer" not in name:
            assert not np.array_equal(before[name], after[name]), name


def test_construction_copies_and_the_users_objects_stay_usable(backend: Backend) -> None:
    models = user(backend).user_models(3, 2)
    arrays_of = user(backend).arrays_of
    given = {name: arrays_of(model) for name, model in models.items()}
    agent = backend.agent(models=models, learning_rate=1e-2)
    fill(agent, 8)
    observations = np.ones((2, 3))
    outputs = call(backend, models["policy"], observations)
    first_read = agent.models
    initial = {name: arrays_of(model) for name, model in first_read.items()}
    for _ in range(3):
        agent.update(timestep=0, timesteps=1)
    for name, model in models.items():
        assert_same_arrays(arrays_of(model), given[name])
        assert_same_arrays(initial[name], given[name])
    np.testing.assert_array_equal(call(backend, models["policy"], observations), outputs)
    # What was read is as it was, and what is read is current.
    for name, model in first_read.items():
        assert_same_arrays(arrays_of(model), initial[name])
    np.testing.assert_allclose(call(backend, first_read["policy"], observations), outputs, rtol=1e-5)
    current = agent.arrays()
    assert set(agent.models) == {"policy", "critic_1", "critic_2", "target_critic_1", "target_critic_2"}
    for name, model in agent.models.items():
        for parameter, array in arrays_of(model).items():
            np.testing.assert_array_equal(array, current[f"{name}.{parameter}"])
    # Two agents of one set of models share nothing.
    other = backend.agent(models=models)
    assert np.array_equal(other.arrays()["policy.spread"], given["policy"]["spread"])
    # A change to the user's object after construction changes nothing in the agent.
    if backend.name == "torch":
        models["policy"].spread.data += 1.0
    else:
        models["policy"].spread[...] = models["policy"].spread[...] + 1.0
    np.testing.assert_array_equal(agent.arrays()["policy.spread"], current["policy.spread"])


def test_models_read_from_an_agent_make_another_one_like_it(backend: Backend) -> None:
    first = backend.agent(learning_rate=1e-2)
    for seed in range(3):
        first.update_on(*draw_batch(first, 4, seed))
    second = backend.agent(models=first.models)
    a, b = first.arrays(), second.arrays()
    for name in [name for name in a if name.startswith(("policy.", "critic_1.", "critic_2.", "target_"))]:
        np.testing.assert_array_equal(a[name], b[name])


def test_targets_are_copies_of_the_critics_unless_given(backend: Backend) -> None:
    models = defaults(backend)
    arrays = backend.agent(models=models).arrays()
    for name in [name for name in arrays if name.startswith("critic_") and "optimizer" not in name]:
        np.testing.assert_array_equal(arrays[f"target_{name}"], arrays[name])
    others = defaults(backend, seed=7)
    targets = {f"target_{name}": others[name] for name in ("critic_1", "critic_2")}
    arrays = backend.agent(models={**models, **targets}).arrays()
    wanted = backend.agent(models=others).arrays()
    for name in [name for name in arrays if name.startswith("target_")]:
        np.testing.assert_array_equal(arrays[name], wanted[name])
        if name.endswith("kernel"):
            assert not np.array_equal(arrays[name], arrays[name.removeprefix("target_")])


def test_models_take_their_own_training_mode(backend: Backend) -> None:
    """A critic that doubles its value in training mode."""
    module = user(backend)
    agent = backend.agent(models=module.user_models(3, 2, critic=module.Modal), learning_rate=0.0, polyak=0.0)
    batch, noise = draw_batch(agent, 4)
    means = {}
    for enabled in (True, False, True):
        agent.enable_models_training_mode(enabled)
        means[enabled] = agent.update_on(batch, noise)["q_mean"]
    np.testing.assert_allclose(means[True], 2 * means[False], rtol=1e-5)
    assert np.abs(means[True]).min() > 1e-3
    agent.enable_training_mode(False)
    np.testing.assert_allclose(agent.update_on(batch, noise)["q_mean"], means[True], rtol=1e-6)
    agent.enable_training_mode(False, apply_to_models=True)
    np.testing.assert_allclose(agent.update_on(batch, noise)["q_mean"], means[False], rtol=1e-6)


# What is refused.


def test_layers_that_change_are_refused(backend: Backend) -> None:
    module = user(backend)
    models = {**module.user_models(3, 2), "critic_2": module.Flawed(3, 2, "batch norm")}
    with pytest.raises(
        ValueError, match=r"model 'critic_2' has a \w+ at 'extra.*', which changes when it is called.*use layers .* such as LayerNorm"
    ):
        backend.agent(models=models)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"policy": None}, r"models has no 'policy': got \['critic_1', 'critic_2'\], expected 'policy', 'critic_1', .*default_models"),
        ({"critic_1": None}, r"models has no 'critic_1': got \['critic_2', 'policy'\]"),
        ({"critic_1": None, "critic_2": None}, r"models has no 'critic_1': got \['policy'\]"),
        ({"polcy": "policy"}, "models has 'polcy', expected some of .*: did you mean 'policy'"),
        ({"value": "critic_1"}, "models has 'value', expected some of"),
        ({"critic_2": None, "critic_3": "critic_2"}, "models has no 'critic_2'"),
        (
            {"target_critic_1": "critic_1"},
            r"models has \['target_critic_1'\] but not \['target_critic_2'\]: give all target critics, or none",
        ),
        ({"target_critic_3": "critic_1"}, "models has 'target_critic_3', expected some of"),
    ],
)
def test_a_missing_or_unknown_model_is_refused(backend: Backend, change: dict[str, str | None], message: str) -> None:
    models = defaults(backend)
    changed = {**models, **{name: source and models[source] for name, source in change.items()}}
    changed = {name: model for name, model in changed.items() if model is not None}
    with pytest.raises(ValueError, match=message):
        backend.agent(models=changed)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "critic_1",
            lambda q: q[:, None],
            r"'critic_1' returned values of shape \(3, 1\) .*expected \(batch,\) = \(3,\).*drop the last axis",
        ),
        ("critic_2", lambda q: q.sum(), r"'critic_2' returned values of shape \(\) .*return one value per row"),
        ("policy", lambda p: p[0], r"'policy' returned \w+, expected a tuple \(mean, raw log_std\)"),
        ("policy", lambda p: (*p, p[0]), r"'policy' returned tuple, expected a tuple \(mean, raw log_std\)"),
        (
            "policy",
            lambda p: (p[0], p[1][:, :1]),
            r"'policy' returned a raw log_std of shape \(3, 1\) .*expected \(batch, action\) = \(3, 2\)",
        ),
        ("policy", lambda p: (p[0][0], p[1]), r"'policy' returned a mean of shape \(2,\) .*expected \(batch, action\) = \(3, 2\)"),
    ],
)
def test_trap_09_models_that_return_wrong_shapes_are_refused_at_construction(
    backend: Backend, name: str, change: Any, message: str
) -> None:
    module = user(backend)
    models = module.user_models(3, 2)
    models[name] = module.Returns(models[name], change)
    with pytest.raises(ValueError, match=message):
        backend.agent(models=models)


def test_models_of_two_dtypes_are_refused(backend: Backend) -> None:
    models = {**defaults(backend), "critic_2": defaults(backend, dtype="float64")["critic_2"]}
    with pytest.raises(TypeError, match=r"parameters of dtypes .*'critic_2'.*expected all float32 or all float64"):
        backend.agent(models=models)


def test_targets_that_are_built_differently_are_refused(backend: Backend) -> None:
    models, others = defaults(backend), defaults(backend, hidden=(9,))
    with pytest.raises(ValueError, match=r"model 'target_critic_1' has parameters .*9.*, expected .*8.* as 'critic_1': build it like"):
        backend.agent(models={**models, **{f"target_{name}": others[name] for name in ("critic_1", "critic_2")}})


def test_a_memory_serves_one_agent(backend: Backend) -> None:
    package, spaces = backend.package, Spaces()
    memory = package.ReplayMemory(64, 1)
    common = {"models": defaults(backend), "observation_space": spaces.observation, "action_space": spaces.action, "memory": memory}
    with pytest.raises(ValueError, match=r"not allocated yet: give it to an agent first, SAC\(memory=...\)"):
        len(memory)
    package.SAC(**common)
    with pytest.raises(ValueError, match="this memory belongs to another agent already: make one for each agent"):
        package.SAC(**common)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((10, 0), ValueError, "num_envs is 0, expected at least 1"),
        ((3, 4), ValueError, "capacity is 3, expected at least num_envs = 4: one step must fit"),
        ((1e6, 1), TypeError, r"capacity is 1000000\.0, expected an integer: int\(1000000\.0\)"),
        ((10, True), TypeError, "num_envs is True, expected an integer"),
    ],
)
def test_sizes_that_no_memory_can_have_are_refused(backend: Backend, arguments: Any, error: type[Exception], message: str) -> None:
    with without_shape_checks(), pytest.raises(error, match=message):
        backend.package.ReplayMemory(*arguments)
