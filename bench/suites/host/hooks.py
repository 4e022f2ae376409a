"""Three callbacks and three loggers that do nothing: the time that they add to a timestep of `sacref.train`.

Two runs with the same seed, one of them with callbacks and loggers, train in two threads of one process, and take turns after so many
timesteps: what slows the machine down slows down both. One that waits computes nothing. The n-th turns of both are a pair.
"""

import logging
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from threading import Semaphore, Thread
from typing import Any

import gymnasium
import numpy as np

import sacref
from bench.core import runner
from bench.core.samples import Timing
from bench.suites.host.samples import OverheadCell
from sacref.config.train_config import Backend
from sacref.training.callbacks import Callback, RunView

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


class Timed(gymnasium.Wrapper[Any, Any, Any, Any]):
    """An environment that ends its thread's turn before the first step of each stretch.

    Args:
        env: the environment.
        before_step: called before each of its steps.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], before_step: Callable[["Timed"], None]) -> None:
        super().__init__(env)
        self._before_step = before_step

    def step(self, action: Any) -> Any:
        self._before_step(self)
        return self.env.step(action)


class Contender:
    """One of two runs that take turns, each in a thread of its own.

    Args:
        turn: held by this run while it works.
        other: held by the other one.
        warm: timesteps before the first one that is timed.
        timesteps: of a stretch.
        rounds: number of stretches.
    """

    def __init__(self, turn: Semaphore, other: Semaphore, *, warm: int, timesteps: int, rounds: int) -> None:
        self._turn, self._other, self._warm, self._timesteps, self._rounds = turn, other, warm, timesteps, rounds
        self.steps = warm + (rounds + 1) * timesteps
        """Timesteps of the run: some more than are timed, as those that only reset the environment are no steps of it."""
        self.timings: list[Timing] = []
        self.failure: BaseException | None = None
        self._finished, self._began = 0, 0.0
        self._training: Timed | None = None

    def before_step(self, env: Timed) -> None:
        """Note the time where a stretch ends, wait for the other run's, and begin the next."""
        self._training = self._training or env  # the first that steps; others evaluate
        if env is not self._training:
            return
        since = self._finished - self._warm
        if since >= 0 and since % self._timesteps == 0:
            if 0 < since <= self._rounds * self._timesteps:
                self.timings.append(Timing(count=self._timesteps, seconds=time.perf_counter() - self._began))
            self._other.release()
            self._turn.acquire()
            self._began = time.perf_counter()
        self._finished += 1

    def run(self, train: Callable[["Contender"], object]) -> None:
        """Train in this run's turns."""
        self._turn.acquire()
        try:
            train(self)
        except BaseException as error:
            self.failure = error
        finally:
            self._other.release()


def measure(backend: Backend, env: str | None, *, settings: Mapping[str, Any], warm: int, timesteps: int, rounds: int) -> OverheadCell:
    """Time two runs in turn, one of them with callbacks and loggers.

    Args:
        backend: of both.
        env: Gymnasium id; None for `Idle`.
        settings: further arguments of `sacref.train`.
        warm, timesteps, rounds: see `Contender`.
    """
    name = env or "a step that does nothing"
    if why := runner.missing_backends().get(backend):
        return OverheadCell(backend=backend, env=name, bare=[], hooked=[], missing=why)
    turns = Semaphore(1), Semaphore(0)
    pair = [Contender(mine, other, warm=warm, timesteps=timesteps, rounds=rounds) for mine, other in (turns, turns[::-1])]
    hooks: list[dict[str, Any]] = [{"log": ()}, {"callbacks": [NoCallback] * NUMBER, "log": [NoLogger] * NUMBER}]

    def train(one: Contender) -> None:
        sacref.train(
            backend=backend,
            env=lambda: Timed(gymnasium.make(env) if env else Idle(), one.before_step),
            steps=one.steps,
            run_dir=f"{folder}/{pair.index(one)}",
            evaluation_episodes=1,
            evaluation_interval=one.steps,
            progress=False,
            **settings,
            **hooks[pair.index(one)],
        )

    with tempfile.TemporaryDirectory(prefix="sacref-bench-") as folder, _quiet():
        threads = [Thread(target=one.run, args=(train,)) for one in pair]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for one in pair:
        if one.failure is not None:
            raise one.failure
    return OverheadCell(backend=backend, env=name, bare=pair[0].timings, hooked=pair[1].timings, missing=None)


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
