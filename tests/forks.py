"""Processes of the program that begin in milliseconds: forks of one that has imported everything, without devices yet.

As a script it reads a line [arguments, seconds] on stdin, runs the program in a fork, kills that with SIGKILL after so
many seconds (null: never), and prints its status: negative for a signal, as subprocess has it.
"""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence

from tests import xla_flags

ROOT = pathlib.Path(__file__).parents[1]


class Forks:
    def __init__(self, process: subprocess.Popen):
        self._process = process

    def run(self, arguments: Sequence[str], kill_after: float | None = None) -> int:
        """The status of `python -m gemma3_jax ARGUMENTS`."""
        self._process.stdin.write(json.dumps([list(map(str, arguments)), kill_after]) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())


@contextlib.contextmanager
def serve(num_devices: int, log: pathlib.Path) -> Iterator[Forks]:
    """`log` takes what all of them print."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": xla_flags.for_devices(num_devices)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.forks"], cwd=ROOT, env=environment, stderr=file, **pipes
        )
        with process:
            yield Forks(process)
            process.stdin.close()


def _status_of_fork(arguments: list[str], kill_after: float | None) -> int:
    from gemma3_jax.cli import program

    pid = os.fork()
    if not pid:
        os.dup2(2, 1)
        status = 99
        try:
            status = program.main(arguments)
        finally:
            os._exit(status)
    if kill_after is None:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    deadline = time.monotonic() + kill_after
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _import_everything() -> None:
    import importlib

    from gemma3_jax.checkpoint import export, open  # noqa: F401
    from gemma3_jax.data.prepare import pipeline  # noqa: F401

    for name in ("run", "teach", "settings"):
        importlib.import_module(f"gemma3_jax.{name}")


if __name__ == "__main__":
    _import_everything()
    for line in sys.stdin:
        print(_status_of_fork(*json.loads(line)), flush=True)
