"""Many copies of one of Gymnasium's MuJoCo tasks as one vector environment: native threads step them, NumPy does the rest.

Equal to a `SyncVectorEnv` of `gymnasium.make` to the bit, step for step: the physics is the same call with the same warm start, each reset
is Gymnasium's own on a prototype with the copy's generator, and what is observed and paid is computed by the same operations
(`sacref.envs.mujoco_tasks`). Tasks that are not there are refused by name.
"""

import importlib
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, cast

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from sacref.envs.mujoco_simulations import default_threads, make_simulations
from sacref.envs.mujoco_tasks import NAMES, Fields, Step, task_of
from sacref.envs.snapshots import generator_of, generator_state, set_generator
from sacref.envs.vector import TIME_LIMIT, EnvError

_TRANSPARENT = ("OrderEnforcing", "PassiveEnvChecker", "TimeLimit")
"""Wrappers that `gymnasium.make` puts around a task. Their part is done here."""

_FIX = "take vectorization='sync'"


class BatchedVectorEnv(VectorEnv[NDArray[np.float64], NDArray[Any], NDArray[Any]]):
    """Copies of a MuJoCo task.

    Args:
        env: the task as `gymnasium.make` makes it, with its options; it is used up: no longer step it yourself.
        num_envs: how many copies.
        autoreset_mode: what happens after an episode's end.
        threads: how many compute, the caller's included; None is one for each core of this process. The numbers are the same.

    Raises:
        EnvError: if it is another task, or has wrappers of its own.
    """

    def __init__(
        self,
        env: gymnasium.Env[Any, Any],
        num_envs: int,
        *,
        autoreset_mode: AutoresetMode = AutoresetMode.NEXT_STEP,
        threads: int | None = None,
    ) -> None:
        super().__init__()
        if isinstance(num_envs, bool) or not isinstance(num_envs, int) or num_envs < 1:
            raise ValueError(f"num_envs is {num_envs!r}, expected an integer of at least 1")
        if threads is not None and threads < 1:
            raise ValueError(f"threads is {threads}, expected at least 1")
        prototype: Any = env.unwrapped
        task = task_of(prototype)
        if task is None:
            what = f"{type(prototype).__module__}:{type(prototype).__qualname__}" if env.spec is None else env.spec.id
            raise EnvError(f"{what} is not stepped in batches, only {', '.join(NAMES)} are: {_FIX}")
        if prototype.render_mode is not None:
            raise EnvError(f"render_mode is {prototype.render_mode!r}, but environments stepped in batches draw no pictures: {_FIX}")
        self._prototype, self._task = prototype, task
        self._name = f"{type(prototype).__module__}:{type(prototype).__qualname__}"
        self._mujoco = str(importlib.import_module("mujoco").__version__)
        self._limit = _time_limit(env)
        self.num_envs, self.autoreset_mode = num_envs, AutoresetMode(autoreset_mode)
        self.metadata = {**env.metadata, "autoreset_mode": self.autoreset_mode, TIME_LIMIT: self._limit}
        self.render_mode = None
        self.single_observation_space, self.single_action_space = env.observation_space, env.action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        threads = default_threads(num_envs) if threads is None else min(threads, num_envs)
        self._simulations = make_simulations(prototype.model, num_envs, task.fields, forces=task.forces, threads=threads)
        # Of each copy: an environment of nothing but its generator.
        self._streams: list[gymnasium.Env[Any, Any]] = [gymnasium.Env() for _ in range(num_envs)]
        self._observations = np.zeros(cast(tuple[int, ...], self.observation_space.shape))
        self._elapsed = np.zeros(num_envs, np.int64)
        self._ended = np.zeros(num_envs, np.bool_)
        self._has_reset = False
        self._ahead: ThreadPoolExecutor | None = None
        self._pending: tuple[Future[None], Any] | None = None

    @property
    def prototype(self) -> gymnasium.Env[Any, Any]:
        """What the copies are made of."""
        env: gymnasium.Env[Any, Any] = self._prototype
        return env

    @property
    def np_random_seed(self) -> Any:
        """Each copy's seed."""
        return tuple(stream.np_random_seed for stream in self._streams)

    @property
    def np_random(self) -> Any:
        """Each copy's generator; as many may be set in their place."""
        return tuple(stream.np_random for stream in self._streams)

    @np_random.setter
    def np_random(self, generators: Any) -> None:
        for stream, generator in zip(self._streams, generators, strict=True):
            stream.np_random = generator

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float64], dict[str, Any]]:
        """Begin episodes anew.

        Args:
            seed: of the first copy; the next ones have seed + 1, ...; or one for each. None: their generators go on.
            options: `reset_mask`, `(envs,)`, bool: which copies; all of them without it.
        """
        self._require_idle()
        if isinstance(seed, int):
            seeds: list[int | None] = [seed + copy for copy in range(self.num_envs)]
        else:
            seeds = [None] * self.num_envs if seed is None else list(seed)
        if len(seeds) != self.num_envs:
            raise ValueError(f"seed has {len(seeds)} entries, expected {self.num_envs}: one for each environment")
        which = _reset_mask(options, self.num_envs)
        if not self._has_reset and not which.all():
            never = np.flatnonzero(~which)[:5].tolist()
            raise gymnasium.error.ResetNeeded(f"environments {never} have not begun: reset all first, without options['reset_mask']")
        infos: dict[str, Any] = {}
        for copy in np.flatnonzero(which).tolist():
            infos = self._restart(copy, infos, seeds[copy])
        self._ended[which] = False
        self._has_reset = True
        return self._observations.copy(), infos

    def step(
        self, actions: NDArray[Any]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        """Step every copy."""
        begun = self._begin(actions)
        self._simulate(*begun)
        return self._finish(*begun)

    def step_async(self, actions: NDArray[Any]) -> None:
        """Begin a step; it goes on beside what the caller does until `step_wait`."""
        begun = self._begin(actions)
        self._ahead = self._ahead or ThreadPoolExecutor(1, "sacref-mujoco-ahead")
        self._pending = self._ahead.submit(self._simulate, *begun), begun

    def step_wait(self) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        """What the step that was begun gives."""
        if self._pending is None:
            raise gymnasium.error.NoAsyncCallError("step_wait is called before step_async: begin a step first", "step")
        (future, begun), self._pending = self._pending, None
        future.result()
        return self._finish(*begun)

    def complaints(self) -> dict[int, str]:
        """What MuJoCo says of the copies that have diverged since their last reset; it is said once. See `sacref.envs.divergence`."""
        return self._simulations.complaints()

    def get_state(self) -> dict[str, Any]:
        """All that the next steps follow from. See `sacref.envs.snapshots`."""
        self._require_idle()
        return {
            "task": self._name,
            "mujoco": self._mujoco,
            "has_reset": self._has_reset,
            "observations": self._observations.copy(),
            "elapsed": self._elapsed.copy(),
            "ended": self._ended.copy(),
            "generators": [generator_state(stream) for stream in self._streams],
            "simulations": self._simulations.get_state(),
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what `get_state` gave.

        Raises:
            ValueError, LookupError: if it is of others. Nothing was changed.
        """
        self._require_idle()
        for name, expected in {"task": self._name, "mujoco": self._mujoco}.items():
            if state[name] != expected:
                raise ValueError(f"the state's {name} is {state[name]!r}, expected {expected!r}")
        own = {"observations": self._observations, "elapsed": self._elapsed, "ended": self._ended}
        for name, array in own.items():
            found = np.asarray(state[name])
            if (found.shape, found.dtype) != (array.shape, array.dtype):
                raise ValueError(f"{name} is {found.dtype} {found.shape}, expected {array.dtype} {array.shape}")
        generators = [generator_of(found) for found in state["generators"]]
        if len(generators) != self.num_envs:
            raise ValueError(f"there are {len(generators)} generators, expected {self.num_envs}")
        has_reset = bool(state["has_reset"])
        self._simulations.set_state(state["simulations"])
        for name, array in own.items():
            array[...] = state[name]
        for stream, generator in zip(self._streams, generators, strict=True):
            set_generator(stream, generator)
        self._has_reset = has_reset

    def close_extras(self, **kwargs: Any) -> None:
        """End the threads."""
        if self._ahead is not None:
            self._ahead.shutdown()
        self._pending = None
        self._simulations.close()
        self._prototype.close()

    def _begin(self, actions: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.bool_], NDArray[np.float64] | None]:
        """The actions, which copies are stepped, and what of them is read before."""
        self._require_idle()
        if not self._has_reset:
            raise gymnasium.error.ResetNeeded("Cannot call env.step() before calling env.reset()")
        actions = np.asarray(actions)
        if actions.shape != self.action_space.shape:
            raise ValueError(f"actions have shape {actions.shape}, expected {self.action_space.shape}: one for each environment")
        if self.autoreset_mode == AutoresetMode.DISABLED and self._ended.any():
            ended = np.flatnonzero(self._ended)[:5].tolist()
            raise gymnasium.error.ResetNeeded(f"the episodes of environments {ended} have ended: reset them by options['reset_mask'] first")
        return np.ascontiguousarray(actions), ~self._ended, self._task.before(self._fields)

    def _simulate(self, actions: NDArray[Any], which: NDArray[np.bool_], before: Any) -> None:
        self._simulations.step(actions, which, self._prototype.frame_skip)

    def _finish(
        self, actions: NDArray[Any], which: NDArray[np.bool_], before: Any
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        observations = self._task.observe(self._fields)
        rewards, terminated, step_infos = self._task.outcome(Step(self._fields, before, actions, observations))
        self._elapsed += 1
        truncated = np.zeros(self.num_envs, np.bool_) if self._limit is None else self._elapsed >= self._limit
        rewards = rewards.astype(np.float64)
        self._observations = observations
        infos: dict[str, Any] = {}
        if not which.all():
            # NEXT_STEP: these copies' steps are resets.
            rewards[~which], terminated, truncated = 0.0, terminated & which, truncated & which
        ended = terminated | truncated
        if self.autoreset_mode == AutoresetMode.SAME_STEP and ended.any():
            _add(infos, {"final_info": _add({}, step_infos, ended)}, ended)
            infos["final_obs"], infos["_final_obs"] = np.full(self.num_envs, None, dtype=object), ended.copy()
            for copy in np.flatnonzero(ended).tolist():
                infos["final_obs"][copy] = observations[copy].copy()
            restarted, stayed = ended, ~ended
        else:
            restarted, stayed = ~which, which
        _add(infos, step_infos, stayed)
        for copy in np.flatnonzero(restarted).tolist():
            infos = self._restart(copy, infos)
        self._ended = ended & ~restarted
        return self._observations.copy(), rewards, terminated, truncated, infos

    @property
    def _fields(self) -> Fields:
        return self._simulations.fields

    def _restart(self, copy: int, infos: dict[str, Any], seed: int | None = None) -> dict[str, Any]:
        """Begin an episode of a copy as Gymnasium does: the prototype is reset in its place, with its simulation and its generator."""
        env, stream = self._prototype, self._streams[copy]
        env.data = self._simulations.data(copy)
        env._np_random, env._np_random_seed = stream._np_random, stream._np_random_seed
        self._observations[copy], info = env.reset(seed=seed)
        stream._np_random, stream._np_random_seed = env._np_random, env._np_random_seed
        self._simulations.started(copy)
        self._elapsed[copy] = 0
        return self._add_info(infos, info, copy)

    def _require_idle(self) -> None:
        if self.closed:
            raise gymnasium.error.ClosedEnvironmentError("the environments are closed: make new ones")
        if self._pending is not None:
            raise gymnasium.error.AlreadyPendingCallError("a step was begun by step_async: wait for it by step_wait first", "step")


def _time_limit(env: gymnasium.Env[Any, Any]) -> int | None:
    """Steps of an episode.

    Raises:
        EnvError: if there are wrappers of another kind.
    """
    limit = None
    while isinstance(env, gymnasium.Wrapper):
        name = type(env).__name__
        if name not in _TRANSPARENT or type(env) is not getattr(gymnasium.wrappers, name):
            raise EnvError(f"the environment has the wrapper {name}, which environments stepped in batches cannot have: {_FIX}")
        if isinstance(env, gymnasium.wrappers.TimeLimit):
            limit = env._max_episode_steps if limit is None else min(limit, env._max_episode_steps)
        env = env.env
    return limit


def _reset_mask(options: Mapping[str, Any] | None, num_envs: int) -> NDArray[np.bool_]:
    if options is None or "reset_mask" not in options:
        return np.ones(num_envs, np.bool_)
    mask = options["reset_mask"]
    if not (isinstance(mask, np.ndarray) and mask.shape == (num_envs,) and mask.dtype == np.bool_ and mask.any()):
        raise ValueError(f"options['reset_mask'] is {mask!r}, expected a NumPy array of shape ({num_envs},) and dtype bool with a True")
    return mask


def _add(infos: dict[str, Any], values: Mapping[str, Any], mask: NDArray[np.bool_]) -> dict[str, Any]:
    """Put the infos of some copies among those of all, as Gymnasium gathers them: 0 where a copy has none, and a mask."""
    if mask.any():
        everyone = bool(mask.all())
        for key, value in values.items():
            if not everyone and not isinstance(value, dict):
                value = np.where(mask.reshape(-1, *(1,) * (value.ndim - 1)), value, np.zeros((), value.dtype))
            infos[key], infos[f"_{key}"] = value, mask.copy()
    return infos
