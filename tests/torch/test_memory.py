"""What the replay memory does on torch alone: it is written in place, and reads nothing to the host on the way."""

import numpy as np
import pytest
import torch

from sacref.algorithm.data import Transition
from sacref.algorithm.sequences import Follow
from sacref.algorithm.tree import leaves
from sacref.envs.spaces import check_spaces
from sacref.torch import SAC, ReplayMemory
from sacref.torch.memory import MemoryState, sampler, write
from tests.backends import Backend, box, fill

BACKEND = Backend("torch")


def test_trap_25_a_write_is_in_place() -> None:
    agent = BACKEND.agent()
    addresses = [ring.data_ptr() for ring in leaves(agent.memory.state)]
    fill(agent, 40)
    assert [ring.data_ptr() for ring in leaves(agent.memory.state)] == addresses


@pytest.mark.parametrize("settings", [Follow(), Follow(n_step=3), Follow(sequence_length=3), Follow(sequence_length=2, burn_in=2)], ids=str)
@pytest.mark.parametrize("envs", [1, 3])
def test_trap_25_writing_and_sampling_read_no_value_to_the_host(settings: Follow, envs: int) -> None:
    """A meta tensor has no value: reading one is an error."""

    def rows_of(number: int) -> Transition[torch.Tensor]:
        def empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
            return torch.empty((number, *shape), dtype=dtype, device="meta")

        recurrent = settings.sequence_length > 0
        return Transition(
            observations={"a": empty(2), "b": empty(2, 2, dtype=torch.uint8)},
            states=empty(4),
            actions=empty(1),
            rewards=empty(),
            next_observations={"a": empty(2), "b": empty(2, 2, dtype=torch.uint8)},
            next_states=empty(4),
            terminated=empty(dtype=torch.bool),
            first=empty(dtype=torch.bool) if settings.needs_first else None,
            previous_actions=empty(1) if recurrent else None,
            previous_rewards=empty() if recurrent else None,
            carry=(empty(5), empty(6)) if recurrent else None,
        )

    slots = torch.zeros(envs, dtype=torch.int64, device="meta")
    memory = MemoryState(rows_of(envs * 4 + 1), slots, slots.clone())
    keep = torch.empty(2 * envs, dtype=torch.bool, device="meta")
    state = write(memory, rows_of(2 * envs), keep)
    assert state.head.shape == state.size.shape == (envs,)
    batch = sampler(settings)(state, 5, torch.Generator())
    assert {leaf.device.type for leaf in leaves(batch)} == {"meta"}
    assert batch.rewards.shape == (5,) if settings.sequence_length == 0 else (settings.burn_in + settings.sequence_length, 5)
    with pytest.raises((RuntimeError, NotImplementedError)):
        state.head[0].item()


@pytest.mark.parametrize("envs", [1, 3])
def test_rows_that_are_not_kept_go_where_no_draw_comes(envs: int) -> None:
    """Their numbers may be NaN."""
    memory = ReplayMemory(4 * envs, envs)
    spaces = check_spaces(box(-1, 1, (2,)), None, box(-1, 1, (1,)))
    memory.allocate(spaces, torch.float32, torch.device("cpu"), settings=Follow(n_step=4))
    for timestep in range(9):
        keep = torch.tensor([timestep % (env + 2) == 0 for env in range(envs)])
        values = torch.where(keep, 1.0, torch.nan)
        transition = Transition(
            observations=values[:, None].expand(-1, 2),
            states=None,
            actions=values[:, None],
            rewards=values,
            next_observations=values[:, None].expand(-1, 2),
            next_states=None,
            terminated=keep,
            first=~keep,
        )
        memory.add(transition, keep)
        batch = memory.sample(100, torch.Generator().manual_seed(timestep))
        assert all(torch.isfinite(leaf).all() for leaf in leaves(batch))
    assert memory.state.rows.rewards[-1].isnan()


def test_sampling_gathers_whole_rows() -> None:
    agent = BACKEND.agent()
    fill(agent, 8)
    batch = sampler.transitions(agent.memory.state, 5, torch.Generator().manual_seed(0))
    assert [None if field is None else tuple(field.shape) for field in batch] == [
        *((5, 3), None, (5, 2), (5,), (5, 3), None, (5,)),
        *(None, None),
    ]
    stored = {row.tobytes() for row in agent.memory.arrays()["observations"]}
    assert {row.tobytes() for row in np.asarray(batch.observations)} <= stored


def test_a_memory_on_another_device_than_the_agent_is_refused() -> None:
    agent = BACKEND.agent()
    memory = ReplayMemory(64, 1, device="meta")
    with pytest.raises(ValueError, match="it is on meta, the agent on cpu: leave the memory's device out"):
        SAC(models=agent.models, memory=memory, observation_space=agent.observation_space, action_space=agent.action_space, device="cpu")
