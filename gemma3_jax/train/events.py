"""Writes rows of metrics as TensorBoard events, by the protocol buffers of tensorboardX.

Its SummaryWriter is not used: after a full disk has ended its writer thread, its queue blocks forever.
"""

import logging
import math
import pathlib
import socket
import struct
import time
from collections.abc import Callable, Mapping

from gemma3_jax.durable import append_only


class Events:
    """A file of events. If the disk is full, events wait until they can be written."""

    def __init__(self, directory: pathlib.Path, after: int, warn: Callable[[str], None]):
        """Opens a new file in `directory`. TensorBoard drops events of steps after `after` from earlier files."""
        from tensorboardX import record_writer, summary
        from tensorboardX.proto import event_pb2

        logging.getLogger("tensorboardX.x2num").setLevel(logging.ERROR)  # it warns of every tag that is not finite
        self._warn, self._has_warned = warn, False
        self._proto, self._scalar, self._checksum = event_pb2, summary.scalar, record_writer.masked_crc32c
        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{time.time_ns()}"
        self._file = append_only.AppendOnlyFile(directory / name, warn)
        self._add(event_pb2.Event(wall_time=time.time(), file_version="brain.Event:2"))
        session = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._add(event_pb2.Event(wall_time=time.time(), step=after + 1, session_log=session))

    def write(self, row: Mapping) -> None:
        """Writes each number of a row under the tag STAGE/NAME."""
        event = self._proto.Event(wall_time=row["time"], step=row["global_step"])
        for name, value in row.items():
            if isinstance(value, int | float) and name != "time":
                tag = f"{row['stage']}/{name}"
                event.summary.MergeFrom(self._scalar(tag, value))
                if not math.isfinite(value) and not self._has_warned:
                    self._has_warned = True
                    self._warn(
                        f"warning: {tag} is {value} at step {row['global_step']}; TensorBoard shows no such points"
                    )
        self._add(event)

    def _add(self, event) -> None:
        """Writes a TFRecord: the length, its checksum, the event, its checksum."""
        content = event.SerializeToString()
        length = struct.pack("<Q", len(content))
        sums = (struct.pack("<I", self._checksum(part)) for part in (length, content))
        self._file.write(length + next(sums) + content + next(sums))
