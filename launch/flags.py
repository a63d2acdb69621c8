"""The verbs and flags of a launcher: described in tables, read from the command line, shown by --help."""

import difflib
import textwrap
from collections.abc import Callable
from typing import NamedTuple

from launch import checks


class Flag(NamedTuple):
    name: str
    help: str
    value: str = "VALUE"  # stands for the value in the help text; empty for a switch
    default: str = ""
    is_required: bool = False
    check: Callable[[str, dict[str, str]], str] | None = None  # of name and all values; returns the value to use


class Verb(NamedTuple):
    summary: str
    flags: tuple[Flag, ...] = ()
    details: str = ""
    derive: tuple[Callable[[dict[str, str]], dict[str, str]], ...] = ()  # checks of several values; return more values
    trains: bool = False  # takes arguments of train after --


class Launcher(NamedTuple):
    script: str
    summary: str
    flags: tuple[Flag, ...]  # of every verb
    verbs: dict[str, Verb]
    details: str
    example: str
    derive: tuple[Callable[[dict[str, str]], dict[str, str]], ...] = ()  # as a verb's, of every verb


GENERAL = (
    Flag("dry_run", "Print every command, and run none. Needs no tool and no access to a cloud.", value=""),
    Flag("help", "Print this text.", value=""),
)


def flags_of(launcher: Launcher, verb: str) -> tuple[Flag, ...]:
    return (*launcher.flags, *launcher.verbs[verb].flags, *GENERAL)


def closest(word: str, choices) -> str:
    return difflib.get_close_matches(word, choices, n=1, cutoff=0)[0]


def read(launcher: Launcher, words: list[str]) -> tuple[str, dict[str, str], list[str]]:
    """Returns the verb, the value of each of its flags ("1" for a switch, else ""), and the words after --."""
    verb, *words = words
    if verb not in launcher.verbs:
        raise ValueError(
            f"there is no verb {checks.quoted(verb)}; did you mean {closest(verb, launcher.verbs)}? "
            f"(there are: {' '.join(launcher.verbs)})"
        )
    flags = {flag.name: flag for flag in flags_of(launcher, verb)}
    end = words.index("--") if "--" in words else len(words)
    values = {}
    for word in words[:end]:
        name, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--"):
            raise ValueError(
                f"{checks.quoted(word)} is not a flag: flags look like --name=value; arguments of train come after --"
            )
        if name not in flags:
            raise ValueError(f"there is no flag --{name}; did you mean --{closest(name, flags)}? (--help shows all)")
        if name in values:
            raise ValueError(f"--{name} is given twice")
        if equals and not flags[name].value:
            raise ValueError(f"--{name} is a switch, and takes no value")
        if flags[name].value and not value:
            raise ValueError(f"--{name} needs a value: --{name}=VALUE")
        values[name] = value or "1"
    for flag in flags.values():
        if flag.is_required and flag.name not in values:
            raise ValueError(f"--{flag.name} is required: --{flag.name}={flag.value} (--help shows an example)")
    return verb, {flag.name: values.get(flag.name, flag.default) for flag in flags.values()}, words[end + 1 :]


def help_text(launcher: Launcher, words: list[str]) -> str:
    """Returns the help of the launcher, or of a verb, if the words ask for it or there are none; else nothing."""
    before = words[: words.index("--")] if "--" in words else words
    if not words or words[0] in ("-h", "--help", "help"):
        return _help_of_launcher(launcher)
    return _help_of_verb(launcher, words[0]) if words[0] in launcher.verbs and "--help" in before else ""


def _help_of_launcher(launcher: Launcher) -> str:
    rows = [(name, verb.summary) for name, verb in launcher.verbs.items()]
    return "\n\n".join(
        [
            _usage(launcher, "VERB", launcher.flags),
            _paragraphs(launcher.summary),
            "verbs:\n" + _table(rows),
            "flags of every verb:\n" + _table([*map(_row, (*launcher.flags, *GENERAL))]),
            f"'bash launch/{launcher.script} VERB --help' describes all flags of a verb.",
            _paragraphs(launcher.details),
            f"example:\n{textwrap.indent(launcher.example, '  ')}",
        ]
    )


def _help_of_verb(launcher: Launcher, name: str) -> str:
    flags, verb = flags_of(launcher, name), launcher.verbs[name]
    parts = [_usage(launcher, name, flags), _paragraphs(verb.summary), _paragraphs(verb.details)]
    return "\n\n".join([*filter(None, parts), "flags:\n" + _table([*map(_row, flags)])])


def _usage(launcher: Launcher, verb: str, flags: tuple[Flag, ...]) -> str:
    required = [f"--{flag.name}={flag.value}" for flag in flags if flag.is_required]
    line = " ".join([f"usage: bash launch/{launcher.script} {verb}", *required, "[--flag=value ...]"])
    if verb in launcher.verbs and launcher.verbs[verb].trains:
        line += " -- --config=FILE [FLAG_OF_TRAIN ...]"
    return _wrapped(line, subsequent_indent="    ")


def _row(flag: Flag) -> tuple[str, str]:
    note = " (required)" if flag.is_required else f" (default: {flag.default})" if flag.default else ""
    return f"--{flag.name}" + (f"={flag.value}" if flag.value else ""), flag.help + note


def _table(rows: list[tuple[str, str]]) -> str:
    width = max(len(name) for name, _ in rows) + 4
    return "\n".join(
        _wrapped(text, initial_indent=f"  {name}".ljust(width), subsequent_indent=" " * width) for name, text in rows
    )


def _paragraphs(text: str) -> str:
    return "\n\n".join(map(_wrapped, text.split("\n\n")))


def _wrapped(text: str, **indents: str) -> str:
    return textwrap.fill(text, 80, break_long_words=False, break_on_hyphens=False, **indents)
