"""Signals that ask a run to stop."""

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator

import jax

STOPPED = 75  # the exit status: saved, run the same command again


class Interrupts:
    """SIGINT (Ctrl-C) and SIGTERM, which clouds also send before they take a machine away.

    The first signal asks the run to save and stop; a second one ends the process at once. While there is nothing to
    save, the first one does too.
    """

    def __init__(self, say: Callable[[str], None]):
        self._say = say
        self.requested = False
        self.unsaved = False  # whether steps have been taken since the last save; for the loop to set

    @contextlib.contextmanager
    def handled(self) -> Iterator["Interrupts"]:
        """Handles the signals while the block lasts. To be called in the main thread."""
        reader, writer = socket.socketpair()
        writer.setblocking(False)
        previous_fd = signal.set_wakeup_fd(writer.fileno())
        previous = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
        # A thread answers: Python runs handlers in the main thread, which may wait long for a device.
        thread = threading.Thread(target=self._listen, args=(reader,), name="interrupts", daemon=True)
        thread.start()
        try:
            yield self
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(previous_fd)
            writer.close()
            thread.join()
            reader.close()

    def _listen(self, reader: socket.socket) -> None:
        while numbers := reader.recv(64):
            for number in numbers:
                if number in (signal.SIGINT, signal.SIGTERM):
                    self._answer(signal.Signals(number))

    def _answer(self, number: signal.Signals) -> None:
        if self.requested:
            self._report(f"gemma3_jax: {number.name} again: stopped at once; steps since the last checkpoint are lost")
            os._exit(128 + number)
        self.requested = True
        if not self.unsaved and jax.process_count() == 1:
            self._report(f"gemma3_jax: stopped by {number.name}; no step is lost; run the same command to resume")
            os._exit(STOPPED)
        self._report(f"gemma3_jax: {number.name}: saving, then stopping; again stops at once")

    def _report(self, line: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # Ctrl-C also ends a `tee` that reads the output
            self._say(line)
