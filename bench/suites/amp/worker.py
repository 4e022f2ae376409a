"""The processes of the precision suite: one backend in one precision, which is timed, and the judge of all errors."""

import hashlib
import importlib
import math
import resource
import sys
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np

from bench.core import entry, runner, timing
from bench.core.samples import Timing
from bench.core.timing import Timed

SEQUENCE_LENGTH = 32
"""Steps of the sequences that recurrent networks learn from."""
ERROR_SEED = 1
"""Seed of the batch and noise whose losses and gradients are compared."""
MOST_OVERFLOWS = 30
"""Gradient steps that float16 may skip until its loss scale is so small that nothing overflows."""


class Size(NamedTuple):
    """A size of update and a kind of networks."""

    batch: int
    """Rows: transitions, or sequences times their steps."""
    width: int
    """Width of both hidden layers, and of the cell below them."""
    recurrent: str | None = None
    """Kind of cell; None for feed-forward networks."""

    @property
    def sequence_length(self) -> int:
        """1 for feed-forward networks."""
        return SEQUENCE_LENGTH if self.recurrent else 1


class Ready(NamedTuple):
    """The answer for a size that is warm."""

    chosen: str
    """Execution of the gradient steps."""
    first_seconds: float


class Errors(NamedTuple):
    """Distance of one update's losses and gradients from float64."""

    loss: float | None
    """None where it is not finite."""
    gradient: float | None


class Memory(NamedTuple):
    """Peak memory of a size."""

    bytes: int
    of: Literal["device", "process"]


class Worker:
    """One backend in one precision, with the agent of the current size."""

    def __init__(self, backend: str, precision: str, *, stored: int, round_seconds: float, seed: int) -> None:
        """Load the backend.

        Args:
            backend, precision: of every agent.
            stored: transitions in the memory.
            round_seconds: least duration of a round.
            seed: of weights and transitions.
        """
        from bench.core import precisions

        precisions.use(backend, precision)
        self._make = partial(make_agent, backend, precision, stored=stored, seed=seed)
        self._backend, self._round_seconds = backend, round_seconds
        self._timed: Timed | None = None
        self._calls = 0

    def prepare(self, size: Size, gradient_steps: int) -> Ready:
        """Make and warm the agent of a size, which takes `gradient_steps` a call."""
        agent = self._make(size, gradient_steps=gradient_steps)
        self._timed = Timed(call=partial(agent.update, timestep=0, timesteps=1), synchronise=agent.synchronise, count=gradient_steps)
        first, self._calls = timing.warm(self._timed, self._round_seconds)
        return Ready(agent.execution, first)

    def round(self) -> Timing:
        """Time a round of the current size."""
        assert self._timed is not None, "round before prepare"
        return timing.stretch(self._timed, self._calls)

    def memory(self) -> Memory:
        """Return the peak memory so far."""
        return Memory(*peak_memory(self._backend))

    def forget(self) -> None:
        """Free the agent and the allocations of its size."""
        self._timed = None
        runner.release()


class Judge:
    """Comparison of one update of each backend and precision with the same update in float64, computed once a size."""

    def __init__(self, *, seed: int) -> None:
        """Take the seed of weights."""
        self._seed = seed
        self._truth: tuple[Any, Any] = None, None

    def errors(self, backend: str, precision: str, size: Size) -> Errors:
        """Compare losses and gradients of one batch with the float64 oracle, at the same parameters: the learning rate is 0."""
        from bench.core import precisions
        from sacref.parity.compare import difference
        from sacref.parity.drivers import Oracle, Problem

        problem = Problem(
            hidden=(size.width, size.width),
            batch_size=size.batch // size.sequence_length,
            recurrent=size.recurrent,
            recurrent_size=size.width,
            sequence_length=size.sequence_length,
            dtype="float32",
            seed=ERROR_SEED,
            learning_rate=(0.0, 0.0, 0.0),
        )
        precisions.use(backend, precision)
        agent = make_agent(backend, precision, size, stored=size.batch, seed=self._seed, learning_rate=0.0, execution="plain")
        agent.keep_gradients()
        batch, noise = next(problem.draws())
        start = agent.arrays()
        key = size, digest({name: array for name, array in start.items() if "_optimizer." not in name})
        if self._truth[0] != key:
            # The digest tells that both backends start from the same parameters.
            self._truth = key, Oracle(problem, start).update(batch, noise)
        exact = self._truth[1]
        for _ in range(MOST_OVERFLOWS + 1):
            metrics, found = agent.update_on(batch, noise), agent.gradients()
            # float16 first scales its losses too much for some: a step that overflows changes nothing but the scale.
            if all(np.isfinite(array).all() for array in found.values()):
                break
        losses = [difference(metrics[name], exact.metrics[name], name).relative for name in ("critic_loss", "policy_loss", "entropy_loss")]
        gradients = [difference(found[name], array, name).relative for name, array in exact.gradients.items()]
        return Errors(*(value if math.isfinite(value) else None for value in (max(losses), max(gradients))))

    def forget(self) -> None:
        """Free the truth and the allocations of the last size."""
        self._truth = None, None
        runner.release()


def make_agent(backend: str, precision: str, size: Size, *, stored: int, seed: int, gradient_steps: int = 1, **settings: Any) -> Any:
    """Make an agent of a size and precision; `settings` are further fields of `SACConfig`."""
    from bench.core import precisions, synthetic

    sequences = {"sequence_length": size.sequence_length} if size.recurrent else {}
    return synthetic.agent(
        backend,
        batch_size=size.batch // size.sequence_length,
        width=size.width,
        stored=max(stored, size.batch),
        gradient_steps=gradient_steps,
        seed=seed,
        settings={**precisions.PRECISIONS[precision].settings, **sequences, **settings},
        recurrent=size.recurrent,
        recurrent_size=size.width,
    )


def digest(arrays: dict[str, Any]) -> str:
    """Hash names and values."""
    word = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        word.update(name.encode() + np.ascontiguousarray(array).tobytes())
    return word.hexdigest()


def peak_memory(backend: str) -> tuple[int, Literal["device", "process"]]:
    """Return the peak memory in bytes: of the device where it tells, else of the process."""
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


if __name__ == "__main__":
    entry.refuse("bench.suites.amp.worker", "bench amp")
