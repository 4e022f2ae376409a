"""Simulations that diverge: detected and reported, their episodes dropped, while training goes on."""

import importlib
import logging
import sys
from collections.abc import Mapping
from functools import reduce
from typing import Any, Protocol, runtime_checkable

import numpy as np
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from numpy.typing import ArrayLike, NDArray

from sacref.algorithm.tree import Tree, leaves
from sacref.config.train_config import Environment
from sacref.envs.interface import Envs, EnvWrapper, Step
from sacref.envs.states import final_states
from sacref.spec.arrays import NumpyArray, as_numpy, namespace

logger: logging.Logger = logging.getLogger(__name__)

REPORT = "sacref.diverged"
"""Key of an info in which an environment in a process of its own reports MuJoCo's warning of a simulation that diverged in this step."""
FEW, SHARE = 4, 0.1
"""Number of episodes, and share of them all, that have to diverge before training is said to suffer."""
MOST_IN_A_ROW = 100
"""Episodes of an environment that may diverge one after the other before training ends."""


class DivergenceError(RuntimeError):
    """An environment that does nothing but diverge; the message says what happened, and the fix."""


@runtime_checkable
class Complaining(Protocol):
    """A vector environment that finds by itself which simulations have diverged, and resets single copies on demand."""

    def complaints(self) -> dict[int, str]:
        """Return MuJoCo's warning for each copy that has diverged since its last reset, once."""


class Divergences:
    """Detector of environments that diverged in a step.

    An environment has diverged where its observation, its state or its reward is not finite for the agent, and where MuJoCo has counted a
    bad position, velocity or acceleration: MuJoCo then resets the simulation in the midst of the step, which looks like a leap. Where an
    environment was reset within the step (SAME_STEP), in this process, MuJoCo's count is lost, and only the numbers tell.

    Args:
        envs: which have been reset. largest: the largest number that is finite in the agent's dtype.
    """

    def __init__(self, envs: Envs, largest: float = np.inf) -> None:
        inner = envs.unwrapped
        self._largest = largest
        self._many = inner if isinstance(inner, Complaining) else None
        tasks = [env.unwrapped for env in inner.envs] if isinstance(inner, SyncVectorEnv) else []
        self._simulations = [(index, task) for index, task in enumerate(tasks) if _is_simulation(task)]

    def complaints(self) -> dict[int, str]:
        """Return MuJoCo's warning for each simulation of this process that has diverged since its last reset, once."""
        found = {index: words for index, task in self._simulations if (words := complaint(task)) is not None}
        return found if self._many is None else found | self._many.complaints()

    def find(
        self, *, observations: Tree, states: Tree | None, rewards: ArrayLike, infos: object, ended: NDArray[np.bool_] | None = None
    ) -> dict[int, str]:
        """Return what went wrong in the last step, for each environment that has diverged in it.

        Args:
            observations, states: after the step, `(envs, ...)`. rewards: `(envs,)`. infos: `final_obs` and `final_info` are read.
            ended: `(envs,)`: where an episode ended, beyond which last states are not read; None where that is not known.
        """
        found = self.complaints()
        infos = infos if isinstance(infos, Mapping) else {}
        for told in (infos, infos.get("final_info")):
            if isinstance(told, Mapping) and REPORT in told:
                found |= {int(index): str(told[REPORT][index]) for index in np.flatnonzero(told[f"_{REPORT}"])}
        final = infos.get("final_obs")
        final = final if isinstance(final, np.ndarray) and final.dtype == object else ()
        bad = {
            "its reward is not finite": bad_rows(np.asarray(rewards, np.float64), self._largest),
            "its observation is not finite": {
                *bad_rows(observations, self._largest),
                *(index for index, row in enumerate(final) if row is not None and not _is_finite(row, self._largest)),
            },
            "its state is not finite": {
                *bad_rows(states, self._largest),
                *(bad_rows(final_states(infos, states, ended), self._largest) if "final_info" in infos else ()),
            },
        }
        for reason, indices in bad.items():
            for index in indices:
                found.setdefault(index, reason)
        return found


def can_reset_one(envs: Envs) -> bool:
    """Tell whether a copy can be reset by itself, with `options["reset_mask"]`; others are reset all together, or not at all."""
    disabled = envs.metadata.get("autoreset_mode") == AutoresetMode.DISABLED
    return disabled or isinstance(envs.unwrapped, SyncVectorEnv | AsyncVectorEnv | Complaining)


class DivergenceGuard:
    """Detector that reports each divergence, and counts them.

    Args:
        envs: which have been reset. rank: of this process, named in reports where there are several.
        largest: the largest number that is finite in the agent's dtype.
    """

    def __init__(self, envs: Envs, rank: int | None = None, largest: float = np.inf) -> None:
        self._divergences = Divergences(envs, largest)
        self._where = "" if rank is None else f" of rank {rank}"
        # Where no copy can be reset by itself, the agent refuses numbers that are not finite.
        self._can_reset_one = can_reset_one(envs)
        self._in_a_row = np.zeros(envs.num_envs, np.int64)
        self._diverged, self._finished, self._said_at = 0, 0, FEW
        self._untold: tuple[Any, Any, Any] | None = None
        """On a device: episodes that diverged and that finished since the last `tell`, and that diverged in a row, `(envs,)` each."""

    def look(self, *, observations: Tree, states: Tree | None, rewards: Any, ended: Any, infos: object, timestep: int) -> Any:
        """Return which environments diverged in the last step, `(envs,)`: they must not be recorded, and have to be reset.

        Args:
            observations, states: after the step, `(envs, ...)`. rewards: `(envs,)`. infos: as the step returned them.
            ended: `(envs,)`: terminated or truncated. timestep: for the report.

        Returns:
            A mask of the library of `ended`. On a device nothing is read: what diverged there is reported by `tell`, and None stands for
            environments that cannot be reset one by one.

        Raises:
            DivergenceError: if an environment has not finished an episode for 100 that diverged.
        """
        if not isinstance(ended, np.ndarray):
            return self._look_on_device((observations, states, rewards), ended) if self._can_reset_one else None
        found = {}
        if self._can_reset_one:
            found = self._divergences.find(observations=observations, states=states, rewards=rewards, infos=infos, ended=ended)
        return self.count(found, ended, timestep)

    def count(self, found: Mapping[int, str], ended: NDArray[np.bool_], timestep: int) -> NDArray[np.bool_]:
        """Report and count the environments of which `find` says that they diverged in a step; as `look` otherwise."""
        diverged = np.zeros(ended.shape, np.bool_)
        for index, reason in found.items():
            diverged[index] = True
            self._in_a_row[index] += 1
            self._diverged += 1
            logger.warning(
                "environment %d%s diverged at timestep %d: %s. Its episode is dropped, and it is reset",
                index,
                self._where,
                timestep,
                reason,
            )
            if self._in_a_row[index] >= MOST_IN_A_ROW:
                raise DivergenceError(
                    f"environment {index}{self._where} diverged in {MOST_IN_A_ROW} episodes one after the other, at last: {reason}. "
                    f"Mend the environment or its wrappers, or take a smaller time step of the simulation"
                )
        finished = ended & ~diverged
        self._finished += int(finished.sum())
        self._in_a_row[finished] = 0
        self._say_if_many()
        return diverged

    def _look_on_device(self, arrays: Tree, ended: Any) -> Any:
        xp = namespace(ended)
        floats = [array for array in leaves(arrays) if xp.isdtype(array.dtype, "real floating")]
        rows = (xp.all(xp.reshape(xp.isfinite(array), (ended.shape[0], -1)), axis=1) for array in floats)
        sound = reduce(xp.logical_and, rows, xp.ones_like(ended))  # integers are finite
        diverged, zeros = ~sound, xp.astype(ended, xp.int32) * 0
        finished = xp.logical_and(ended, sound)
        counts, ends, in_a_row = self._untold or (zeros, zeros, zeros)
        self._untold = counts + diverged, ends + finished, xp.where(finished, zeros, in_a_row + diverged)
        return diverged

    def tell(self, timestep: int) -> None:
        """Report what has diverged on a device since the last call, up to a timestep. This waits for the device.

        Raises:
            DivergenceError: if an environment has not finished an episode for 100 that diverged.
        """
        if self._untold is None:
            return
        diverged, finished, in_a_row = (as_numpy(array, "counts") for array in self._untold)
        self._untold = self._untold[0] * 0, self._untold[1] * 0, self._untold[2]
        self._diverged, self._finished = self._diverged + int(diverged.sum()), self._finished + int(finished.sum())
        if diverged.any():
            logger.warning(
                "%d episodes of environments %s%s diverged until timestep %d: an observation, a state or a reward was not finite. They are "
                "dropped, and the environments reset",
                diverged.sum(),
                np.flatnonzero(diverged)[:FEW].tolist(),
                self._where,
                timestep,
            )
        if in_a_row.max() >= MOST_IN_A_ROW:
            raise DivergenceError(
                f"environment {in_a_row.argmax()}{self._where} diverged in {in_a_row.max()} episodes one after the other. Mend the "
                f"environment, or take a smaller time step of the simulation"
            )
        self._say_if_many()

    def _say_if_many(self) -> None:
        if self._diverged >= self._said_at and self._diverged > SHARE * (self._diverged + self._finished):
            self._said_at = 2 * self._diverged
            logger.error(
                "%d of %d episodes%s diverged and were dropped: what is learned is biased towards those that did not. Take a smaller time "
                "step of the simulation, or smaller actions",
                self._diverged,
                self._diverged + self._finished,
                self._where,
            )


class ReportDivergence(EnvWrapper):
    """Wrapper that puts MuJoCo's warning into the info, for an environment in a process of its own."""

    def step(self, action: object) -> Step:
        observation, reward, terminated, truncated, info = self.env.step(action)
        words = complaint(self.unwrapped) if _is_simulation(self.unwrapped) else None
        return observation, reward, terminated, truncated, info if words is None else {**info, REPORT: words}


def complaint(task: Any) -> str | None:
    """Return MuJoCo's warning of a simulation that has diverged since its last reset, once; None if it has not."""
    return words_of(task.data.warning.number, task.data.warning.lastinfo)


def words_of(number: NumpyArray, lastinfo: NumpyArray) -> str | None:
    """Return the warning in MuJoCo's counters, `(kinds,)` each, and set them back; None where they count no divergence."""
    position, velocity, acceleration = _WARNINGS
    if not (number[position] or number[velocity] or number[acceleration]):
        return None
    mujoco = importlib.import_module("mujoco")
    worst = next(kind for kind in _WARNINGS if number[kind])
    words = f"MuJoCo: {mujoco.mju_warningText(worst, lastinfo[worst])}".removesuffix(".")
    for kind in _WARNINGS:
        number[kind] = 0  # a reset by mj_resetData does so, too; a task may have another
    return words


_WARNINGS = (3, 4, 5)
"""mjWARN_BADQPOS, mjWARN_BADQVEL, mjWARN_BADQACC of mjtWarning."""


def _is_simulation(task: Environment) -> bool:
    mujoco = sys.modules.get("mujoco")
    return mujoco is not None and isinstance(getattr(task, "data", None), mujoco.MjData)


def _is_finite(row: Tree, largest: float) -> bool:
    return all(bool(finite(np.asarray(leaf), largest).all()) for leaf in leaves(row))


def bad_rows(tree: Tree | None, largest: float = np.inf) -> list[int]:
    """List the environments with NaN, infinity or a number beyond `largest` in any array of a tree, `(envs, ...)` each."""
    found: set[int] = set()
    for leaf in leaves(tree):
        sound = finite(leaf, largest)
        if not sound.all():
            found |= set(np.flatnonzero(~sound.reshape(len(sound), -1).all(axis=1)).tolist())
    return sorted(found)


def finite(array: NumpyArray, largest: float) -> NDArray[np.bool_]:
    """Tell which numbers are finite and, in float64, no larger than `largest`."""
    sound: NDArray[np.bool_] = np.abs(array) <= largest if largest < np.inf and array.dtype == np.float64 else np.isfinite(array)
    return sound
