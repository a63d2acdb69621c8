"""A profile of some steps, for TensorBoard's profile plugin and xprof."""

import pathlib
import re

import jax


class Trace:
    """Profiles the steps after `first` up to and including `last`, counted over the whole run."""

    def __init__(self, directory: pathlib.Path, first: int, last: int):
        self._directory, self._first, self._last = directory, first, last
        self._is_on = False

    def after(self, global_step: int, result: object) -> None:
        """Starts or stops the profiler as soon as `result` of a step is computed; to be called after every step."""
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
    """Returns (START, STOP) of "START:STOP".

    Raises: ValueError.
    """
    match = re.fullmatch(r"(\d+):(\d+)", text)
    if not match or not int(match[1]) < int(match[2]):
        raise ValueError(f"--profile is {text}; it must be START:STOP, two step numbers with START < STOP")
    return int(match[1]), int(match[2])
