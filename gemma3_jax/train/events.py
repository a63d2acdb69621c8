"""Rows as events for TensorBoard, by tensorboardX's protocol buffers.

Its SummaryWriter has a queue that blocks for good once a full disk has ended the thread behind it.
"""

import pathlib
import socket
import struct
import time
from collections.abc import Callable, Mapping

from gemma3_jax.train import appending


class Events:
    """One file of events in a directory. Where the disk refuses, they wait."""

    def __init__(self, directory: pathlib.Path, after: int, warn: Callable[[str], None]):
        """The viewer drops what an earlier process wrote of steps behind `after`."""
        from tensorboardX import record_writer, summary
        from tensorboardX.proto import event_pb2

        self._proto, self._scalar, self._checksum = event_pb2, summary.scalar, record_writer.masked_crc32c
        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{time.time_ns()}"
        self._file = appending.Appending(directory / name, warn)
        self._add(event_pb2.Event(wall_time=time.time(), file_version="brain.Event:2"))
        session = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._add(event_pb2.Event(wall_time=time.time(), step=after + 1, session_log=session))

    def write(self, row: Mapping) -> None:
        """Every number of a row, as STAGE/NAME."""
        event = self._proto.Event(wall_time=row["time"], step=row["global_step"])
        for name, value in row.items():
            if isinstance(value, int | float) and name != "time":
                event.summary.MergeFrom(self._scalar(f"{row['stage']}/{name}", value))
        self._add(event)

    def _add(self, event) -> None:
        """A record of TensorFlow's: length, its check sum, the event, its check sum."""
        content = event.SerializeToString()
        length = struct.pack("<Q", len(content))
        sums = (struct.pack("<I", self._checksum(part)) for part in (length, content))
        self._file.write(length + next(sums) + content + next(sums))
