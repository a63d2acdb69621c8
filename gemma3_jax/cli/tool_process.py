"""The program that runs a tool call: it has a deadline, and its process group ends with it or with ours."""

import contextlib
import os
import pathlib
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from typing import BinaryIO

MAX_OUTPUT = 1 << 20  # bytes; a result is a part of the model's next prompt

_running: list[subprocess.Popen] = []


def run(command: str, call_json: str, seconds: float) -> str:
    """What a program prints for a call that it reads from stdin, without whitespace around it.

    No shell is involved: `command` is the path of a program. Processes that it starts are killed when it is over.
    Raises: ValueError if it cannot be run, fails, takes over `seconds`, prints too much, or what is not UTF-8.
    """
    what = f"--tool_command {command}"
    with tempfile.TemporaryFile() as call_file:
        call_file.write(call_json.encode())
        call_file.seek(0)
        try:
            with _signals_held():
                process = subprocess.Popen(
                    [pathlib.Path(command).absolute()],
                    stdin=call_file,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    start_new_session=True,
                )
                _running.append(process)
        except OSError as error:
            raise ValueError(
                f"{what} cannot be run: {error.strerror}; it must be executable, and a script begins with #!"
            ) from error
    try:
        streams = [_Stream(process, stream) for stream in (process.stdout, process.stderr)]
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired as error:
            raise ValueError(
                f"{what} took over {seconds:g} s, and was killed; --tool_timeout sets the limit"
            ) from error
    finally:
        kill()
        process.wait()
    output, errors = (stream.content() for stream in streams)
    if max(len(output), len(errors)) > MAX_OUTPUT:
        raise ValueError(f"{what} printed over {MAX_OUTPUT:,} bytes, and was killed; print less")
    if process.returncode:
        last_line = errors.decode(errors="replace").strip().rpartition("\n")[2]
        raise ValueError(f"{what} ended with status {process.returncode}: {last_line}")
    try:
        return output.decode().strip()
    except UnicodeDecodeError as error:
        raise ValueError(f"{what} printed what is not UTF-8: {error.reason} at byte {error.start}") from error


def kill() -> None:
    """Kills the program that runs and the processes that it has started. Waits for nothing: signal handlers call it."""
    while _running:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(_running.pop().pid, signal.SIGKILL)


@contextlib.contextmanager
def _signals_held() -> Iterator[None]:
    """Delivers signals after the block: a handler would miss a program that is being started."""
    if threading.current_thread() is not threading.main_thread():  # Python delivers signals to the main thread alone
        yield
        return
    held: list[int] = []
    stops = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    handlers = {number: signal.signal(number, lambda number, frame: held.append(number)) for number in stops}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for number in held:
            signal.raise_signal(number)


class _Stream:
    """Reads what a process prints in a thread; the process is killed if it is too long."""

    def __init__(self, process: subprocess.Popen, stream: BinaryIO):
        self._process, self._stream, self._content = process, stream, b""
        # A daemon: a process that has left the group may hold the stream open.
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def content(self) -> bytes:
        """All of it, once the process and its group are dead."""
        self._thread.join(1.0)
        return self._content

    def _read(self) -> None:
        with self._stream:
            while len(self._content) <= MAX_OUTPUT and (part := self._stream.read1(1 << 16)):
                self._content += part
        if len(self._content) > MAX_OUTPUT:
            self._process.kill()
