"""Three callbacks and three loggers that do nothing: the share of a run of `sacref.train` that they take.

Their calls are timed, with all that a run does for them: two runs, one with and one without, differ by more than that for other reasons.
"""

import logging
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from typing import Any, ParamSpec, TypeVar
from unittest import mock

import gymnasium
import numpy as np

import sacref
from bench.core import runner
from bench.core.samples import Timing
from bench.suites.host.samples import OverheadCell
from sacref.config.train_config import Backend
from sacref.storage.metric_files import Sinks
from sacref.training.callbacks import Callback, Callbacks, RunView

P = ParamSpec("P")
T = TypeVar("T")
NUMBER = 3
"""Callbacks, and as many loggers."""


class Idle(gymnasium.Env[Any, Any]):
    """An environment with HalfCheetah's shapes whose steps do nothing."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (17,), np.float64)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (6,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._steps = 0
        return np.zeros(17), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self._steps += 1
        return np.zeros(17), 0.0, False, self._steps == 1_000, {}


class NoCallback(Callback):
    """A callback with all methods, which do nothing."""

    def on_start(self, run: RunView) -> None: ...

    def on_timestep(self, run: RunView) -> None: ...

    def on_gradient_steps(self, run: RunView) -> None: ...

    def on_evaluation(self, run: RunView) -> None: ...

    def on_checkpoint(self, run: RunView) -> None: ...

    def on_end(self, run: RunView) -> None: ...


class NoLogger:
    """A logger that does nothing."""

    def write(self, step: int, scalars: Mapping[str, float]) -> None: ...


class Clock:
    """Times of stretches of timesteps, and of the calls in them.

    Args:
        warm: timesteps before the first stretch.
        timesteps: of a stretch.
    """

    def __init__(self, warm: int, timesteps: int) -> None:
        self._warm, self._timesteps = warm, timesteps
        self._began, self._spent, self._count = 0.0, 0.0, 0
        self.stretches: list[Timing] = []
        self.calls: list[Timing] = []

    def timed(self, function: Callable[P, T]) -> Callable[P, T]:
        """Return a function that does the same, and whose time is noted."""

        @wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> T:
            began = time.perf_counter()
            answer = function(*args, **kwargs)
            self._spent += time.perf_counter() - began
            self._count += 1
            return answer

        return call

    def finish(self, timestep: int) -> None:
        """End a stretch where one ends after this timestep, and begin the next."""
        since = timestep - self._warm
        if since >= 0 and since % self._timesteps == 0:
            now = time.perf_counter()
            if since > 0:
                self.stretches.append(Timing(count=self._timesteps, seconds=now - self._began))
                self.calls.append(Timing(count=self._count, seconds=self._spent))
            self._began, self._spent, self._count = now, 0.0, 0


def measure(backend: Backend, env: str | None, *, settings: Mapping[str, Any], warm: int, timesteps: int, stretches: int) -> OverheadCell:
    """Time a run with callbacks and loggers, and their calls in it.

    Args:
        backend: of the run.
        env: Gymnasium id; None for `Idle`.
        settings: further arguments of `sacref.train`.
        warm, timesteps: see `Clock`.
        stretches: number of stretches.
    """
    name = env or "a step that does nothing"
    if why := runner.missing_backends().get(backend):
        return OverheadCell(backend=backend, env=name, stretches=[], calls=[], missing=why)
    clock, steps = Clock(warm, timesteps), warm + stretches * timesteps
    after_timestep = clock.timed(Callbacks.after_timestep)

    def timed_and_counted(self: Callbacks, timestep: int) -> None:
        after_timestep(self, timestep)
        clock.finish(timestep)

    with (
        tempfile.TemporaryDirectory(prefix="sacref-bench-") as folder,
        _quiet(),
        mock.patch.object(Callbacks, "after_timestep", timed_and_counted),
        mock.patch.object(Sinks, "write", clock.timed(Sinks.write)),
    ):
        sacref.train(
            backend=backend,
            env=lambda: gymnasium.make(env) if env else Idle(),
            steps=steps,
            run_dir=f"{folder}/run",
            evaluation_episodes=1,
            evaluation_interval=steps,
            progress=False,
            callbacks=[NoCallback] * NUMBER,
            log=[NoLogger] * NUMBER,
            **settings,
        )
    return OverheadCell(backend=backend, env=name, stretches=clock.stretches, calls=clock.calls, missing=None)


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out what is said of runs that nobody resumes."""
    logger = logging.getLogger("sacref")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
