"""`agent.predict`: actions for people who use an agent, in the middle of a training or after it."""

import copy
from functools import partial
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import SyncVectorEnv

from sacref.agent.numerics import NumericalError
from sacref.preprocessing import RunningStandardScaler
from sacref.training.evaluation import evaluate
from tests.backends import BACKENDS, Backend, Spaces, assert_same_arrays, box, draw_row, fill, load_backend
from tests.envs.counting import CountingEnv

backend = pytest.fixture(params=BACKENDS)(load_backend)

DICT = gymnasium.spaces.Dict({"place": box(-1.0, 1.0, (2,)), "image": gymnasium.spaces.Box(0, 255, (4,), np.uint8)})
BOXES = {"float32": box(-2.0, 2.0, (2,)), "float64": box(-2.0, 3.0, (2,), np.float64), "matrix": box(-1.0, 4.0, (2, 3))}


@pytest.mark.parametrize("space", BOXES.values(), ids=BOXES)
def test_one_or_many_arrays_or_lists_give_what_act_gives(backend: Backend, space: gymnasium.spaces.Box) -> None:
    agent = backend.agent(Spaces(action=space), capacity=None, training=False)
    observations = np.random.default_rng(0).normal(size=(5, 3))
    acted = agent.to_numpy(agent.act(observations, None, timestep=0, timesteps=1)[0])
    many = agent.predict(observations)
    assert (type(many), many.shape, many.dtype) == (np.ndarray, (5, *space.shape), space.dtype)
    np.testing.assert_allclose(many, acted, rtol=1e-6, atol=1e-6)
    assert np.all((many >= space.low) & (many <= space.high))
    for given in (observations[2], observations[2].tolist(), backend.array(observations[2])):
        one = agent.predict(given)
        assert one.shape == space.shape and one.dtype == space.dtype
        np.testing.assert_allclose(one, many[2], rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(agent.predict(observations.tolist()), many)
    same, carry = agent.predict(observations, carry=None)  # what a program for all agents calls
    np.testing.assert_array_equal(same, many)
    np.testing.assert_array_equal(agent.predict(observations, carry=carry)[0], many)


def test_a_dict_and_states_are_told_apart_by_their_spaces_too(backend: Backend) -> None:
    agent = backend.agent(Spaces(observation=DICT, state=box(-1.0, 1.0, (4,))), capacity=None, training=False)
    places, images = np.array([[0.1, 0.2], [0.3, 0.4]], np.float32), np.arange(8, dtype=np.uint8).reshape(2, 4)
    many = agent.predict({"image": images, "place": places}, np.zeros((2, 4)))
    one = agent.predict({"place": [0.3, 0.4], "image": images[1].tolist()}, [0, 0, 0, 0])
    assert one.shape == (2,)
    np.testing.assert_allclose(one, many[1], rtol=1e-6)
    with pytest.raises(ValueError, match=r"observations.place have shape \(2,\), expected \(n, \*\(2,\)\) as the others"):
        agent.predict({"image": images, "place": places[0]})
    with pytest.raises(ValueError, match=r"states have shape \(4,\), expected \(n, \*\(4,\)\) as the others"):
        agent.predict({"image": images, "place": places}, np.zeros(4))
    with pytest.raises(ValueError, match="lacks the keys"):
        agent.predict({"image": images})


def test_a_wrong_shape_is_named_with_what_was_expected(backend: Backend) -> None:
    agent = backend.agent(capacity=None, training=False)
    for wrong, shape in ((np.zeros(4), r"\(4,\)"), (np.zeros((2, 4)), r"\(2, 4\)"), (np.zeros((2, 2, 3)), r"\(2, 2, 3\)"), (1.0, r"\(\)")):
        with pytest.raises(ValueError, match=rf"observations have shape {shape}, expected \(3,\) for one, or \(n, \*\(3,\)\) for n: give"):
            agent.predict(wrong)
    with pytest.raises(ValueError, match="not finite"):
        agent.predict([0.0, np.nan, 0.0])
    with pytest.raises(ValueError, match="no state_space"):
        agent.predict(np.zeros(3), np.zeros(3))
    assert agent.predict(np.zeros((0, 3))).shape == (0, 2)
    agent.set_arrays({name: np.full_like(array, np.nan) if name == "policy.head.bias" else array for name, array in agent.arrays().items()})
    with pytest.raises(NumericalError, match=r"policy\.head\.bias"):
        agent.predict(np.zeros(3))


def test_a_training_in_flight_stays_as_it_is(backend: Backend) -> None:
    agent = backend.agent(Spaces(), random_timesteps=0, learning_starts=4, overlap=True, observation_preprocessor=RunningStandardScaler)
    generator = np.random.default_rng(0)

    def step(timestep: int) -> None:
        clock = {"timestep": timestep, "timesteps": 100}
        row = draw_row(agent, generator, **clock)
        agent.act(row["observations"], None, **clock)
        agent.record_transition(**row)
        agent.post_interaction(**clock)

    for timestep in range(6):
        step(timestep)
    before = agent.arrays(), agent.learner.stream_states(), agent.live_state()
    drawn = [agent.predict(np.ones(3), deterministic=False) for _ in range(2)]
    greedy = [agent.predict(np.ones(3)) for _ in range(2)]
    assert agent.training
    assert_same_arrays(agent.arrays(), before[0])
    assert_same_arrays(agent.learner.stream_states(), before[1])
    np.testing.assert_equal(agent.live_state(), before[2])
    assert not np.array_equal(*drawn)
    np.testing.assert_array_equal(*greedy)
    step(6)
    assert not np.array_equal(agent.predict(np.ones(3)), greedy[0])  # of the parameters and moments of now

    other = backend.agent(Spaces(), observation_preprocessor=RunningStandardScaler)
    other.set_arrays(before[0])
    np.testing.assert_array_equal([other.predict(np.ones(3), deterministic=False) for _ in range(2)], drawn)  # of the seed alone
    np.testing.assert_array_equal(other.predict(np.ones(3)), greedy[0])


def test_draws_have_the_policys_distribution(backend: Backend) -> None:
    agent = backend.agent(capacity=None, training=False, dtype="float64")
    many = agent.predict(np.zeros((4000, 3)), deterministic=False)
    unit = np.arctanh(many / 2.0)
    model = agent.models["policy"]
    mean, log_std = (agent.to_numpy(each) for each in model({"observations": backend.array(np.zeros((1, 3))), "states": None}))
    np.testing.assert_allclose(unit.mean(0), mean[0], atol=5 * np.exp(log_std.max()) / np.sqrt(4000))
    np.testing.assert_allclose(unit.std(0), np.exp(log_std[0]), rtol=0.1)


def test_a_policy_with_a_mode_acts_in_evaluation_mode() -> None:
    torch = pytest.importorskip("torch")
    from tests.torch.random_user_models import Dropout
    from tests.torch.user_models import user_models

    models: dict[str, Any] = user_models(3, 2)
    without = copy.deepcopy(models)
    models["policy"].body.append(Dropout(seed=1))
    agent, plain = (Backend("torch").agent(models=each) for each in (models, without))
    states = agent.learner.stream_states()
    np.testing.assert_array_equal(agent.predict(np.ones(3)), plain.predict(np.ones(3)))
    assert_same_arrays(agent.learner.stream_states(), states)
    assert agent.models["policy"].training
    assert torch.is_tensor(agent.act(np.ones((1, 3)), None, timestep=9, timesteps=9)[0])


# Carries.

SPACES = Spaces(box(-np.inf, np.inf, (2,), np.float64), box(-1.0, 1.0, (1,), np.float32))
RECURRENT: dict[str, Any] = {"algorithm": "SAC_RNN", "sequence_length": 2, "execution": "plain", "reward_scale": 0.01}


def recurrent(backend: Backend, *fed: str, **options: Any) -> Any:
    networks = {"recurrent": "lstm", "recurrent_size": 4, "feed_previous": fed}
    return backend.agent(SPACES, **{**RECURRENT, "networks": networks, **options})


def test_a_carry_is_kept_over_the_steps_of_episodes_as_in_an_evaluation(backend: Backend) -> None:
    agent = recurrent(backend, "actions", "rewards")
    fill(agent, 3)
    acted: list[Any] = []
    act = agent.act

    def spied(*arguments: Any, **keywords: Any) -> Any:
        chosen = act(*arguments, **keywords)
        acted.append(agent.to_numpy(chosen[0]))
        return chosen

    agent.act = spied
    made = [partial(CountingEnv, (3, 2)), partial(CountingEnv, (4,))]
    evaluate(agent, SyncVectorEnv(made, autoreset_mode=gymnasium.vector.AutoresetMode.SAME_STEP), episodes=4)
    envs = SyncVectorEnv(made, autoreset_mode=gymnasium.vector.AutoresetMode.SAME_STEP)
    observations, _ = envs.reset(seed=0)
    carry: Any = None
    rewards: Any = None
    starts: Any = np.ones(2, bool)
    for expected in acted:
        actions, carry = agent.predict(observations, carry=carry, episode_start=starts, rewards=rewards)
        np.testing.assert_allclose(actions, expected, rtol=1e-6, atol=1e-7)
        observations, rewards, terminated, truncated, _ = envs.step(actions)
        starts = terminated | truncated
    assert len(acted) >= 8
    one, carry = agent.predict(observations[0], carry=None)
    two, _ = agent.predict(observations[0], carry=carry, rewards=0.5)
    again, _ = agent.predict(observations[0], carry=carry, episode_start=True)
    assert one.shape == (1,)
    assert not np.array_equal(one, two)
    np.testing.assert_array_equal(one, again)


def test_what_a_recurrent_policy_lacks_is_said(backend: Backend) -> None:
    agent = recurrent(backend, "rewards")
    with pytest.raises(ValueError, match=r"has a carry, and predict was called without: call actions, carry = agent.predict\(.*carry=None"):
        agent.predict(np.zeros(2))
    _, carry = agent.predict(np.zeros((3, 2)), carry=None)
    with pytest.raises(ValueError, match=r"sees the reward of the step before, and rewards is None: pass"):
        agent.predict(np.zeros((3, 2)), carry=carry)
    with pytest.raises(ValueError, match=r"carry is .*\(3, 4\).*, expected .*\(2, 4\).*: pass what predict returned"):
        agent.predict(np.zeros((2, 2)), carry=carry, rewards=np.zeros(2))
    with pytest.raises(ValueError, match="carry is 7, expected"):
        agent.predict(np.zeros((2, 2)), carry=7, rewards=np.zeros(2))
    with pytest.raises(ValueError, match=r"episode_start is \[True, False\], expected None, True, False, or 3 of them"):
        agent.predict(np.zeros((3, 2)), carry=carry, rewards=np.zeros(3), episode_start=[True, False])
