"""JSON and JSON Schema: strict parsing, checks of schemas before use, validation of values."""

import copy
import difflib
import json
import math
import pathlib
import re
from collections.abc import Collection, Iterator, Mapping

import jsonschema
import referencing
import referencing.exceptions
import referencing.jsonschema

from gemma3_jax.inference.tools import recursion

_MIN_INT, _MAX_INT = -(2**63), 2**64 - 1
# Keywords with schemas in them: as the value, in a list, or in a map.
_WITH_SCHEMA = (
    "items",
    "additionalProperties",
    "additionalItems",
    "unevaluatedItems",
    "unevaluatedProperties",
    "contains",
)
_WITH_SCHEMA += ("propertyNames", "not", "if", "then", "else")
_WITH_LIST = ("allOf", "anyOf", "oneOf", "prefixItems", "items")
_WITH_MAP = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_ANNOTATIONS = {"title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly", "$comment"}
_ANNOTATIONS |= {"$schema", "$id", "$anchor", "$defs", "definitions", "then", "else", "minContains", "maxContains"}
_ANNOTATIONS |= {"contentEncoding", "contentMediaType"}

_OPENAPI = {  # keywords of OpenAPI that schemas of tools often have, and what to write instead
    "nullable": 'write "type": ["string", "null"], with its type',
    "discriminator": "leave it out, and give each schema of oneOf a const for that property",
    "example": 'write "examples": [...]',
    "xml": "leave it out",
    "externalDocs": "leave it out",
}


def read(text: str) -> object:
    """The value of a JSON text. Names in an object must be unique, numbers finite, and integers fit 64 bits.

    Raises: ValueError with the problem.
    """
    try:
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse_constant)
        check_plain(value)
    except json.JSONDecodeError as error:
        raise ValueError(f"{error.msg} at character {error.pos}") from error
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    return value


def _unique(pairs: list) -> dict:
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"an object has {twice!r:.60} twice")
    return dict(pairs)


def _refuse_constant(constant: str) -> None:
    raise ValueError(f"{constant} is not a number in JSON")


def check_plain(value: object) -> None:
    """Raises: ValueError for numbers and strings that other programs could not read back."""
    if isinstance(value, str):
        if re.search("[\ud800-\udfff]", value):
            raise ValueError("a string has half of a surrogate pair, which is not a character")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError("a number is too large for a float of 64 bits")
    elif isinstance(value, int):
        if not _MIN_INT <= value <= _MAX_INT:
            raise ValueError("an integer is too large for 64 bits")
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            check_plain(name)
            check_plain(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            check_plain(inner)


def load(path: pathlib.Path) -> Mapping | list:
    """The object or list in a JSON file, parsed by `read`.

    Raises: ValueError if there is no such file, or it has something else in it.
    """
    if not path.exists() or path.is_dir():  # a pipe, as of a shell's <(...), is fine
        raise ValueError(f"{path} {'is a directory' if path.is_dir() else 'does not exist'}; it must be a JSON file")
    try:
        value = read(path.read_text(encoding="utf-8-sig"))  # editors may write a byte order mark
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, Mapping | list):
        raise ValueError(f"{path} has {value!r:.60}; it must have an object or a list")
    return value


def check(schema: object, what: str = "the schema") -> None:
    """Checks a JSON Schema: its keywords are known or begin with `x-`, its references resolve within it, and end.

    `what` names the schema in the error.
    Raises: ValueError with the problem, and where it is.
    """
    if not isinstance(schema, Mapping | bool):
        raise ValueError(f"{what} is {schema!r:.60}; a JSON Schema is an object, true or false")
    if isinstance(schema, Mapping) and not isinstance(schema.get("$schema", ""), str):
        raise ValueError(f"{what} is not a JSON Schema: $schema is {schema['$schema']!r:.60}, and must be a string")
    try:
        check_plain(schema)
        validator = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
        validator.check_schema(schema)
    except jsonschema.SchemaError as error:
        path = _format_path(error.absolute_path)
        raise ValueError(f"{what} is not a JSON Schema: {path and path + ': '}{error.message:.200}") from error
    except RecursionError as error:
        raise ValueError(f"{what} is nested too deeply") from error
    except ValueError as error:
        raise ValueError(f"{what} is not a JSON Schema: {error}") from error
    known = {*jsonschema.Draft202012Validator.VALIDATORS, *validator.VALIDATORS, *_ANNOTATIONS}
    resource = referencing.jsonschema.DRAFT202012.create_resource(schema)
    resolver = referencing.Registry().resolver_with_root(resource)
    parts, targets = list(subschemas(schema)), {}
    for part in parts:
        for name in part:
            if name not in known and not name.startswith("x-"):
                raise ValueError(
                    f"{what} has a keyword {name!r:.60}, which JSON Schema does not have; {_hint(name, known)}"
                )
        for name in ("$ref", "$dynamicRef"):
            try:
                target = resolver.lookup(part.get(name, "#")).contents
            except referencing.exceptions.Unresolvable as error:
                raise ValueError(
                    f"{what} refers to {part[name]!r:.60}, which is not in it; put it under $defs and refer to "
                    "'#/$defs/NAME'"
                ) from error
            if name == "$ref" and name in part:
                targets[part[name]] = target
    if recursion.is_endless(parts, targets):
        raise ValueError(
            f"{what} requires a value of itself inside each of its values, so that none can end; make that property "
            "optional, or allow null in its place"
        )


def _hint(keyword: str, known: Collection[str]) -> str:
    if keyword in _OPENAPI:
        return f"it is of OpenAPI: {_OPENAPI[keyword]}"
    close = difflib.get_close_matches(keyword, known, n=1)
    return f"did you mean {close[0]}?" if close else "custom keywords begin with x-"


def subschemas(schema: object) -> Iterator[Mapping]:
    """Yields a schema and all schemas in it that are objects."""
    if not isinstance(schema, Mapping):
        return
    yield schema
    for name, value in schema.items():
        if name in _WITH_SCHEMA:
            yield from subschemas(value)
        if name in _WITH_LIST and isinstance(value, list | tuple):
            for inner in value:
                yield from subschemas(inner)
        if name in _WITH_MAP and isinstance(value, Mapping):
            for inner in value.values():
                yield from subschemas(inner)


def rebased(schema: Mapping, pointer: str) -> dict:
    """A copy for use at `pointer` (such as `/anyOf/0`) in another schema: its references point there."""
    result = copy.deepcopy({name: value for name, value in schema.items() if name not in ("$schema", "$id")})
    for part in subschemas(result):
        if re.match(r"#(/|$)", part.get("$ref", "")):
            part["$ref"] = f"#{pointer}{part['$ref'][1:]}"
    return result


def violation(schema: Mapping | bool, value: object) -> tuple[str, str] | None:
    """The path in a value that violates the schema (`a.b[0]`; "" for the whole) and the message; None if it is valid.

    `format` is not checked: by default it is an annotation.
    """
    validator = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    try:
        # An empty registry: references are never fetched.
        errors = validator(schema, registry=referencing.Registry()).iter_errors(value)
        worst = jsonschema.exceptions.best_match(errors)
    except RecursionError:
        return "", "it is nested too deeply"
    return None if worst is None else (_format_path(worst.absolute_path), f"{worst.message:.200}")


def _format_path(path: object) -> str:
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path).lstrip(".")
