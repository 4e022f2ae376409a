"""Runs of a sweep as processes of this machine, several at a time."""

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence

from sacref.cli.sweep.grid import Run
from sacref.cli.sweep.process import Process, threads


class Local:
    """Processes of this machine.

    Args:
        runs: those to run.
        jobs: how many at a time.
        held: a file descriptor that every process inherits: the sweep's lock holds until the last of them has ended.
    """

    poll_seconds: float = 0.5

    def __init__(self, runs: Sequence[Run], jobs: int, held: int) -> None:
        self._waiting = list(runs)
        self._slots: list[tuple[Run, subprocess.Popen[bytes]] | None] = [None] * jobs
        self._held = held
        self._presses = 0

    def poll(self) -> tuple[set[str], dict[str, str]]:
        """Start what there is room for. Returns the names of the runs that run, and of those that ended since, with their exit status."""
        ended = {}
        for slot, taken in enumerate(self._slots):
            if taken is not None and taken[1].poll() is not None:
                ended[taken[0].name] = _status(taken[1].returncode)
                taken = self._slots[slot] = None
            if taken is None and self._waiting and not self._presses:
                run = self._waiting.pop(0)
                process = Process(run.directory, run.arguments, environment(slot, len(self._slots), run.flags))
                try:
                    # A session of its own: the terminal's Ctrl-C must reach a run once, from here, as a second one ends it at once.
                    self._slots[slot] = run, process.start(start_new_session=True, pass_fds=(self._held,))
                except OSError as error:  # a full disk
                    ended[run.name] = f"not started ({error})"
        return {taken[0].name for taken in self._slots if taken is not None}, ended

    def stop(self) -> bool:
        """Ask the runs to stop cleanly; at once when asked a second time. Returns whether there are any to wait for."""
        self._presses += 1
        for taken in self._slots:
            if taken is not None:
                taken[1].send_signal(signal.SIGINT if self._presses < 3 else signal.SIGTERM)
        return any(taken is not None for taken in self._slots)


def environment(slot: int, jobs: int, flags: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Return the variables of the run in a slot: one thread, and of the GPUs that CUDA_VISIBLE_DEVICES lists the slot's own."""
    variables = threads()
    if jobs > 1:
        # Two runs beside each other on one GPU: neither may take its memory whole.
        variables["XLA_PYTHON_CLIENT_PREALLOCATE"] = os.environ.get("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
        gpus = [gpu for gpu in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu]
        if gpus and "device" not in flags:
            variables["CUDA_VISIBLE_DEVICES"] = gpus[slot % len(gpus)]
    return variables


def _status(code: int) -> str:
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
