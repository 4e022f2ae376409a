"""Callbacks: code of a user's own, called at points of a run."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from sacref.agent.agent import Agent
from sacref.spec.arrays import NumpyArray
from sacref.storage.values import encode
from sacref.training.evaluation import Evaluation

logger: logging.Logger = logging.getLogger(__name__)


class RunView:
    """A run as its callbacks see it, read-only; each call shows it as it is then.

    Args:
        agent: in training mode, but for `on_end`. It may be asked (`predict`, `models`, `arrays`) and saved elsewhere (`save`); what it
            learns with is not to be changed.
        run_dir: the run directory.
        timesteps: of the whole run.
        evaluations: (environment steps, evaluation), to which the run adds.
    """

    def __init__(self, agent: Agent[Any], run_dir: Path, timesteps: int, evaluations: Sequence[tuple[int, Evaluation]]) -> None:
        self.agent = agent
        self.run_dir = run_dir
        self.timesteps = timesteps
        self.timestep: int = 0
        """Timesteps finished."""
        self._evaluations = evaluations

    @property
    def steps(self) -> int:
        """Environment steps finished, of all environments of all ranks together."""
        return self.agent.environment_steps(self.timestep)

    @property
    def gradient_steps(self) -> int:
        """Gradient steps taken."""
        return self.agent.gradient_step_count

    @property
    def metrics(self) -> Mapping[str, float]:
        """Tag -> the value that this process wrote last; empty before its first write."""
        return MappingProxyType(self.agent.metrics.latest)

    @property
    def evaluation(self) -> Evaluation | None:
        """The last evaluation; None before the first."""
        return self._evaluations[-1][1] if self._evaluations else None

    @property
    def evaluations(self) -> tuple[tuple[int, Evaluation], ...]:
        """(environment steps, evaluation), in order; of a resumed run those before, too, on rank 0 and without `lengths`."""
        return tuple(self._evaluations)

    @property
    def checkpoint(self) -> Path:
        """Path of the checkpoint that was just written, in `on_checkpoint`."""
        return self.run_dir / "checkpoints" / f"agent_{self.timestep}"


class Callback:
    """Base of callbacks: override the methods that are wanted.

    A method that raises stops the run, with everything written, and its error is raised then. Where several ranks train one agent, each
    calls callbacks of its own (`run.agent.ranks.rank`). A callback with `state()`, which gives numbers, text, NumPy arrays, and lists,
    tuples and dicts of those, and `set_state(state)` is saved in each checkpoint, and goes on from there in a resumed run.
    """

    def on_start(self, run: RunView) -> None:
        """Called once, before the first step; of a resumed run with the agent restored, its earlier evaluations follow with that step."""

    def on_timestep(self, run: RunView) -> None:
        """Called after each timestep, a step of all environments together."""

    def on_gradient_steps(self, run: RunView) -> None:
        """Called after each timestep that took gradient steps, before `on_timestep`."""

    def on_evaluation(self, run: RunView) -> bool | None:
        """Called after each evaluation. False, Python's or NumPy's, ends the run, with everything written."""

    def on_checkpoint(self, run: RunView) -> None:
        """Called after each checkpoint, `run.checkpoint`, that was written."""

    def on_end(self, run: RunView) -> None:
        """Called once, when the last checkpoint, evaluation and metrics are written; not where an error other than a callback's came."""


EVENTS = ("on_start", "on_timestep", "on_gradient_steps", "on_evaluation", "on_checkpoint", "on_end")


class StopAtReturn(Callback):
    """Callback that ends a run at an evaluation whose mean return is at least `mean`."""

    def __init__(self, mean: float) -> None:
        self._mean = mean

    def on_evaluation(self, run: RunView) -> bool:
        evaluation = run.evaluation
        return evaluation is None or evaluation.mean < self._mean


def make_callbacks(entries: Sequence[object]) -> list[Callback]:
    """Make the callbacks of `TrainConfig.callbacks`: of classes and functions what they make, callbacks as they are.

    Raises:
        TypeError: if one is none of these.
    """
    made = []
    for entry in entries:
        callback = entry() if callable(entry) else entry
        if not isinstance(callback, Callback):
            raise TypeError(
                f"callbacks has {entry!r}, expected a subclass of sacref.training.callbacks.Callback, or an instance of one: derive it"
            )
        made.append(callback)
    return made


class Callbacks:
    """Calls the callbacks of a run. A method that none of them overrides is not called.

    Args:
        callbacks: at least one.
        view: of the run, which is brought up to date before each call.
    """

    def __init__(self, callbacks: Sequence[Callback], view: RunView) -> None:
        self._callbacks, self._view = callbacks, view
        self._methods = {
            event: [getattr(each, event) for each in callbacks if getattr(type(each), event) is not getattr(Callback, event)]
            for event in EVENTS
        }
        self._gradient_steps = view.gradient_steps
        self.stopped_by: str | None = None
        """Name of the callback that ended the run; None while it goes on."""
        self.failure: Exception | None = None
        """Error of the callback that ended it."""

    @property
    def each_timestep(self) -> bool:
        """True where a method is called after each timestep, or after each that learned."""
        return bool(self._methods["on_timestep"] or self._methods["on_gradient_steps"])

    def start(self, timestep: int) -> None:
        """Call `on_start`.

        Raises:
            Exception: of a callback's own; nothing is trained then.
        """
        self._view.timestep, self._gradient_steps = timestep, self._view.gradient_steps
        for method in self._methods["on_start"]:
            method(self._view)

    def after_timestep(self, timestep: int) -> None:
        """Call `on_gradient_steps`, where some were taken, and `on_timestep`."""
        view = self._view
        view.timestep = timestep
        if self._methods["on_gradient_steps"]:
            steps, self._gradient_steps = self._gradient_steps, view.gradient_steps
            if steps != self._gradient_steps:
                self.call("on_gradient_steps")
        if self._methods["on_timestep"]:
            self.call("on_timestep")

    def call(self, event: str, only: Sequence[Callback] | None = None) -> None:
        """Call the methods of an event, of all callbacks or of some, and note what ends the run."""
        for method in self._methods[event]:
            if only is not None and method.__self__ not in only:
                continue
            try:
                answer = method(self._view)
            except Exception as error:  # after which everything is still to be written
                self._fail(method.__self__, event, error)
            else:
                if event == "on_evaluation" and isinstance(answer, bool | np.bool_) and not answer and self.stopped_by is None:
                    self.stopped_by = _name(method.__self__)

    def state(self, arrays: dict[str, NumpyArray]) -> list[object]:
        """Return name, evaluations seen and state of each callback that has one, encoded for a checkpoint that also gets `arrays`.

        One whose state cannot be had ends the run; the checkpoint holds those of the others.
        """
        states: list[object] = []
        callbacks: Sequence[Any] = self._callbacks
        for number, callback in enumerate(callbacks):
            if _has_state(callback):
                try:
                    own = [_name(callback), len(self._view.evaluations), callback.state()]
                    states.append(encode(own, f"callbacks.{number}", arrays))
                except Exception as error:
                    self._fail(callback, "state", error)
        return states

    def catch_up(self, restored: Sequence[tuple[Callback, int]], *, written: bool) -> None:
        """Call what restored callbacks had not seen when their state was saved: this checkpoint, and the evaluation of an earlier end.

        Args:
            restored: the callbacks, and how many evaluations each had seen.
            written: whether a run that was not interrupted writes this checkpoint, too.
        """
        if written:
            self.call("on_checkpoint", [callback for callback, _ in restored])
        late = [callback for callback, seen in restored if seen < len(self._view.evaluations)]
        self.call("on_evaluation", late)

    def _fail(self, callback: object, method: str, error: Exception) -> None:
        error.add_note(f"raised by the callback {_name(callback)} in {method}, after {self._view.steps:,} environment steps")
        self.failure = self.failure or error
        self.stopped_by = self.stopped_by or _name(callback)


def hand_back(states: Sequence[tuple[str, int, object]], callbacks: Sequence[Callback]) -> list[tuple[Callback, int]]:
    """Hand the states of a checkpoint to callbacks of the same names, in their order, and warn of those that are missing.

    Returns:
        The callbacks that got theirs, and how many evaluations each had seen.
    """
    restored = []
    left: list[Any] = [each for each in callbacks if _has_state(each)]
    for name, seen, state in states:
        found = next((each for each in left if _name(each) == name), None)
        if found is None:
            logger.warning("the checkpoint holds the state of callback %s, which this run lacks: left out. Pass it in callbacks", name)
        else:
            left.remove(found)
            found.set_state(state)
            restored.append((found, seen))
    return restored


def _has_state(callback: object) -> bool:
    return all(callable(getattr(callback, name, None)) for name in ("state", "set_state"))


def _name(callback: object) -> str:
    return f"{type(callback).__module__}:{type(callback).__qualname__}"
