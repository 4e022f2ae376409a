"""The runs of a sweep on a Slurm cluster, through submitit: one array of jobs, each one run.

submitit and not Ray: Slurm is what a lab's cluster has, submitit needs nothing but its commands, and a job that is preempted or out of time
is requeued. Whether a run succeeded is read from its directory; submitit only says whether its job has ended.
"""

import importlib
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from sacref.cli.flags import SweepError
from sacref.cli.sweep.grid import Run, Slurm
from sacref.cli.sweep.process import SUBMITTED, Process, threads

SETTINGS: Mapping[str, type] = {
    "account": str,
    "additional_parameters": dict,
    "constraint": str,
    "cpus_per_task": int,
    "exclude": str,
    "gpus_per_node": int,
    "gres": str,
    "mem": str,
    "nodelist": str,
    "partition": str,
    "qos": str,
    "setup": list,
    "time": int,
}
"""Key of the table [slurm] -> its type: parameters of `sbatch`, `time` in minutes; `setup` are shell lines that come before the run, and
`additional_parameters` any other parameter."""

REQUEUES = 1000
"""Times that a run may be out of time. Each goes on from a checkpoint, so that there is no harm in many."""

CLEAN_STOP_SECONDS = 75
"""Seconds that a run may take to write its checkpoint; Slurm warns 90 seconds before it kills."""


def settings(file: Path, table: Slurm) -> dict[str, object]:
    """Check the table [slurm] of a sweep's file; needs no submitit.

    Raises:
        SweepError: for a key that there is not, or a value of another type.
    """
    found = {}
    for key, value in table.items():
        name = key.replace("-", "_")
        if name not in SETTINGS:
            raise SweepError(
                f"{file}: [slurm] has {key}, expected some of {', '.join(SETTINGS)}; others of sbatch stand in additional_parameters"
            )
        kind = SETTINGS[name]
        lines = all(isinstance(line, str) for line in value) if isinstance(value, list) else True
        if not isinstance(value, kind) or isinstance(value, bool) or not lines or (isinstance(value, int) and value < 1):
            wanted = {str: "a string", int: "a whole number of at least 1", list: "a list of shell lines", dict: "a table"}[kind]
            unit = " (minutes)" if name == "time" else ""
            raise SweepError(f"{file}: [slurm] {key} = {value!r}, expected {wanted}{unit}")
        found[name] = value
    return found


def require(file: Path, found: Mapping[str, object]) -> None:
    """Refuse a sweep that cannot be submitted.

    Raises:
        SweepError: if submitit or Slurm is missing, or the time limit.
    """
    _submitit()
    if shutil.which("sbatch") is None or shutil.which("srun") is None:
        raise SweepError("--sweep-on slurm: there is no sbatch and srun here: call it on the cluster, or leave out --sweep-on")
    if "time" not in found:
        raise SweepError(f"{file}: [slurm] has no time: say how many minutes a run may take, such as time = 240")


class Job:
    """A run on a node. Slurm's warning stops it cleanly, and requeued it goes on from its checkpoint."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self._child: subprocess.Popen[bytes] | None = None

    def __call__(self) -> int:
        """Run, and return the exit status."""
        # Slurm signals every process of a job: the run leaves preemption and warning to this process, which inherit as ignored.
        numbers = (signal.SIGTERM, _warning())
        before = [signal.signal(number, signal.SIG_IGN) for number in numbers]
        try:
            self._child = self.process.start()
        finally:
            for number, handler in zip(numbers, before, strict=True):
                signal.signal(number, handler)
        return self._wait(None)

    def checkpoint(self) -> object:
        """Stop the run and return what submitit requeues; called when Slurm warns."""
        if self._child is not None:
            self._child.send_signal(signal.SIGINT)
            self._wait(CLEAN_STOP_SECONDS)
        return _submitit().helpers.DelayedSubmission(Job(self.process))

    def _wait(self, seconds: float | None) -> int:
        # Polled: `checkpoint` is called from a signal handler within the first wait, and a waiting Popen can be waited for only once.
        assert self._child is not None
        began = time.monotonic()
        while self._child.poll() is None and (seconds is None or time.monotonic() - began < seconds):
            time.sleep(0.2)
        return self._child.returncode if self._child.returncode is not None else -1


class OnSlurm:
    """Jobs of a cluster.

    Args:
        runs: those to run.
        jobs: how many at a time; None leaves it to Slurm.
        found: what `settings` gave.
        folder: where submitit writes, shared with the nodes.
        submitted: name of a run -> the job that an earlier call submitted for it and that has not ended.
    """

    poll_seconds: float = 5.0

    def __init__(
        self, runs: Sequence[Run], jobs: int | None, found: Mapping[str, object], folder: Path, submitted: Mapping[str, str]
    ) -> None:
        submitit = _submitit()
        self._jobs: dict[str, Any] = {name: submitit.SlurmJob(folder, job_id) for name, job_id in submitted.items()}
        fresh = [run for run in runs if run.name not in submitted]
        if fresh:
            executor = submitit.SlurmExecutor(folder, max_num_timeout=REQUEUES)
            executor.update_parameters(job_name="sacref", array_parallelism=jobs or len(fresh), **found)
            # Not those of this shell's own job, if it is in one.
            with submitit.helpers.clean_env(), executor.batch():
                for run in fresh:
                    process = Process(run.directory, run.arguments, threads())
                    process.announce(f"{SUBMITTED}, whose own output is in {folder}")
                    self._jobs[run.name] = executor.submit(Job(process))

    @property
    def job_ids(self) -> dict[str, str]:
        """Map the names of runs to their jobs that have not ended."""
        return {name: str(job.job_id) for name, job in self._jobs.items()}

    def poll(self) -> tuple[set[str], dict[str, str]]:
        """Return the names of the runs that run, and of those that ended since, with what Slurm says of them."""
        ended = {name: f"Slurm job {job.job_id}" for name, job in self._jobs.items() if job.done()}
        for name in ended:
            del self._jobs[name]
        return {name for name, job in self._jobs.items() if job.state.upper() == "RUNNING"}, ended

    def stop(self) -> bool:
        """Leave the jobs alone: they do not need this process. Returns False: there is nothing to wait for."""
        return False


def not_ended(folder: Path, job_ids: Mapping[str, str]) -> dict[str, str]:
    """Return those of the jobs that are queued or running."""
    submitit = _submitit()
    return {name: job_id for name, job_id in job_ids.items() if not submitit.SlurmJob(folder, job_id).done(force_check=True)}


def cancel_command(job_ids: Mapping[str, str]) -> str:
    """Return the shell's command that cancels these jobs."""
    return shlex.join(["scancel", *sorted(set(job_ids.values()))])


def _warning() -> int:
    number: int = getattr(signal, f"SIG{_submitit().JobEnvironment.USR_SIG}")
    return number


def _submitit() -> ModuleType:
    try:
        return importlib.import_module("submitit")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] not in ("submitit", "cloudpickle"):
            raise
        raise SweepError(f'--sweep-on slurm needs submitit, which is not installed ({error}): pip install "sacref[cluster]"') from error
