"""The process of one contender: `python -m bench.suites.host.worker JOB`, run by the interpreter of the contender's environment.

It trains as `bench.peers.worker` does, and stops at the same gate; the calls that its loop makes are timed by part.
"""

import os
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bench.core import entry
from bench.peers import worker
from bench.peers.setting import Trainer
from bench.suites.host import counts

if TYPE_CHECKING:
    from bench.peers.gate import Gate

COUNT = "count"
"""Further word of a request whose stretch is counted instead of timed."""


def main(arguments: Sequence[str]) -> int:
    """Train until the requests end; 1 after an error, which is the last answer."""
    todo = entry.read("python -m bench.suites.host.worker JOB, as JSON", "bench host", arguments, worker.job)
    # On a CPU, JAX then computes within the call that asks for it, and each part has its own time.
    os.environ["JAX_CPU_ENABLE_ASYNC_DISPATCH"] = "false"
    return worker.run(todo, timed)


def timed(door: "Gate", todo: Mapping[str, Any]) -> tuple[str, Trainer]:
    """Make the contender; the steps of its vector environment pass the gate, and its parts are timed."""
    env = todo["setting"]["env"]
    trainer = worker.load(todo, env)
    clock, entrance = PartClock(), Entrance(door)
    for part, calls in trainer.parts.items():
        for owner, name in calls:
            call = clock.timed(part, getattr(owner, name))
            setattr(owner, name, entrance.passing(owner, call) if part == "environment" else call)

    def begin(words: str) -> Callable[[], Mapping[str, Any]]:
        if words == COUNT:
            return counts.start(todo["library"])
        return clock.start()

    door.begin = begin
    return env, trainer


class Entrance:
    """The way of vector environments' steps through the gate. Steps within another one's belong to that."""

    def __init__(self, door: "Gate") -> None:
        self._door, self._inside = door, False

    def passing(self, owner: Any, step: Callable[..., Any]) -> Callable[..., Any]:
        """Return the step of an object, or of all objects of a class, that passes the gate first."""

        def call(*arguments: Any, **keywords: Any) -> Any:
            if self._inside:
                return step(*arguments, **keywords)
            envs = arguments[0] if isinstance(owner, type) else owner
            self._door.before_step(envs.num_envs)
            self._inside = True
            try:
                return step(*arguments, **keywords)
            finally:
                self._inside = False

        return call


class PartClock:
    """The time of each part of the loop. A call within another one belongs to the outer one."""

    def __init__(self) -> None:
        self._inside = False
        self._seconds: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])

    def start(self) -> Callable[[], dict[str, Any]]:
        """Set all times to 0; return a function that reads them, and the processor time of the whole process since now."""
        self._seconds.clear()
        began = time.process_time()

        def end() -> dict[str, Any]:
            processor_seconds = time.process_time() - began
            parts = {part: {"seconds": wall, "processor_seconds": thread} for part, (wall, thread) in self._seconds.items()}
            return {"processor_seconds": processor_seconds, "parts": parts}

        return end

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function whose time is that of a part."""

        def call(*arguments: Any, **keywords: Any) -> Any:
            if self._inside:
                return function(*arguments, **keywords)
            self._inside = True
            began, began_thread = time.perf_counter(), time.thread_time()
            try:
                return function(*arguments, **keywords)
            finally:
                thread, wall = time.thread_time() - began_thread, time.perf_counter() - began
                self._inside = False
                sums = self._seconds[part]
                sums[0] += wall
                sums[1] += thread

        return call


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
