"""Sinks of metrics, and those on disk: TensorBoard's event file for people, `metrics.jsonl` for programs, `metrics.csv` for tables."""

import csv
import json
import logging
import math
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple, Protocol, SupportsFloat, runtime_checkable

METRICS_FILE = "metrics.jsonl"
CSV_FILE = "metrics.csv"
EVENTS = "events.out.tfevents.*"
OWN_FIELDS = ("timestep", "environment_steps", "wall_time")
"""Fields of every line of `metrics.jsonl`, before the tags."""

logger: logging.Logger = logging.getLogger(__name__)


class Origin(NamedTuple):
    """The run whose metrics are written, as `open` of a sink is told of it."""

    directory: Path
    """The run directory, which may not be there yet."""
    environment_steps: Callable[[int], int]
    """Timesteps -> steps of all environments of all ranks together."""
    config: Mapping[str, object]
    """The content of `config.json`; empty for an agent without a run."""


@runtime_checkable
class Sink(Protocol):
    """A place that metrics are written to. It may also have `open(origin)`, called before the first write, and `close()`."""

    def write(self, step: int, scalars: Mapping[str, float], /) -> None:
        """Take what was measured since the last call: tag -> value, at the timestep `step`."""


def appended(directory: Path) -> list[Path]:
    """Return the files that sinks append to in a run directory; those of TensorBoard that are there."""
    return [directory / METRICS_FILE, directory / CSV_FILE, *sorted(directory.glob(EVENTS))]


class Sinks:
    """Writer to several sinks. One that fails is reported once, until it works again, and stops neither the others nor training.

    Args:
        sinks: opened at the first write, and once more at the next one after `close`.
        origin: what they are told of the run.
    """

    def __init__(self, sinks: Sequence[Sink], origin: Origin) -> None:
        self._sinks, self._origin = sinks, origin
        self._opened: list[Sink] = []
        self._reported: list[Sink] = []

    def write(self, step: int, scalars: Mapping[str, SupportsFloat]) -> None:
        """Hand scalars on.

        Raises:
            ValueError: if a tag has the name of a field that every line has, before anything is written. TypeError: if a value is no
                scalar.
        """
        taken = set(OWN_FIELDS) & scalars.keys()
        if taken:
            raise ValueError(f"tag {min(taken)!r} is the name of a field that every line of {METRICS_FILE} has: choose another tag")
        values = {tag: float(value) for tag, value in scalars.items()}
        for sink in self._sinks:
            try:
                if sink not in self._opened:
                    if (begin := getattr(sink, "open", None)) is not None:
                        begin(self._origin)
                    self._opened.append(sink)
                sink.write(step, values)
                self._reported = [other for other in self._reported if other is not sink]
            except Exception as error:  # of others' code and machines; a run of days shall not end of it
                self._report(sink, f"what was measured up to timestep {step} is not written", error)

    def close(self) -> None:
        """Close the sinks; a later write opens them once more."""
        opened, self._opened = self._opened, []
        for sink in opened:
            try:
                if (end := getattr(sink, "close", None)) is not None:
                    end()
            except Exception as error:
                self._report(sink, "it is not closed", error)

    def _report(self, sink: Sink, what: str, error: Exception) -> None:
        if sink not in self._reported:
            self._reported.append(sink)
            logger.warning("%s: %s: %s. Training goes on", type(sink).__name__, what, error or type(error).__name__)


@contextmanager
def whole(file: Path) -> Iterator[None]:
    """Undo a partial append to a file."""
    before = file.stat().st_size if file.is_file() else None
    try:
        yield
    except BaseException:
        with suppress(OSError):
            file.unlink(missing_ok=True) if before is None else os.truncate(file, before)
        raise


def cut_half_line(file: Path) -> None:
    """Remove the half line that a killed process left."""
    if file.is_file():
        os.truncate(file, file.read_bytes().rfind(b"\n") + 1)


class JsonLines:
    """Sink that appends a line to `metrics.jsonl` for each write.

    A line is one object: `timestep`, `environment_steps`, `wall_time` (seconds since 1970), then tag: value. A value that is not finite is
    `null`, as JSON has no such number. The file is open only during a write, so that a killed run loses nothing that was written.
    """

    def open(self, origin: Origin) -> None:
        self._file, self._environment_steps = origin.directory / METRICS_FILE, origin.environment_steps
        cut_half_line(self._file)

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        own = {"timestep": int(step), "environment_steps": int(self._environment_steps(step)), "wall_time": time.time()}
        line = own | {tag: value if math.isfinite(value) else None for tag, value in scalars.items()}
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with whole(self._file), self._file.open("a", encoding="utf-8") as metrics:
            metrics.write(json.dumps(line, allow_nan=False) + "\n")


class TensorBoard:
    """Sink that appends to a TensorBoard event file of its own, at steps that are timesteps; values are float32 there.

    The file is open only during a write, so that a killed run loses nothing that was written.
    """

    def open(self, origin: Origin) -> None:
        self._directory = origin.directory
        self._file: Path | None = None

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        # Imported here: it takes longer than all of sacref. The record writer and not the EventFileWriter around it, which imports
        # tensorflow where that is installed, and writes from a thread of its own.
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter

        now = time.time()
        summary = Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()])
        events = [Event(wall_time=now, step=int(step), summary=summary)]
        self._directory.mkdir(parents=True, exist_ok=True)
        # TensorBoard finds the file by "tfevents", and reads the files of a directory in the order of their names.
        name = f"events.out.tfevents.{int(now):010d}.{socket.gethostname()}.{os.getpid()}.{secrets.token_hex(4)}"
        file = self._file or self._directory / name
        if not file.is_file():
            events.insert(0, Event(wall_time=now, file_version="brain.Event:2"))
        with whole(file), file.open("ab") as stream:
            for event in events:
                RecordWriter(stream).write(event.SerializeToString())
        self._file = file


class CSV:
    """Sink that appends to `metrics.csv`: a line for each tag of a write, `timestep,environment_steps,tag,value`."""

    def open(self, origin: Origin) -> None:
        self._file, self._environment_steps = origin.directory / CSV_FILE, origin.environment_steps
        cut_half_line(self._file)

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        header = [] if self._file.is_file() and self._file.stat().st_size else [["timestep", "environment_steps", "tag", "value"]]
        steps = self._environment_steps(step)
        with whole(self._file), self._file.open("a", encoding="utf-8", newline="") as stream:
            csv.writer(stream, lineterminator="\n").writerows([*header, *([step, steps, tag, value] for tag, value in scalars.items())])
