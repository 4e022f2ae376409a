"""Agents to be timed without an environment: HalfCheetah's shapes, and a memory that is filled with synthetic transitions."""

import functools
import importlib
import math
from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from sacref.parity.data import synthetic_replay
from sacref.types import Batch

OBSERVATION, ACTION = 17, 6
LEARNING_RATE = 3e-4


def agent(
    backend: str,
    *,
    batch_size: int,
    width: int,
    stored: int,
    capacity: int | None = None,
    gradient_steps: int = 1,
    execution: str = "auto",
    num_envs: int = 1,
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
) -> Any:
    """A training agent of `backend`, float32, two hidden layers, as if `stored` transitions had been recorded. It tracks nothing.

    Args:
        backend: "torch" or "jax".
        batch_size: of one gradient step. width: of both hidden layers.
        stored: transitions in the memory. capacity: of the memory; `stored` unless told otherwise.
        gradient_steps: of one call of `update`.
        execution: the way of the gradient steps.
        num_envs: rows of an observation.
        seed: of weights, transitions and the agent's random streams.
        settings: further fields of `SACConfig`.

    Raises:
        ImportError: if the backend's library is not installed.
    """
    library = importlib.import_module(f"sacref.{backend}")
    spaces = {
        "observation_space": gymnasium.spaces.Box(-math.inf, math.inf, (OBSERVATION,), np.float64),
        "action_space": gymnasium.spaces.Box(-1.0, 1.0, (ACTION,), np.float32),
    }
    memory = library.ReplayMemory(stored if capacity is None else capacity, num_envs)
    made = library.SAC(
        models=library.default_models(**spaces, hidden=(width, width), seed=seed),
        memory=memory,
        cfg={
            "batch_size": batch_size,
            "learning_rate": LEARNING_RATE,
            "gradient_steps": gradient_steps,
            "initial_entropy_value": 1.0,
            "execution": execution,
            "seed": seed,
            "experiment": {"write_interval": 0, "checkpoint_interval": 0},
            **(settings or {}),
        },
        **spaces,
    )
    rows = {name: array for name, array in replay(stored, seed)._asdict().items() if array is not None}
    memory.set_arrays({**rows, "head": np.array(stored % memory.capacity), "size": np.array(stored)})
    made.enable_training_mode(True, apply_to_models=True)
    return made


@functools.lru_cache(maxsize=8)
def replay(size: int, seed: int) -> Batch[NDArray[Any]]:
    """The transitions that the memories are filled with, float32."""
    return synthetic_replay(size, observation=OBSERVATION, action=ACTION, seed=seed, dtype=np.float32)
