"""What is asked of a run from outside, and how its processes come to the same decision about it."""

import contextlib
import functools
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

STOPPED = 75  # the exit status: saved, run the same command again


class Interrupts:
    """SIGINT (Ctrl-C) and SIGTERM, which is also how clouds tell that a machine is about to be taken away.

    The first one asks the run to save and stop; the second one ends the process at once. While there is nothing to save
    the first one does too.
    """

    def __init__(self, say: Callable[[str], None]):
        self._say = say
        self.requested = False
        self.unsaved = False  # whether steps have been taken since the last save; for the loop to set

    @contextlib.contextmanager
    def handled(self) -> Iterator["Interrupts"]:
        """Takes the signals over while the block lasts. Only the main thread may."""
        reader, writer = socket.socketpair()
        writer.setblocking(False)
        previous_fd = signal.set_wakeup_fd(writer.fileno())
        previous = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
        # A thread answers, as Python runs handlers in the main one alone, which may be waiting for a device for long.
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
            self._tell(f"gemma3_jax: {number.name} again: stopped at once; steps since the last checkpoint are lost")
            os._exit(128 + number)
        self.requested = True
        if not self.unsaved and jax.process_count() == 1:
            self._tell(f"gemma3_jax: stopped by {number.name}; nothing was unsaved: the same command goes on")
            os._exit(STOPPED)
        self._tell(f"gemma3_jax: {number.name}: saving, then stopping; again stops at once")

    def _tell(self, line: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # Ctrl-C ends the `tee` that listened, too
            self._say(line)


def agree(flags: Callable[[], tuple[bool, ...]]) -> Callable[[], tuple[bool, ...]]:
    """A function that returns, for each flag, whether any process raises it: the same in all of them.

    One process looks when it is asked. Several look now, and add up over their devices while they go on: call it in the
    same places everywhere.
    """
    if jax.process_count() == 1:
        return flags
    place, count = _ballot()
    raised = np.asarray([flags()], np.int32)
    votes = jax.make_array_from_callback((place.mesh.size, raised.shape[1]), place, lambda index: raised)
    counted = count(votes)
    return lambda: tuple(bool(number) for number in jax.device_get(counted))


@functools.cache  # one program for all steps
def _ballot() -> tuple[NamedSharding, Callable[[jax.Array], jax.Array]]:
    """Where votes are put, one on each device, and what counts them."""
    mesh = Mesh(np.asarray(jax.devices()), ("device",))
    everywhere = NamedSharding(mesh, PartitionSpec())
    return NamedSharding(mesh, PartitionSpec("device")), jax.jit(lambda votes: votes.sum(0), out_shardings=everywhere)
