"""The rule that every damaged input keeps: status 0, or one line and status 1; nothing at the target; little memory."""

import contextlib
import dataclasses
import io
import logging
import pathlib
import resource
import signal
import time
import traceback
from collections.abc import Sequence

from gemma3_jax.cli import program
from gemma3_jax.durable import atomic

MAX_BYTES = 1 << 30
MAX_SECONDS = 60


class TookTooLong(BaseException):
    """Not an Exception, so that nobody but the rule catches it."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How the program ended: its status, None if it did not, its line of an error, and how it broke the rule, if so."""

    status: int | None
    error: str
    broken: str


def run(arguments: Sequence[str], target: pathlib.Path) -> Outcome:
    """Runs the program in this process.

    `target` is the path that it may write; its directory has to be empty before.
    """
    out, err = io.StringIO(), io.StringIO()
    before, started = _resident_bytes(), time.monotonic()
    _forget_peak()
    signal.signal(signal.SIGALRM, _too_long)
    signal.alarm(MAX_SECONDS)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = program.main([str(argument) for argument in arguments])
    except TookTooLong:
        return Outcome(None, "", f"it took over {MAX_SECONDS} seconds")
    except BaseException as error:
        return Outcome(None, "", f"a traceback: {''.join(traceback.format_exception(error)[-3:])}")
    finally:
        signal.alarm(0)
        logging.disable(logging.NOTSET)
        atomic.remove_partials()
    problems = _problems(status, out.getvalue(), err.getvalue(), target)
    if (used := _peak_bytes() - before) > MAX_BYTES:
        problems.append(f"{used / 2**20:,.0f} MiB")
    if (seconds := time.monotonic() - started) > MAX_SECONDS:
        problems.append(f"{seconds:.0f} seconds")
    return Outcome(status, err.getvalue().rstrip("\n").rpartition("\n")[2], "; ".join(problems))


def _problems(status: int, out: str, err: str, target: pathlib.Path) -> list[str]:
    problems = []
    lines = err.rstrip("\n").split("\n")
    errors = [line for line in lines if line.startswith("gemma3_jax: error: ")]
    if status not in (0, 1):
        problems.append(f"status {status}")
    if status == 1 and (len(errors) != 1 or lines[-1] != errors[0] or len(errors[0]) < 30):
        problems.append(f"no single line at the end: {err[-600:]!r}")
    if status == 0 and errors:
        problems.append(f"status 0 with {errors[0]}")
    if "Traceback" in out + err:
        problems.append(f"a traceback is printed: {(out + err)[-600:]}")
    if controls := {character for character in err if ord(character) < 32 and character not in "\n\r\t"}:
        problems.append(f"control characters on the terminal: {controls}")
    left = [path.name for path in target.parent.iterdir() if status == 1 or path.name.startswith(".")]
    if (target / ".work").is_dir() and not (target / "manifest.json").exists():
        left.remove(target.name)  # unfinished and known as such: the same command resumes there
    if left:
        problems.append(f"left behind: {left}, with {errors}")
    return problems


def _too_long(*_) -> None:
    raise TookTooLong


def _status_bytes(name: str) -> int:
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return 1024 * int(line.split()[1])
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _resident_bytes() -> int:
    return _status_bytes("VmRSS")


def _peak_bytes() -> int:
    return _status_bytes("VmHWM")


def _forget_peak() -> None:
    with contextlib.suppress(OSError):
        pathlib.Path("/proc/self/clear_refs").write_text("5")
