"""Processes of the program that begin in milliseconds: forks of one that has imported everything, without devices yet.

As a script it reads a command a line on stdin and prints an answer: ["start", arguments] its id; ["poll", id] its
status (negative for a signal, as subprocess has it), or null while it runs; ["wait", id] its status once it ends.
"""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence

from tests import xla_flags

ROOT = pathlib.Path(__file__).parents[1]


class Fork:
    """A process, with what of `subprocess.Popen` the tests need."""

    def __init__(self, call: Callable[[list], object], arguments: Sequence[str]):
        self._call = call
        self.pid = call(["start", list(map(str, arguments))])
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self._call(["poll", self.pid])
        return self.returncode

    def wait(self) -> int:
        if self.returncode is None:
            self.returncode = self._call(["wait", self.pid])
        return self.returncode

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        self.wait()


class Forks:
    def __init__(self, process: subprocess.Popen):
        self._process = process

    def start(self, arguments: Sequence[str]) -> Fork:
        return Fork(self._call, arguments)

    def run(self, arguments: Sequence[str], kill_after: float | None = None) -> int:
        """The status of `python -m gemma3_jax ARGUMENTS`, which is killed after so many seconds."""
        fork = self.start(arguments)
        if kill_after is None:
            return fork.wait()
        deadline = time.monotonic() + kill_after
        while fork.poll() is None:
            if time.monotonic() > deadline:
                fork.kill()
            time.sleep(0.002)
        return fork.returncode

    def _call(self, command: list) -> object:
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


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


def _answer(command: str, argument: list[str] | int) -> int | None:
    if command == "start":
        return _fork(argument)
    done, status = os.waitpid(argument, os.WNOHANG if command == "poll" else 0)
    return os.waitstatus_to_exitcode(status) if done else None


def _fork(arguments: list[str]) -> int:
    from gemma3_jax.cli import program

    if pid := os.fork():
        return pid
    os.dup2(2, 1)
    status = program.INTERNAL_ERROR
    try:
        status = program.main(arguments)
    except BaseException:
        traceback.print_exc()
    os._exit(status)


def _import_everything() -> None:
    import importlib

    from gemma3_jax.checkpoint import export, open  # noqa: F401
    from gemma3_jax.data.prepare import pipeline  # noqa: F401

    for name in ("run", "teach", "settings"):
        importlib.import_module(f"gemma3_jax.{name}")


if __name__ == "__main__":
    _import_everything()
    for line in sys.stdin:
        print(json.dumps(_answer(*json.loads(line))), flush=True)
