"""Many copies of one of Gymnasium's MuJoCo tasks as one vector environment: native threads step them, NumPy computes the rest.

Equal to a `SyncVectorEnv` of `gymnasium.make` to the bit, step for step: the physics is the same call with the same warm start, each reset
is Gymnasium's own on a prototype with the copy's generator, and observations and rewards are computed by the same operations
(`sacref.envs.mujoco_tasks`). Other tasks are refused by name.
"""

import importlib
import pickle
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeAlias, cast

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from sacref.config.train_config import Environment
from sacref.envs.interface import Infos, Space, layers_of
from sacref.envs.mujoco_simulations import default_threads, make_simulations
from sacref.envs.mujoco_tasks import NAMES, Fields, Mask, Numbers, Step, task_of
from sacref.envs.snapshots import State, generator_of, generator_state, set_generator
from sacref.envs.vector import TIME_LIMIT, EnvError, kind_of, time_limits
from sacref.spec.arrays import NumpyArray

Stepped: TypeAlias = tuple[Numbers, Numbers, Mask, Mask, Infos]
"""Observations, rewards, terminated, truncated and infos."""
Begun: TypeAlias = tuple[NumpyArray, Mask, Mask, Numbers]
"""Actions, the copies that are stepped, those that begin an episode instead, and what their task needs of the simulations before."""
Failed: TypeAlias = dict[int, Exception]
"""Copy -> what MuJoCo raised in it."""

_TRANSPARENT = ("OrderEnforcing", "PassiveEnvChecker", "TimeLimit")
"""Wrappers that `gymnasium.make` puts around a task; this vector environment does their work."""

_FIX = "take vectorization='sync'"


class BatchedVectorEnv(VectorEnv[Numbers, NumpyArray, NumpyArray]):
    """Copies of a MuJoCo task.

    Args:
        env: the task as `gymnasium.make` makes it, with its options; it is used up: no longer step it yourself.
        num_envs: how many copies.
        autoreset_mode: what happens after an episode's end.
        threads: how many compute, the caller's included; None for one per core of this process. The results are the same.

    Raises:
        EnvError: if it is another task, or has wrappers of its own.
    """

    def __init__(
        self,
        env: Environment,
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
            what = kind_of(prototype) if env.spec is None else env.spec.id
            raise EnvError(f"{what} is not stepped in batches, only {', '.join(NAMES)} are: {_FIX}")
        if prototype.render_mode is not None:
            raise EnvError(f"render_mode is {prototype.render_mode!r}, but environments stepped in batches draw no pictures: {_FIX}")
        self._made_from, self._prototype, self._task = env, prototype, task
        self._name = kind_of(prototype)
        self._mujoco = str(importlib.import_module("mujoco").__version__)
        self._limit = _time_limit(env)
        self.num_envs: int = num_envs
        self.autoreset_mode: AutoresetMode = AutoresetMode(autoreset_mode)
        self.metadata: State = {**env.metadata, "autoreset_mode": self.autoreset_mode, TIME_LIMIT: self._limit}
        self.render_mode: str | None = None
        self.single_observation_space: Space = env.observation_space
        self.single_action_space: Space = env.action_space
        self.observation_space: Space = batch_space(self.single_observation_space, num_envs)
        self.action_space: Space = batch_space(self.single_action_space, num_envs)
        threads = default_threads(num_envs) if threads is None else min(threads, num_envs)
        self._simulations = make_simulations(prototype.model, num_envs, task.fields, forces=task.forces, threads=threads)
        # An environment for each copy, of which only the generator is used.
        self._streams: list[Environment] = [gymnasium.Env() for _ in range(num_envs)]
        self._observations = np.zeros(cast(tuple[int, ...], self.observation_space.shape))
        self._elapsed = np.zeros(num_envs, np.int64)
        self._ended = np.zeros(num_envs, np.bool_)
        self._everyone = np.ones(num_envs, np.bool_)
        self._has_reset = False
        self._options = _pickled((self._name, num_envs, self._limit, self.autoreset_mode), prototype)  # now: resets change some
        self._ahead: ThreadPoolExecutor | None = None
        self._pending: tuple[Future[Failed], Begun] | None = None

    @property
    def prototype(self) -> Environment:
        """The environment that the copies are made from."""
        return cast(Environment, self._prototype)

    @property
    def np_random_seed(self) -> Any:
        """The copies' seeds."""
        return tuple(stream.np_random_seed for stream in self._streams)

    @property
    def np_random(self) -> Any:
        """The copies' generators; as many may be set."""
        return tuple(stream.np_random for stream in self._streams)

    @np_random.setter
    def np_random(self, generators: Any) -> None:
        for stream, generator in zip(self._streams, generators, strict=True):
            stream.np_random = generator

    def reset(self, *, seed: int | list[int | None] | None = None, options: State | None = None) -> tuple[Numbers, Infos]:
        """Begin new episodes.

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
        infos: Infos = {}
        for copy in np.flatnonzero(which).tolist():
            infos = self._restart(copy, infos, seeds[copy])
        self._ended[which] = False
        self._has_reset = True
        return self._observations.copy(), infos

    def step(self, actions: NumpyArray) -> Stepped:
        """Step every copy."""
        begun = self._begin(actions, self._everyone)
        return self._finish_all(begun, self._simulate(*begun))

    def step_some(self, actions: NumpyArray, which: Mask) -> tuple[Stepped, Failed]:
        """Step some copies, `(envs,)`. The others stay as they are: their rewards are 0, and nothing of theirs ends.

        Returns:
            The step, and the errors of copies that could not be simulated, or reset at an episode's end: their rows are to be left out.

        Raises:
            gymnasium.error.Error: if they cannot be stepped now. Nothing was changed.
        """
        begun = self._begin(actions, which)
        failed = self._simulate(*begun)
        return self._finish(*begun, failed), failed

    def step_async(self, actions: NumpyArray) -> None:
        """Begin a step; it goes on while the caller does something else, until `step_wait`."""
        begun = self._begin(actions, self._everyone)
        self._ahead = self._ahead or ThreadPoolExecutor(1, "sacref-mujoco-ahead")
        self._pending = self._ahead.submit(self._simulate, *begun), begun

    def step_wait(self) -> Stepped:
        """Wait for the step that was begun, and return its results."""
        if self._pending is None:
            raise gymnasium.error.NoAsyncCallError("step_wait is called before step_async: begin a step first", "step")
        (future, begun), self._pending = self._pending, None
        return self._finish_all(begun, future.result())

    def complaints(self) -> dict[int, str]:
        """Return MuJoCo's warnings for the copies that have diverged since their last reset, once. See `sacref.envs.divergence`."""
        return self._simulations.complaints()

    def get_state(self) -> State:
        """Copy all that the next steps depend on. See `sacref.envs.snapshots`."""
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

    def set_state(self, state: State) -> None:
        """Go on from what `get_state` returned.

        Raises:
            ValueError, LookupError: if it is the state of other environments. Nothing was changed.
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

    def close_extras(self, **kwargs: object) -> None:
        """End the threads."""
        if self._ahead is not None:
            self._ahead.shutdown()
        self._pending = None
        self._simulations.close()
        self._prototype.close()

    def _begin(self, actions: NumpyArray, which: Mask) -> Begun:
        self._require_idle()
        if not self._has_reset:
            raise gymnasium.error.ResetNeeded("Cannot call env.step() before calling env.reset()")
        actions = np.asarray(actions)
        if actions.shape != self.action_space.shape:
            raise ValueError(f"actions have shape {actions.shape}, expected {self.action_space.shape}: one for each environment")
        restarted = self._ended & which
        if self.autoreset_mode == AutoresetMode.DISABLED and restarted.any():
            ended = np.flatnonzero(restarted)[:5].tolist()
            raise gymnasium.error.ResetNeeded(f"the episodes of environments {ended} have ended: reset them by options['reset_mask'] first")
        return np.ascontiguousarray(actions), which & ~restarted, restarted, self._task.before(self._fields)

    def _simulate(self, actions: NumpyArray, which: Mask, restarted: Mask, before: Numbers) -> Failed:
        return self._simulations.step(actions, which, self._prototype.frame_skip)

    def _finish_all(self, begun: Begun, failed: Failed) -> Stepped:
        """Return the results of a step of every copy; raise the first error of one."""
        _raise_first(failed)
        results = self._finish(*begun, failed)
        _raise_first(failed)
        return results

    def _finish(self, actions: NumpyArray, which: Mask, restarted: Mask, before: Numbers, failed: Failed) -> Stepped:
        """Return the results of a step, and add to `failed` what resets raise, each of which is its copy's own."""
        observations = self._task.observe(self._fields)
        rewards, terminated, step_infos = self._task.outcome(Step(self._fields, before, actions, observations))
        self._elapsed += which
        truncated = np.zeros(self.num_envs, np.bool_) if self._limit is None else self._elapsed >= self._limit
        rewards = rewards.astype(np.float64)
        # A copy that waits keeps its own: some fields are there only after its next step.
        np.copyto(self._observations, observations, where=which[:, None])
        infos: Infos = {}
        if not which.all():
            # Some copies wait, or their steps are resets (NEXT_STEP).
            rewards[~which], terminated, truncated = 0.0, terminated & which, truncated & which
        ended, stayed = terminated | truncated, which
        if self.autoreset_mode == AutoresetMode.SAME_STEP and ended.any():
            _add(infos, {"final_info": _add({}, step_infos, ended)}, ended)
            infos["final_obs"], infos["_final_obs"] = np.full(self.num_envs, None, dtype=object), ended.copy()
            for copy in np.flatnonzero(ended).tolist():
                infos["final_obs"][copy] = observations[copy].copy()
            restarted, stayed = ended, which & ~ended
        _add(infos, step_infos, stayed)
        for copy in np.flatnonzero(restarted).tolist():
            try:
                infos = self._restart(copy, infos)
            except Exception as error:
                failed.setdefault(copy, error)
        self._ended |= ended
        self._ended &= ~restarted
        return self._observations.copy(), rewards, terminated, truncated, infos

    @property
    def _fields(self) -> Fields:
        return self._simulations.fields

    def _restart(self, copy: int, infos: Infos, seed: int | None = None) -> Infos:
        """Begin an episode of a copy as Gymnasium does: reset the prototype, with the copy's simulation and generator."""
        env, stream = self._prototype, self._streams[copy]
        env.data = self._simulations.data(copy)
        env._np_random, env._np_random_seed = stream._np_random, stream._np_random_seed
        self._observations[copy], info = env.reset(seed=seed)
        stream._np_random, stream._np_random_seed = env._np_random, env._np_random_seed
        self._simulations.started(copy)
        self._elapsed[copy] = 0
        return self._add_info(infos, info, copy)

    def _kind(self) -> bytes | None:
        """Return all that steps and resets depend on beside the state, to be compared; None where an option cannot be compared."""
        return None if self._options is None else self._options + pickle.dumps(self._prototype.model)

    def _move_to(self, whole: "BatchedVectorEnv", rows: slice) -> None:
        """Go on as rows of another one."""
        state = self.get_state()
        self._simulations.close()
        self._simulations = whole._simulations.part(rows)
        self._observations, self._elapsed, self._ended = whole._observations[rows], whole._elapsed[rows], whole._ended[rows]
        whole._streams[rows] = self._streams
        self.set_state(state)
        whole._has_reset = True

    def _require_idle(self) -> None:
        if self.closed:
            raise gymnasium.error.ClosedEnvironmentError("the environments are closed: make new ones")
        if self._pending is not None:
            raise gymnasium.error.AlreadyPendingCallError("a step was begun by step_async: wait for it by step_wait first", "step")


def merged(parts: Sequence[object]) -> BatchedVectorEnv | None:
    """Return one vector environment that steps the copies of several; None where they are not all batched and made alike.

    A part goes on as rows of the whole, which has a thread for each core of this process, and the part none. It still steps, is reset,
    captured, restored and closed by itself.

    Args:
        parts: of as many copies, which have been reset; None for one that is not there, whose rows must not be stepped.
    """
    batched = {number: part for number, part in enumerate(parts) if type(part) is BatchedVectorEnv}
    kinds = {part._kind() for part in batched.values()}
    if len(batched) < sum(part is not None for part in parts) or len(kinds) != 1 or None in kinds:
        return None
    first = next(iter(batched.values()))
    whole = BatchedVectorEnv(first._made_from, len(parts) * first.num_envs, autoreset_mode=first.autoreset_mode)
    for number, part in batched.items():
        part._move_to(whole, slice(number * first.num_envs, (number + 1) * first.num_envs))
    return whole


def _pickled(more: object, env: Any) -> bytes | None:
    """Return the options of a task, and more; None where one cannot be pickled."""
    options = {name: value for name, value in vars(env).items() if name[:1] == "_" and not name.startswith(("_np_random", "_ezpickle"))}
    try:
        return pickle.dumps((more, options, env.frame_skip, env.init_qpos, env.init_qvel))
    except Exception:  # of an option, which may be anything
        return None


def _raise_first(failed: Failed) -> None:
    for error in failed.values():
        raise error


def _time_limit(env: Environment) -> int | None:
    """Return the length of an episode.

    Raises:
        EnvError: if there are other wrappers than those of `gymnasium.make`.
    """
    for layer in layers_of(env):
        name = type(layer).__name__
        if isinstance(layer, gymnasium.Wrapper) and (name not in _TRANSPARENT or type(layer) is not getattr(gymnasium.wrappers, name)):
            raise EnvError(f"the environment has the wrapper {name}, which environments stepped in batches cannot have: {_FIX}")
    return min(time_limits(env), default=None)


def _reset_mask(options: Mapping[str, object] | None, num_envs: int) -> Mask:
    if options is None or "reset_mask" not in options:
        return np.ones(num_envs, np.bool_)
    mask = options["reset_mask"]
    if not (isinstance(mask, np.ndarray) and mask.shape == (num_envs,) and mask.dtype == np.bool_ and mask.any()):
        raise ValueError(f"options['reset_mask'] is {mask!r}, expected a NumPy array of shape ({num_envs},) and dtype bool with a True")
    return mask


def _add(infos: Infos, values: Infos, mask: Mask) -> Infos:
    """Put the infos of some copies among those of all, as Gymnasium gathers them: 0 where a copy has none, and a mask."""
    if mask.any():
        everyone = bool(mask.all())
        for key, value in values.items():
            if not everyone and not isinstance(value, dict):
                value = np.where(mask.reshape(-1, *(1,) * (value.ndim - 1)), value, np.zeros((), value.dtype))
            infos[key], infos[f"_{key}"] = value, mask.copy()
    return infos
