"""Progress of a training: a bar on a terminal, a line every few percent elsewhere."""

import time
from datetime import timedelta
from types import TracebackType

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Column

from sacref.agent.protocol import Agent

REFRESH_SECONDS = 0.5
"""Reading alpha waits for the device, so that it is not read at each step."""
LINES = 20
"""Lines that a whole run prints where there is no terminal."""


class TrainingProgress:
    """Display of steps per second, the last returns, alpha and the time left.

    Args:
        agent: whose returns and alpha are shown.
        timesteps: of the whole run.
        start: timesteps that were finished before.
        num_envs: environment steps in a timestep.
        steps_offset: environment steps of the run beyond those: of timesteps that had another number of them.
        random_timesteps: timesteps at the start whose actions are random.
        learning_starts: first timestep that is followed by gradient steps.
        enabled: False shows nothing.
        console: where; standard error unless given.
    """

    def __init__(
        self,
        agent: Agent,
        *,
        timesteps: int,
        start: int = 0,
        num_envs: int = 1,
        steps_offset: int = 0,
        random_timesteps: int = 0,
        learning_starts: int = 0,
        enabled: bool = True,
        console: Console | None = None,
    ) -> None:
        self._agent, self._timesteps, self._start, self._num_envs = agent, timesteps, start, num_envs
        self._steps_offset, self._random_timesteps, self._learning_starts = steps_offset, random_timesteps, learning_starts
        self._console = console if console is not None else Console(stderr=True)
        self._enabled = enabled
        self._bar = Progress(
            # A narrow terminal cuts the end of the text, and neither the bar nor the time.
            TextColumn("{task.description}", table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1)),
            BarColumn(bar_width=8),
            TaskProgressColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
            expand=True,
            # A bar that is drawn into a file is noise: there, lines are printed instead.
            disable=not (enabled and self._console.is_terminal),
        )
        self._task = self._bar.add_task("training", total=timesteps, completed=start)
        self._began = self._shown = time.perf_counter()
        self._line = self._line_of(start)

    def __enter__(self) -> "TrainingProgress":
        self._bar.start()
        self._began = time.perf_counter()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._bar.stop()

    def say(self, text: str) -> None:
        """Print a line, where progress is shown."""
        if self._enabled:
            self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def update(self, finished: int) -> None:
        """Show that `finished` timesteps are finished."""
        if not self._enabled:
            return
        now = time.perf_counter()
        if self._console.is_terminal:
            if finished == self._timesteps or now - self._shown >= REFRESH_SECONDS:
                self._shown = now
                self._bar.update(self._task, completed=finished, description=self._describe(finished, now))
        elif self._line_of(finished) > self._line:
            self._line = self._line_of(finished)
            per_timestep = (now - self._began) / max(1, finished - self._start)
            left = timedelta(seconds=round(per_timestep * (self._timesteps - finished)))
            self.say(f"{finished / self._timesteps:4.0%} | {self._describe(finished, now)} | {left} left")

    def _line_of(self, finished: int) -> int:
        return finished * LINES // max(1, self._timesteps)

    def _describe(self, finished: int, now: float) -> str:
        speed = (finished - self._start) * self._num_envs / max(now - self._began, 1e-9)
        recent = self._agent.recent_returns[-10:]
        shown = f"return {np.mean(recent):,.1f} (last {len(recent)})" if recent else "return -"
        shown = f"step {self._steps(finished):,} | {speed:,.0f} steps/s | {shown}"
        if finished > self._learning_starts:
            return f"{shown} | alpha {self._agent.alpha:.3g}"
        return f"{self._why_nothing_is_learned(finished)} | {shown}"

    def _why_nothing_is_learned(self, finished: int) -> str:
        filling = "random actions fill the memory" if finished <= self._random_timesteps else "the memory fills"
        return f"nothing learned yet: {filling} until step {self._steps(self._learning_starts):,}"

    def _steps(self, timesteps: int) -> int:
        return timesteps * self._num_envs + self._steps_offset
