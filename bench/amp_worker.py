"""One backend in one precision, in a process of its own, told by a pipe what to do: `bench.amp` runs several in turn."""

import importlib
import math
import resource
import signal
import sys
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, Literal, NamedTuple

from bench import sweep, timing
from bench.record import Timing
from bench.timing import Timed

ERROR_SEED = 1
"""Of the batch and noise whose losses and gradients are compared."""


class Size(NamedTuple):
    """A size of update."""

    batch: int
    width: int


class Ready(NamedTuple):
    """A size is warm."""

    chosen: str
    """The way of the gradient steps."""
    first_seconds: float


class Errors(NamedTuple):
    """How far one update's losses and gradients are from float64."""

    loss: float | None
    """None where it is not finite."""
    gradient: float | None


class Memory(NamedTuple):
    """What a size needed at its peak."""

    bytes: int | None
    of: Literal["device", "process"] | None


class DoesNotFit(NamedTuple):
    """The size needs more memory than there is."""


def serve(connection: Connection, backend: str, precision: str, gradient_steps: int, stored: int, round_seconds: float, seed: int) -> None:
    """Answer requests, each a method's name of `Worker` with its arguments, until there are no more.

    Args:
        connection: to the suite.
        backend, precision: of every agent.
        gradient_steps: of one call of `agent.update`.
        stored: transitions in the memory.
        round_seconds: a round takes at least so long.
        seed: of weights and transitions.
    """
    # Ctrl-C is for the suite: it closes the pipe.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    worker = Worker(backend, precision, gradient_steps=gradient_steps, stored=stored, round_seconds=round_seconds, seed=seed)
    while True:
        try:
            method, *arguments = connection.recv()
        except EOFError:
            return
        try:
            answer = getattr(worker, method)(*arguments)
        except Exception as error:
            if not sweep.does_not_fit(error):
                raise
            worker.forget()
            answer = DoesNotFit()
        connection.send(answer)


class Worker:
    """Holds the agent of the size at hand."""

    def __init__(self, backend: str, precision: str, *, gradient_steps: int, stored: int, round_seconds: float, seed: int) -> None:
        from bench import precisions

        precisions.use(backend, precision)
        self._backend, self._seed, self._round_seconds = backend, seed, round_seconds
        self._settings = precisions.PRECISIONS[precision].settings
        self._gradient_steps, self._stored = gradient_steps, stored
        self._timed: Timed | None = None
        self._calls = 0
        self._largest = 0

    def prepare(self, size: Size) -> Ready:
        """Make the agent of a size, and warm it up."""
        self.forget()
        if self._backend == "torch":
            torch: Any = importlib.import_module("torch")
            if torch.cuda.is_available():
                torch.cuda.reset_peak_memory_stats()
        agent = self._agent(size)
        self._timed = Timed(call=partial(agent.update, timestep=0, timesteps=1), synchronise=agent.synchronise, count=self._gradient_steps)
        first, self._calls = timing.warm(self._timed, self._round_seconds)
        return Ready(agent.execution, first)

    def round(self) -> Timing:
        """Time a round of the size at hand."""
        assert self._timed is not None, "round before prepare"
        return timing.stretch(self._timed, self._calls)

    def finish(self) -> Memory:
        """What the size at hand needed; its agent is let go."""
        used, of = peak_memory(self._backend)
        told_anew = of == "device" and self._backend == "torch"
        grew = told_anew or used > self._largest
        self._largest = max(self._largest, used)
        self.forget()
        return Memory(used, of) if grew else Memory(None, None)

    def forget(self) -> None:
        """Let go of the agent."""
        self._timed = None

    def errors(self, size: Size) -> Errors:
        """Losses and gradients of one batch against the float64 oracle, at the same parameters: no learning rate moves them."""
        from sacref.parity.compare import difference
        from sacref.parity.drivers import Oracle, Problem

        problem = Problem(
            hidden=(size.width, size.width), batch_size=size.batch, dtype="float32", seed=ERROR_SEED, learning_rate=(0.0, 0.0, 0.0)
        )
        agent = self._agent(size, learning_rate=0.0, execution="plain")
        agent.keep_gradients()
        truth = Oracle(problem, agent.arrays())
        batch, noise = next(problem.draws())
        metrics = agent.update_on(batch, noise)
        exact = truth.update(batch, noise)
        losses = [difference(metrics[name], exact.metrics[name], name).relative for name in ("critic_loss", "policy_loss", "entropy_loss")]
        found = agent.gradients()
        gradients = [difference(found[name], array, name).relative for name, array in exact.gradients.items()]
        return Errors(*(value if math.isfinite(value) else None for value in (max(losses), max(gradients))))

    def _agent(self, size: Size, **settings: Any) -> Any:
        from bench import synthetic

        return synthetic.agent(
            self._backend,
            batch_size=size.batch,
            width=size.width,
            stored=max(self._stored, size.batch),
            gradient_steps=self._gradient_steps,
            seed=self._seed,
            settings={**self._settings, **settings},
        )


def peak_memory(backend: str) -> tuple[int, Literal["device", "process"]]:
    """The largest number of bytes so far: of the device where it tells, else of the process."""
    if backend == "torch":
        torch: Any = importlib.import_module("torch")
        if torch.cuda.is_available():
            return int(torch.cuda.max_memory_allocated()), "device"
    else:
        jax: Any = importlib.import_module("jax")
        statistics: dict[str, int] = jax.devices()[0].memory_stats() or {}
        if "peak_bytes_in_use" in statistics:
            return int(statistics["peak_bytes_in_use"]), "device"
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return (largest if sys.platform == "darwin" else largest * 1024), "process"
