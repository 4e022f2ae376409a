"""A gate that stops any training loop between two environment steps, and times the steps between two stops.

The environment of a contender counts its steps. Before the first, and after each requested number of steps, it waits for a request on
stdin: the loop around it - a library's trainer or a script - waits with it, without a change to its code. A stretch of N steps is thus N
whole cycles (step, store, update, act), from an idle device to an idle device.
"""

import json
import re
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, TextIO

import gymnasium
from gymnasium.envs.registration import load_env_creator


class Gate:
    """Answers each line "advance N" with a line of JSON, after N steps; ends the process at the end of the requests.

    A request may hold further words, which are for `begin`.

    The first line is `describe()`, written when the contender is about to take its first step.

    Args:
        read: waits for the next request; returns "" after the last.
        answers: stream of the answers.
        synchronise: waits until the device is idle.
    """

    def __init__(self, read: Callable[[], str], answers: TextIO, synchronise: Callable[[], None]) -> None:
        self.describe: Callable[[], Mapping[str, Any]] = dict
        self.begin: Callable[[str], Callable[[], Mapping[str, Any]]] = lambda words: dict
        """Called before a stretch with the further words of its request; it returns what adds to the answer afterwards."""
        self._end: Callable[[], Mapping[str, Any]] = dict
        self._read = read
        self._answers = answers
        self._synchronise = synchronise
        self._left: int | None = None
        self._answer: dict[str, Any] = {}
        self._began = 0.0

    def before_step(self, count: int = 1) -> None:
        """Count a step of so many environments, and wait for a request where one is due; call it before each step."""
        if not self._left:
            self._stop()
        assert self._left is not None
        self._left -= count

    def answer(self, value: Mapping[str, Any]) -> None:
        """Write a line of JSON."""
        self._answers.write(json.dumps(value) + "\n")
        self._answers.flush()

    def _stop(self) -> None:
        self._synchronise()
        seconds = time.perf_counter() - self._began
        self.answer(self.describe() if self._left is None else {**self._answer, "seconds": seconds, **self._end()})
        waited, waited_cpu = time.perf_counter(), time.process_time()
        request = self._read()
        if not request:
            raise SystemExit(0)
        _, number, *words = request.split(maxsplit=2)
        steps = int(number)
        self._left = steps
        self._answer = {
            "steps": steps,
            "waited_seconds": time.perf_counter() - waited,
            "waited_cpu_seconds": time.process_time() - waited_cpu,
        }
        self._end = self.begin(" ".join(words).strip())
        self._began = time.perf_counter()


def count_steps(env: str, gate: Gate) -> str:
    """Let the steps of every environment that is made under this id pass the gate.

    Args:
        env: a registered Gymnasium id. An old Gymnasium may lack its version: the newest that it has is taken then.
        gate: told before each step.

    Returns:
        The id that is there.

    Raises:
        ValueError: if no version of the environment is registered.
    """
    name = env if env in gymnasium.registry else _newest(env)
    spec = gymnasium.registry[name]
    if spec.entry_point is None:
        raise ValueError(f"environment {name} has no entry point for a single environment: choose another")
    make: Callable[..., Any] = load_env_creator(spec.entry_point) if isinstance(spec.entry_point, str) else spec.entry_point

    def make_counted(**kwargs: Any) -> gymnasium.Env[Any, Any]:
        made: gymnasium.Env[Any, Any] = make(**kwargs)
        step = made.step

        def counted(action: Any) -> Any:
            gate.before_step()
            return step(action)

        made.step = counted  # type: ignore[method-assign]  # A wrapper would be seen by whoever looks at the environment's spec.
        return made

    spec.entry_point = make_counted
    return name


def _newest(env: str) -> str:
    task, _, _ = env.rpartition("-v")
    versions = [int(found[1]) for name in gymnasium.registry if (found := re.fullmatch(rf"{re.escape(task)}-v(\d+)", name))]
    if not versions:
        raise ValueError(
            f"no version of environment {env!r} is registered in Gymnasium {gymnasium.__version__}: expected one such as Task-v5"
        )
    return f"{task}-v{max(versions)}"


def synchronise() -> None:
    """Wait until the devices of the libraries that are loaded are idle."""
    if (torch := sys.modules.get("torch")) is not None and torch.cuda.is_available():
        torch.cuda.synchronize()
    if (jax := sys.modules.get("jax")) is not None:
        for array in jax.live_arrays():
            array.block_until_ready()
