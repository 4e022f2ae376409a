"""Checkpoints of a run on disk: their names, their writer, and the newest that is whole.

A checkpoint `checkpoints/agent_<timestep>` holds the agent, what it was in the middle of, the state of its environments, and how long the
files were that a run appends to. The replay memory of all of them is in `checkpoints/replay`, in segments. The last few are kept, and
`checkpoints/best`, of the best evaluation, without a memory. Of rank r, beyond the first one, names end in `.rank_<r>`.
"""

import contextlib
import logging
import os
import re
import stat
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from sacref.agent.agent import Agent
from sacref.agent.checkpoints import LIVE, REPLAY, rank_part
from sacref.algorithm.tree import map_leaves
from sacref.envs import snapshots
from sacref.envs.interface import Envs
from sacref.ranks import Ranks
from sacref.spec.arrays import NumpyArray
from sacref.storage import checkpoint, replay_log
from sacref.storage.checkpoint import CheckpointError
from sacref.storage.metric_files import appended
from sacref.storage.replay_log import Entry, ReplayLog
from sacref.storage.values import encode
from sacref.training.callbacks import Callbacks
from sacref.training.loop import LoopState

AnyAgent: TypeAlias = Agent[Any]

BEST = "best"
"""Name of the checkpoint of the best evaluation."""

logger: logging.Logger = logging.getLogger(__name__)


def checkpoints_of(directory: Path) -> Path:
    return directory / "checkpoints"


def finished_checkpoints(directory: Path) -> dict[int, Path]:
    """Map the timesteps of the checkpoints to their directories, oldest first."""
    return {timestep: path for timestep, rank, path in sorted(_written(directory)) if rank == 0}


def _written(directory: Path) -> list[tuple[int, int, Path]]:
    """Return timestep, rank and directory of each checkpoint, or part of one. A directory in which only other files are left is none."""
    return [found for found in _named(directory) if not checkpoint.holds_only_foreign(found[2])]


def _named(directory: Path) -> list[tuple[int, int, Path]]:
    """Return timestep, rank and path of each directory with a checkpoint's name."""
    found = []
    for path in checkpoints_of(directory).glob("agent_*"):
        timestep, _, rank = path.name.removeprefix("agent_").partition(".rank_")
        numbers = [timestep, rank or "0"]
        if path.is_dir() and all(number.isascii() and number.isdecimal() for number in numbers):
            found.append((int(timestep), int(rank or 0), path))
    return found


class CheckpointWriter:
    """Writer of a run's checkpoints, which deletes old ones.

    Args:
        agent: the agent that is written.
        ranks: all of them call the same methods, at the same timesteps.
        directory: the run's.
        envs: the training environments, whose state is captured where it can be.
        every: timesteps between checkpoints; none at 0.
        keep: how many of the last checkpoints stay.
        entry: of the replay log that the agent's memory was restored from; None for another memory.
        uncaptured: why the environments' state is not captured, which has been reported; None to try.
        callbacks: whose states are in each checkpoint, and who are told of it; None for none.
    """

    def __init__(
        self,
        agent: AnyAgent,
        ranks: Ranks,
        directory: Path,
        envs: Envs,
        *,
        every: int,
        keep: int,
        entry: Entry | None = None,
        uncaptured: str | None = None,
        callbacks: Callbacks | None = None,
    ) -> None:
        self._callbacks = callbacks
        self._agent, self._ranks, self._directory, self._envs = agent, ranks, directory, envs
        self._every, self._keep = every, keep
        self._replay = ReplayLog(rank_part(checkpoints_of(directory) / REPLAY, ranks.rank), entry)
        if entry is not None and agent.memory is not None:
            self._replay.restored(agent.memory)
        self._uncaptured = uncaptured
        self._reported = uncaptured is not None

    def after_timestep(self, state: LoopState, timesteps: int) -> None:
        """Write a checkpoint where one is due; the end's is for `write`.

        A checkpoint that cannot be written is reported and left out: training goes on, and the one before stays.
        """
        if self.is_due(state.timesteps, timesteps):
            try:
                self.write(state)
            except (OSError, CheckpointError) as error:
                if self._ranks.size > 1:
                    raise  # the others wait for this rank
                newest = max(finished_checkpoints(self._directory), default=None)
                logger.warning(
                    "no checkpoint at timestep %d: %s. Training goes on; %s",
                    state.timesteps,
                    error,
                    "there is none yet" if newest is None else f"agent_{newest} is the last one",
                )

    def is_due(self, finished: int, timesteps: int) -> bool:
        """Tell whether `after_timestep` writes a checkpoint after so many timesteps."""
        return self._every > 0 and finished % self._every == 0 and finished < timesteps

    def write(self, state: LoopState) -> None:
        """Write a checkpoint, and delete those that are too many.

        Raises:
            OSError, CheckpointError: if it cannot be written. Those that were there are as they were.
        """
        path = checkpoints_of(self._directory) / f"agent_{state.timesteps}"
        self._agent.save(path, replay=self._replay, live=self._live(state))
        self.delete_old()
        if self._callbacks is not None:
            self._callbacks.call("on_checkpoint")

    def write_best(self, steps: int, mean: float) -> None:
        """Write the agent, without its memory, as the best one so far, with the environment steps and the mean of its evaluation."""
        self._agent.save(checkpoints_of(self._directory) / BEST, keep_memory=False, live=({}, {"evaluated": [steps, mean]}))

    def _live(self, state: LoopState) -> tuple[dict[str, Any], dict[str, Any]]:
        arrays: dict[str, NumpyArray] = {}
        value = {
            "agent": self._agent.live_state(),
            **map_leaves(self._agent.to_numpy, {"observations": state.observations, "states": state.states}),
        }
        metadata: dict[str, object] = {
            "live": encode(value, "live", arrays),
            "files": lengths(self._directory),
            "steps": self._agent.environment_steps(state.timesteps),
        }
        if self._callbacks is not None:
            metadata["callbacks"] = self._callbacks.state(arrays)
        groups = {LIVE[0]: arrays}
        snapshot = self._uncaptured or snapshots.capture(self._envs)
        if isinstance(snapshot, str):
            metadata["not_captured"] = snapshot
            if not self._reported and self._ranks.rank == 0:
                logger.info("a resumed run would begin its episodes anew: %s", snapshot)
            self._reported = True
        else:
            groups[LIVE[1]], metadata["environment"] = snapshot.arrays, snapshot.metadata
        return groups, metadata

    def delete_old(self) -> None:
        """Delete this rank's parts of the checkpoints that are too many, and the segments that none needs."""
        own = [(timestep, path) for timestep, rank, path in sorted(_written(self._directory)) if rank == self._ranks.rank]
        for _, path in own[: -self._keep]:
            checkpoint.remove(path)
        _prune(self._replay, [path for _, path in own[-self._keep :]])
        if self._ranks.rank == 0:
            self._delete_departed({timestep for timestep, _ in own[-self._keep :]})

    def _delete_departed(self, whole: Collection[int]) -> None:
        """Delete what ranks that are no more wrote of checkpoints that are not among the `whole` ones, nor newer, with its segments."""
        left: dict[int, list[Path]] = {}
        for timestep, rank, path in _written(self._directory):
            if rank >= self._ranks.size:
                if timestep not in whole and timestep < max(whole, default=0):
                    checkpoint.remove(path)
                else:
                    left.setdefault(rank, []).append(path)
        for log in checkpoints_of(self._directory).glob(f"{REPLAY}.rank_*"):
            if _REPLAY.fullmatch(log.name) and (rank := int(log.name.rpartition("_")[2])) >= self._ranks.size:
                _prune(ReplayLog(log), left.get(rank, []))
                with contextlib.suppress(OSError):  # not empty
                    log.rmdir()


def _prune(log: ReplayLog, kept: Sequence[Path]) -> None:
    """Delete the segments of a log that none of the checkpoints `kept` needs; none as long as one of these cannot be read."""
    try:
        entries = [_read_entry(path) for path in kept]
    except CheckpointError:
        return
    log.prune([entry for entry in entries if entry is not None])


def evaluation_of_best(directory: Path) -> tuple[int, float] | None:
    """Read environment steps and mean of the evaluation that `checkpoints/best` is of; None where it is not there, or does not say."""
    try:
        steps, mean = checkpoint.read(checkpoints_of(directory) / BEST, only=()).metadata["evaluated"]
        return int(steps), float(mean)
    except (CheckpointError, OSError, KeyError, TypeError, ValueError):
        return None


def entry_of(path: Path) -> Entry | None:
    """Read a checkpoint's entry of the replay memory in segments; None if it has none, or cannot be read."""
    try:
        return _read_entry(path)
    except CheckpointError:
        return None


def _read_entry(path: Path) -> Entry | None:
    """Read a checkpoint's entry of the replay memory in segments; None if it has none.

    Raises:
        CheckpointError: if the checkpoint cannot be read, or its entry is none.
    """
    entry: Entry | None = checkpoint.read(path, only=()).metadata.get("replay")
    if entry is not None:
        replay_log.segments_of(path, entry)
    return entry


def slots_of(entry: Entry | None) -> int:
    """Return the rows that the replay memory of an entry had room for, of each environment; 0 where it does not say."""
    slots = (entry or {}).get("slots")
    return slots if type(slots) is int and slots > 0 else 0


def holds_memory(path: Path) -> bool:
    """Return whether a checkpoint has a replay memory, in it or in segments beside it."""
    return (path / "memory.safetensors").is_file() or entry_of(path) is not None


def newest_whole(ranks: Ranks, directory: Path) -> int:
    """Return the timestep of the newest checkpoint that is whole, on all ranks.

    Damage is found by checksums, of the segments of its replay memory too. A warning says which checkpoint is left out, and why.

    Raises:
        CheckpointError: if none is whole, with what is wrong with the newest.
    """
    first: str | None = None
    for timestep, path in sorted(finished_checkpoints(directory).items(), reverse=True):
        own = rank_part(path, ranks.rank)
        reason = None
        try:
            for part in dict.fromkeys((path, own if own.is_dir() else path)):
                checkpoint.verify(part)
                said = checkpoint.read(part, only=()).metadata.get("replay")
                log = part.parent / rank_part(REPLAY, ranks.rank if part == own else 0).name
                for segment in [] if said is None else replay_log.segments_of(log, said):
                    replay_log.verify(log, segment)
        except CheckpointError as error:
            reason = str(error)
        reasons = [said for said in ranks.gather(reason) if said is not None]
        if not reasons:
            return timestep
        first = first or reasons[0]
        if ranks.rank == 0:
            logger.warning("checkpoint agent_%d is left out, and the one before it taken: %s", timestep, reasons[0])
    raise CheckpointError(f"{checkpoints_of(directory)} holds no sound checkpoint: {first}")


def require_own(directory: Path) -> None:
    """Refuse a run directory in which something that a resumed run changes is not its own: a link leads to another's files.

    Raises:
        CheckpointError: naming what is a link, a pipe or a device.
    """
    where = checkpoints_of(directory)
    files = [*appended(directory), directory / "curve.png"]
    folders = [where, *where.glob("agent_*"), *where.glob(f"{BEST}*"), *where.glob(f"{REPLAY}*")]
    for path in [*files, *folders]:
        mode = path.lstat().st_mode if os.path.lexists(path) else None
        if mode is not None and not (stat.S_ISREG(mode) if path in files else stat.S_ISDIR(mode)):
            kind = "a link" if stat.S_ISLNK(mode) else "something else"
            raise CheckpointError(
                f"{path} is {kind}, expected {'a file' if path in files else 'a directory'} of the run's own, as a resumed run "
                f"writes there: put there what it should be, or move it away"
            )


def require_free_after(directory: Path, timestep: int) -> None:
    """Refuse a run directory in which the checkpoints after a timestep, which are deleted and written again, hold other files as well.

    Raises:
        CheckpointError: naming one of them.
    """
    for later, _, path in _named(directory):
        if later > timestep and (name := checkpoint.foreign(path)) is not None:
            raise CheckpointError(f"{path} holds {name!r}, which no run of sacref wrote, and the resumed run writes there: move it away")


def lengths(directory: Path) -> dict[str, int]:
    """Return the sizes of the files that a run appends to, in bytes."""
    return {file.name: file.stat().st_size for file in appended(directory) if file.is_file()}


def drop_after(directory: Path, timestep: int, steps: int, files: Mapping[str, object]) -> None:
    """Take back what a run wrote after a checkpoint, of so many environment steps, in which its files had the lengths `files`.

    Later event files go, and `best`, if its evaluation comes again: that may have another result.
    """
    for later, _, path in _written(directory):
        if later > timestep:
            checkpoint.remove(path)
    best = evaluation_of_best(directory)
    if best is not None and best[0] > steps:
        logger.warning(
            "checkpoints/best was of step %d, which comes again, and is deleted: the next evaluation is the best one then", best[0]
        )
        # With the one before, where a replacement was cut off.
        for path in [path for pattern in (f"{BEST}*", f".{BEST}*") for path in checkpoints_of(directory).glob(pattern)]:
            checkpoint.remove(path)
    for file in appended(directory):
        length = files.get(file.name)
        if not file.is_file():
            continue
        if type(length) is not int or length < 0:
            file.unlink()
        elif file.stat().st_size > length:
            os.truncate(file, length)


def writings(directory: Path) -> list[Path]:
    """Return all checkpoints and segments of a run, those that a killed process left half written too."""
    where = checkpoints_of(directory)
    found = [*where.glob("*"), *(segment for log in where.glob(f"{REPLAY}*") if _REPLAY.fullmatch(log.name) for segment in log.glob("*"))]
    return sorted(path for path in found if _WRITING.fullmatch(path.name))


def clear(directory: Path) -> None:
    """Delete a run's checkpoints, and what a killed process left of those that it was writing. Files that are no run's stay."""
    where = checkpoints_of(directory)
    for path in writings(directory):
        checkpoint.remove(path)
    for path in (*(path for path in where.glob(f"{REPLAY}*") if _REPLAY.fullmatch(path.name)), where):
        if path.is_dir() and not path.is_symlink() and not any(path.iterdir()):
            path.rmdir()


_RANK = r"(\.rank_[0-9]+)?"
_REPLAY = re.compile(REPLAY + _RANK)
_NAME = rf"(agent_[0-9]+{_RANK}|{BEST}{_RANK}|segment_[0-9]+)"
_WRITING = re.compile(rf"{_NAME}|\.{_NAME}\.([0-9a-f]{{16}}\.tmp|old)")
"""Name of a checkpoint or segment, or of one that was being written or replaced."""
