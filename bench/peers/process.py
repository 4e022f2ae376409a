"""The process of a contender: it is started, asked to advance, and ended."""

import contextlib
import importlib.util
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec

from bench.core import machine
from bench.peers import Peer, environments
from bench.peers.setting import Setting
from bench.suites.throughput.samples import Round

ANSWER_SECONDS = 900.0
"""Seconds after which a contender that compiles, or takes one stretch, counts as hung."""
CLOSE_SECONDS = 5.0


class MissingError(RuntimeError):
    """A contender that cannot be run, or stopped running; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Description:
    """A contender's description of itself, from inside its process."""

    env: str
    execution: str
    settings: dict[str, Any]
    accelerator: str | None
    libraries: dict[str, str]
    threads: int


def interpreter(peer: Peer, folder: Path) -> Path:
    """Return the Python of a contender: that of its environment, else this one if it has the contender's imports.

    Raises:
        MissingError: if there is none.
    """
    here = folder / peer.environment if peer.environment else None
    if here is not None and (here / environments.FAILED).exists():
        raise MissingError((here / environments.FAILED).read_text(encoding="utf-8"))
    if here is not None and environments.python(here).exists():
        return environments.python(here)
    lacking = [name for name in peer.needs if importlib.util.find_spec(name) is None]
    if lacking:
        hint = f"; no environment {peer.environment}: run `make bench-peers`" if here else ""
        raise MissingError(f"{', '.join(lacking)} not installed{hint}")
    return Path(sys.executable)


def script_of(peer: Peer, scripts: Mapping[str, Path]) -> dict[str, str]:
    """Return the option with the path of a contender's script; none for a contender that is no script.

    Raises:
        MissingError: if no path is given.
    """
    if peer.script is None:
        return {}
    if peer.script not in scripts:
        raise MissingError(f"no path of its script was given: set {peer.script}, or pass --{peer.script.partition('_')[0].lower()}")
    return {"script": str(scripts[peer.script])}


class Process:
    """A running contender. It waits on its stdin but for the time of `start` and `advance`."""

    def __init__(self, command: Sequence[str], *, threads: int) -> None:
        """Start `command`, whose stdin and stdout speak the protocol of `bench.peers.gate`, in its own folder.

        Args:
            command: the program.
            threads: of each library's thread pool.
        """
        self._folder = tempfile.TemporaryDirectory(prefix="sacref-bench-", ignore_cleanup_errors=True)
        folder = Path(self._folder.name)
        self._log = folder / "output.txt"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                cwd=folder,
                env=variables(os.environ, threads, folder),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                # Ctrl-C is for the program that asks, which then ends the contenders.
                start_new_session=True,
            )
        self._unread = b""

    def start(self) -> Description:
        """Wait until the contender is about to take its first step.

        Raises:
            MissingError: if it ended or reported an error.
        """
        return Description(**self._answer())

    def advance(self, steps: int) -> Round:
        """Train for `steps` environment steps.

        Raises:
            MissingError: if it ended or reported an error.
        """
        return msgspec.convert({"waited_seconds": None, "waited_cpu_seconds": None, **self.ask(f"advance {steps}")}, Round)

    def ask(self, request: str) -> dict[str, Any]:
        """Return the answer to a request of `bench.peers.gate`.

        Raises:
            MissingError: if it ended or reported an error.
        """
        assert self._process.stdin is not None
        # A contender that has ended gives the reason in its output, which is read next.
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(f"{request}\n".encode())
            self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """End the contender and whatever it started, and delete its files."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(CLOSE_SECONDS)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._process.stdout.close()
        self._folder.cleanup()

    def _answer(self) -> dict[str, Any]:
        line = self._line()
        try:
            value = json.loads(line)
        except ValueError:
            value = {"error": f"answered {line!r}, expected a line of JSON"}
        if "error" in value:
            raise MissingError(value["error"])
        assert isinstance(value, dict)
        return value

    def _line(self) -> bytes:
        assert self._process.stdout is not None
        until = time.monotonic() + ANSWER_SECONDS
        while b"\n" not in self._unread:
            ready, _, _ = select.select([self._process.stdout], [], [], max(0.0, until - time.monotonic()))
            if not ready:
                raise MissingError(f"no answer within {ANSWER_SECONDS:.0f} s")
            more = os.read(self._process.stdout.fileno(), 65536)
            if not more:
                raise MissingError(self._last_words())
            self._unread += more
        line, _, self._unread = self._unread.partition(b"\n")
        return line

    def _last_words(self) -> str:
        status = self._process.wait()
        lines = [line for line in self._log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        return f"its process ended with status {status}" + (f": {lines[-1].strip()}" if lines else "")


def open_process(
    peer: Peer,
    setting: Setting,
    *,
    cores: Sequence[int],
    folder: Path,
    scripts: Mapping[str, Path],
    worker: str = "bench.peers.worker",
) -> Process:
    """Start a contender's process, bound to `cores`.

    Args:
        peer: the contender.
        setting: the task.
        cores: cores that it is bound to.
        folder: of the peers' environments.
        scripts: environment variable -> path of the script of a peer that is one.
        worker: module of the process.

    Raises:
        MissingError: if it has no interpreter or no script.
    """
    python = interpreter(peer, folder)
    job = {
        "cores": list(cores),
        "module": peer.module,
        "library": peer.library,
        "options": {**peer.options, **script_of(peer, scripts)},
        "setting": asdict(setting),
    }
    return Process([str(python), "-m", worker, json.dumps(job)], threads=len(cores))


def variables(inherited: Mapping[str, str], threads: int, folder: Path) -> dict[str, str]:
    """Return the environment variables of a contender: threads, the path of this package, and empty caches, so that each one compiles.

    OMP_WAIT_POLICY stays as it is: "passive" puts a thread to sleep that waits for its share of a product, which slows down two threads.
    Without it a waiting contender uses a few milliseconds after its turn, which its record holds, and nothing later.
    """
    paths = [str(machine.ROOT), *filter(None, [inherited.get("PYTHONPATH")])]
    return {
        **inherited,
        **machine.threads(threads),
        "PYTHONPATH": os.pathsep.join(paths),
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
        "XDG_CACHE_HOME": str(folder / "cache"),
    }
