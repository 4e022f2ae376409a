"""Random numbers on both backends: streams of the agent's own, apart from each other and from every global generator."""

import random
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.backends import BACKENDS, Backend, assert_same_arrays, draw_row, fill, load_backend

backend = pytest.fixture(params=BACKENDS)(load_backend)


def life(backend: Backend, seed: int) -> dict[str, NDArray[Any]]:
    """All that an agent of this seed does in a few timesteps, from its construction on."""
    agent = backend.agent(seed=seed, random_timesteps=2, num_envs=2)
    generator = np.random.default_rng(0)
    seen: dict[str, NDArray[Any]] = {}
    for timestep in range(4):
        row = draw_row(agent, generator, timestep=timestep)
        row["actions"], _ = agent.act(row["observations"], None, timestep=timestep, timesteps=9)
        seen[f"actions {timestep}"] = row["actions"] = agent.to_numpy(row["actions"])
        agent.record_transition(**row)
        agent.post_interaction(timestep=timestep, timesteps=9)
    return {**seen, **agent.arrays(), **agent.learner.stream_states()}


def global_states() -> list[Any]:
    """Of NumPy's generator, and torch's where it is installed."""
    name, keys, position, *_ = np.random.get_state()  # noqa: NPY002
    states: list[Any] = [name, np.asarray(keys).tolist(), position]
    try:
        import torch
    except ImportError:
        return states
    return [*states, torch.get_rng_state().tolist()]


def test_agents_of_one_seed_are_one_and_of_two_seeds_are_two(backend: Backend) -> None:
    first, second, other = life(backend, 1), life(backend, 1), life(backend, 2)
    assert_same_arrays(first, second)
    for name in first:
        if name.startswith(("actions", "policy.", "noise", "sampling", "exploration")):
            assert not np.array_equal(first[name], other[name]), name


def test_no_global_generator_is_read_or_set(backend: Backend) -> None:
    results, python_states = [], []
    for seed in (1, 2):
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        if backend.name == "torch":
            import torch

            torch.manual_seed(seed)
        before = global_states()
        results.append(life(backend, 3))
        assert global_states() == before
        python_states.append(random.getstate())
    assert_same_arrays(*results)
    # Python's own is read by the run-time checks of the tests, but not set.
    assert python_states[0] != python_states[1]


def test_the_streams_are_apart(backend: Backend) -> None:
    """Acting more often changes neither the batches nor the noise of the updates, and the other way round."""
    one, two = backend.agent(), backend.agent()
    fill(one, 8)
    fill(two, 8)
    assert len({state.tobytes() for state in one.learner.stream_states().values()}) == 3
    for _ in range(3):
        one.act(np.zeros((1, 3)), None, timestep=0, timesteps=1)
    for agent in (one, two):
        agent.update(timestep=0, timesteps=1)
    assert_same_arrays(one.arrays(), two.arrays())
    three = backend.agent()
    fill(three, 8)
    for _ in range(3):
        three.act(np.zeros((1, 3)), None, timestep=0, timesteps=1)
    assert_same_arrays(
        {"exploration": three.learner.stream_states()["exploration"]}, {"exploration": one.learner.stream_states()["exploration"]}
    )


@pytest.mark.parametrize("random_timesteps", [0, 100], ids=["policy", "random"])
def test_trap_04_exploration_does_not_repeat(backend: Backend, random_timesteps: int) -> None:
    agent = backend.agent(num_envs=4, random_timesteps=random_timesteps)
    observations = np.ones((4, 3))
    actions = np.stack([agent.to_numpy(agent.act(observations, None, timestep=t, timesteps=9)[0]) for t in range(8)])
    # Neither between calls nor between environments nor between dimensions.
    assert len(np.unique(actions)) == actions.size


def test_two_agents_share_no_stream(backend: Backend) -> None:
    one, two = backend.agent(), backend.agent()
    for _ in range(3):
        one.act(np.zeros((1, 3)), None, timestep=0, timesteps=1)
    fresh = backend.agent()
    assert_same_arrays(two.learner.stream_states(), fresh.learner.stream_states())


def test_batches_differ_from_update_to_update(backend: Backend) -> None:
    """The rows of the memory differ by their reward alone, and nothing learns: a batch shows in the mean of its targets."""
    agent = backend.agent(capacity=32, learning_rate=0.0, polyak=0.0, discount_factor=0.0)
    generator = np.random.default_rng(0)
    for i in range(32):
        agent.record_transition(**draw_row(agent, generator, rewards=np.array([[2.0**-i]])))
    means = set()
    for _ in range(5):
        agent.metrics.packed.clear()
        agent.write_interval = 1
        agent.update(timestep=0, timesteps=1)
        ((packed,),) = agent.metrics.packed
        means.add(float(agent.to_numpy(packed)[agent.metrics.tags.index("Target / Target (mean)")]))
    assert len(means) == 5
