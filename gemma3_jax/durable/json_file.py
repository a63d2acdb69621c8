"""JSON that something else has written: whatever is wrong with it is one ValueError that names the file."""

import json
import math
import pathlib
import types
import typing
from collections.abc import Mapping

# What a field may be: a type, a union, list[X], dict[str, X], or the fields of an object.
Kind = type | types.UnionType | types.GenericAlias | Mapping

MAX_INTEGER = 1 << 63  # what counts, sizes and ids fit into
GIT_LFS = b"version https://git-lfs"  # how the pointer to a file begins that Git LFS did not fetch
MAX_DEPTH = 100  # of what is read further by functions that call themselves
_NAMES = {
    str: "text",
    int: "an integer",
    float: "a number",
    bool: "true or false",
    list: "a list",
    dict: "an object",
    types.NoneType: "null",
}


def read_object(source: pathlib.Path | bytes, name: str = "") -> dict:
    """Returns the JSON object of a file, or of its content; `name` stands for it in errors (default: its path).

    Raises: OSError if the file cannot be read, ValueError if it is not UTF-8, not JSON, or not an object.
    """
    content = source if isinstance(source, bytes) else source.read_bytes()
    name = name or str(source)
    if content.startswith(GIT_LFS):
        raise ValueError(f"{name} is the pointer of Git LFS to a file, not the file; fetch it: git lfs pull")
    try:
        value = json.loads(content.decode("utf-8-sig"))  # editors may write a byte order mark
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{name} is not UTF-8 ({error.reason} in line {line})") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{name} is not JSON (line {error.lineno}, column {error.colno}: {error.msg})") from error
    except RecursionError as error:
        raise ValueError(f"{name} is not JSON that can be read (it is nested too deeply)") from error
    except ValueError as error:  # an integer of thousands of digits
        raise ValueError(f"{name} is not JSON that can be read ({error})") from error
    if not isinstance(value, dict):
        raise ValueError(f"{name} is {describe(value)}; it must be a JSON object")
    if _is_deep(value):
        raise ValueError(f"{name} is nested more than {MAX_DEPTH} deep")
    return value


def check(
    content: Mapping, fields: Mapping[str, Kind], name: str, *, optional: Mapping[str, Kind] | None = None
) -> None:
    """Checks that an object has all `fields`, of these kinds, and any of `optional`; it may have others.

    An integer is a number too, but true is no integer; numbers are finite, integers fit into 64 bits, and text can be
    encoded. Raises: ValueError that names the file and the field.
    """
    present = {key: kind for key, kind in (optional or {}).items() if key in content}
    _check(content, {**fields, **present}, name, "")


def describe(value: object) -> str:
    """Returns a JSON value in at most 40 characters, for an error."""
    if isinstance(value, list | dict):  # its repr may be long, or nested too deeply
        return _NAMES[type(value)]
    return f"{value!r:.40}" if isinstance(value, str) else json.dumps(value)[:40]


def _is_deep(value: object) -> bool:
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [
            inner
            for outer in level
            if isinstance(outer, list | dict)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
    return bool(level)


def _check(value: object, kind: Kind, name: str, path: str) -> None:
    where = f"{name}: {path}" if path else name
    plain = dict if isinstance(kind, Mapping) else typing.get_origin(kind) or kind
    arguments = () if isinstance(kind, Mapping) else typing.get_args(kind)
    allowed = arguments if plain is types.UnionType else (plain,)
    if not any(_is(value, one) for one in allowed):
        raise ValueError(f"{where} is {describe(value)}; it must be {' or '.join(_NAMES[one] for one in allowed)}")
    if isinstance(kind, Mapping):
        for key, inner in kind.items():
            if key not in value:
                raise ValueError(f"{where} has no field {key}")
            _check(value[key], inner, name, f"{path}.{key}".lstrip("."))
    elif plain is list and arguments:
        for number, item in enumerate(value):
            _check(item, arguments[0], name, f"{path}[{number}]")
    elif plain is dict and arguments:
        for key, item in value.items():
            _check(key, str, name, f"a key of {path}")
            _check(item, arguments[1], name, f"{path}.{key}")


def _is(value: object, kind: type) -> bool:
    if isinstance(value, bool):
        return kind is bool
    if isinstance(value, int):
        return kind in (int, float) and -MAX_INTEGER <= value < MAX_INTEGER
    if isinstance(value, float):
        return kind is float and math.isfinite(value)
    if isinstance(value, str):
        return kind is str and value.encode(errors="replace").decode() == value
    return isinstance(value, kind)
