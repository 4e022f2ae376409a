"""A replay memory on disk, in segments: each write adds the rows since the last one, so that its cost does not grow with the memory.

A segment is a checkpoint of its own (`sacref.storage.checkpoint`), `segment_<number>` in the log's directory, and is never changed.
An `Entry` in the metadata of the checkpoint that the memory is part of names the segments that it needs, oldest first.
"""

import itertools
import re
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from sacref.algorithm.replay import filled_rows
from sacref.spec.arrays import NumpyArray
from sacref.storage import checkpoint
from sacref.storage.checkpoint import Checkpoint, CheckpointError, short

Entry: TypeAlias = dict[str, Any]
"""JSON: `slots`, `envs`, `head` and `size` of each environment, and the segments: `number`, `token`, `first`, `count`."""
Segment: TypeAlias = dict[str, Any]

LARGEST_LOG = 100_000
"""Segments that one entry may name: no run writes so many."""
LARGEST_NUMBER = 2**53
_NUMBERED = re.compile("segment_(0|[1-9][0-9]{0,14})")


class Rows(Protocol):
    """A replay memory, as the log sees it."""

    num_envs: int
    added: int
    """Number of timesteps that were ever stored."""

    @property
    def slots(self) -> int: ...
    def counters(self) -> tuple[NumpyArray, NumpyArray]:
        """Return head and size, `(envs,)` each, on the host."""
        ...

    def rows(self, index: NumpyArray) -> dict[str, NumpyArray]:
        """Copy rows of the memory to the host, by name."""
        ...


class ReplayLog:
    """Writer of a memory's new rows.

    Args:
        directory: for the segments. entry: of the checkpoint that the memory was restored from; None for a memory that is not on disk yet.
    """

    def __init__(self, directory: Path, entry: Entry | None = None) -> None:
        self.directory: Path = directory
        self._entry = entry
        self._added: int | None = None
        """`memory.added` at the last writing; None before it."""

    def append(self, memory: Rows) -> tuple[Entry, int]:
        """Write the rows since the last `commit`.

        Returns:
            The entry for the checkpoint, and `memory.added`: both for `commit`, once the checkpoint is on disk.

        Raises:
            CheckpointError, OSError: if the segment cannot be written; nothing that a checkpoint needs is touched.
        """
        head, size = (np.asarray(array, np.int64) for array in memory.counters())
        slots, before, added = memory.slots, self._entry, memory.added
        entry: Entry = {"slots": slots, "envs": memory.num_envs, "head": head.tolist(), "size": size.tolist(), "segments": []}
        if before is None or self._added is None or added - self._added >= slots or not self._has(before):
            count = size  # all of it
        else:
            count = (head - np.asarray(before["head"], np.int64)) % slots
            entry["segments"] = list(before["segments"])
        first = (head - count) % slots
        if count.any():
            number = 1 + max(self._numbers(), default=-1)
            segment = {"number": number, "first": first.tolist(), "count": count.tolist()}
            token = checkpoint.write(_segment(self.directory, number), {"rows": memory.rows(_index(first, count, slots))}, segment)
            entry["segments"].append({**segment, "token": token})
        entry["segments"] = _needed(entry["segments"], slots)
        return entry, added

    def _has(self, entry: Entry) -> bool:
        """Tell whether the segments of an entry are still there: somebody may have deleted the directory."""
        return all((_segment(self.directory, segment["number"]) / checkpoint.MANIFEST).is_file() for segment in entry["segments"])

    def commit(self, entry: Entry, added: int) -> None:
        """Begin the next segment behind `entry`, whose checkpoint is on disk."""
        self._entry, self._added = entry, added

    def restored(self, memory: Rows) -> None:
        """Begin the next segment behind the rows of `memory`, which holds what the log's entry says."""
        self._added = memory.added

    def _numbers(self) -> list[int]:
        """List the numbers of the segments that are there, those of other checkpoints included."""
        names = [path.name for path in self.directory.glob("segment_*")]
        return [int(name.removeprefix("segment_")) for name in names if _NUMBERED.fullmatch(name)]

    def prune(self, kept: Iterable[Entry]) -> None:
        """Delete the segments that none of the entries names."""
        needed = {segment["number"] for entry in kept for segment in entry["segments"]}
        for number in self._numbers():
            if number not in needed:
                checkpoint.remove(_segment(self.directory, number))


def read(directory: Path, entry: Entry, memory: Rows) -> dict[str, NumpyArray]:
    """Read the arrays of a memory, for `memory.set_arrays`. No more is allocated than it has room for.

    Raises:
        CheckpointError: if a segment is missing, damaged, or another than the entry says, or the memory is smaller than the one written.
    """
    slots, segments = _checked(directory, entry, memory)
    head, size = (np.asarray(entry[name], np.int64) for name in ("head", "size"))
    filled = filled_rows(size)
    like = memory.rows(np.zeros(0, np.int64))
    arrays = {name: np.zeros((filled, *rows.shape[1:]), rows.dtype) for name, rows in like.items()}
    written = np.zeros(filled, np.bool_)
    for segment in segments:
        path = _segment(directory, segment["number"])
        index = _index(np.asarray(segment["first"]), np.asarray(segment["count"]), slots)
        if index.max(initial=0) >= filled:
            raise CheckpointError(f"{path} has rows that the checkpoint's memory does not have: use the checkpoint before")
        expected = {"rows": {name: (rows.dtype.name, (len(index), *rows.shape[1:])) for name, rows in like.items()}}
        read = checkpoint.read(path, token=segment["token"], check=partial(_require_rows, path, expected))
        for name, rows in read.groups["rows"].items():
            arrays[name][index] = rows
        written[index] = True
    stored = _index((head - size) % slots, size, slots)
    if not written[stored].all():
        raise CheckpointError(f"{directory} lacks rows that the checkpoint names: use the checkpoint before")
    return {**arrays, "head": head, "size": size}


def segments_of(directory: Path, entry: object) -> list[Segment]:
    """Return the segments of an entry, in the order of their numbers, none twice.

    Raises:
        CheckpointError: if it is no entry.
    """
    segments = entry.get("segments") if isinstance(entry, dict) else None
    if not isinstance(segments, list) or len(segments) > LARGEST_LOG or not all(map(_is_segment, segments)):
        raise _unsound(directory)
    if any(one["number"] >= next_one["number"] for one, next_one in itertools.pairwise(segments)):
        raise _unsound(directory)
    return segments


def _is_segment(segment: object) -> bool:
    return isinstance(segment, dict) and type(segment.get("number")) is int and 0 <= segment["number"] < LARGEST_NUMBER


def _unsound(directory: Path) -> CheckpointError:
    return CheckpointError(f"the checkpoint beside {directory} says nothing sound about its replay memory: use the checkpoint before")


def verify(directory: Path, segment: Segment) -> None:
    """Check a segment of an entry by its checksums.

    Raises:
        CheckpointError: if it is missing, damaged, or another one.
    """
    if not _is_segment(segment):
        raise _unsound(directory)
    path = _segment(directory, segment["number"])
    if checkpoint.verify(path) != segment.get("token"):
        raise CheckpointError(f"{path} is another checkpoint than the one that is meant: use the checkpoint before")


def _require_rows(path: Path, expected: Mapping[str, Mapping[str, tuple[str, tuple[int, ...]]]], declared: Checkpoint) -> None:
    found = {group: {name: (array.dtype.name, array.shape) for name, array in arrays.items()} for group, arrays in declared.groups.items()}
    for group in sorted(found.keys() | expected.keys()):
        here, there = found.get(group, {}), expected.get(group, {})
        for name in sorted(here.keys() | there.keys()):
            if here.get(name) != there.get(name):
                raise CheckpointError(
                    f"{path} holds {short.repr(name)} of group {group!r} as {here.get(name)}, expected {there.get(name)}: "
                    f"use the checkpoint before"
                )


def _segment(directory: Path, number: int) -> Path:
    return directory / f"segment_{number}"


def _index(first: NumpyArray, count: NumpyArray, slots: int) -> NDArray[np.int64]:
    """Return the indices of `count` rows from slot `first` on, `(envs,)` each, one environment after the other."""
    envs = len(first)
    parts = [
        ((int(begin) + np.arange(int(number))) % slots) * envs + env for env, (begin, number) in enumerate(zip(first, count, strict=True))
    ]
    return np.concatenate(parts).astype(np.int64)


def _needed(segments: list[Segment], slots: int) -> list[Segment]:
    """Leave out segments whose rows were all overwritten since."""
    kept: list[Segment] = []
    later: NumpyArray = np.zeros(1, np.int64)
    for segment in reversed(segments):
        if (np.broadcast_to(later, len(segment["count"])) >= slots).all():
            break
        kept.append(segment)
        later = later + np.asarray(segment["count"], np.int64)
    return kept[::-1]


def _checked(directory: Path, entry: Entry, memory: Rows) -> tuple[int, list[Segment]]:
    """Return slots and segments, after checking types and ranges: a stranger may have written the entry."""
    envs, most = memory.num_envs, memory.slots

    def integers(values: object, high: int) -> bool:
        return isinstance(values, list) and len(values) == envs and all(type(value) is int and 0 <= value <= high for value in values)

    slots = entry.get("slots")
    if entry.get("envs") != envs or type(slots) is not int or not 0 < slots <= most:
        raise CheckpointError(
            f"the checkpoint beside {directory} has a replay memory of {short.repr(entry.get('envs'))} environments and "
            f"{short.repr(slots)} rows for each, "
            f"expected {envs} and at most {most}: use the number of environments and the capacity it was saved with"
        )
    segments = segments_of(directory, entry)
    fine = all(
        isinstance(each.get("token"), str) and integers(each.get("first"), most - 1) and integers(each.get("count"), most)
        for each in segments
    )
    fine = fine and integers(entry.get("head"), slots - 1) and integers(entry.get("size"), slots)
    # A ring that is not full yet begins at its first row.
    if not fine or any(size not in (slots, head) for head, size in zip(entry["head"], entry["size"], strict=True)):
        raise _unsound(directory)
    return slots, segments
