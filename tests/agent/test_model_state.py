"""Models that hold more than what learns: buffers, frozen parts, ties, and parts in common; and models that fail when they are tried."""

import copy
import importlib
from typing import Any

import gymnasium
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.backends import BACKENDS, Backend, Spaces, assert_same_arrays, box, draw_batch, fill, load_backend

backend = pytest.fixture(params=BACKENDS)(load_backend)

ENCODED = ("policy", "critic_1", "critic_2")


def user(backend: Backend) -> Any:
    """The module with the user's models."""
    return importlib.import_module(f"tests.{backend.name}.user_models")


def actions_of(agent: Any) -> NDArray[Any]:
    """What an agent does, in evaluation."""
    agent.enable_training_mode(False)
    return np.array(agent.to_numpy(agent.act(np.linspace(-1.0, 1.0, 6).reshape(2, 3), None, timestep=0, timesteps=1)[0]))


def encoder_of(arrays: dict[str, NDArray[Any]], model: str) -> dict[str, NDArray[Any]]:
    return {name: array for name, array in arrays.items() if name.startswith(f"{model}.encoder.")}


# Saved and restored.


@pytest.mark.parametrize("execution", ["plain", "auto", "traced"])
def test_buffers_and_frozen_parts_are_loaded_into_a_fresh_agent(backend: Backend, execution: str, tmp_path: Any) -> None:
    if (backend.name == "jax") == (execution != "auto"):
        pytest.skip("of the other backend")
    agent, fresh = (backend.agent(models=user(backend).encoded_models(seed), execution=execution) for seed in (0, 9))
    wanted = actions_of(agent)
    assert not np.allclose(actions_of(fresh), wanted, rtol=0.1)  # compiled and recorded with its own
    agent.save(tmp_path / "saved")
    fresh.load(tmp_path / "saved")
    np.testing.assert_array_equal(actions_of(fresh), wanted)
    assert_same_arrays(fresh.arrays(), agent.arrays())
    for name in ENCODED:
        assert len(encoder_of(agent.arrays(), name)) == 4
    # So is what learns from here on, targets included.
    for each in (agent, fresh):
        each.update_on(*draw_batch(agent, 4))
    assert_same_arrays(fresh.arrays(), agent.arrays())


def test_infinities_in_a_mask_are_no_fault_of_training(backend: Backend, tmp_path: Any) -> None:
    agent = backend.agent(models=user(backend).encoded_models())
    assert np.isinf(agent.arrays()["policy.encoder.mask"]).sum() == 2
    agent.check_numbers()
    agent.save(tmp_path / "saved")


def test_constants_that_do_not_fit_change_nothing(backend: Backend) -> None:
    agent = backend.agent(models=user(backend).encoded_models())
    before = agent.arrays()
    name = "critic_2.encoder.features"
    with pytest.raises(ValueError, match=rf"missing arrays \['{name}'\]"):
        agent.set_arrays({key: array for key, array in before.items() if key != name})
    with pytest.raises(ValueError, match=rf"{name} has shape \(4,\)"):
        agent.set_arrays({**before, name: np.zeros(4, np.float32)})
    assert_same_arrays(agent.arrays(), before)


# Frozen.


def test_what_is_frozen_stays_and_takes_no_part_in_the_optimizer(backend: Backend) -> None:
    agent = backend.agent(models=user(backend).encoded_models(), grad_norm_clip=0.1, execution="plain")  # as of update_on
    before = agent.arrays()
    agent.keep_gradients()
    metrics = agent.update_on(*draw_batch(agent, 4))
    fill(agent, 8)
    for timestep in range(2):
        agent.update(timestep=timestep, timesteps=2)
    after, models = agent.arrays(), agent.models
    for name in ENCODED:
        assert_same_arrays(encoder_of(after, name), encoder_of(before, name))
        assert not np.array_equal(
            after[f"{name}.{'out' if 'critic' in name else 'mu'}.bias"], before[f"{name}.{'out' if 'critic' in name else 'mu'}.bias"]
        )
    assert not [name for name in (*after, *agent.gradients()) if "encoder" in name and name.partition(".")[0] not in ENCODED]
    assert metrics["policy_gradient_norm"] > 0.1
    # A target has its critic's.
    weights = backend.module("weights")
    for key, array in weights.constants_of(models["target_critic_1"], weights.identities_of(models["target_critic_1"])).items():
        np.testing.assert_array_equal(backend.numpy(array), after[f"critic_1.{key}"])


def test_the_gradient_norm_is_that_of_what_learns(backend: Backend) -> None:
    agent = backend.agent(models=user(backend).encoded_models(), grad_norm_clip=0.1)
    agent.keep_gradients()
    norm = agent.update_on(*draw_batch(agent, 4))["policy_gradient_norm"]
    gradients = [array for name, array in agent.gradients().items() if name.startswith("policy.")]
    assert len(gradients) == 7
    np.testing.assert_allclose(norm, np.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in gradients)), rtol=1e-5)


def test_a_policy_that_is_frozen_altogether_acts_and_is_not_trained() -> None:
    torch_backend = Backend("torch")
    pytest.importorskip("torch")
    models = user(torch_backend).encoded_models()
    wanted = actions_of(torch_backend.agent(models=models))
    models["policy"].requires_grad_(False)
    acting = torch_backend.agent(models={"policy": models["policy"]}, capacity=None, training=False)
    np.testing.assert_array_equal(actions_of(acting), wanted)
    with pytest.raises(ValueError, match=r"model 'policy' has no parameter that learns, .*: unfreeze some, or give the policy alone"):
        torch_backend.agent(models=models)


def test_targets_may_be_frozen_copies_and_share_what_does_not_learn(backend: Backend) -> None:
    models = user(backend).encoded_models()
    targets = {f"target_{name}": copy.deepcopy(models[name]) for name in ("critic_1", "critic_2")}
    if backend.name == "torch":
        for target in targets.values():
            target.requires_grad_(False)
    given, left_out = backend.agent(models={**models, **targets}).arrays(), backend.agent(models=models).arrays()
    assert_same_arrays(given, left_out)
    targets["target_critic_2"] = copy.deepcopy(user(backend).encoded_models(9)["critic_2"])
    with pytest.raises(ValueError, match=r"model 'target_critic_2' has another 'encoder\.\S+' than 'critic_2', .*: copy the target from"):
        backend.agent(models={**models, **targets})


# Parts in common.


def test_models_that_share_what_learns_are_refused(backend: Backend) -> None:
    models = user(backend).encoded_models()
    with pytest.raises(ValueError, match=r"models 'critic_1' and 'critic_2' are one module, expected one for each: .*build one for each"):
        backend.agent(models={**models, "critic_2": models["critic_1"]})
    user(backend).share(models["policy"], models["critic_2"], "encoder")
    agent = backend.agent(models=models)  # frozen: the copies stay equal
    assert_same_arrays(
        *({key.partition(".")[2]: a for key, a in encoder_of(agent.arrays(), name).items()} for name in ("policy", "critic_2"))
    )
    user(backend).share(models["critic_1"], models["critic_2"], "out")
    with pytest.raises(ValueError, match=r"models 'critic_1' and 'critic_2' share a parameter that learns, 'out\.\w+' in the first"):
        backend.agent(models=models)


def test_ties_within_a_model_hold(backend: Backend) -> None:
    models = user(backend).user_models(3, 2)
    agent = backend.agent(models={**models, "policy": user(backend).Tied(3, 2)})
    before = agent.arrays()
    agent.update_on(*draw_batch(agent, 4))
    policy = agent.models["policy"]
    first, second = (policy.body[0].weight, policy.again.weight) if backend.name == "torch" else (policy.dense.kernel, policy.again.kernel)
    assert first is second
    changed = [name for name, array in agent.arrays().items() if name.startswith("policy.") and not np.array_equal(array, before[name])]
    assert len([name for name in changed if name.endswith(("weight", "kernel"))]) == 2 + (backend.name == "torch")


def test_two_parameters_in_the_same_memory_are_refused() -> None:
    torch = pytest.importorskip("torch")
    models = user(Backend("torch")).user_models(3, 2)
    models["policy"].again = torch.nn.Parameter(models["policy"].mu.weight.data)
    with pytest.raises(ValueError, match=r"model 'policy' has 'again' and 'mu\.weight', two parameters in the same memory"):
        Backend("torch").agent(models=models)


# Models that change when they are called.


@pytest.mark.parametrize("place", ["mean", "statistics", "calls"])
def test_models_that_change_when_they_are_called_are_refused(backend: Backend, place: str) -> None:
    models = {**user(backend).user_models(3, 2), "policy": user(backend).Changing(3, 2, place)}
    with pytest.raises(
        ValueError, match=rf"model 'policy' has '{place}\S*', which changes when it is called, expected .*observation_preprocessor"
    ):
        backend.agent(models=models)


def test_layers_of_pytorch_that_change_or_draw_are_refused() -> None:
    torch = pytest.importorskip("torch")
    own = user(Backend("torch"))

    def refused(change: Any, message: str) -> None:
        models = own.user_models(3, 2)
        change(models)
        with pytest.raises(ValueError, match=message):
            Backend("torch").agent(models=models)

    def normalised(models: Any) -> None:
        torch.nn.utils.parametrizations.spectral_norm(models["critic_1"].out)

    def drawing(models: Any) -> None:
        models["critic_1"] = own.Returns(models["critic_1"], torch.nn.functional.dropout)

    def plain(models: Any) -> None:
        models["policy"].scales = {"mean": [torch.ones(2)]}

    def half(models: Any) -> None:
        models["policy"].register_buffer("scale", torch.ones((), dtype=torch.bfloat16))

    def lazy(models: Any) -> None:
        models["policy"].lazy = torch.nn.LazyLinear(3)

    refused(lazy, r"model 'policy' has a LazyLinear at 'lazy', whose parameters have no shapes yet: call the model once, or")
    refused(normalised, r"model 'critic_1' has 'out\.parametrizations\.weight\.0\._[uv]', which changes when it is called")
    refused(drawing, r"model 'critic_1' calls aten\.\S+, which draws from torch's global generator, .*: use sacref\.torch\.models\.Dropout")
    refused(plain, r"model 'policy' has a plain tensor at 'scales', .*: others are neither saved nor moved .*register_buffer\('scales'")
    refused(half, r"model 'policy' has 'scale' of dtype bfloat16, expected one that a checkpoint holds, bool, int8")
    models = own.user_models(3, 2)
    normalised(models)
    models["critic_1"].eval()  # it changes in training mode alone
    agent = Backend("torch").agent(models=models)
    with pytest.raises(ValueError, match="which changes when it is called"):
        agent.enable_models_training_mode(True)


# Models that fail when they are tried.


def test_a_model_that_fails_is_told_what_it_was_given(backend: Backend) -> None:
    own = user(backend)
    models = own.user_models(3, 2)
    failing = own.Returns(models["policy"].mu, lambda mean: mean)
    with pytest.raises(
        ValueError,
        match=r"model 'policy' fails on .*\({'observations': float32 \(3, 3\), 'states': None}\) and raised \w+: .*read inputs\['obs",
    ):
        backend.agent(models={**models, "policy": failing})
    named = Spaces(observation=gymnasium.spaces.Dict({"arm": box(-1.0, 1.0, (3,))}))
    with pytest.raises(ValueError, match=r"model 'policy' fails on .*{'observations': {'arm': float32 \(3, 3\)}, 'states': None}"):
        backend.agent(named, models=models)
    pixels = Spaces(observation=gymnasium.spaces.Box(0, 255, (3,), np.uint8))
    with pytest.raises(
        ValueError, match=r"model 'policy' fails on .*'observations': (uint8 \(3, 3\)|float32 \(3, 3\)).*int32 for an embedding"
    ):
        as_it_is = (lambda x: x) if backend.name == "torch" else (lambda x: x.astype(np.float32))
        backend.agent(pixels, models={"policy": own.Tabular(2, as_it_is)}, capacity=None)
    cast = (lambda x: x.int()) if backend.name == "torch" else (lambda x: x.astype(np.int32))
    backend.agent(pixels, models={"policy": own.Tabular(2, cast)}, capacity=None)
