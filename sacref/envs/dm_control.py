"""Environments of the DeepMind Control Suite, which shimmy registers as `dm_control/...`."""

import importlib
import warnings
from contextlib import suppress
from typing import Any

import gymnasium

from sacref.algorithm.tree import Tree
from sacref.config.train_config import Environment
from sacref.envs.divergence import REPORT, words_of
from sacref.envs.interface import EnvWrapper, Infos, Step

DM_CONTROL = "dm_control/"
"""Prefix of their ids."""
OF_ITS_OWN = 'pip install "sacref[dmc]", into an environment of its own, as dm-control needs MuJoCo 3'


def register_dm_control() -> bool:
    """Register the environments; False if a package for them is not installed."""
    with suppress(ImportError), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of GLFW, where there is no display
        importlib.import_module("shimmy")
    return any(known.startswith(DM_CONTROL) for known in gymnasium.registry)


class DmControl(EnvWrapper):
    """Wrapper that reports MuJoCo's warning in the info where dm_control raises an error, as a simulation diverges.

    `render_fps` is the number of its steps in a second; shimmy gives the milliseconds of one.
    """

    def __init__(self, env: Environment) -> None:
        super().__init__(env)
        task: Any = env.unwrapped
        self._physics = task._env.physics
        self.metadata = {**env.metadata, "render_fps": 1.0 / task.dt}

    def reset(self, **arguments: Any) -> tuple[Tree, Infos]:
        with self._physics.suppress_physics_errors():
            return self.env.reset(**arguments)

    def step(self, action: object) -> Step:
        with self._physics.suppress_physics_errors():
            observation, reward, terminated, truncated, info = self.env.step(action)
        counted = self._physics.data.ptr.warning
        words = words_of(counted.number, counted.lastinfo)
        return observation, reward, terminated, truncated, info if words is None else {**info, REPORT: words}
