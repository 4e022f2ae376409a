"""What a run tracks, on disk: TensorBoard's event file for looking, `metrics.jsonl` for reading."""

import json
import math
import os
import secrets
import socket
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TextIO

METRICS_FILE = "metrics.jsonl"


class Tracker:
    """Appends scalars to `metrics.jsonl` and to a TensorBoard event file of this process.

    Each line of `metrics.jsonl` is one object: `timestep`, `environment_steps`, `wall_time` (seconds since 1970), then tag: value.
    A value that is not finite is `null` there, as JSON has no such number; TensorBoard shows it as it is, as float32.
    Both are flushed at each write, so that a killed run loses nothing that was written.

    Args:
        directory: made at the first write; what an earlier process wrote there is kept and continued.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.directory = Path(directory)
        self._metrics: TextIO | None = None
        self._events: Any = None
        self._files = ExitStack()

    def write(self, timestep: int, environment_steps: int, scalars: Mapping[str, float]) -> None:
        """Append one line and one event, the event at the step `timestep`.

        Args:
            timestep: calls of the agent so far. environment_steps: steps of all environments together so far.
            scalars: tag -> value, Python or NumPy; not named as one of the line's own three fields.

        Raises:
            ValueError: if a tag is the name of one of the line's own fields. TypeError: if a value is not a scalar.
        """
        # Imported here: it takes longer than the rest of sacref. The record writer rather than the EventFileWriter around it,
        # which imports tensorflow where that is installed, and writes from a thread of its own.
        from tensorboard.compat.proto import event_pb2, summary_pb2

        now = time.time()
        own = {"timestep": int(timestep), "environment_steps": int(environment_steps), "wall_time": now}
        taken = own.keys() & scalars.keys()
        if taken:
            raise ValueError(f"tag {min(taken)!r} is the name of a field that every line of {METRICS_FILE} has: choose another tag")
        values = {tag: float(value) for tag, value in scalars.items()}
        metrics, events = self._open() if self._metrics is None else (self._metrics, self._events)
        line = own | {tag: value if math.isfinite(value) else None for tag, value in values.items()}
        metrics.write(json.dumps(line, allow_nan=False) + "\n")
        metrics.flush()
        summary = summary_pb2.Summary(value=[summary_pb2.Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()])
        _record(events, event_pb2.Event(wall_time=now, step=int(timestep), summary=summary))

    def close(self) -> None:
        """Close both files; a later write opens them again."""
        self._metrics = self._events = None
        self._files.close()

    def _open(self) -> tuple[TextIO, Any]:
        from tensorboard.compat.proto import event_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        self.directory.mkdir(parents=True, exist_ok=True)
        metrics = self.directory / METRICS_FILE
        if metrics.is_file():
            # A process that was killed while it wrote leaves half a line, which no reader of JSON lines could pass.
            os.truncate(metrics, metrics.read_bytes().rfind(b"\n") + 1)
        self._metrics = self._files.enter_context(metrics.open("a", encoding="utf-8"))
        # TensorBoard finds the file by "tfevents", and reads the files of a directory in the order of their names.
        now = time.time()
        name = f"events.out.tfevents.{int(now):010d}.{socket.gethostname()}.{os.getpid()}.{secrets.token_hex(4)}"
        self._events = RecordWriter(self._files.enter_context((self.directory / name).open("xb")))
        _record(self._events, event_pb2.Event(wall_time=now, file_version="brain.Event:2"))
        return self._metrics, self._events


def _record(events: Any, event: Any) -> None:
    events.write(event.SerializeToString())
    events.flush()
