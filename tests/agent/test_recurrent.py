"""The recurrent networks: PyTorch's equations on both backends, the carry, and what enters where."""

import importlib
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium
import numpy as np
import pytest
from numpy.typing import NDArray

from sacref.algorithm.tree import leaves, map_leaves
from tests.backends import BACKENDS, Backend, assert_same_arrays, box, installed_backends, load_backend

backend = pytest.fixture(params=BACKENDS)(load_backend)

KINDS = ["rnn", "gru", "lstm"]
TIME, BATCH, SIZE, ACTIONS = 5, 3, 4, 2
# Not in the order of the alphabet, into which Gymnasium brings a dict that is not an OrderedDict, and JAX every dict.
OBSERVATION = gymnasium.spaces.Dict(OrderedDict([("velocity", box(-1, 1, (2,))), ("position", box(-1, 1, ()))]))
STATE = box(-1, 1, (2, 2))
SEEN, PRIVILEGED = 3, 4

Arrays = dict[str, NDArray[np.float64]]


def models(backend: Backend, kind: str, **options: Any) -> dict[str, Any]:
    given = {"hidden": (6, 5), "dtype": "float64", "recurrent_size": SIZE, "feed_previous": ("rewards", "actions"), "state_space": STATE}
    built: dict[str, Any] = backend.package.default_models(
        observation_space=OBSERVATION, action_space=box(-2, 2, (ACTIONS,)), recurrent=kind, **{**given, **options}
    )
    return built


def draw_inputs(seed: int = 0, time: int = TIME) -> tuple[dict[str, Any], NDArray[np.float64]]:
    """Inputs of a sequence and the actions to evaluate, as NumPy arrays."""
    generator = np.random.default_rng(seed)
    inputs = {
        # In another order than the space's.
        "observations": {"position": generator.normal(size=(time, BATCH)), "velocity": generator.normal(size=(time, BATCH, 2))},
        "states": generator.normal(size=(time, BATCH, 2, 2)),
        "previous_actions": generator.uniform(-1, 1, (time, BATCH, ACTIONS)),
        "previous_rewards": generator.normal(size=(time, BATCH)),
    }
    return inputs, generator.uniform(-1, 1, (time, BATCH, ACTIONS))


def draw_carry(kind: str, seed: int = 1) -> Any:
    generator = np.random.default_rng(seed)
    parts = [generator.normal(size=(BATCH, SIZE)) for _ in range(2)]
    return tuple(parts) if kind == "lstm" else parts[0]


def call(backend: Backend, model: Any, inputs: Any, *arguments: Any) -> tuple[NDArray[np.float64], Any]:
    """What a model gives, on the host: its numbers (a policy's two side by side), and its carry."""
    *outputs, carry = model(map_leaves(backend.array, inputs), *(map_leaves(backend.array, argument) for argument in arguments))
    arrays = [backend.numpy(output) for output in outputs]
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays, axis=-1), map_leaves(backend.numpy, carry)


def arrays_of(backend: Backend, model: Any) -> Arrays:
    """The parameters under their common names."""
    weights = backend.module("weights")
    arrays: Arrays = weights.to_common(model, weights.parameters_of(model, cpu(backend)))
    return arrays


def cpu(backend: Backend) -> Any:
    library = importlib.import_module(backend.name)
    return library.device("cpu") if backend.name == "torch" else library.local_devices(backend="cpu")[0]


def gradients(backend: Backend, model: Any, *arguments: Any) -> tuple[NDArray[np.float64], Any, Arrays]:
    """Outputs, carry, and the gradients of the weighted sum of all that the model gives, through its functional form."""
    weights = backend.module("weights")
    parameters, function = weights.parameters_of(model, cpu(backend)), weights.functional(model)
    given = [map_leaves(backend.array, argument) for argument in arguments]

    def weighted(outputs: Any) -> Any:
        parts = leaves(outputs)
        weigh = [np.cos(np.arange(np.prod(part.shape))).reshape(part.shape) for part in parts]
        return sum((part * backend.array(weight)).sum() for part, weight in zip(parts, weigh, strict=True))

    if backend.name == "torch":
        torch = importlib.import_module("torch")
        parameters = {name: parameter.requires_grad_() for name, parameter in parameters.items()}
        outputs = function(parameters, *given)
        found = torch.autograd.grad(weighted(outputs), list(parameters.values()))
        gradient = dict(zip(parameters, found, strict=True))
    else:
        jax = importlib.import_module("jax")
        outputs = jax.jit(function)(parameters, *given)
        gradient = jax.grad(lambda p: weighted(function(p, *given)))(parameters)
    *numbers, carry = outputs
    host = [backend.numpy(array) for array in numbers]
    return (
        np.concatenate([a.reshape(a.shape[0], -1) for a in host], axis=-1),
        map_leaves(backend.numpy, carry),
        weights.to_common(model, gradient),
    )


def relative(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    return float(np.abs(a - b).max() / np.abs(b).max())


# By hand.


def sigmoid(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return 1.0 / (1.0 + np.exp(-x))


def cell_by_hand(kind: str, arrays: Mapping[str, NDArray[np.float64]], x: NDArray[np.float64], carry: Any) -> Any:
    """One step of a cell as PyTorch's documentation writes it: -> carry."""
    gates = {"rnn": 1, "gru": 3, "lstm": 4}[kind]
    h = carry[0] if kind == "lstm" else carry
    a = np.split(x @ arrays["cell.input.kernel"] + arrays["cell.input.bias"], gates, axis=-1)
    b = np.split(h @ arrays["cell.hidden.kernel"] + arrays["cell.hidden.bias"], gates, axis=-1)
    if kind == "rnn":
        return np.tanh(a[0] + b[0])
    if kind == "gru":
        r, z = sigmoid(a[0] + b[0]), sigmoid(a[1] + b[1])
        n = np.tanh(a[2] + r * b[2])
        return (1 - z) * n + z * h
    i, f, g, o = sigmoid(a[0] + b[0]), sigmoid(a[1] + b[1]), np.tanh(a[2] + b[2]), sigmoid(a[3] + b[3])
    c = f * carry[1] + i * g
    return o * np.tanh(c), c


def by_hand(kind: str, arrays: Arrays, seen: NDArray[Any], fed: NDArray[Any], carry: Any, *actions: NDArray[Any]) -> tuple[Any, Any]:
    """A whole network: cell over what is seen and fed; perceptron over its output, what is seen, and the actions."""
    outputs = []
    for t in range(len(seen)):
        carry = cell_by_hand(kind, arrays, np.concatenate([seen[t], fed[t]], axis=-1), carry)
        x = np.concatenate([carry[0] if kind == "lstm" else carry, seen[t], *(action[t] for action in actions)], axis=-1)
        for i in range(2):
            x = np.maximum(x @ arrays[f"hidden.{i}.kernel"] + arrays[f"hidden.{i}.bias"], 0.0)
        outputs.append(x @ arrays["head.kernel"] + arrays["head.bias"])
    return np.stack(outputs), carry


@pytest.mark.parametrize("kind", KINDS)
def test_the_networks_are_those_written_by_hand(backend: Backend, kind: str) -> None:
    built, (inputs, actions), carry = models(backend, kind), draw_inputs(), draw_carry(kind)
    fed = np.concatenate([inputs["previous_actions"], inputs["previous_rewards"][..., None]], axis=-1)
    seen = np.concatenate([inputs["observations"]["velocity"], inputs["observations"]["position"][..., None]], axis=-1)
    got, last = call(backend, built["policy"], inputs, carry)
    wanted, wanted_last = by_hand(kind, arrays_of(backend, built["policy"]), seen, fed, carry)
    assert got.shape == (TIME, BATCH, 2 * ACTIONS)
    assert relative(got, wanted) < 1e-13
    for part, wanted_part in zip(leaves(last), leaves(wanted_last), strict=True):
        assert part.shape == (BATCH, SIZE)
        assert relative(part, wanted_part) < 1e-13
    states = inputs["states"].reshape(TIME, BATCH, PRIVILEGED)
    got, last = call(backend, built["critic_2"], inputs, actions, carry)
    wanted, wanted_last = by_hand(kind, arrays_of(backend, built["critic_2"]), states, fed, carry, actions)
    assert relative(got, wanted[..., 0]) < 1e-13
    for part, wanted_part in zip(leaves(last), leaves(wanted_last), strict=True):
        assert relative(part, wanted_part) < 1e-13


# Both backends.


@pytest.mark.parametrize("name", ["policy", "critic_1"])
@pytest.mark.parametrize("kind", KINDS)
def test_outputs_and_gradients_are_the_same_on_both_backends(kind: str, name: str) -> None:
    (inputs, actions), carry = draw_inputs(), draw_carry(kind)
    found = []
    for backend in installed_backends():
        model = models(backend, kind, layer_norm=True, dropout=0.3)[name]
        generator = np.random.default_rng(2)
        draws = [generator.random((TIME, BATCH, width)) for width in model.draw_widths]
        assert model.draw_widths == (() if name == "policy" else (6, 5))
        found.append(
            (arrays_of(backend, model), *gradients(backend, model, inputs, *([] if name == "policy" else [actions]), carry, *draws))
        )
    (torch_arrays, torch_outputs, torch_carry, torch_gradients), (arrays, outputs, last, gradient) = found
    assert_same_arrays(torch_arrays, arrays)
    assert relative(torch_outputs, outputs) < 1e-12
    for a, b in zip(leaves(torch_carry), leaves(last), strict=True):
        assert relative(a, b) < 1e-12
    assert set(torch_gradients) == set(gradient) == set(arrays)
    for part in gradient:
        assert np.abs(gradient[part]).max() > 1e-3, part
        assert relative(torch_gradients[part], gradient[part]) < 1e-12, part


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_have_the_common_names_and_come_back_from_them(backend: Backend, kind: str) -> None:
    model, gates = models(backend, kind, layer_norm=True)["critic_1"], {"rnn": 1, "gru": 3, "lstm": 4}[kind]
    arrays = arrays_of(backend, model)
    assert {name: array.shape for name, array in arrays.items() if not name.startswith(("hidden.", "head."))} == {
        "cell.input.kernel": (PRIVILEGED + ACTIONS + 1, gates * SIZE),
        "cell.input.bias": (gates * SIZE,),
        "cell.hidden.kernel": (SIZE, gates * SIZE),
        "cell.hidden.bias": (gates * SIZE,),
        **{f"norms.{i}.{part}": (width,) for i, width in enumerate((6, 5)) for part in ("scale", "bias")},
    }
    assert arrays["hidden.0.kernel"].shape == (SIZE + PRIVILEGED + ACTIONS, 6)
    weights = backend.module("weights")
    numbered = {name: np.arange(array.size, dtype=np.float64).reshape(array.shape) for name, array in arrays.items()}
    parameters = weights.from_common(model, numbered, like=weights.parameters_of(model, cpu(backend)))
    assert_same_arrays(arrays_of(backend, weights.with_parameters(model, parameters)), numbered)


def test_a_call_with_other_parameters_leaves_the_model_as_it_is(backend: Backend) -> None:
    """PyTorch's recurrent layers keep a second list of their parameters."""
    weights, (inputs, _), carry = backend.module("weights"), draw_inputs(), draw_carry("gru")
    model, other = models(backend, "gru")["policy"], models(backend, "gru", seed=1)["policy"]
    before, _ = call(backend, model, inputs, carry)
    given = [map_leaves(backend.array, argument) for argument in (inputs, carry)]
    mean, _, _ = weights.functional(model)(weights.parameters_of(other, cpu(backend)), *given)
    np.testing.assert_array_equal(backend.numpy(mean), call(backend, other, inputs, carry)[0][..., :ACTIONS])
    np.testing.assert_array_equal(call(backend, model, inputs, carry)[0], before)


# The carry.


@pytest.mark.parametrize("kind", KINDS)
def test_two_halves_with_the_carry_passed_on_are_the_whole(backend: Backend, kind: str) -> None:
    (inputs, actions), carry = draw_inputs(), draw_carry(kind)
    for name, model in models(backend, kind).items():
        given = [] if name == "policy" else [actions]
        whole, last = call(backend, model, inputs, *given, carry)
        parts, passed = [], carry
        for cut in (slice(0, 2), slice(2, None)):
            part, passed = call(backend, model, map_leaves(lambda a, cut=cut: a[cut], inputs), *(a[cut] for a in given), passed)
            parts.append(part)
        np.testing.assert_allclose(np.concatenate(parts), whole, rtol=1e-13, atol=1e-15)
        for a, b in zip(leaves(passed), leaves(last), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-13, atol=1e-15)
        assert relative(call(backend, model, inputs, *given, map_leaves(np.zeros_like, carry))[0], whole) > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_the_evaluated_action_does_not_enter_the_carry_and_the_previous_one_does(backend: Backend, kind: str) -> None:
    model, (inputs, actions), carry = models(backend, kind)["critic_1"], draw_inputs(), draw_carry(kind)
    values, last = call(backend, model, inputs, actions, carry)
    others, last_of_others = call(backend, model, inputs, -actions, carry)
    assert np.abs(values - others).min() > 1e-6
    for a, b in zip(leaves(last), leaves(last_of_others), strict=True):
        np.testing.assert_array_equal(a, b)
    for name in ("previous_actions", "previous_rewards"):
        fed = inputs[name].copy()
        fed[2] += 0.5
        changed, last_of_changed = call(backend, model, {**inputs, name: fed}, actions, carry)
        np.testing.assert_array_equal(changed[:2], values[:2])
        assert np.abs(changed[2:] - values[2:]).min() > 1e-9
        for a, b in zip(leaves(last_of_changed), leaves(last), strict=True):
            assert np.abs(a - b).min() > 1e-9


@pytest.mark.parametrize(("fed", "read"), [((), set()), (("actions",), {"previous_actions"}), (("rewards",), {"previous_rewards"})])
def test_only_what_is_fed_is_read(backend: Backend, fed: tuple[str, ...], read: set[str]) -> None:
    model, (inputs, _), carry = models(backend, "gru", feed_previous=fed)["policy"], draw_inputs(), draw_carry("gru")
    kept = {name: value for name, value in inputs.items() if not name.startswith("previous_") or name in read}
    outputs, _ = call(backend, model, kept, carry)
    width = {"previous_actions": ACTIONS, "previous_rewards": 1}
    assert arrays_of(backend, model)["cell.input.kernel"].shape[0] == SEEN + sum(width[name] for name in read)
    for name in read:
        assert np.abs(call(backend, model, {**kept, name: kept[name] + 0.5}, carry)[0] - outputs).min() > 1e-9


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_first_carry_is_zeros(backend: Backend, kind: str, dtype: str) -> None:
    for model in models(backend, kind, dtype=dtype).values():
        carry = model.initial_carry(7)
        assert isinstance(carry, tuple) == (kind == "lstm")
        parts = [backend.numpy(part) for part in leaves(carry)]
        assert [part.shape for part in parts] == [(7, SIZE)] * (2 if kind == "lstm" else 1)
        assert all(part.dtype == dtype and not part.any() for part in parts)


@pytest.mark.parametrize(
    ("kind", "change", "got", "expected"),
    [
        ("gru", lambda carry: carry[:2], r"\(2, 4\)", r"\(3, 4\)"),
        ("gru", lambda carry: carry[None], r"\(1, 3, 4\)", r"\(3, 4\)"),
        ("gru", lambda carry: (carry, carry), r"\(\(3, 4\), \(3, 4\)\)", r"\(3, 4\)"),
        ("lstm", lambda carry: carry[0], r"\(3, 4\)", r"\(\(3, 4\), \(3, 4\)\)"),
        ("lstm", lambda carry: (carry[0], carry[1][:, :3]), r"\(\(3, 4\), \(3, 3\)\)", r"\(\(3, 4\), \(3, 4\)\)"),
    ],
)
def test_a_carry_of_the_wrong_shape_is_refused(backend: Backend, kind: str, change: Callable[[Any], Any], got: str, expected: str) -> None:
    model, (inputs, _) = models(backend, kind)["policy"], draw_inputs()
    with pytest.raises(ValueError, match=rf"the carry has shape {got}, expected {expected}, .*model\.initial_carry\(3\)"):
        call(backend, model, inputs, change(draw_carry(kind)))


# One backend.


@pytest.mark.parametrize("kind", KINDS)
def test_recorded_networks_give_what_the_eager_ones_give(kind: str) -> None:
    """float32: oneDNN's LSTM, which PyTorch takes there, cannot be replayed with its gradient."""
    torch = pytest.importorskip("torch")
    backend = Backend("torch")
    model, (inputs, actions), carry = models(backend, kind, dtype="float32")["critic_1"], draw_inputs(), draw_carry(kind)
    weights, graph, optim = (backend.module(name) for name in ("weights", "graph", "optim"))
    function, parameters = weights.functional(model), weights.parameters_of(model, cpu(backend))
    given = [map_leaves(lambda array: torch.from_numpy(array).float(), argument) for argument in (inputs, actions, carry)]

    def step(parameters: Any, *arguments: Any) -> Any:
        def objective(parameters: Any) -> Any:
            values, carry = function(parameters, *arguments)
            return (values**2).mean(), torch.cat(leaves(carry))

        return optim.value_and_grad(objective, parameters)

    (value, last), gradient = step(parameters, *given)
    (recorded_value, recorded_last), recorded_gradient = graph.Recorded(step)(parameters, *given)
    np.testing.assert_allclose(recorded_value, value, rtol=1e-5)
    assert relative(recorded_last.numpy(), last.numpy()) < 1e-5
    for name in gradient:
        assert relative(recorded_gradient[name].numpy(), gradient[name].numpy()) < 1e-5, name


def test_drawing_and_building_leave_torchs_global_generator_alone() -> None:
    torch = pytest.importorskip("torch")
    before = torch.random.get_rng_state()
    for kind in KINDS:
        models(Backend("torch"), kind)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_cell_has_a_gradient_in_evaluation_mode_too() -> None:
    """cuDNN refuses one of a layer in evaluation mode."""
    pytest.importorskip("torch")
    model = models(Backend("torch"), "gru")["critic_1"]
    model.eval()
    assert not model.training
    assert model.cell.training
