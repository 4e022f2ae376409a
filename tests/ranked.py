"""Several ranks: a program in real processes that find each other as torchrun's do, or a function in threads of this one."""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from sacref.ranks import Ranks

ResultT = TypeVar("ResultT")

ROOT = Path(__file__).resolve().parents[1]
"""On the path of what runs here: a test runs in a directory of its own, from where `tests` is not found."""
TOO_LONG = 300.0
"""Seconds after which a test gives its processes up."""


@dataclass(frozen=True)
class Ended:
    """How one rank ended."""

    status: int
    out: str
    err: str


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def environment(rank: int, size: int, port: int) -> dict[str, str]:
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def start(command: Sequence[str], size: int, extra: Mapping[str, str] | None = None) -> list[subprocess.Popen[str]]:
    """`python` with the arguments `command`, as `size` ranks."""
    port = free_port()
    return [
        subprocess.Popen(
            [sys.executable, *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(rank, size, port) | dict(extra or {}),
        )
        for rank in range(size)
    ]


def finish(processes: Sequence[subprocess.Popen[str]]) -> list[Ended]:
    """What each process printed, and its exit status."""
    ended = []
    try:
        for process in processes:
            out, err = process.communicate(timeout=TOO_LONG)
            ended.append(Ended(process.returncode, out, err))
    finally:
        for process in processes:
            process.kill()
    return ended


def run(program: str, *arguments: str, size: int = 2) -> list[Ended]:
    """A program's text in `size` processes; each must end well."""
    ended = finish(start(["-c", program, *arguments], size))
    for rank, process in enumerate(ended):
        assert process.status == 0, f"rank {rank} ended with {process.status}: {process.err}"
    return ended


class ThreadRanks(Ranks):
    """A rank that is a thread of this process."""

    exchanges = 0

    def __init__(self, rank: int, barrier: threading.Barrier, shared: list[NDArray[np.uint8]]) -> None:
        self.rank, self.size = rank, barrier.parties
        self._barrier, self._shared = barrier, shared

    def _exchange(self, data: NDArray[np.uint8]) -> NDArray[np.uint8]:
        self.exchanges += 1
        self._shared[self.rank] = data
        self._barrier.wait(TOO_LONG)
        gathered = np.stack(self._shared)
        self._barrier.wait(TOO_LONG)
        return gathered


def together(size: int, function: Callable[[Ranks], ResultT]) -> list[ResultT]:
    """What `function` returns on each of `size` ranks. An error of one ends the others."""
    barrier = threading.Barrier(size)
    shared: list[NDArray[np.uint8]] = [np.zeros(0, np.uint8)] * size

    def run(rank: int) -> ResultT:
        try:
            return function(ThreadRanks(rank, barrier, shared))
        except BaseException:
            barrier.abort()
            raise

    with ThreadPoolExecutor(size) as pool:
        futures = [pool.submit(run, rank) for rank in range(size)]
        errors = [error for future in futures if (error := future.exception()) is not None]
    for error in sorted(errors, key=lambda error: isinstance(error, threading.BrokenBarrierError)):
        raise error
    return [future.result() for future in futures]
