"""How every verb reads its flags and speaks to its user: one parser, one progress bar, lines on stderr."""

import argparse
import contextlib
import dataclasses
import difflib
import re
import sys
import time
from collections.abc import Sequence

STARTED = time.monotonic()  # this module is the first that the program imports


@dataclasses.dataclass(frozen=True)
class Stop:
    """How a process that is told to stop ends."""

    status: int | None  # None: 128 + the signal's number, as a shell would say
    note: str


LEAVE_NOTHING = Stop(None, "what was being written is removed")
on_stop = LEAVE_NOTHING  # a verb that keeps what it did sets its own


class Parser(argparse.ArgumentParser):
    """argparse with this program's manners: exit status 1, one line, and a suggestion for a flag it does not know."""

    takes_overrides = False  # of a config: --config.a.b=value

    def __init__(self, **options):
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **options)

    def error(self, message: str):
        raise ValueError(f"{message} ({self.prog} --help lists what there is)")

    def parse_all(self, arguments: Sequence[str]) -> argparse.Namespace:
        overrides = [argument for argument in arguments if self.takes_overrides and argument.startswith("--config.")]
        arguments = [argument for argument in arguments if argument not in overrides]
        known = [name for action in self._actions for name in action.option_strings]
        for flag in (argument.partition("=")[0] for argument in arguments if argument.startswith("-")):
            if flag not in known:
                close = difflib.get_close_matches(flag, known, n=1)
                hint = f"; did you mean {close[0]}?" if close else ""
                self.error(f"{self.prog} has no flag {flag}{hint}")
        return self.parse_args(arguments, argparse.Namespace(overrides=overrides))


def add_model_flag(parser: Parser) -> None:
    parser.add_argument(
        "--model",
        metavar="SIZE|FILE",
        help="270m, 1b, 4b, 12b, 27b or a config.json: the model's shape, for an Orbax tree of the gemma library whose "
        "size is not a published one (default: recognised)",
    )


def mesh(text: str):
    """The mesh that `--mesh` asks for: "data=4,model=2"."""
    from gemma3_jax import sharding

    sizes = {}
    for part in text.split(","):
        axis, _, size = part.partition("=")
        if axis not in sharding.AXES or not re.fullmatch("[0-9]+", size) or axis in sizes:
            raise ValueError(f"--mesh is {text}; it must be AXIS=N,... with each axis once: {', '.join(sharding.AXES)}")
        sizes[axis] = int(size)
    return sharding.make_mesh(**sizes)


def say(*lines: str) -> None:
    """Lines on stderr; if nobody reads it any more, as when Ctrl-C has ended a `tee`, what is at work goes on."""
    with contextlib.suppress(OSError):
        if lines:
            print(*lines, sep="\n", file=sys.stderr, flush=True)


def ask(prompt: str) -> str:
    """A line that is typed, without its end; empty at the end of input."""
    if sys.stdin.isatty():
        with contextlib.suppress(OSError):
            print(prompt, end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().rstrip("\n")


def bar(label: str, total: int | None, unit: str = "B"):
    """A progress bar with ETA; where stderr is no terminal, a line every ten seconds of what takes longer."""
    import tqdm

    seconds = 0.1 if sys.stderr.isatty() else 10.0
    return tqdm.tqdm(
        desc=label,
        total=total,
        unit=unit,
        unit_scale=True,
        unit_divisor=1024 if unit == "B" else 1000,
        mininterval=seconds,
        delay=seconds,
        file=sys.stderr if sys.stderr.isatty() else _Lines(),
    )


def steps_bar(label: str, total: int, initial: int):
    """A live line of steps with ETA, for a terminal."""
    import tqdm

    return tqdm.tqdm(
        desc=label,
        total=total,
        initial=initial,
        dynamic_ncols=True,
        bar_format="{desc} {n_fmt}/{total_fmt}  {postfix}  {remaining} left |{bar}|",
        file=sys.stderr,
    )


def duration(seconds: float) -> str:
    """1:02:03, or 02:03."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes:02}:{seconds:02}"


class _Lines:
    """Where stderr is a file: what a terminal would write over itself stands in lines of its own."""

    def write(self, text: str) -> None:
        if text := text.strip("\r\n"):
            print(text, file=sys.stderr, flush=True)

    def flush(self) -> None: ...
