"""The processes of the scaling suite: the ranks of one agent, which all do the same at the same time."""

import hashlib
import importlib
import multiprocessing
import os
import socket
import time
from collections.abc import Sequence
from functools import partial
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

from bench.core import entry, machine, runner, timing, worker
from bench.core.samples import Timing
from bench.core.timing import Timed
from bench.core.worker import DoesNotFit

LET_GO_SECONDS = 30.0
"""Seconds that a group may take to end."""
LONGEST_SECONDS = 600.0
"""Seconds that a rank may take to answer; compiling takes the longest."""


class LostGroup(RuntimeError):
    """A rank ended or did not answer, and with it its group."""


class Place(NamedTuple):
    """The place of a rank."""

    rank: int
    size: int
    port: int
    cores: tuple[int, ...]
    device: str
    """"cpu" or "cuda"."""

    def environment(self) -> dict[str, str]:
        """Return torchrun's variables, and those of as many threads as cores."""
        return {
            **machine.threads(len(self.cores)),
            "RANK": str(self.rank),
            "WORLD_SIZE": str(self.size),
            "LOCAL_RANK": str(self.rank),
            "LOCAL_WORLD_SIZE": str(self.size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(self.port),
        }


class Work(NamedTuple):
    """A size of update."""

    batch: int
    """Transitions of each rank."""
    width: int
    gradient_steps: int
    """In one call."""


def shares(cores: Sequence[int], size: int) -> list[tuple[int, ...]]:
    """Share the cores among the ranks: an equal number each, at least one, which several ranks share where there are fewer cores."""
    each = max(1, len(cores) // size)
    return [tuple(cores[(rank * each + offset) % len(cores)] for offset in range(each)) for rank in range(size)]


class Group:
    """The ranks of one agent, each in its own process.

    Args:
        backend: "torch" or "jax".
        size: number of ranks.
        cores: of all of them together.
        device: "cpu" or "cuda".
        stored: transitions in each rank's memory.
        seed: of weights and transitions.

    Raises:
        LostGroup: by every method, if a rank ended or does not answer.
    """

    def __init__(self, backend: str, size: int, cores: Sequence[int], device: str, *, stored: int, seed: int) -> None:
        self.size, self.threads = size, len(shares(cores, size)[0])
        port = _free_port()
        # Spawned, not forked: a fork copies the locks of the libraries' threads.
        context = multiprocessing.get_context("spawn")
        self._connections: list[Connection] = []
        self._processes = []
        self._let_go_seconds = LET_GO_SECONDS
        for rank, mine in enumerate(shares(cores, size)):
            here, there = multiprocessing.Pipe()
            place = Place(rank, size, port, mine, device)
            process = context.Process(target=serve, args=(there, backend, place, stored, seed), daemon=True)
            process.start()
            there.close()
            self._connections.append(here)
            self._processes.append(process)

    def prepare(self, work: Work) -> str:
        """Make the agent of a further size, and return the execution of its gradient steps."""
        chosen: list[str] = self.ask("prepare", work)
        return chosen[0]

    def stretch(self, work: Work, calls: int) -> Timing:
        """Time so many calls of a size's agent, which all ranks make together, until the last rank is done."""
        found: list[Timing] = self.ask("stretch", work, calls)
        return max(found, key=lambda timed: timed.seconds)

    def require_equal(self, work: Work) -> None:
        """Refuse ranks that have not learned the same, bit for bit."""
        if len(set(self.ask("learned", work))) > 1:
            raise LostGroup(f"the {self.size} ranks have not learned the same")

    def close(self) -> None:
        """End the processes."""
        for connection in self._connections:
            connection.close()
        end = time.monotonic() + self._let_go_seconds
        for process in self._processes:
            process.join(max(0.0, end - time.monotonic()))
            if process.is_alive():
                process.kill()
                process.join()

    def ask(self, method: str, *arguments: Any) -> list[Any]:
        """Call a method of `Rank` in all ranks, and return their answers in order."""
        answers: dict[int, Any] = {}
        try:
            for connection in self._connections:
                connection.send((method, *arguments))
            end = time.monotonic() + LONGEST_SECONDS
            while len(answers) < self.size:
                waited: dict[Any, int] = {each: rank for rank, each in enumerate(self._connections) if rank not in answers}
                # A rank that waits for one that ended would not answer: wait for the end of any as well.
                ended = [process.sentinel for process in self._processes]
                ready = wait([*waited, *ended], max(0.0, end - time.monotonic()))
                answers |= {waited[each]: each.recv() for each in waited if each in ready}
                if not ready:
                    raise TimeoutError
                if set(ready) & set(ended) and len(answers) < self.size:
                    raise EOFError
        except (EOFError, OSError) as error:
            self._let_go_seconds = 0.0
            how = f"did not answer within {LONGEST_SECONDS:,.0f} seconds" if isinstance(error, TimeoutError) else "ended"
            raise LostGroup(f"a rank of {self.size} {how} at {method}: what it printed says why") from error
        if any(isinstance(answer, DoesNotFit) for answer in answers.values()):
            self._let_go_seconds = 0.0
            raise LostGroup("does not fit the memory")
        return [answers[rank] for rank in range(self.size)]


def serve(connection: Connection, backend: str, place: Place, stored: int, seed: int) -> None:
    """Answer requests, each a method of `Rank` with its arguments, until there are no more; then leave the other ranks."""

    def join() -> Rank:
        os.environ.update(place.environment())
        machine.keep_to_cores(place.cores)
        return Rank(backend, place.device, stored=stored, seed=seed)

    # `join` leaves it to the end of the interpreter, which this process does not reach: multiprocessing ends it before.
    worker.serve(connection, join).leave()


class Rank:
    """One process of a group, which joins the others that its environment variables name."""

    def __init__(self, backend: str, device: str, *, stored: int, seed: int) -> None:
        from bench.core import precisions, synthetic

        importlib.import_module(f"sacref.{backend}.ranks").join(device)
        precisions.use(backend, "float32")
        self._make = partial(synthetic.agent, backend, stored=stored, seed=seed, device=device)
        self._backend = backend
        self._agents: dict[Work, Any] = {}

    def prepare(self, work: Work) -> str:
        self._agents[work] = self._make(batch_size=work.batch, width=work.width, gradient_steps=work.gradient_steps)
        chosen: str = self._agents[work].execution
        return chosen

    def stretch(self, work: Work, calls: int) -> Timing:
        agent = self._agents[work]
        call = partial(agent.update, timestep=0, timesteps=1)
        return timing.stretch(Timed(call=call, synchronise=agent.synchronise, count=work.gradient_steps), calls)

    def learned(self, work: Work) -> str:
        """Hash the arrays of a size's agent."""
        word = hashlib.sha256()
        for name, array in sorted(self._agents[work].arrays().items()):
            word.update(name.encode() + array.tobytes())
        return word.hexdigest()

    def forget(self) -> None:
        """Free the agents and the allocations of their sizes."""
        self._agents.clear()
        runner.release()

    def leave(self) -> None:
        """Free the agents, and leave the other ranks."""
        self.forget()
        if self._backend == "torch":
            distributed = importlib.import_module("torch.distributed")
            if distributed.is_initialized():
                distributed.destroy_process_group()
        else:
            distributed = importlib.import_module("jax.distributed")
            if distributed.is_initialized():
                distributed.shutdown()


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


if __name__ == "__main__":
    entry.refuse("bench.suites.scaling.worker", "bench scaling")
