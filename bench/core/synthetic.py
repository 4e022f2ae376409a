"""Agents that are timed without an environment: HalfCheetah's shapes, and a memory full of synthetic transitions."""

import functools
import importlib
import math
from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from sacref.algorithm.data import Batch
from sacref.parity.data import synthetic_replay

OBSERVATION, ACTION = 17, 6
LEARNING_RATE = 3e-4
EPISODE = 1_000
"""Length of an episode, as HalfCheetah's, for memories that keep successive transitions."""


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
    recurrent: str | None = None,
    recurrent_size: int = 128,
    device: str | None = None,
    memory: Any = None,
) -> Any:
    """Make a training agent in float32 with two hidden layers, and fill its memory. It tracks nothing.

    Args:
        backend: "torch" or "jax".
        batch_size: transitions of one gradient step; sequences, for a recurrent agent.
        width: of both hidden layers.
        stored: transitions in the memory, of all environments together; each has the same share, rounded down.
        capacity: of the memory; None for `stored`.
        gradient_steps: of one call of `update`.
        execution: the option of that name.
        num_envs: number of environments, the rows of an observation.
        seed: of weights, transitions and the agent's random streams.
        settings: further fields of `SACConfig`.
        recurrent, recurrent_size: kind of cell and its size, which make it an `SAC_RNN`; None for `SAC`.
        device: the backend's name of a device; None lets the backend choose.
        memory: the part of a population's memory that the agent takes; None for one of its own.

    Raises:
        ImportError: if the backend's library is not installed.
    """
    library = importlib.import_module(f"sacref.{backend}")
    spaces = {
        "observation_space": gymnasium.spaces.Box(-math.inf, math.inf, (OBSERVATION,), np.float64),
        "action_space": gymnasium.spaces.Box(-1.0, 1.0, (ACTION,), np.float32),
    }
    if memory is None:
        memory = library.ReplayMemory(stored if capacity is None else capacity, num_envs, device=device)
    cell = {} if recurrent is None else {"recurrent": recurrent, "recurrent_size": recurrent_size}
    made = (library.SAC if recurrent is None else library.SAC_RNN)(
        models=library.default_models(**spaces, hidden=(width, width), seed=seed, **cell),
        memory=memory,
        device=device,
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
    fill(memory, stored // num_envs, seed)
    made.enable_training_mode(True, apply_to_models=True)
    return made


def fill(memory: Any, timesteps: int, seed: int) -> None:
    """Put `timesteps` transitions of each environment into an agent's memory."""
    envs, slots = memory.num_envs, memory.capacity // memory.num_envs
    count = timesteps * envs
    drawn = replay(count, seed)
    rows = {name: array for name, array in drawn._asdict().items() if array is not None}
    first = np.arange(count) // envs % EPISODE == 0

    def before(array: NDArray[Any]) -> NDArray[Any]:
        """Return the row before each row; zeros where an episode begins."""
        shifted = np.roll(array, envs, axis=0)
        shifted[first] = 0
        return shifted

    # Memories of sequences: no episode ends early, and carries are zeros.
    successive = {"first": first, "previous_actions": before(drawn.actions), "previous_rewards": before(drawn.rewards)}
    empty = memory.arrays()
    if "first" in empty:
        rows |= successive | {"terminated": np.zeros(count, np.bool_)}
    counters = {"head": np.full(envs, timesteps % slots), "size": np.full(envs, timesteps)}
    zeros = {name: np.zeros((count, *array.shape[1:]), array.dtype) for name, array in empty.items() if name not in rows | counters}
    memory.set_arrays({name: array for name, array in (zeros | rows | counters).items() if name in empty})


@functools.lru_cache(maxsize=8)
def replay(size: int, seed: int) -> Batch[NDArray[Any]]:
    """Return the transitions that the memories are filled with, float32."""
    return synthetic_replay(size, observation=OBSERVATION, action=ACTION, seed=seed, dtype=np.float32)
