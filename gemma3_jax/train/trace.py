"""A trace of some steps, for TensorBoard's profile plugin and xprof."""

import pathlib
import re

import jax


class Trace:
    """Profiles the steps after `first` and up to `last`, counted over the whole run."""

    def __init__(self, directory: pathlib.Path, first: int, last: int):
        self._directory, self._first, self._last = directory, first, last
        self._is_on = False

    def after(self, global_step: int, result: object) -> None:
        """Begins or ends the trace once `result`, of this step, is there; called after every step."""
        if not self._is_on and self._first <= global_step < self._last:
            jax.block_until_ready(result)
            jax.profiler.start_trace(self._directory)
            self._is_on = True
        elif self._is_on and global_step >= self._last:
            jax.block_until_ready(result)
            self.close()

    def close(self) -> None:
        if self._is_on:
            jax.profiler.stop_trace()
        self._is_on = False


def parse(text: str) -> tuple[int, int]:
    """START:STOP -> the steps between which to trace.

    Raises: ValueError.
    """
    found = re.fullmatch(r"(\d+):(\d+)", text)
    if not found or not int(found[1]) < int(found[2]):
        raise ValueError(f"--profile is {text}; it must be START:STOP, two step numbers, the first one smaller")
    return int(found[1]), int(found[2])
