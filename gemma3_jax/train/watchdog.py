"""Ends a process that hangs: when a phase exceeds its deadline, writes all stacks and exits with status 124."""

import contextlib
import dataclasses
import faulthandler
import os
import pathlib
import sys
import threading
import time
from collections.abc import Iterator

from gemma3_jax.train import settings

STALLED = 124  # the exit status


class Watchdog:
    """A thread that ends the process when a running phase exceeds its deadline. A deadline of 0 is none."""

    def __init__(self, deadlines: settings.Deadlines, stacks: pathlib.Path):
        """`stacks`: the file for the stacks of all threads, which go to stderr too."""
        self._seconds = dataclasses.asdict(deadlines)
        self._stacks = stacks
        self._ends: dict[str, float] = {}
        self._changed = threading.Condition()
        self._is_closed = False
        threading.Thread(target=self._wait, name="watchdog", daemon=True).start()

    def start(self, phase: str) -> None:
        """Starts a phase, or starts it again."""
        if self._seconds[phase]:
            with self._changed:
                self._ends[phase] = time.monotonic() + self._seconds[phase]
                self._changed.notify()

    def stop(self, phase: str) -> None:
        """Ends a phase, if it runs."""
        with self._changed:
            self._ends.pop(phase, None)

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Runs a phase in a `with` block."""
        self.start(name)
        try:
            yield
        finally:
            self.stop(name)

    def close(self) -> None:
        """Ends all phases, and the thread."""
        with self._changed:
            self._ends.clear()
            self._is_closed = True
            self._changed.notify()

    def _wait(self) -> None:
        """Waits until a phase exceeds its deadline or `close` is called."""
        with self._changed:
            while True:
                if self._is_closed:
                    return
                phase, end = min(self._ends.items(), key=lambda item: item[1], default=("", float("inf")))
                if end <= time.monotonic():
                    break
                self._changed.wait(min(end - time.monotonic(), threading.TIMEOUT_MAX))
        self._end_process(phase)

    def _end_process(self, phase: str) -> None:
        problem = ""
        try:  # the file first: stderr may be closed
            try:
                with self._stacks.open("w") as file:
                    faulthandler.dump_traceback(file, all_threads=True)
            except OSError as error:
                problem = f", which cannot be written: {error}"
            print(
                f"gemma3_jax: stalled: {phase} has taken over {self._seconds[phase]:g} s (config.deadlines.{phase}); "
                f"the stacks of all threads are below and in {self._stacks}{problem}",
                file=sys.__stderr__,
                flush=True,
            )
            faulthandler.dump_traceback(sys.__stderr__, all_threads=True)
        finally:
            os._exit(STALLED)
