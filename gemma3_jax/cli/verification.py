"""The flag --verify of verbs that read data: all of it is compared with what was written before anything starts."""

import argparse
import pathlib
from collections.abc import Iterable

from gemma3_jax.cli import terminal


def add_flag(flags: terminal.Parser) -> None:
    flags.add_argument(
        "--verify",
        action="store_true",
        help="first read all data and stored targets of the stages, and compare them with their manifests",
    )


def run(flags: argparse.Namespace, stages: Iterable) -> None:
    """Verifies what the stages read, each directory once, on every host. Raises: ValueError on all hosts."""
    if not flags.verify:
        return
    import jax

    from gemma3_jax import console, hosts
    from gemma3_jax.data import verify

    stages = list(stages)
    is_first = jax.process_index() == 0
    bar = terminal.bar if is_first else console.silent_bar
    say = terminal.say if is_first else console.ignore
    with hosts.raise_on_all():
        for path in dict.fromkeys(stage.data for stage in stages if stage.data):
            size = verify.data_set(pathlib.Path(path), bar)
            say(f"verified {path}: {size / 2**20:,.1f} MiB")
        for path in dict.fromkeys(stage.targets for stage in stages if stage.targets):
            count = verify.targets(pathlib.Path(path), bar)
            say(f"verified {path}: targets of {count:,} sequences")
