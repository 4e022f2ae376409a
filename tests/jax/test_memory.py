"""What the replay memory does on JAX alone: it is written in place of a copy."""

from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sacref.algorithm.sequences import Follow
from sacref.algorithm.tree import leaves, named_leaves
from sacref.envs.spaces import check_spaces
from sacref.jax import ReplayMemory
from sacref.jax.execution import HeldState
from tests.backends import Backend, Spaces, box, draw_row, fill

BACKEND = Backend("jax")


def pointers(state: Any) -> list[int]:
    return [ring.unsafe_buffer_pointer() for ring in leaves(state.rows)]


def test_trap_25_a_write_takes_over_the_buffers_and_copies_none() -> None:
    agent = BACKEND.agent(Spaces(observation=box(-1, 1, (64,))), capacity=4096)
    fill(agent, 2)
    before = agent.memory.state
    addresses = pointers(before)
    fill(agent, 1)
    assert pointers(agent.memory.state) == addresses
    assert all(ring.is_deleted() for ring in jax.tree.leaves(before.rows))
    assert len(agent.memory) == 3


def test_trap_25_a_memory_of_sequences_is_written_and_restored_without_a_copy() -> None:
    memory = ReplayMemory(4096, 2)
    spaces = check_spaces(gymnasium.spaces.Dict(a=box(-1, 1, (64,)), b=box(0, 255, (8,), np.uint8)), box(-1, 1, (3,)), box(-1, 1, (1,)))
    carry = (np.zeros((1, 128), np.float32), np.zeros((1, 128), np.float32))
    memory.allocate(spaces, np.float32, jax.devices("cpu")[0], settings=Follow(sequence_length=3), carry=carry)
    addresses = dict(zip(named_leaves(memory.state.rows), pointers(memory.state), strict=True))
    row = jax.tree.map(lambda ring: np.ones((2, *ring.shape[1:]), ring.dtype), memory.state.rows)
    for convert in (np.asarray, jnp.asarray):
        before = memory.state
        memory.add(jax.tree.map(convert, row), convert(np.ones(2, bool)))
        assert dict(zip(named_leaves(memory.state.rows), pointers(memory.state), strict=True)) == addresses
        assert all(ring.is_deleted() for ring in jax.tree.leaves(before.rows))
    memory.set_arrays(memory.arrays())
    assert dict(zip(named_leaves(memory.state.rows), pointers(memory.state), strict=True)) == addresses
    drawn = memory.sample(4, jax.random.key(0))
    assert not any(ring.is_deleted() for ring in jax.tree.leaves((memory.state, drawn)))
    assert len(memory) == 4


def test_without_64_bits_integers_beyond_32_are_refused_by_name_and_others_stored_exactly() -> None:
    with jax.enable_x64(False):
        agent = Backend("jax").agent(Spaces(observation=gymnasium.spaces.Box(0, 2**62, (2,), np.int64)), capacity=4)
        for name, value in (("observations", 2**40), ("next_observations", -(2**31) - 1)):
            with pytest.raises(ValueError, match=f"{name} hold numbers beyond int32, in which int64 is stored here: .*jax_enable_x64"):
                agent.record_transition(**draw_row(agent, np.random.default_rng(0), **{name: np.full((1, 2), value)}))
        with pytest.raises(ValueError, match="observations hold numbers beyond int32"):
            agent.act(np.full((1, 2), 2**40), None, timestep=0, timesteps=1)
        assert len(agent.memory) == 0
        row = draw_row(
            agent, np.random.default_rng(0), observations=np.full((1, 2), 2**31 - 1), next_observations=np.full((1, 2), -(2**31))
        )
        agent.record_transition(**row)
        arrays = agent.memory.arrays()
    assert arrays["observations"].tolist() == [[2**31 - 1] * 2]
    assert arrays["next_observations"].tolist() == [[-(2**31)] * 2]


def test_an_update_donates_its_state_and_nobody_elses() -> None:
    agent = BACKEND.agent()
    fill(agent, 4)
    agent.update(timestep=0, timesteps=2)
    state, addresses = agent.learner.runner._held._joined, pointers(agent.memory.state)
    read = agent.models["critic_1"]
    agent.update(timestep=1, timesteps=2)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))
    assert pointers(agent.memory.state) == addresses
    assert np.isfinite(np.asarray(read.head.kernel[...])).all()


def test_a_state_that_was_given_to_a_call_is_there_after_it_failed() -> None:
    state = BACKEND.agent().learner.state
    held = HeldState(state)
    held.give()
    jax.tree.map(np.testing.assert_array_equal, held.separate, state)


def test_a_state_of_another_structure_is_joined_anew() -> None:
    state = BACKEND.agent().learner.state
    held = HeldState(state)
    held.give()
    other = state._replace(temperature_optimizer=None)
    held.separate = other
    held.take(held.give())
    jax.tree.map(np.testing.assert_array_equal, held.separate, other)


def test_arrays_of_the_caller_are_not_donated() -> None:
    agent = BACKEND.agent()
    row = {k: BACKEND.array(v) if isinstance(v, np.ndarray) else v for k, v in draw_row(agent, np.random.default_rng(0)).items()}
    agent.act(row["observations"], None, timestep=0, timesteps=1)
    agent.record_transition(**row)
    agent.update(timestep=0, timesteps=1)
    assert not any(value.is_deleted() for value in row.values() if isinstance(value, jax.Array))
