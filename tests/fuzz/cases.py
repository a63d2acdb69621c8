"""A case: a family's files with one of them damaged, by the family's name and the number of the case."""

import contextlib
import dataclasses
import pathlib
import random
from collections.abc import Iterator

from gemma3_jax.cli import program
from tests.fuzz import families, rule


@contextlib.contextmanager
def opened(name: str, root: pathlib.Path) -> Iterator[families.Family]:
    """The intact files of a family, below `root`; its verb can be run in the block."""
    (root / "in").mkdir()
    (root / "out").mkdir()
    family = families.FAMILIES[name](root / "in")
    with contextlib.ExitStack() as stack:
        if family.verb:
            program.VERBS["read"] = (family.verb, "")
            stack.callback(program.VERBS.pop, "read")
        yield family


def run(family: families.Family, name: str, number: int, root: pathlib.Path) -> rule.Outcome:
    """Runs a case; case 0 is the intact one."""
    draw = random.Random(f"{name}/{number}")
    contents = {path: path.read_bytes() for path in family.damages}
    damaged = draw.choice(sorted(family.damages))
    target = root / "out" / "target"
    try:
        if number:
            damaged.write_bytes(family.damages[damaged](draw, contents[damaged]))
        outcome = rule.run(family.command(draw, target), target)
    finally:
        for path, content in contents.items():
            if not path.is_file() or path.read_bytes() != content:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
        for left in target.parent.iterdir():
            rule.atomic.remove(left)
    where = f"{name} {number} ({damaged.relative_to(root)}): "
    return dataclasses.replace(outcome, broken=outcome.broken and where + outcome.broken)
