"""Metrics of a run on disk: TensorBoard's event file for people, `metrics.jsonl` for programs."""

import json
import math
import os
import secrets
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import SupportsFloat

METRICS_FILE = "metrics.jsonl"


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


class Tracker:
    """Writer that appends scalars to `metrics.jsonl` and to a TensorBoard event file of its own.

    Each line of `metrics.jsonl` is one object: `timestep`, `environment_steps`, `wall_time` (seconds since 1970), then tag: value.
    A value that is not finite is `null` there, as JSON has no such number; TensorBoard gets it as it is, as float32.
    The files are open only during a write, so that a killed run loses nothing that was written.

    Args:
        directory: made at the first write; files of an earlier run are continued.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.directory: Path = Path(directory)
        self._event_file: Path | None = None

    def write(self, timestep: int, environment_steps: int, scalars: Mapping[str, SupportsFloat]) -> None:
        """Append one line and one event, the event at the step `timestep`.

        Args:
            timestep: calls of the agent so far. environment_steps: steps of all environments together so far.
            scalars: tag -> value, Python or NumPy; no tag has the name of one of the line's own three fields.

        Raises:
            ValueError: if a tag is. TypeError: if a value is no scalar. OSError: if the disk is full, or the directory cannot be written.
                Nothing is written then, and a later call continues the files.
        """
        # Imported here: it takes longer than all of sacref. The record writer and not the EventFileWriter around it, which imports
        # tensorflow where that is installed, and writes from a thread of its own.
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter

        now = time.time()
        own = {"timestep": int(timestep), "environment_steps": int(environment_steps), "wall_time": now}
        taken = own.keys() & scalars.keys()
        if taken:
            raise ValueError(f"tag {min(taken)!r} is the name of a field that every line of {METRICS_FILE} has: choose another tag")
        values = {tag: float(value) for tag, value in scalars.items()}
        line = own | {tag: value if math.isfinite(value) else None for tag, value in values.items()}
        summary = Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()])
        events = [Event(wall_time=now, step=int(timestep), summary=summary)]
        self.directory.mkdir(parents=True, exist_ok=True)
        event_file = self._event_file or self._start(now)
        if not event_file.is_file():
            events.insert(0, Event(wall_time=now, file_version="brain.Event:2"))
        with whole(self.directory / METRICS_FILE), whole(event_file):
            with (self.directory / METRICS_FILE).open("a", encoding="utf-8") as metrics:
                metrics.write(json.dumps(line, allow_nan=False) + "\n")
            with event_file.open("ab") as stream:
                for event in events:
                    RecordWriter(stream).write(event.SerializeToString())
        self._event_file = event_file

    def close(self) -> None:
        """End the event file; a later write begins another one."""
        self._event_file = None

    def _start(self, now: float) -> Path:
        """Remove the half line that a killed process left, and choose the event file's name."""
        metrics = self.directory / METRICS_FILE
        if metrics.is_file():
            os.truncate(metrics, metrics.read_bytes().rfind(b"\n") + 1)
        # TensorBoard finds the file by "tfevents", and reads the files of a directory in the order of their names.
        return self.directory / f"events.out.tfevents.{int(now):010d}.{socket.gethostname()}.{os.getpid()}.{secrets.token_hex(4)}"
