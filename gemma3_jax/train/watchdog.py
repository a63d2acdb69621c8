"""Ends a process that hangs: a phase that takes longer than its deadline leaves all stacks behind, and status 124."""

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
    """A thread that knows when each phase in hand has to have ended. A deadline of 0 is none."""

    def __init__(self, deadlines: settings.Deadlines, stacks: pathlib.Path):
        """`stacks`: the file that all Python stacks are written to, beside stderr."""
        self._seconds = dataclasses.asdict(deadlines)
        self._stacks = stacks
        self._ends: dict[str, float] = {}
        self._changed = threading.Condition()
        self._is_closed = False
        threading.Thread(target=self._look, name="watchdog", daemon=True).start()

    def start(self, phase: str) -> None:
        """The phase begins, or begins again."""
        if self._seconds[phase]:
            with self._changed:
                self._ends[phase] = time.monotonic() + self._seconds[phase]
                self._changed.notify()

    def stop(self, phase: str) -> None:
        with self._changed:
            self._ends.pop(phase, None)

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        self.start(name)
        try:
            yield
        finally:
            self.stop(name)

    def close(self) -> None:
        """Nothing is waited for any more."""
        with self._changed:
            self._ends.clear()
            self._is_closed = True
            self._changed.notify()

    def _look(self) -> None:
        with self._changed:
            while True:
                if self._is_closed:
                    return
                phase, end = min(self._ends.items(), key=lambda item: item[1], default=("", float("inf")))
                if end <= time.monotonic():
                    break
                self._changed.wait(min(end - time.monotonic(), threading.TIMEOUT_MAX))
        self._give_up(phase)

    def _give_up(self, phase: str) -> None:
        problem = ""
        try:  # the file first: nobody may be reading stderr
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
