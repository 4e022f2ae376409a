"""Modes of PyTorch that a caller may be in: the agent learns and acts as it does outside of them."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from sacref.preprocessing import RunningStandardScaler
from sacref.torch import SAC, SAC_RNN
from tests.backends import Backend, assert_same_arrays, draw_batch, draw_row, fill

Mode = Callable[[], AbstractContextManager[Any]]


@contextmanager
def float64_by_default() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def autocast() -> AbstractContextManager[Any]:
    return torch.autocast("cpu", torch.bfloat16)


def meta_by_default() -> AbstractContextManager[Any]:
    return torch.device("meta")


def life(built: Mode, used: Mode, execution: str) -> dict[str, Any]:
    """The arrays, and the last actions, of an agent that is built in one mode and used in another one."""
    with built():
        agent = Backend("torch").agent(execution=execution)
    generator = np.random.default_rng(0)
    with used():
        for timestep in range(6):
            row = draw_row(agent, generator, timestep=timestep)
            actions, _ = agent.act(row["observations"], None, timestep=timestep, timesteps=100)
            agent.record_transition(**{**row, "actions": agent.to_numpy(actions)})
            agent.post_interaction(timestep=timestep, timesteps=100)
        agent.update_on(*draw_batch(agent, 4))
        agent.set_arrays(agent.arrays())
    agent.update(timestep=6, timesteps=100)
    assert agent.gradient_step_count == 8
    return {**agent.arrays(), "actions": agent.to_numpy(actions)}


@pytest.mark.parametrize("execution", ["plain", "traced"])
@pytest.mark.parametrize("mode", [torch.inference_mode, autocast, torch.no_grad, float64_by_default, deterministic, meta_by_default])
def test_a_callers_mode_changes_no_number(mode: Mode, execution: str) -> None:
    wanted = life(nullcontext, nullcontext, execution)
    for built, used in ((mode, nullcontext), (nullcontext, mode)):
        assert_same_arrays(life(built, used, execution), wanted)


def test_an_agent_is_saved_loaded_and_put_back_beside_another_default_device(tmp_path: Path) -> None:
    agent = Backend("torch").agent(observation_preprocessor=RunningStandardScaler)
    fill(agent, 6)
    wanted, rows = agent.arrays(), agent.memory.arrays()
    exploration = agent.learner.streams.exploration.get_state()
    with meta_by_default():
        agent.save(tmp_path / "saved")
        agent.act(np.zeros((1, 3)), None, timestep=0, timesteps=1)
        fill(agent, 3)
        agent.update(timestep=6, timesteps=100)
        agent.load(tmp_path / "saved")
    assert_same_arrays(agent.arrays(), wanted)
    assert_same_arrays(agent.memory.arrays(), rows)
    assert torch.equal(agent.learner.streams.exploration.get_state(), exploration)


def test_the_callers_mode_is_in_force_again_afterwards() -> None:
    agent = Backend("torch").agent()
    with torch.inference_mode(), autocast():
        agent.act(np.zeros((1, 3)), None, timestep=0, timesteps=1)
        assert torch.is_inference_mode_enabled()
        assert torch.is_autocast_enabled("cpu")


def test_a_subclass_inherits_what_its_base_class_has() -> None:
    assert "update_on" not in vars(SAC_RNN)
    assert SAC_RNN.update_on is SAC.update_on
