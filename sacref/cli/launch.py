"""Start of the ranks of one machine: `sacref train --ranks N` is N processes of the same command, as torchrun would start them."""

import os
import queue
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

GRACE_SECONDS = 5.0
"""Time that ranks have to end by themselves, after one ended by an error and after SIGTERM, before they are killed."""
LOST_STATUS = 3
"""Exit status of a rank that ended because another one did."""
STARTED_HERE = "SACREF_LAUNCHED"
"""Environment variable; at 1, the process was started here, and this program says why a run ended."""
LAST_LINES = 40
"""Lines of a rank's output that are shown when it ends the run."""


class _Process:
    """Process of a rank. Rank 0 writes to the terminal; the output of others is kept, and shown if they end the run."""

    def __init__(self, rank: int, command: Sequence[str], environment: dict[str, str], ended: "queue.Queue[_Process]") -> None:
        self.rank = rank
        self.status: int | None = None
        self.lines: deque[str] = deque(maxlen=LAST_LINES)
        # A session of its own: Ctrl-C reaches it from here alone, once, and its environments' processes end with it.
        self._process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=None if rank == 0 else subprocess.PIPE,
            stderr=None if rank == 0 else subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        threading.Thread(target=self._wait, args=(ended,), daemon=True).start()

    def _read(self) -> None:
        if self._process.stdout is not None:
            with self._process.stdout as stream:
                self.lines.extend(stream)

    def _wait(self, ended: "queue.Queue[_Process]") -> None:
        status = self._process.wait()
        # A process that it left behind may hold the pipe open.
        self._reader.join(timeout=1.0)
        self.status = status
        ended.put(self)

    def send(self, number: int, *, to_group: bool = False) -> None:
        try:
            if to_group:
                os.killpg(self._process.pid, number)
            elif self.status is None:
                self._process.send_signal(number)
        except ProcessLookupError:
            pass  # it has ended meanwhile


def run(arguments: Sequence[str], ranks: int, *, run_dir: str = "RUN_DIR") -> int:
    """Run `sacref` with these arguments as `ranks` processes that find each other, and wait for them.

    Ctrl-C is passed on to all. When one ends by an error or a signal, all others are ended within seconds, and one message says which it
    was. OMP_NUM_THREADS, where it is not set, shares the cores out.

    Args:
        arguments: those of the command line.
        ranks: how many.
        run_dir: where the run is written, for the message.

    Returns:
        0 if all ended well; 130 after Ctrl-C; else the status of the rank that ended the run, 128 + number for a signal.
    """
    return supervise([sys.executable, "-m", "sacref", *arguments], ranks, run_dir=run_dir)


def supervise(command: Sequence[str], ranks: int, *, run_dir: str = "RUN_DIR") -> int:
    """Run any command as `ranks` processes; see `run`."""
    ended: queue.Queue[_Process] = queue.Queue()
    port = _free_port()
    processes: list[_Process] = []
    early: list[int] = []
    interrupted = False

    def pass_on(number: int, frame: FrameType | None) -> None:
        nonlocal interrupted
        interrupted = interrupted or number == signal.SIGINT
        if len(processes) < ranks:
            early.append(number)
            return
        for process in processes:
            process.send(number)

    # Before the first rank is started: a signal that came in between would end this process, and leave the ranks behind.
    with _handling(pass_on):
        for rank in range(ranks):
            processes.append(_Process(rank, command, _environment(rank, ranks, port), ended))
        for number in early:
            for process in processes:
                process.send(number)
        over: list[_Process] = []
        while len(over) < ranks:
            over.append(ended.get())
            if over[-1].status not in (0, 130):
                over += _end(processes, ended, ranks - len(over))
    expected = (0, 130, LOST_STATUS, -signal.SIGINT) if interrupted else (0, 130)
    failed = [process for process in over if process.status not in expected]
    if not failed:
        return 130 if interrupted or any(process.status for process in over) else 0
    return _report(failed, run_dir)


def _end(processes: Sequence[_Process], ended: "queue.Queue[_Process]", left: int) -> list[_Process]:
    """End the ranks that are left: they notice that one is lost, or get SIGTERM, or are killed."""
    over: list[_Process] = []
    for number in (None, signal.SIGTERM, signal.SIGKILL):
        if number is not None:
            for process in processes:
                process.send(number, to_group=True)
        deadline = time.monotonic() + GRACE_SECONDS
        while len(over) < left:
            try:
                over.append(ended.get(timeout=max(0.0, deadline - time.monotonic())))
            except queue.Empty:
                break
    return over


def _report(failed: Sequence[_Process], run_dir: str) -> int:
    """Say which rank ended the run, and why. Others that noticed have ended by themselves, or were ended."""
    # The first that was not merely the first to notice.
    cause = next((process for process in failed if process.status != LOST_STATUS), failed[0])
    status = cause.status or 0
    if cause.rank > 0 and not any(process.rank == 0 and process.status == cause.status for process in failed):
        for line in cause.lines:
            print(f"[rank {cause.rank}] {line.rstrip()}", file=sys.stderr)
    how = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
    print(
        f"sacref: rank {cause.rank} {how}, and all ranks have ended. To go on from the last checkpoint, if there is one: "
        f"sacref train --resume --run-dir {shlex.quote(run_dir)}",
        file=sys.stderr,
    )
    return 128 - status if status < 0 else status


def _environment(rank: int, ranks: int, port: int) -> dict[str, str]:
    """Return the variables that torchrun would set; see `sacref.ranks.launched`."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {
        "OMP_NUM_THREADS": str(max(1, cores // ranks)),
        **os.environ,
        "RANK": str(rank),
        "WORLD_SIZE": str(ranks),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        STARTED_HERE: "1",
    }


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
    return port


@contextmanager
def _handling(pass_on: "signal._HANDLER") -> Iterator[None]:
    """Pass signals on while the ranks run; Python takes them in the main thread alone."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
