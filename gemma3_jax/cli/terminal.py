"""The parser of flags, progress bars, and what every verb reads from stdin and prints.

Text may come from files, prompts and models: none of it reaches a terminal with control characters, which could change
the terminal or hide other lines.
"""

import argparse
import contextlib
import dataclasses
import difflib
import functools
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence

# With Unicode's line breaks, and its overrides of the direction that text is shown in.
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]|\r(?!\n)")

PATHS = re.compile(r"\b(DIR|FILE|PATH|PROGRAM)\b")  # in the metavar of a flag
STARTED = time.monotonic()  # the program imports this module first


@dataclasses.dataclass(frozen=True)
class Stop:
    """How a process ends after SIGINT or SIGTERM."""

    status: int | None  # exit status; None: 128 + the number of the signal, as in a shell
    note: str


REMOVE_PARTIAL = Stop(None, "files that were partly written are removed")
on_stop = REMOVE_PARTIAL  # a verb that can resume replaces it


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are ValueErrors of one line, with a suggestion for an unknown flag."""

    takes_overrides = False  # whether --config.a.b=value is allowed; the epilog then lists the fields

    def __init__(self, **options):
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **options)

    def error(self, message: str):
        raise ValueError(f"{message} ({self.prog} --help lists the flags)")

    def parse_all(self, arguments: Sequence[str]) -> argparse.Namespace:
        """Returns the flags; `overrides` has those of the config. Raises: ValueError."""
        overrides = [argument for argument in arguments if self.takes_overrides and argument.startswith("--config.")]
        arguments = [argument for argument in arguments if argument not in overrides]
        known = [name for action in self._actions for name in action.option_strings]
        for flag in (argument.partition("=")[0] for argument in arguments if argument.startswith("-")):
            if flag not in known:
                field = self.takes_overrides and re.search(
                    rf"--config\.(\w+\.)*{re.escape(flag[2:])}(?==)", self.epilog
                )
                close = [field[0]] if field else difflib.get_close_matches(flag, known, n=1)
                hint = f"; did you mean {close[0]}?" if close else ""
                self.error(f"{self.prog} has no flag {flag}{hint}")
        flags = self.parse_args(arguments, argparse.Namespace(overrides=overrides))
        for action in self._actions:
            if PATHS.search(action.metavar or "") and (value := getattr(flags, action.dest)):
                setattr(flags, action.dest, _expand_home(value, action.metavar))
        return flags


def _expand_home(value: str | list[str], metavar: str) -> str | list[str]:
    """Expands ~ in the value of a path flag: the shell does so at the start of a word, not after --flag=."""
    if isinstance(value, list):
        return [_expand_home(one, metavar) for one in value]
    paths = value.split(",") if "," in metavar else [value]
    return ",".join(map(os.path.expanduser, paths))


def add_base_flag(parser: Parser) -> None:
    parser.add_argument(
        "--base", metavar="PATH", help="the model that adapters were trained on (default: where they say that it is)"
    )


def add_model_flag(parser: Parser) -> None:
    parser.add_argument(
        "--model",
        metavar="SIZE|FILE",
        help="the model, as 270m, 1b, 4b, 12b, 27b or a config.json; only for an Orbax checkpoint of the gemma library "
        "that has no published size (default: detected)",
    )


def mesh(text: str):
    """Returns the mesh of a `--mesh` flag such as "data=4,model=2". Raises: ValueError."""
    from gemma3_jax import sharding

    sizes = {}
    for part in text.split(","):
        axis, _, size = part.partition("=")
        if axis not in sharding.AXES or not re.fullmatch("[0-9]+", size) or axis in sizes:
            raise ValueError(f"--mesh is {text}; it must be AXIS=N,... with each axis once: {', '.join(sharding.AXES)}")
        sizes[axis] = int(size)
    return sharding.make_mesh(**sizes)


def printable(text: str) -> str:
    """The text with an escape such as \\u001b for every control character but newline and tab.

    The escapes are those of JSON, and keep it valid.
    """
    return _CONTROL.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def say(*lines: str) -> None:
    """Prints lines on stderr. Ignores a closed stderr: Ctrl-C may have ended a `tee` while the verb still saves."""
    with contextlib.suppress(OSError):
        if lines:
            print(*map(printable, lines), sep="\n", file=sys.stderr, flush=True)


def show(*texts: str, sep: str = "\n", end: str = "\n") -> None:
    """Prints texts on stdout; files and pipes get them as they are. Raises: OSError that names stdout.

    Characters that its encoding lacks become escapes: what took hours to compute is not lost.
    """
    text = sep.join(texts)
    text = printable(text) if sys.stdout.isatty() else text
    with of_stdout():
        try:
            print(text, end=end, flush=True)
        except UnicodeEncodeError:
            encoding = sys.stdout.encoding
            print(text.encode(encoding, "backslashreplace").decode(encoding), end=end, flush=True)
            say_escaped(encoding)


@functools.cache
def say_escaped(encoding: str) -> None:
    """Says once that what this encoding lacks is escaped."""
    say(
        f"gemma3_jax: the encoding of stdout, {encoding}, lacks some characters, which become escapes; "
        "set PYTHONIOENCODING=utf-8 for all of them"
    )


@contextlib.contextmanager
def of_stdout() -> Iterator[None]:
    """Names stdout in an OSError of the block, such as that of a closed pipe."""
    try:
        yield
    except OSError as error:
        error.filename = "stdout"
        raise


def ask(prompt: str) -> str:
    """Reads a line from stdin, without its newline; empty at the end of input. Raises: ValueError as `read_stdin`."""
    if sys.stdin.isatty():
        with contextlib.suppress(OSError):
            print(printable(prompt), end="", file=sys.stderr, flush=True)
    return _read(sys.stdin.readline).rstrip("\n")


@contextlib.contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Within, the first Ctrl-C does not end the program: yields a function that returns whether it was pressed."""
    before, pressed = signal.getsignal(signal.SIGINT), []

    def press(number: int, frame: object) -> None:
        if pressed and callable(before):
            before(number, frame)
        pressed.append(number)

    signal.signal(signal.SIGINT, press)
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, before)


def read_stdin() -> str:
    """Reads all of stdin. Raises: ValueError if it is not UTF-8."""
    return _read(sys.stdin.read)


def _read(read: Callable[[], str]) -> str:
    try:
        text = read()
    except UnicodeDecodeError as error:
        raise ValueError(f"stdin is not UTF-8 ({error.reason}); convert it, as with iconv") from error
    check_text(text, "stdin")
    return text


def check_text(text: str, name: str) -> None:
    """Raises: ValueError if a text from the command line or stdin is not UTF-8, which Python marks by surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{name} is not UTF-8 (at character {error.start}); convert it, as with iconv") from error


def bar(label: str, total: int | None, unit: str = "B"):
    """Returns a progress bar with an ETA; if stderr is not a terminal, it prints a line every ten seconds."""
    import tqdm

    seconds = 0.1 if sys.stderr.isatty() else 10.0
    return tqdm.tqdm(
        desc=printable(label),
        total=total,
        unit=unit,
        unit_scale=True,
        unit_divisor=1024 if unit == "B" else 1000,
        mininterval=seconds,
        delay=seconds,
        file=sys.stderr if sys.stderr.isatty() else _Lines(),
    )


def steps_bar(label: str, total: int, initial: int):
    """Returns a progress bar of training steps, for a terminal."""
    import tqdm

    return tqdm.tqdm(
        desc=printable(label),
        total=total,
        initial=initial,
        dynamic_ncols=True,
        bar_format="{desc} {n_fmt}/{total_fmt}  {postfix}  {remaining} left |{bar}|",
        file=sys.stderr,
    )


def duration(seconds: float) -> str:
    """Formats a duration: "1:02:03", or "02:03" under an hour."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes:02}:{seconds:02}"


class _Lines:
    """Stderr as a file for tqdm: prints each state of a progress bar as a line."""

    def write(self, text: str) -> None:
        if text := text.strip("\r\n"):
            print(printable(text), file=sys.stderr, flush=True)

    def flush(self) -> None: ...
