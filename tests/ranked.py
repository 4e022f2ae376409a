"""Starts a program in several real processes that find each other as torchrun's do."""

import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

TOO_LONG = 120.0
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
