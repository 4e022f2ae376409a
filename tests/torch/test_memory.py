"""What the replay memory does on torch alone: it is written in place, and reads nothing to the host on the way."""

import numpy as np
import pytest
import torch

from sacref.torch import SAC, ReplayMemory
from sacref.torch.memory import MemoryState, sample, write
from sacref.types import Transition
from tests.backends import Backend, fill

BACKEND = Backend("torch")


def test_trap_25_a_write_is_in_place() -> None:
    agent = BACKEND.agent()
    addresses = [ring.data_ptr() for ring in agent.memory.state.rows if ring is not None]
    fill(agent, 40)
    assert [ring.data_ptr() for ring in agent.memory.state.rows if ring is not None] == addresses


def test_trap_25_writing_and_sampling_read_no_value_to_the_host() -> None:
    """A meta tensor has no value: reading one is an error."""

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    rings = Transition(empty(6, 2), None, empty(6, 1), empty(6), empty(6, 2), None, empty(6, dtype=torch.bool))
    rows = Transition(empty(3, 2), None, empty(3, 1), empty(3), empty(3, 2), None, empty(3, dtype=torch.bool))
    count = empty(dtype=torch.int64)
    state = write(MemoryState(rings, count, count), rows, empty(3, dtype=torch.bool))
    assert state.head.shape == state.size.shape == ()
    with pytest.raises((RuntimeError, NotImplementedError)):
        state.head.item()


def test_sampling_gathers_whole_rows() -> None:
    agent = BACKEND.agent()
    fill(agent, 8)
    batch = sample(agent.memory.state, 5, torch.Generator().manual_seed(0))
    assert [None if field is None else tuple(field.shape) for field in batch] == [(5, 3), None, (5, 2), (5,), (5, 3), None, (5,)]
    stored = {row.tobytes() for row in agent.memory.arrays()["observations"]}
    assert {row.tobytes() for row in np.asarray(batch.observations)} <= stored


def test_a_memory_on_another_device_than_the_agent_is_refused() -> None:
    agent = BACKEND.agent()
    memory = ReplayMemory(64, 1, device="meta")
    with pytest.raises(ValueError, match="it is on meta, the agent on cpu: leave the memory's device out"):
        SAC(models=agent.models, memory=memory, observation_space=agent.observation_space, action_space=agent.action_space, device="cpu")
