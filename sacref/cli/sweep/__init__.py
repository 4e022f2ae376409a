"""Many runs from one file: `sacref train --sweep FILE`, on this machine or on a Slurm cluster.

Every run is the command `sacref train` in a process of its own, so that where it runs does not change its numbers. A run's directory
follows from its values in the grid. Called again, a sweep skips what is finished and goes on with what was cut off.
"""

import fcntl
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Literal

from rich.console import Console

from sacref.cli.flags import SweepError
from sacref.cli.sweep import grid, slurm
from sacref.cli.sweep.display import Display, plot_command, returns_table
from sacref.cli.sweep.grid import FILE, Plan, Run
from sacref.cli.sweep.local import Local
from sacref.cli.sweep.process import last_evaluation, reason, stopped_by_a_callback
from sacref.cli.sweep.record import Record, finished
from sacref.cli.sweep.slurm import OnSlurm

LOCK = ".lock"
SLURM = ".slurm"


def run(
    file: Path,
    *,
    directory: Path | None = None,
    on: Literal["local", "slurm"] = "local",
    jobs: int | None = None,
    progress: bool = True,
) -> int:
    """Train all runs of a file that are not finished.

    Ctrl-C stops local runs cleanly, each with a checkpoint; jobs on a cluster go on without this process, and the next call finds them.

    Args:
        file: TOML or JSON; see "Sweeps" in docs/seeds.md.
        directory: of the sweep; None is `runs/` with the file's name.
        on: "local" for processes of this machine, "slurm" for jobs of a cluster.
        jobs: runs at a time; None is one here, and as many as Slurm lets run there.
        progress: show how far the runs are.

    Returns:
        Exit status: 0 if all runs are done, 1 if some failed, 130 after Ctrl-C.

    Raises:
        SweepError: if the sweep cannot be started as asked; then nothing was started.
    """
    if jobs is not None and jobs < 1:
        raise SweepError(f"--sweep-jobs is {jobs}, expected at least 1")
    file = file.expanduser()
    directory = (directory if directory is not None else Path("runs") / file.stem).expanduser().absolute()
    plan = grid.read(file, directory)
    settings = slurm.settings(file, plan.slurm)
    if on == "slurm":
        slurm.require(file, settings)
    directory.mkdir(parents=True, exist_ok=True)
    with _locked(directory) as held, _interruption() as pressed:
        record = Record(directory, file.absolute(), on, plan.runs)
        todo = record.named("waiting")
        submitted = _submitted(directory, record, todo, on)
        place: Local | OnSlurm
        if on == "slurm":
            place = OnSlurm(todo, jobs, settings, directory / SLURM, submitted)
            record.update({name: {"job": job_id} for name, job_id in place.job_ids.items()})
        else:
            place = Local(todo, jobs or 1, held)
        with Display(record, len(plan.runs), enabled=progress) as display:
            if len(todo) < len(plan.runs):
                display.line(f"{len(plan.runs) - len(todo)} of {len(plan.runs)} runs are finished already")
            interrupted = _watch(place, todo, record, display, pressed)
    _conclude(plan, record, directory)
    if interrupted:
        _say_how_to_go_on(place, directory)
        return 130
    return 1 if record.named("failed") else 0


def _watch(place: Local | OnSlurm, todo: Sequence[Run], record: Record, display: Display, pressed: Callable[[], int]) -> bool:
    """Wait until all runs have ended, and record their progress. Returns whether it was interrupted."""
    unfinished = {run.name: run for run in todo}
    presses = 0
    while unfinished:
        names, ended = place.poll()
        running = [name for name in unfinished if name in names]
        for name in running:
            if record[unfinished[name]]["state"] != "running":
                display.line(f"{name} running")
        record.update({name: {"state": "running", "evaluation": last_evaluation(unfinished[name].directory)} for name in running})
        for name, how in ended.items():
            run = unfinished.pop(name)
            record.update({name: _outcome(run, how, interrupted=presses > 0)})
            display.ended(run)
        display.refresh()
        if pressed() > presses:
            presses = pressed()
            if not place.stop():
                break
            display.line("stopping cleanly: the runs write their checkpoints; Ctrl-C again stops them at once")
        if presses and not running:
            break
        if unfinished:
            _sleep(place.poll_seconds, pressed, presses)
    return presses > 0


def _outcome(run: Run, how: str, *, interrupted: bool) -> dict[str, object]:
    """Return the fields of a run that has ended: its directory says whether it is finished, or ended by a callback."""
    evaluation = last_evaluation(run.directory)
    if finished(run) or (evaluation is not None and stopped_by_a_callback(run.directory)):
        return {"state": "done", "evaluation": evaluation, "job": None, "error": None}
    if interrupted:
        return {"state": "waiting", "evaluation": evaluation, "job": None, "error": None}
    return {"state": "failed", "evaluation": evaluation, "job": None, "error": f"{how}: {reason(run.directory)}"}


def _submitted(directory: Path, record: Record, todo: Sequence[Run], on: str) -> dict[str, str]:
    """Return the jobs of earlier calls that have not ended.

    Raises:
        SweepError: if there are any and the runs shall run here.
    """
    known = {run.name: str(record[run]["job"]) for run in todo if record[run]["job"] is not None}
    if not known:
        return {}
    alive = slurm.not_ended(directory / SLURM, known)
    record.update({name: {"job": None} for name in known if name not in alive})
    if alive and on == "local":
        raise SweepError(
            f"{len(alive)} runs of {directory} are in Slurm's queue: watch them with --sweep-on slurm, or cancel them first with "
            f"`{slurm.cancel_command(alive)}`"
        )
    return alive


def _conclude(plan: Plan, record: Record, directory: Path) -> None:
    record.write()
    returns = record.returns()
    console = Console()
    if returns:
        console.print(returns_table(returns))
    for run in record.named("failed"):
        print(f"failed: {run.name}: {record[run]['error']}")
    print(f"{len(record.named('done'))} of {len(plan.runs)} runs are done, {len(record.named('failed'))} failed: {directory / FILE}")
    command = plot_command(plan.runs, directory)
    if command is not None and len(record.named("done")) == len(plan.runs):
        print(f"to draw the curves: {command}")


def _say_how_to_go_on(place: Local | OnSlurm, directory: Path) -> None:
    if isinstance(place, OnSlurm):
        print(f"the jobs go on; to watch them again: the same command; to cancel them: {slurm.cancel_command(place.job_ids)}")
    else:
        print("to go on: the same command")


@contextmanager
def _locked(directory: Path) -> Iterator[int]:
    """Hold the sweep's directory; yields the file descriptor that holds it, also in a process that inherits it.

    Raises:
        SweepError: if another process holds it.
    """
    with open(directory / LOCK, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise SweepError(
                f"{directory} is in use by another sweep, or by a run that one left behind when it was killed: wait for it, or end it"
            ) from error
        yield file.fileno()


@contextmanager
def _interruption() -> Iterator[Callable[[], int]]:
    """Count how often Ctrl-C was pressed, or the process was asked to end."""
    presses = 0

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal presses
        presses += 1

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: presses
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _sleep(seconds: float, pressed: Callable[[], int], presses: int) -> None:
    """Sleep until Ctrl-C is pressed once more than `presses` times: a signal does not end Python's own sleep."""
    end = time.monotonic() + seconds
    while pressed() == presses and (left := end - time.monotonic()) > 0:
        time.sleep(min(left, 0.1))
