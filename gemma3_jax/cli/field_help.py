"""The fields of a config as text for `--help`: path, default, and the comment beside each in its source."""

import ast
import dataclasses
import functools
import inspect
import io
import textwrap
import tokenize

from gemma3_jax.cli import configs

WIDTH = 110  # columns
INDENT = " " * 8  # of comments


def describe(schema: type, where: str = "--config", instance: object = None) -> list[str]:
    """Returns a line for each field, with its path and its default, and behind or below it what the field is.

    NAME stands for the key of an entry. What a group is stands before its fields.
    """
    lines = []
    for field in dataclasses.fields(schema):
        path, what = f"{where}.{field.name}", comments(schema).get(field.name, "")
        value = configs.default_of(field) if instance is None else getattr(instance, field.name)
        entry_type = configs.type_of_entries(field.type)
        if entry_type or dataclasses.is_dataclass(field.type):
            group = entry_type or field.type
            path = f"{path}.NAME" if entry_type else path
            first, *_ = inspect.getdoc(group).splitlines()
            lines += ["", *_wrapped(f"{path}.*", what or first)]
            lines += describe(group, path, None if entry_type else value)
        else:
            must_be_set = instance is None and (field.default, field.default_factory) == (dataclasses.MISSING,) * 2
            lines += _wrapped(f"{path}={'(must be set)' if must_be_set else repr(value)}", what)
    return lines


def _wrapped(field: str, what: str) -> list[str]:
    if not what:
        return [field]
    if len(line := f"{field}  # {what}") <= WIDTH:
        return [line]
    return [field, *textwrap.wrap(f"# {what}", WIDTH, initial_indent=INDENT, subsequent_indent=f"{INDENT}  ")]


@functools.cache
def comments(schema: type) -> dict[str, str]:
    """Returns the comments of the fields of a dataclass: those behind a field, or else those on the lines above it."""
    found = {}
    for parent in filter(dataclasses.is_dataclass, reversed(schema.__mro__)):
        source = textwrap.dedent(inspect.getsource(parent))
        own_line, behind = _comments(source)
        for node in ast.parse(source).body[0].body:
            if isinstance(node, ast.AnnAssign):
                first, above = node.lineno, []
                while (first := first - 1) in own_line:
                    above.insert(0, own_line[first])
                lines = [behind[line] for line in range(node.lineno, node.end_lineno + 1) if line in behind]
                found[node.target.id] = " ".join(lines or above)
    return found


def _comments(source: str) -> tuple[dict[int, str], dict[int, str]]:
    """Returns the comments of a source by line: those that have it for themselves, and those behind code."""
    own_line, behind = {}, {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            has_line = token.line.lstrip().startswith("#")
            (own_line if has_line else behind)[token.start[0]] = token.string.lstrip("# ")
    return own_line, behind
