"""Reads and checks the command line of a launcher, for launch/pods.sh: from the root of the checkout

    python3 -ES -m launch.check LAUNCHER [VERB [--flag=value ...] [-- ARGUMENT_OF_TRAIN ...]]
    python3 -ES -m launch.check compiler_flags NUM_SLICES [MORE_FLAGS]

The first prints NAME=VALUE lines: `verb`, each flag of the verb, the values that follow from them, and an `argument`
line for each argument of train. The second prints the value of LIBTPU_INIT_ARGS. Exit status: 0; 1 after an error,
which is one line on stderr; 2 after a help text. Needs Python 3.10 and its standard library: the modules of gemma3_jax
that it imports need no more.
"""

import os
import sys

from gemma3_jax.planning import compiler_flags
from launch import checks, flags, verbs

ERROR, HELP = 1, 2


def check(launcher: flags.Launcher, words: list[str]) -> tuple[dict[str, str], list[str]]:
    """Returns the checked values by name, and the arguments of train. Raises: ValueError if a value is wrong."""
    verb, values, rest = flags.read(launcher, words)
    checks.control_characters([*values.values(), *rest])
    for flag in flags.flags_of(launcher, verb):
        if flag.check and values[flag.name]:
            values[flag.name] = flag.check(flag.name, values)
    for derive in (*launcher.derive, *launcher.verbs[verb].derive):
        values |= derive(values)
    arguments = checks.train_arguments(launcher.script, values, rest) if launcher.verbs[verb].trains else []
    return {"verb": verb} | values, arguments


def main(words: list[str]) -> int:
    if words[0] == "compiler_flags":
        num_slices, *more = words[1:]
        print(" ".join(filter(None, [compiler_flags.libtpu_init_args(int(num_slices)), *more])))
        return 0
    launcher = verbs.LAUNCHERS[words[0]]
    if text := flags.help_text(launcher, words[1:]):
        print(text)
        return HELP
    try:
        values, arguments = check(launcher, words[1:])
    except ValueError as error:
        print(f"{launcher.script}: error: {error}", file=sys.stderr)
        return ERROR
    lines = [f"{name}={value}" for name, value in values.items()] + [f"argument={text}" for text in arguments]
    sys.stdout.buffer.write(os.fsencode("".join(f"{line}\n" for line in lines)))  # whatever the locale is
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
